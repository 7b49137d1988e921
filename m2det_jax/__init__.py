"""M2Det in JAX and Flax: train, evaluate and use a single-shot detector.

`load` returns a trained detector and `fit` trains one; see docs/python.md. Importing the package
(or `m2det_jax.ops`) is fast: what these need (Flax, Orbax) is loaded on first use.
"""

import importlib
from typing import Any

__version__ = "0.2.0"
__all__ = ["ExportedDetector", "Hooks", "Result", "TrainedDetector", "fit", "load", "restore"]

_MODULES = {
    "ExportedDetector": "m2det_jax.inference.exported",
    "Hooks": "m2det_jax.run.hooks",
    "Result": "m2det_jax.inference.result",
    "TrainedDetector": "m2det_jax.inference.trained_detector",
    "fit": "m2det_jax.fitting",
    "load": "m2det_jax.inference.trained_detector",
    "restore": "m2det_jax.trained",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'm2det_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
