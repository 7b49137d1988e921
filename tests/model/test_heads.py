import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from m2det_jax.model.heads import BoxHead, ClassHead, is_class_output
from m2det_jax.model.initialize import fill_variables


def test_outputs_are_in_the_order_scale_row_column_cell_anchor():
    """Each output must spell out the scale, row, column, cell anchor and class it is for."""
    head = ClassHead(anchors_per_cell=2, num_class_outputs=3)
    sizes = ((2, 3), (1, 2))
    maps, params, expected = [], {}, []
    for scale, (height, width) in enumerate(sizes, start=1):
        rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
        maps.append(np.stack([rows, columns], axis=-1)[None].astype(np.float32))
        kernel = np.zeros((3, 3, 2, 6), np.float32)
        kernel[1, 1] = [[1000] * 6, [100] * 6]
        codes = [10_000 * scale + 10 * anchor + c for anchor in range(2) for c in range(3)]
        params[f"scale_{scale}"] = {"kernel": kernel, "bias": np.asarray(codes, np.float32)}
        expected += [
            [10_000 * scale + 1000 * row + 100 * column + 10 * anchor + c for c in range(3)]
            for row in range(height)
            for column in range(width)
            for anchor in range(2)
        ]
    logits = jax.jit(lambda maps: head.apply({"params": params}, maps))(maps)
    np.testing.assert_array_equal(logits, np.asarray([expected], np.float32))


@pytest.mark.parametrize("form", ["conv", "retinanet"])
def test_box_head_gives_four_float32_values_whatever_the_compute_dtype(form):
    head = BoxHead(anchors_per_cell=6, dtype=jnp.bfloat16, form=form)
    maps = [jnp.ones((2, 4, 5, 8), jnp.bfloat16), jnp.ones((2, 2, 3, 8), jnp.bfloat16)]
    deltas, variables = jax.eval_shape(lambda: head.init_with_output(jax.random.key(0), maps))
    assert deltas.shape == (2, 6 * (20 + 6), 4) and deltas.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))


@pytest.mark.parametrize("form", ["conv", "retinanet"])
@pytest.mark.parametrize("kind", [BoxHead, ClassHead])
def test_outputs_in_bfloat16_are_not_rounded_to_its_grid(kind, form):
    """Between 4 and 8 neighbours of bfloat16 are 1/32 apart; sums of 720 products fall between."""
    classes = {"num_class_outputs": 4} if kind is ClassHead else {}
    head = kind(anchors_per_cell=6, dtype=jnp.bfloat16, form=form, **classes)
    maps = [np.random.default_rng(0).standard_normal((1, 8, 9, 80), np.float32)]
    params = head.init(jax.random.key(0), maps)["params"]
    for name, layer in params.items():
        # What is rounded on the way in, so that the float32 head computes the same products.
        layer["kernel"] = np.asarray(layer["kernel"], jnp.bfloat16).astype(np.float32)
        if not name.startswith("tower_"):
            layer["bias"] = np.full_like(layer["bias"], 4.71)
    outputs = np.asarray(jax.jit(lambda: head.apply({"params": params}, maps))())
    between = outputs[(outputs > 4) & (outputs < 8)]
    assert between.size > 500
    on_grid = between * 32 == np.rint(between * 32)
    assert on_grid.mean() < 0.01
    if form == "conv":
        whole = kind(anchors_per_cell=6, **classes)
        rounded = [np.asarray(maps[0], jnp.bfloat16).astype(np.float32)]
        expected = jax.jit(lambda: whole.apply({"params": params}, rounded))()
        np.testing.assert_allclose(outputs, expected, atol=1e-4)


@pytest.mark.parametrize("form", ["conv", "retinanet"])
def test_heads_in_float32_are_flax_convolutions_bit_for_bit(form):
    head = ClassHead(anchors_per_cell=2, num_class_outputs=3, form=form)
    x = np.random.default_rng(0).standard_normal((2, 5, 6, 16), np.float32)
    params = head.init(jax.random.key(0), [x])["params"]

    def with_flax(params, x):
        for name, layer in sorted(params.items(), key=lambda item: item[0] == "output"):
            x = nn.Conv(layer["bias"].size, (3, 3), padding=1).apply({"params": layer}, x)
            x = nn.relu(x) if name.startswith("tower_") else x
        return x.reshape(2, -1, 3)

    def with_head(params, x):
        return head.apply({"params": params}, [x])

    for function in (lambda f: f, lambda f: jax.grad(lambda *args: jnp.square(f(*args)).sum())):
        ours, theirs = (jax.jit(function(f))(params, x) for f in (with_head, with_flax))
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def retinanet_head(num_class_outputs: int = 3):
    head = ClassHead(anchors_per_cell=2, num_class_outputs=num_class_outputs, form="retinanet")
    rng = np.random.default_rng(0)
    # 3 x 4 cells and 2 x 2 cells of 5 channels.
    maps = [rng.standard_normal((1, *size, 5), np.float32) for size in ((3, 4), (2, 2))]
    shapes = jax.eval_shape(lambda: head.init(jax.random.key(0), maps))
    return head, maps, fill_variables({"params": {"class_head": shapes["params"]}}, seed=1)


def test_retinanet_heads_are_five_layers_shared_by_all_scales():
    head, maps, variables = retinanet_head()
    params = variables["params"]["class_head"]
    kernels = {name: layer["kernel"].shape for name, layer in params.items()}
    first, wide = (3, 3, 5, 256), (3, 3, 256, 256)
    tower = {"tower_1": first, "tower_2": wide, "tower_3": wide, "tower_4": wide}
    assert kernels == tower | {"output": (3, 3, 256, 6)}
    params = jax.tree.map(lambda x: 30 * x, params)  # the output must not drown in its bias
    apply = jax.jit(lambda maps: head.apply({"params": params}, maps))
    logits = apply(maps)
    assert logits.shape == (1, 2 * (12 + 4), 3)
    # The same map at both scales gives the same logits; the scale changes nothing.
    twice = apply([maps[0], maps[0]])
    np.testing.assert_allclose(twice[:, :24], twice[:, 24:], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(twice[:, :24], logits[:, :24], rtol=1e-4, atol=1e-5)


def test_retinanet_heads_are_relu_layers_in_a_row():
    head, maps, variables = retinanet_head()
    params = jax.tree.map(lambda x: 10 * x, variables["params"]["class_head"])

    def conv(x, layer):
        dimensions = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(
            x, layer["kernel"], (1, 1), "SAME", dimension_numbers=dimensions
        )
        return y + layer["bias"].reshape(1, 1, 1, -1)

    @jax.jit
    def both(x):
        expected = x
        for i in (1, 2, 3, 4):
            expected = jnp.maximum(conv(expected, params[f"tower_{i}"]), 0)
        return head.apply({"params": params}, [x]), conv(expected, params["output"])

    logits, expected = both(maps[0])
    np.testing.assert_allclose(logits, expected.reshape(1, 24, 3), rtol=1e-4, atol=1e-4)


def test_only_the_outputs_depend_on_the_classes():
    few, many = (retinanet_head(n)[2]["params"] for n in (3, 7))
    few_shapes, many_shapes = (jax.tree.map(np.shape, tree) for tree in (few, many))
    differing = {
        tuple(entry.key for entry in path)
        for path, same in jax.tree_util.tree_leaves_with_path(
            jax.tree.map(lambda a, b: a.shape == b.shape, few, many)
        )
        if not same
    }
    assert few_shapes != many_shapes
    assert differing == {("class_head", "output", name) for name in ("kernel", "bias")}
    assert all(is_class_output(path) for path in differing)
    assert not is_class_output(("class_head", "tower_1", "kernel"))
    assert is_class_output(("class_head", "scale_3", "bias"))
    assert not is_class_output(("box_head", "output", "bias"))
    # The prior probability of 0.01 is the outputs' alone.
    bias = {name: layer["bias"] for name, layer in few["class_head"].items()}
    np.testing.assert_allclose(1 / (1 + np.exp(-bias.pop("output"))), 0.01, rtol=1e-5)
    assert not any(value.any() for value in bias.values())
