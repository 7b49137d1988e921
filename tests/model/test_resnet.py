"""The ResNet backbones: strides, sizes, residual sums, frozen stages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from m2det_jax.model.initialize import init_variables, variable_shapes
from m2det_jax.model.resnet import BasicBlock, ResNet

IMAGES = np.random.default_rng(0).standard_normal((2, 64, 96, 3)).astype(np.float32)


@pytest.mark.parametrize(("depth", "millions"), [(18, 11.18), (34, 21.28)])
def test_has_the_parameters_of_the_paper_without_the_classifier(depth, millions):
    shapes = variable_shapes(ResNet(depth), (64, 64))["params"]
    count = sum(leaf.size for leaf in flatten_dict(shapes).values())
    assert count / 1e6 == pytest.approx(millions, abs=0.01)


@pytest.mark.parametrize("size", [(64, 64), (70, 101), (128, 96)])
def test_maps_are_at_strides_8_and_16_for_any_size(size):
    model = ResNet(18, width=0.25)
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    maps = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x, train=False), images
    )
    shallow, deep = maps[0]
    assert shallow.shape == (1, -(-size[0] // 8), -(-size[1] // 8), 32)
    assert deep.shape == (1, -(-size[0] // 16), -(-size[1] // 16), 128)


def test_a_block_adds_its_input():
    block = BasicBlock(8)
    x = jnp.asarray(np.abs(np.random.default_rng(1).standard_normal((1, 5, 7, 8))), jnp.float32)
    variables = block.init(jax.random.key(0), x, train=False)
    params = jax.tree.map(lambda leaf: leaf, variables["params"])
    params["conv2"]["norm"]["scale"] = jnp.zeros(8)  # nothing but the shortcut is left
    still = jax.jit(lambda v: block.apply(v, x, train=False))(variables | {"params": params})
    np.testing.assert_allclose(still, x, rtol=1e-6)
    assert "shortcut" not in params
    assert "shortcut" in BasicBlock(16).init(jax.random.key(0), x, train=False)["params"]


def test_frozen_stages_get_no_gradient_and_keep_their_statistics():
    model = ResNet(18, width=0.125, frozen_stages=3)
    variables = init_variables(model, (64, 96), 0)

    def loss(params):
        variables_now = {"params": params, "batch_stats": variables["batch_stats"]}
        maps, updated = model.apply(variables_now, IMAGES, train=True, mutable=["batch_stats"])
        return sum((m**2).mean() for m in maps), updated["batch_stats"]

    gradients, stats = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    frozen = set(model.frozen_modules())
    assert frozen == {"stem", "layer1_1", "layer1_2", "layer2_1", "layer2_2"}
    for path, gradient in flatten_dict(gradients).items():
        assert np.any(np.asarray(gradient)) != (path[0] in frozen), path
    before = flatten_dict(variables["batch_stats"])
    for path, value in flatten_dict(stats).items():
        assert np.array_equal(value, before[path]) == (path[0] in frozen), path
