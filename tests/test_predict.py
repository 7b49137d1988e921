"""Predict on folders as they are: odd photographs, broken files, image lists, interruptions."""

import json
import logging
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from m2det_jax import runtime
from m2det_jax.metrics.detections import one_behind
from m2det_jax.predict import __main__, outputs, predict
from m2det_jax.predict import run as verb
from m2det_jax.predict.inputs import picture_names
from m2det_jax.trained import restore

pytestmark = pytest.mark.usefixtures("plain_parsers")


def photo(path: Path, size=(60, 40), mode="RGB", **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(path.name)).integers(0, 255, (*size[::-1], 3), np.uint8)
    Image.fromarray(noise).convert(mode).save(path, **options)
    return path


def broken(folder: Path) -> list[str]:
    """Writes one of each kind of file that is no photograph; returns their names, in order."""
    whole = photo(folder / "whole.jpg", (300, 200)).read_bytes()
    (folder / "whole.jpg").unlink()
    bomb = b"P6 100000 100000 255\n"
    files = {
        "._photo.jpg": b"\0\x05\x16\x07\0\2\0\0Mac OS X        ",
        "bomb.ppm": bomb,
        "cut off.jpg": whole[: len(whole) // 2],
        "empty.png": b"",
        "text.jpg": b"not a picture",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return sorted(files)


@pytest.fixture
def said(caplog, monkeypatch):
    """The log lines."""
    monkeypatch.setattr(logging.getLogger("m2det_jax"), "propagate", True)
    caplog.set_level(logging.INFO, "m2det_jax")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.fixture
def folder(tmp_path) -> Path:
    """Nine good photographs of as many kinds, and five broken files."""
    root = tmp_path / "in"
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(root / "a turned.jpg", (90, 30), exif=exif)
    photo(root / "cmyk.jpg", mode="CMYK")
    photo(root / "palette.png", mode="P")
    Image.fromarray(np.full((30, 50), 40_000, np.uint16)).save(root / "sixteen bit.png")
    photo(root / "transparent.png", mode="RGBA")
    photo(root / "large.jpg", (900, 700))
    photo(root / "one pixel.png", (1, 1))
    photo(root / "фото.jpg")
    photo(root / "z\x1b[31m\nred.jpg")
    broken(root)
    return root


def test_what_cannot_be_read_is_named_and_skipped(whole, folder, tmp_path, said, capsys):
    done = predict(whole[0], [str(folder)], output=str(tmp_path / "out"), threshold=0.0)
    assert (done.images, done.skipped, done.undrawn) == (9, 5, 0)
    lines = list(done.lines())
    names = sorted(path.name for path in folder.iterdir())
    assert [Path(line["file_name"]).name for line in lines] == names
    assert [line["image_id"] for line in lines] == list(range(14))
    skipped = {Path(line["file_name"]).name: line["skipped"] for line in lines if "skipped" in line}
    assert sorted(skipped) == ["._photo.jpg", "bomb.ppm", "cut off.jpg", "empty.png", "text.jpg"]
    assert "the file is empty" in skipped["empty.png"] and "pixels" in skipped["bomb.ppm"]
    warnings = [line for line in said() if line.startswith("skipped: cannot read image")]
    assert len(warnings) == 5 and all(any(name in w for w in warnings) for name in skipped)
    assert "9 images, 5 images skipped" in capsys.readouterr().out

    found = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert len(found) == done.detections > 0
    assert [one["image_id"] for one in found] == [
        line["image_id"] for line in lines for _ in line.get("detections", ())
    ]
    turned = next(line for line in lines if "turned" in line["file_name"])
    assert (turned["width"], turned["height"]) == (30, 90)
    pictures = {path.name for path in (tmp_path / "out").glob("*.jpg")}
    assert len(pictures) == 9 and {"z_[31m_red.jpg", "фото.jpg", "palette.jpg"} <= pictures
    with Image.open(tmp_path / "out" / "a turned.jpg") as picture:
        assert picture.size == (30, 90)
    assert predict(whole[0], [str(folder)], output=str(tmp_path / "out")).images == 9


def test_images_that_cannot_be_read_are_skipped_by_several_views_too(whole, folder, tmp_path):
    options = dict(output=str(tmp_path / "out"), overrides=["eval.test_flip=True"], threshold=0.0)
    done = predict(whole[0], [str(folder)], **options)
    assert (done.images, done.skipped) == (9, 5)


def run(monkeypatch, *arguments) -> int:
    """The exit status of the command."""
    monkeypatch.setattr(runtime, "start", lambda: None)
    try:
        __main__.main(__main__._parser().parse_args([str(argument) for argument in arguments]))
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    return 0


def test_exit_statuses(whole, folder, tmp_path, monkeypatch):
    common = ["--workdir", whole[0], "--output", tmp_path / "out"]
    assert run(monkeypatch, *common, folder / "cmyk.jpg") == 0
    assert run(monkeypatch, *common, folder / "cmyk.jpg", folder / "text.jpg") == 3
    assert run(monkeypatch, *common, folder / "cmyk.jpg", folder / "cut off.jpg") == 3
    assert run(monkeypatch, *common, folder / "text.jpg") == 1
    assert run(monkeypatch, *common, folder / "cut off.jpg") == 1
    assert run(monkeypatch, *common, folder, "--strict") == 1
    assert run(monkeypatch, *common, folder / "cmyk.jpg", "--threshold", "50") == 1


def test_strict_refuses(whole, folder, tmp_path):
    with pytest.raises(ValueError, match="--strict: 4 of 14 images cannot be read: .*empty"):
        predict(whole[0], [str(folder)], output=str(tmp_path / "out"), strict=True)
    assert not (tmp_path / "out").exists()
    pair = [str(folder / "cmyk.jpg"), str(folder / "cut off.jpg")]
    with pytest.raises(ValueError, match=r"cannot read image .*cut off\.jpg"):
        predict(whole[0], pair, output=str(tmp_path / "out"), strict=True)
    assert not (tmp_path / "out" / "predictions.json").exists()


def test_nothing_to_read_is_refused(whole, folder, tmp_path):
    files = [str(folder / name) for name in ("text.jpg", "empty.png", "cut off.jpg")]
    for paths in (files[:2], files[2:], files):
        with pytest.raises(ValueError, match=f"{len(paths)} of {len(paths)} images cannot be"):
            predict(whole[0], paths, output=str(tmp_path / "out"))
    assert not (tmp_path / "out" / "predictions.json").exists()


@pytest.mark.parametrize("threshold", [50, -0.1, float("nan"), float("inf")])
def test_a_threshold_that_is_no_score_is_refused(tmp_path, threshold):
    with pytest.raises(ValueError, match="--threshold: a score from 0 to 1 expected, got"):
        predict(tmp_path, ["x.jpg"], threshold=threshold)


def test_a_negative_batch_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--batch_size: 0 or more expected, got -1"):
        predict(tmp_path, ["x.jpg"], batch_size=-1)


def test_suffixes_that_are_passed_over_are_said(whole, tmp_path, said):
    root = tmp_path / "in"
    photo(root / "a.jpg")
    (root / "more").symlink_to(tmp_path)
    for name in ("b.heic", "c.HEIC", "d.avif", "e.jfif", "notes", "f.txt"):
        (root / name).touch()
    done = predict(whole[0], [str(root)], output=str(tmp_path / "out"), pictures=False)
    assert (done.images, done.skipped) == (1, 0)
    (line,) = [line for line in said() if "ignored in folders" in line]
    for part in (
        "2 .heic",
        "1 .avif",
        "1 .jfif",
        "1 .txt",
        "1 without suffix",
        "1 links to folders",
    ):
        assert part in line
    assert not list((tmp_path / "out").glob("*.jpg"))


def test_an_image_list_keeps_its_ids(whole, tmp_path):
    photo(tmp_path / "images" / "a.jpg")
    photo(tmp_path / "images" / "sub" / "b.jpg")
    names = {900: "a.jpg", 7: "sub/b.jpg", 8: "gone.jpg", 901: "a.jpg"}
    entries = [{"id": number, "file_name": name} for number, name in names.items()]
    file = tmp_path / "image_info_test.json"
    file.write_text(json.dumps({"info": {}, "images": entries, "categories": []}))
    options = dict(output=str(tmp_path / "out"), threshold=0.0)
    done = predict(whole[0], [str(file)], root=str(tmp_path / "images"), **options)
    assert [line["image_id"] for line in done.lines()] == list(names)
    assert (done.images, done.skipped) == (3, 1)
    results = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert {one["image_id"] for one in results} == {900, 7, 901}
    assert {path.name for path in (tmp_path / "out").glob("*.jpg")} == {
        "a.jpg", "b.jpg", "a_2.jpg",
    }  # fmt: skip
    beside = tmp_path / "images" / "list.json"
    beside.write_text(json.dumps({"images": [{"id": "x", "file_name": "a.jpg"}]}))
    done = predict(whole[0], [str(beside)], **options)
    assert [line["image_id"] for line in done.lines()] == ["x"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "the file holds no JSON object"),
        ("{", r"list\.json: line 1"),
        ("{}", 'no "images" in it'),
        ('{"images": []}', 'no "images" in it'),
        ('{"images": {}}', r"list\.json: line 1"),
        ('{"images": [1]}', r"images\[0\]: an object with id and file_name expected"),
        ('{"images": [{"file_name": "a"}]}', r"images\[0\]: id: a unique number .* None"),
        ('{"images": [{"id": true, "file_name": "a"}]}', r"images\[0\]: id: .* True"),
        ('{"images": [{"id": 1}]}', r"images\[0\]: file_name: a path expected, got None"),
        ('{"images": [{"id": 1, "file_name": " "}]}', r"images\[0\]: file_name"),
        (
            '{"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}]}',
            r"images\[1\]: id: a unique number or text expected, got 1",
        ),
        ("\xff", r"list\.json: not UTF-8 text"),
        (None, r"list\.json"),
    ],
)
def test_a_bad_image_list_is_refused(whole, tmp_path, text, message):
    file = tmp_path / "list.json"
    if text is not None:
        file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        predict(whole[0], [str(file)], output=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_lists_and_files_are_not_mixed(whole, tmp_path):
    with pytest.raises(ValueError, match="give an image list alone, without other paths"):
        predict(whole[0], ["a.json", "b.jpg"], output=str(tmp_path))
    with pytest.raises(ValueError, match="--root: needs a COCO image list, whose images are in"):
        predict(whole[0], ["b.jpg"], output=str(tmp_path), root="x")


@pytest.mark.parametrize("at", ["batch", "picture"])
def test_an_interruption_leaves_whole_lines_and_pictures(whole, tmp_path, monkeypatch, at):
    paths = [str(photo(tmp_path / "in" / f"{i:02d}.jpg")) for i in range(24)]
    out = tmp_path / "out"
    predict(whole[0], paths[:1], output=str(out))
    calls = []

    def interrupted(original):
        def wrapper(*args):
            calls.append(args)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return original(*args)

        return wrapper

    if at == "batch":
        monkeypatch.setattr(verb.Record, "batch", interrupted(verb.Record.batch))
    else:
        monkeypatch.setattr(outputs.Drawer, "__call__", interrupted(outputs.Drawer.__call__))
    with pytest.raises(KeyboardInterrupt):
        predict(whole[0], paths, output=str(out))
    lines = (out / "predictions.jsonl").read_text()
    assert lines.endswith("\n") and len([json.loads(x) for x in lines.splitlines()]) == 8
    assert not (out / "predictions.json").exists()
    assert not [name for name in os.listdir(out) if "partial" in name]
    for path in out.glob("*.jpg"):
        with Image.open(path) as picture:
            picture.load()
    monkeypatch.undo()
    assert predict(whole[0], paths, output=str(out)).images == 24


def test_pictures_are_drawn_beside_and_a_bounded_number_waits(whole, tmp_path, monkeypatch):
    paths = [str(photo(tmp_path / "in" / f"{i:02d}.jpg")) for i in range(24)]
    monkeypatch.setattr(outputs.readers, "usable_cores", lambda: 2)
    most, threads, append = [], set(), outputs.Drawer.__call__

    def counting(self, found):
        append(self, found)
        most.append(len(self._running))

    def draw(*args):
        threads.add(threading.current_thread().name)
        return Image.new("RGB", (9, 9))

    monkeypatch.setattr(outputs.Drawer, "__call__", counting)
    monkeypatch.setattr(outputs, "draw_boxes", draw)
    predict(whole[0], paths, output=str(tmp_path / "out"))
    assert max(most) == 4 and len(most) == 24 and len(list((tmp_path / "out").glob("*.jpg"))) == 24
    assert threads and all(name.startswith("draw") for name in threads)


def test_a_picture_that_cannot_be_drawn_is_said(whole, tmp_path, monkeypatch, said, capsys):
    paths = [str(photo(tmp_path / f"{name}.png")) for name in "ab"]
    load = outputs.load_image

    def too_large(path):
        if path == paths[0]:
            raise ValueError("there is not enough memory for its pixels")
        return load(path)

    monkeypatch.setattr(outputs, "load_image", too_large)
    done = predict(whole[0], paths, output=str(tmp_path / "out"))
    assert (done.images, done.undrawn) == (
        2,
        1,
    ) and "1 without a picture" in capsys.readouterr().out
    assert "no picture: there is not enough memory for its pixels" in said()


def test_a_batch_is_fetched_after_the_next_is_dispatched():
    order = []

    def dispatch():
        for i in range(3):
            order.append(f"dispatch {i}")
            yield i

    for i in one_behind(dispatch()):
        order.append(f"fetch {i}")
    assert order == ["dispatch 0", "dispatch 1", "fetch 0", "dispatch 2", "fetch 1", "fetch 2"]
    assert list(one_behind([])) == []


def test_pictures_get_names_of_their_own():
    paths = ["/a/photo.jpg", "/b/photo.jpg", "/b/Photo.jpg", "/a/photo.png", "/c/photo_2.jpg"]
    names = picture_names(paths)
    assert names == ["photo.jpg", "photo_2.jpg", "Photo_3.jpg", "photo_4.jpg", "photo_2_2.jpg"]
    (long,) = picture_names(["/a/" + "ж" * 120 + ".webp"])
    assert len(os.fsencode(long)) < 255 and long.startswith("жж")
    assert picture_names(["/a/x\ny\x1b.jpg", "/a/\udcff.jpg"]) == ["x_y_.jpg", "_.jpg"]


def test_equal_detectors_are_compiled_once(whole):
    one, other = (restore(whole[0]).detector for _ in range(2))
    assert one is not other and one.detect_fn() is other.detect_fn()
    changed = restore(whole[0], overrides=["eval.nms=soft_linear"]).detector
    assert changed.detect_fn() is not one.detect_fn()


@pytest.mark.parametrize("below", ["checkpoints", "checkpoints/6", "checkpoints/6/model"])
def test_checkpoints_are_no_place_for_pictures(whole, tmp_path, below):
    photo(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match="training deletes old checkpoints there"):
        predict(whole[0], [str(tmp_path / "a.jpg")], output=str(whole[0] / below))
    assert not (whole[0] / below / "predictions.json").exists()
