"""What XLA makes of the step: export to other platforms, bytes between devices, aliased buffers."""

import collections
import math
import re

import jax
import jax.numpy as jnp
import pytest
import support

from m2det_jax.build import build_detector
from m2det_jax.config import default_config, resolve
from m2det_jax.model import variable_shapes
from m2det_jax.run.state import create_train_state

BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "pred": 1}
# Computed once per step whatever is split: the three loss terms, the positives, the predicates
# that end the loops of the matching.
FEW = 8


@pytest.fixture(scope="module")
def exported():
    """The step of vgg512 at batch 16 in bfloat16 for CUDA and TPU, and its state, no array real."""
    config = default_config()
    config.update_from_flattened_dict({"batch_size": 16, "model.dtype": "bfloat16"})
    config = resolve(config)
    detector = build_detector(config, tuple(f"class{i}" for i in range(80)))
    step, optimizer = support.make_step(config, detector)
    shapes = variable_shapes(detector.model, (512, 512))
    state = jax.eval_shape(lambda variables: create_train_state(variables, optimizer), shapes)
    batch = {
        "image": jax.ShapeDtypeStruct((16, 512, 512, 3), jnp.uint8),
        "boxes": jax.ShapeDtypeStruct((16, 32, 4), jnp.float32),
        "labels": jax.ShapeDtypeStruct((16, 32), jnp.int32),
        "mask": jax.ShapeDtypeStruct((16, 32), jnp.bool_),
    }
    jitted = jax.jit(step, donate_argnums=0)
    return jax.export.export(jitted, platforms=("cuda", "tpu"))(state, batch), state


def test_vgg512_lowers_for_cuda_and_tpu(exported):
    program, state = exported
    assert program.platforms == ("cuda", "tpu")
    leaves = jax.tree.leaves(state)
    # One for each array of the state, then the batch; out comes the state, then six metrics.
    assert len(program.in_avals) == len(leaves) + 4
    assert len(program.out_avals) == len(leaves) + 6
    for leaf, given, made in zip(leaves, program.in_avals, program.out_avals, strict=False):
        assert (leaf.shape, leaf.dtype) == (given.shape, given.dtype) == (made.shape, made.dtype)
    weights = sum(math.prod(x.shape) for x in jax.tree.leaves(state.params))
    assert weights > 50e6


def test_the_exported_step_computes_in_bfloat16(exported):
    text = exported[0].mlir_module()
    convolutions = re.findall(r"stablehlo\.convolution.*->\s*tensor<([^>]*)>", text)
    assert len(convolutions) > 300
    dtypes = collections.Counter(shape.rsplit("x", 1)[-1] for shape in convolutions)
    # For each platform and scale of both heads: the outputs, and the gradients of map and kernel.
    assert dtypes.pop("f32") == 2 * 6 * 2 * 3
    assert dtypes.keys() == {"bf16"}


def test_the_export_donates_every_array_of_the_state(exported):
    program, state = exported
    text = program.mlir_module()
    start = text.index("@main(")
    arguments = re.split(r"%arg\d+: ", text[start : text.index(") -> (", start)])[1:]
    named = [re.search(r'loc\("([^"]*)"', argument) for argument in arguments]
    donated = {
        name[1]
        for name, argument in zip(named, arguments, strict=True)
        if name and ("tf.aliasing_output" in argument or "jax.buffer_donor" in argument)
    }
    paths = jax.tree_util.tree_leaves_with_path(state)
    assert donated == {f"state{jax.tree_util.keystr(path)}" for path, _ in paths}


def collectives(text: str, kind: str) -> list[tuple[str, str, tuple[int, ...]]]:
    """(name of the operation, dtype, shape) of each array that the compiled text communicates."""
    found = []
    for line in text.splitlines():
        if not (made := re.match(rf"\s*(?:ROOT )?(%\S+) = (.*?) {kind}(?:-start)?\(", line)):
            continue
        shapes = re.findall(r"(\w+)\[([\d,]*)\]", made[2])
        names = [_operation(line)]
        if len(shapes) > 1:  # combined: the elements, taken apart again, have names of their own
            names = _elements(text, made[1], len(shapes))
        for name, (dtype, shape) in zip(names, shapes, strict=True):
            found.append((name, dtype, tuple(int(n) for n in shape.split(",") if n)))
    return found


def _operation(line: str) -> str:
    name = re.search(r'op_name="([^"]*)"', line)
    return name[1] if name else ""


def _elements(text: str, operand: str, count: int) -> list[str]:
    names = [""] * count
    pattern = rf"get-tuple-element\({re.escape(operand)}\), index=(\d+)(.*)"
    for found in re.finditer(pattern, text):
        names[int(found[1])] = _operation(found[2])
    return names


def numbers(shape) -> int:
    return math.prod(shape)


def sizes_of(tree) -> collections.Counter:
    return collections.Counter(leaf.size for leaf in jax.tree.leaves(tree))


def reductions_of(small) -> list[int]:
    """Checks what the devices add up: gradients and averages once each. Returns all messages.

    Each as (kind, numbers).
    """
    text, state = small.compiled.as_text(), small.initial
    reduced = [(dtype, numbers(shape)) for _, dtype, shape in collectives(text, "all-reduce")]
    found = collections.Counter(size for _, size in reduced)
    # Every kernel, bias and running average once: none left out, none twice.
    expected = sizes_of(state.params) + sizes_of(state.batch_stats)
    others = found - expected
    assert not expected - found
    assert sum(others.values()) <= FEW and max(others) == 1
    weights = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert 4 * weights <= sum(BYTES[dtype] * size for dtype, size in reduced) < 4.02 * weights
    return [
        (kind, numbers(shape))
        for kind in ("all-gather", "reduce-scatter", "all-to-all", "collective-permute")
        for _, _, shape in collectives(text, kind)
    ]


def test_gradients_are_reduced_once_and_statistics_take_a_message_a_pass():
    small = support.small_step(8)
    channels = [x.size for x in jax.tree.leaves(small.initial.batch_stats)][::2]  # of each norm
    messages = collections.Counter(reductions_of(small))
    # Forward mean and variance of every device; backward the gradients of a device's own.
    gathered = collections.Counter(("all-gather", 8 * 2 * size) for size in channels)
    scattered = collections.Counter(("reduce-scatter", 2 * size) for size in channels)
    assert messages == gathered + scattered


def test_statistics_of_each_device_take_no_message():
    assert reductions_of(support.small_step(8, model__norm_over="device")) == []


def test_accumulated_gradients_are_reduced_once_a_step():
    small = support.small_step(8, accumulation=2)
    params = small.initial.params
    found = collectives(small.compiled.as_text(), "all-reduce")
    weights = sum(leaf.size for leaf in jax.tree.leaves(params))
    everything = sum(BYTES[dtype] * numbers(shape) for _, dtype, shape in found)
    assert 4 * weights <= everything < 4.02 * weights
    large = collections.Counter(numbers(shape) for _, _, shape in found if numbers(shape) > 64)
    assert large == collections.Counter(x.size for x in jax.tree.leaves(params) if x.size > 64)


def test_fsdp_communicates_weights_where_they_are_used():
    small = support.small_step(8, "fsdp")
    text = small.compiled.as_text()
    split = [
        leaf.size
        for leaf, where in zip(
            jax.tree.leaves(small.initial.params),
            jax.tree.leaves(small.state_sharding.params),
            strict=True,
        )
        if not where.is_fully_replicated
    ]
    assert split
    gathered = [numbers(shape) for _, _, shape in collectives(text, "all-gather")]
    # Each of them at least once: the forward and the backward pass may each gather it. But XLA may
    # move a layer's outputs instead where these are smaller; that of jax 0.12 does so for one.
    others = collections.Counter(gathered) - collections.Counter(split)
    missing = list((collections.Counter(split) - collections.Counter(gathered)).elements())
    assert len(missing) <= (jax.__version_info__ >= (0, 11))
    assert all(size > max(others) for size in missing)


@pytest.mark.parametrize("where", [(8, "replicated", 1), (8, "fsdp", 1), (8, "replicated", 2)])
def test_every_buffer_of_the_state_is_reused(where):
    small = support.small_step(*where)
    header = small.compiled.as_text().splitlines()[0]
    aliases = re.findall(r"\{(\d+)\}: \((\d+), \{\}, (?:may|must)-alias\)", header)
    count = len(jax.tree.leaves(small.initial))
    assert sorted((int(out), int(given)) for out, given in aliases) == [
        (i, i) for i in range(count)
    ]
    memory = small.compiled.memory_analysis()
    local = sum(
        math.prod(where.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf, where in zip(
            jax.tree.leaves(small.initial), jax.tree.leaves(small.state_sharding), strict=True
        )
    )
    assert memory.alias_size_in_bytes == pytest.approx(local, rel=0.01)
