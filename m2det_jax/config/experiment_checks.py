"""Loading an experiment, with a clear message where it is none."""

import pathlib

from ml_collections import ConfigDict

from m2det_jax.config.dotted import raise_if_other_keys
from m2det_jax.config.experiments import load_experiment
from m2det_jax.errors import InputError, in_one_line


def load_checked(name: str) -> ConfigDict:
    """Loads an experiment, and checks that it is a config with the keys of this version.

    Raises:
        InputError: there is no such file, it cannot be run, or gives something else; says where.
    """
    try:
        config = load_experiment(name)
    except InputError:
        raise
    except Exception as error:  # an experiment is a program, and may raise anything
        stem = pathlib.Path(name.partition(":")[0]).stem
        raise InputError(
            f"experiment {name}: cannot be loaded ({in_one_line(error, stem)}); give a Python file "
            "with a function get_config() that returns a changed default_config()"
        ) from error
    if not isinstance(config, ConfigDict):
        raise InputError(
            f"experiment {name}: get_config() returns {type(config).__name__}, not a ConfigDict; "
            "change default_config() and return it"
        )
    raise_if_other_keys(config, f"experiment {name}: ")
    return config
