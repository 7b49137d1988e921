"""Tensors of PyTorch: their names, their layout, and a list of all that do not fit.

PyTorch keeps kernels as OIHW (output, input, height, width), Flax as HWIO. Matrices are transposed
in the same way.
"""

import math
from collections.abc import Mapping

import numpy as np

from m2det_jax.errors import InputError

# The last part of a name, ours to PyTorch's.
TENSOR_NAMES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
# PyTorch's number of batches that a BatchNorm has seen: not a weight.
IGNORED_SUFFIX = "num_batches_tracked"
# Number of axes -> our axes in PyTorch's order: HWIO to OIHW, and matrices transposed.
TORCH_AXES = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}


def fill(
    wanted: Mapping[str, tuple[tuple[str, ...], tuple[int, ...]]],
    tensors: Mapping[str, np.ndarray],
    *,
    origin: str,
) -> dict[str, np.ndarray]:
    """Returns our path -> float32 tensor in our layout.

    Args:
        wanted: our path -> (names of the same tensor in `tensors`, our shape).
        tensors: in PyTorch's layout, by name.
        origin: the name of `tensors` in errors.

    Raises:
        InputError: if a tensor is missing, extra, wrongly shaped or not finite, is a negative
            variance, or differs from its copy; the message lists all.
    """
    filled, problems = {}, []
    for path, (names, shape) in wanted.items():
        expected = _torch_shape(shape)
        found = [(name, np.asarray(tensors[name])) for name in names if name in tensors]
        if not found:
            problems.append(f"missing: {' or '.join(names)} {expected}, for {path}")
        elif bad := [item for item in found if not _same_up_to_flattening(item[1].shape, expected)]:
            problems += [f"wrong shape: {n} is {t.shape}, expected {expected}" for n, t in bad]
        elif any(not np.array_equal(tensor, found[0][1]) for _, tensor in found[1:]):
            problems.append(f"not equal, but shared by the model: {', '.join(n for n, _ in found)}")
        elif not np.isfinite(found[0][1]).all():
            problems.append(f"not finite: {found[0][0]}")
        elif path.endswith("/var") and (found[0][1] < 0).any():
            problems.append(f"negative variance: {found[0][0]}")
        else:
            filled[path] = _to_flax(found[0][1], shape)
    known = {name for names, _ in wanted.values() for name in names}
    extra = (n for n in tensors if n not in known and not n.endswith(IGNORED_SUFFIX))
    problems += [f"extra: {name} {np.shape(tensors[name])}" for name in extra]
    raise_if_any(origin, problems)
    return filled


def to_torch(value: np.ndarray) -> np.ndarray:
    """Returns one of our tensors in PyTorch's layout; `fill` reads the same bits back."""
    return np.ascontiguousarray(np.asarray(value).transpose(TORCH_AXES[np.ndim(value)]))


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(shape[axis] for axis in TORCH_AXES[len(shape)])


def _to_flax(tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    axes = np.argsort(TORCH_AXES[len(shape)])
    moved = tensor.reshape(_torch_shape(shape)).transpose(axes)
    return np.ascontiguousarray(moved, np.float32)


def _same_up_to_flattening(got: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Says whether shapes agree, or one is the matrix [outputs, all inputs] of the other."""
    if got == expected:
        return True
    matrices = [(shape[0], math.prod(shape[1:])) for shape in (got, expected) if len(shape) > 1]
    return 2 in (len(got), len(expected)) and len(matrices) == 2 and matrices[0] == matrices[1]


def raise_if_any(what: str, problems: list[str]) -> None:
    """Raises an InputError that lists all problems, one on each line, if there are any."""
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise InputError(f"{what}: {count}\n" + "\n".join(problems))
