"""`evaluate` on data sets of other formats: figures and results are those of the data set's own."""

import contextlib
import dataclasses
import io
import json
import logging
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support
import torch_state_dicts as torch_form
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from safetensors.numpy import save_file

from m2det_jax import evaluate
from m2det_jax.config.keys import FORMATS
from m2det_jax.convert import __main__
from m2det_jax.convert.weights import COCO as COCO_NAMES
from m2det_jax.convert.weights import COCO_IDS
from m2det_jax.data import DataError, read_classes, read_csv
from m2det_jax.data.formats.write import write_dataset
from m2det_jax.evaluate import evaluate_checkpoint
from m2det_jax.inference import evaluation
from m2det_jax.metrics.scores import COCO_FIGURES
from m2det_jax.ops import Detections
from m2det_jax.trained import restore

CLASSES = ("disc", "cross", "triangle", "ring", "stripes", "letter_A")


@pytest.fixture(scope="module")
def val(drawn_files):
    return read_csv(drawn_files.val, read_classes(drawn_files.classes))


@pytest.fixture
def nearly_right(monkeypatch):
    """A model that finds most objects, more or less in place, some of another class, and others."""

    def make_staged_step(detector, settings, mark):
        @jax.jit
        def eval_step(variables, batch):
            boxes, labels, mask = batch["boxes"], batch["labels"], batch["mask"]  # [B, M, ...]
            place, score, other = jax.random.split(jax.random.key(batch["image"][..., 0].sum()), 3)
            sides = jnp.tile(boxes[..., 2:] - boxes[..., :2], 2)
            moved = boxes + 0.15 * sides * jax.random.normal(place, boxes.shape)
            scores = jax.random.uniform(score, labels.shape, minval=0.05)
            wrong = jax.random.uniform(other, labels.shape)
            labels = jnp.where(wrong < 0.15, (labels + 1) % 6, labels)
            extra = jnp.broadcast_to(jnp.float32([5, 5, 40, 40]), (len(boxes), 1, 4))
            at = wrong[:, :1]
            found = Detections(
                jnp.concatenate([moved, extra, boxes + 1], 1),
                jnp.concatenate([scores, at, scores * 0.9], 1),
                jnp.concatenate([labels, jnp.zeros_like(labels[:, :1]), batch["labels"]], 1),
                jnp.concatenate([mask & (wrong < 0.9), at > 0.2, mask & (wrong > 0.7)], 1),
            )
            names = ("loss", "loss_class", "loss_box", "num_positives")
            return found, {name: jnp.float32(1) for name in names}

        return eval_step

    monkeypatch.setattr(evaluation, "make_staged_step", make_staged_step)


def written_by(workdir, output, **options):
    """What an evaluation returns, and the records it has written."""
    metrics = evaluate_checkpoint(workdir, output=str(output), **options)
    results = output.with_name(f"{output.stem}_detections.json")
    assert json.loads(output.read_text())["AP50"] == (
        None if np.isnan(metrics["AP50"]) else metrics["AP50"]
    )
    return metrics, results


def coco_figures(annotations, results) -> list[float]:
    """The twelve figures of pycocotools from the two files alone."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        evaluation = COCOeval(truth, truth.loadRes(str(results)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [value if value >= 0 else np.nan for value in evaluation.stats]


def coco_set(index, folder, ids=(44, 3, 17, 18, 1, 90), changes=lambda annotations: None):
    """Writes a COCO data set as other tools would: ids with gaps and in no order, areas, crowds."""
    rng, annotations, images = np.random.default_rng(3), [], []
    for i, path in enumerate(index.image_paths):
        width, height = index.sizes[i].tolist()
        number = (7919 * (i + 1)) % 5003
        images.append({"id": number, "file_name": path, "width": width, "height": height})
        for box, label in zip(*index.objects(i), strict=True):
            x1, y1, x2, y2 = box.tolist()
            area = float(rng.choice([0.5, 0.8, 3, 12]) * (x2 - x1) * (y2 - y1))
            crowd = int(rng.uniform() < 0.2)
            annotations.append({
                "id": 1000 + 3 * len(annotations), "image_id": number, "category_id": ids[label],
                "bbox": [x1, y1, x2 - x1, y2 - y1], "area": area, "iscrowd": crowd,
            })  # fmt: skip
    changes(annotations)
    categories = [{"id": k, "name": n} for k, n in zip(ids, index.class_names, strict=True)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations").mkdir(parents=True)
    file = folder / "annotations" / "instances_val.json"
    file.write_text(json.dumps(content))
    return file


def test_coco_figures_are_those_of_pycocotools_on_the_two_files(whole, val, tmp_path, nearly_right):
    file = coco_set(val, tmp_path / "coco")
    data = dict(format="coco", root=str(tmp_path / "coco"), split="val")
    metrics, results = written_by(whole[0], tmp_path / "scored.json", **data)
    expected = coco_figures(file, results)
    assert 0.2 < metrics["AP50"] < 0.95 and len(set(np.round(expected, 3))) > 8
    np.testing.assert_allclose([metrics[n] for n in COCO_FIGURES], expected, atol=1e-6)
    records = json.loads(results.read_text())
    assert {r["category_id"] for r in records} == {44, 3, 17, 18, 1, 90}
    names = dict(zip((44, 3, 17, 18, 1, 90), val.class_names, strict=True))
    assert all(names[r["category_id"]] == r["category_name"] for r in records)

    # Areas and crowds count: without them the figures are others.
    plain = dict(area=0, iscrowd=0)
    coco_set(val, tmp_path / "plain", changes=lambda all: [a.update(plain) for a in all])
    data["root"] = str(tmp_path / "plain")
    other, _ = written_by(whole[0], tmp_path / "other.json", **data)
    for name in ("AP", "AP_small", "AP_medium"):
        assert not np.isclose(other[name], metrics[name], atol=1e-4, equal_nan=True), name


def test_a_real_model_on_coco(whole, val, tmp_path):
    file = coco_set(val, tmp_path / "coco")
    metrics, results = written_by(
        whole[0], tmp_path / "a.json", format="coco", root=str(tmp_path / "coco"),
        split="annotations/instances_val.json", num_workers=1, num_threads=1,
    )  # fmt: skip
    figures = [metrics[name] for name in COCO_FIGURES]
    np.testing.assert_allclose(figures, coco_figures(file, results), atol=1e-6)


def devkit_ap50(root, records) -> float:
    """VOC's mean AP at IoU 0.5 by the rules of its devkit, from XML files and result records."""
    objects = {}
    for name in (root / "ImageSets" / "Main" / "val.txt").read_text().split():
        tree = ElementTree.parse(root / "Annotations" / f"{name}.xml")
        for node in tree.iter("object"):
            box = [float(node.find(f"bndbox/{c}").text) for c in ("xmin", "ymin", "xmax", "ymax")]
            difficult = node.findtext("difficult") == "1"
            key = (name, node.findtext("name"))
            objects.setdefault(key, []).append([np.subtract(box, [1, 1, 0, 0]), difficult, False])
    values = []
    for name in sorted({name for _, name in objects}):
        count = sum(not o[1] for (_, n), found in objects.items() if n == name for o in found)
        hits = []
        for record in sorted(records, key=lambda r: -r["score"]):
            if record["category_name"] != name:
                continue
            x, y, w, h = record["bbox"]
            candidates = objects.get((record["image_id"], name), [])
            overlaps = [iou([x, y, x + w, y + h], o[0]) for o in candidates]
            best = int(np.argmax(overlaps)) if overlaps else -1
            if best >= 0 and overlaps[best] >= 0.5:
                found = candidates[best]
                if not found[1]:
                    hits.append(not found[2])
                    found[2] = True
            else:
                hits.append(False)
        if count:
            recall = np.concatenate([[0], np.cumsum(hits) / count])
            precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
            best_after = np.maximum.accumulate(precision[::-1])[::-1]
            values.append(float((np.diff(recall) * best_after).sum()))
    return float(np.mean(values))


def iou(a, b) -> float:
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    common = float(np.prod(np.maximum(sides, 0)))
    return common / (np.prod(np.subtract(a[2:], a[:2])) + np.prod(b[2:] - b[:2]) - common)


def test_difficult_objects_of_voc_are_neither_asked_for_nor_counted_against(
    whole, val, tmp_path, nearly_right
):
    difficult = np.random.default_rng(0).uniform(size=len(val.labels)) < 0.3
    write_dataset({"val": dataclasses.replace(val, difficult=difficult)}, "voc", tmp_path / "voc")
    write_dataset({"val": val}, "voc", tmp_path / "plain")
    scored = {}
    for name in ("voc", "plain"):
        data = dict(format="voc", root=str(tmp_path / name), split="val")
        metrics, results = written_by(whole[0], tmp_path / f"{name}.json", **data)
        records = json.loads(results.read_text())
        expected = devkit_ap50(tmp_path / name, records)
        assert metrics["VOC_AP50"] == pytest.approx(expected, abs=1e-6)
        scored[name] = metrics["VOC_AP50"]
    assert abs(scored["voc"] - scored["plain"]) > 1e-3
    assert {r["image_id"] for r in records} <= {
        path.stem for path in (tmp_path / "plain" / "Annotations").glob("*.xml")
    }


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_gives_the_same_figures(whole, val, tmp_path, nearly_right, format):
    expected, _ = written_by(whole[0], tmp_path / "run.json")
    write_dataset({"val": val}, format, tmp_path / "data")
    split = "val.csv" if format == "csv" else "val"
    found, _ = written_by(
        whole[0], tmp_path / "a.json", format=format, root=str(tmp_path / "data"), split=split
    )
    # Other formats have the images in another order, and round boxes.
    assert found["VOC_AP50"] == pytest.approx(expected["VOC_AP50"], abs=0.02)
    assert found["AP50"] == pytest.approx(expected["AP50"], abs=0.02)
    assert json.loads((tmp_path / "a.json").read_text())["data"].endswith(split)


def test_a_source_of_the_users_own(whole, val, tmp_path, monkeypatch, nearly_right):
    (tmp_path / "own_source.py").write_text(
        "import pathlib\nfrom m2det_jax.data import read_classes, read_csv\n\n\n"
        "def read(root, split):\n    root = pathlib.Path(root)\n"
        "    return read_csv(root / f'{split}.csv', read_classes(root / 'classes.csv'))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    write_dataset({"val": val}, "csv", tmp_path / "data")
    data = dict(format="own_source", root=str(tmp_path / "data"), split="val")
    found, _ = written_by(whole[0], tmp_path / "a.json", **data)
    expected, _ = written_by(whole[0], tmp_path / "b.json")
    assert found["AP"] == pytest.approx(expected["AP"], abs=1e-6)


@pytest.fixture(scope="module")
def coco_run(val, drawn_files, tmp_path_factory):
    """A run of one step on COCO, with classes mapped and left out."""
    from m2det_jax.train import train

    folder = tmp_path_factory.mktemp("coco_run")
    train_index = read_csv(drawn_files.train, val.class_names)
    write_dataset({"train": train_index, "val": val, "test": val.subset(range(5))}, "coco", folder)
    config = support.short_config(
        drawn_files,
        max_steps=1,
        data__format="coco",
        data__root=str(folder),
        data__num_workers=0,
        data__on_bad_box="drop",
        data__class_map=(("cross", "mark"), ("stripes", "")),
        data__labels_filter=("ring", "mark"),
    )
    train(config, folder / "run")
    return folder


def test_another_split_of_the_runs_own_data_set(coco_run, tmp_path, nearly_right):
    metrics, results = written_by(coco_run / "run", tmp_path / "a.json", split="test")
    assert set(metrics["per_class"]) == {"ring", "mark"}
    record = json.loads((tmp_path / "a.json").read_text())
    assert record["data"] == f"coco {coco_run}/test"
    assert {r["image_id"] for r in json.loads(results.read_text())} <= {1, 2, 3, 4, 5}


def test_classes_and_bad_boxes_as_in_the_run_or_as_the_flags_say(
    coco_run, val, tmp_path, nearly_right, caplog, monkeypatch
):
    monkeypatch.setattr(logging.getLogger("m2det_jax"), "propagate", True)
    caplog.set_level(logging.INFO, "m2det_jax")
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    rows = ["a.png,1,1,30,30,ring", "a.png,9,9,50,50,cross", "a.png,5,5,3,3,ring"]
    (tmp_path / "a.csv").write_text("\n".join(rows))
    files = dict(csv=str(tmp_path / "a.csv"))
    # As the run: the bad box is dropped, cross is called mark, and stripes is no class.
    metrics, _ = written_by(coco_run / "run", tmp_path / "out.json", **files)
    assert "swapped" in caplog.text and "2 times: the box is left out" in caplog.text
    assert not any(np.isnan(found["AP"]) for found in metrics["per_class"].values())
    with pytest.raises(DataError, match="x2 is less than x1"):
        written_by(coco_run / "run", tmp_path / "out.json", on_bad_box="error", **files)
    metrics, _ = written_by(coco_run / "run", tmp_path / "out.json", **files,
                            class_map=["cross=", "ring=ring"])  # fmt: skip
    assert np.isnan(metrics["per_class"]["mark"]["AP"])
    # What has other names than the model's classes needs a class file.
    (tmp_path / "b.csv").write_text("\n".join([*rows[:2], "a.png,2,2,60,60,stripes2"]))
    text = refusal(coco_run / "run", tmp_path, csv=str(tmp_path / "b.csv"))
    assert "b.csv:3: unknown class (stripes2)" in text and "--classes" in text
    (tmp_path / "classes.csv").write_text("stripes2,0\nring,1\ncross,2\n")
    metrics, _ = written_by(coco_run / "run", tmp_path / "out.json", csv=str(tmp_path / "b.csv"),
                            classes=str(tmp_path / "classes.csv"))  # fmt: skip
    assert set(metrics["per_class"]) == {"ring", "mark"}
    # A class that the data set lacks has no figures, and nothing of it is in the results.
    rest = val.subset(np.arange(4))
    rest = dataclasses.replace(rest, class_names=("disc", "X", "triangle", "ring", "stripes", "B"))
    coco_set(rest, tmp_path / "coco")
    data = dict(format="coco", root=str(tmp_path / "coco"), split="val")
    metrics, results = written_by(coco_run / "run", tmp_path / "b.json", **data)
    assert "no classes mark; what is detected of them does not count" in caplog.text
    assert {r["category_id"] for r in json.loads(results.read_text())} == {18}
    metrics, results = written_by(coco_run / "run", tmp_path / "b.json", **data,
                                  class_map=["X=mark"], labels_filter=["mark"])  # fmt: skip
    assert {r["category_name"] for r in json.loads(results.read_text())} == {"mark"}


def test_a_run_whose_data_are_gone_says_how_to_name_others(coco_run, tmp_path):
    workdir = shutil.copytree(coco_run / "run", tmp_path / "run")
    file = coco_run / "annotations" / "instances_val.json"
    file.rename(tmp_path / "away.json")
    try:
        text = refusal(workdir, tmp_path)
    finally:
        (tmp_path / "away.json").rename(file)
    assert "instances_val.json: cannot read the file" in text
    assert "another data set is named by --csv, or by --format, --root and --split" in text


def refusal(workdir, tmp_path, **data) -> str:
    with pytest.raises((ValueError, OSError)) as caught:
        evaluate_checkpoint(workdir, output=str(tmp_path / "none" / "a.json"), **data)
    assert not (tmp_path / "none").exists()
    return str(caught.value)


@pytest.mark.parametrize("format", FORMATS)
def test_a_split_that_is_not_there_is_named(whole, tmp_path, format):
    text = refusal(whole[0], tmp_path, format=format, root=str(tmp_path), split="nowhere")
    assert "nowhere" in text or (format == "yolo" and "data.yaml" in text)
    assert len(text.splitlines()) == (3 if format == "openimages" else 1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (dict(format="coco"), "--format needs the data set .*add --split NAME"),
        (dict(root="x"), "--root needs the data set"),
        (dict(on_bad_box="drop"), "--on_bad_box needs the data set"),
        (dict(csv="a.csv", split="val"), "--csv FILE is short for --format csv --split FILE"),
        (
            dict(format="coko", split="val"),
            "data format 'coko': not imported .* give csv, coco, .* Python module",
        ),
        (dict(split="val", class_map=["a"]), "--class_map 'a': give FROM=TO, or FROM= to drop"),
    ],
)
def test_flags_that_do_not_fit(whole, tmp_path, data, message):
    with pytest.raises(ValueError, match=message) as caught:
        evaluate_checkpoint(whole[0], output=str(tmp_path / "a.json"), **data)
    assert "\n" not in str(caught.value)


def test_classes_that_the_model_has_not(whole, val, tmp_path):
    names = ("disk", *val.class_names[1:])
    coco_set(dataclasses.replace(val, class_names=names), tmp_path / "coco")
    data = dict(format="coco", root=str(tmp_path / "coco"), split="val")
    text = refusal(whole[0], tmp_path, **data)
    assert "has classes that the model has not: disk (disk: did you mean disc?)" in text
    assert "--class_map 'disk=CLASS'" in text and "--labels_filter" in text and "\n" not in text
    text = refusal(whole[0], tmp_path, **data, labels_filter=["rign"])
    assert "--labels_filter: " in text and "did you mean ring" in text
    # A category that is only listed, as groups of categories often are, is no obstacle.
    file = tmp_path / "coco" / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    content["categories"].append({"id": 0, "name": "things"})
    file.write_text(json.dumps(content))
    metrics = evaluate_checkpoint(
        whole[0], output=str(tmp_path / "a.json"), **data, class_map=["disk=disc"]
    )
    assert set(metrics["per_class"]) == set(val.class_names)


def test_images_without_annotations_are_for_predict(whole, val, tmp_path):
    file = coco_set(val, tmp_path / "coco")
    content = json.loads(file.read_text())
    data = dict(format="coco", root=str(tmp_path / "coco"), split="val")
    for annotations in ({"annotations": []}, {}):
        content.pop("annotations")
        file.write_text(json.dumps(content | annotations))
        content["annotations"] = []
        text = refusal(whole[0], tmp_path, **data)
        assert "no annotated objects" in text and "m2det_jax.predict" in text
        assert "\n" not in text


def test_converted_weights_carry_the_category_ids_of_coco(val, tmp_path, monkeypatch):
    base = torch_form.resnet((2, 2, 2, 2), bottleneck=False)
    shapes = torch_form.official(
        classes=81, levels=1, scales=3, planes=16, backbone=base, base_channels=(128, 512)
    )
    tensors = torch_form.with_equal_copies(torch_form.drawn(shapes))
    save_file(tensors, tmp_path / "m2det.safetensors")
    (tmp_path / "tiny.py").write_text(
        "from m2det_jax.experiment import load_experiment\n\n\ndef get_config():\n"
        "    config = load_experiment('official_vgg320')\n"
        "    config.data.image_size = (64, 96)\n    config.model.num_scales = 3\n"
        "    config.anchors.steps = ()\n    config.eval.score_threshold = 0.005\n"
        "    return config\n"
    )
    __main__.cli(["official", str(tmp_path / "m2det.safetensors"), "--workdir",
                 str(tmp_path / "run"), "--config", str(tmp_path / "tiny.py"),
                 "--classes", "coco"])  # fmt: skip
    restored = restore(tmp_path / "run")
    assert restored.class_ids == COCO_IDS and restored.class_names == COCO_NAMES
    ids = dict(zip(COCO_NAMES, COCO_IDS, strict=True))
    assert (ids["person"], ids["stop sign"], ids["toothbrush"]) == (1, 13, 90)
    # A CSV has no ids of its own: those of COCO, and the position of the image.
    some = val.subset([0, 1])
    write_dataset(
        {"val": dataclasses.replace(some, class_names=COCO_NAMES)}, "csv", tmp_path / "csv"
    )
    _, results = written_by(tmp_path / "run", tmp_path / "a.json",
                            csv=str(tmp_path / "csv" / "val.csv"))  # fmt: skip
    records = json.loads(results.read_text())
    assert records and all(ids[r["category_name"]] == r["category_id"] for r in records)
    assert {r["image_id"] for r in records} <= {0, 1}


def test_the_command_line(whole, val, tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(evaluate, "evaluate_checkpoint", lambda workdir, **o: seen.update(o))
    arguments = "--workdir w --format coco --root r --split val --class_map a=b c= "
    arguments += "--labels_filter b --on_bad_box clip --num_workers 3 --num_threads 4"
    monkeypatch.setattr(evaluate.runtime, "start", lambda: None)
    evaluate.main(evaluate._parser().parse_args(arguments.split()))
    assert (seen["format"], seen["root"], seen["split"]) == ("coco", "r", "val")
    assert seen["class_map"] == ["a=b", "c="] and seen["on_bad_box"] == "clip"
    assert (seen["num_workers"], seen["num_threads"], seen["report"]) == (3, 4, True)
    evaluate.main(evaluate._parser().parse_args(["--workdir", "w", "--no_report"]))
    assert seen["report"] is False
    evaluate.DataChoice(
        **{k: v for k, v in seen.items() if k in evaluate.DataChoice.__match_args__}
    )


def test_the_program_with_worker_processes_ends_without_a_complaint(whole, val, tmp_path):
    coco_set(val, tmp_path / "coco")
    command = [sys.executable, "-m", "m2det_jax.evaluate", "--workdir", str(whole[0]),
               "--format", "coco", "--root", str(tmp_path / "coco"), "--split", "val",
               "--num_workers", "2", "--output", str(tmp_path / "a.json")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "AP_small" in done.stdout and (tmp_path / "a_detections.json").is_file()
    assert "images are read by 2 worker processes, each with 2 threads" in done.stderr
    assert "leaked" not in done.stderr and "Traceback" not in done.stderr, done.stderr
