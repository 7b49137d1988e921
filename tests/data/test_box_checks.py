"""Remarks on legal but unlikely boxes, and on classes."""

import numpy as np

from m2det_jax.check.boxes import check_boxes, check_classes
from m2det_jax.data.index import DetectionIndex


def index_of(images, names=("a", "b", "c")):
    """images: a list of (x1, y1, x2, y2, label) for each image of 100 x 50 pixels."""
    rows = [row for image in images for row in image]
    return DetectionIndex(
        image_paths=tuple(f"/{i}.jpg" for i in range(len(images))),
        sizes=np.tile(np.array([[100, 50]], np.int32), (len(images), 1)),
        boxes=np.array([row[:4] for row in rows], np.float32).reshape(-1, 4),
        labels=np.array([row[4] for row in rows], np.int32),
        offsets=np.cumsum([0, *map(len, images)]).astype(np.int64),
        class_names=names,
    )


def check(index, **options):
    options = dict(smallest_side=4.0, max_detections=100) | options
    return check_boxes("train", index, index.boxes, lambda row: {"line": row + 1}, **options)


def test_small_boxes_by_their_shorter_side():
    index = index_of([[(0, 0, 4, 40, 0)], [(0, 0, 40, 3.5, 1), (5, 5, 7, 7, 2)]])
    found = check(index)
    assert [(r.kind, r.line, r.image) for r in found] == [
        ("tiny-box", 2, "/1.jpg"),
        ("tiny-box", 3, "/1.jpg"),
    ]
    assert "b is 40.0 x 3.5 pixels" in found[0].what
    assert not check(index, smallest_side=1.0)


def test_near_twins_of_any_class_but_no_neighbours():
    boxes = [(10, 10, 50, 40, 0), (10.5, 10, 50, 40, 1), (12, 10, 52, 40, 0), (60, 5, 99, 45, 2),
             (60, 5, 99, 45, 2)]  # fmt: skip
    found = check(index_of([boxes, [(10, 10, 50, 40, 0)]]))
    assert [(r.kind, r.line) for r in found] == [("twin-box", 2)]
    assert "b overlaps a of line 1 with IoU 0.988" in found[0].what


def test_many_random_boxes_equal_a_comparison_of_all_pairs():
    rng = np.random.default_rng(0)
    low = rng.integers(0, 12, (300, 2))
    boxes = np.concatenate([low, low + rng.integers(20, 24, (300, 2))], 1) / 1.0
    rows = [(*box, label) for box, label in zip(boxes, rng.integers(0, 3, 300), strict=True)]
    index = index_of([rows])
    expected = 0
    for i in range(300):
        for k in range(i):
            a, b = boxes[i], boxes[k]
            sides = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0)
            areas = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod()
            same = np.array_equal(a, b) and rows[i][4] == rows[k][4]
            expected += sides.prod() / (areas - sides.prod()) >= 0.95 - 1e-6 and not same
    assert len(check(index, max_detections=300)) == expected > 20


def test_crowds():
    found = check(index_of([[(i, 0, i + 30, 40, 0) for i in range(0, 60, 6)]]), max_detections=9)
    assert [r.kind for r in found] == ["crowded-image"] and "10 objects" in found[0].what


def test_classes_and_empty_splits():
    train = index_of([[(0, 0, 9, 9, 0)], []], ("a", "b", "c", "d"))
    val = index_of([[(0, 0, 9, 9, 2), (0, 0, 8, 9, 0)]], ("a", "b", "c", "d"))
    found = {(r.kind, r.split): r.what for r in check_classes(train, val)}
    assert found.keys() == {
        ("unused-class", ""),
        ("untrained-class", ""),
        ("unlabelled-images", "train"),
    }
    assert found["untrained-class", ""].startswith("c: ")
    assert found["unlabelled-images", "train"] == "1 of 2 images have no boxes"
    assert [r.kind for r in check_classes(train, val)].count("unused-class") == 2
    empty = check_classes(train, index_of([[]], ("a", "b", "c", "d")))
    assert ("no-boxes", "val") in {(r.kind, r.split) for r in empty}
    assert "unmeasured-class" in {r.kind for r in empty}
