"""Images that have moved are known again; what differs is told with counts and names."""

import random

import numpy as np
import pytest

from m2det_jax.data import DetectionIndex
from m2det_jax.data.changes import align, describe_changes, image_names, note_images


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        (["a", "b"], ["b", "c"], {"b": "b"}),
        # Seen from another folder.
        (["img/a", "img/b"], ["../set/img/b", "../set/img/a"], [1, 0]),
        (["../../x/img/a"], ["img/a"], [0]),
        # Names that several folders have are told apart by the folders.
        (["cam1/0", "cam2/0", "cam2/1"], ["p/cam2/0", "p/cam1/0", "p/cam2/1"], [1, 0, 2]),
        # By nothing else: better unknown than the wrong one.
        (["cam1/0", "cam2/0"], ["left/0", "right/0"], {}),
        # What is where it was is not taken for what has moved.
        (["cam1/0", "cam2/0"], ["cam1/0", "cam3/0"], [0, 1]),
        (["a"], ["x/a", "y/a"], {}),
        ([], ["a"], {}),
        (["a"], [], {}),
        ([".."], ["."], {}),
    ],
)
def test_align(before, now, expected):
    if isinstance(expected, list):
        expected = {name: now[i] for name, i in zip(before, expected, strict=True)}
    assert align(before, now) == expected


def test_align_finds_any_move_of_distinct_names():
    draw = random.Random(0)
    names = [f"{draw.choice('abc')}/{draw.choice('abc')}/{i}" for i in range(200)]
    moved = [f"../new/{name.split('/', 1)[1]}" for name in names]
    pairs = align(draw.sample(names, 200), moved)
    assert pairs == dict(zip(names, moved, strict=True))


def index_of(boxes: dict[str, list[tuple]], classes=("cat", "dog")) -> DetectionIndex:
    """An index of {name: [(x1, y1, x2, y2, class)]} in folder /set."""
    rows = [box for image in boxes.values() for box in image]
    return DetectionIndex(
        image_paths=tuple(f"/set/{name}" for name in boxes),
        sizes=np.full((len(boxes), 2), 100, np.int32),
        boxes=np.array([row[:4] for row in rows], np.float32).reshape(-1, 4),
        labels=np.array([classes.index(row[4]) for row in rows], np.int32),
        offsets=np.cumsum([0, *map(len, boxes.values())]).astype(np.int64),
        class_names=classes,
    )


A, B, C = (1, 1, 5, 5, "cat"), (2, 2, 9, 9, "dog"), (3, 3, 8, 8, "cat")


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        ({"x": [A, B], "y": [C], "z": []}, []),
        ({"x": [A, C], "y": [C], "z": []}, ["1 box of 1 image changed (x)"]),
        ({"x": [(*A[:4], "dog"), B], "y": [C], "z": []}, ["1 box of 1 image changed (x)"]),
        ({"x": [], "y": [C, A], "z": [A]}, ["4 boxes of 3 images changed (x, y, z)"]),
        ({"x": [B, A], "y": [C], "z": []}, ["the boxes of 1 image are in another order (x)"]),
        ({"y": [C], "x": [A, B], "z": []}, ["the images are in another order"]),
        ({"x": [A, B], "z": []}, ["1 image was removed (y)"]),
        (
            {"x": [A, B], "y": [C], "z": [], **{f"n{i}\n": [] for i in range(5)}},
            ["5 images were added (n0, n1, n2, ...)"],
        ),
    ],
)
def test_what_changed(now, expected):
    before = note_images(index_of({"x": [A, B], "y": [C], "z": []}), "/set")
    assert describe_changes(before, note_images(index_of(now), "/set")) == expected


def test_a_class_that_is_added_changes_no_box():
    boxes = {"x": [A, B]}
    notes = [
        note_images(index_of(boxes, c), "/set") for c in (("cat", "dog"), ("ant", "cat", "dog"))
    ]
    assert notes[0] == notes[1]


def test_names_are_one_line_and_shown_as_text():
    assert image_names(["/set/a\nb", "/other/c"], "/set") == ["a b", "../other/c"]
    before, now = ({"a": [1, 1, ""]}, {"a": [1, 1, ""], "\x1b[31m": [1, 1, ""]})
    assert describe_changes(before, now) == ["1 image was added (\\x1b[31m)"]
