"""The table of backbones: what every one promises, at every experiment's input size."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m2det_jax.config.keys import BACKBONES as CONFIG_BACKBONES
from m2det_jax.model import M2Det
from m2det_jax.model.backbones import BACKBONES, make_backbone

# Channels of the shallow and the deep map at width 1.
CHANNELS = {
    "densenet121": (512, 1024),
    "densenet169": (512, 1664),
    "densenet201": (512, 1920),
    "mobilenet_v1": (256, 1024),
    "mobilenet_v2": (32, 1280),
    "resnet18": (128, 512),
    "resnet34": (128, 512),
    "resnet50": (512, 2048),
    "resnet101": (512, 2048),
    "resnet152": (512, 2048),
    "vgg16": (512, 1024),
    "vgg19": (512, 1024),
}
# Those of the experiments, and sides of no round number.
SIZES = [(320, 320), (512, 512), (704, 704), (800, 800), (71, 101)]


def assert_maps(kind, maps, height, width):
    for features, stride, channels in zip(maps, (8, 16), CHANNELS[kind], strict=True):
        assert features.shape == (2, -(-height // stride), -(-width // stride), channels)


@functools.cache
def full_size(kind):
    """Returns (backbone, shapes of its variables); looks at the smallest legal size, 64, too."""
    backbone = make_backbone(kind)
    images = jnp.zeros((2, 64, 64, 3))
    maps, variables = jax.eval_shape(
        lambda: backbone.init_with_output(jax.random.key(0), images, train=False)
    )
    assert_maps(kind, maps, 64, 64)
    return backbone, variables


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("kind", BACKBONES)
def test_maps_have_the_promised_sizes_and_channels(kind, size):
    backbone, variables = full_size(kind)
    images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    maps = jax.eval_shape(lambda v, x: backbone.apply(v, x, train=False), variables, images)
    assert_maps(kind, maps, *size)


@pytest.mark.parametrize(
    "kind", ["densenet121", "mobilenet_v1", "mobilenet_v2", "resnet50", "vgg16"]
)
def test_bfloat16_computes_in_bfloat16_and_keeps_float32_variables(kind):
    backbone = make_backbone(kind, width=0.25, norm=True, dtype=jnp.bfloat16)
    images = jnp.zeros((1, 64, 64, 3), jnp.bfloat16)
    maps, variables = jax.eval_shape(
        lambda: backbone.init_with_output(jax.random.key(0), images, train=True)
    )
    assert [features.dtype for features in maps] == [jnp.bfloat16, jnp.bfloat16]
    assert set(variables) == {"params", "batch_stats"}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float32")}


def test_the_config_knows_the_same_names():
    assert tuple(sorted(BACKBONES)) == CONFIG_BACKBONES


def test_an_unknown_backbone_lists_the_known():
    with pytest.raises(ValueError, match=r"'vgg61'.*'resnet18'.*'vgg16'"):
        make_backbone("vgg61")


def test_only_resnets_have_the_official_stride():
    model = M2Det(num_class_outputs=3, backbone="vgg16", backbone_official_stride=True)
    with pytest.raises(ValueError, match="ResNet.*'vgg16'.*backbone_official_stride=False"):
        jax.eval_shape(
            lambda: model.init(jax.random.key(0), jnp.zeros((1, 320, 320, 3)), train=False)
        )
    assert make_backbone("resnet50", official_stride=True).official_stride
    assert not make_backbone("resnet50").official_stride
