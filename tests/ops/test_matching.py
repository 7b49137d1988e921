"""Matching against a plain loop, the official matcher, and the promises of its docstring."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m2det_jax import ops

HEIGHT, WIDTH = 48, 80
ANCHORS = ops.ssd_anchors([(6, 10), (3, 5)], (HEIGHT, WIDTH), sizes=(10, 22, 40))


def random_boxes(rng, count, smallest=1.0, largest=30.0):
    start = rng.uniform(0, (WIDTH, HEIGHT), (count, 2))
    size = np.exp(rng.uniform(np.log(smallest), np.log(largest), (count, 2)))
    boxes = np.concatenate([start, np.minimum(start + size, (WIDTH, HEIGHT))], axis=1)
    return boxes.astype(np.float32)


def affinity_of(boxes, anchors):
    """IoU; without any, minus the summed distance of the coordinates."""
    overlap = np.asarray(ops.iou(boxes, anchors))
    distance = np.zeros_like(overlap)
    for i in range(4):
        distance += np.abs(boxes[:, i][:, None] - anchors[:, i][None])
    return overlap, np.where(overlap > 0, overlap, -distance)


def match_by_loops(anchors, boxes, mask, positive_threshold, negative_threshold):
    overlap, affinity = affinity_of(boxes, anchors)
    overlap = np.where(mask[:, None], overlap, -1)
    index, best = overlap.argmax(axis=0), overlap.max(axis=0)
    owner = np.full(len(anchors), -1)
    waiting = [i for i in range(len(boxes)) if mask[i]]
    while waiting and (owner < 0).any():
        wishes = {}
        for i in waiting:
            anchor = int(np.where(owner < 0, affinity[i], -np.inf).argmax())
            rival = wishes.get(anchor)
            if rival is None or affinity[i, anchor] > affinity[rival, anchor]:
                wishes[anchor] = i
        for anchor, i in wishes.items():
            owner[anchor] = i
        waiting = [i for i in waiting if i not in wishes.values()]
    forced = owner >= 0
    return (
        np.where(forced, owner, index),
        forced | (best >= positive_threshold),
        ~forced & (best < negative_threshold),
    )


@functools.partial(jax.jit, static_argnames=("positive", "negative", "chunk_size"))
def match(anchors, boxes, mask, positive=0.5, negative=0.4, chunk_size=32):
    return ops.match(
        anchors,
        boxes,
        mask,
        positive_threshold=positive,
        negative_threshold=negative,
        chunk_size=chunk_size,
    )


def assert_same(matches, expected):
    for got, want, field in zip(matches, expected, matches._fields, strict=True):
        np.testing.assert_array_equal(got, want, err_msg=field)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("thresholds", [(0.5, 0.4), (0.5, 0.5), (0.7, 0.3)])
def test_equals_a_plain_loop(seed, thresholds):
    rng = np.random.default_rng(seed)
    boxes = random_boxes(rng, 40)
    boxes[20:23] = boxes[17]  # three boxes that want the same anchor with the same IoU
    mask = rng.uniform(size=40) < (0.2, 1.1)[seed % 2]
    expected = match_by_loops(ANCHORS, boxes, mask, *thresholds)
    assert_same(match(ANCHORS, boxes, mask, *thresholds), expected)


@pytest.mark.parametrize("chunk_size", [1, 7, 32, 100])
def test_chunks_change_nothing(chunk_size):
    boxes = random_boxes(np.random.default_rng(7), 40)
    mask = np.arange(40) < 33
    assert_same(match(ANCHORS, boxes, mask, chunk_size=chunk_size), match(ANCHORS, boxes, mask))


def test_matching_by_hand():
    anchors = [[0, 0, 10, 10], [0, 0, 10, 20], [30, 0, 40, 10], [60, 0, 70, 9]]
    anchors = np.array(anchors, np.float32)
    boxes = np.array([[0, 0, 10, 10], [0, 1, 10, 10], [38, 0, 48, 10]], np.float32)
    # Box 0 takes anchor 0 (IoU 1) from box 1 (0.9), which goes to anchor 1 although its IoU there
    # is 0.45; box 2 has IoU 1/9 at best, and is forced all the same.
    matches = match(anchors, boxes, np.ones(3, bool))
    np.testing.assert_array_equal(matches.box_index[:3], [0, 1, 2])
    np.testing.assert_array_equal(matches.positive, [True, True, True, False])
    np.testing.assert_array_equal(matches.negative, [False, False, False, True])


def test_anchors_between_the_thresholds_are_neither():
    anchors = np.array([[0, 0, 10, 10], [0, 0, 10, 22], [0, 0, 10, 40]], np.float32)
    matches = match(anchors, np.array([[0, 0, 10, 10]]), np.ones(1, bool))
    np.testing.assert_array_equal(matches.positive, [True, False, False])
    np.testing.assert_array_equal(matches.negative, [False, False, True])


@pytest.mark.parametrize("seed", range(4))
def test_every_box_has_an_anchor_of_its_own(seed):
    rng = np.random.default_rng(seed)
    boxes = random_boxes(rng, 120, smallest=0.5, largest=4)
    boxes[::7] = boxes[3]
    matches = match(ANCHORS, boxes, np.ones(120, bool))
    assert set(np.asarray(matches.box_index)[np.asarray(matches.positive)]) == set(range(120))


def test_a_box_without_overlap_gets_the_nearest_anchor():
    anchors = np.array([[0, 0, 8, 8], [50, 0, 58, 8], [52, 0, 60, 40]], np.float32)
    boxes = np.array([[70, 0, 76, 9], [20, 4, 20, 4]], np.float32)  # outside; and of zero area
    matches = match(anchors, boxes, np.ones(2, bool))
    np.testing.assert_array_equal(matches.positive, [True, True, False])
    np.testing.assert_array_equal(matches.box_index[:2], [1, 0])


def test_more_boxes_than_anchors_ends_with_every_anchor_taken():
    rng = np.random.default_rng(3)
    boxes, anchors = random_boxes(rng, 50), ANCHORS[::60]
    mask = np.ones(50, bool)
    matches = match(anchors, boxes, mask)
    assert matches.positive.all()
    assert len(set(np.asarray(matches.box_index))) == len(anchors)
    assert_same(matches, match_by_loops(anchors, boxes, mask, 0.5, 0.4))


@pytest.mark.parametrize("padding", [0.0, np.nan, np.inf, 20.0])
def test_padding_changes_nothing(padding):
    boxes = random_boxes(np.random.default_rng(4), 5)
    padded = np.concatenate([boxes, np.full((59, 4), padding, np.float32)])
    padded[40:, 2:] += 10
    assert_same(match(ANCHORS, padded, np.arange(64) < 5), match(ANCHORS, boxes, np.ones(5, bool)))


@pytest.mark.parametrize("count", [0, 3])
def test_without_objects_everything_is_negative(count):
    matches = match(ANCHORS, np.zeros((count, 4), np.float32), np.zeros(count, bool))
    assert not matches.positive.any() and matches.negative.all()
    assert (matches.box_index == 0).all()


def test_permuting_the_boxes_permutes_the_result():
    rng = np.random.default_rng(5)
    boxes, order = random_boxes(rng, 20), rng.permutation(20)
    mask = np.ones(20, bool)
    one, other = match(ANCHORS, boxes, mask), match(ANCHORS, boxes[order], mask)
    np.testing.assert_array_equal(one.positive, other.positive)
    positive = np.asarray(one.positive)
    np.testing.assert_array_equal(
        np.asarray(one.box_index)[positive], order[np.asarray(other.box_index)][positive]
    )


def test_vmap_over_images_equals_one_at_a_time():
    rng = np.random.default_rng(6)
    boxes = np.stack([random_boxes(rng, 12) for _ in range(4)])
    mask = np.arange(12)[None] < np.array([12, 0, 5, 1])[:, None]
    batched = jax.jit(jax.vmap(ops.match, in_axes=(None, 0, 0)))(ANCHORS, boxes, mask)
    for i in range(4):
        one = match(ANCHORS, boxes[i], mask[i])
        assert_same(jax.tree.map(lambda x, i=i: x[i], batched), one)


def test_a_crowd_fits_in_memory():
    anchors = jax.ShapeDtypeStruct((32_760, 4), jnp.float32)
    boxes = jax.ShapeDtypeStruct((5_000, 4), jnp.float32)
    mask = jax.ShapeDtypeStruct((5_000,), bool)
    memory = jax.jit(ops.match).lower(anchors, boxes, mask).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 50e6


def test_targets_say_class_and_deltas_of_positives_only():
    rng = np.random.default_rng(8)
    boxes, labels = random_boxes(rng, 9, smallest=6), rng.integers(0, 5, 9)
    mask = np.arange(9) < 7
    targets = jax.jit(ops.assign_targets)(ANCHORS, boxes, labels, mask)
    matches = match(ANCHORS, boxes, mask)
    positive = np.asarray(targets.positive)
    assert targets.labels.dtype == jnp.int32 and targets.deltas.dtype == jnp.float32
    np.testing.assert_array_equal(positive, matches.positive)
    np.testing.assert_array_equal(targets.negative, matches.negative)
    index = np.asarray(matches.box_index)[positive]
    np.testing.assert_array_equal(np.asarray(targets.labels)[positive], labels[index])
    assert (np.asarray(targets.labels)[~positive] == -1).all()
    assert (np.asarray(targets.deltas)[~positive] == 0).all()
    decoded = ops.decode(targets.deltas, ANCHORS)[positive]
    np.testing.assert_allclose(decoded, boxes[index], atol=1e-3)


def test_targets_without_any_box_slot():
    targets = jax.jit(ops.assign_targets)(
        ANCHORS, np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool)
    )
    assert targets.negative.all() and np.isfinite(targets.deltas).all()


def test_equals_the_official_matcher(reference_dir):
    # In its units, images of side 1: small boxes have the same IoU with several anchors but for the
    # rounding, which is another in pixels.
    reference = np.load(reference_dir / "official_ops.npz")
    anchors = ops.cxcywh_to_xyxy(reference["anchors/320/boxes"])
    assign = jax.jit(
        functools.partial(ops.assign_targets, positive_threshold=0.5, negative_threshold=0.5)
    )
    for image in range(3):
        truth = reference[f"match/gt{image}"]
        padded = np.zeros((20, 5), np.float32)
        padded[: len(truth)] = truth
        mask = np.arange(20) < len(truth)
        targets = assign(anchors, padded[:, :4], padded[:, 4].astype(np.int32) - 1, mask)
        expected = reference["match/labels"][image].astype(np.int32) - 1
        np.testing.assert_array_equal(targets.labels, expected)
        np.testing.assert_array_equal(targets.negative, expected < 0)
        of_image = reference["match/positive_index"][:, 0] == image
        index = reference["match/positive_index"][of_image, 1]
        np.testing.assert_allclose(
            np.asarray(targets.deltas)[index], reference["match/positive_loc"][of_image], atol=1e-4
        )


def test_errors_say_what_to_change():
    boxes, mask = np.zeros((1, 4), np.float32), np.ones(1, bool)
    with pytest.raises(ValueError, match="negative_threshold: expected at most positive"):
        ops.match(ANCHORS, boxes, mask, positive_threshold=0.3)
    with pytest.raises(ValueError, match="anchors: expected at least one"):
        ops.match(ANCHORS[:0], boxes, mask)


def test_a_box_with_nan_ends_and_shows_in_its_deltas():
    anchors = np.array([[0, 0, 8, 8], [8, 0, 16, 8], [0, 8, 8, 16]], np.float32)
    boxes = np.array([[np.nan, 0, 8, 8], [8, 0, 16, 8]], np.float32)
    arguments = anchors, boxes, np.array([1, 2]), np.array([True, True])
    targets = jax.jit(ops.assign_targets)(*arguments)
    assert targets.labels.tolist().count(2) == 1
    assert np.isnan(targets.deltas).any()
