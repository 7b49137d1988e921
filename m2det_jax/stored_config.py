"""The config that a run has left in its workdir, as an experiment of its own.

`--config runs/mine/config.json`, or `--workdir runs/mine` alone, takes it.
"""

import json
import pathlib

from ml_collections import ConfigDict

from m2det_jax.config import default_config
from m2det_jax.experiment import flatten


def get_config(path: str) -> ConfigDict:
    """Returns the config in config.json or in a checkpoint's meta.

    Keys that were added since have their defaults.

    Raises:
      ValueError: the file is no config of this program, or has keys that this version has not.
    """
    try:
        content = json.loads(pathlib.Path(path).read_text())
        # A checkpoint has its config among other things.
        stored = flatten(ConfigDict(content.get("config", content)))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a config in JSON ({error}); give --config") from None
    config = default_config()
    if unknown := sorted(set(stored) - set(flatten(config))):
        raise ValueError(f"{path}: this version has no {', '.join(unknown)}; give --config")
    config.update_from_flattened_dict({key: _as_tuple(value) for key, value in stored.items()})
    return config


def _as_tuple(value):
    """JSON knows lists only, a config tuples only."""
    return tuple(map(_as_tuple, value)) if isinstance(value, list | tuple) else value
