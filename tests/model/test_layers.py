import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from m2det_jax.model.layers import ConvBlock, avg_pool_2x2, max_pool_2x2, max_pool_3x3, upsample


def _maps(height, width, *, seed=0):
    values = np.random.default_rng(seed).standard_normal((2, height, width, 3), np.float32)
    return values - 10  # all negative: a padding of zeros would win


@pytest.mark.parametrize("size", [(4, 6), (5, 8), (7, 3), (1, 1)])
def test_max_pool_2x2_is_the_maximum_of_each_cell_and_rounds_up(size):
    x = _maps(*size)
    pooled = np.asarray(jax.jit(max_pool_2x2)(x))
    rows, columns = -(-size[0] // 2), -(-size[1] // 2)
    assert pooled.shape == (2, rows, columns, 3)
    for i in range(rows):
        for j in range(columns):
            cell = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
            np.testing.assert_array_equal(pooled[:, i, j], cell.max(axis=(1, 2)))


@pytest.mark.parametrize("size", [(4, 7), (1, 2)])
def test_max_pool_3x3_is_the_maximum_of_each_neighbourhood(size):
    x = _maps(*size)
    pooled = np.asarray(jax.jit(max_pool_3x3)(x))
    assert pooled.shape == x.shape
    for i in range(size[0]):
        for j in range(size[1]):
            near = x[:, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
            np.testing.assert_array_equal(pooled[:, i, j], near.max(axis=(1, 2)))


def test_max_pool_gradients_are_those_of_a_windowed_maximum():
    x = _maps(6, 8)
    weights = np.random.default_rng(1).standard_normal((2, 6, 8, 3), np.float32)

    def flax_3x3(x):
        return nn.max_pool(x, (3, 3), strides=(1, 1), padding=((1, 1), (1, 1)))

    for ours, theirs, scale in (
        (max_pool_2x2, lambda x: nn.max_pool(x, (2, 2), strides=(2, 2)), weights[:, :3, :4]),
        (max_pool_3x3, flax_3x3, weights),
    ):
        got = jax.jit(jax.grad(lambda x, f=ours, w=scale: (f(x) * w).sum()))(x)
        expected = jax.grad(lambda x, f=theirs, w=scale: (f(x) * w).sum())(x)
        np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "out"),
    [((3, 5), (6, 10)), ((13, 7), (25, 13)), ((3, 1), (5, 3)), ((5, 4), (7, 6)), ((2, 2), (2, 9))],
)
def test_nearest_reads_the_floor_of_the_scaled_index(size, out):
    x = _maps(*size)
    resized = np.asarray(jax.jit(lambda x: upsample(x, out, "nearest"))(x))
    assert resized.shape == (2, *out, 3)
    for i in range(out[0]):
        for j in range(out[1]):
            source = x[:, i * size[0] // out[0], j * size[1] // out[1]]
            np.testing.assert_array_equal(resized[:, i, j], source)


def test_bilinear_has_pixel_centres_at_halves_and_repeats_the_border():
    x = jnp.asarray([0.0, 1.0]).reshape(1, 2, 1, 1)
    resized = jax.jit(lambda x: upsample(x, (4, 3), "bilinear"))(x)
    column = np.asarray([0.0, 0.25, 0.75, 1.0])
    np.testing.assert_allclose(resized[0, :, :, 0], np.stack([column] * 3, axis=1), atol=1e-6)


@pytest.mark.parametrize("out", [(7, 9), (10, 16)])
def test_bilinear_agrees_with_jax_image_where_that_enlarges(out):
    x = _maps(5, 8)
    resized = jax.jit(lambda x: upsample(x, out, "bilinear"))(x)
    expected = jax.image.resize(x, (2, *out, 3), "bilinear")
    np.testing.assert_allclose(resized, expected, atol=1e-5)


@pytest.mark.parametrize("method", ["nearest", "bilinear"])
def test_upsampling_gradients_share_out_what_each_output_pixel_gets(method):
    """For weights w the gradient of sum(w * up(x)) at x[i] is the sum of w * (share of x[i])."""
    x, weights = _maps(3, 4), _maps(5, 9, seed=1)

    def weighted(x):
        return (upsample(x, (5, 9), method) * weights).sum()

    gradient = jax.jit(jax.grad(weighted))(x)
    np.testing.assert_allclose((gradient * x).sum(), weighted(x), rtol=1e-4)  # linear in x
    np.testing.assert_allclose(gradient.sum(), weights.sum(), rtol=1e-4)  # shares sum to 1


def test_unknown_upsampling_lists_the_known():
    with pytest.raises(ValueError, match=r"cubic.*'bilinear', 'nearest'"):
        upsample(jnp.zeros((1, 2, 2, 1)), (4, 4), "cubic")


def test_stride_2_puts_kernel_centres_on_even_pixels():
    """As PyTorch's padding does; XLA's "SAME" would put them on odd ones for even sizes."""
    x = jnp.arange(1.0, 7.0).reshape(1, 6, 1, 1)
    block = ConvBlock(1, 3, strides=2, norm=False)
    kernel = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)
    params = {"conv": {"kernel": kernel, "bias": jnp.zeros(1)}}
    out = jax.jit(lambda x: block.apply({"params": params}, x, train=False))(x)
    np.testing.assert_array_equal(out[0, :, 0, 0], [1.0, 3.0, 5.0])


def test_conv_block_normalises_by_the_batch_and_keeps_a_running_average():
    x = np.random.default_rng(0).normal(3, 2, (4, 5, 6, 2)).astype(np.float32)
    block = ConvBlock(2, 1, norm_momentum=0.9)
    variables = {
        "params": {
            "conv": {"kernel": jnp.eye(2).reshape(1, 1, 2, 2)},
            "norm": {"scale": jnp.ones(2), "bias": jnp.full(2, 0.5)},
        },
        "batch_stats": {"norm": {"mean": jnp.ones(2), "var": jnp.full(2, 4.0)}},
    }
    train = jax.jit(lambda x: block.apply(variables, x, train=True, mutable=["batch_stats"]))
    out, updated = train(x)
    mean, var = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
    np.testing.assert_allclose(
        out, np.maximum((x - mean) / np.sqrt(var + 1e-5) + 0.5, 0), atol=1e-4
    )
    stats = updated["batch_stats"]["norm"]
    np.testing.assert_allclose(stats["mean"], 0.9 + 0.1 * mean, rtol=1e-4)
    np.testing.assert_allclose(stats["var"], 0.9 * 4 + 0.1 * var, rtol=1e-4)
    evaluated = jax.jit(lambda x: block.apply(variables, x, train=False))(x)
    np.testing.assert_allclose(evaluated, np.maximum((x - 1) / np.sqrt(4 + 1e-5) + 0.5, 0), 1e-4)


def test_average_pooling_keeps_a_last_row_without_a_partner():
    x = jnp.arange(15.0).reshape(1, 3, 5, 1)
    pooled = np.asarray(jax.jit(avg_pool_2x2)(x))[0, :, :, 0]
    np.testing.assert_array_equal(pooled, [[3.0, 5.0, 6.5], [10.5, 12.5, 14.0]])
