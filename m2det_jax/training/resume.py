"""Resuming: whose checkpoints these are, where the run goes on, and the files beside them."""

import contextlib
import dataclasses
import functools
import json
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from clu import parameter_overview

from m2det_jax.config import FREE_KEYS, OWN_KEYS, Config, resolve
from m2det_jax.config.dotted import flatten, to_dict
from m2det_jax.config.paths import absolute_paths
from m2det_jax.config.stored import get_config, stored_config
from m2det_jax.datasets import record
from m2det_jax.errors import InputError
from m2det_jax.run import checkpoint, checksums, devices
from m2det_jax.run.history import HISTORY, History
from m2det_jax.run.outputs import Outputs
from m2det_jax.run.progress import Progress
from m2det_jax.run.state import TrainState
from m2det_jax.run.trackers import Trackers
from m2det_jax.training import nonfinite
from m2det_jax.training.plan import same_schedule, schedule_stretches
from m2det_jax.training.prepare import Run, first_state, training_readers
from m2det_jax.training.step import IntervalMetrics

log = logging.getLogger("m2det_jax")

_SCHEDULE = tuple(
    f"optimizer.{key}" for key in ("warmup_epochs", "warmup_share", "decay_epochs", "decay_shares")
)

_REPLACED = ("config.json", "train_samples.png")

# The totals of a run: what is counted through all its stops, and saved with each checkpoint.
_FRESH = {
    "AP": -1.0,
    "best_AP": -1.0,
    "evaluations_since_best": 0,
    "nonfinite_steps": 0,
    "replaced_images": 0,
}


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a run goes on.

    Attributes:
        step: the last one done; 0: none.
        evaluated: that step is.
        pending: that step is not, and is to be.
        interval: running means since the last log line, an IntervalMetrics.
        totals: what is counted through all stops of the run.
    """

    step: int
    evaluated: bool
    pending: bool
    interval: Any
    totals: dict[str, Any]


def fresh_state(config: Config, run: Run, workdir: pathlib.Path) -> TrainState | None:
    """Returns the state before the first step; None where the workdir has checkpoints.

    Raises:
        InputError: a file of somebody else in the workdir has the name of one of a run's, or see
            `prepare.first_state`.
    """
    if checksums.finished_steps(workdir):
        return None
    state = first_state(config, run)
    if jax.process_index() == 0:
        Outputs(workdir, "train").claim(_REPLACED, appended=[HISTORY])
    return state


def start_or_resume(
    run: Run,
    state: TrainState | None,
    manager: ocp.CheckpointManager,
    config: Config,
    allow_config_change: bool = False,
) -> tuple[TrainState, Start]:
    """Returns where a run goes on: from its latest checkpoint, or from the state before step 1.

    Args:
        state: that of a fresh start; None where the workdir has checkpoints.

    Raises:
        InputError: the checkpoints are of another config or other data; lists the differences. Or
            the processes of the run were not given the same.
    """
    interval = devices.place(IntervalMetrics.empty(), run.replicated)
    _refuse_unlike_processes(run, config)
    _refuse_converted(manager)
    meta = checkpoint.read_meta(manager)
    if meta is not None:
        refuse_other_run(meta, config, run, manager.directory, allow_config_change)
    if state is not None:
        return state, Start(0, False, False, interval, dict(_FRESH))
    found = checkpoint.restore_latest(manager, run.state_shapes, interval)
    if found is None:
        raise FileNotFoundError(
            f"{manager.directory}: what is there is no checkpoint of this run; move it away, or "
            "give another --workdir"
        )
    state, interval, meta = found
    overview = parameter_overview.get_parameter_overview(state.params, include_stats=False)
    log.info("parameters:\n%s", overview)
    step = int(state.step)
    log.info("resuming from step %d of %s", step, manager.directory)
    if config.init_from:
        log.info("config.init_from=%s is not read: the run goes on", config.init_from)
    # Saved before the step was evaluated; what came of that is beside it.
    evaluation = manager.metrics(step) or {}
    totals = _FRESH | meta["progress"] | {k: v for k, v in evaluation.items() if k in _FRESH}
    pending = run.plan.evaluates(step) and not evaluation
    if pending:
        log.info("step %d was saved and not evaluated; evaluating it first", step)
    return state, Start(step, bool(evaluation), pending, interval, totals)


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
        if was != (version := versions.get(name)):
            log.warning("%s was %s, is %s now: the run may not end bit for bit as it would have",
                        name, was, version)  # fmt: skip
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


def nothing_to_do(config: Config, run: Run, start: Start) -> bool:
    """Tells, and logs, whether a run that starts there is over."""
    if start.step >= run.plan.stop:
        key = "epochs" if run.plan.stop == run.plan.steps else "max_steps"
        log.info("nothing to do: step %d of %d is done; raise config.%s to go on",
                 start.step, run.plan.stop, key)  # fmt: skip
        return True
    if over := out_of_patience(config, start.totals):
        log.info("nothing to do: stopped early at step %d; raise config.eval.patience to go on",
                 start.step)  # fmt: skip
    return over


def stops_early(config: Config, totals: dict[str, Any], step: int) -> bool:
    """Tells, and logs, whether a run ends after the evaluation of this step."""
    if over := out_of_patience(config, totals):
        log.info("stopping early at step %d: no better AP in %d evaluations", step,
                 config.eval.patience)  # fmt: skip
    return over


def out_of_patience(config: Config, totals: dict[str, Any]) -> bool:
    """Tells whether the run has had config.eval.patience evaluations without a better AP."""
    return 0 < config.eval.patience <= totals["evaluations_since_best"]


def write_beside(config: Config, run: Run, workdir: pathlib.Path) -> Outputs | None:
    """Writes the config and what is known of the data beside the checkpoints.

    Returns:
        What a run writes the files by that people may take for their own, or change; None in all
        processes but the first, which write none.

    Raises:
        InputError: see `write_config`.
    """
    files = None
    if jax.process_index() == 0:
        files = Outputs(workdir, "train")
        if not (workdir / HISTORY).exists():
            files.write(HISTORY, "")
        # Versions before 0.2 noted nothing.
        files.record(*(name for name in (*_REPLACED, HISTORY)
                       if (workdir / name).exists() and not files.noted(name)))  # fmt: skip
        write_config(files, config)
    indices = run.train_index, run.val_index
    record.remember(config, workdir, *indices, run.fingerprints, run.sizes)
    return files


@contextlib.contextmanager
def open_progress(
    config: Config, run: Run, start: Start, workdir: pathlib.Path
) -> Iterator[Progress]:
    """Opens the history of a run, and gives what follows the loop from `start` on."""
    first = jax.process_index() == 0
    advice = training_readers(config).advice  # asks all processes
    names = config.log.trackers if first else ()
    trackers = Trackers(names, workdir, flatten(config), start.step)
    with (
        History(
            workdir, start.step, evaluated=start.evaluated, enabled=first, trackers=trackers
        ) as history,
        trackers,
        Progress(
            history,
            start.interval,
            start.totals,
            start_step=start.step,
            steps=run.plan.steps,
            batch_size=config.batch_size,
            every_steps=config.log.every_steps,
            image_paths=run.train_index.image_paths,
            max_nonfinite=config.max_nonfinite if config.on_nonfinite == "skip" else 0,
            on_failure=functools.partial(
                nonfinite.keep, workdir, lambda: describe_run(config, run, start.totals)
            ),
            slow_data=advice if first else "",
        ) as progress,
    ):
        yield progress


def describe_run(config: Config, run: Run, totals: dict[str, Any]) -> dict[str, Any]:
    """Returns what is saved with a checkpoint beside its arrays, as JSON values."""
    names, ids = run.train_index.class_names, run.train_index.class_ids
    return checkpoint.make_meta(to_dict(config), names, totals, run.fingerprints, ids)


def write_config(files: Outputs, config: Config) -> None:
    """Writes the config beside the run: for people, and for `--workdir` alone to resume by.

    Raises:
        InputError: there is one that was changed since a run wrote it, and says something else.
    """
    path = files.folder / "config.json"
    text = json.dumps(to_dict(config), indent=2) + "\n"
    if path.is_file() and _says(path, config):
        if not files.wrote(path.name):  # changed by the user, and taken
            files.record(path.name)
        return
    if path.is_file() and not files.wrote(path.name):
        raise InputError(
            f"{path}: it was changed since the run wrote it, and this command gives another config;"
            " start with --workdir alone to take it, or delete it to go on with the command's"
        )
    files.write(path.name, text)


def _says(path: pathlib.Path, config: Config) -> bool:
    """Tells whether a stored config, also of an older version, comes to this one."""
    try:
        return absolute_paths(resolve(get_config(str(path)))) == config
    except InputError:
        return False
