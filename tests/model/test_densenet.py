"""DenseNet: parameters, the dense connections, what the maps are, frozen stages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from m2det_jax.model import densenet
from m2det_jax.model.densenet import DenseLayer, DenseNet, NormReluConv
from m2det_jax.model.initialize import fill_variables, init_variables, variable_shapes


def random(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# torchvision's totals less the classifier of 1000 classes.
@pytest.mark.parametrize(
    ("depth", "total", "inputs"),
    [(121, 7_978_856, 1024), (169, 14_149_480, 1664), (201, 20_013_928, 1920)],
)
def test_has_the_parameters_of_torchvision_without_the_classifier(depth, total, inputs):
    shapes = variable_shapes(DenseNet(depth), (64, 64))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    assert count == total - 1000 * (inputs + 1)


def filled(module, x):
    return fill_variables(
        jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False)), seed=0
    )


def test_norm_and_relu_come_before_the_convolution():
    layer, x = NormReluConv(3, 1), random((1, 4, 5, 2))
    variables = filled(layer, x)
    variables["batch_stats"]["norm"]["mean"] += 0.5
    read, made = jax.jit(lambda v: layer.apply(v, x, train=False))(variables)
    np.testing.assert_allclose(read, np.maximum(x - 0.5, 0), rtol=1e-4, atol=1e-5)
    kernel = variables["params"]["conv"]["kernel"][0, 0]
    np.testing.assert_allclose(made, read @ kernel, rtol=1e-4, atol=1e-5)
    assert np.any(np.asarray(made) < 0)


def test_a_dense_layer_appends_to_its_unchanged_input():
    layer, x = DenseLayer(4), random((1, 5, 6, 3))
    y = np.asarray(jax.jit(lambda v: layer.apply(v, x, train=False))(filled(layer, x)))
    assert y.shape == (1, 5, 6, 7)
    np.testing.assert_array_equal(y[..., :3], x)
    assert np.all(y[..., 3:].std(axis=(0, 1, 2)) > 0)


@pytest.fixture
def short(monkeypatch):
    """Depth 9 in the table: blocks of 1, 2, 1 and 2 layers, quick to compile."""
    monkeypatch.setitem(densenet.BLOCKS, 9, (1, 2, 1, 2))


def test_the_maps_are_read_after_norm_and_relu(short):
    model = DenseNet(9, width=0.25)
    variables = init_variables(model, (64, 64), 0)
    # The norms behind the two maps made constant: 3 and -1, which ReLU turns to 0.
    for module, value in (
        (variables["params"]["transition2"]["norm"], 3),
        (variables["params"]["norm5"], -1),
    ):
        module["scale"][:] = 0
        module["bias"][:] = value
    shallow, deep = jax.jit(lambda v: model.apply(v, random((1, 70, 101, 3)), train=False))(
        variables
    )
    np.testing.assert_array_equal(shallow, np.full((1, 9, 13, 12 + 16), 3))
    np.testing.assert_array_equal(deep, np.zeros((1, 5, 7, 11 + 16)))


@pytest.mark.parametrize(("stages", "last"), [(3, "transition2"), (5, "norm5")])
def test_frozen_stages_get_no_gradient_and_keep_their_statistics(short, stages, last):
    model = DenseNet(9, width=0.25, frozen_stages=stages)
    variables = init_variables(model, (64, 64), 0)
    images = jnp.asarray(random((2, 64, 96, 3)))

    def loss(params):
        variables_now = {**variables, "params": params}
        maps, updated = model.apply(variables_now, images, train=True, mutable=["batch_stats"])
        return sum((m**2).mean() for m in maps), updated["batch_stats"]

    gradients, stats = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    frozen = set(model.frozen_modules())
    assert {"stem", "denseblock2_layer2", last} <= frozen <= set(gradients)
    for path, gradient in flatten_dict(gradients).items():
        assert np.any(np.asarray(gradient)) != (path[0] in frozen), path
    before = flatten_dict(variables["batch_stats"])
    for path, value in flatten_dict(stats).items():
        assert np.array_equal(value, before[path]) == (path[0] in frozen), path
