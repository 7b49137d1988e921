import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from m2det_jax.model import M2Det, official_form, variable_shapes
from m2det_jax.run.cost import count_flops
from m2det_jax.run.devices import data_mesh


def _conv(x, kernel, groups=1):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (2, 2),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def test_hand_counted_operations():
    x, matrix = jnp.zeros((2, 9, 7, 4)), jnp.zeros((4, 6))
    product = 2 * (2 * 9 * 7 * 6) * 4
    assert count_flops(jnp.dot, x, matrix) == product
    assert count_flops(_conv, x, jnp.zeros((3, 3, 4, 8))) == 2 * (2 * 4 * 3 * 8) * (9 * 4)
    grouped = count_flops(lambda a, b: _conv(a, b, 2), x, jnp.zeros((3, 3, 2, 8)))
    assert grouped == 2 * (2 * 4 * 3 * 8) * (9 * 2)
    nested = jax.jit(lambda x, m: jax.nn.relu(jax.jit(jnp.dot)(x, m)))
    assert count_flops(nested, x, matrix) == product


def test_all_devices_of_a_mapped_axis_count():
    mesh = data_mesh()[0].mesh
    split = PartitionSpec(*mesh.axis_names)
    x, matrix = jnp.zeros((16, 4)), jnp.zeros((4, 6))
    mapped = jax.shard_map(jnp.dot, mesh=mesh, in_specs=(split, PartitionSpec()), out_specs=split)
    assert mesh.size == 8 and count_flops(mapped, x, matrix) == count_flops(jnp.dot, x, matrix)


@pytest.mark.parametrize("groups", [1, 2])
def test_gradients_cost_what_is_multiplied(groups):
    x, kernel = jnp.zeros((2, 9, 7, 4)), jnp.zeros((3, 3, 4 // groups, 8))

    y = jnp.zeros((2, 4, 3, 8))
    forward = 2 * (2 * 4 * 3 * 8) * (9 * 4 // groups)
    both = count_flops(lambda *a: jax.vjp(lambda *a: _conv(*a, groups), *a)[1](y), x, kernel)
    # Of the kernel: as many as forward. Of the input: at each of its pixels and for each of its
    # channels a quarter of the 3 x 3 x 8 / groups products, for stride 2 leaves the others out.
    assert both == forward + forward + 2 * (2 * 9 * 7 * 4) * (9 * 8 // groups) // 4


def test_loops():
    matrix = jnp.zeros((5, 5))
    step = 2 * 5**3

    def scanned(m):
        return jax.lax.scan(lambda carry, _: (carry @ m, None), m, length=7)[0]

    def branched(m):
        return jax.lax.cond(m.sum() > 0, lambda m: m @ m @ m, lambda m: m @ m, m)

    def unbounded(m):
        return jax.lax.while_loop(lambda c: c.sum() < 9, lambda c: c @ m, m)

    assert count_flops(scanned, matrix) == 7 * step
    assert count_flops(branched, matrix) == 2 * step
    with pytest.raises(ValueError, match="while"):
        count_flops(unbounded, matrix)


@pytest.mark.parametrize(("side", "billions"), [(320, 148.6), (512, 380.0)])
def test_official_network_needs_what_was_counted_in_the_authors_code(side, billions):
    """That code reduces the base feature once a level, with the same result; we do it once."""
    model = M2Det(num_class_outputs=81, **official_form())
    shapes = variable_shapes(model, (side, side))
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    ours = count_flops(lambda v, x: model.apply(v, x, train=False), shapes, images)
    repeated = 7 * 2 * (side // 8) ** 2 * 768 * 128
    assert ours == pytest.approx(billions * 1e9, rel=0.03)
    assert ours + repeated == pytest.approx(billions * 1e9, rel=1e-3)
