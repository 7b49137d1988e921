"""M2Det in JAX and Flax: train, evaluate and use a single-shot detector.

Importing the package (or `m2det_jax.ops`) stays light: `restore` and what it needs (Flax, Orbax)
are loaded when first asked for.
"""

__version__ = "0.2.0"
__all__ = ["restore"]


def __getattr__(name: str) -> object:
    if name == "restore":
        from m2det_jax.trained import restore

        return restore
    raise AttributeError(f"module 'm2det_jax' has no attribute {name!r}")
