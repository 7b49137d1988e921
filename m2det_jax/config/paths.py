"""Files and folders that a config names: made absolute, and found again where a run has moved."""

import json
import os
import pathlib

from m2det_jax.config.dotted import get, with_values
from m2det_jax.config.keys import FORMATS, Config

# In the workdir: what the data of the run were, see datasets/record.
RECORD = "data_record.json"

_CSV = ("data.train_csv", "data.val_csv", "data.classes_csv", "data.extra_train")
_OTHERS = ("data.root", "data.extra_train")
_WEIGHTS = ("init_from", "model.backbone_weights")


def absolute_paths(config: Config) -> Config:
    """Returns a config that names its files and folders from whatever folder it is read.

    What is not there stays as it is: the root of a module of the user's need not be a folder.
    """
    found = {}
    for key in _path_keys(config):
        value = get(config, key)
        several = isinstance(value, tuple)
        found[key] = tuple(map(_absolute, value)) if several else _absolute(value)
    if config.data.format in FORMATS and config.data.format != "csv" and not config.data.root:
        found["data.root"] = os.getcwd()  # which is what it stands for
    return with_values(config, found)


def relative_paths(config: Config, workdir: pathlib.Path) -> dict[str, list[str]]:
    """Returns where the files and folders of a config lie, seen from the workdir, by key."""
    found = {}
    for key in _path_keys(config):
        value = get(config, key)
        paths = value if isinstance(value, tuple) else [value]
        found[key] = [os.path.relpath(path, workdir) if path else "" for path in paths]
    return found


def find_paths(config: Config, workdir: pathlib.Path) -> Config:
    """Returns the config of a run, with the files that are gone where they lie now.

    A workdir may be moved together with its data, and data may have moved before the run was last
    started: then they lie to the workdir as they did at that start.
    """
    found, noted = {}, _noted(workdir)
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
        found[key] = tuple(paths) if several else paths[0]
    return with_values(config, found)


def missing_paths(config: Config, role: str) -> list[str]:
    """Lists, as "key=path", the files and folders of a role ("train", "val") that are not there."""
    data = config.data
    files = {"train": ("train_csv", data.train_csv), "val": ("val_csv", data.val_csv)}
    values = [files[role] if data.format == "csv" else ("root", data.root)]
    if role == "train":
        values += [("extra_train", path) for path in data.extra_train]
    # The root of a module of the user's need not be a folder.
    known = data.format in FORMATS
    return [f"{k}={path}" for k, path in values if known and path and not os.path.exists(path)]


def _path_keys(config: Config) -> tuple[str, ...]:
    return (_CSV if config.data.format == "csv" else _OTHERS) + _WEIGHTS


def _absolute(path: str) -> str:
    return os.path.abspath(path) if path and os.path.exists(path) else path


def _noted(workdir: pathlib.Path) -> dict:
    try:
        return dict(json.loads((workdir / RECORD).read_bytes())["paths"])
    except (OSError, ValueError, LookupError, TypeError):
        return {}  # of an older version, or damaged: written anew when the run is started next
