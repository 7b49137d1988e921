"""Dotted keys of a config, and its two forms: a ConfigDict to change, a frozen Config to read."""

import collections
import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from m2det_jax.config.keys import Config
from m2det_jax.errors import InputError


def get(config: ConfigDict | Config, dotted: str) -> Any:
    """Returns the value at a dotted key, such as "data.train_csv"."""
    for part in dotted.split("."):
        config = getattr(config, part)
    return config


def flatten(config: ConfigDict | Config, prefix: str = "") -> dict[str, object]:
    """Returns {dotted key: value} of all leaves, in the order of the alphabet."""
    values = config if isinstance(config, ConfigDict) else vars(config)
    flat: dict[str, object] = {}
    for key in sorted(values):
        value = values[key]
        inner = isinstance(value, ConfigDict) or dataclasses.is_dataclass(value)
        flat |= flatten(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return flat


def nearest_key(config: ConfigDict | Config, dotted: str) -> str:
    """Returns the existing dotted key most like `dotted`: by its whole, else by its last part."""
    keys = list(flatten(config))
    if found := difflib.get_close_matches(dotted, keys, n=1, cutoff=0.6):
        return found[0]
    last = {key.rpartition(".")[2]: key for key in keys}
    found = difflib.get_close_matches(dotted.rpartition(".")[2], list(last), n=1, cutoff=0.0)
    return last[found[0]]


def freeze(config: ConfigDict) -> Config:
    """Returns the values of a ConfigDict as they are, tuples in place of lists; unchecked.

    Raises:
        InputError: a key is missing, or there is one that this version has not.
    """
    raise_if_other_keys(config)
    return with_values(Config(), flatten(config))


def thaw(config: Config) -> ConfigDict:
    """Returns a ConfigDict with the same values, of its own."""
    return ConfigDict(dataclasses.asdict(config))


def to_dict(config: Any) -> dict[str, Any]:
    """Returns a Config or a section of it as dicts, as JSON files have it: sorted by key."""
    values = sorted(vars(config).items())
    return {k: to_dict(v) if dataclasses.is_dataclass(v) else v for k, v in values}


def with_values(config: Config, values: Mapping[str, object]) -> Config:
    """Returns a config with other values of some dotted keys, such as {"data.root": "coco"}."""
    own: dict[str, Any] = {}
    sections: dict[str, dict[str, object]] = collections.defaultdict(dict)
    for key, value in values.items():
        section, dot, rest = key.partition(".")
        if dot:
            sections[section][rest] = value
        else:
            own[key] = _as_tuple(value)
    own |= {name: with_values(getattr(config, name), inner) for name, inner in sections.items()}
    return dataclasses.replace(config, **own)


def raise_if_other_keys(config: ConfigDict, where: str = "") -> None:
    """Checks that a ConfigDict has the keys of this version, all of them and no others.

    Args:
        where: begins the message.

    Raises:
        InputError: it has not; names a key.
    """
    given, known = flatten(config).keys(), flatten(Config()).keys()
    if unknown := sorted(given - known):
        nearest = nearest_key(Config(), unknown[0])
        raise InputError(
            f"{where}there is no key config.{unknown[0]}; the nearest is config.{nearest}"
        )
    if missing := sorted(known - given):
        raise InputError(
            f"{where}the config lacks {len(missing)} keys, such as config.{missing[0]}; start from "
            "default_config()"
        )


def _as_tuple(value: object) -> object:
    """Returns a value with tuples in place of lists: JSON knows lists only, a Config tuples."""
    return tuple(map(_as_tuple, value)) if isinstance(value, list | tuple) else value
