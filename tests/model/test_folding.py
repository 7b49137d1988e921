"""Folding of BatchNorm: equal to the network for every family, and no BatchNorm is left behind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m2det_jax.model.folding import apply_folded

FAMILIES = {
    "vgg": dict(backbone="vgg16", backbone_norm=True),
    "vgg_bias": dict(backbone="vgg16", backbone_norm=False),
    "resnet": dict(backbone="resnet18"),
    "bottleneck": dict(backbone="resnet50"),
    "densenet": dict(backbone="densenet121"),
    "mobilenet_v1": dict(backbone="mobilenet_v1"),
    "mobilenet_v2": dict(backbone="mobilenet_v2"),
    "official": dict(
        backbone="resnet18", tum_out=16, sfam_shared=True, share_base_reduction=True,
        largest_scale_norm=True, head="retinanet",
    ),
}  # fmt: skip


def trained(variables):
    """Variables as after a training: no average, scale or shift has its first value."""
    rng = np.random.default_rng(1)

    def change(path, leaf):
        name = path[-1].key
        if name in ("var", "scale"):
            return leaf * rng.uniform(0.6, 1.5, leaf.shape).astype(np.float32)
        if name in ("mean", "bias"):
            return leaf + rng.normal(0, 0.2, leaf.shape).astype(np.float32)
        return leaf

    return jax.tree_util.tree_map_with_path(change, variables)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_folded_network_is_the_network(make_tiny, family):
    model, variables = make_tiny(**FAMILIES[family])
    variables = trained(variables)
    images = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    native = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images)
    folded = jax.jit(lambda x: apply_folded(model, variables, x))(images)
    for name, expected in native.items():
        deviation = float(jnp.std(expected))
        assert deviation > 1e-4
        np.testing.assert_allclose(folded[name], expected, atol=1e-4 * deviation, err_msg=name)


@pytest.mark.parametrize(
    ("family", "left"), [("resnet", 0), ("mobilenet_v2", 0), ("densenet", 120)]
)
def test_behind_a_convolution_only_a_sum_is_left(make_tiny, family, left):
    """Without the folding every BatchNorm multiplies."""
    model, variables = make_tiny(**FAMILIES[family])
    variables, images = trained(variables), jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    folded = jax.make_jaxpr(lambda x: apply_folded(model, variables, x))(images)
    native = jax.make_jaxpr(lambda x: model.apply(variables, x, train=False))(images)
    roots = [str(jaxpr).count(" rsqrt ") for jaxpr in (native, folded)]
    assert roots[0] > 20 and roots[1] == 0
    assert per_channel_products(folded) - products_of_sfam(model) == left


def per_channel_products(jaxpr) -> int:
    """Products of a map with one number for each channel."""
    count = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "mul":
            shapes = [getattr(x.aval, "shape", ()) for x in equation.invars]
            count += (
                any(len(s) == 4 and s[1:3] == (1, 1) for s in shapes) and shapes[0] != shapes[1]
            )
    return count


def products_of_sfam(model) -> int:
    return model.num_scales
