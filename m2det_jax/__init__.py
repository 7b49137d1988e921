"""M2Det in JAX and Flax: train, evaluate and use a single-shot detector.

`load` gives a trained detector, `fit` trains one; docs/python.md shows both. Importing the package
(or `m2det_jax.ops`) stays light: what these need is loaded when first asked for.
"""

import importlib

__version__ = "0.2.0"
__all__ = ["Hooks", "Result", "TrainedDetector", "fit", "load", "restore"]

_PLACES = {
    "Hooks": "m2det_jax.run.hooks",
    "Result": "m2det_jax.inference.result",
    "TrainedDetector": "m2det_jax.inference.trained_detector",
    "fit": "m2det_jax.fitting",
    "load": "m2det_jax.inference.trained_detector",
    "restore": "m2det_jax.trained",
}


def __getattr__(name: str):
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'm2det_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
