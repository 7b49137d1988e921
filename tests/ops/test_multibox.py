"""Hard negative mining and its losses: against plain loops, by hand, and the official ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m2det_jax import ops

mine = jax.jit(ops.mine_hard_negatives)


def mine_by_sorting(hardness, positive, negative, ratio):
    """One image at a time: negatives by falling hardness, equal ones by index."""
    chosen = np.zeros_like(positive)
    for image in range(len(hardness)):
        count = min(int(ratio * positive[image].sum()), hardness.shape[1] - 1)
        order = np.argsort(-hardness[image], kind="stable")
        chosen[image, [i for i in order if negative[image, i]][:count]] = True
    return chosen


def random_anchors(seed, batch=4, anchors=300, share=0.05):
    rng = np.random.default_rng(seed)
    kind = rng.choice(3, (batch, anchors), p=(share, 0.9 - share, 0.1))
    return rng, kind == 0, kind == 1


@pytest.mark.parametrize("decimals", [0, 1, 7])  # from many ties to none
@pytest.mark.parametrize("ratio", [0.5, 3.0, 100.0])
def test_mining_equals_a_stable_sort(decimals, ratio):
    rng, positive, negative = random_anchors(decimals)
    positive[1] = False
    hardness = rng.exponential(size=positive.shape).round(decimals).astype(np.float32)
    got = jax.jit(lambda *x: ops.mine_hard_negatives(*x, ratio=ratio))(hardness, positive, negative)
    np.testing.assert_array_equal(got, mine_by_sorting(hardness, positive, negative, ratio))
    assert not got[1].any() and got[0].any()


def test_mining_by_hand():
    positive = np.array([[True, False, False, False, False, False]])
    hardness = np.array([[9.0, 1, 2, 1, 2, 1]])
    found = jax.jit(lambda *x: ops.mine_hard_negatives(*x, ratio=3))(hardness, positive, ~positive)
    np.testing.assert_array_equal(found, [[False, True, True, False, True, False]])
    # All but one at most: 5 of the 6 anchors, and the positive one is none of them.
    many = jax.jit(lambda *x: ops.mine_hard_negatives(*x, ratio=50))(hardness, positive, ~positive)
    np.testing.assert_array_equal(many, ~positive)
    none = mine(hardness, positive, np.zeros_like(positive))
    assert not none.any()


def test_a_broken_anchor_is_among_the_hardest():
    positive = np.array([True, False, False, False, False, False])
    hardness = np.array([1, 5, np.nan, 7, 1, 1], np.float32)
    assert mine(hardness, positive, ~positive).tolist() == [False, True, True, True, False, False]


def random_case(seed, classes=5):
    rng, positive, negative = random_anchors(seed)
    shape = positive.shape
    targets = ops.Targets(
        labels=np.where(positive, rng.integers(0, classes, shape), -1).astype(np.int32),
        deltas=np.where(positive[..., None], rng.normal(size=(*shape, 4)), 0).astype(np.float32),
        positive=positive,
        negative=negative,
    )
    logits = 2 * rng.standard_normal((*shape, classes + 1), np.float32)
    return logits, rng.standard_normal((*shape, 4), np.float32), targets


def losses_by_loops(logits, deltas, targets, ratio, beta):
    logits = np.asarray(logits, np.float64)
    probability = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    background = -np.log(probability[..., 0])
    hard = mine_by_sorting(background, targets.positive, targets.negative, ratio)
    classes = background[hard].sum()
    box = 0.0
    for b, a in np.argwhere(targets.positive):
        classes -= np.log(probability[b, a, targets.labels[b, a] + 1])
        distance = np.abs(deltas[b, a] - targets.deltas[b, a])
        box += np.where(distance < beta, distance**2 / (2 * beta), distance - beta / 2).sum()
    return classes, box


@pytest.mark.parametrize("ratio", [1.0, 3.0])
def test_losses_equal_plain_loops(ratio):
    logits, deltas, targets = random_case(1)
    classes, box = losses_by_loops(logits, deltas, targets, ratio, 0.5)
    count = targets.positive.sum()
    got = jax.jit(
        lambda *x: ops.multibox_losses(*x, negative_ratio=ratio, beta=0.5, box_weight=2.0)
    )(logits, deltas, targets)
    assert set(got) == {"loss", "loss_class", "loss_box", "num_positives"}
    assert all(value.dtype == jnp.float32 and value.shape == () for value in got.values())
    assert got["num_positives"] == count
    np.testing.assert_allclose(got["loss_class"], classes / count, rtol=1e-5)
    np.testing.assert_allclose(got["loss_box"], box / count, rtol=1e-5)
    np.testing.assert_allclose(got["loss"], (classes + 2 * box) / count, rtol=1e-5)


def test_losses_equal_the_official_ones(reference_dir):
    reference = np.load(reference_dir / "official_ops.npz")
    labels = reference["match/labels"].astype(np.int32) - 1
    goal = np.zeros((*labels.shape, 4), np.float32)
    goal[tuple(reference["match/positive_index"].T)] = reference["match/positive_loc"]
    generator = np.random.default_rng(123)
    deltas = generator.standard_normal(goal.shape).astype(np.float32)
    logits = (generator.standard_normal((*labels.shape, 6)) * 2).astype(np.float32)
    targets = ops.Targets(labels, goal, labels >= 0, labels < 0)
    got = jax.jit(ops.multibox_losses)(logits, deltas, targets)
    expected = reference["loss/multibox"]
    np.testing.assert_allclose([got["loss_box"], got["loss_class"]], expected, rtol=1e-5)
    assert got["loss"] == pytest.approx(expected.sum(), rel=1e-5)


def test_only_positives_and_the_hardest_negatives_get_gradients():
    logits, deltas, targets = random_case(2)
    gradients = jax.jit(
        jax.grad(lambda c, d: ops.multibox_losses(c, d, targets)["loss"], argnums=(0, 1))
    )(logits, deltas)
    entropy = jax.nn.logsumexp(logits, axis=-1) - logits[..., 0]
    hard = mine_by_sorting(np.asarray(entropy), targets.positive, targets.negative, 3)
    touched = (np.asarray(gradients[0]) != 0).any(-1)
    np.testing.assert_array_equal(touched, targets.positive | hard)
    np.testing.assert_array_equal((np.asarray(gradients[1]) != 0).any(-1), targets.positive)
    # Softmax minus one-hot, over the positives.
    b, a = np.argwhere(targets.positive)[0]
    onehot = np.arange(6) == targets.labels[b, a] + 1
    expected = (jax.nn.softmax(logits[b, a]) - onehot) / targets.positive.sum()
    np.testing.assert_allclose(gradients[0][b, a], expected, rtol=1e-4, atol=1e-8)


def test_an_image_without_objects_adds_nothing():
    logits, deltas, targets = random_case(3)
    empty = jax.tree.map(np.copy, targets)
    empty.positive[1:], empty.negative[1:] = False, True
    losses = jax.jit(ops.multibox_losses)
    first = jax.tree.map(lambda x: x[:1], (logits, deltas, empty))
    for name, value in losses(*first).items():
        np.testing.assert_allclose(losses(logits, deltas, empty)[name], value, rtol=1e-6)
    empty.positive[:], empty.negative[:] = False, True
    value, gradient = jax.jit(
        jax.value_and_grad(lambda c: ops.multibox_losses(c, deltas, empty)["loss"])
    )(logits)
    assert value == 0 and (gradient == 0).all()


def test_parts_of_a_batch_add_up_to_the_whole():
    whole = random_case(4)
    count = whole[2].positive.sum()
    loss = jax.jit(lambda *x: ops.multibox_losses(*x, num_positives=count)["loss"])
    parts = [loss(*jax.tree.map(lambda x, i=i: x[i : i + 2], whole)) for i in (0, 2)]
    np.testing.assert_allclose(sum(parts), loss(*whole), rtol=1e-5)


def test_extreme_and_broken_logits():
    logits, deltas, targets = random_case(5)
    value_and_grad = jax.jit(
        jax.value_and_grad(lambda c: ops.multibox_losses(c, deltas, targets)["loss"])
    )
    low = jnp.asarray(1e4 * logits, jnp.bfloat16)
    value, gradient = value_and_grad(low)
    assert np.isfinite(value) and np.isfinite(gradient.astype(jnp.float32)).all()
    anywhere = np.argwhere(targets.negative)[0]
    logits[tuple(anywhere)] = np.nan  # must not hide among the easy negatives
    assert np.isnan(value_and_grad(logits)[0])
