"""Training from Python: `m2det_jax.fit`, the road of `python -m m2det_jax.main`."""

import dataclasses
import functools
import os
import pathlib
import signal
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from m2det_jax import runtime
from m2det_jax.config import Config
from m2det_jax.config.dotted import flatten, nearest_key, thaw
from m2det_jax.config.experiment_checks import load_checked
from m2det_jax.config.experiments import experiment_path
from m2det_jax.config.keys import FORMATS
from m2det_jax.config.stored import get_config, stored_file
from m2det_jax.datasets.evaluation import refuse_untrusted
from m2det_jax.errors import InputError
from m2det_jax.inference.trained_detector import TrainedDetector, load
from m2det_jax.run.history import read_history
from m2det_jax.run.hooks import NO_HOOKS, Hooks
from m2det_jax.run.signals import Stopped
from m2det_jax.train import train

DEFAULT_EXPERIMENT = "small320"

# What may be data: a folder with CSV files, or keys of config.data.
Data = str | os.PathLike | Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A finished run.

    Attributes:
        workdir: folder of the run.
        metrics: of the last evaluation; {}: there was nothing left to do.
    """

    workdir: pathlib.Path
    metrics: dict[str, Any]

    @functools.cached_property
    def detector(self) -> TrainedDetector:
        """The detector of the last step; `load(fitted.workdir, "best")` gives the best one."""
        return load(self.workdir)

    @functools.cached_property
    def history(self) -> list[dict[str, float]]:
        """What was written at some steps, in order: {"step": 20, "loss": 1.9, ...}.

        The figures of evaluations have names that begin with val_.
        """
        return read_history(self.workdir)


def fit(
    data: Data | None = None,
    experiment: str | os.PathLike | ConfigDict | Config | None = None,
    *,
    workdir: str | os.PathLike | None = None,
    epochs: float | None = None,
    hooks: Hooks | None = None,
    allow_config_change: bool = False,
    trust: bool = False,
    **overrides: Any,
) -> Fitted:
    """Trains a detector, or goes on with a run; the same as `python -m m2det_jax.main`.

    A script needs no `__main__` guard. What the run says goes to the logger "m2det_jax".

    Args:
        data: a folder with train.csv, classes.csv and perhaps val.csv; or keys of config.data,
            such as {"format": "coco", "root": "coco", "train_split": "train2017", "val_split":
            "val2017"} or {"train_csv": "a.csv", "classes_csv": "classes.csv"}. Where CSV files
            have none for validation, a part of the training images is split off. None: as the
            config has it.
        experiment: name of a shipped experiment or path of one, or a config. None: what workdir has
            been trained with so far, else "small320".
        workdir: folder of the run; None: runs/EXPERIMENT. A run that is there goes on.
        epochs: of the whole run; None: as the experiment has it.
        hooks: an object whose methods are called when the run starts, after evaluations, at its
            end, and for an error.
        allow_config_change: go on although config keys differ that change the result.
        trust: a Python module that only the config in workdir names as data.format may be imported.
        overrides: other keys of the config, of which `deterministic` has an effect only if jax has
            not been used in this process before: batch_size=4, optimizer={"learning_rate": 1e-3} or
            **{"optimizer.learning_rate": 1e-3}.

    Returns:
        The finished run, with its detector, history and metrics.

    Raises:
        InputError: if a key does not exist, a value does not fit, or as `train` raises it.
        KeyboardInterrupt: at Ctrl-C; the state is saved, and the same call goes on.
        SystemExit: likewise, at SIGTERM or SIGHUP.
    """
    hooks = NO_HOOKS if hooks is None else hooks
    if not isinstance(hooks, Hooks):
        raise InputError(f"hooks: an object of a class of m2det_jax.Hooks expected, got {hooks!r}")
    config, workdir, stored = _config_and_workdir(experiment, workdir)
    changes = _data_keys(data) | _given(overrides)
    _change(config, changes | ({} if epochs is None else {"epochs": epochs}))
    if stored and "data.format" not in changes:
        refuse_untrusted(config.data.format, trust, workdir)
    if config.distributed.coordinator:
        raise InputError(
            "config.distributed.coordinator: `fit` trains in this process alone; several processes "
            "train together by `m2det train`, see docs/clusters.md"
        )
    runtime.start_quietly(config.platform, config.deterministic)
    try:
        with runtime.expected_warnings_left_out():
            metrics = _train(config, workdir, allow_config_change, hooks)
        run = Fitted(workdir, metrics)
        hooks.on_run_end(run)
        return run
    except BaseException as error:
        try:
            hooks.on_exception(error)
        except Exception as later:
            error.add_note(f"the hook on_exception failed too: {later!r}")
        raise


def _train(
    config: ConfigDict, workdir: pathlib.Path, allow_config_change: bool, hooks: Hooks
) -> dict[str, Any]:
    try:
        return train(config, workdir, allow_config_change=allow_config_change, hooks=hooks)
    except Stopped as stopped:
        # `except Exception` around trials of many runs must not go on with the next one.
        if stopped.status == 128 + signal.SIGINT:
            raise KeyboardInterrupt(str(stopped)) from stopped
        raise SystemExit(stopped.status) from stopped


def _config_and_workdir(
    experiment: str | os.PathLike | ConfigDict | Config | None,
    workdir: str | os.PathLike | None,
) -> tuple[ConfigDict, pathlib.Path, bool]:
    """Returns a config to change, the workdir, and whether the config is one that a run stored."""
    if isinstance(experiment, ConfigDict | Config):
        if workdir is None:
            raise InputError("workdir: give one; only an experiment with a name has a default")
        config = experiment
        config = (
            thaw(config) if isinstance(config, Config) else config.copy_and_resolve_references()
        )
        return config, pathlib.Path(workdir), False
    name = DEFAULT_EXPERIMENT if experiment is None else os.fspath(experiment)
    path, colon, text = name.partition(":")
    folder = pathlib.Path(workdir or f"runs/{pathlib.Path(path).stem}")
    if experiment is None and (stored := stored_file(folder)):
        return get_config(str(stored)), folder, True
    file = experiment_path(path)
    if file.suffix == ".json":
        return get_config(str(file)), folder, True
    return load_checked(f"{file}{colon}{text}"), folder, False


def _data_keys(data: Data | None) -> dict[str, Any]:
    """Returns the dotted keys that `data` stands for."""
    if data is None:
        return {}
    if isinstance(data, Mapping):
        keys = dict(data)
        if "train_csv" in keys:
            keys = {"format": "csv", "val_csv": ""} | keys
        return {f"data.{key}": value for key, value in keys.items()}
    if not isinstance(data, str | os.PathLike):
        raise InputError(f"data: a folder or a mapping expected, got {type(data).__name__}")
    folder = pathlib.Path(data)
    missing = [name for name in ("train.csv", "classes.csv") if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"{folder}: no {' and no '.join(missing)} there; give a folder with train.csv, "
            "classes.csv and perhaps val.csv, or a mapping such as {'format': 'coco', 'root': "
            f"{str(folder)!r}}} ({', '.join(FORMATS)}; docs/data.md)"
        )
    val = folder / "val.csv"
    return {
        "data.format": "csv",
        "data.train_csv": str(folder / "train.csv"),
        "data.val_csv": str(val) if val.is_file() else "",
        "data.classes_csv": str(folder / "classes.csv"),
    }


def _given(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the dotted keys of overrides, whose sections may be mappings of their own."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= _given(value, f"{dotted}.")
        else:
            found[dotted] = value
    return found


def _change(config: ConfigDict, values: Mapping[str, Any]) -> None:
    """Sets dotted keys of a config, in place.

    Raises:
        InputError: if there is no such key, or its value has another type; names it.
    """
    known = flatten(config)
    for key, value in values.items():
        if key not in known:
            raise InputError(
                f"config.{key}: there is no such key; the nearest is config."
                f"{nearest_key(config, key)}"
            )
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        elif isinstance(value, np.generic):
            value = value.item()
        old = known[key]
        try:
            if value is None or isinstance(value, bool) != isinstance(old, bool):
                raise TypeError
            config.update_from_flattened_dict({key: value})
        except TypeError:
            kind = type(old).__name__
            raise InputError(
                f"config.{key}={value!r}: give a value of type {kind}, now {old!r}"
            ) from None
