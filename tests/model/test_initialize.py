import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from m2det_jax.model import variable_shapes
from m2det_jax.model.initialize import init_variables


def test_variables_have_the_structure_that_the_model_asks_for(make_tiny):
    model, variables = make_tiny(backbone_norm=True)
    images = jnp.zeros((1, 64, 64, 3))
    expected = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=True))
    assert jax.tree.structure(variables) == jax.tree.structure(dict(expected))
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, dict(expected))
    leaves = jax.tree.leaves(variables)
    assert all(isinstance(leaf, np.ndarray) and leaf.dtype == np.float32 for leaf in leaves)


def test_each_tensor_follows_the_rule_for_its_name(make_tiny):
    _, variables = make_tiny(num_class_outputs=40, tum_width=32, backbone_norm=True)
    logit = -np.log(99.0)
    for path, value in flatten_dict(variables).items():
        _, top, *_, name = path
        if name == "kernel":
            std = 0.01 if top in ("box_head", "class_head") else np.sqrt(2 / value[..., 0].size)
            standard = value / std
            tolerance = 5 / np.sqrt(value.size)
            assert abs(standard.mean()) < tolerance and abs(standard.std() - 1) < tolerance, path
        else:
            fixed = {"bias": logit if top == "class_head" else 0, "mean": 0, "scale": 1, "var": 1}
            np.testing.assert_allclose(value, fixed[name], rtol=1e-6)


def test_without_a_prior_only_the_bias_of_the_class_head_differs(make_tiny):
    model, variables = make_tiny()
    found = flatten_dict(init_variables(model, (64, 64), seed=0, prior=None))
    for path, value in flatten_dict(variables).items():
        if path[1] == "class_head" and path[-1] == "bias":
            assert (value != 0).all() and (found[path] == 0).all()
        else:
            np.testing.assert_array_equal(found[path], value)


def test_draws_depend_on_seed_and_path_alone(make_tiny):
    model, variables = make_tiny()
    again = init_variables(model, (96, 160), seed=0)
    jax.tree.map(np.testing.assert_array_equal, variables, again)
    other = init_variables(model, (64, 64), seed=1)["params"]
    deeper = make_tiny(num_levels=3)[1]["params"]["mlfpn"]
    ours = variables["params"]["mlfpn"]
    kernels = [tree["tum_1"]["top"]["conv"]["kernel"] for tree in (ours, deeper, other["mlfpn"])]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert np.abs(kernels[0] - kernels[2]).max() > 0.1
    twins = [ours[f"tum_{level}"]["top"]["conv"]["kernel"] for level in (1, 2)]
    assert np.abs(twins[0] - twins[1]).max() > 0.1


def test_draws_are_the_same_on_every_machine(make_tiny):
    """Golden values: default_rng((0, crc32("backbone/conv1_1/conv/kernel"))), std sqrt(2 / 27)."""
    kernel = make_tiny()[1]["params"]["backbone"]["conv1_1"]["conv"]["kernel"]
    expected = [0.19516681, 0.17981242, -0.27784565, -0.01649273]
    np.testing.assert_allclose(kernel[0, 0, 0, :4], expected, rtol=1e-6)


def test_a_model_without_norm_still_has_batch_stats():
    from m2det_jax.model.vgg import VGG16

    assert init_variables(VGG16(width=0.125), (64, 64), 0)["batch_stats"] == {}
    assert variable_shapes(VGG16(width=0.125), (64, 64))["batch_stats"] == {}
