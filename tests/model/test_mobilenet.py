"""MobileNet v1 and v2: sizes in parameters, blocks, depthwise convolution, frozen stages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from m2det_jax.model import mobilenet
from m2det_jax.model.depthwise import depthwise_conv
from m2det_jax.model.initialize import fill_variables, init_variables, variable_shapes
from m2det_jax.model.mobilenet import InvertedResidual, MobileNet, divisible_channels


def number(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def parameters(version, width):
    shapes = variable_shapes(MobileNet(version, width=width), (64, 64))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


# v1 has 4,231,976 and torchvision's v2 3,504,872 with a classifier of 1000 classes.
@pytest.mark.parametrize(
    ("version", "total", "inputs"), [(1, 4_231_976, 1024), (2, 3_504_872, 1280)]
)
def test_has_the_known_parameters_without_the_classifier(version, total, inputs):
    assert parameters(version, 1.0) == total - 1000 * (inputs + 1)


# Millions with the classifier: v1 by the paper's table 7, v2 by timm's list of models.
@pytest.mark.parametrize(
    ("version", "width", "millions", "inputs"),
    [
        (1, 0.75, 2.6, 768),
        (1, 0.5, 1.3, 512),
        (1, 0.25, 0.5, 256),
        (2, 0.35, 1.68, 1280),
        (2, 0.5, 1.97, 1280),
        (2, 1.4, 6.11, 1792),
    ],
)
def test_the_width_multiplier_gives_the_published_sizes(version, width, millions, inputs):
    count = (parameters(version, width) + 1000 * (inputs + 1)) / 1e6
    assert count == pytest.approx(millions, abs=0.05 if version == 1 else 0.006)


@pytest.mark.parametrize(
    ("channels", "expected"), [(32, 32), (11.2, 16), (4, 8), (20, 24), (33.6, 32), (224, 224)]
)
def test_channels_become_multiples_of_8_without_losing_a_tenth(channels, expected):
    assert divisible_channels(channels) == expected


@pytest.mark.parametrize("strides", [1, 2])
def test_depthwise_convolution_and_its_gradient_are_those_of_a_grouped_one(strides):
    x, kernel = number((2, 7, 10, 5)), number((3, 3, 1, 5), 1)

    def grouped(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (strides, strides),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=5,
        )

    def values(convolve):
        y, pull = jax.vjp(convolve, x, kernel)
        return y, *pull(jnp.cos(y))

    ours = jax.jit(lambda: values(lambda x, k: depthwise_conv(x, k, strides)))()
    for value, expected in zip(ours, jax.jit(lambda: values(grouped))(), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)
    assert ours[0].shape == (2, -(-7 // strides), -(-10 // strides), 5)


def run_block(block, x):
    shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), x, train=False))
    variables = fill_variables(shapes, 0)
    variables["params"]["project"]["norm"]["bias"][:] = -3
    y = jax.jit(lambda v: block.apply(v, x, train=False))(variables)
    return variables["params"], np.asarray(y)


def test_an_inverted_residual_ends_linearly_and_adds_its_input_where_it_fits():
    x = number((1, 6, 5, 8))
    params, y = run_block(InvertedResidual(8, 6), 1000 * x)
    assert params["expand"]["conv"]["kernel"].shape == (1, 1, 8, 48)
    assert params["depthwise"]["conv"]["kernel"].shape == (3, 3, 1, 48)
    # The branch ends without ReLU at -3 and what ReLU6 leaves of numbers in the thousands.
    branch = y - 1000 * x
    assert branch.min() < -3 and np.abs(branch).max() < 100
    for block in (InvertedResidual(8, 6, 2), InvertedResidual(16, 6)):
        _, y = run_block(block, 1000 * x)
        assert np.abs(y).max() < 100
    assert "expand" not in run_block(InvertedResidual(8, 1), x)[0]


@pytest.mark.parametrize(
    ("version", "counts"), [(1, [0, 2, 4, 6, 12, 14]), (2, [0, 2, 4, 7, 14, 19])]
)
def test_frozen_modules_are_the_first_blocks(version, counts):
    for stages, count in enumerate(counts):
        names = MobileNet(version, frozen_stages=stages).frozen_modules()
        assert names == tuple(f"features_{index}" for index in range(count))


def test_frozen_stages_get_no_gradient_and_keep_their_statistics(monkeypatch):
    # v2 with one block to a stage, quick to compile; v1 differs in nothing that matters here.
    stages = tuple((*stage[:2], 1, stage[3]) for stage in mobilenet.STAGES_V2[:5])
    monkeypatch.setattr(mobilenet, "STAGES_V2", stages)
    monkeypatch.setitem(mobilenet.STAGE_ENDS, 2, (1, 2, 3, 4, 6))
    model = MobileNet(2, width=0.125, frozen_stages=3)
    variables = init_variables(model, (64, 64), 0)
    images = number((2, 64, 96, 3))

    def loss(params):
        variables_now = {**variables, "params": params}
        maps, updated = model.apply(variables_now, images, train=True, mutable=["batch_stats"])
        return sum((m**2).mean() for m in maps), updated["batch_stats"]

    gradients, stats = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    frozen = set(model.frozen_modules())
    assert frozen == {"features_0", "features_1", "features_2", "features_3"} < set(gradients)
    for path, gradient in flatten_dict(gradients).items():
        assert np.any(np.asarray(gradient)) != (path[0] in frozen), path
    before = flatten_dict(variables["batch_stats"])
    for path, value in flatten_dict(stats).items():
        assert np.array_equal(value, before[path]) == (path[0] in frozen), path
