"""The ResNet backbones: strides, sizes, residual sums, frozen stages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from m2det_jax.model.initialize import fill_variables, init_variables, variable_shapes
from m2det_jax.model.resnet import BasicBlock, Bottleneck, ResNet

IMAGES = np.random.default_rng(0).standard_normal((2, 64, 96, 3)).astype(np.float32)


def parameters(shapes) -> int:
    return sum(leaf.size for leaf in flatten_dict(shapes["params"]).values())


# torchvision's totals less the classifier of 1000 classes, 512 or 2048 inputs and a bias each.
@pytest.mark.parametrize(
    ("depth", "total", "inputs"),
    [
        (18, 11_689_512, 512),
        (34, 21_797_672, 512),
        (50, 25_557_032, 2048),
        (101, 44_549_160, 2048),
        (152, 60_192_808, 2048),
    ],
)
def test_has_the_parameters_of_torchvision_without_the_classifier(depth, total, inputs):
    assert parameters(variable_shapes(ResNet(depth), (64, 64))) == total - 1000 * (inputs + 1)


def test_the_official_stride_halves_in_layer_4_and_keeps_the_parameters():
    images = jnp.asarray(IMAGES)
    ours, official = ResNet(50, width=0.125), ResNet(50, width=0.125, official_stride=True)
    shapes = variable_shapes(ours, (64, 64))
    assert shapes == variable_shapes(official, (64, 64))
    variables = fill_variables(shapes, 0)
    sizes = {}
    for model in (ours, official):
        _, seen = jax.eval_shape(
            lambda v, model=model: model.apply(
                v, images, train=False, capture_intermediates=True, mutable=["intermediates"]
            ),
            variables,
        )
        blocks = seen["intermediates"]
        sizes[model] = [
            blocks[name]["__call__"][0].shape[1:3] for name in ("layer2_4", "layer3_1", "layer4_1")
        ]
    assert sizes[ours] == [(8, 12), (4, 6), (4, 6)]
    assert sizes[official] == [(8, 12), (8, 12), (4, 6)]


def test_a_bottleneck_halves_in_its_3x3_convolution():
    """Impulses at odd rows and columns: a stride in the 1x1 convolution would not see them."""
    block = Bottleneck(8, strides=2)
    x = jnp.zeros((1, 6, 8, 32)).at[:, 1::2, 1::2].set(1)
    variables = init_variables_of(block, x)
    still = variables["params"]["shortcut"]["norm"]
    still["scale"] = jnp.zeros_like(still["scale"])
    y = jax.jit(lambda v: block.apply(v, x, train=False))(variables)
    assert y.shape == (1, 3, 4, 32) and np.all(np.any(np.asarray(y) > 0, axis=-1))


def init_variables_of(block, x):
    shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), x, train=False))
    return fill_variables(shapes, 0)


@pytest.mark.parametrize(
    ("block", "last", "wide"),
    [(BasicBlock(8), "conv2", BasicBlock(16)), (Bottleneck(2), "conv3", Bottleneck(4))],
)
def test_a_block_adds_its_input(block, last, wide):
    x = jnp.asarray(np.abs(np.random.default_rng(1).standard_normal((1, 5, 7, 8))), jnp.float32)
    variables = init_variables_of(block, x)
    params = variables["params"]
    params[last]["norm"]["scale"] = jnp.zeros(8)  # nothing but the shortcut is left
    still = jax.jit(lambda v: block.apply(v, x, train=False))(variables)
    np.testing.assert_allclose(still, x, rtol=1e-6)
    assert "shortcut" not in params
    assert "shortcut" in init_variables_of(wide, x)["params"]


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
