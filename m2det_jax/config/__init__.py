"""The configuration: `keys` has every key with its default, check, meaning and unit.

Experiments (`experiments/*.py`) start from `default_config()` and override a few keys; the command
line overrides the rest with `--config.section.key=value`. Only plain values: no callables, no
little languages. The verbs hand the ConfigDict to `train` and the like, where `resolve` makes a
frozen `Config` of it; nothing after sees a ConfigDict.
"""

from ml_collections import ConfigDict

from m2det_jax.config.checks import resolve
from m2det_jax.config.dotted import thaw
from m2det_jax.config.keys import FREE_KEYS, OWN_KEYS, Config

__all__ = ["FREE_KEYS", "OWN_KEYS", "Config", "default_config", "resolve"]


def default_config() -> ConfigDict:
    """Returns the defaults: the paper's VGG16 at 512 px with our focal-loss training recipe."""
    return thaw(Config())
