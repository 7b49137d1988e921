import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from m2det_jax.model import M2Det, feature_map_sizes, official_form, variable_shapes
from m2det_jax.model.mlfpn import MLFPN


def _images(*size, batch=2, seed=0):
    return np.random.default_rng(seed).standard_normal((batch, *size, 3), np.float32)


def _count(tree):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def test_official_form_has_the_published_number_of_parameters():
    model = M2Det(num_class_outputs=81, **official_form())
    assert _count(variable_shapes(model, (320, 320))["params"]) == 133_159_604


@pytest.mark.parametrize("form", [{}, official_form()])
@pytest.mark.parametrize(("side", "anchors"), [(320, 12_810), (512, 32_760), (800, 80_208)])
def test_full_size_outputs(form, side, anchors):
    model = M2Det(num_class_outputs=80, dtype=jnp.bfloat16, **form)
    images = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    shapes = variable_shapes(model, (side, side))
    out = jax.eval_shape(lambda v, x: model.apply(v, x, train=False), shapes, images)
    assert out["class_logits"].shape == (2, anchors, 80)
    assert out["box_deltas"].shape == (2, anchors, 4)
    assert {leaf.dtype for leaf in jax.tree.leaves((out, shapes))} == {jnp.dtype(jnp.float32)}


def test_every_field_of_the_pyramid_arrives_there():
    names = {field.name for field in dataclasses.fields(MLFPN)} - {"parent", "name"}
    changed = {
        name: not old if isinstance(old, bool) else 3 if isinstance(old, int) else old / 2
        for name in names - {"upsample", "dtype", "norm_axis"}
        for old in [getattr(MLFPN(), name)]
    } | {"upsample": "bilinear", "dtype": jnp.bfloat16}
    assert len(changed) >= 15
    made = []

    def keep(call, arguments, options, context):
        made.extend([context.module] if isinstance(context.module, MLFPN) else [])
        return call(*arguments, **options)

    with nn.intercept_methods(keep):
        model = M2Det(num_class_outputs=2, backbone_width=0.125, **changed)
        images = jnp.zeros((1, 64, 64, 3))
        jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    assert made
    assert {name: getattr(made[0], name) for name in changed} == changed
    assert not any(changed[name] == getattr(MLFPN(), name) for name in changed)


@pytest.mark.parametrize("size", [(64, 64), (64, 160), (101, 70), (66, 130)])
@pytest.mark.parametrize("num_scales", [2, 3])
def test_anchors_are_those_of_the_announced_maps(make_tiny, size, num_scales):
    model, variables = make_tiny(num_scales=num_scales, anchors_per_cell=4)
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    out = jax.eval_shape(lambda x: model.apply(variables, x, train=False), images)
    cells = sum(h * w for h, w in feature_map_sizes(size, num_scales))
    assert out["class_logits"].shape == (1, 4 * cells, 5)
    assert out["box_deltas"].shape == (1, 4 * cells, 4)


def test_prediction_of_an_image_depends_on_that_image_alone(make_tiny):
    model, variables = make_tiny(backbone_norm=True)
    apply = jax.jit(lambda x: model.apply(variables, x, train=False))
    images = _images(64, 96)
    out, swapped = apply(images), apply(images[::-1])
    for name, value in out.items():
        assert np.isfinite(value).all() and np.std(value) > 0
        np.testing.assert_allclose(value[0], swapped[name][1], rtol=1e-4, atol=1e-5)
        assert np.abs(value[0] - value[1]).max() > 1e-3


def test_bfloat16_trains_with_float32_parameters_and_agrees_with_float32(make_tiny):
    """On an odd, non-square size; the smallest network, for compiling gradients is slow."""
    images = _images(70, 101)
    fields = dict(num_levels=1, num_scales=2, sfam_shared=True)

    def loss_fn(params, model, batch_stats):
        out, updated = model.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
        )
        return sum((value**2).mean() for value in out.values()), (out, updated)

    exact, variables = make_tiny(**fields)
    low, _ = make_tiny(**fields, dtype=jnp.bfloat16)
    params, stats = variables["params"], variables["batch_stats"]
    expected, _ = jax.jit(lambda p, s: loss_fn(p, exact, s)[1])(params, stats)
    grad_fn = jax.jit(jax.grad(lambda p, s: loss_fn(p, low, s), has_aux=True))
    grads, (out, updated) = grad_fn(params, stats)
    leaves = jax.tree.leaves((grads, out, updated))
    assert all(leaf.dtype == jnp.float32 and jnp.isfinite(leaf).all() for leaf in leaves)
    learning = [bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(grads)]
    assert sum(learning) > 0.9 * len(learning)
    for name, value in expected.items():
        error = np.abs(out[name] - value).max()
        assert 0 < error < 0.2 * np.abs(value).max()


def test_frozen_paths_are_those_of_the_backbone_parameters(make_tiny):
    model, variables = make_tiny(frozen_stages=3)
    paths = model.frozen_paths()
    assert len(paths) == 7 and ("backbone", "conv3_3") in paths
    assert all(path[1] in variables["params"][path[0]] for path in paths)
    assert make_tiny()[0].frozen_paths() == ()


def test_class_probabilities_start_near_the_prior(make_tiny):
    model, variables = make_tiny()
    out = jax.jit(lambda x: model.apply(variables, x, train=False))(0.1 * _images(64, 64))
    probability = 1 / (1 + np.exp(-np.asarray(out["class_logits"])))
    assert 0.005 < np.median(probability) < 0.02


@pytest.mark.parametrize(
    ("fields", "images", "message"),
    [
        ({}, jnp.zeros((1, 64, 64, 3), jnp.uint8), "uint8"),
        ({}, jnp.zeros((64, 64, 3)), r"\[batch, height, width, 3\]"),
        ({}, jnp.zeros((1, 3, 64, 64)), r"\(1, 3, 64, 64\)"),
        ({"num_scales": 6}, jnp.zeros((1, 64, 64, 3)), "64 x 64 .* 6 scales.* 2 to 3"),
        ({"backbone": "resnet51"}, jnp.zeros((1, 64, 64, 3)), "resnet51.*vgg16"),
        ({"frozen_stages": 6}, jnp.zeros((1, 64, 64, 3)), "frozen_stages"),
        ({"upsample": "cubic"}, jnp.zeros((1, 64, 64, 3)), "cubic"),
        ({"num_class_outputs": 0}, jnp.zeros((1, 64, 64, 3)), "num_class_outputs"),
    ],
)
def test_errors_say_what_is_wrong(fields, images, message):
    model = M2Det(**({"num_class_outputs": 5, "num_scales": 3} | fields))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
