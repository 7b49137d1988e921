"""Replay of a training step: the steps since a checkpoint once more, and a look into the last one.

The run is only read: no checkpoint, no history, no lock.
"""

import contextlib
import dataclasses
import logging
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from flax.traverse_util import flatten_dict

from m2det_jax.build import step_settings
from m2det_jax.config import Config, resolve
from m2det_jax.config.dotted import with_values
from m2det_jax.config.paths import find_paths
from m2det_jax.config.stored import get_config, stored_config, stored_file
from m2det_jax.datasets.evaluation import refuse_untrusted
from m2det_jax.errors import InputError
from m2det_jax.replay.findings import before, first_finding
from m2det_jax.replay.layers import look_into
from m2det_jax.replay.outcome import Replay
from m2det_jax.run import checkpoint, checksums, devices
from m2det_jax.run.progress import not_finite
from m2det_jax.run.state import TrainState
from m2det_jax.training.nonfinite import json_number, kept_steps, read_batch, read_record
from m2det_jax.training.prepare import Run, compile_steps, detector_at, first_state, open_batches
from m2det_jax.training.prepare import prepare as prepare_run
from m2det_jax.training.resume import refuse_other_run
from m2det_jax.training.step import INPUTS, IntervalMetrics

log = logging.getLogger("m2det_jax")


@dataclasses.dataclass(frozen=True)
class Choice:
    """What is to be repeated.

    Attributes:
        step: the step; 0: none of the run has failed.
        record: what the run noted of it, see `training.nonfinite`; None: nothing.
        config: of the run as it did that step.
    """

    workdir: pathlib.Path
    step: int
    record: dict[str, Any] | None
    config: Config


def choose(workdir: pathlib.Path, step: int = 0) -> Choice:
    """Returns what to repeat: a step of a run, and the config that it had then.

    Args:
        workdir: the --workdir of the training run.
        step: 0: the first one that the run has kept as failed.

    Raises:
        InputError: if there is no run, or its files are damaged.
    """
    if step < 0:
        raise InputError(f"--step={step}: give a step of the run, 1 or more")
    file = stored_file(workdir)
    if file is None:
        raise InputError(f"{workdir}: no run there; give the --workdir of a training run")
    kept = kept_steps(workdir)
    step = step or (kept[0] if kept else 0)
    record = read_record(workdir, step) if step else None
    if record is None:
        config = resolve(get_config(str(file)))
    else:
        source = f"{workdir}, step {step}"
        config = resolve(find_paths(stored_config(record["meta"], source=source), workdir))
    # One process, and nothing that writes.
    here = {"log.trackers": (), "distributed.coordinator": "", "distributed.num_processes": 0}
    return Choice(workdir, step, record, with_values(config, here))


def replay(chosen: Choice, *, trust: bool = False) -> Replay:
    """Repeats the steps from the checkpoint before a step up to it, and looks into the last one.

    Args:
        trust: allow the import of a Python module that the run names as config.data.format.

    Raises:
        InputError: if the run has no such step, or its data or checkpoints do not fit.
        OutOfMemory: if the step does not fit into the memory of a device.
    """
    workdir, step, config = chosen.workdir, chosen.step, chosen.config
    if not step:
        return Replay(workdir, 0)
    refuse_untrusted(config.data.format, trust, workdir)
    run = prepare_run(config, workdir)
    if step > run.plan.steps:
        raise InputError(f"--step={step}: the run has {run.plan.steps} steps")
    state, start = _state_before(chosen, run)
    with contextlib.closing(open_batches(config, run, start)) as batches:
        first = next(batches)
        programs = compile_steps(config, run, state, first, {})
        todo = _Steps(programs, run, state, start)
        batch = todo.repeat(first, batches, step)
    notes = _about_devices(chosen)
    if (saved := _saved(chosen)) is not None and not _same(saved, batch):
        notes.append(
            "the batch that the run kept differs from the one that its data and seed give now: "
            "images have changed. The kept one is used"
        )
        batch = saved
    size = batch["image"].shape[1:3]
    # A step takes the memory of its state.
    variables = jax.tree.map(
        jnp.copy, {"params": todo.state.params, "batch_stats": todo.state.batch_stats}
    )
    metrics = jax.device_get(programs[size](todo.state, _on_devices(batch, run))[1])
    found = Replay(
        workdir, step, start, not_finite(metrics),
        metrics={name: json_number(value) for name, value in metrics.items()},
        size=len(batch["image_id"]), notes=tuple(notes),
    )  # fmt: skip
    if chosen.record:
        found = dataclasses.replace(found, same=chosen.record["metrics"] == found.metrics)
    if not found.what:
        return found
    bad_weights = _bad_weights(variables["params"])
    detector, settings = detector_at(config, run.detector, size), step_settings(config)
    values = look_into(detector, settings, variables, batch, run.by_batch)
    finding = first_finding(values, bad_weights, since=todo.bad_since())
    if finding is None:
        return found
    paths = [run.train_index.image_paths[i] for i in batch["image_id"]]
    return dataclasses.replace(
        found, finding=finding, images=tuple((i, paths[i]) for i in finding.images),
        layers=tuple(before(values, finding)),
    )  # fmt: skip


def _state_before(chosen: Choice, run: Run) -> tuple[TrainState, int]:
    """Returns the state of the latest checkpoint before the step, and its step; or the first."""
    workdir, step, config = chosen.workdir, chosen.step, chosen.config
    steps = [s for s in checksums.finished_steps(workdir) if s < step]
    if not steps:
        log.info("no checkpoint before step %d is left: from the beginning of the run", step)
        return first_state(config, run), 0
    interval = devices.place(IntervalMetrics.empty(), run.replicated)
    with checkpoint.open_manager(workdir, read_only=True) as manager:
        found = checkpoint.restore_step(manager, steps[-1], run.state_shapes, interval)
        state, _, meta = found
        refuse_other_run(meta, config, run, manager.directory, allowed=True)
    log.info("from the checkpoint of step %d", steps[-1])
    return state, steps[-1]


class _Steps:
    """Steps that are done once more.

    Attributes:
        state: after the last one that was done.
    """

    def __init__(self, programs: Mapping, run: Run, state: TrainState, start: int) -> None:
        self.state = state
        self._programs, self._run, self._done = programs, run, start
        self._bad: list[tuple[int, jax.Array]] = []

    def repeat(
        self, batch: dict[str, np.ndarray], batches: Iterator[dict[str, np.ndarray]], step: int
    ) -> dict[str, np.ndarray]:
        """Does all steps before `step`, the first with `batch`; returns the batch of `step`."""
        steps = range(self._done + 1, step)
        for number in tqdm.tqdm(steps, "replay", disable=None, unit="step"):
            program = self._programs[batch["image"].shape[1:3]]
            self.state, _ = program(self.state, _on_devices(batch, self._run))
            self._bad.append((number, _any_bad(self.state.params)))
            batch = next(batches)
        return batch

    def bad_since(self) -> int:
        """Returns the first of the steps after which a weight is not finite; 0: none."""
        return next((number for number, bad in self._bad if bool(bad)), 0)


@jax.jit
def _any_bad(params: Any) -> jax.Array:
    return jnp.stack([~jnp.isfinite(x).all() for x in jax.tree.leaves(params)]).any()


def _bad_weights(params: Any) -> list[str]:
    """Returns the paths of the parameters with a value that is not finite."""
    finite = jax.jit(lambda tree: jax.tree.map(lambda x: jnp.isfinite(x).all(), tree))(params)
    return ["/".join(path) for path, sound in flatten_dict(jax.device_get(finite)).items()
            if not sound]  # fmt: skip


def _on_devices(batch: Mapping[str, np.ndarray], run: Run) -> Any:
    return devices.put_batch({name: batch[name] for name in INPUTS}, run.by_batch)


def _saved(chosen: Choice) -> dict[str, np.ndarray] | None:
    """Returns the batch that the run kept; None: none, or only the part of one process."""
    if chosen.record is None or chosen.record["processes"] > 1:
        return None
    return read_batch(chosen.workdir, chosen.step)


def _same(saved: Mapping[str, np.ndarray], batch: Mapping[str, np.ndarray]) -> bool:
    return saved.keys() == batch.keys() and all(
        np.array_equal(saved[name], batch[name], equal_nan=saved[name].dtype.kind == "f")
        for name in saved
    )


def _about_devices(chosen: Choice) -> list[str]:
    """Returns what of the devices lets numbers differ from those of the run."""
    notes, record, kind = [], chosen.record, jax.devices()[0].device_kind
    here = 1, jax.device_count(), kind
    if record and (was := (record["processes"], record["devices"], record["device_kind"])) != here:
        notes.append(
            f"the run had {was[1]} x {was[2]} in {was[0]} processes, this is {here[1]} x {kind}: "
            "numbers agree up to rounding only"
        )
    if jax.default_backend() != "cpu" and not chosen.config.deterministic:
        notes.append(
            "the run had no config.deterministic: on this device even the same program may round "
            "differently"
        )
    return notes
