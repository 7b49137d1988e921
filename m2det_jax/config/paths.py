"""Files and folders that a config names: made absolute, and found again where a run has moved."""

import json
import os
import pathlib

from ml_collections import ConfigDict

from m2det_jax.config.checks import FORMATS
from m2det_jax.config.experiments import get

# In the workdir: what the data of the run were, see datasets/record.
RECORD = "data_record.json"

_CSV = ("data.train_csv", "data.val_csv", "data.classes_csv", "data.extra_train")
_OTHERS = ("data.root", "data.extra_train")
_WEIGHTS = ("init_from", "model.backbone_weights")


def absolute_paths(config: ConfigDict) -> ConfigDict:
    """Returns a copy of a config that names its files and folders from whatever folder it is read.

    What is not there stays as it is: the root of a module of the user's need not be a folder.
    """
    copy = config.copy_and_resolve_references()
    for key in _path_keys(config):
        value = get(config, key)
        several = isinstance(value, tuple)
        paths = [_absolute(path) for path in (value if several else [value])]
        copy.update_from_flattened_dict({key: tuple(paths) if several else paths[0]})
    if config.data.format in FORMATS and config.data.format != "csv" and not config.data.root:
        copy.data.root = os.getcwd()  # which is what it stands for
    return copy


def relative_paths(config: ConfigDict, workdir: pathlib.Path) -> dict[str, list[str]]:
    """Returns where the files and folders of a config lie, seen from the workdir, by key."""
    found = {}
    for key in _path_keys(config):
        value = get(config, key)
        paths = value if isinstance(value, tuple) else [value]
        found[key] = [os.path.relpath(path, workdir) if path else "" for path in paths]
    return found


def find_paths(config: ConfigDict, workdir: pathlib.Path) -> ConfigDict:
    """Returns a copy of the config of a run, with the files that are gone where they lie now.

    A workdir may be moved together with its data, and data may have moved before the run was last
    started: then they lie to the workdir as they did at that start.
    """
    copy = config.copy_and_resolve_references()
    noted = _noted(workdir)
    for key in _path_keys(config):
        value, places = get(config, key), noted.get(key)
        several = isinstance(value, tuple)
        paths = list(value) if several else [value]
        if not isinstance(places, list) or len(places) != len(paths):
            continue
        for i, place in enumerate(places):
            moved = os.path.normpath(os.path.join(os.path.abspath(workdir), str(place)))
            if paths[i] and not os.path.exists(paths[i]) and place and os.path.exists(moved):
                paths[i] = moved
        copy.update_from_flattened_dict({key: tuple(paths) if several else paths[0]})
    return copy


def missing_paths(config: ConfigDict, role: str) -> list[str]:
    """Lists, as "key=path", the files and folders of a role ("train", "val") that are not there."""
    keys = [f"{role}_csv"] if config.data.format == "csv" else ["root"]
    values = [(key, config.data[key]) for key in keys]
    if role == "train":
        values += [("extra_train", path) for path in config.data.extra_train]
    # The root of a module of the user's need not be a folder.
    known = config.data.format in FORMATS
    return [f"{k}={path}" for k, path in values if known and path and not os.path.exists(path)]


def _path_keys(config: ConfigDict) -> tuple[str, ...]:
    return (_CSV if config.data.format == "csv" else _OTHERS) + _WEIGHTS


def _absolute(path: str) -> str:
    return os.path.abspath(path) if path and os.path.exists(path) else path


def _noted(workdir: pathlib.Path) -> dict:
    try:
        return dict(json.loads((workdir / RECORD).read_bytes())["paths"])
    except (OSError, ValueError, LookupError, TypeError):
        return {}  # of an older version, or damaged: written anew when the run is started next
