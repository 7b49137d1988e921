"""What config.data names: every format, several sets as one, classes mapped, boxes mended."""

import dataclasses
import json
import logging
import pathlib

import numpy as np
import pytest
import support
from PIL import Image

from m2det_jax.config import default_config, resolve
from m2det_jax.config.keys import FORMATS
from m2det_jax.data import DataError, read_classes, read_csv
from m2det_jax.data.formats import sources
from m2det_jax.data.formats.write import write_dataset
from m2det_jax.datasets.evaluation import load_validation
from m2det_jax.datasets.loading import check_datasets, load_datasets

VALIDATION = {"csv": "val_csv"}
REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def drawn_index(drawn_files):
    names = read_classes(drawn_files.classes)
    return {split: read_csv(getattr(drawn_files, split), names) for split in ("train", "val")}


@pytest.fixture(scope="module")
def written(drawn_index, tmp_path_factory):
    """The drawn data set in every format: {format: root}."""
    roots = {format: tmp_path_factory.mktemp(format) for format in FORMATS}
    for format, root in roots.items():
        write_dataset(drawn_index, format, root)
    return roots


def config_of(format, root, **changes):
    config = default_config()
    if format == "csv":
        for split in ("train", "val", "classes"):
            config.data[f"{split}_csv"] = str(root / f"{split}.csv")
    config.data.update({"format": format, "root": str(root)} | changes)
    return resolve(config)


def test_formats_of_checks_and_readers_agree():
    assert tuple(sources.FORMATS) == FORMATS


@pytest.mark.parametrize("format", FORMATS)
def test_training_and_validation_set_of_every_format(tmp_path, written, drawn_index, format):
    config = config_of(format, written[format])
    train, val = load_datasets(config, tmp_path)
    assert train.class_names == val.class_names
    assert sorted(train.class_names) == sorted(drawn_index["train"].class_names)
    for index, name in ((train, "train"), (val, "val")):
        expected = drawn_index[name]
        assert index.num_images == expected.num_images
        got = sorted(zip(index.boxes.round(2).tolist(), names_of(index), strict=True))
        assert got == sorted(zip(expected.boxes.round(2).tolist(), names_of(expected), strict=True))
    again, what = load_validation(config, tmp_path, train.class_names, (7,) * 6)
    assert again.image_paths == val.image_paths and "val" in what
    assert again.class_ids == (7,) * 6
    found = check_datasets(config)
    assert found["val"][0].image_paths == val.image_paths and not len(found["train"][1])


def names_of(index):
    return [index.class_names[label] for label in index.labels]


@pytest.mark.parametrize("format", FORMATS)
def test_validation_part_split_off(tmp_path, written, format):
    config = config_of(format, written[format], **{VALIDATION.get(format, "val_split"): ""})
    train, val = load_datasets(config, tmp_path)
    assert [train.num_images, val.num_images] == [19, 5]
    assert not set(train.image_paths) & set(val.image_paths)
    again, what = load_validation(config, tmp_path, train.class_names)
    assert again.image_paths == val.image_paths and what.startswith("part of ")
    assert (
        load_datasets(support.changed(config, seed=5), tmp_path)[1].image_paths != val.image_paths
    )
    assert not list(tmp_path.iterdir())  # what a run keeps: see test_data_record


def test_several_training_sets_and_mapped_classes(tmp_path, written, drawn_index, caplog):
    caplog.set_level(logging.INFO, "m2det_jax")
    logging.getLogger("m2det_jax").propagate = True
    other = dataclasses.replace(
        drawn_index["val"], class_names=("Disk", *drawn_index["val"].class_names[1:])
    )
    write_dataset({"train": other}, "coco", tmp_path / "other")
    changes = {"extra_train": (str(tmp_path / "other"),)}
    with pytest.raises(ValueError, match=r"extra_train .*other has classes .*: Disk \(Disk: did"):
        load_datasets(config_of("coco", written["coco"], **changes), tmp_path)
    changes["class_map"] = (("Disk", "disc"), ("cross", "triangle"), ("ring", ""))
    train, val = load_datasets(config_of("coco", written["coco"], **changes), tmp_path)
    assert train.num_images == 24 + 12 and train.class_names == val.class_names
    assert train.class_names == ("disc", "triangle", "stripes", "letter_A")
    whole = names_of(drawn_index["train"]) + names_of(drawn_index["val"])
    renamed = {"cross": "triangle"}
    expected = sorted(renamed.get(name, name) for name in whole if name != "ring")
    assert sorted(names_of(train)) == expected
    assert f"class_map left out {names_of(drawn_index['val']).count('ring')} objects" in caplog.text


def test_an_image_in_two_training_sets(tmp_path, written):
    config = config_of("coco", written["coco"], extra_train=(str(written["coco"]),))
    with pytest.raises(ValueError, match=r"two of the training sets have the image .*\.jpg; leave"):
        load_datasets(config, tmp_path)


def test_filtered_classes_in_the_order_given(tmp_path, written, drawn_index):
    config = config_of("voc", written["voc"], labels_filter=("ring", "disc"))
    train, val = load_datasets(config, tmp_path)
    assert train.class_names == val.class_names == ("ring", "disc")
    assert train.num_images == 24  # images without a chosen object stay, as background
    expected = [name for name in names_of(drawn_index["train"]) if name in ("ring", "disc")]
    assert sorted(names_of(train)) == sorted(expected)
    with pytest.raises(ValueError, match="has no class 'Ring'; did you mean ring"):
        load_datasets(config_of("coco", written["coco"], labels_filter=("Ring",)), tmp_path)


def test_voc_classes_are_those_of_both_splits(tmp_path, drawn_index):
    # Only validation has class stripes.
    train, val = drawn_index["train"], drawn_index["val"]
    with_stripes = np.flatnonzero([
        (train.objects(i)[1] == train.class_names.index("stripes")).any() for i in range(24)
    ])  # fmt: skip
    rest = train.subset(np.setdiff1d(np.arange(24), with_stripes))
    write_dataset({"train": rest, "val": val}, "voc", tmp_path / "voc")
    listed = load_datasets(config_of("voc", tmp_path / "voc"), tmp_path)
    assert listed[0].class_names == listed[1].class_names == drawn_index["val"].class_names
    (tmp_path / "voc" / "classes.csv").unlink()
    train, val = load_datasets(config_of("voc", tmp_path / "voc"), tmp_path)
    assert train.class_names == val.class_names == tuple(sorted(drawn_index["val"].class_names))
    assert "stripes" not in names_of(train) and "stripes" in names_of(val)


@pytest.fixture
def bad_boxes(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    rows = ["a.png,30,5,45,20,x", "a.png,3,3,3,9,x", "a.png,1,1,9,9,x", "a.png,1,1,9,9,x",
            "a.png,50,5,60,20,x", "a.png,9,9,1,1,x"]  # fmt: skip
    (tmp_path / "train.csv").write_text("\n".join(rows))
    (tmp_path / "val.csv").write_text("a.png,1,1,9,9,x\n")
    (tmp_path / "classes.csv").write_text("x,0\n")
    return tmp_path


@pytest.mark.parametrize(
    ("on_bad_box", "boxes", "counts"),
    [
        ("clip", [[30, 5, 40, 20], [1, 1, 9, 9]], (1, 5)),
        ("drop", [[1, 1, 9, 9]], (0, 6)),
    ],
)
def test_bad_boxes_are_mended_aloud(bad_boxes, caplog, on_bad_box, boxes, counts):
    logging.getLogger("m2det_jax").propagate = True
    config = config_of("csv", bad_boxes, on_bad_box=on_bad_box)
    with caplog.at_level(logging.INFO, "m2det_jax"):
        train, _ = load_datasets(config, bad_boxes)
    assert train.boxes.tolist() == boxes
    findings = check_datasets(config)["train"][1]
    assert (findings.count("clip"), findings.count("drop")) == counts
    assert "training: a box is there twice, 1 times: the box is left out" in caplog.text
    assert "leaves its image" in caplog.text


def test_bad_boxes_are_refused_by_default(bad_boxes):
    with pytest.raises(DataError, match="6 problems in the data"):
        load_datasets(config_of("csv", bad_boxes), bad_boxes)
    index, findings = check_datasets(config_of("csv", bad_boxes))["train"]
    assert index.boxes.tolist() == [[1, 1, 9, 9]] and findings.count("refuse") == 6
    kinds = sorted(finding.kind for finding in findings)
    assert kinds == ["duplicate", "outside", "outside", "swapped", "swapped", "zero-area"]
    assert {f.line for f in findings} == {1, 2, 4, 5, 6}
    assert all(f.image.endswith("a.png") for f in findings)


def test_a_source_of_the_users_own(tmp_path, monkeypatch):
    # The example of docs/data.md, as it is printed there.
    page = (REPOSITORY / "docs" / "data.md").read_text()
    (tmp_path / "own_marks.py").write_text(page.partition("```python\n")[2].partition("```")[0])
    monkeypatch.syspath_prepend(tmp_path)
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    marks = [{"box": [1, 2, 40, 30], "kind": "dog"}, {"box": [0, 0, 9, 9.5], "kind": "cat"}]
    (tmp_path / "train.json").write_text(json.dumps([{"picture": "a.png", "marks": marks}]))
    (tmp_path / "val.json").write_text(json.dumps([{"picture": "a.png", "marks": []}]))
    config = config_of("own_marks", tmp_path)
    train, val = load_datasets(config, tmp_path)
    assert train.boxes.tolist() == [[1, 2, 40, 30], [0, 0, 9, 9.5]]
    assert train.labels.tolist() == [1, 0] and val.num_images == 1 and not len(val.boxes)
    marks[0]["box"] = [1, 2, 41, 30]
    entries = [{"picture": "a.png", "marks": marks}, {"picture": "b.png", "marks": []}]
    (tmp_path / "train.json").write_text(json.dumps(entries))
    with pytest.raises(DataError) as caught:
        load_datasets(config, tmp_path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert "own_marks.read: boxes[0]: the box leaves the image, 40 x 30 pixels (1,2,41,30)" in str(
        caught.value
    )
    assert "own_marks.read: images[1]: cannot read image" in str(caught.value)


def test_no_such_format(tmp_path):
    with pytest.raises(
        ValueError, match=r"'coko': not imported .* give csv, coco, .* or a Python module"
    ):
        load_datasets(config_of("coko", tmp_path), tmp_path)
    with pytest.raises(ValueError, match="the module has no function read"):
        load_datasets(config_of("json.decoder", tmp_path), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "a b"}, "config.data.format='a b': give csv, coco"),
        ({"class_map": (("a",),)}, "give pairs, such as"),
        ({"labels_filter": ("a", "a")}, "an entry is there twice"),
        ({"parent_label": "Animal"}, 'is for config.data.format="openimages"'),
        ({"on_bad_box": "ignore"}, "config.data.on_bad_box='ignore': give one of 'error', 'clip'"),
    ],
)
def test_impossible_values(change, message):
    config = default_config()
    config.data.update(change)
    with pytest.raises(ValueError) as caught:
        resolve(config)
    assert message in str(caught.value)


def test_a_run_on_coco_maps_category_and_image_ids_back(tmp_path, drawn_files, drawn_index):
    from m2det_jax.evaluate import evaluate_checkpoint
    from m2det_jax.predict import predict
    from m2det_jax.train import train

    ids = (1, 3, 17, 18, 44, 90)
    splits = {
        split: dataclasses.replace(
            index, class_ids=ids, image_ids=tuple(range(500, 500 + index.num_images))
        )
        for split, index in drawn_index.items()
    }
    write_dataset(splits, "coco", tmp_path / "coco")
    config = support.short_config(drawn_files, max_steps=1)
    config = support.changed(config, data__format="coco", data__root=str(tmp_path / "coco"))
    train(config, tmp_path / "run")
    metrics = evaluate_checkpoint(tmp_path / "run")
    assert 0 <= metrics["AP"] <= 1
    written = tmp_path / "run" / "evaluation" / "00000001_detections.json"
    records = json.loads(written.read_text())
    assert {r["category_id"] for r in records} <= set(ids) and max(
        r["category_id"] for r in records
    ) > 6
    assert {r["image_id"] for r in records} <= set(range(500, 512))
    predict(tmp_path / "run", [drawn_index["val"].image_paths[0]], threshold=0.0)
    records = json.loads((tmp_path / "run" / "predictions" / "predictions.json").read_text())
    assert records and {r["category_id"] for r in records} <= set(ids)
