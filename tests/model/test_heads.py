import jax
import jax.numpy as jnp
import numpy as np

from m2det_jax.model.heads import BoxHead, ClassHead


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


def test_box_head_gives_four_float32_values_whatever_the_compute_dtype():
    head = BoxHead(anchors_per_cell=6, dtype=jnp.bfloat16)
    maps = [jnp.ones((2, 4, 5, 8), jnp.bfloat16), jnp.ones((2, 2, 3, 8), jnp.bfloat16)]
    deltas, variables = jax.eval_shape(lambda: head.init_with_output(jax.random.key(0), maps))
    assert deltas.shape == (2, 6 * (20 + 6), 4) and deltas.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
