"""Repeat-factor sampling by hand and by count, and sizes that only the step decides."""

import math

import numpy as np
import pytest

from m2det_jax.data import describe_augmentation, describe_sampling
from m2det_jax.data.augment.settings import AugmentSettings
from m2det_jax.data.feeding.sampling import (
    EpochOrder,
    class_factors,
    epoch_length,
    epoch_order,
    epoch_start,
    image_factors,
    size_of_step,
)
from m2det_jax.data.index import DetectionIndex


def index_of(labels_by_image, num_classes):
    counts = [len(labels) for labels in labels_by_image]
    labels = np.array([label for labels in labels_by_image for label in labels], np.int32)
    return DetectionIndex(
        image_paths=tuple(f"{i}.png" for i in range(len(counts))),
        sizes=np.full((len(counts), 2), 50, np.int32),
        boxes=np.tile(np.array([[1, 2, 30, 40]], np.float32), (len(labels), 1)),
        labels=labels,
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        class_names=tuple(f"class{i}" for i in range(num_classes)),
    )


# Of 8 images 7 have class 0, 2 have class 1, 1 has class 2 (twice); class 3 is nowhere.
LABELS = [[0, 0, 0], [0, 1], [0], [], [0, 2, 2], [1, 0], [0], [0]]


def test_factors_by_hand():
    index = index_of(LABELS, 4)
    factors = class_factors(index, 0.5)
    assert np.allclose(factors[:3], [1, np.sqrt(0.5 / 0.25), np.sqrt(0.5 / 0.125)])
    assert np.isnan(factors[3])
    expected = [1, 2**0.5, 1, 1, 2, 2**0.5, 1, 1]
    assert np.allclose(image_factors(index, 0.5), expected)
    assert epoch_length(image_factors(index, 0.5)) == pytest.approx(7 + 2 * 2**0.5)


def test_no_threshold_is_every_image_once():
    index = index_of(LABELS, 4)
    factors = image_factors(index, 0.0)
    assert (factors == 1).all() and epoch_length(factors) == 8
    assert sorted(epoch_order(factors, 0, 0)) == list(range(8))


VARIED = np.concatenate([[1.0, 2.0, 3.5], np.random.default_rng(0).uniform(1, 4, 50), np.ones(30)])


@pytest.mark.parametrize(
    "factors", [VARIED, np.array([1.25, 1.75]), np.array([1.9, 1.9, 1.1]), np.array([1.3, 1.0])]
)
def test_an_image_is_seen_as_often_as_its_factor_says(factors):
    counts = np.array([
        np.bincount(epoch_order(factors, 7, epoch), minlength=len(factors))
        for epoch in range(3000)
    ])  # fmt: skip
    assert (counts >= np.floor(factors)).all() and (counts <= np.floor(factors) + 1).all()
    assert np.abs(counts.mean(axis=0) - factors).max() < 0.04
    lengths = counts.sum(axis=1)
    assert set(lengths) <= {math.floor(factors.sum()), math.ceil(factors.sum())}
    ends = [epoch_start(factors, epoch) for epoch in range(3001)]
    assert ends == [0, *np.cumsum(lengths)]
    assert abs(ends[-1] - 3000 * epoch_length(factors)) < 1


def test_extra_visits_fall_independently():
    whole = np.floor(VARIED[3:53])
    extra = np.array([
        np.bincount(epoch_order(VARIED, 7, epoch), minlength=83)[3:53] > whole
        for epoch in range(3000)
    ])  # fmt: skip
    together = np.corrcoef(extra.T)[np.triu_indices(50, 1)]
    assert np.abs(together).max() < 0.12


def test_epochs_and_seeds_differ():
    factors = np.linspace(1, 3, 40)
    orders = [epoch_order(factors, seed, epoch).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert epoch_order(factors, 0, 1).tolist() == orders[1]


def test_any_visit_is_found_without_the_ones_before():
    factors = np.linspace(1, 3, 23) ** 1.01
    whole = np.concatenate([epoch_order(factors, 5, epoch) for epoch in range(9)])
    forwards = EpochOrder(factors, 5)
    assert [forwards[visit] for visit in range(len(whole))] == whole.tolist()
    for visit in (len(whole) - 1, 46, 45, 47, 97, 0):
        assert EpochOrder(factors, 5)[visit] == whole[visit]
    jumping = EpochOrder(factors, 5)
    visits = np.random.default_rng(0).integers(len(whole), size=200)
    assert [jumping[int(visit)] for visit in visits] == whole[visits].tolist()
    far = EpochOrder(factors, 5)[10**12]
    assert 0 <= far < 23


@pytest.mark.parametrize("count", [1, 2, 3])
def test_whole_factors_lose_nothing_to_rounding(count):
    factors = np.full(3 * count, 1 + 1 / 3)
    assert epoch_length(factors) == 4 * count
    assert len(epoch_order(factors, 0, 0)) == 4 * count


def test_sizes_are_drawn_evenly_and_by_step_alone():
    sizes = ((64, 96), (96, 64), (128, 128))
    drawn = [size_of_step(sizes, 3, step) for step in range(3000)]
    assert drawn == [size_of_step(sizes, 3, step) for step in range(3000)]
    assert np.abs(np.bincount(drawn, minlength=3) - 1000).max() < 120
    assert drawn != [size_of_step(sizes, 4, step) for step in range(3000)]
    repeats = np.mean(np.array(drawn[1:]) == drawn[:-1])
    assert abs(repeats - 1 / 3) < 0.05
    assert size_of_step(sizes[:1], 3, 8) == 0


def test_sampling_in_words():
    text = describe_sampling(index_of(LABELS, 4), 0.5)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines == [
        "class2 2.00",
        "class1 1.41",
        "without objects: class3",
        "the other 1 classes: 1",
        "images: factors 1.00 to 2.00, an epoch has 9.8 of 8",
    ]
    assert "1 for every class" in describe_sampling(index_of(LABELS, 4), 0.01)
    many = index_of([[i] for i in range(60)], 60)
    assert "and 20 more" in describe_sampling(many, 0.5)


def test_the_pipeline_in_words():
    default = describe_augmentation(AugmentSettings((64, 96))).splitlines()
    assert [line.split()[1] for line in default[:4]] == ["expand", "crop", "flip", "photometric"]
    assert default[4] == "  then stretch to 64 x 96 (height x width)"
    assert "centre is seen" in default[5]
    steps = ("mosaic", "affine", "paste", "scale_jitter", "mixup")
    settings = AugmentSettings((64, 96), pipeline=steps, min_visible=0.25, affine_rotation=33.0)
    text = describe_augmentation(settings, ((64, 96), (128, 160)))
    assert all(f"{i}. {name}" in text for i, name in enumerate(steps, 1))
    assert "rotation +-33 degrees" in text and "0.25 is seen" in text
    assert "64 x 96 or 128 x 160" in text and "one size drawn for each step" in text
    off = describe_augmentation(AugmentSettings((64, 96), enabled=False))
    assert "none (config.augment.enabled is False)" in off and "boxes" not in off
