"""Going on with a run: whose checkpoints these are, and where they lead."""

import json
import logging
import pathlib
from typing import Any

import orbax.checkpoint as ocp
from clu import parameter_overview

from m2det_jax.config import FREE_KEYS, OWN_KEYS, Config
from m2det_jax.config.dotted import flatten, to_dict
from m2det_jax.config.stored import stored_config
from m2det_jax.datasets import record
from m2det_jax.errors import InputError
from m2det_jax.run import checkpoint, checksums, devices
from m2det_jax.run.history import HISTORY
from m2det_jax.run.outputs import Outputs
from m2det_jax.run.state import TrainState
from m2det_jax.training.plan import same_schedule, schedule_stretches
from m2det_jax.training.prepare import Run

log = logging.getLogger("m2det_jax")

_SCHEDULE = tuple(
    f"optimizer.{key}" for key in ("warmup_epochs", "warmup_share", "decay_epochs", "decay_shares")
)

_REPLACED = ("config.json", "train_samples.png")

# What is counted through all stops of a run, and saved with each checkpoint.
_FRESH = {
    "AP": -1.0,
    "best_AP": -1.0,
    "evaluations_since_best": 0,
    "nonfinite_steps": 0,
    "replaced_images": 0,
}


def start_or_resume(
    run: Run,
    state: TrainState | None,
    running,
    manager: ocp.CheckpointManager,
    config: Config,
    allow_config_change: bool = False,
) -> tuple[TrainState, Any, dict[str, Any], bool]:
    """Returns where a run goes on: from its latest checkpoint, or from the state before step 1.

    Args:
      state: that of a fresh start; None where the workdir has checkpoints.

    Returns:
      (state, running metrics, progress, whether the step of the state has been evaluated).

    Raises:
      ValueError: the checkpoints are of another config or other data; lists the differences. Or
        the processes of the run were not given the same.
    """
    _refuse_unlike_processes(run, config)
    _refuse_converted(manager)
    meta = checkpoint.read_meta(manager)
    if meta is not None:
        refuse_other_run(meta, config, run, manager.directory, allow_config_change)
    if state is not None:
        return state, running, dict(_FRESH), False
    found = checkpoint.restore_latest(manager, run.state_shapes, running)
    if found is None:
        raise FileNotFoundError(
            f"{manager.directory}: what is there is no checkpoint of this run; move it away, or "
            "give another --workdir"
        )
    state, running, meta = found
    overview = parameter_overview.get_parameter_overview(state.params, include_stats=False)
    log.info("parameters:\n%s", overview)
    log.info("resuming from step %d of %s", int(state.step), manager.directory)
    if config.init_from:
        log.info("config.init_from=%s is not read: the run goes on", config.init_from)
    # Saved before the step was evaluated; what came of that is beside it.
    evaluation = manager.metrics(int(state.step)) or {}
    progress = _FRESH | meta["progress"] | {k: v for k, v in evaluation.items() if k in _FRESH}
    return state, running, progress, bool(evaluation)


def _refuse_unlike_processes(run: Run, config: Config) -> None:
    common = {key: value for key, value in flatten(config).items() if key not in OWN_KEYS}
    devices.refuse_unlike("the config", repr(sorted(common.items())))
    data = [run.train_index.class_names, sorted(run.fingerprints.items())]
    devices.refuse_unlike("the data set", repr(data))
    devices.refuse_unlike("the version of the packages", repr(checkpoint.versions()))


def _refuse_converted(manager: ocp.CheckpointManager) -> None:
    """Raises ValueError where the checkpoints are converted weights, which cannot be resumed."""
    folder = pathlib.Path(manager.directory)
    # Whole but for what training needs: `convert` writes no "train".
    steps = list(folder.glob("*[0-9]"))
    if steps and all((p / "model").is_dir() and not (p / "train").exists() for p in steps):
        raise InputError(
            f"{folder.parent} holds converted weights, not a run to resume; train from them with "
            f"--config.init_from={folder.parent} (--config.model.backbone_weights for a backbone) "
            "and another --workdir"
        )


def refuse_other_run(
    meta: dict, config: Config, run: Run, folder: pathlib.Path, allowed: bool
) -> None:
    """Refuses checkpoints that this config and this data would not have led to.

    Keys that cannot change what the steps compute are free to differ, see config.FREE_KEYS;
    their changes are logged.
    """
    if tuple(meta["class_names"]) != run.train_index.class_names:
        raise InputError(
            f"{folder} was trained on the classes {meta['class_names']}, the data has "
            f"{list(run.train_index.class_names)}; use another --workdir"
        )
    before = stored_config(meta, source=str(folder))
    changed, free = changed_keys(before, config)
    indices = {"training": run.train_index, "validation": run.val_index}
    for what, was in meta.get("data", {}).items():
        if was != (now := run.fingerprints[what]):
            args = config, folder.parent, what, indices[what], was
            found = record.what_changed(*args) or f"{was}, now {now}"
            changed.append(f"the {what} set: {found}")
    versions = checkpoint.versions()
    for name, was in meta.get("versions", {}).items():
        if was != (now := versions.get(name)):
            log.warning("%s was %s, is %s now: the run may not end bit for bit as it would have",
                        name, was, now)  # fmt: skip
    for line in free:
        log.info("changed since the last checkpoint: %s", line)
    stretches = schedule_stretches(before) or schedule_stretches(config)
    if any("config.epochs" in line for line in free) and stretches:
        log.warning("another config.epochs stretches the learning rate's schedule: from here on it "
                    "is that of a run of %d steps", run.plan.steps)  # fmt: skip
    if not changed:
        return
    listed = "; ".join(changed)
    if not allowed:
        raise InputError(
            f"{folder} is of a run that would go another way: {listed}. Give what it began with "
            "(--workdir alone does), or another --workdir, or --allow_config_change to go on all "
            "the same"
        )
    log.warning("going on although the run would have gone another way: %s", listed)


def changed_keys(before: Config, config: Config) -> tuple[list[str], list[str]]:
    """Compares a config with the one that a checkpoint was saved with.

    Returns:
      (lines of the keys that change the result, lines of the others), "config.a.b was 1, now 2".
    """
    old, same = flatten(before), same_schedule(before, config)
    lines: tuple[list[str], list[str]] = [], []
    for key, value in flatten(config).items():
        if (was := old.get(key)) != value and not (same and key in _SCHEDULE):
            lines[key in FREE_KEYS].append(f"config.{key} was {was!r}, now {value!r}")
    return lines


def claim_files(workdir: pathlib.Path) -> None:
    """Refuses a workdir without checkpoints in which files of somebody else have a run's names.

    Raises:
      InputError: it names the file.
    """
    Outputs(workdir, "train").claim(_REPLACED, appended=[HISTORY])


def own_files(workdir: pathlib.Path) -> Outputs:
    """Returns what a run writes the files by that people may take for their own, or change."""
    files = Outputs(workdir, "train")
    if not (workdir / HISTORY).exists():
        files.write(HISTORY, "")
    # Versions before 0.2 noted nothing.
    files.record(*(name for name in (*_REPLACED, HISTORY)
                   if (workdir / name).exists() and not files.noted(name)))  # fmt: skip
    return files


def write_config(files: Outputs, config: Config) -> None:
    """Writes the config beside the run: for people, and for `--workdir` alone to resume by.

    Raises:
      ValueError: there is one that was changed since a run wrote it, and says something else.
    """
    path = files.folder / "config.json"
    text = json.dumps(to_dict(config), indent=2) + "\n"
    if path.is_file() and _read_json(path) == json.loads(text):
        if not files.wrote(path.name):  # changed by the user, and taken
            files.record(path.name)
        return
    if path.is_file() and not files.wrote(path.name):
        raise InputError(
            f"{path}: it was changed since the run wrote it, and this command gives another config;"
            " start with --workdir alone to take it, or delete it to go on with the command's"
        )
    files.write(path.name, text)


def _read_json(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        return None


def what_is_left(workdir: pathlib.Path) -> str:
    """Says what a run that had to stop can be resumed from."""
    folder = workdir / "checkpoints"
    steps = checksums.finished_steps(workdir)
    last = f"the last good checkpoint is step {steps[-1]}" if steps else "none is saved yet"
    return f"{last} in {folder}; then the same command goes on from there"
