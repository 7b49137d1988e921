"""Video files and cameras: frames are read, and drawn ones written, by PyAV (FFmpeg).

Frames come upright, by the rotation that a phone stores beside them, and at their own times, which
need not be evenly spaced. Sound is not read. PyAV is optional: the extra `video`.
"""

import contextlib
import dataclasses
import itertools
import pathlib
import sys
import urllib.parse
from collections.abc import Iterator
from fractions import Fraction
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from m2det_jax.errors import InputError

VIDEO_SUFFIXES = frozenset(
    ".mp4 .m4v .mov .avi .mkv .webm .mpg .mpeg .ts .mts .m2ts .wmv .flv .3gp .ogv".split()
)
_SILENCE = 10.0  # seconds that a stream may send nothing
_PLAIN_RATE = Fraction(30)  # frames a second where a file says nothing
_CODECS = ("libx264", "libopenh264", "mpeg4")  # the first that this FFmpeg has
_OPTIONS = {"libx264": {"preset": "veryfast", "crf": "20"}}
_BT709 = 1  # FFmpeg's number of the colour space of HD video; without it, players guess
# A container may name a duration that is longer than its last frame, by some frames.
_SLACK = 1.0  # seconds


class DamagedVideo(InputError):
    """A video that cannot be read to its end; the frames before the damage came first."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Where frames come from.

    Attributes:
        name: for people; without a password.
        file: what FFmpeg opens.
        format: of FFmpeg, for devices; None: FFmpeg finds it.
        live: a camera or stream, which has no end; damaged frames of it are left out.
    """

    name: str
    file: str
    format: str | None = None
    live: bool = False


class Frame(NamedTuple):
    """A frame: its number from 0, time in units of the video, and upright RGB [H, W, 3] uint8."""

    number: int
    pts: int
    image: np.ndarray


def is_video(path: str) -> bool:
    """Says whether a path has the suffix of a video file."""
    return pathlib.PurePath(path).suffix.lower() in VIDEO_SUFFIXES


def file_source(path: str) -> Source:
    """Returns the source of a video file.

    Raises:
        InputError: if it is missing, no file, or empty.
    """
    file = pathlib.Path(path).absolute()
    if not file.is_file():
        what = "it is a folder" if file.is_dir() else "no such file"
        hint = "; give a stream as --camera" if "://" in path else ""
        raise InputError(f"cannot read video {path}: {what}{hint}")
    if not file.stat().st_size:
        raise InputError(f"cannot read video {path}: the file is empty")
    return Source(str(file), str(file))


def camera_source(camera: str) -> Source:
    """Returns the source of a camera or stream.

    Args:
        camera: number of a camera, from 0; a device such as /dev/video0; or the URL of a stream.

    Raises:
        InputError: if the system has no cameras with numbers that FFmpeg knows.
    """
    if "://" in camera:
        return Source(_without_password(camera), camera, live=True)
    if sys.platform.startswith("linux"):
        file = f"/dev/video{camera}" if camera.isdecimal() else camera
        return Source(file, file, "v4l2", live=True)
    if sys.platform == "darwin":
        return Source(camera, camera, "avfoundation", live=True)
    if camera.isdecimal():
        raise InputError("--camera: on this system give the name of the camera, not a number")
    return Source(camera, f"video={camera}", "dshow", live=True)


def _without_password(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


class Video:
    """An open video.

    Attributes:
        source: where it is from.
        time_base: seconds of a unit of its times.
        rate: frames a second, about.
        expected: number of frames, about; None: unknown.
    """

    def __init__(self, source: Source, container: Any) -> None:
        self.source, self._container = source, container
        if not container.streams.video:
            raise InputError(f"cannot read video {source.name}: it has sound or data, no pictures")
        self._stream = stream = container.streams.video[0]
        # Several frames are decoded at a time; of a camera one, without delay.
        stream.thread_type = "SLICE" if source.live else "AUTO"
        self.time_base: Fraction = stream.time_base
        self.rate: Fraction = stream.guessed_rate or stream.average_rate or _PLAIN_RATE
        self.expected: int | None = stream.frames or None
        if not self.expected and not source.live and container.duration:
            self.expected = round(container.duration / 1e6 * self.rate)

    def frames(self) -> Iterator[Frame]:
        """Yields the frames, in the order in which they are shown.

        Raises:
            DamagedVideo: if a frame is damaged or frames are missing, after those before.
            InputError: if there is no frame at all.
        """
        step = max(1, round(1 / (self.rate * self.time_base)))
        evenly = self._container.format.name == "avi"  # which has no times of frames
        start, pts, number = None, 0, 0
        try:
            for frame in self._decoded():
                start = frame.pts if start is None else start
                # Times must grow: raw streams have none, and broken ones repeat them.
                unknown = evenly or frame.pts is None or start is None
                shown = pts + step if unknown else frame.pts - start
                pts = max(shown, pts + 1) if number else 0
                yield Frame(number, pts, _upright(frame))
                number += 1
        except _Damage as damage:
            if not number:
                raise InputError(f"cannot read video {self.source.name}: {damage}") from damage
            raise DamagedVideo(
                f"cannot read video {self.source.name} from frame {number} on: {damage}; the "
                "frames before it are written"
            ) from damage
        if not number:
            raise InputError(f"cannot read video {self.source.name}: it has no frames")

    def _decoded(self) -> Iterator[Any]:
        """Yields what FFmpeg decodes; raises _Damage after the last sound frame of a file."""
        failures, live = _pyav().FFmpegError, self.source.live
        packets, count, end = self._container.demux(self._stream), 0, 0.0
        while True:
            packet = None
            try:
                packet = next(packets, None)
                if packet is None:
                    break
                if packet.is_corrupt and not live:
                    raise _Damage("its data are damaged or cut off")
                frames = packet.decode()
            except (failures, _Damage) as error:
                if live and packet is not None:
                    continue
                yield from self._decoded_so_far()
                raise _Damage(_reason(error)) from error
            count += packet.size > 0
            for frame in frames:
                if frame.is_corrupt and not live:
                    raise _Damage("its data are damaged")
                yield frame
                end = max(end, frame.time or 0.0)
        if not live and (missing := _missing(self._stream, count, end)):
            raise _Damage(missing)

    def _decoded_so_far(self) -> list[Any]:
        """Returns the frames that the threads of the decoder still hold."""
        with contextlib.suppress(_pyav().FFmpegError):
            frames = self._stream.codec_context.decode(None)
            return list(itertools.takewhile(lambda frame: not frame.is_corrupt, frames))
        return []


class _Damage(Exception):
    """What is wrong with a video."""


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", "") or error)


def _missing(stream: Any, packets: int, end: float) -> str:
    """Says what of a file that was read to its end is missing, by what it says of itself; "": none.

    FFmpeg does not mind a file that is cut off.

    Args:
        packets: number of compressed frames that were read.
        end: time of the last frame, seconds.
    """
    if "mp4" in stream.container.format.name and packets < stream.frames:
        return f"the file ends after {packets} of {stream.frames} frames"
    hours, _, rest = stream.metadata.get("DURATION", "").partition(":")  # of Matroska and WebM
    minutes, _, seconds = rest.partition(":")
    if seconds and end < (said := 3600 * int(hours) + 60 * int(minutes) + float(seconds)) - _SLACK:
        return f"the file ends after {end:.1f} of {said:.1f} seconds"
    return ""


def _upright(frame: Any) -> np.ndarray:
    """Returns uint8 RGB [H, W, 3], turned as the video says, by quarter turns."""
    image = frame.to_ndarray(format="rgb24")
    turns, rest = divmod(round(frame.rotation), 90)  # counterclockwise
    return image if rest or not turns % 4 else np.ascontiguousarray(np.rot90(image, turns))


@contextlib.contextmanager
def open_video(source: Source) -> Iterator[Video]:
    """Opens a video file or camera.

    Raises:
        InputError: if it cannot be opened or PyAV is not installed; says why.
    """
    av = _pyav()
    options: dict[str, Any] = {"timeout": _SILENCE} if source.live else {
        "options": {"protocol_whitelist": "file"}  # a playlist must not fetch other files' data
    }  # fmt: skip
    try:
        container = av.open(source.file, format=source.format, **options)
    except (av.FFmpegError, OSError) as error:
        raise InputError(f"cannot read video {source.name}: {_reason(error)}") from error
    with container:
        yield Video(source, container)


class VideoWriter:
    """Writes pictures as an MP4 file, each at its own time; close it, or it cannot be read.

    Args:
        path: the file.
        video: where time base and rate are from.
    """

    def __init__(self, path: pathlib.Path, video: Video) -> None:
        self._time_base, self._rate = video.time_base, video.rate
        self._av = _pyav()
        self._container = self._av.open(str(path), "w", format="mp4")
        self._stream: Any = None

    def write(self, picture: Image.Image, pts: int) -> None:
        """Adds a picture; all get the size of the first, whose odd sides grow by one pixel."""
        array = np.asarray(picture)
        odd = [(0, array.shape[0] % 2), (0, array.shape[1] % 2), (0, 0)]  # H.264 halves the sides
        frame = self._av.VideoFrame.from_ndarray(np.pad(array, odd, mode="edge"), format="rgb24")
        if self._stream is None:
            self._stream = self._add_stream(frame.width, frame.height)
        size = {"width": self._stream.width, "height": self._stream.height}
        frame = frame.reformat(**size, format="yuv420p", dst_colorspace=_BT709)
        frame.pts, frame.time_base = pts, self._time_base
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Writes what is left."""
        try:
            if self._stream is not None:
                self._container.mux(self._stream.encode(None))
        finally:
            self._container.close()

    def _add_stream(self, width: int, height: int) -> Any:
        codec = next(name for name in _CODECS if name in self._av.codecs_available)
        stream = self._container.add_stream(codec, rate=self._rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base, stream.codec_context.colorspace = self._time_base, _BT709
        stream.options = _OPTIONS.get(codec, {})
        return stream


def _pyav() -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise InputError(
            "videos and cameras need PyAV, which is not installed: pip install 'm2det_jax[video]' "
            "(or pip install av)"
        ) from error
    return av
