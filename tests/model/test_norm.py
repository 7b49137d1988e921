"""BatchNorm against Flax's, and over several devices against the whole batch on one."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec

from m2det_jax.model.norm import BatchNorm, batch_statistics
from m2det_jax.run.devices import data_mesh

OPTIONS = dict(momentum=0.9, epsilon=1e-5)


def maps(batch=8, mean=3.0, dtype=np.float32):
    values = np.random.default_rng(0).normal(mean, 2, (batch, 5, 7, 12))
    return jnp.asarray(values * np.linspace(0.1, 3, 12), dtype)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_equals_flax_bit_for_bit_on_one_device(dtype, train):
    x, dtype = maps(dtype=dtype), jnp.dtype(dtype)
    theirs = nn.BatchNorm(not train, dtype=dtype, use_fast_variance=False, **OPTIONS)
    results = []
    for norm in (theirs, BatchNorm(not train, dtype=dtype, **OPTIONS)):
        variables = norm.init(jax.random.key(0), x)
        variables = jax.tree.map(lambda v: v + 0.1 * jnp.arange(v.size), variables)

        def loss(params, x, norm=norm, stats=variables["batch_stats"]):
            all_variables = {"params": params, "batch_stats": stats}
            y, updated = norm.apply(all_variables, x, mutable=["batch_stats"])
            return (y.astype(jnp.float32) ** 3).sum(), (y, updated)

        gradients = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
        results.append(jax.device_get(gradients(variables["params"], x)))
    ours, expected = results[1], results[0]
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def statistics_of(x, axis_name):
    """A number that depends on both statistics, with its gradient."""

    def number(x):
        mean, variance = batch_statistics(x, axis_name)
        return (jnp.sin(mean) * jnp.sqrt(variance)).sum()

    value, gradient = jax.value_and_grad(number)(x)
    return batch_statistics(x, axis_name), value, gradient


@pytest.mark.parametrize("mean", [0.0, 300.0])
def test_devices_together_have_the_statistics_of_the_whole_batch(mean):
    x, split = maps(16, mean), PartitionSpec("data")
    mesh = data_mesh()[0].mesh

    def on_device(x):
        (mean, variance), _, gradient = statistics_of(x, "data")
        return mean[None], variance[None], gradient

    together = jax.jit(
        jax.shard_map(on_device, mesh=mesh, in_specs=split, out_specs=(split, split, split))
    )
    means, variances, gradient = jax.device_get(together(x))
    (mean, variance), _, whole = jax.device_get(jax.jit(statistics_of, static_argnums=1)(x, None))
    for of_device in means:
        np.testing.assert_allclose(of_device, mean, rtol=1e-6, atol=1e-6)
    exact = np.asarray(x, np.float64).var(axis=(0, 1, 2))
    for of_device in variances:
        # E[x^2] - E[x]^2 would be off by a hundredth at a mean of 300.
        np.testing.assert_allclose(of_device, exact, rtol=5e-6)
    # Every device adds its own number to the sum that is differentiated: eight times the gradient.
    np.testing.assert_allclose(gradient / 8, whole, rtol=2e-4, atol=2e-6)


def test_the_statistics_are_one_message_in_each_pass():
    mesh, split = data_mesh()[0].mesh, PartitionSpec("data")
    kinds = "all-reduce|all-gather|reduce-scatter"

    def count(function):
        on_device = jax.shard_map(function, mesh=mesh, in_specs=split, out_specs=split)
        text = jax.jit(on_device).lower(maps(16)).compile().as_text()
        return len(re.findall(rf"\) (?:{kinds})\(|\}} (?:{kinds})\(", text))

    def forward(x):
        mean, variance = batch_statistics(x, "data")
        return x - mean[None, None, None, :] * variance[None, None, None, :]

    assert count(forward) == 1
    assert count(lambda x: jax.grad(lambda y: (forward(y) ** 2).sum())(x)) == 2


def test_running_averages_are_not_touched_at_initialisation():
    variables = BatchNorm(False, **OPTIONS).init(jax.random.key(0), maps())
    assert (variables["batch_stats"]["mean"] == 0).all()
