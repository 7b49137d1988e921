"""Finding experiments, and the dotted keys of their configs."""

import ast
import difflib
import importlib.resources
import importlib.util
import pathlib
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

import m2det_jax
from m2det_jax.config import default_config
from m2det_jax.errors import InputError


def get(config: ConfigDict, dotted: str):
    """Returns the value at a dotted key, such as "data.train_csv"."""
    for part in dotted.split("."):
        config = config[part]
    return config


def flatten(config: ConfigDict, prefix: str = "") -> dict[str, object]:
    """Returns {dotted key: value} of all leaves, in order."""
    flat = {}
    for key in sorted(config):
        value = config[key]
        inner = isinstance(value, ConfigDict)
        flat |= flatten(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return flat


def nearest_key(config: ConfigDict, dotted: str) -> str:
    """Returns the existing dotted key most like `dotted`: by its whole, else by its last part."""
    keys = list(flatten(config))
    if found := difflib.get_close_matches(dotted, keys, n=1, cutoff=0.6):
        return found[0]
    last = {key.rpartition(".")[2]: key for key in keys}
    found = difflib.get_close_matches(dotted.rpartition(".")[2], list(last), n=1, cutoff=0.0)
    return last[found[0]]


def stored_config(
    stored: Mapping, overrides: Sequence[str] = (), *, source: str = "the checkpoint"
) -> ConfigDict:
    """Returns the config that a run has stored; keys that are younger have their defaults.

    Args:
      stored: what a checkpoint's meta holds, or the config in it alone, as JSON gives them.
      overrides: changes of its section eval, such as "eval.score_threshold=0.3".
      source: it is, for errors.

    Raises:
      ValueError: it has keys that this version has not, or values of another type; or there is no
        such key to override in that section.
    """
    config = default_config()
    try:
        values = flatten(ConfigDict(stored.get("config", stored)))
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{source} is not a config in JSON ({error})") from None
    if unknown := sorted(values.keys() - flatten(config).keys()):
        writer = stored.get("versions", {}).get("m2det_jax", "of another version")
        raise InputError(
            f"{source}: written by m2det_jax {writer}; this is {m2det_jax.__version__}, which has "
            f"no {', '.join(f'config.{key}' for key in unknown)}; use that version"
        )
    try:
        config.update_from_flattened_dict({k: _as_tuple(value) for k, value in values.items()})
    except (TypeError, ValueError) as error:
        raise InputError(f"{source}: a value is of another type than here: {error}") from None
    for override in overrides:
        _override_eval(config, override)
    return config


def _as_tuple(value):
    """JSON knows lists only, a config tuples only."""
    return tuple(map(_as_tuple, value)) if isinstance(value, list | tuple) else value


def _override_eval(config: ConfigDict, override: str) -> None:
    key, equals, text = override.partition("=")
    section = ConfigDict({"eval": config.eval})
    if not equals:
        raise InputError(f"--set {override}: give KEY=VALUE, such as eval.score_threshold=0.3")
    if key not in flatten(section):
        raise InputError(
            f"--set {key}: there is no such key among those of section eval, which alone can "
            f"change after training; the nearest is {nearest_key(section, key)}"
        )
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        value = text  # a plain word
    old = get(config, key)
    if isinstance(old, tuple) and not isinstance(value, (tuple, list)):
        value = (value,)
    try:
        config.update_from_flattened_dict({key: value})
    except TypeError:
        kind = type(old).__name__
        raise InputError(f"--set {override}: give a value of type {kind}, now {old!r}") from None


def experiments_dir() -> pathlib.Path:
    """Returns the folder of the shipped experiments: in the package, or beside it in a checkout."""
    package = pathlib.Path(str(importlib.resources.files("m2det_jax")))
    inside = package / "experiments"
    return inside if inside.is_dir() else package.parent / "experiments"


def experiment_path(name: str) -> pathlib.Path:
    """Returns the file of an experiment given as a path or as the name of a shipped one.

    Raises:
      ValueError: there is no such file; the message lists the shipped names.
    """
    path = pathlib.Path(name)
    if path.is_file():
        return path
    shipped = {p.stem: p for p in sorted(experiments_dir().glob("*.py"))}
    # `experiments/vgg512.py` means the shipped one also where there is no checkout.
    if path.stem in shipped and str(path.parent) in (".", "experiments"):
        return shipped[path.stem]
    raise InputError(f"--config {name}: no such file; shipped experiments: {', '.join(shipped)}")


def load_experiment(name: str) -> ConfigDict:
    """Returns the config of an experiment given as a path or as the name of a shipped one.

    A path may end with ":TEXT", which is given to the experiment's get_config.
    """
    name, _, text = name.partition(":")
    spec = importlib.util.spec_from_file_location("m2det_jax_experiment", experiment_path(name))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*[text] if text else [])
