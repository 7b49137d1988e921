"""Indices: subsets and splits keep every image with its own boxes."""

import dataclasses

import numpy as np
import pytest

from m2det_jax.data import DetectionIndex, split_by_image


def make_index(counts):
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    boxes = np.arange(4 * offsets[-1], dtype=np.float32).reshape(-1, 4)
    return DetectionIndex(
        image_paths=tuple(f"/data/{i}.png" for i in range(len(counts))),
        sizes=np.arange(2 * len(counts), dtype=np.int32).reshape(-1, 2),
        boxes=boxes,
        labels=(np.arange(offsets[-1]) % 3).astype(np.int32),
        offsets=offsets,
        class_names=("x", "y", "z"),
    )


def test_counts_and_objects():
    index = make_index([2, 0, 3])
    assert (index.num_images, index.max_objects) == (3, 3)
    assert index.objects(1)[0].shape == (0, 4)
    assert index.objects(2)[0].tolist() == index.boxes[2:].tolist()
    assert make_index([]).max_objects == 0


@pytest.mark.parametrize("ids", [[2, 0], [1], [3, 3, 1, 2], []])
def test_subset(ids):
    index = make_index([2, 0, 3, 1])
    part = index.subset(ids)
    assert part.num_images == len(ids) and part.class_names == index.class_names
    for position, image_id in enumerate(ids):
        assert part.image_paths[position] == index.image_paths[image_id]
        assert np.array_equal(part.sizes[position], index.sizes[image_id])
        for got, expected in zip(part.objects(position), index.objects(image_id), strict=True):
            assert np.array_equal(got, expected)


def test_subset_refuses_unknown_images():
    with pytest.raises(IndexError, match=r"image id 4 is not in 0\.\.3"):
        make_index([2, 0, 3, 1]).subset([0, 4])
    with pytest.raises(IndexError, match="-1"):
        make_index([2]).subset([-1])


def test_split():
    index = make_index([1, 2, 0, 3, 1, 1, 4, 0, 2, 5])
    rest, held_out = split_by_image(index, 0.3, seed=7)
    assert (rest.num_images, held_out.num_images) == (7, 3)
    assert set(rest.image_paths) | set(held_out.image_paths) == set(index.image_paths)
    assert len(rest.boxes) + len(held_out.boxes) == len(index.boxes)
    assert list(held_out.image_paths) == sorted(held_out.image_paths)
    again = split_by_image(index, 0.3, seed=7)[1]
    assert again.image_paths == held_out.image_paths
    others = {split_by_image(index, 0.3, seed=seed)[1].image_paths for seed in range(20)}
    assert len(others) > 10


def test_split_has_two_parts():
    index = make_index([1, 1])
    for fraction in (0.01, 0.99):
        assert [part.num_images for part in split_by_image(index, fraction, 0)] == [1, 1]
    for fraction in (0, 1, -0.1, float("nan")):
        with pytest.raises(ValueError, match="fraction"):
            split_by_image(index, fraction, 0)
    with pytest.raises(ValueError, match="two parts"):
        split_by_image(make_index([1]), 0.5, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"boxes": np.zeros((3, 4))},
        {"boxes": np.zeros((2, 4), np.float32)},
        {"labels": np.array([0, 1, 3], np.int32)},
        {"offsets": np.array([0, 4, 3], np.int64)},
        {"offsets": np.array([0, 2, 2], np.int64)},
        {"sizes": np.zeros((1, 2), np.int32)},
    ],
)
def test_inconsistent_arrays_are_refused(change):
    with pytest.raises(ValueError, match=f"DetectionIndex.{next(iter(change))}"):
        dataclasses.replace(make_index([2, 1]), **change)


def with_regions(counts, region_counts):
    index = make_index(counts)
    total = sum(region_counts)
    return dataclasses.replace(
        index,
        difficult=np.arange(len(index.labels)) % 2 == 0,
        areas=np.arange(len(index.labels), dtype=np.float32),
        regions=-np.arange(4 * total, dtype=np.float32).reshape(-1, 4),
        region_labels=(np.arange(total) % 4 - 1).astype(np.int32),
        region_offsets=np.concatenate([[0], np.cumsum(region_counts)]).astype(np.int64),
        class_ids=(3, 5, 90),
        image_ids=tuple(f"image{i}" for i in range(len(counts))),
    )


def test_flags_and_regions_follow_their_images():
    index = with_regions([2, 0, 3, 1], [1, 2, 0, 3])
    part = index.subset([3, 1, 2])
    assert part.image_ids == ("image3", "image1", "image2") and part.class_ids == (3, 5, 90)
    assert part.difficult.tolist() == index.difficult[[5, 2, 3, 4]].tolist()
    assert part.areas.tolist() == [5, 2, 3, 4]
    for position, image_id in enumerate([3, 1, 2]):
        for got, expected in zip(
            part.regions_of(position), index.regions_of(image_id), strict=True
        ):
            assert np.array_equal(got, expected)
    assert part.original_class_id(1) == 5 and part.original_image_id(0) == "image3"


def test_what_is_not_given_is_plain():
    index = make_index([2, 1])
    assert not index.difficult.any() and index.areas.tolist() == [4, 4, 4]
    assert index.regions.shape == (0, 4) and index.regions_of(1)[1].shape == (0,)
    assert index.original_class_id(2) == 2 and index.original_image_id(1) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"difficult": np.zeros(2, bool)},
        {"areas": np.zeros(3)},
        {"regions": np.zeros((1, 4), np.float32)},
        {"region_labels": np.array([-2], np.int32), "regions": np.zeros((1, 4), np.float32)},
        {"region_labels": np.array([3], np.int32), "regions": np.zeros((1, 4), np.float32)},
        {"class_ids": (1, 2)},
        {"image_ids": ("a",)},
    ],
)
def test_inconsistent_flags_are_refused(change):
    if "region_labels" in change:
        change["region_offsets"] = np.array([0, 0, 1], np.int64)
    with pytest.raises(ValueError, match=f"DetectionIndex.{next(iter(change))}"):
        dataclasses.replace(make_index([2, 1]), **change)
