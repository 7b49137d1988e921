import jax
import numpy as np
import pytest

from m2det_jax.model.initialize import init_variables, variable_shapes
from m2det_jax.model.vgg import VGG16, VGG19


# torchvision's vgg16 less its classifier, 138,357,544 - 123,642,856, and vgg19 less the same.
@pytest.mark.parametrize(("vgg", "convolutions"), [(VGG16, 14_714_688), (VGG19, 20_024_384)])
def test_full_width_has_the_reduced_vgg_parameters(vgg, convolutions):
    shapes = variable_shapes(vgg(), (64, 64))
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))
    assert count == convolutions + 9 * 512 * 1024 + 1024 + 1024**2 + 1024  # conv6 and conv7
    assert shapes["batch_stats"] == {}
    assert shapes["params"]["conv6"]["conv"]["kernel"].shape == (3, 3, 512, 1024)


def test_deep_map_sees_pool5_at_stride_1_and_taps_six_cells_apart():
    """A bright pixel and kernels of centre taps alone, but conv6: each step's reach shows."""
    model = VGG16(width=0.125)
    params = init_variables(model, (64, 64), seed=0)["params"]
    for name, module in params.items():
        kernel = np.ones_like(module["conv"]["kernel"])
        if name < "conv6":
            kernel[[0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0, 2, 0, 1, 2]] = 0
        module["conv"]["kernel"] = kernel
    image = np.zeros((1, 16 * 33, 16 * 33, 3), np.float32)
    image[0, 16 * 16 + 5, 16 * 15 + 11] = 1  # cell (16, 15)
    _, deep = jax.jit(lambda x: model.apply({"params": params}, x, train=False))(image)
    lit = np.asarray(deep[0].max(axis=-1) > 0)
    reach = np.asarray([-7, -6, -5, -1, 0, 1, 5, 6, 7])
    expected = np.zeros((33, 33), bool)
    expected[np.ix_(16 + reach, 15 + reach)] = True
    np.testing.assert_array_equal(lit, expected)


@pytest.mark.parametrize("stages", [0, 2, 5])
def test_frozen_modules_are_the_first_stages(stages):
    names = VGG16(frozen_stages=stages).frozen_modules()
    assert names[:1] == (("conv1_1",) if stages else ())
    assert {int(name[4]) for name in names} == set(range(1, stages + 1))
    assert len(names) == [0, 2, 4, 7, 10, 13][stages]
    assert len(VGG19(frozen_stages=stages).frozen_modules()) == [0, 2, 4, 8, 12, 16][stages]


@pytest.mark.parametrize("stages", [2, 4])
def test_frozen_stages_get_no_gradient_and_keep_their_averages(stages):
    model = VGG16(width=0.125, norm=True, frozen_stages=stages)
    variables = init_variables(model, (64, 64), seed=0)
    images = np.random.default_rng(0).standard_normal((2, 32, 48, 3), np.float32)

    def loss_fn(params):
        maps, updated = model.apply(
            {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
        )
        return sum((features**2).mean() for features in maps), updated

    grads, updated = jax.jit(jax.grad(loss_fn, has_aux=True))(variables["params"])
    old, new = variables["batch_stats"], updated["batch_stats"]
    assert jax.tree.structure(old) == jax.tree.structure(new)
    for name, module in grads.items():
        frozen = name in model.frozen_modules()
        assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(module)) != frozen, name
        if name in old:
            unmoved = np.array_equal(old[name]["norm"]["mean"], new[name]["norm"]["mean"])
            assert unmoved == frozen, name
