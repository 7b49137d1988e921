"""The ops are compiled where a program calls them alone, and fuse where it compiles around them."""

import inspect

import jax
import pytest

from m2det_jax import ops

# Numpy on sizes known beforehand; Candidates and the like are only types.
NOT_COMPILED = {
    "retinanet_anchors",
    "retinanet_sizes",
    "spread_anchors",
    "ssd_anchors",
    "ssd_sizes",
}
FUNCTIONS = [
    n for n in ops.__all__ if not inspect.isclass(getattr(ops, n)) and n not in NOT_COMPILED
]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_is_compiled(name):
    assert isinstance(getattr(ops, name), type(jax.jit(len)))
