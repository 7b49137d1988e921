"""Results: choosing among detections, and the forms that they are given in."""

import io
import json
import re
import sys
import types

import numpy as np
import pytest
from PIL import Image

from m2det_jax.drawing.boxes import draw_boxes
from m2det_jax.inference.pictures import Picture
from m2det_jax.inference.result import Detection, Result

NAMES = ("cat", "dog", "owl")
BOXES = np.array([[1, 2, 11, 22], [5, 5, 9, 10], [0, 0, 60, 40], [3, 3, 4, 4]], np.float32)
SCORES = np.array([0.9, 0.75, 0.5, 0.125], np.float32)
LABELS = np.array([1, 0, 1, 2], np.int32)
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


def result(ids=(), name="photo.jpg", pixels=PIXELS) -> Result:
    image = Image.fromarray(pixels)
    picture = Picture(name, image.size, lambda: image)
    return Result(BOXES, SCORES, LABELS, NAMES, picture, ids)


def test_what_it_has():
    found = result()
    assert len(found) == 4 and found.image_size == (40, 60) and found.source == "photo.jpg"
    assert found.names.tolist() == ["dog", "cat", "dog", "owl"]


@pytest.mark.parametrize(
    ("key", "left"),
    [
        (slice(1, 3), [1, 2]),
        (slice(None, None, -1), [3, 2, 1, 0]),
        (SCORES > 0.5, [0, 1]),
        (result().names == "dog", [0, 2]),
        (np.array([3, 0]), [3, 0]),
        ([2], [2]),
        ([], []),
        ([True, False, False, True], [0, 3]),
    ],
)
def test_a_part_is_a_result(key, left):
    part = result()[key]
    assert isinstance(part, Result) and part.source == "photo.jpg"
    np.testing.assert_array_equal(part.boxes, BOXES[left])
    np.testing.assert_array_equal(part.scores, SCORES[left])
    np.testing.assert_array_equal(part.labels, LABELS[left])
    assert part.names.tolist() == [NAMES[label] for label in LABELS[left]]
    assert part.boxes.shape == (len(left), 4)


def test_a_number_and_iteration_give_detections():
    found = result()
    assert found[np.int64(-1)].name == "owl"
    assert [one.score for one in found] == SCORES.tolist()
    first = next(iter(found))
    assert isinstance(first, Detection) and (first.label, first.name) == (1, "dog")
    np.testing.assert_array_equal(first.box, BOXES[0])
    with pytest.raises(IndexError):
        found[4]


@pytest.mark.parametrize("key", [True, "dog", 0.5, np.zeros((4, 1), bool), None])
def test_other_keys_are_refused(key):
    with pytest.raises((TypeError, IndexError)):
        result()[key]


def test_a_mask_of_another_length_is_refused():
    with pytest.raises(IndexError):
        result()[np.ones(3, bool)]


def test_its_text():
    assert repr(result()) == (
        "Result(4 objects in photo.jpg, height 40, width 60: dog 90%, cat 75%, dog 50%, owl 12%)"
    )
    assert repr(result(name="")[:1]) == "Result(1 object, height 40, width 60: dog 90%)"
    assert repr(result()[:0]) == "Result(0 objects in photo.jpg, height 40, width 60)"
    many = result()[np.zeros(25, int)]
    assert "25 objects" in repr(many) and repr(many).endswith("dog 90%, and 15 more)")


def test_drawing():
    found = result()
    expected = draw_boxes(PIXELS, BOXES, LABELS, NAMES, SCORES)
    np.testing.assert_array_equal(np.asarray(found.draw()), np.asarray(expected))
    np.testing.assert_array_equal(np.asarray(found[:0].draw()), PIXELS)


def test_what_a_notebook_shows():
    with Image.open(io.BytesIO(result()._repr_png_())) as shown:
        np.testing.assert_array_equal(np.asarray(shown), np.asarray(result().draw()))
    large = result(pixels=np.zeros((3000, 2000, 3), np.uint8))
    with Image.open(io.BytesIO(large._repr_png_())) as shown:
        assert shown.size == (683, 1024)


def test_a_notebook_shows_the_text_where_the_file_is_gone(tmp_path):
    from m2det_jax.data import load_image

    gone = Picture("gone.png", (60, 40), lambda: load_image(tmp_path / "gone.png"))
    assert Result(BOXES, SCORES, LABELS, NAMES, gone)._repr_png_() is None


@pytest.mark.parametrize("ids", [(), (7, "x", 90)])
def test_coco_results(ids):
    records = json.loads(json.dumps(result(ids).to_coco(17)))
    assert records[0] == {
        "image_id": 17,
        "category_id": ids[1] if ids else 1,
        "category_name": "dog",
        "bbox": [1, 2, 10, 20],
        "score": float(np.float32(0.9)),
    }
    assert [r["category_id"] for r in records] == [(ids or (0, 1, 2))[i] for i in LABELS]
    assert result()[:0].to_coco("a") == []


def test_supervision_gets_all_fields(monkeypatch):
    made = types.ModuleType("supervision")
    made.Detections = lambda **fields: fields
    monkeypatch.setitem(sys.modules, "supervision", made)
    fields = result().to_supervision()
    np.testing.assert_array_equal(fields["xyxy"], BOXES)
    np.testing.assert_array_equal(fields["confidence"], SCORES)
    np.testing.assert_array_equal(fields["class_id"], LABELS)
    assert fields["data"]["class_name"].tolist() == ["dog", "cat", "dog", "owl"]


def test_supervision_takes_them():
    supervision = pytest.importorskip("supervision", reason="supervision is not installed")
    found = result().to_supervision()
    assert isinstance(found, supervision.Detections) and len(found) == 4
    assert found[found.confidence > 0.5]["class_name"].tolist() == ["dog", "cat"]
    assert len(result()[:0].to_supervision()) == 0


def test_without_supervision_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match=re.escape("pip install supervision")):
        result().to_supervision()
