"""Orbax checkpoints: the latest ones and the best by validation AP, and how to use one elsewhere.

A checkpoint has three items, so that each reader takes only what it needs:
  model  moving averages of params and batch_stats: what evaluation and prediction use
  train  what only training needs: step, raw params and batch_stats, optimiser, running metrics
  meta   JSON: config, class names, data, versions of the packages, progress of the run
Beside them lie the checksums of all files.
"""

import dataclasses
import importlib.metadata
import logging
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers as policies

import m2det_jax
from m2det_jax import damage
from m2det_jax.config_checks import validate
from m2det_jax.detect import Detector, build_detector
from m2det_jax.experiment import stored_config
from m2det_jax.model import variable_shapes
from m2det_jax.train_state import TrainState

log = logging.getLogger("m2det_jax")
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow")


def _ap(metrics: dict[str, float]) -> float:
    return metrics["AP"]


def open_manager(
    workdir: str | pathlib.Path, *, keep_latest: int = 2, read_only: bool = False
) -> ocp.CheckpointManager:
    """Opens the checkpoints below workdir; use as a context manager, or the last save is lost.

    Unless it is only to be read from, damaged checkpoints are moved to workdir/damaged first.

    Raises:
      ValueError: all checkpoints are damaged.
    """
    # Orbax finds out about a relative path only in its background thread.
    directory = pathlib.Path(workdir).absolute() / "checkpoints"
    if not read_only:
        damage.move_damaged(directory)
    keep = policies.AnyPreservationPolicy(
        [
            policies.LatestN(n=keep_latest),
            policies.BestN(get_metric_fn=_ap, n=1, keep_checkpoints_without_metrics=False),
        ]
    )
    options = ocp.CheckpointManagerOptions(
        step_format_fixed_length=8,
        cleanup_tmp_directories=not read_only,
        read_only=read_only,
        best_fn=_ap,  # without it Orbax writes no metrics, and a restart forgets the best
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
    # Called when all files of a save are written, before its folder gets its final name.
    for folder in directory.glob("*.orbax-checkpoint-tmp"):
        damage.write_checksums(folder)


def check_last_save(manager: ocp.CheckpointManager) -> None:
    """Raises the error of a save that has failed in the background; does not wait for one."""
    if not manager.is_saving_in_progress():
        manager.wait_until_finished()


def versions() -> dict[str, str]:
    """Returns the versions of the packages that a run depends on."""
    found = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return found | {"m2det_jax": m2det_jax.__version__}


def make_meta(
    config: ConfigDict,
    class_names: tuple[str, ...],
    progress: dict[str, Any],
    data: dict[str, str] | None = None,
    class_ids: tuple[int | str, ...] = (),
) -> dict[str, Any]:
    """Returns what is stored beside the arrays, as JSON values.

    Args:
      data: fingerprints by name.
      class_ids: category ids of the data set's own; (): 0..C-1.
    """
    return {
        "format": 1,
        "config": config.to_dict(),
        "class_names": list(class_names),
        "class_ids": list(class_ids),
        "data": data or {},
        "versions": versions(),
        "progress": progress,
    }


def save(
    manager: ocp.CheckpointManager,
    state: TrainState,
    running_metrics: Any,
    meta: dict[str, Any],
    metrics: dict[str, float] | None,
) -> None:
    """Starts an asynchronous save of a step; `metrics` (with AP) where it has been evaluated."""
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
        metrics=metrics,
    )


def _train_item(state: TrainState, running_metrics: Any) -> dict[str, Any]:
    return {
        "step": state.step,
        "params": state.params,
        "batch_stats": state.batch_stats,
        "opt_state": state.opt_state,
        "running_metrics": running_metrics,
    }


def read_meta(manager: ocp.CheckpointManager) -> dict[str, Any] | None:
    """Reads the newest `meta` that can be read; None where there is none."""
    for step in sorted(manager.all_steps(), reverse=True):
        try:
            return manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
        except Exception as error:  # whatever a damaged file raises; restore_latest deals with it
            log.warning("checkpoint %d: %s", step, _first_line(error))
    return None


def restore_latest(
    manager: ocp.CheckpointManager, state: TrainState, running_metrics: Any
) -> tuple[TrainState, Any, dict[str, Any]] | None:
    """Restores the newest checkpoint that is whole; None where there is none at all.

    Newer ones, which cannot be restored, are moved to "damaged" beside the checkpoints.

    Args:
      state, running_metrics: trees of jax arrays with the shapes, dtypes and shardings to restore
        into; the number of devices and processes may differ from before.

    Raises:
      ValueError: there are checkpoints, and none can be restored; or the newest is as it was
        written, but of another model.
    """

    def abstract(tree):
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
        )

    args = ocp.args.Composite(
        model=ocp.args.StandardRestore(abstract(state.eval_variables)),
        train=ocp.args.StandardRestore(abstract(_train_item(state, running_metrics))),
        meta=ocp.args.JsonRestore(),
    )
    failures = {}
    for step in sorted(manager.all_steps(), reverse=True):
        try:
            found = manager.restore(step, args=args)
        except Exception as error:  # whatever a damaged file raises: tell, and try the one before
            failures[step] = f"{type(error).__name__}: {_first_line(error)}"
            if damage.has_checksums(pathlib.Path(manager.directory) / f"{step:08d}"):
                break  # intact: the one before would fit no better
            continue
        damage.set_aside(pathlib.Path(manager.directory), failures)
        manager.reload()
        running = found.train.pop("running_metrics")
        ema = found.model
        restored = TrainState(
            **found.train, ema_params=ema["params"], ema_batch_stats=ema["batch_stats"]
        )
        return restored, running, found.meta
    if failures:
        raise damage.none_left(manager.directory, failures)
    return None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]


@dataclasses.dataclass(frozen=True)
class Restored:
    """A trained detector, ready for use.

    Attributes:
      detector: model, anchors, preprocessing and class names; `detector.detect_fn()` is jitted.
      variables: params and batch_stats (moving averages), jax arrays on the first device.
      class_names: name of each class id.
      config: the config that it was trained with.
      step: optimiser step of the checkpoint.
      class_ids: category ids of the training set's own, for results; (): 0..C-1.
    """

    detector: Detector
    variables: dict[str, Any]
    class_names: tuple[str, ...]
    config: ConfigDict
    step: int
    class_ids: tuple[int | str, ...] = ()


def restore(
    workdir: str | pathlib.Path, checkpoint: str | int = "latest", overrides: Sequence[str] = ()
) -> Restored:
    """Restores a trained detector from its workdir alone.

    Args:
      workdir: what training was given as --workdir.
      checkpoint: "latest", "best" (by validation AP), or a step.
      overrides: changes of config.eval, such as "eval.nms=soft_linear".

    Raises:
      ValueError: there is no such checkpoint, it is damaged, or an override does not fit.
    """
    if not (pathlib.Path(workdir) / "checkpoints").is_dir():
        raise ValueError(f"{workdir}: no checkpoints there; give the --workdir of a training run")
    with open_manager(workdir, read_only=True) as manager:
        step = _choose(manager, workdir, checkpoint)
        meta = _restore(manager, step, meta=ocp.args.JsonRestore()).meta
        if "config" not in meta:
            raise ValueError(
                f"{workdir}: a backbone alone, no detector; train one from it with "
                f"--config.model.backbone_weights={workdir}"
            )
        config = stored_config(meta, overrides, source=f"{workdir}, checkpoint {step}")
        validate(config)
        class_names = tuple(meta["class_names"])
        detector = build_detector(config, class_names)
        item = ocp.args.StandardRestore(_abstract_variables(detector))
        variables = _restore(manager, step, model=item).model
    class_ids = tuple(meta.get("class_ids", ()))  # younger than the first checkpoints
    return Restored(detector, variables, class_names, config, step, class_ids)


def _restore(manager: ocp.CheckpointManager, step: int, **items):
    try:
        if found := damage.find_damage(pathlib.Path(manager.directory) / f"{step:08d}"):
            raise ValueError(found)
        return manager.restore(step, args=ocp.args.Composite(**items))
    except Exception as error:  # whatever a damaged file raises
        raise ValueError(
            f"checkpoint {step} in {manager.directory} is damaged ({type(error).__name__}: "
            f"{_first_line(error)}); give another one of {sorted(manager.all_steps())}"
        ) from error


def _choose(manager: ocp.CheckpointManager, workdir, checkpoint: str | int) -> int:
    steps = sorted(manager.all_steps())
    if checkpoint == "latest" and steps:
        return steps[-1]
    best = manager.best_step() if checkpoint == "best" else None
    if best is not None:
        return best
    if str(checkpoint).isdigit() and int(checkpoint) in steps:
        return int(checkpoint)
    raise ValueError(
        f"{workdir}: no checkpoint {checkpoint!r}; there are latest, best and the steps {steps}"
        if steps
        else f"{workdir}: no finished checkpoint there yet"
    )


def _abstract_variables(detector: Detector) -> dict[str, Any]:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        variable_shapes(detector.model, detector.resize.image_size),
    )
