"""Boxes against plain loops, hand-made cases, and the official decoding."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m2det_jax import ops

OVERLAPS = {"iou": ops.iou, "giou": ops.giou, "diou": ops.diou, "ciou": ops.ciou}


def random_boxes(rng: np.random.Generator, count: int, height: int = 90, width: int = 160):
    start = rng.uniform(0, (width, height), (count, 2))
    size = rng.uniform(1, (width / 2, height / 2), (count, 2))
    return np.concatenate([start, start + size], axis=1).astype(np.float32)


def overlap_of_pair(name: str, a, b) -> float:
    """The textbook formulas, for one pair, in Python floats."""
    a, b = [float(v) for v in a], [float(v) for v in b]
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area_a, area_b = (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
    union = area_a + area_b - width * height
    iou = width * height / union
    hull = (max(a[2], b[2]) - min(a[0], b[0]), max(a[3], b[3]) - min(a[1], b[1]))
    if name == "iou":
        return iou
    if name == "giou":
        return iou - (hull[0] * hull[1] - union) / (hull[0] * hull[1])
    dx, dy = (a[0] + a[2] - b[0] - b[2]) / 2, (a[1] + a[3] - b[1] - b[3]) / 2
    diou = iou - (dx**2 + dy**2) / (hull[0] ** 2 + hull[1] ** 2)
    if name == "diou":
        return diou
    angles = [math.atan((box[2] - box[0]) / (box[3] - box[1])) for box in (a, b)]
    v = 4 / math.pi**2 * (angles[0] - angles[1]) ** 2
    return diou - v * v / (1 - iou + v) if v else diou


@pytest.mark.parametrize("name", OVERLAPS)
def test_overlap_equals_the_formula_for_every_pair(name):
    rng = np.random.default_rng(0)
    a, b = random_boxes(rng, 13), random_boxes(rng, 7)
    b[0] = a[3]
    expected = [[overlap_of_pair(name, x, y) for y in b] for x in a]
    got = jax.jit(OVERLAPS[name])(a, b)
    assert got.shape == (13, 7) and got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, atol=2e-6)


def test_iou_by_hand():
    a = np.array([[0, 0, 10, 4]])
    b = np.array([[5, 0, 15, 4], [0, 0, 10, 4], [10, 0, 20, 4], [2, 1, 4, 3]])
    expected = [[20 / 60, 1, 0, 4 / 40]]  # x2 is an exclusive edge: touching boxes share nothing
    np.testing.assert_allclose(jax.jit(ops.iou)(a, b), expected, rtol=1e-6)


@pytest.mark.parametrize("reduce", [lambda x: x, lambda x: x.max(axis=1), lambda x: x.max(axis=0)])
def test_iou_rounds_alike_whatever_it_is_compiled_into(reduce):
    # Equal to numpy to the last bit: no fused multiply-add, which would break ties at random.
    rng = np.random.default_rng(10)
    a, b = random_boxes(rng, 30), random_boxes(rng, 900)
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.maximum(high - low, 0).prod(axis=-1)
    areas = [(x[:, 2:] - x[:, :2]).prod(axis=-1) for x in (a, b)]
    expected = shared / (areas[0][:, None] + areas[1][None, :] - shared)
    got = jax.jit(lambda x, y: reduce(ops.iou(x, y)))(a, b)
    np.testing.assert_array_equal(got, reduce(expected))


def test_giou_of_boxes_apart_by_hand():
    got = jax.jit(ops.giou)(np.array([[0.0, 0, 2, 1]]), np.array([[3.0, 0, 5, 1]]))
    np.testing.assert_allclose(got, [[-1 / 5]], rtol=1e-6)


@pytest.mark.parametrize("name", OVERLAPS)
def test_overlap_is_symmetric_and_ignores_shift_and_scale(name):
    rng = np.random.default_rng(1)
    a, b = random_boxes(rng, 9), random_boxes(rng, 11)
    overlap = jax.jit(OVERLAPS[name])
    np.testing.assert_allclose(overlap(a, b), overlap(b, a).T, atol=1e-6)
    shift = np.array([8, -16, 8, -16], np.float32)
    np.testing.assert_allclose(overlap(a * 2 + shift, b * 2 + shift), overlap(a, b), atol=1e-5)
    np.testing.assert_allclose(np.diag(overlap(a, a)), 1, atol=1e-6)


DEGENERATE = np.array(
    [[5, 5, 5, 5], [5, 5, 5, 9], [5, 5, 9, 5], [9, 9, 5, 5], [0, 0, 0, 0], [4, 4, 8, 8]], np.float32
)


@pytest.mark.parametrize("name", OVERLAPS)
def test_degenerate_boxes_give_finite_values_and_gradients(name):
    overlap = OVERLAPS[name]
    value, gradients = jax.jit(
        jax.value_and_grad(lambda a, b: overlap(a, b).sum(), argnums=(0, 1))
    )(DEGENERATE, DEGENERATE)
    assert np.isfinite(value)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    matrix = np.asarray(jax.jit(overlap)(DEGENERATE, DEGENERATE))
    assert np.isfinite(matrix).all()
    if name == "iou":
        assert (matrix[:5] == 0).all() and (matrix[:, :5] == 0).all() and matrix[5, 5] == 1


@pytest.mark.parametrize("name", OVERLAPS)
def test_gradient_equals_finite_differences(name):
    rng = np.random.default_rng(2)
    a, b = random_boxes(rng, 3), random_boxes(rng, 4)
    # ciou holds the weight of its shape term constant, so its gradient is not that of its value.
    b = b if name != "ciou" else np.concatenate([b[:, :2], b[:, :2] + 20], axis=1)
    a = a if name != "ciou" else np.concatenate([a[:, :2], a[:, :2] + 10], axis=1)
    f = jax.jit(lambda x: OVERLAPS[name](x, b).sum())
    gradient = np.asarray(jax.grad(f)(a))
    if name == "ciou":
        # Squares, all of one shape: the shape term is 0, and so is its gradient.
        of_diou = jax.grad(lambda x: ops.diou(x, b).sum())(a)
        np.testing.assert_allclose(gradient, of_diou, atol=1e-6)
        return
    step = 0.05
    for i in range(3):
        for j in range(4):
            move = np.zeros_like(a)
            move[i, j] = step
            slope = (float(f(a + move)) - float(f(a - move))) / (2 * step)
            assert abs(slope - gradient[i, j]) < 2e-3


def test_pull_of_giou_brings_separate_boxes_together():
    target = np.array([[50.0, 40, 70, 60]], np.float32)
    box = jnp.array([[0.0, 0, 10, 10]])
    gradient = jax.jit(jax.grad(lambda x: ops.giou(x, target)[0, 0]))(box)
    assert (gradient[0, 2:] > 0).all()


def test_formats_round_trip_on_any_leading_axes():
    rng = np.random.default_rng(3)
    boxes = random_boxes(rng, 24).reshape(2, 3, 4, 4)
    there = jax.jit(ops.xyxy_to_cxcywh)(boxes)
    np.testing.assert_allclose(jax.jit(ops.cxcywh_to_xyxy)(there), boxes, atol=1e-4)
    np.testing.assert_allclose(
        jax.jit(ops.xyxy_to_cxcywh)(np.array([2, 10, 6, 40])), [4, 25, 4, 30]
    )


def test_area_counts_inverted_boxes_as_nothing():
    boxes = np.array([[0, 0, 4, 5], [4, 0, 0, 5], [4, 5, 0, 0]])
    np.testing.assert_array_equal(jax.jit(ops.area)(boxes), [20, 0, 0])


def test_clip_takes_height_first():
    boxes = np.array([[-5.0, -5, 500, 500], [10, 20, 30, 40]])
    got = jax.jit(lambda x: ops.clip(x, (100, 300)))(boxes)
    np.testing.assert_array_equal(got, [[0, 0, 300, 100], [10, 20, 30, 40]])


def test_encode_by_hand():
    # Anchor 20 x 10 at (10, 5); box 40 x 10 at (14, 6).
    got = jax.jit(ops.encode)(np.array([[-6, 1, 34, 11]]), np.array([[0, 0, 20, 10]]))
    np.testing.assert_allclose(got, [[4 / 20 / 0.1, 1 / 10 / 0.1, math.log(2) / 0.2, 0]], rtol=1e-6)


def test_encode_decode_round_trip_with_any_variances():
    rng = np.random.default_rng(4)
    anchors = random_boxes(rng, 40)
    boxes = random_boxes(rng, 40)
    for variances in ((0.1, 0.2), (1.0, 1.0)):
        deltas = jax.jit(lambda b, a, v=variances: ops.encode(b, a, v))(boxes, anchors)
        back = jax.jit(lambda d, a, v=variances: ops.decode(d, a, v))(deltas, anchors)
        np.testing.assert_allclose(back, boxes, rtol=1e-4, atol=1e-3)


def test_extreme_ratios_survive_the_round_trip():
    anchors = np.array([[0, 0, 0.5, 4000]], np.float32)
    boxes = np.array([[0, 0, 8000, 0.25]], np.float32)
    back = jax.jit(lambda b: ops.decode(ops.encode(b, anchors), anchors))(boxes)
    got, expected = ops.xyxy_to_cxcywh(back), ops.xyxy_to_cxcywh(boxes)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-3)


def test_leading_axes_of_anchors_are_broadcast():
    rng = np.random.default_rng(5)
    anchors, deltas = random_boxes(rng, 6), rng.normal(size=(3, 6, 4)).astype(np.float32)
    got = jax.jit(ops.decode)(deltas, anchors)
    assert got.shape == (3, 6, 4)
    np.testing.assert_allclose(got[1], jax.jit(ops.decode)(deltas[1], anchors), rtol=1e-6)
    np.testing.assert_allclose(jax.jit(ops.encode)(got, anchors), deltas, atol=1e-3)


def test_wild_deltas_decode_to_finite_boxes_with_finite_gradients():
    anchors = np.array([[0, 0, 700, 700]], np.float32)
    deltas = np.array([[1e4, -1e4, 1e4, 1e8]], np.float32)
    boxes, gradient = jax.jit(jax.value_and_grad(lambda d: ops.decode(d, anchors).sum()))(deltas)
    assert np.isfinite(boxes) and np.isfinite(gradient).all()
    decoded = ops.decode(deltas, anchors)
    assert np.isfinite(ops.iou(decoded, decoded)).all()


def test_zero_area_boxes_encode_to_finite_deltas():
    anchors = np.array([[0, 0, 20, 10]], np.float32)
    assert np.isfinite(jax.jit(ops.encode)(np.zeros((1, 4), np.float32), anchors)).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, np.float64, np.int32])
def test_any_dtype_is_computed_in_float32(dtype):
    a = np.array([[0, 0, 255, 3], [1, 2, 9, 7]])
    b = np.array([[1, 0, 255, 3], [0, 0, 1, 1]])
    expected = jax.jit(ops.iou)(a.astype(np.float32), b.astype(np.float32))
    got = jax.jit(ops.iou)(a.astype(dtype), b.astype(dtype))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    for function in (ops.encode, ops.decode):
        assert jax.jit(function)(a.astype(dtype), b.astype(dtype)).dtype == jnp.float32


def test_vmap_over_a_batch_equals_a_loop():
    rng = np.random.default_rng(6)
    a = np.stack([random_boxes(rng, 5) for _ in range(3)])
    b = np.stack([random_boxes(rng, 8) for _ in range(3)])
    got = jax.jit(jax.vmap(ops.ciou))(a, b)
    np.testing.assert_allclose(got, [ops.ciou(a[i], b[i]) for i in range(3)], atol=1e-6)


def test_decode_equals_the_official_code(reference_dir):
    reference = np.load(reference_dir / "official_ops.npz")
    anchors = ops.cxcywh_to_xyxy(reference["anchors/320/boxes"][:500] * 320)
    loc = np.random.default_rng(123).standard_normal((3, len(reference["anchors/320/boxes"]), 4))
    boxes = jax.jit(ops.decode)(loc[0][:500].astype(np.float32), anchors)
    np.testing.assert_allclose(boxes / 320, reference["decode/boxes"], atol=2e-6)
