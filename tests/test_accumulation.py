"""Accumulation in parts against the whole batch, on a model small enough to know what to expect."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import support
from flax import linen as nn

from m2det_jax.build import build_detector, step_settings
from m2det_jax.detector.objective import losses_of, make_targets
from m2det_jax.model.layers import batch_norm
from m2det_jax.run import devices
from m2det_jax.run.state import create_train_state
from m2det_jax.training.step import accumulate, make_train_step, on_each_device

SIZE = (64, 96)


class Toy(nn.Module):
    """A layer, BatchNorm or none, and an output for every anchor."""

    anchors: int
    classes: int
    norm: bool
    norm_momentum: float = 0.9
    norm_axis: str | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images, *, train):
        x = images.reshape(images.shape[0], 8, 8, 8, 12, 3).mean(axis=(2, 4))  # [B, 8, 8, 3]
        x = nn.Conv(8, (3, 3), name="conv")(x)
        if self.norm:
            x = batch_norm(self, train=train, name="norm")(x)
        else:
            self.variable("batch_stats", "unused", jnp.zeros, ())
        x = jnp.tanh(x).mean(axis=(1, 2))  # [B, 8]
        x = nn.Dense(self.anchors * (self.classes + 4), name="out")(x)
        x = x.reshape(x.shape[0], self.anchors, -1)
        return {"class_logits": x[..., :-4], "box_deltas": x[..., -4:]}


def toy_step(norm: bool, parts: int, count: int = 1):
    """(step jitted for `count` devices, its first state, the detector, its settings)."""
    config = support.tiny_config(overrides=support.SMALL)
    detector = build_detector(config, support.SMALL_CLASSES)
    model = Toy(len(detector.anchors), len(support.SMALL_CLASSES), norm)
    detector = dataclasses.replace(detector, model=model)
    variables = model.init(jax.random.key(0), np.zeros((1, *SIZE, 3)), train=False)
    optimizer = optax.sgd(1.0)
    state = create_train_state(jax.device_get(dict(variables)), optimizer)
    settings = dataclasses.replace(step_settings(config), accumulation=parts)
    replicated, by_batch = devices.data_mesh(jax.devices()[:count])
    step = make_train_step(
        detector, optimizer, optax.constant_schedule(1.0), settings, replicated.mesh
    )
    jitted = jax.jit(
        step, in_shardings=(replicated, by_batch), out_shardings=(replicated, replicated)
    )
    return jitted, state, detector, settings


def assert_close(found, expected, rtol=1e-5):
    for a, b in zip(support.leaves(found), support.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize(("count", "size"), [(1, 8), (8, 32)])
def test_four_parts_are_the_whole_batch_where_no_statistics_are(count, size):
    batch = support.random_batch(0, size)
    whole, state, *_ = toy_step(norm=False, parts=1)
    in_parts, *_ = toy_step(norm=False, parts=4, count=count)
    (expected, one), (found, four) = whole(state, batch), in_parts(state, batch)
    assert_close(found, expected)
    assert_close(four, one)
    moved = np.abs(support.leaves(expected.params)[0] - support.leaves(state.params)[0]).max()
    assert moved > 1e-3


def by_hand(state, batch, detector, settings, parts):
    """Gradients added up over the parts in turn, and the last statistics."""
    targets = make_targets(detector, settings, batch)
    positives = targets.positive.sum()
    total, statistics = None, state.batch_stats

    def loss(params, statistics, images, targets):
        outputs, new = detector.model.apply(
            {"params": params, "batch_stats": statistics},
            detector.normalize(images),
            train=True,
            mutable=["batch_stats"],
        )
        return losses_of(outputs, targets, settings, positives)["loss"], new["batch_stats"]

    for part in range(parts):
        some = jax.tree.map(lambda x: x[part::parts], targets)  # noqa: B023
        gradient, statistics = jax.grad(loss, has_aux=True)(
            state.params, statistics, batch["image"][part::parts], some
        )
        total = gradient if total is None else jax.tree.map(jnp.add, total, gradient)
    return total, statistics


@pytest.mark.parametrize(("count", "size"), [(1, 8), (8, 16)])
def test_statistics_are_those_of_each_part_over_all_devices(count, size):
    batch = support.random_batch(1, size)
    step, state, detector, settings = toy_step(norm=True, parts=2, count=count)
    found = jax.device_get(step(state, batch)[0])
    expected = jax.jit(by_hand, static_argnums=(2, 3, 4))(state, batch, detector, settings, 2)
    gradient, statistics = jax.device_get(expected)
    assert_close(found.batch_stats, statistics)
    assert_close(found.params, jax.tree.map(jnp.subtract, state.params, gradient), rtol=1e-4)
    # And so not those of the whole batch: the difference that make_train_step documents.
    whole = jax.device_get(toy_step(norm=True, parts=1)[0](state, batch)[0])
    mean, of_whole = found.batch_stats["norm"]["mean"], whole.batch_stats["norm"]["mean"]
    assert np.abs(mean - of_whole).max() > 1e-3
    kernel, of_whole = found.params["conv"]["kernel"], whole.params["conv"]["kernel"]
    assert np.abs(kernel - of_whole).max() > 1e-4


def weighted_error(params, stats, batch, scale):
    """A loss with names of its own: nothing here is a detector's."""
    wrong = batch["x"] @ params["w"] - batch["y"]  # [B]
    loss = scale * (wrong**2).sum()
    return loss, ({"largest": jnp.abs(wrong).sum(), "deep": (wrong.sum(),)}, stats + 1)


@pytest.mark.parametrize(("parts", "count"), [(1, 2), (2, 1), (4, 1), (2, 2)])
def test_any_gradient_function_goes_in_parts(parts, count):
    rng = np.random.default_rng(0)
    batch = {"x": rng.normal(size=(16, 3)), "y": rng.normal(size=16)}
    batch = jax.tree.map(np.float32, batch)
    params, stats, scale = {"w": np.float32([1, -2, 3])}, np.int32(0), np.float32(0.5)
    whole = jax.value_and_grad(weighted_error, has_aux=True)
    grad_fn = accumulate(whole, parts)
    if count > 1:
        replicated, _ = devices.data_mesh(jax.devices()[:count])
        grad_fn = on_each_device(grad_fn, replicated.mesh)
    (loss, (aux, passed)), gradients = jax.jit(grad_fn)(params, stats, batch, scale)
    (expected, (expected_aux, _)), slope = jax.jit(whole)(params, stats, batch, scale)
    assert passed == parts  # the statistics went from part to part
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert jax.tree.structure((aux, gradients)) == jax.tree.structure((expected_aux, slope))
    assert_close((aux, gradients), (expected_aux, slope))
