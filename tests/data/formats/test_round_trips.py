"""One data set in all six formats is the same data set, and evaluates the same."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from m2det_jax.data import DataError, DetectionIndex, Source, check_dataset, read_dataset
from m2det_jax.data.formats.write import not_held, write_dataset
from m2det_jax.metrics.detections import ImageDetections
from m2det_jax.metrics.scores import coco_metrics

FORMATS = ("csv", "coco", "voc", "kitti", "openimages", "yolo")
NAMES = ("bird", "blue car", "ring")


def source(format, root, split="val"):
    if format == "csv":
        return Source("csv", str(root), f"{split}.csv", "classes.csv")
    return Source(format, str(root), split)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """An index of 12 images of odd sizes and kinds, one in three turned by EXIF, two empty."""
    folder = tmp_path_factory.mktemp("originals")
    rng = np.random.default_rng(3)
    paths, sizes, boxes, labels, counts = [], [], [], [], []
    for i in range(12):
        width, height = (int(side) for side in rng.integers(37, 211, 2))
        exif = Image.Exif()
        exif[0x112] = 6 if i % 3 == 0 else 1
        path = folder / f"{'ä' if i % 2 else 'b'} {i}.{('jpg', 'png')[i % 2]}"
        pixels = rng.integers(0, 255, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(path, exif=exif)
        width, height = (height, width) if i % 3 == 0 else (width, height)
        count = 0 if i in (4, 9) else int(rng.integers(1, 6))
        corners = np.sort(rng.uniform(0, 1, (count, 2, 2)), axis=1) * (width, height)
        corners = np.rint(corners) if i % 2 else corners
        found = np.concatenate([corners[:, 0], np.maximum(corners[:, 1], corners[:, 0] + 1)], 1)
        found = np.clip(found, 0, (width, height, width, height))
        found[:1, 2:] = width, height  # the edges themselves are legal
        paths.append(str(path))
        sizes.append((width, height))
        boxes.append(found)
        labels += rng.integers(0, 3, count).tolist()
        counts.append(count)
    return DetectionIndex(
        image_paths=tuple(paths),
        sizes=np.array(sizes, np.int32),
        boxes=np.concatenate(boxes).astype(np.float32),
        labels=np.array(labels, np.int32),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        class_names=NAMES,
    )


def detections_of(index, seed=0):
    """Detections near the objects of an index, by the order of its objects."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(index.num_images):
        boxes, labels = index.objects(i)
        moved = boxes + rng.normal(0, 4, boxes.shape)
        found.append(ImageDetections(i, moved, rng.random(len(boxes)), labels))
    return found


def figures(metrics):
    flat = {k: v for k, v in metrics.items() if k != "per_class"}
    return flat | {
        f"{name.replace('_', ' ')} {k}": v
        for name, values in metrics["per_class"].items()
        for k, v in values.items()
    }


@pytest.mark.parametrize("format", FORMATS)
def test_same_data_set_and_same_evaluation_in_every_format(tmp_path, drawn, format):
    written = write_dataset({"val": drawn}, format, tmp_path / format)
    assert written.referred + written.linked + written.copied == 12
    index = read_dataset(source(format, tmp_path / format))
    names = [name.replace("_", " ") for name in index.class_names]
    assert names == list(NAMES) and index.num_images == 12
    # Images may come in another order and by other names, but never with other boxes.
    content = {Path(path).read_bytes(): i for i, path in enumerate(index.image_paths)}
    order = [content[Path(path).read_bytes()] for path in drawn.image_paths]
    assert sorted(order) == list(range(12))
    index = index.subset(order)
    np.testing.assert_array_equal(index.sizes, drawn.sizes)
    np.testing.assert_array_equal(index.offsets, drawn.offsets)
    np.testing.assert_array_equal(index.labels, drawn.labels)
    np.testing.assert_allclose(index.boxes, drawn.boxes, rtol=0, atol=1e-3)
    found = detections_of(drawn)
    expected, got = figures(coco_metrics(drawn, found)), figures(coco_metrics(index, found))
    assert got.keys() == expected.keys() and 0.1 < expected["AP"] < 0.9
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("between", FORMATS)
def test_there_and_back_is_unchanged(tmp_path, drawn, between):
    whole = dataclasses.replace(drawn, class_names=("bird", "car", "ring"))
    write_dataset({"val": whole}, "csv", tmp_path / "first", copy_images=True)
    first = read_dataset(source("csv", tmp_path / "first"))
    write_dataset({"val": first}, between, tmp_path / "between")
    there = read_dataset(source(between, tmp_path / "between"))
    write_dataset({"val": there}, "csv", tmp_path / "back", copy_images=True)
    back = read_dataset(source("csv", tmp_path / "back"))
    assert back.class_names == first.class_names
    by_name = {path.rpartition("/")[2]: i for i, path in enumerate(back.image_paths)}
    back = back.subset([by_name[path.rpartition("/")[2]] for path in first.image_paths])
    np.testing.assert_array_equal(back.labels, first.labels)
    np.testing.assert_allclose(back.boxes, first.boxes, rtol=0, atol=1e-4)
    if between in ("csv", "coco", "voc"):
        np.testing.assert_array_equal(back.boxes, first.boxes)


def with_flags(index):
    count = index.num_images
    return dataclasses.replace(
        index,
        difficult=np.arange(len(index.labels)) % 3 == 0,
        areas=(index.areas * 0.5).astype(np.float32),
        regions=np.tile(np.float32([1, 2, 20, 30]), (2 * count, 1)),
        region_labels=np.tile(np.int32([1, -1]), count),
        region_offsets=np.arange(count + 1, dtype=np.int64) * 2,
        class_ids=(4, 7, 90),
        image_ids=tuple(range(100, 100 + count)),
    )


def test_coco_keeps_ids_areas_and_crowds(tmp_path, drawn):
    index = with_flags(drawn)
    write_dataset({"val": index}, "coco", tmp_path)
    again = read_dataset(source("coco", tmp_path))
    assert again.class_ids == (4, 7, 90) and again.image_ids == index.image_ids
    np.testing.assert_array_equal(again.areas, index.areas)
    # One crowd of its class, and one of every class written once for each of the three.
    assert again.regions_of(5)[1].tolist() == [1, 0, 1, 2]
    said = " ".join(not_held(index, "coco"))
    assert "difficult" in said and "12 ignore regions of every class" in said
    assert "area" not in said and "ids" not in said


def test_voc_keeps_difficult_and_kitti_its_regions(tmp_path, drawn):
    index = with_flags(drawn)
    write_dataset({"val": index}, "voc", tmp_path / "voc")
    again = read_dataset(source("voc", tmp_path / "voc"))
    np.testing.assert_array_equal(again.difficult, index.difficult)
    assert len(again.regions) == 0
    assert "24 ignore regions" in " ".join(not_held(index, "voc"))
    write_dataset({"val": index}, "kitti", tmp_path / "kitti")
    again = read_dataset(source("kitti", tmp_path / "kitti"))
    assert (again.region_labels == -1).all() and len(again.regions) == 24
    assert "become DontCare" in " ".join(not_held(index, "kitti"))


@pytest.mark.parametrize("format", ["voc", "kitti"])
def test_our_list_keeps_the_order_of_classes_and_those_without_objects(tmp_path, drawn, format):
    names = ("ring", "zebra", "bird", "car")
    index = dataclasses.replace(drawn, class_names=names, labels=np.int32([0, 2, 3])[drawn.labels])
    write_dataset({"val": index}, format, tmp_path)
    again = read_dataset(source(format, tmp_path))
    assert again.class_names == names and again.num_images == 12
    counts = np.bincount(index.labels, minlength=4)
    np.testing.assert_array_equal(np.bincount(again.labels, minlength=4), counts)
    assert "named only in our list classes.csv: zebra" in " ".join(not_held(index, format))
    # An object of another class is no mistake: these formats need no list.
    (tmp_path / "classes.csv").write_text("zebra,0\nring,1\n")
    again = read_dataset(source(format, tmp_path))
    assert again.class_names == ("zebra", "ring", "bird", "car")
    np.testing.assert_array_equal(np.bincount(again.labels), counts[[1, 0, 2, 3]])
    (tmp_path / "classes.csv").unlink()
    assert read_dataset(source(format, tmp_path)).class_names == ("bird", "car", "ring")


def test_openimages_keeps_groups_and_machine_names(tmp_path, drawn):
    index = dataclasses.replace(with_flags(drawn), class_ids=("/m/1", "/m/2", "/m/3"))
    write_dataset({"val": index}, "openimages", tmp_path)
    again = read_dataset(source("openimages", tmp_path))
    assert again.class_ids == ("/m/1", "/m/2", "/m/3")
    assert again.regions_of(0)[1].tolist() == [1, 0, 1, 2]


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_plain_loses_nothing(drawn, format):
    plain = dataclasses.replace(drawn, class_names=("bird", "car", "ring"))
    said = not_held(plain.subset([i for i in range(12) if plain.counts[i]]), format)
    assert [text for text in said if "fractions" not in text] == []


@pytest.mark.parametrize("format", FORMATS)
def test_relative_roots_give_absolute_paths(tmp_path, drawn, format, monkeypatch):
    write_dataset({"val": drawn}, format, tmp_path / "set", copy_images=True)
    monkeypatch.chdir(tmp_path)
    index = read_dataset(source(format, "set"))
    assert all(path.startswith(str(tmp_path / "set")) for path in index.image_paths)


def test_a_yaml_as_roboflow_exports_it(tmp_path, drawn):
    write_dataset({"valid": drawn}, "yolo", tmp_path)
    (tmp_path / "images" / "valid").rename(tmp_path / "pictures")
    (tmp_path / "valid").mkdir()
    (tmp_path / "pictures").rename(tmp_path / "valid" / "images")
    (tmp_path / "labels" / "valid").rename(tmp_path / "valid" / "labels")
    (tmp_path / "data.yaml").write_text("val: ../valid/images\nnames: [bird, blue car, ring]\n")
    index = read_dataset(source("yolo", tmp_path))
    assert index.num_images == 12 and len(index.boxes) == len(drawn.boxes)


def test_vocdevkit_with_several_years(tmp_path, drawn):
    first, second = drawn.subset(range(5)), drawn.subset(range(5, 12))
    write_dataset({"val": first}, "voc", tmp_path / "VOC2007")
    write_dataset({"val": second}, "voc", tmp_path / "VOC2012")
    index = read_dataset(source("voc", tmp_path))
    assert index.num_images == 12 and len(set(index.image_ids)) == 12
    np.testing.assert_allclose(index.boxes, drawn.boxes, atol=1e-4)


def test_hierarchy_of_open_images(tmp_path, drawn):
    index = dataclasses.replace(drawn, class_ids=("/m/1", "/m/2", "/m/3"))
    write_dataset({"val": index}, "openimages", tmp_path)
    tree = {"LabelName": "/m/0", "Subcategory": [
        {"LabelName": "/m/1", "Subcategory": [{"LabelName": "/m/3"}]}, {"LabelName": "/m/2"}
    ]}  # fmt: skip
    (tmp_path / "bbox_labels_600_hierarchy.json").write_text(json.dumps(tree))
    below = dataclasses.replace(source("openimages", tmp_path), parent_label="bird")
    found = read_dataset(below)
    assert found.class_names == ("bird", "ring") and found.class_ids == ("/m/1", "/m/3")
    assert len(found.boxes) == (drawn.labels != 1).sum()
    wrong = dataclasses.replace(below, parent_label="brid")
    with pytest.raises(DataError, match=r"parent_label is not in it \(brid\); did you mean bird"):
        read_dataset(wrong)


def test_polygons_of_yolo_are_told_of(tmp_path, drawn):
    write_dataset({"val": drawn.subset([0])}, "yolo", tmp_path)
    (label,) = (tmp_path / "labels" / "val").iterdir()
    label.write_text("1 0.5 0.25 0.75 0.5 0.25 0.75\n0 0.5 0.5 0.1 0.1\n")
    index, findings = check_dataset(source("yolo", tmp_path))
    np.testing.assert_allclose(
        index.boxes[0] / np.tile(index.sizes[0], 2), [0.25, 0.25, 0.75, 0.75]
    )
    assert index.labels.tolist() == [1, 0]
    assert findings.counts == {("polygon", "note"): 1} and next(iter(findings)).line == 1
