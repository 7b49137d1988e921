"""The synthetic data set keeps the rules it states."""

import csv
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from m2det_jax.data import read_classes, read_csv
from m2det_jax.data.synthetic import draw_dataset
from m2det_jax.data.synthetic.scenes import (
    MIN_CONTRAST,
    MIN_CONTRAST_SHARE,
    MIN_VISIBLE,
    Scene,
    draw_scene,
    luminance,
)
from m2det_jax.data.synthetic.shapes import CLASS_NAMES, MIN_SIDE, object_masks

SIZES = [(192, 256), (240, 160), (64, 90)]


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(np.random.default_rng((3, i)), SIZES[i % 2], 1 + i % 7) for i in range(120)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return draw_dataset(tmp_path_factory.mktemp("synthetic"), seed=7, num_train=60, num_val=25)


def rows_of(path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("name", CLASS_NAMES)
@pytest.mark.parametrize("side", [8, 9, 13, 40])
def test_masks_are_tight_and_in_range(name, side):
    for seed in range(10):
        alpha, second = object_masks(np.random.default_rng(seed), name, side, (96, 128))
        assert alpha.shape == second.shape and alpha.dtype == np.float32
        for edge in (alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]):
            assert edge.any()
        assert alpha.max() == 1.0 and second.min() >= 0 and second.max() <= 1.0
        assert max(MIN_SIDE, side - 2) <= min(alpha.shape) <= side + 3
        assert alpha.shape[0] <= 96 and alpha.shape[1] <= 128
        assert (second.max() > 0.5) == (name == "stripes")


def test_masks_never_exceed_the_limit():
    for name in CLASS_NAMES:
        alpha, _ = object_masks(np.random.default_rng(0), name, 60, (40, 50))
        assert alpha.shape[0] <= 40 and alpha.shape[1] <= 50


def test_classes_differ_also_when_smallest():
    """The mean masks of 8 x 8 objects differ between any two classes."""
    means = []
    for name in CLASS_NAMES:
        masks = [object_masks(np.random.default_rng(s), name, 8, (96, 128)) for s in range(20)]
        inks = [alpha * (1 - second) for alpha, second in masks]
        inks = [np.asarray(Image.fromarray(ink).resize((8, 8))) for ink in inks]
        means.append(np.mean(inks, axis=0))
    for i in range(len(means)):
        for k in range(i):
            assert np.abs(means[i] - means[k]).mean() > 0.08, (CLASS_NAMES[i], CLASS_NAMES[k])


def test_boxes_are_those_of_the_painted_pixels(scenes):
    for scene in scenes:
        height, width = scene.owner.shape
        visible = scene.visible()
        for k, (x1, y1, x2, y2) in enumerate(scene.boxes):
            assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
            assert min(x2 - x1, y2 - y1) >= MIN_SIDE and y2 - y1 <= height // 2
            assert x2 - x1 <= width // 2
            rows, columns = np.nonzero(scene.owner == k)
            tight = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            if visible[k] == 1.0:
                assert tight == (x1, y1, x2, y2)
            assert tight[0] >= x1 and tight[1] >= y1 and tight[2] <= x2 and tight[3] <= y2


def test_objects_stay_visible(scenes):
    visible = np.concatenate([scene.visible() for scene in scenes if scene.boxes])
    assert visible.min() >= MIN_VISIBLE
    assert visible.min() < 0.9  # some are covered in part


def test_objects_stand_out(scenes):
    """What the image shows, not the colour the painter chose: light and grain included."""
    for scene in scenes:
        grey = luminance(np.asarray(scene.image(), np.float32))
        for k, (x1, y1, x2, y2) in enumerate(scene.boxes):
            if CLASS_NAMES[scene.labels[k]] == "stripes":
                continue  # two colours
            near = np.s_[max(y1 - 4, 0) : y2 + 4, max(x1 - 4, 0) : x2 + 4]
            owner = scene.owner[near]
            # Objects painted later were not there when the colour was chosen.
            around = grey[near][owner < k]
            colour = np.median(grey[near][owner == k])
            if (owner > k).any():
                continue
            share = np.mean(np.abs(around - colour) >= MIN_CONTRAST - 20)
            assert share >= MIN_CONTRAST_SHARE


def test_stripes_have_two_inks():
    found = 0
    for seed in range(60):
        scene = draw_scene(np.random.default_rng(seed), (192, 256), 1)
        if scene.labels and CLASS_NAMES[scene.labels[0]] == "stripes":
            x1, y1, x2, y2 = scene.boxes[0]
            column = luminance(scene.pixels[y1:y2, (x1 + x2) // 2])
            assert column.max() - column.min() > 40
            found += 1
    assert found >= 3


def test_sizes_classes_and_overlaps_are_spread(scenes):
    boxes = np.array([box for scene in scenes for box in scene.boxes])
    sides = np.minimum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
    assert sides.min() <= 9 and sides.max() >= 70
    assert 38 <= np.median(sides) <= 58  # uniform from 8 to half of 144 to 192
    labels = np.concatenate([scene.labels for scene in scenes]).astype(int)
    share = np.bincount(labels, minlength=len(CLASS_NAMES)) / len(labels)
    assert share.min() > 0.5 / len(CLASS_NAMES) and share.max() < 2 / len(CLASS_NAMES)
    touching = [
        any(
            k != i and min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])
            for k, b in enumerate(scene.boxes)
        )
        for scene in scenes
        for i, a in enumerate(scene.boxes)
    ]
    assert 0.1 < np.mean(touching) < 0.3


def test_colour_does_not_tell_the_class(scenes):
    """A nearest-mean rule on the object's own colour does hardly better than guessing."""
    colours, labels = [], []
    for scene in scenes:
        for k, label in enumerate(scene.labels):
            colours.append(np.median(scene.pixels[scene.owner == k], axis=0))
            labels.append(label)
    colours, labels = np.array(colours), np.array(labels)
    half = len(labels) // 2
    means = [colours[:half][labels[:half] == c].mean(0) for c in range(len(CLASS_NAMES))]
    distance = np.linalg.norm(colours[half:, None] - np.array(means), axis=-1)
    assert np.mean(distance.argmin(1) == labels[half:]) < 0.3


def test_small_images_hold_objects_too():
    for seed in range(20):
        scene = draw_scene(np.random.default_rng(seed), (32, 40), 3)
        assert all(b[2] <= 40 and b[3] <= 32 for b in scene.boxes)


def test_dataset_reads_back_with_exact_boxes(dataset):
    classes = read_classes(dataset.classes)
    index = read_csv(dataset.train, classes)
    assert index.class_names == CLASS_NAMES
    assert index.num_images == 60
    counts = np.diff(index.offsets)
    assert 2 <= np.sum(counts == 0) <= 6
    sizes = index.sizes
    assert np.all(sizes[:, 0] != sizes[:, 1])
    assert 0.75 < np.mean(sizes[:, 0] > sizes[:, 1]) < 1.0
    assert 210 < sizes.max(1).mean() < 235 and 160 < sizes.min(1).mean() < 176
    assert index.labels.max() == len(CLASS_NAMES) - 1


def overlap(row, box, margin: int) -> bool:
    """Whether the box of a CSV row comes within `margin` pixels of a box."""
    x1, y1, x2, y2 = map(int, row[1:5])
    wide, high = min(x2, box[2]) - max(x1, box[0]), min(y2, box[3]) - max(y1, box[1])
    return wide > -margin and high > -margin


def test_pictures_show_what_the_rows_say(dataset):
    """In the JPEG files too, a disc with no neighbour differs from what is outside its box."""
    checked = 0
    rows = [row for row in rows_of(dataset.train) if row[1]]
    for name, *corners, label in rows:
        x1, y1, x2, y2 = map(int, corners)
        near = [row for row in rows if row[0] == name and overlap(row, (x1, y1, x2, y2), 4)]
        if label != "disc" or len(near) > 1:
            continue
        grey = luminance(np.asarray(Image.open(dataset.train.parent / name), np.float32))
        middle = (x1 + x2) // 2
        if y1 > 2 and y2 < grey.shape[0] - 2:
            assert abs(grey[y1 + 1, middle] - grey[y1 - 2, middle]) > 25
            assert abs(grey[y2 - 2, middle] - grey[y2 + 1, middle]) > 25
            checked += 1
    assert checked


def test_same_seed_same_bytes_and_longer_begins_with_shorter(dataset, tmp_path):
    again = draw_dataset(tmp_path / "again", seed=7, num_train=10, num_val=25)
    assert again.val.read_bytes() == dataset.val.read_bytes()
    assert dataset.train.read_bytes().startswith(again.train.read_bytes())
    for name in ("train/000003.jpg", "val/000024.jpg"):
        same = dataset.train.parent / name
        assert (again.train.parent / name).read_bytes() == same.read_bytes()


def test_seeds_and_splits_differ(dataset, tmp_path):
    other = draw_dataset(tmp_path, seed=8, num_train=2, num_val=2)
    root = dataset.train.parent
    pictures = {(d / f"{split}/000000.jpg").read_bytes() for d in (root, other.train.parent)
                for split in ("train", "val")}  # fmt: skip
    assert len(pictures) == 4


def test_bad_numbers_are_refused(tmp_path):
    for wrong in ({"seed": -1}, {"num_val": 0}, {"short_side": (31, 40)}, {"short_side": (50, 40)}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            draw_dataset(tmp_path / "never", **wrong)
    assert not (tmp_path / "never").exists()


def test_command_line(tmp_path):
    command = [sys.executable, "-m", "m2det_jax.data.synthetic", "--out", str(tmp_path)]
    command += ["--seed", "5", "--num_train", "3", "--num_val", "2"]
    subprocess.run(command, check=True, capture_output=True)
    assert len(list(tmp_path.glob("train/*.jpg"))) == 3
    assert len(rows_of(tmp_path / "classes.csv")) == len(CLASS_NAMES)
    (tmp_path / "train.csv").write_text("of the user")
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 2 and "there is something already" in refused.stderr
    assert (tmp_path / "train.csv").read_text() == "of the user"
