"""bfloat16 computation over float32 weights, and rematerialisation."""

import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support

from m2det_jax.build import build_detector
from m2det_jax.model import init_variables


@pytest.fixture(scope="module")
def steps():
    """{dtype: (state after two steps, metrics of each)} on one device."""
    batches = [support.random_batch(seed) for seed in range(2)]
    found = {}
    for dtype in ("float32", "bfloat16"):
        small = support.small_step(1, model__dtype=dtype) if dtype != "float32" else (
            support.small_step(1)
        )  # fmt: skip
        state, metrics = small.run(small.start(), batches)
        found[dtype] = jax.device_get(state), metrics
    return found


def test_weights_statistics_optimiser_and_losses_stay_float32(steps):
    state, metrics = steps["bfloat16"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        whole_number = jnp.issubdtype(leaf.dtype, jnp.integer)
        assert leaf.dtype == (np.int32 if whole_number else np.float32), path
    assert all(value.dtype == np.float32 for step in metrics for value in step.values())


def test_small_updates_are_not_lost(steps):
    # Kept in bfloat16, a kernel would move by none of these, or by a 256th of itself.
    before = support.small_step(1).initial
    for old, new in zip(
        support.leaves(before.params), support.leaves(steps["bfloat16"][0].params), strict=True
    ):
        if old.ndim == 4 and old.size > 1000:
            moved = np.abs(new - old) / (np.abs(old) + 1e-12)
            assert np.mean((moved > 0) & (moved < 1 / 512)) > 0.3


def test_losses_are_near_those_of_float32(steps):
    for half, full in zip(steps["bfloat16"][1], steps["float32"][1], strict=True):
        assert half["num_positives"] == full["num_positives"]
        for name in ("loss", "loss_class", "loss_box"):
            np.testing.assert_allclose(half[name], full[name], rtol=2e-2, err_msg=name)
            assert half[name] != full[name]
        np.testing.assert_allclose(half["grad_norm"], full["grad_norm"], rtol=0.2)


def loss_of_network(dtype: str, remat: bool):
    """(A loss of the outputs of a network of several levels, its parameters)."""
    overrides = {
        "data.image_size": (128, 128),
        "model.backbone_width": 0.25,
        "model.num_levels": 3,
        "model.backbone_norm": False,
        "model.dtype": dtype,
        "model.remat": remat,
    }
    config = support.tiny_config(overrides=overrides)
    detector = build_detector(config, support.SMALL_CLASSES)
    variables = init_variables(detector.model, (128, 128), 0)

    def loss(params, images):
        outputs, _ = detector.model.apply(
            {"params": params, "batch_stats": variables["batch_stats"]},
            detector.normalize(images),
            train=True,
            mutable=["batch_stats"],
        )
        return sum(jnp.square(x).mean() for x in outputs.values())

    return loss, variables["params"]


def convolution_dtypes(function, *args) -> collections.Counter:
    text = str(jax.make_jaxpr(function)(*args))
    return collections.Counter(re.findall(r":(\w+)\[[\d,]*\] = conv_general_dilated", text))


def test_convolutions_compute_in_the_dtype_of_the_config():
    images = np.zeros((1, 128, 128, 3), np.uint8)
    full, half = (
        convolution_dtypes(jax.value_and_grad(loss), params, images)
        for loss, params in (loss_of_network(dtype, False) for dtype in ("float32", "bfloat16"))
    )
    assert full.keys() == {"f32"}
    # Only what the two heads put out at each of two scales, and its gradients.
    assert half == {"f32": 2 * 2 * 3, "bf16": full["f32"] - 2 * 2 * 3}


def kept_bytes(loss, params, images) -> int:
    """What the forward pass keeps for the backward pass, weights and images included.

    Not the compiled program's temporary memory: that of a CPU is the scratch of one convolution.
    """
    _, backward = jax.eval_shape(lambda params: jax.vjp(lambda p: loss(p, images), params), params)
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(backward))


def test_rematerialisation_gives_the_same_gradients_in_less_memory():
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    images = images.repeat(16, axis=1).repeat(16, axis=2)
    results, kept = [], []
    for remat in (False, True):
        loss, params = loss_of_network("float32", remat)
        kept.append(kept_bytes(loss, params, images))
        results.append(jax.device_get(jax.jit(jax.value_and_grad(loss))(params, images)))
    (loss, gradients), (again_loss, again) = results
    np.testing.assert_allclose(again_loss, loss, rtol=1e-5)
    for one, two in zip(support.leaves(gradients), support.leaves(again), strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-3, atol=1e-5 * max(1, np.abs(one).max()))
    weights = sum(x.nbytes for x in support.leaves(params))
    assert kept[1] - weights < 0.3 * (kept[0] - weights), (kept, weights)
