"""M2Det in JAX and Flax: train, evaluate and use a single-shot detector.

Importing the package (or `m2det_jax.ops`) is fast: `restore` and what it needs (Flax, Orbax) are
loaded on first use.
"""

from typing import Any

__version__ = "0.2.0"
__all__ = ["restore"]


def __getattr__(name: str) -> Any:
    if name == "restore":
        from m2det_jax.trained import restore

        return restore
    raise AttributeError(f"module 'm2det_jax' has no attribute {name!r}")
