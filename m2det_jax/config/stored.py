"""Stored configs: what a run has left in config.json and in the meta of its checkpoints.

All are read by `stored_config`, with one policy. A key that the config lacks is younger than the
run: it gets its default, under which a run does what it did before there was the key. A key that
this version lacks is refused, with the version that wrote it: nobody knows what it would have done.

As an experiment of its own (`get_config`) a stored config goes through the command line too:
`--config runs/mine/config.json`, or `--workdir runs/mine` alone, takes it.
"""

import ast
import json
import pathlib
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

import m2det_jax
from m2det_jax.config.dotted import flatten, freeze, get, nearest_key, thaw
from m2det_jax.config.keys import Config
from m2det_jax.config.paths import find_paths
from m2det_jax.errors import InputError


def stored_config(
    stored: Mapping, overrides: Sequence[str] = (), *, source: str = "the checkpoint"
) -> Config:
    """Returns the config that a run has stored; unchecked, and with younger keys at their defaults.

    Args:
        stored: what a checkpoint's meta holds, or the config in it alone, as JSON gives them.
        overrides: changes of its section eval, such as "eval.score_threshold=0.3".
        source: where it was stored, for errors.

    Raises:
        InputError: it has keys that this version has not, or values of another type; or there is
            no such key to override in that section.
    """
    config = thaw(Config())  # which knows the types
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
        config.update_from_flattened_dict(values)
    except (TypeError, ValueError) as error:
        raise InputError(f"{source}: a value is of another type than here: {error}") from None
    for override in overrides:
        _override_eval(config, override)
    return freeze(config)


def get_config(path: str) -> ConfigDict:
    """Returns the config in config.json or in a checkpoint's meta, read as `stored_config` does.

    Files that it names are looked for beside the workdir where they are not in their place.

    Raises:
        InputError: the file is no config of this program, or has keys that this version has not.
    """
    file = pathlib.Path(path)
    content = _read(file)
    workdir = file.parent
    if file.name == "metadata":
        workdir = file.parents[3]  # workdir/checkpoints/STEP/meta/metadata
    elif metas := stored_metas(workdir):
        # config.json does not say which version wrote it.
        content = {"config": content, "versions": _read(metas[0]).get("versions", {})}
    try:
        return thaw(find_paths(stored_config(content, source=path), workdir))
    except ValueError as error:
        raise InputError(f"{error}; or give --config") from None


def stored_file(workdir: pathlib.Path) -> pathlib.Path | None:
    """Returns the file with the config of a run, for `get_config`; None: there is none."""
    # What training wrote as it began, else what lies in the newest checkpoint.
    places = [workdir / "config.json", *stored_metas(workdir)]
    return next((path for path in places if path.is_file()), None)


def stored_metas(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files with the meta of the checkpoints in a workdir, the newest first."""
    found = workdir.glob("checkpoints/*/meta/metadata")
    steps = {path: path.parts[-3] for path in found if path.parts[-3].isdigit()}
    return sorted(steps, key=lambda path: int(steps[path]), reverse=True)


def _read(file: pathlib.Path) -> dict:
    try:
        content = json.loads(file.read_text())
        if not isinstance(content, dict):
            raise ValueError("no object")
        return content
    except ValueError as error:
        raise InputError(f"{file} is not a config in JSON ({error}); give --config") from None


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
