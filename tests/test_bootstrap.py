"""Bootstrap of average precision: COCO's figures, weights as repeated images, and intervals."""

import dataclasses
import math

import numpy as np
import pytest
from test_coco_evaluators import CLASSES, drawn

from m2det_jax.metrics import bootstrap
from m2det_jax.metrics.bootstrap import SIZES, average_precisions, compare, matches_of
from m2det_jax.metrics.detections import ImageDetections
from m2det_jax.metrics.scores import coco_metrics

SIZE_KEYS = dict(zip(SIZES, ("AP", "AP_small", "AP_medium", "AP_large"), strict=True))


def with_difficult(index):
    return dataclasses.replace(index, difficult=np.arange(len(index.labels)) % 5 == 0)


def noisier(detections, seed: int = 0):
    """The same detections, moved by some pixels."""
    rng = np.random.default_rng(seed)
    moved = []
    for one in detections:
        boxes = one.boxes + rng.normal(0, 8, one.boxes.shape).astype(np.float32)
        moved.append(dataclasses.replace(one, boxes=boxes))
    return moved


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("difficult", [False, True])
def test_the_figures_are_those_of_coco(difficult, ties, monkeypatch):
    monkeypatch.setattr(bootstrap, "_IMAGES_AT_ONCE", 7)  # several parts
    index, found = drawn(3, images=24, ties=ties)
    index = with_difficult(index) if difficult else index
    compared, _ = compare(index, found, noisier(found))
    for letter, detections in (("a", found), ("b", noisier(found))):
        expected = coco_metrics(index, detections)
        for size, key in SIZE_KEYS.items():
            value = getattr(compared[size][0], letter)
            assert value == pytest.approx(expected[key], abs=1e-9, nan_ok=True), (letter, size)
        for place, key in ((1, "AP50"), (2, "AP75")):
            assert getattr(compared["all"][place], letter) == pytest.approx(expected[key], abs=1e-9)
        for k, name in enumerate(CLASSES):
            for place, key in ((0, "AP"), (1, "AP50")):
                value = getattr(compared[k][place], letter)
                assert value == pytest.approx(expected["per_class"][name][key], abs=1e-9)
    assert expected["AP"] > 0.01 and compared["all"][0].a > compared["all"][0].b


@pytest.mark.parametrize("seed", range(4))
def test_a_weight_is_a_repeated_image(seed):
    index, found = drawn(seed, images=12)
    weights = np.random.default_rng(seed).integers(0, 4, 12)
    ids = np.repeat(np.arange(12), weights)
    by_image = {one.image_id: one for one in found}
    repeated = [
        ImageDetections(k, one.boxes, one.scores, one.labels)
        for k, i in enumerate(ids.tolist())
        if (one := by_image.get(i))
    ]
    expected = coco_metrics(index.subset(ids), repeated)
    values = {k: average_precisions(m, weights[None])[0]
              for (k, size), m in matches_of(index, found).items() if size == "all"}  # fmt: skip
    for k, name in enumerate(CLASSES):
        known = expected["per_class"][name]
        assert values[k][:2] == pytest.approx([known["AP"], known["AP50"]], abs=1e-9, nan_ok=True)
    assert np.nanmean([v[2] for v in values.values()]) == pytest.approx(expected["AP75"], abs=1e-9)


def test_the_better_one_is_told_and_the_order_does_not_matter():
    index, found = drawn(1, images=60)
    worse = noisier(found)
    compared, draws = compare(index, found, worse)
    one = compared["all"][0]
    assert draws == 1000 and one.sign == 1
    assert 0 < one.low < one.a - one.b < one.high < 0.5
    swapped = compare(index, worse, found)[0]["all"][0]
    assert swapped.sign == -1
    assert (swapped.low, swapped.high) == pytest.approx((-one.high, -one.low))
    assert compare(index, found, worse, seed=5)[0]["all"][0].low == pytest.approx(one.low, abs=0.02)


def test_equal_detections_differ_by_nothing():
    index, found = drawn(2, images=40)
    for figures in compare(index, found, found)[0].values():
        for one in figures:
            assert one.sign == 0 and (math.isnan(one.low) or one.low == one.high == 0)


def test_the_width_is_that_of_the_plain_bootstrap():
    """Of a single class at one threshold, against a loop that draws images one by one."""
    index, found = drawn(4, images=30)
    other = noisier(found)
    one = compare(index, found, other)[0][0][1]
    sides = [matches_of(index, some)[0, "all"] for some in (found, other)]
    rng, apart = np.random.default_rng(9), []
    for _ in range(400):
        weights = np.bincount(rng.integers(0, 30, 30), minlength=30)[None]
        a, b = (average_precisions(side, weights)[0, 1] for side in sides)
        apart.append(a - b)
    low, high = np.percentile(apart, (2.5, 97.5))
    assert (one.low, one.high) == pytest.approx((low, high), abs=0.15 * (high - low))


def test_a_few_images_have_no_interval():
    index, found = drawn(5, images=9)
    compared, _ = compare(index, found, noisier(found))
    assert all(math.isnan(one.low) and one.sign == 0 for one in compared["all"])
    assert not math.isnan(compared["all"][0].a)


def test_many_detections_are_drawn_less_often(monkeypatch):
    index, found = drawn(6, images=20)
    monkeypatch.setattr(bootstrap, "_WORK", 1)
    assert compare(index, found, noisier(found))[1] == bootstrap._FEWEST_DRAWS
