"""Losses against the formulas in float64, at the extremes, and the official box loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m2det_jax import ops


def focal_by_formula(logits, targets, alpha, gamma):
    logits = np.asarray(logits, np.float64)
    probability = 1 / (1 + np.exp(-logits))
    p_t = np.where(targets, probability, 1 - probability)
    return -np.where(targets, alpha, 1 - alpha) * (1 - p_t) ** gamma * np.log(p_t)


@pytest.mark.parametrize("alpha", [0.25, 0.6])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 3])
def test_focal_loss_equals_the_formula(alpha, gamma):
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(7, 9)) * 3, rng.integers(0, 2, (7, 9))
    logits[0, 0] = 0
    got = jax.jit(lambda x, t: ops.sigmoid_focal_loss(x, t, alpha=alpha, gamma=gamma))(
        logits, targets
    )
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, focal_by_formula(logits, targets, alpha, gamma), rtol=1e-5)


def test_focal_loss_by_hand():
    # p = 1/2: 0.25 (target 1) or 0.75 (target 0) times 0.5^2 times log 2.
    got = jax.jit(ops.sigmoid_focal_loss)(np.zeros(2, np.float32), np.array([True, False]))
    np.testing.assert_allclose(got, np.array([0.25, 0.75]) / 4 * np.log(2), rtol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_gradient_equals_the_derivative(gamma):
    logits = np.array([-6, -2, -0.5, 0, 0.7, 3, 5], np.float32)
    for target in (0, 1):
        targets = np.full(7, target)
        loss = jax.jit(lambda x, t=targets: ops.sigmoid_focal_loss(x, t, gamma=gamma).sum())
        step = 1e-6
        high = focal_by_formula(logits + np.float64(step), targets, 0.25, gamma)
        low = focal_by_formula(logits - np.float64(step), targets, 0.25, gamma)
        np.testing.assert_allclose(
            jax.grad(loss)(logits), (high - low) / (2 * step), rtol=1e-3, atol=1e-6
        )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_survives_extreme_logits(dtype, gamma):
    logits = jnp.array([1e4, -1e4, 1e4, -1e4, 100, -100], dtype)
    targets = np.array([1, 1, 0, 0, 0, 1])
    value, gradient = jax.jit(
        jax.value_and_grad(lambda x: ops.sigmoid_focal_loss(x, targets, gamma=gamma).sum())
    )(logits)
    each = jax.jit(lambda x: ops.sigmoid_focal_loss(x, targets, gamma=gamma))(logits)
    assert np.isfinite(value) and np.isfinite(gradient.astype(jnp.float32)).all()
    size = np.asarray(jnp.abs(logits).astype(jnp.float32))
    weight = np.array([0, 0.25, 0.75, 0, 0.75, 0.25])
    np.testing.assert_allclose(each, weight * size, rtol=1e-5)


def test_smooth_l1_by_hand():
    pred, target = np.array([0.0, 0.5, 1, 3, -3]), np.zeros(5)
    one = jax.jit(lambda p, t: ops.smooth_l1(p, t, beta=1))(pred, target)
    np.testing.assert_allclose(one, [0, 0.125, 0.5, 2.5, 2.5], rtol=1e-6)
    sharp = jax.jit(lambda p, t: ops.smooth_l1(p, t, beta=1 / 9))(pred, target)
    np.testing.assert_allclose(sharp[1:], np.abs(pred[1:]) - 1 / 18, rtol=1e-6)
    none = jax.jit(lambda p, t: ops.smooth_l1(p, t, beta=0))(pred, target)
    np.testing.assert_allclose(none, np.abs(pred))
    with pytest.raises(ValueError, match="beta"):
        ops.smooth_l1(pred, target, beta=-1.0)


def test_smooth_l1_gradient_is_bounded_by_one():
    gradient = jax.jit(jax.grad(lambda p: ops.smooth_l1(p, jnp.zeros(4), beta=0.5).sum()))
    got = gradient(jnp.array([-1e30, 0.1, 0.0, 7]))
    np.testing.assert_allclose(got, [-1, 0.2, 0, 1], rtol=1e-6)


def random_case(seed, batch=3, anchors=40, classes=5):
    rng = np.random.default_rng(seed)
    kind = rng.choice(3, (batch, anchors), p=(0.2, 0.6, 0.2))  # positive, negative, ignored
    positive = kind == 0
    targets = ops.Targets(
        labels=np.where(positive, rng.integers(0, classes, kind.shape), -1).astype(np.int32),
        deltas=np.where(positive[..., None], rng.normal(size=(batch, anchors, 4)), 0).astype("f4"),
        positive=positive,
        negative=kind == 1,
    )
    logits = rng.normal(size=(batch, anchors, classes)).astype(np.float32)
    deltas = rng.normal(size=(batch, anchors, 4)).astype(np.float32)
    return logits, deltas, targets


def test_detection_losses_equal_a_plain_loop():
    logits, deltas, targets = random_case(1)
    box = classes = 0.0
    for b, a in np.ndindex(targets.positive.shape):
        if targets.positive[b, a] or targets.negative[b, a]:
            onehot = np.arange(5) == targets.labels[b, a]
            classes += focal_by_formula(logits[b, a], onehot, 0.3, 1.5).sum()
        if targets.positive[b, a]:
            d = np.abs(deltas[b, a] - targets.deltas[b, a])
            box += np.where(d < 0.5, d * d, d - 0.25).sum()
    count = targets.positive.sum()
    got = jax.jit(
        lambda *x: ops.detection_losses(*x, alpha=0.3, gamma=1.5, beta=0.5, box_weight=2.0)
    )(logits, deltas, targets)
    assert set(got) == {"loss", "loss_class", "loss_box", "num_positives"}
    assert all(value.dtype == jnp.float32 and value.shape == () for value in got.values())
    assert got["num_positives"] == count
    np.testing.assert_allclose(got["loss_class"], classes / count, rtol=1e-5)
    np.testing.assert_allclose(got["loss_box"], box / count, rtol=1e-5)
    np.testing.assert_allclose(got["loss"], (classes + 2 * box) / count, rtol=1e-5)


def test_alpha_of_each_class():
    logits, deltas, targets = random_case(6)
    alphas = np.array([0.1, 0.9, 0.25, 0.5, 0.0], np.float32)
    run = jax.jit(lambda alpha: ops.detection_losses(logits, deltas, targets, alpha=alpha))
    got = run(alphas)
    used = (targets.positive | targets.negative)[..., None]
    onehot = np.arange(5) == np.where(targets.positive, targets.labels, -1)[..., None]
    expected = np.where(used, focal_by_formula(logits, onehot, alphas, 2), 0).sum()
    np.testing.assert_allclose(got["loss_class"] * targets.positive.sum(), expected, rtol=1e-5)
    for name, value in run(0.3).items():
        np.testing.assert_allclose(run(np.full(5, 0.3, "f4"))[name], value, rtol=1e-6)


def test_ignored_anchors_and_regressions_of_negatives_have_no_influence():
    logits, deltas, targets = random_case(2)
    ignored = ~(targets.positive | targets.negative)
    gradients = jax.jit(
        jax.grad(lambda c, d: ops.detection_losses(c, d, targets)["loss"], argnums=(0, 1))
    )(logits, deltas)
    assert (np.asarray(gradients[0])[ignored] == 0).all()
    assert (np.asarray(gradients[0])[~ignored] != 0).all()
    assert (np.asarray(gradients[1])[~targets.positive] == 0).all()
    assert (np.asarray(gradients[1])[targets.positive] != 0).any(axis=-1).all()


def test_a_batch_without_objects_is_safe():
    logits, deltas, targets = random_case(3)
    nothing = np.zeros_like(targets.positive)
    targets = targets._replace(positive=nothing, negative=~nothing)
    value, gradient = jax.jit(
        jax.value_and_grad(lambda c: ops.detection_losses(c, deltas, targets)["loss"])
    )(logits)
    expected = focal_by_formula(logits, np.zeros(logits.shape), 0.25, 2).sum()
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert np.isfinite(gradient).all()


def test_parts_of_a_batch_add_up_to_the_whole():
    logits, deltas, targets = random_case(4, batch=4)
    count = targets.positive.sum()
    loss = jax.jit(lambda *x: ops.detection_losses(*x, num_positives=count)["loss"])
    whole = (logits, deltas, targets)
    parts = [loss(*jax.tree.map(lambda x, i=i: x[i : i + 2], whole)) for i in (0, 2)]
    np.testing.assert_allclose(sum(parts), loss(logits, deltas, targets), rtol=1e-5)


def test_bfloat16_outputs_are_summed_in_float32():
    logits, deltas, targets = random_case(5, anchors=3000)
    low = [jnp.asarray(x, jnp.bfloat16) for x in (logits, deltas)]
    losses = jax.jit(ops.detection_losses)
    got = losses(*low, targets)
    expected = losses(*[x.astype(jnp.float32) for x in low], targets)
    for name in expected:
        assert got[name].dtype == jnp.float32
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-6)


def test_box_loss_equals_the_official_one(reference_dir):
    reference = np.load(reference_dir / "official_ops.npz")
    labels = reference["match/labels"].astype(np.int32) - 1
    goal = np.zeros((*labels.shape, 4), np.float32)
    goal[tuple(reference["match/positive_index"].T)] = reference["match/positive_loc"]
    targets = ops.Targets(labels, goal, labels >= 0, labels < 0)
    deltas = np.random.default_rng(123).standard_normal(goal.shape).astype(np.float32)
    logits = np.zeros((*labels.shape, 5), np.float32)
    got = jax.jit(ops.detection_losses)(logits, deltas, targets)
    np.testing.assert_allclose(got["loss_box"], reference["loss/multibox"][0], rtol=1e-5)
