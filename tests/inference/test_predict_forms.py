"""Predict: globs, URLs and lists go in; tables, label files and crops come out, of some classes."""

import csv
import functools
import http.server
import io
import json
import os
import pathlib
import sys
import threading
import warnings

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

import m2det_jax
from m2det_jax.data import Source, read_dataset, read_size
from m2det_jax.errors import InputError
from m2det_jax.predict import __main__, predict
from m2det_jax.predict.classes import read_limits
from m2det_jax.predict.downloads import download_names
from m2det_jax.predict.inputs import image_names
from m2det_jax.predict.labels import read_forms, whole_pixels
from m2det_jax.predict.outputs import class_folders, crop_of

LOW = 0.05
pytestmark = pytest.mark.usefixtures("plain_parsers")

with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # it would rather have OpenCV
    import supervision


@pytest.fixture(scope="module")
def pictures(drawn_files, tmp_path_factory) -> pathlib.Path:
    """A folder with six drawn pictures, one below, and files that are none."""
    folder = tmp_path_factory.mktemp("pictures") / "in"
    (folder / "below").mkdir(parents=True)
    drawn = sorted(drawn_files.val.parent.rglob("val/*.jpg"))[:6]
    for i, path in enumerate(drawn):
        name = "below/e ü.png" if i == 4 else f"{'ab'[i % 2]}{i}.jpg"
        Image.open(path).save(folder / name)
    (folder / "notes.txt").write_text("none")
    return folder


@pytest.fixture
def run(workdir, tmp_path):
    return functools.partial(predict, workdir, output=str(tmp_path / "out"), pictures=False)


def names(done) -> list[str]:
    return [pathlib.PurePath(line["file_name"]).name for line in done.lines()]


# What goes in.


def test_a_glob_gives_its_images_in_order(run, pictures, said_of_folders):
    done = run([f"{pictures}/a*.jpg"])
    assert names(done) == ["a0.jpg", "a2.jpg"]
    assert sorted(names(run([f"{pictures}/**"]))) == sorted(
        ["a0.jpg", "b1.jpg", "a2.jpg", "b3.jpg", "e ü.png", "b5.jpg"]
    )
    assert "1 .txt" in said_of_folders()


@pytest.fixture
def said_of_folders(log_of_run):
    return lambda: log_of_run.text


def test_a_name_with_brackets_is_a_file_first(run, pictures, tmp_path):
    odd = tmp_path / "a[0].jpg"
    odd.write_bytes((pictures / "a0.jpg").read_bytes())
    assert names(run([str(odd)])) == ["a[0].jpg"]


def test_a_glob_without_a_match_is_named(run, pictures, tmp_path):
    with pytest.raises(InputError, match=r"x\*\.jpg: no image matches"):
        run([f"{pictures}/x*.jpg"])
    assert not (tmp_path / "out").exists()


def test_a_list_in_a_file_and_one_on_standard_input(run, pictures, tmp_path, monkeypatch):
    text = f"\ufeff{pictures}/b3.jpg\r\n\n{pictures}/below\n"
    (tmp_path / "list.txt").write_text(text, encoding="utf-8")
    assert names(run([], list_file=str(tmp_path / "list.txt"))) == ["b3.jpg", "e ü.png"]
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{pictures}/b3.jpg\n"))
    assert names(run([str(pictures / "a0.jpg")], list_file="-")) == ["a0.jpg", "b3.jpg"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n \n", "--list .*list.txt: no line with a path or URL in it"),
        (b"a\xff.jpg", "--list .*list.txt: cannot be read as UTF-8 text"),
        (b"\nnone*.jpg\n", r"list.txt:2: none\*\.jpg: no such file or folder"),
        (None, "--list .*list.txt: cannot be read"),
    ],
)
def test_a_bad_list_is_refused(run, tmp_path, content, message):
    if content is not None:
        (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        run([], list_file=str(tmp_path / "list.txt"))


@pytest.fixture(scope="module")
def host(pictures):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(pictures))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_urls_are_saved_and_named_by_themselves(run, pictures, host, tmp_path):
    urls = [f"{host}/a0.jpg?x=1", f"{host}/below/e%20%C3%BC.png", f"{host}/none.jpg"]
    done = run([str(pictures / "a0.jpg"), *urls], threshold=LOW)
    lines = list(done.lines())
    assert [line["file_name"] for line in lines] == [str(pictures / "a0.jpg"), *urls]
    assert lines[1]["detections"] == lines[0]["detections"]
    assert "404" in lines[3]["skipped"] and done.skipped == 1
    saved = {path.name: path.read_bytes() for path in (tmp_path / "out/downloads").iterdir()}
    assert saved == {
        "a0_2.jpg": (pictures / "a0.jpg").read_bytes(),
        "e ü.png": (pictures / "below/e ü.png").read_bytes(),
    }


def test_a_download_replaces_no_file_of_the_user(run, host, tmp_path):
    theirs = tmp_path / "out/downloads/a0.jpg"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"mine")
    with pytest.raises(InputError, match=r"a0\.jpg: exists already"):
        run([f"{host}/a0.jpg"])
    assert theirs.read_bytes() == b"mine"


def test_downloads_have_the_suffix_of_an_image():
    urls = ["/x/a.png", "http://h/a.PNG", "https://h/get?id=3", "http://h/a.gz"]
    assert download_names(urls, ["a", "a_2", "get", "a_3"]) == {
        1: "downloads/a_2.png",
        2: "downloads/get.jpg",
        3: "downloads/a_3.jpg",
    }


def test_names_of_urls_are_those_of_their_files():
    urls = ["http://x/a%20b.jpg?size=2", "https://x/", "http://[bad", "http://x/..%2Fc.png"]
    assert image_names(urls) == ["a b", "image", "image_2", "c"]


# Classes and thresholds.


def test_limits_of_classes():
    limits = read_limits(0.5, ["a=b=0.25", "c=0"], ["c,a=b"], ["a=b", "b", "c"])
    np.testing.assert_array_equal(limits.scores, [0.25, np.inf, 0])
    assert limits.lowest == 0
    # A name with a comma is a name first.
    np.testing.assert_array_equal(read_limits(0.5, [], ["a,b"], ["a", "a,b"]).scores, [np.inf, 0.5])


@pytest.mark.parametrize(
    ("thresholds", "classes", "message"),
    [
        (["dog"], [], "--class_threshold dog: give NAME=SCORE"),
        (["dag=0.3"], [], "--class_threshold dag: the detector has no such class; it has dog, cat"),
        (["dog=1.5"], [], "--class_threshold dog=1.5: a score from 0 to 1 expected, got 1.5"),
        (["dog=nan"], [], "--class_threshold dog=nan: a score"),
        (["dog=low"], [], "--class_threshold dog=low: a score"),
        ([], ["dog,cow"], "--classes cow: the detector has no such class; it has dog, cat"),
    ],
)
def test_limits_that_are_none_are_refused(thresholds, classes, message):
    with pytest.raises(InputError, match=message):
        read_limits(0.5, thresholds, classes, ["dog", "cat"])


def test_only_what_the_limits_allow_is_written(run, pictures, workdir):
    whole = list(run([str(pictures)], threshold=LOW).lines())
    first, second, *_ = m2det_jax.restore(workdir).class_names
    done = run(
        [str(pictures)], threshold=0.9, class_thresholds=[f"{first}={LOW}"], classes=[first, second]
    )
    expected = [
        [
            one
            for one in line["detections"]
            if one["category_name"] == first
            or (one["category_name"] == second and one["score"] >= 0.9)
        ]
        for line in whole
    ]
    assert [line["detections"] for line in done.lines()] == expected
    assert 0 < sum(map(len, expected)) < sum(len(line["detections"]) for line in whole)


# What comes out.


def of_lines(done) -> dict[str, list]:
    """{name of the image: its (class name, xyxy, score)}."""
    found = {}
    for line in done.lines():
        found[pathlib.PurePath(line["file_name"]).stem] = [
            (one["category_name"], (*one["bbox"][:2], *np.add(one["bbox"][:2], one["bbox"][2:])),
             one["score"])
            for one in line["detections"]
        ]  # fmt: skip
    assert sum(map(len, found.values())) > 10
    return found


def test_the_table_has_every_detection(run, pictures, tmp_path):
    expected = of_lines(run([str(pictures)], threshold=LOW, save=["json,csv"]))
    with open(tmp_path / "out/predictions.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(map(len, expected.values()))
    for stem, boxes in expected.items():
        own = [row for row in rows if pathlib.PurePath(row["file_name"]).stem == stem]
        for row, (name, box, score) in zip(own, boxes, strict=True):
            assert row["class_name"] == name
            np.testing.assert_allclose([float(row[k]) for k in ("x1", "y1", "x2", "y2")], box,
                                       rtol=1e-5, atol=1e-5)  # fmt: skip
            np.testing.assert_allclose(float(row["score"]), score, rtol=1e-5)


def compare(dataset: supervision.DetectionDataset, expected, atol: float) -> None:
    seen = {}
    for path, _, found in dataset:
        stem = pathlib.Path(path).stem
        seen[stem] = [(dataset.classes[k], tuple(box)) for k, box in
                      zip(found.class_id, found.xyxy, strict=True)]  # fmt: skip
    assert set(seen) == {stem.replace(" ", "_") for stem in expected}
    for stem, boxes in expected.items():
        own = seen[stem.replace(" ", "_")]
        assert [name for name, _ in own] == [name for name, _, _ in boxes]
        if boxes:
            np.testing.assert_allclose([box for _, box in own], [box for _, box, _ in boxes],
                                       atol=atol)  # fmt: skip


def test_yolo_labels_are_read_by_another_program(run, pictures, tmp_path):
    expected = of_lines(run([str(pictures)], threshold=LOW, save=["yolo"]))
    root = tmp_path / "out/yolo"
    dataset = supervision.DetectionDataset.from_yolo(
        str(root / "images/predicted"), str(root / "labels/predicted"), str(root / "data.yaml")
    )
    compare(dataset, expected, 1e-3)


def test_voc_labels_are_read_by_another_program(run, pictures, tmp_path):
    expected = of_lines(run([str(pictures)], threshold=LOW, save=["voc"]))
    root = tmp_path / "out/voc"
    dataset = supervision.DetectionDataset.from_pascal_voc(
        str(root / "JPEGImages"), str(root / "Annotations")
    )
    compare(dataset, expected, 2.0)  # inclusive corners, counted from 1


def test_boxes_of_voc_are_whole_and_never_empty():
    boxes = np.array([[0.2, 1.6, 9.7, 4.4], [3.1, 2.0, 3.4, 9.0]], np.float32)
    np.testing.assert_array_equal(whole_pixels(boxes), [[0, 2, 10, 4], [3, 2, 4, 9]])


def test_coco_labels_are_read_by_another_program(run, pictures, tmp_path):
    expected = of_lines(run([str(pictures)], threshold=LOW, save=["coco"]))
    file = tmp_path / "out/coco/annotations/instances_predicted.json"
    coco = COCO(str(file))
    for image in coco.dataset["images"]:
        path = pictures / image["file_name"]  # below the folder that all share
        assert read_size(path) == (image["width"], image["height"])
        found = coco.loadAnns(coco.getAnnIds(image["id"]))
        own = [coco.cats[one["category_id"]]["name"] for one in found]
        boxes = expected[path.stem]
        assert own == [name for name, _, _ in boxes]
        if boxes:
            xywh = np.array([box for _, box, _ in boxes])
            xywh[:, 2:] -= xywh[:, :2]
            np.testing.assert_allclose([one["bbox"] for one in found], xywh, atol=1e-3)
    assert len(coco.dataset["images"]) == len(expected)


def test_labels_train_again(run, pictures, tmp_path, workdir):
    expected = of_lines(run([str(pictures)], threshold=LOW, save=["yolo"]))
    index = read_dataset(Source("yolo", str(tmp_path / "out/yolo"), "predicted"))
    assert index.class_names == m2det_jax.restore(workdir).class_names
    assert len(index.boxes) == sum(map(len, expected.values()))


def test_skipped_images_have_no_labels(run, pictures, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"none")
    cut = (pictures / "a0.jpg").read_bytes()[:-900]
    (tmp_path / "cut.jpg").write_bytes(cut)
    paths = [str(tmp_path / "bad.jpg"), str(tmp_path / "cut.jpg"), str(pictures / "a2.jpg")]
    done = run(paths, threshold=LOW, save=["coco", "csv"], crops=True)
    assert done.skipped == 2
    content = json.loads((tmp_path / "out/coco/annotations/instances_predicted.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["a2.jpg"]
    assert len(content["annotations"]) == done.detections > 0


def test_crops_show_what_the_boxes_do(run, pictures, tmp_path):
    expected = of_lines(run([str(pictures)], threshold=LOW, crops=True))
    found = sorted((tmp_path / "out/crops").rglob("*.jpg"))
    assert len(found) == sum(map(len, expected.values()))
    stem, boxes = next((stem, boxes) for stem, boxes in expected.items() if len(boxes) > 2)
    with Image.open(next(pictures.rglob(f"{stem}.*"))) as image:
        for number, (name, box, _) in enumerate(boxes, 1):
            with Image.open(tmp_path / "out/crops" / name / f"{stem}_{number}.jpg") as crop:
                x1, y1, x2, y2 = (int(box[0]), int(box[1]), *np.ceil(box[2:]).astype(int))
                assert crop.size == (x2 - x1, y2 - y1)
                part = np.asarray(image.convert("RGB"), np.float32)[y1:y2, x1:x2]
                assert np.abs(part - np.asarray(crop, np.float32)).mean() < 12  # of JPEG


@pytest.mark.parametrize(
    ("box", "crop"),
    [
        ((1.2, 2.0, 3.1, 4.0), (1, 2, 4, 4)),
        ((10, 5, 10, 5), (9, 4, 10, 5)),  # without an area, in the corner of a 10 x 5 image
        ((0, 0, 10, 5), (0, 0, 10, 5)),
        ((4, 2, 4, 3), (4, 2, 5, 3)),
    ],
)
def test_a_crop_has_all_pixels_that_a_box_touches(box, crop):
    assert crop_of(np.array(box, np.float32), (10, 5)) == crop


def test_folders_of_classes_are_names_on_every_system():
    found = class_folders(["a/b", "a_b", "A_B", "..", "собака", "x" * 500, "con\n"])
    assert found[:5] == ["a_b", "a_b_2", "A_B_3", "_", "собака"]
    assert len(found[5]) == 200 and found[6] == "con_"


def test_a_second_run_leaves_nothing_of_the_first(run, pictures, tmp_path):
    options = {"threshold": LOW, "save": ["yolo", "csv"], "crops": True}
    run([str(pictures)], **options)
    one = run([str(pictures / "a2.jpg")], **options)
    labels = [path.name for path in (tmp_path / "out/yolo/labels").rglob("*.txt")]
    assert labels == ["a2.txt"]
    crops = [path for path in (tmp_path / "out/crops").rglob("*.jpg")]
    assert len(crops) == one.detections and all(path.stem.startswith("a2_") for path in crops)
    assert not [path for path in (tmp_path / "out").iterdir() if "partial" in path.name]


@pytest.mark.parametrize("name", ["yolo/images/predicted/mine.jpg", "crops/mine.jpg"])
def test_folders_with_files_of_the_user_are_left_alone(run, pictures, tmp_path, name):
    options = {"threshold": LOW, "save": ["yolo"], "crops": True}
    run([str(pictures)], **options)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*")}
    (tmp_path / "out" / name).write_bytes(b"mine")
    with pytest.raises(InputError, match="mine.jpg: exists already"):
        run([str(pictures / "a0.jpg")], **options)
    assert (tmp_path / "out" / name).read_bytes() == b"mine"
    assert all(path.exists() for path in before)  # refused before anything was removed


def test_a_run_without_an_image_removes_nothing(run, pictures, tmp_path):
    options = {"threshold": LOW, "save": ["yolo"], "crops": True}
    run([str(pictures)], **options)
    before = sorted((tmp_path / "out").rglob("*.*"))
    (tmp_path / "bad.jpg").write_bytes(b"none")
    with pytest.raises(InputError, match="nothing to predict on"):
        run([str(tmp_path / "bad.jpg")], **options)
    assert sorted((tmp_path / "out").rglob("*.*")) == before


def test_pictures_of_the_user_are_not_written_to_through_links(run, pictures, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    for path in pictures.glob("*.jpg"):
        (own / path.name).write_bytes(path.read_bytes())
    before = {path: path.read_bytes() for path in own.iterdir()}
    for _ in range(2):  # the second run replaces the links of the first
        run([str(own)], threshold=LOW, save=["yolo,voc"], crops=True)
    assert {path: path.read_bytes() for path in own.iterdir()} == before


def test_what_was_written_is_no_input_of_the_next_run(workdir, pictures, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    (own / "a0.jpg").write_bytes((pictures / "a0.jpg").read_bytes())
    for _ in range(2):
        done = predict(workdir, [str(own)], output=str(own / "out"), threshold=LOW,
                       save=["yolo"], crops=True)  # fmt: skip
        assert names(done) == ["a0.jpg"]


def test_forms_of_labels():
    assert read_forms(["voc,csv", "coco", "csv", "json"]) == ["csv", "coco", "voc"]
    with pytest.raises(InputError, match="--save xml: there is no such form; give json, csv, coco"):
        read_forms(["csv,xml"])


def test_the_flags(workdir, pictures, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    line = f"--workdir {workdir} --output out --list - --save csv,coco --crops --no_pictures"
    first = m2det_jax.restore(workdir).class_names[0]
    argv = ["m2det", *line.split(), "--classes", first, "--class_threshold", f"{first}={LOW}"]
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{os.path.relpath(pictures)}/a0.jpg\n"))
    __main__.main(__main__._parse(argv))
    said = capfd.readouterr().out
    assert "crops, coco, predictions.jsonl, predictions.json and predictions.csv in out" in said
    assert (tmp_path / "out/coco/annotations/instances_predicted.json").exists()
    with pytest.raises(SystemExit):
        __main__._parse(["m2det", "--workdir", "x"])
    assert "PATH, --list or --camera" in capfd.readouterr().err
