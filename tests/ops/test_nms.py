"""Suppression against the greedy loop, and against the official one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m2det_jax import ops


def random_boxes(rng, count, height=60, width=110):
    start = rng.uniform(0, (width, height), (count, 2))
    size = rng.uniform(5, 40, (count, 2))
    return np.concatenate([start, start + size], axis=1).astype(np.float32)


def greedy(boxes, scores, groups, iou_threshold, score_threshold=-np.inf):
    """Indices kept by the textbook loop."""
    overlap = np.asarray(ops.iou(boxes, boxes))
    kept = []
    for i in np.argsort(-scores, kind="stable"):
        if not scores[i] > score_threshold:
            continue
        if all(overlap[i, j] <= iou_threshold or groups[i] != groups[j] for j in kept):
            kept.append(int(i))
    return kept


@functools.partial(jax.jit, static_argnames=("max_outputs",))
def nms(boxes, scores, iou_threshold, max_outputs, score_threshold=-np.inf):
    return ops.nms(
        boxes,
        scores,
        iou_threshold=iou_threshold,
        max_outputs=max_outputs,
        score_threshold=score_threshold,
    )


@pytest.mark.parametrize("count", [1, 37, 512, 1300])  # up to three tiles
@pytest.mark.parametrize("iou_threshold", [0.0, 0.3, 0.7, 1.0])
def test_equals_the_greedy_loop(count, iou_threshold):
    rng = np.random.default_rng(count)
    boxes = random_boxes(rng, count)
    scores = rng.uniform(size=count).round(2).astype(np.float32)  # many ties
    expected = greedy(boxes, scores, np.zeros(count), iou_threshold, 0.2)
    indices, valid = nms(boxes, scores, iou_threshold, count + 5, 0.2)
    assert indices.shape == valid.shape == (count + 5,) and indices.dtype == jnp.int32
    assert int(valid.sum()) == len(expected) and valid[: len(expected)].all()
    np.testing.assert_array_equal(indices[: len(expected)], expected)
    assert (np.asarray(indices)[len(expected) :] == 0).all()


@pytest.mark.parametrize("max_outputs", [1, 4, 60])
def test_stops_at_max_outputs(max_outputs):
    rng = np.random.default_rng(1)
    boxes, scores = random_boxes(rng, 1200), rng.uniform(size=1200).astype(np.float32)
    expected = greedy(boxes, scores, np.zeros(1200), 0.5)[:max_outputs]
    indices, valid = nms(boxes, scores, 0.5, max_outputs)
    assert valid.all()
    np.testing.assert_array_equal(indices, expected)


def test_long_chain_of_suppression():
    # Each box overlaps its neighbours alone: every second one stays.
    x = np.arange(700, dtype=np.float32) * 6
    boxes = np.stack([x, np.zeros(700), x + 10, np.full(700, 10)], axis=1).astype(np.float32)
    scores = np.linspace(1, 0.1, 700).astype(np.float32)
    indices, valid = nms(boxes, scores, 0.2, 400)
    np.testing.assert_array_equal(indices[:350], np.arange(0, 700, 2))
    assert int(valid.sum()) == 350


def test_scores_that_are_no_scores_take_no_part():
    boxes = random_boxes(np.random.default_rng(2), 4)
    scores = np.array([np.nan, 0.5, -np.inf, 0.9], np.float32)
    indices, valid = nms(boxes, scores, 1.0, 4)
    np.testing.assert_array_equal(valid, [True, True, False, False])
    np.testing.assert_array_equal(indices[:2], [3, 1])


def test_no_boxes_at_all():
    indices, valid = nms(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), 0.5, 3)
    assert indices.shape == (3,) and not valid.any()


def multiclass_by_loops(boxes, scores, *, top_k, iou, threshold, max_outputs, agnostic=False):
    flat = scores.reshape(-1)
    pairs = np.argsort(-flat, kind="stable")[:top_k]
    anchor, label = pairs // scores.shape[1], pairs % scores.shape[1]
    groups = np.zeros_like(label) if agnostic else label
    kept = greedy(boxes[anchor], flat[pairs], groups, iou, threshold)[:max_outputs]
    return boxes[anchor][kept], flat[pairs][kept], label[kept]


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("top_k", [10, 150, 5000])
@pytest.mark.parametrize("decimals", [1, 6])
def test_multiclass_equals_loops_over_all_pairs(agnostic, top_k, decimals):
    rng = np.random.default_rng(top_k)
    boxes = random_boxes(rng, 130)
    scores = rng.uniform(size=(130, 7)).round(decimals).astype(np.float32)
    expected = multiclass_by_loops(
        boxes, scores, top_k=top_k, iou=0.4, threshold=0.3, max_outputs=50, agnostic=agnostic
    )
    got = jax.jit(
        lambda b, s: ops.multiclass_nms(
            b,
            s,
            iou_threshold=0.4,
            score_threshold=0.3,
            pre_nms_top_k=top_k,
            max_outputs=50,
            class_agnostic=agnostic,
        )
    )(boxes, scores)
    count = len(expected[0])
    assert got.boxes.shape == (50, 4) and int(got.valid.sum()) == count and got.valid[:count].all()
    for field, want in zip(("boxes", "scores", "labels"), expected, strict=True):
        np.testing.assert_array_equal(getattr(got, field)[:count], want, err_msg=field)
    assert (got.boxes[count:] == 0).all() and (got.scores[count:] == 0).all()
    assert (got.labels[count:] == -1).all()


def test_classes_do_not_suppress_each_other():
    boxes = np.array([[0, 0, 50, 20], [1, 0, 51, 20], [0, 0, 50, 21]], np.float32)
    scores = np.array([[0.9, 0.0], [0.8, 0.0], [0.0, 0.7]], np.float32)
    apart = jax.jit(ops.multiclass_nms)(boxes, scores)
    np.testing.assert_array_equal(apart.labels[:3], [0, 1, -1])
    together = jax.jit(functools.partial(ops.multiclass_nms, class_agnostic=True))(boxes, scores)
    assert int(together.valid.sum()) == 1


def test_at_most_so_many_of_a_class():
    rng = np.random.default_rng(6)
    boxes, scores = random_boxes(rng, 400), rng.uniform(size=(400, 3)).astype(np.float32)
    options = dict(top_k=700, iou=0.6, threshold=0.05, max_outputs=700)
    _, _, labels = everything = multiclass_by_loops(boxes, scores, **options)
    rank = np.array([(labels[:i] == label).sum() for i, label in enumerate(labels)])
    expected = [field[rank < 4][:10] for field in everything]
    got = jax.jit(
        lambda b, s: ops.multiclass_nms(
            b,
            s,
            iou_threshold=0.6,
            pre_nms_top_k=700,
            max_outputs=10,
            max_per_class=4,
        )
    )(boxes, scores)
    assert got.valid.all() and len(expected[0]) == 10
    for field, want in zip(("boxes", "scores", "labels"), expected, strict=True):
        np.testing.assert_array_equal(getattr(got, field), want, err_msg=field)


def test_no_score_above_the_threshold():
    boxes = random_boxes(np.random.default_rng(3), 20)
    got = jax.jit(ops.multiclass_nms)(boxes, np.full((20, 3), 0.01, np.float32))
    assert got.valid.shape == (300,) and not got.valid.any()


def test_vmap_over_images_equals_one_at_a_time():
    rng = np.random.default_rng(4)
    boxes = np.stack([random_boxes(rng, 700) for _ in range(3)])
    scores = rng.uniform(size=(3, 700, 2)).astype(np.float32)
    scores[1] *= 0.04  # nothing to find in the second image
    run = functools.partial(ops.multiclass_nms, pre_nms_top_k=900, max_outputs=40)
    batched = jax.jit(jax.vmap(run))(boxes, scores)
    single = jax.jit(run)
    for i in range(3):
        for got, want in zip(batched, single(boxes[i], scores[i]), strict=True):
            np.testing.assert_array_equal(got[i], want)


def test_bfloat16_is_taken_as_float32():
    rng = np.random.default_rng(5)
    boxes = random_boxes(rng, 60)
    scores = jnp.asarray(rng.uniform(size=(60, 3)), jnp.bfloat16)
    got = jax.jit(ops.multiclass_nms)(boxes, scores)
    want = jax.jit(ops.multiclass_nms)(boxes, scores.astype(jnp.float32))
    assert got.boxes.dtype == got.scores.dtype == jnp.float32
    for one, other in zip(got, want, strict=True):
        np.testing.assert_array_equal(one, other)


def test_equals_the_official_hard_nms(reference_dir):
    reference = np.load(reference_dir / "official_ops.npz")
    detections = reference["nms/dets"]
    boxes = detections[:, :4] + np.array([[0, 0, 1, 1]], np.float32)
    expected = reference["nms/hard_keep_iou0.45_plus1"]
    indices, valid = nms(boxes, detections[:, 4], 0.45, 72)
    assert int(valid.sum()) == len(expected)
    np.testing.assert_array_equal(indices[: len(expected)], expected)
