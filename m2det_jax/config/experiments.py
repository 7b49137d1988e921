"""Experiments: files with a function get_config(), of the user or shipped, by path or name."""

import importlib.resources
import importlib.util
import pathlib

from ml_collections import ConfigDict

from m2det_jax.errors import InputError


def experiments_dir() -> pathlib.Path:
    """Returns the folder of the shipped experiments: in the package, or beside it in a checkout."""
    package = pathlib.Path(str(importlib.resources.files("m2det_jax")))
    inside = package / "experiments"
    return inside if inside.is_dir() else package.parent / "experiments"


def experiment_path(name: str) -> pathlib.Path:
    """Returns the file of an experiment given as a path or as the name of a shipped one.

    Raises:
        InputError: there is no such file; the message lists the shipped names.
    """
    path = pathlib.Path(name)
    if path.is_file():
        return path
    shipped = {p.stem: p for p in sorted(experiments_dir().glob("*.py"))}
    # `experiments/vgg512.py` means the shipped one also where there is no checkout.
    if path.stem in shipped and str(path.parent) in (".", "experiments"):
        return shipped[path.stem]
    raise InputError(f"experiment {name}: no such file; shipped experiments: {', '.join(shipped)}")


def load_experiment(name: str) -> ConfigDict:
    """Returns the config of an experiment given as a path or as the name of a shipped one.

    A path may end with ":TEXT", which is given to the experiment's get_config.
    """
    name, _, text = name.partition(":")
    spec = importlib.util.spec_from_file_location("m2det_jax_experiment", experiment_path(name))
    assert spec and spec.loader  # there always is one for a Python file
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*[text] if text else [])
