"""Predict on videos and cameras: frames, times, turns, damage, interruptions and drawn videos."""

import builtins
import json
import pathlib
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

import m2det_jax
from m2det_jax import runtime
from m2det_jax.errors import InputError
from m2det_jax.predict import __main__, predict, predict_videos, video, video_files
from m2det_jax.predict.video_files import (
    DamagedVideo,
    Source,
    camera_source,
    file_source,
    is_video,
    open_video,
)

SIZE = (96, 64)  # width, height
LEFT, RIGHT = (220, 30, 30), (30, 30, 220)

pytestmark = pytest.mark.usefixtures("plain_parsers")


def picture(i: int) -> np.ndarray:
    """A red left and a blue right half, and a white bar that moves."""
    image = np.empty((SIZE[1], SIZE[0], 3), np.uint8)
    image[:, :48], image[:, 48:] = LEFT, RIGHT
    image[:, 2 * i % 96 : 2 * i % 96 + 4] = 255
    return image


def film(path: pathlib.Path, frames=10, *, rate=25, codec="libx264", times=None, turn=0, **more):
    """Writes a video; of noise, if asked for, so that it has many bytes."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w", options=more.get("container", {})) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        if codec == "libx264":
            stream.options = {"crf": "10", "g": "5"}
        if turn:
            stream.set_display_rotation(turn)
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        if more.get("sound"):
            sound = container.add_stream("aac", rate=8000)
            quiet = av.AudioFrame.from_ndarray(np.zeros((1, 4000), np.float32), "fltp", "mono")
            quiet.sample_rate = 8000
            container.mux(sound.encode(quiet))
        for i in range(frames):
            image = rng.integers(0, 256, (64, 96, 3), np.uint8) if more.get("noise") else picture(i)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if times:
                frame.pts, frame.time_base = times[i], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if more.get("sound"):
            container.mux(sound.encode(None))
    return path


def read(path) -> list:
    with open_video(file_source(str(path))) as opened:
        return [(frame, float(frame.pts * opened.time_base)) for frame in opened.frames()]


def written(path) -> list[av.VideoFrame]:
    with av.open(str(path)) as container:
        assert [stream.type for stream in container.streams] == ["video"]
        return list(container.decode(video=0))


def test_suffixes():
    assert all(map(is_video, ["a.mp4", "x/b.MOV", "c.webm", "d.avi", "e.mkv"]))
    assert not any(map(is_video, ["a.jpg", "mp4", "a.gif", "list.json", "folder/"]))


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "ts", "webm"])
def test_frames_come_in_order_at_their_times(tmp_path, suffix):
    codec = "libvpx" if suffix == "webm" else "libx264"
    path = film(tmp_path / f"a.{suffix}", codec=codec)
    frames = read(path)
    assert [frame.number for frame, _ in frames] == list(range(10))
    np.testing.assert_allclose([time for _, time in frames], np.arange(10) / 25, atol=0.002)
    for i, (frame, _) in enumerate(frames):
        assert frame.image.shape == (64, 96, 3) and frame.image.dtype == np.uint8
        assert abs(frame.image.astype(int) - picture(i)).mean() < 25


def test_uneven_times_are_kept(workdir, tmp_path):
    times = [0, 40, 50, 400, 1000, 1033]
    path = film(tmp_path / "uneven.mkv", 6, times=times)
    done = predict_videos(workdir, [str(path)], output=str(tmp_path / "out"))
    assert [line["time"] for line in done.lines()] == [time / 1000 for time in times]
    found = [frame.time for frame in written(tmp_path / "out" / "uneven.mp4")]
    np.testing.assert_allclose(found, np.array(times) / 1000, atol=1e-3)


@pytest.mark.parametrize(("turn", "turns"), [(90, 1), (180, 2), (-90, 3)])
def test_a_turned_video_comes_upright(workdir, tmp_path, turn, turns):
    """The rotation is counterclockwise, as FFmpeg's display matrix says it."""
    path = film(tmp_path / "phone.mp4", 3, turn=turn)
    (first, _), *_ = read(path)
    expected = np.rot90(picture(0), turns)
    assert first.image.shape == expected.shape
    assert abs(first.image.astype(int) - expected).mean() < 25
    done = predict_videos(workdir, [str(path)], output=str(tmp_path / "out"))
    height, width = expected.shape[:2]
    assert {(line["width"], line["height"]) for line in done.lines()} == {(width, height)}
    drawn = written(tmp_path / "out" / "phone.mp4")[0]
    assert (drawn.width, drawn.height, drawn.rotation) == (width, height, 0)


def test_lines_and_drawn_video(workdir, tmp_path, capsys):
    path = film(tmp_path / "film.mov", 11, sound=True)
    out = tmp_path / "out"
    done = predict_videos(workdir, [str(path)], output=str(out), threshold=0.3, batch_size=8)
    assert sorted(p.name for p in out.iterdir() if p.name[0] != ".") == [
        "film.mp4",
        "predictions.jsonl",
    ]
    detector, lines = m2det_jax.load(workdir), list(done.lines())
    assert done.images == len(lines) == 11 and done.detections > 0
    for i, ((frame, time), line) in enumerate(zip(read(path), lines, strict=True)):
        assert (line["image_id"], line["frame"], line["time"]) == (i, i, round(time, 6))
        assert line["file_name"] == str(path)
        expected = detector.predict(frame.image, threshold=0.3).to_coco(i)
        for one in expected:
            del one["image_id"]
        assert len(line["detections"]) == len(expected)
        for one, other in zip(line["detections"], expected, strict=True):
            np.testing.assert_allclose(one.pop("bbox"), other.pop("bbox"), atol=1e-3)
            assert one.pop("score") == pytest.approx(other.pop("score"), abs=1e-5)
            assert one == other
    said = capsys.readouterr().out
    assert "in 11 frames, " in said and "frames a second; film.mp4, predictions.jsonl in" in said
    drawn = written(out / "film.mp4")
    assert len(drawn) == 11
    (frame, _), *_ = read(path)
    expected = np.asarray(detector.predict(frame.image, threshold=0.3).draw()).astype(int)
    found = drawn[0].to_ndarray(format="rgb24")
    assert 2 * abs(found - expected).mean() < abs(frame.image - expected).mean()


def test_colours_stay(tmp_path):
    path = film(tmp_path / "a.mp4", 1)
    with open_video(file_source(str(path))) as opened:
        writer = video_files.VideoWriter(tmp_path / "b", opened)
        writer.write(Image.new("RGB", (96, 64), LEFT), 0)
        writer.write(Image.new("RGB", (48, 32), RIGHT), 512)  # of a stream that changes its size
        writer.close()
    red, blue = written(tmp_path / "b")
    for frame, colour in ((red, LEFT), (blue, RIGHT)):
        assert (frame.width, frame.height, frame.colorspace) == (96, 64, 1)
        found = frame.to_ndarray(format="rgb24").reshape(-1, 3)
        np.testing.assert_allclose(found, [colour] * len(found), atol=8)


def test_the_form_is_that_of_images(workdir, tmp_path):
    Image.fromarray(picture(0)).save(tmp_path / "a.png")
    of_image = predict(workdir, [str(tmp_path / "a.png")], output=str(tmp_path / "1"), threshold=0)
    path = film(tmp_path / "a.mp4", 1)
    of_video = predict_videos(workdir, [str(path)], output=str(tmp_path / "2"), threshold=0)
    (one,), (other,) = of_image.lines(), of_video.lines()
    assert set(other) == set(one) | {"frame", "time"}
    assert set(other["detections"][0]) == set(one["detections"][0])


def test_several_videos_odd_sizes_and_no_pictures(workdir, tmp_path):
    first = film(tmp_path / "a.mp4", 3)
    (tmp_path / "b").mkdir()
    second = tmp_path / "b" / "a.avi"
    with av.open(str(second), "w") as container:
        stream = container.add_stream("ffv1", rate=5)
        stream.width, stream.height, stream.pix_fmt = 51, 33, "bgr0"
        for _ in range(2):
            frame = av.VideoFrame.from_ndarray(np.full((33, 51, 3), 80, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    paths, out = [str(first), str(second)], tmp_path / "out"
    done = predict_videos(workdir, paths, output=str(out))
    assert [(x["image_id"], x["frame"], x["width"]) for x in done.lines()] == [
        (0, 0, 96), (1, 1, 96), (2, 2, 96), (3, 0, 51), (4, 1, 51),
    ]  # fmt: skip
    assert len(written(out / "a.mp4")) == 3
    assert [(frame.width, frame.height) for frame in written(out / "a_2.mp4")] == [(52, 34)] * 2
    predict_videos(workdir, paths, output=str(tmp_path / "json"), pictures=False)
    assert [path.name for path in (tmp_path / "json").glob("[!.]*")] == ["predictions.jsonl"]


def test_slices_of_frames(workdir, tmp_path):
    path = film(tmp_path / "a.mp4", 2)
    options = dict(threshold=0.3, pictures=False, slices=48)
    done = predict_videos(workdir, [str(path)], output=str(tmp_path / "out"), **options)
    detector = m2det_jax.load(workdir)
    for (frame, _), line in zip(read(path), done.lines(), strict=True):
        expected = detector.predict(frame.image, threshold=0.3, slices=48)
        assert len(line["detections"]) == len(expected) > 0
    with pytest.raises(InputError, match="slices"):
        predict_videos(workdir, [str(path)], output=str(tmp_path / "new"), slices=5)
    assert not (tmp_path / "new").exists()


def lines_of(folder: pathlib.Path) -> list[dict]:
    text = (folder / "predictions.jsonl").read_text()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def cut_off(path, share=0.6):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    return path


def test_frames_before_the_end_of_a_cut_file_are_kept(workdir, tmp_path):
    path = film(tmp_path / "cut.mp4", 30, noise=True, container={"movflags": "faststart"})
    whole = read(path)
    cut_off(path)
    out = tmp_path / "out"
    with pytest.raises(DamagedVideo) as error:
        predict_videos(workdir, [str(path)], output=str(out), batch_size=8)
    lines = lines_of(out)
    assert 10 < len(lines) < 30 and [line["frame"] for line in lines] == list(range(len(lines)))
    assert f"cut.mp4 from frame {len(lines)} on: its data are damaged or cut off" in str(
        error.value
    )
    assert len(written(out / "cut.mp4")) == len(lines)
    assert lines[-1]["time"] == pytest.approx(whole[len(lines) - 1][1], abs=1e-6)


def test_damage_inside_a_file_is_said(tmp_path):
    path = film(tmp_path / "a.mp4", 30, noise=True)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 20_000] = bytes(20_000)  # the ends of some frames, too
    path.write_bytes(content)
    frames = []
    with (
        open_video(file_source(str(path))) as opened,
        pytest.raises(DamagedVideo, match=r"a\.mp4 from frame \d+ on: Invalid data") as error,
    ):
        for frame in opened.frames():
            frames.append(frame)
    assert 8 < len(frames) < 25 and f"from frame {len(frames)} on" in str(error.value)


@pytest.mark.parametrize("suffix", ["mkv", "avi"])
def test_missing_ends_are_said(tmp_path, suffix):
    path = cut_off(film(tmp_path / f"a.{suffix}", 30, rate=5, noise=True))
    with pytest.raises(DamagedVideo, match="from frame 1[0-9] on: "):
        read(path)


def test_what_is_no_video_is_refused(workdir, tmp_path):
    for name, content, why in [
        ("empty.mp4", b"", "the file is empty"),
        ("text.mp4", b"hello " * 100, "Invalid data"),
        ("gone.mp4", None, "no such file"),
    ]:
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"cannot read video .*{name}: .*{why}"):
            predict_videos(workdir, [str(tmp_path / name)], output=str(tmp_path / "out"))
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(InputError, match="it is a folder"):
        predict_videos(workdir, [str(tmp_path / "folder.mp4")])
    with pytest.raises(InputError, match="no such file; give a stream as --camera"):
        predict_videos(workdir, ["https://example.org/a.mp4"])
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        sound = container.add_stream("aac", rate=8000)
        quiet = av.AudioFrame.from_ndarray(np.zeros((1, 4000), np.float32), "fltp", "mono")
        quiet.sample_rate = 8000
        container.mux(sound.encode(quiet))
        container.mux(sound.encode(None))
    with pytest.raises(InputError, match="it has sound or data, no pictures"):
        predict_videos(workdir, [str(tmp_path / "sound.mp4")], output=str(tmp_path / "out"))
    with pytest.raises(InputError, match="a.jpg: give videos alone"):
        predict_videos(workdir, ["a.mp4", "a.jpg"])
    assert not (tmp_path / "out").exists()


def test_files_of_the_user_are_not_replaced(workdir, tmp_path):
    path = film(tmp_path / "a.mp4", 2)
    before = path.read_bytes()
    with pytest.raises(InputError, match="it is one of the files to read"):
        predict_videos(workdir, [str(path)], output=str(tmp_path))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.mp4").write_bytes(b"mine")
    with pytest.raises(InputError, match="exists already"):
        predict_videos(workdir, [str(path)], output=str(tmp_path / "out"))
    assert path.read_bytes() == before and (tmp_path / "out" / "a.mp4").read_bytes() == b"mine"


def interrupting(monkeypatch, frame: int) -> None:
    add = video._Lines.add

    def interrupted(self, source, number, *rest):
        if number == frame:
            raise KeyboardInterrupt
        add(self, source, number, *rest)

    monkeypatch.setattr(video._Lines, "add", interrupted)


def test_an_interruption_leaves_the_frames_so_far(workdir, tmp_path, monkeypatch):
    path, out = film(tmp_path / "a.mp4", 30), tmp_path / "out"
    interrupting(monkeypatch, 12)
    with pytest.raises(KeyboardInterrupt):
        predict_videos(workdir, [str(path)], output=str(out), batch_size=8)
    lines = lines_of(out)
    assert [line["frame"] for line in lines] == list(range(12))
    assert len(written(out / "a.mp4")) in (12, 13)
    assert not [p for p in out.iterdir() if "partial" in p.name]
    monkeypatch.undo()
    assert predict_videos(workdir, [str(path)], output=str(out)).images == 30


@pytest.fixture
def stand_in(monkeypatch):
    """Stands for a camera: FFmpeg's test picture, which has no end."""
    source = Source("/dev/video0", "testsrc=size=96x64:rate=25", "lavfi", live=True)
    monkeypatch.setattr(video, "camera_source", lambda camera: {"0": source}[camera])


def test_a_camera_ends_by_an_interruption(workdir, tmp_path, monkeypatch, stand_in):
    interrupting(monkeypatch, 20)
    out = tmp_path / "out"
    done = predict_videos(workdir, camera="0", output=str(out), batch_size=8)
    assert done.images == 20
    assert {line["file_name"] for line in done.lines()} == {"/dev/video0"}
    np.testing.assert_allclose([line["time"] for line in done.lines()], np.arange(20) / 25)
    assert len(written(out / "camera.mp4")) in (20, 21)


def test_frames_wait_in_a_bounded_number(workdir, tmp_path, monkeypatch, stand_in):
    frames, add, ahead = video_files.Video.frames, video._Lines.add, []
    taken = []

    def counted(self):
        for frame in frames(self):
            taken.append(frame.number)
            yield frame

    def added(self, source, number, *rest):
        ahead.append(len(taken) - number)
        add(self, source, number, *rest)
        if number == 150:
            raise KeyboardInterrupt

    monkeypatch.setattr(video_files.Video, "frames", counted)
    monkeypatch.setattr(video._Lines, "add", added)
    monkeypatch.setattr(video.readers, "usable_cores", lambda: 2)
    predict_videos(workdir, camera="0", output=str(tmp_path / "out"), batch_size=8)
    assert len(ahead) == 151 and max(ahead[75:]) <= max(ahead[:75]) < 50


def test_names_of_cameras(monkeypatch):
    monkeypatch.setattr(video_files.sys, "platform", "linux")
    assert camera_source("0") == Source("/dev/video0", "/dev/video0", "v4l2", live=True)
    assert camera_source("/dev/video2").file == "/dev/video2"
    found = camera_source("rtsp://me:secret@10.0.0.1:554/live?x=1")
    assert found.name == "rtsp://10.0.0.1:554/live?x=1" and found.format is None and found.live
    assert found.file == "rtsp://me:secret@10.0.0.1:554/live?x=1"
    monkeypatch.setattr(video_files.sys, "platform", "darwin")
    assert camera_source("1") == Source("1", "1", "avfoundation", live=True)
    monkeypatch.setattr(video_files.sys, "platform", "win32")
    assert camera_source("USB Camera").file == "video=USB Camera"
    with pytest.raises(InputError, match="give the name of the camera"):
        camera_source("0")


def test_a_camera_that_is_not_there(workdir, tmp_path):
    with pytest.raises(InputError, match="cannot read video /dev/video97: "):
        predict_videos(workdir, camera="/dev/video97", output=str(tmp_path / "out"))
    with pytest.raises(InputError, match="--camera: give no files with it, got a.mp4"):
        predict_videos(workdir, ["a.mp4"], camera="0")


def run(monkeypatch, *arguments) -> int:
    """The exit status of the command."""
    monkeypatch.setattr(runtime, "start", lambda: None)
    try:
        __main__.main(__main__._parse(["predict", *map(str, arguments)]))
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    return 0


def test_the_command_tells_videos_by_their_suffix(workdir, tmp_path, monkeypatch, capfd):
    path = film(tmp_path / "a.MP4", 30, noise=True, container={"movflags": "faststart"})
    common = ["--workdir", workdir, "--output", tmp_path / "out", "--threshold", "0.3"]
    assert run(monkeypatch, *common, path, "--no_pictures", "--json") == 0
    document = json.loads(capfd.readouterr().out)
    assert document["files"] == [str(tmp_path / "out" / "predictions.jsonl")]
    assert [one["frame"] for one in document["images"]] == list(range(30))
    assert run(monkeypatch, *common, path, "--slice", "48") == 0
    assert len(written(tmp_path / "out" / "a.mp4")) == 30
    for wrong in (["--root", "x"], ["--strict"], ["--slice", "some"], ["--num_threads", "2"]):
        assert run(monkeypatch, *common, path, *wrong) == 1
    assert run(monkeypatch, *common, cut_off(path)) == 1
    assert 10 < len(written(tmp_path / "out" / "a.mp4")) == len(lines_of(tmp_path / "out")) < 30
    assert run(monkeypatch, *common) == 2


def test_the_command_takes_a_camera(workdir, tmp_path, monkeypatch, stand_in, capsys):
    common = ["--workdir", workdir, "--output", tmp_path / "out"]
    with monkeypatch.context() as patch:
        interrupting(patch, 9)
        assert run(patch, *common, "--camera", "0") == 0
    assert "detections in 9 frames, " in capsys.readouterr().out
    interrupting(monkeypatch, 9)
    assert run(monkeypatch, *common, film(tmp_path / "a.mp4", 20)) == 130


def test_pyav_is_asked_for_by_the_name_of_the_extra(workdir, tmp_path, monkeypatch):
    path, real = film(tmp_path / "a.mp4", 1), builtins.__import__

    def without(name, *rest, **more):
        if name == "av":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"need PyAV.*pip install 'm2det_jax\[video\]'"):
        predict_videos(workdir, [str(path)], output=str(tmp_path / "out"))
