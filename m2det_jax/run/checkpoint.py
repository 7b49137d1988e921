"""Orbax checkpoints: the latest ones, and the best one by validation AP.

A checkpoint has three items, so that each reader loads only what it needs:
  model  moving averages (EMA) of params and batch_stats, for evaluation and prediction
  train  for training only: step, raw params and batch_stats, optimiser, running metrics
  meta   JSON: config, class names, data, versions of the packages, progress of the run
A list in the same folder holds the checksums of all files. A checkpoint is saved before its step is
evaluated. The result of the evaluation is added later, as Orbax's own item "metrics"; only
checkpoints that have it can be the best one.
"""

import functools
import importlib.metadata
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

import m2det_jax
from m2det_jax.errors import InputError
from m2det_jax.run import checksums
from m2det_jax.run.devices import wait_for_all
from m2det_jax.run.state import TrainState

log = logging.getLogger("m2det_jax")
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow")


def _ap(metrics: dict[str, float]) -> float:
    return metrics["AP"]


def open_manager(
    workdir: str | pathlib.Path, *, keep_latest: int = 2, read_only: bool = False
) -> ocp.CheckpointManager:
    """Opens the checkpoints below workdir; use it as a context manager, or the last save is lost.

    Damaged checkpoints are moved to workdir/damaged first, except with `read_only`.

    Args:
        workdir: folder of the run.
        keep_latest: number of latest checkpoints to keep, besides the best one.
        read_only: open for reading only; nothing is moved or deleted.

    Raises:
        InputError: if all checkpoints are damaged or, with `read_only`, if the metrics of a
            checkpoint are damaged.
    """
    # Orbax refuses a relative path, but only later, in its background thread.
    directory = pathlib.Path(workdir).absolute() / "checkpoints"
    if read_only:
        checksums.refuse_bad_figures(directory)
    else:
        checksums.move_damaged(directory)
    keep = policies.AnyPreservationPolicy(
        [
            policies.LatestN(n=keep_latest),
            policies.BestN(get_metric_fn=_ap, n=1, keep_checkpoints_without_metrics=False),
        ]
    )
    options = ocp.CheckpointManagerOptions(
        step_format_fixed_length=8 if checksums.pads_names(directory) else None,
        cleanup_tmp_directories=not read_only,
        read_only=read_only,
        best_fn=_ap,  # without it Orbax writes no metrics, and a restart forgets which is best
        best_mode="max",
        preservation_policy=None if read_only else keep,
        async_options=ocp.AsyncOptions(
            post_finalization_callback=lambda: _write_checksums(directory)
        ),
    )
    handlers = ocp.handlers.create_default_handler_registry(
        model=ocp.StandardCheckpointHandler(),
        train=ocp.StandardCheckpointHandler(),
        meta=ocp.JsonCheckpointHandler(),
    )
    return ocp.CheckpointManager(directory, options=options, handler_registry=handlers)


def _write_checksums(directory: pathlib.Path) -> None:
    # Called after all files of a save are written, before the folder gets its final name.
    for folder in directory.glob("*.orbax-checkpoint-tmp"):
        checksums.write_checksums(folder)


def check_last_save(manager: ocp.CheckpointManager) -> None:
    """Raises the error of a save that failed in the background; does not wait for a save."""
    if not manager.is_saving_in_progress():
        manager.wait_until_finished()


@functools.cache
def versions() -> dict[str, str]:
    """Returns the versions of the packages that a run depends on. They are looked up once."""
    found = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return found | {"m2det_jax": m2det_jax.__version__}


def make_meta(
    config: Mapping[str, Any],
    class_names: tuple[str, ...],
    progress: dict[str, Any],
    data: dict[str, str] | None = None,
    class_ids: tuple[int | str | None, ...] = (),
) -> dict[str, Any]:
    """Returns the item "meta" of a checkpoint, as JSON values.

    Args:
        config: the config of the run, as dicts of plain values.
        class_names: name of each class id.
        progress: JSON values that a resumed run needs, such as the best AP.
        data: fingerprints of the data sets, by name.
        class_ids: category ids of the data set; (): 0..C-1.
    """
    return {
        "format": 1,
        "config": config,
        "class_names": list(class_names),
        "class_ids": list(class_ids),
        "data": data or {},
        "versions": versions(),
        "progress": progress,
    }


def save(
    manager: ocp.CheckpointManager, state: TrainState, running_metrics: Any, meta: dict[str, Any]
) -> None:
    """Starts an asynchronous save of a step, unless the step is already saved."""
    step = int(state.step)
    if step in manager.all_steps():
        return
    manager.save(
        step,
        args=ocp.args.Composite(
            model=ocp.args.StandardSave(state.eval_variables),
            train=ocp.args.StandardSave(_train_item(state, running_metrics)),
            meta=ocp.args.JsonSave(meta),
        ),
    )


def record_evaluation(manager: ocp.CheckpointManager, step: int, figures: dict[str, float]) -> None:
    """Adds the metrics of its first evaluation to a saved step; waits for the end of the save.

    Args:
        manager: the open checkpoints.
        step: optimiser step of the checkpoint.
        figures: metrics by name, finite numbers; "AP" decides which checkpoint is the best.
    """
    manager.wait_until_finished()
    if jax.process_index() == 0:
        folder = checksums.step_folder(pathlib.Path(manager.directory), step)
        checksums.write_figures(folder, figures)
    wait_for_all("the evaluation is recorded")
    manager.reload()
    # Otherwise a fast process could delete a checkpoint that a slow one has not listed yet.
    wait_for_all("the checkpoints are listed")


def drop_old(manager: ocp.CheckpointManager, keep_latest: int) -> None:
    """Deletes all checkpoints except the latest ones and the best one.

    Orbax does the same at the next save. After the last save there is no next one: if an evaluation
    then changes which checkpoint is the best, the earlier best one would stay.
    """
    steps = sorted(manager.all_steps())
    for step in set(steps) - {*steps[-keep_latest:], manager.best_step()}:
        manager.delete(step)


def _train_item(state: TrainState, running_metrics: Any) -> dict[str, Any]:
    return {
        "step": state.step,
        "params": state.params,
        "batch_stats": state.batch_stats,
        "opt_state": state.opt_state,
        "running_metrics": running_metrics,
    }


def read_meta(manager: ocp.CheckpointManager) -> dict[str, Any] | None:
    """Reads the newest item "meta" that is readable; returns None if there is none."""
    for step in sorted(manager.all_steps(), reverse=True):
        try:
            return manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
        except Exception as error:  # a damaged file can raise any type; see restore_latest
            log.warning("checkpoint %d: %s", step, first_line(error))
    return None


def restore_latest(
    manager: ocp.CheckpointManager, state: TrainState, running_metrics: Any
) -> tuple[TrainState, Any, dict[str, Any]] | None:
    """Restores the newest checkpoint that is not damaged.

    Newer ones, which cannot be restored, are moved to the folder "damaged" in the workdir.

    Args:
        manager: the open checkpoints.
        state: a state with the shapes, dtypes and shardings to restore. The number of devices and
            processes may differ from that of the saved run.
        running_metrics: running metrics with the shapes, dtypes and shardings to restore.

    Returns:
        (state, running metrics, meta), or None if there is no checkpoint.

    Raises:
        InputError: if there are checkpoints but none can be restored, or the newest is not damaged
            but belongs to another model.
    """

    args = _restore_args(state, running_metrics)
    failures = {}
    for step in sorted(manager.all_steps(), reverse=True):
        try:
            found = manager.restore(step, args=args)
        except Exception as error:  # a damaged file can raise any type; try the one before it
            failures[step] = f"{type(error).__name__}: {first_line(error)}"
            if checksums.has_checksums(
                checksums.step_folder(pathlib.Path(manager.directory), step)
            ):
                break  # not damaged, so of another model; the one before it would not fit either
            continue
        checksums.set_aside(pathlib.Path(manager.directory), failures)
        manager.reload()
        return _restored(found)
    if failures:
        raise checksums.none_left(manager.directory, failures)
    return None


def restore_step(
    manager: ocp.CheckpointManager, step: int, state: TrainState, running_metrics: Any
) -> tuple[TrainState, Any, dict[str, Any]]:
    """Restores one checkpoint, and changes nothing; arguments and result as `restore_latest`.

    Raises:
        InputError: if it is damaged or belongs to another model.
    """
    folder = checksums.step_folder(pathlib.Path(manager.directory), step)
    if found := checksums.find_damage(folder):
        raise InputError(f"checkpoint {step} in {manager.directory} is damaged ({found})")
    try:
        return _restored(manager.restore(step, args=_restore_args(state, running_metrics)))
    except Exception as error:  # a damaged file can raise any type
        raise InputError(
            f"checkpoint {step} in {manager.directory} cannot be restored "
            f"({type(error).__name__}: {first_line(error)})"
        ) from error


def _restore_args(state: TrainState, running_metrics: Any) -> ocp.args.Composite:
    def abstract(tree: Any) -> Any:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
        )

    return ocp.args.Composite(
        model=ocp.args.StandardRestore(abstract(state.eval_variables)),
        train=ocp.args.StandardRestore(abstract(_train_item(state, running_metrics))),
        meta=ocp.args.JsonRestore(),
    )


def _restored(found: Any) -> tuple[TrainState, Any, dict[str, Any]]:
    running, ema = found.train.pop("running_metrics"), found.model
    state = TrainState(**found.train, ema_params=ema["params"], ema_batch_stats=ema["batch_stats"])
    return state, running, found.meta


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message, cut to 200 characters."""
    return (str(error).strip().splitlines() or [""])[0][:200]
