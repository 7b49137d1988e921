"""Prediction on video files and cameras: a drawn video, and a JSON line for each frame.

Frames are decoded, detected in batches, drawn by threads and encoded at the same time, a bounded
number of them in memory.
"""

import collections
import contextlib
import json
import pathlib
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import cast

import jax
import numpy as np
import tqdm
from PIL import Image

from m2det_jax.errors import InputError
from m2det_jax.inference.result import Result
from m2det_jax.inference.slices import tile_size
from m2det_jax.inference.stream import ahead
from m2det_jax.inference.trained_detector import TrainedDetector
from m2det_jax.pages.markup import printable
from m2det_jax.predict.classes import read_limits
from m2det_jax.predict.inputs import picture_names
from m2det_jax.predict.outputs import LINES, RESULTS
from m2det_jax.predict.run import Predicted, check_flags
from m2det_jax.predict.video_files import (
    DamagedVideo,
    Frame,
    Source,
    Video,
    VideoWriter,
    camera_source,
    file_source,
    is_video,
    open_video,
)
from m2det_jax.run import devices, memory, readers
from m2det_jax.run.outputs import Outputs, refuse_checkpoints
from m2det_jax.trained import restore

_EVERY = 1.0  # seconds between pieces of the JSON lines


def predict_videos(
    workdir: pathlib.Path,
    paths: Sequence[str] = (),
    *,
    camera: str = "",
    checkpoint: str = "latest",
    output: str = "",
    threshold: float = 0.5,
    class_thresholds: Sequence[str] = (),
    classes: Sequence[str] = (),
    batch_size: int = 0,
    pictures: bool = True,
    overrides: Sequence[str] = (),
    slices: int | str | None = None,
) -> Predicted:
    """Detects objects in the frames of videos, or of a camera until it ends or Ctrl-C is pressed.

    Writes predictions.jsonl, with a line for each frame, and a drawn MP4 file for each video.

    Args:
        workdir: the --workdir of the training run.
        paths: video files.
        camera: instead of files, the number of a camera, its device, or the URL of a stream.
        checkpoint: "latest", "best" (by validation AP), or a step.
        output: folder for videos and JSON lines; "": workdir/predictions.
        threshold: lowest score that is drawn and written, 0..1; replaces the one of config.eval.
        class_thresholds: other thresholds of some classes, as NAME=SCORE.
        classes: names of the classes to keep; (): all.
        batch_size: frames per call, over all devices; 0: one per device.
        pictures: write videos too, not only JSON lines.
        overrides: changes of config.eval, such as "eval.nms=soft_linear".
        slices: see frames in tiles, too: pixels of a tile's longer side, or "auto".

    Raises:
        InputError: if a video cannot be read to its end (the frames before are written), a user's
            file would be replaced, or a flag is wrong.
        KeyboardInterrupt: after Ctrl-C, when the frames so far of a video file are written.
    """
    check_flags(threshold, batch_size, overrides)
    sources = _sources(paths, camera)
    detector = TrainedDetector(restore(workdir, checkpoint, overrides), workdir)
    limits = read_limits(threshold, class_thresholds, classes, detector.class_names)
    if slices is not None:
        tile_size(slices, detector.image_size)  # says before anything is written if it is none
    batch_size = batch_size or jax.device_count()
    devices.check_divisible("--batch_size", batch_size)
    outputs = Outputs(output or workdir / "predictions", "predict")
    refuse_checkpoints(outputs.folder, workdir)
    names = _video_names(sources) if pictures else [""] * len(sources)
    outputs.claim([LINES, *filter(None, names)], [one.file for one in sources if not one.live])

    def detect(images: Iterator[np.ndarray]) -> Iterator[Result]:
        for result in detector.predict(images, limits.lowest, batch_size, slices):
            yield result[result.scores >= limits.scores[result.labels]]

    for source in sources:
        if not source.live:
            with open_video(source):  # before anything is written
                pass
    outputs.folder.mkdir(parents=True, exist_ok=True)
    outputs.remove(RESULTS)
    begin = time.perf_counter()
    with memory.batch_explained("prediction", "--batch_size", batch_size), _lines(outputs) as lines:
        for source, name in zip(sources, names, strict=True):
            _one_video(source, detect, lines, outputs, name)
    done = Predicted(lines.frames, lines.detections, 0, 0, outputs.folder, (LINES,))
    _say(done, time.perf_counter() - begin, names)
    return done


def _sources(paths: Sequence[str], camera: str) -> list[Source]:
    if camera:
        if paths:
            raise InputError(f"--camera: give no files with it, got {paths[0]}")
        return [camera_source(camera)]
    others = [path for path in paths if not is_video(path)]
    if others:
        raise InputError(f"{others[0]}: give videos alone, and images in another command")
    return [file_source(path) for path in dict.fromkeys(paths)]


def _video_names(sources: Sequence[Source]) -> list[str]:
    stems = ["camera" if source.live else source.name for source in sources]
    return [f"{name.removesuffix('.jpg')}.mp4" for name in picture_names(stems)]


class _Lines:
    """The lines of predictions.jsonl, which are written once a second and at the end.

    Attributes:
        frames, detections: numbers so far.
    """

    def __init__(self, append: Callable[[str], None]) -> None:
        self.frames = self.detections = 0
        self._append, self._waiting = append, ""
        self._written = time.monotonic()

    def add(self, source: Source, frame: int, seconds: float, result: Result) -> None:
        detections = result.to_coco(self.frames)
        for one in detections:
            del one["image_id"]
        height, width = result.image_size
        entry = {
            "image_id": self.frames,
            "file_name": source.name,
            "frame": frame,
            "time": round(seconds, 6),
            "width": width,
            "height": height,
            "detections": detections,
        }
        self._waiting += json.dumps(entry) + "\n"
        self.frames, self.detections = self.frames + 1, self.detections + len(detections)
        if time.monotonic() - self._written > _EVERY:
            self.write()

    def write(self) -> None:
        text, self._waiting = self._waiting, ""
        if text:
            self._append(text)
        self._written = time.monotonic()


@contextlib.contextmanager
def _lines(outputs: Outputs) -> Iterator[_Lines]:
    with outputs.stream(LINES) as append:
        lines = _Lines(append)
        try:
            yield lines
        finally:
            lines.write()


def _one_video(
    source: Source,
    detect: Callable[[Iterator[np.ndarray]], Iterator[Result]],
    lines: _Lines,
    outputs: Outputs,
    name: str,
) -> None:
    """Detects objects in a video; it is written under a name in the outputs ("": it is not).

    Raises:
        InputError, KeyboardInterrupt: after the frames so far are written.
    """
    stopped: BaseException | None = None
    with contextlib.ExitStack() as stack:
        video = stack.enter_context(open_video(source))
        writer = None
        if name:
            partial = stack.enter_context(outputs.replacing(name))
            writer = stack.enter_context(contextlib.closing(VideoWriter(partial, video)))
        before = lines.frames
        try:
            for frame, result, picture in _detected(video, detect, draw=writer is not None):
                if writer and picture:
                    writer.write(picture, frame.pts)
                lines.add(source, frame.number, float(frame.pts * video.time_base), result)
        except (KeyboardInterrupt, DamagedVideo) as error:
            if lines.frames == before:
                raise
            stopped = error
    if isinstance(stopped, KeyboardInterrupt) and source.live:
        return  # how one ends a camera
    if stopped:
        raise stopped


def _detected(
    video: Video, detect: Callable[[Iterator[np.ndarray]], Iterator[Result]], *, draw: bool
) -> Iterator[tuple[Frame, Result, Image.Image | None]]:
    """Yields the frames of a video with their results, and drawn, if asked for."""
    taken: collections.deque[Frame] = collections.deque()

    def images() -> Iterator[np.ndarray]:
        for frame in video.frames():
            taken.append(frame)
            yield frame.image

    def drawn(result: Result) -> tuple[Result, Image.Image | None]:
        return result, result.draw() if draw else None

    threads = min(readers.usable_cores(), readers.MOST_THREADS)
    bar = tqdm.tqdm(total=video.expected, desc="predict", unit=" frames", leave=False, disable=None)
    with bar, contextlib.closing(cast(Generator[Result], detect(images()))) as results:
        pictures = ahead(drawn, results, threads=threads, most=2 * threads)
        with contextlib.closing(pictures):
            for result, picture in pictures:
                yield taken.popleft(), result, picture
                bar.update()


def _say(done: Predicted, seconds: float, names: Sequence[str]) -> None:
    written = ", ".join([*filter(None, names), LINES])
    rate = f"{done.images / seconds:.1f} frames a second"
    text = f"{done.detections} detections in {done.images} frames, {rate}; {written} in"
    print(printable(f"{text} {done.folder}"))
