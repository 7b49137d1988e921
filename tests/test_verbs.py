"""Evaluate, predict and the demo, on a trained run."""

import json
import shutil

import numpy as np
import pytest
import support
from PIL import Image

from m2det_jax import demo
from m2det_jax.data import read_classes, read_csv
from m2det_jax.evaluate import evaluate_checkpoint
from m2det_jax.predict import predict

COCO_FIGURES = [
    "AP",
    "AP50",
    "AP75",
    "AP_small",
    "AP_medium",
    "AP_large",
    "AR_1",
    "AR_10",
    "AR_100",
    "AR_small",
    "AR_medium",
    "AR_large",
]


def size_of(path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_evaluate_prints_the_table_and_writes_it(whole, drawn_files, capsys):
    workdir, trained, _ = whole
    metrics = evaluate_checkpoint(workdir)
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("AP50", "VOC", "disc", "00000006.json"))
    written = json.loads((workdir / "evaluation" / "00000006.json").read_text())
    page = workdir / "evaluation" / "00000006.html"
    assert str(page) in printed and "<dd>step 6</dd>" in page.read_text(encoding="utf-8")
    assert set(COCO_FIGURES) <= written.keys() and "VOC_AP50" in written
    assert set(written["per_class"]) == set(read_classes(drawn_files.classes))
    assert written["step"] == 6
    index = read_csv(drawn_files.val, drawn_files.classes)
    counts = {name: one["objects"] for name, one in written["class_details"].items()}
    assert counts == dict(zip(index.class_names, np.bincount(index.labels).tolist(), strict=True))
    for groups in (written["recall_by_size"], written["recall_by_crowding"]):
        assert sum(one["objects"] for one in groups.values()) == len(index.labels)
    assert {"VOC07_AP50", "weighted_AP50", "box_errors"} <= written.keys()
    assert "best F1" in printed and "recall by size: small" in printed
    for name in ("loss", "AP", "AP50", "AR_100"):
        assert metrics[name] == pytest.approx(trained[name], rel=1e-4, abs=1e-6), name
    detections = json.loads((workdir / "evaluation" / "00000006_detections.json").read_text())
    assert all(entry["score"] >= 0.01 for entry in detections)


def test_evaluate_on_other_annotations_and_another_checkpoint(whole, drawn_files, tmp_path):
    output = tmp_path / "new" / "train.json"
    arguments = dict(csv=str(drawn_files.train), checkpoint="3", output=str(output), batch_size=16)
    metrics = evaluate_checkpoint(whole[0], **arguments)
    written = json.loads(output.read_text())
    assert (written["step"], written["data"]) == (3, str(drawn_files.train))
    page = (tmp_path / "new" / "train.html").read_text(encoding="utf-8")
    assert "<dd>step 3</dd>" in page and f"<dd>{drawn_files.train}</dd>" in page
    assert "<dd>step 6</dd>" in (whole[0] / "report.html").read_text(encoding="utf-8")
    assert metrics["loss"] != pytest.approx(whole[1]["loss"], rel=1e-4)
    with pytest.raises(ValueError, match="--batch_size=3 cannot be split evenly over 8 devices"):
        evaluate_checkpoint(whole[0], batch_size=3)
    with pytest.raises(ValueError, match="give a .json file"):
        evaluate_checkpoint(whole[0], output=str(tmp_path / "a.html"))
    evaluate_checkpoint(whole[0], report=False, output=str(tmp_path / "none" / "a.html"))
    assert sorted(p.name for p in (tmp_path / "none").glob("a*")) == ["a.html", "a_detections.json"]
    assert json.loads((tmp_path / "none" / "a.html").read_text())["step"] == 6


def test_predict_draws_files_and_folders(whole, drawn_files, tmp_path, capsys):
    folder = tmp_path / "pictures"
    (folder / "inner").mkdir(parents=True)
    sources = sorted(drawn_files.val.with_suffix("").glob("*.jpg"))[:3]
    shutil.copy(sources[0], folder / "inner" / "a.jpg")
    with Image.open(sources[1]) as image:
        image.convert("L").save(folder / "a.png")
    (folder / "notes.txt").write_text("no image")
    output = tmp_path / "out"
    done = predict(whole[0], [str(sources[2]), str(folder)], output=str(output), threshold=0.0)
    assert (done.images, done.skipped, done.undrawn) == (3, 0, 0)
    pictures = {path.name: size_of(path) for path in output.glob("*.jpg")}
    inputs = [sources[2], folder / "a.png", folder / "inner" / "a.jpg"]
    expected = dict(zip([sources[2].name, "a.jpg", "a_2.jpg"], inputs, strict=True))
    assert pictures == {name: size_of(path) for name, path in expected.items()}

    found = json.loads((output / "predictions.json").read_text())
    assert len(found) == sum(len(line["detections"]) for line in done.lines()) > 0
    assert len(found) == done.detections
    assert {entry["file_name"] for entry in found} <= {str(path) for path in inputs}
    names = read_classes(drawn_files.classes)
    for entry in found:
        assert entry["category_name"] in names
        x, y, w, h = entry["bbox"]
        width, height = size_of(entry["file_name"])
        assert 0 <= x <= x + w <= width + 1e-3 and 0 <= y <= y + h <= height + 1e-3
    assert f"{len(found)} detections in 3 images" in capsys.readouterr().out


def test_predict_names_all_paths_that_hold_no_image(whole, tmp_path):
    (tmp_path / "empty").mkdir()
    paths = [str(tmp_path / "gone.jpg"), str(tmp_path / "empty")]
    with pytest.raises(ValueError, match=r"gone\.jpg: no such file.*empty: no images"):
        predict(whole[0], paths)


def test_the_demo_walks_the_whole_road(whole, drawn_files, tmp_path, capsys):
    workdir = shutil.copytree(whole[0], tmp_path / "demo")
    shutil.copytree(drawn_files.classes.parent, workdir / "data")
    experiment = tmp_path / "tiny.py"
    experiment.write_text(
        "from m2det_jax.config import default_config\n\n\ndef get_config():\n"
        "    config = default_config()\n"
        f"    config.update_from_flattened_dict({support.TINY | support.SHORT!r})\n"
        "    return config\n"
    )
    metrics = demo.demo(workdir, config_name=str(experiment))
    assert metrics["AP"] == pytest.approx(whole[1]["AP"], abs=1e-6)
    printed = capsys.readouterr().out
    assert "AP50" in printed and str(workdir / "detections.jpg") in printed
    assert f"report: {workdir / 'report.html'}; open it in a browser" in printed
    with Image.open(workdir / "detections.jpg") as sheet:
        assert sheet.width > 4 * 64 and sheet.height > 6 * 64
