"""A trained detector, restored from the workdir of its run."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp

from m2det_jax.build import build_detector
from m2det_jax.config import Config, resolve
from m2det_jax.config.stored import stored_config
from m2det_jax.detector.detector import Detector
from m2det_jax.errors import InputError
from m2det_jax.model import variable_shapes
from m2det_jax.run import checksums
from m2det_jax.run.checkpoint import first_line, open_manager


@dataclasses.dataclass(frozen=True)
class Restored:
    """A trained detector, ready for use.

    Attributes:
        detector: model, anchors, preprocessing and class names; `detector.detect_fn()` is jitted.
        variables: params and batch_stats (moving averages), jax arrays on the first device.
        class_names: name of each class id.
        config: the config of the training run.
        step: optimiser step of the checkpoint.
        class_ids: category ids of the training set, used in results; (): 0..C-1.
    """

    detector: Detector
    variables: dict[str, Any]
    class_names: tuple[str, ...]
    config: Config
    step: int
    class_ids: tuple[int | str, ...] = ()


def restore(
    workdir: str | pathlib.Path, checkpoint: str | int = "latest", overrides: Sequence[str] = ()
) -> Restored:
    """Restores a trained detector; needs only its workdir.

    Args:
        workdir: the --workdir of the training run.
        checkpoint: "latest", "best" (by validation AP), or a step.
        overrides: changes of config.eval, such as "eval.nms=soft_linear".

    Returns:
        The detector, its variables, config and class names.

    Raises:
        InputError: if there is no such checkpoint, it is damaged, or an override is not valid.
    """
    if not (pathlib.Path(workdir) / "checkpoints").is_dir():
        raise InputError(f"{workdir}: no checkpoints there; give the --workdir of a training run")
    with open_manager(workdir, read_only=True) as manager:
        step = _choose(manager, workdir, checkpoint)
        _refuse_damaged(manager, step)
        meta = _restore(manager, step, meta=ocp.args.JsonRestore()).meta
        if "config" not in meta:
            raise InputError(
                f"{workdir}: a backbone alone, no detector; train one from it with "
                f"--config.model.backbone_weights={workdir}"
            )
        config = resolve(stored_config(meta, overrides, source=f"{workdir}, checkpoint {step}"))
        if not (class_names := tuple(meta.get("class_names", ()))):
            raise _damaged(manager, step, "its meta has no class_names")
        detector = build_detector(config, class_names)
        item = ocp.args.StandardRestore(_abstract_variables(detector))
        variables = _restore(manager, step, model=item).model
    class_ids = tuple(meta.get("class_ids", ()))  # the first versions did not store them
    return Restored(detector, variables, class_names, config, step, class_ids)


def _refuse_damaged(manager: ocp.CheckpointManager, step: int) -> None:
    # Only these two items are read. The item "train", the largest, may be damaged.
    folder = checksums.step_folder(pathlib.Path(manager.directory), step)
    if found := checksums.find_damage(folder, items=("model", "meta")):
        raise _damaged(manager, step, found)


def _restore(
    manager: ocp.CheckpointManager, step: int, **items: ocp.args.CheckpointArgs
) -> ocp.args.Composite:
    try:
        return manager.restore(step, args=ocp.args.Composite(**items))
    except Exception as error:  # a damaged file can raise any type
        what = f"{type(error).__name__}: {first_line(error)}"
        raise _damaged(manager, step, what) from error


def _damaged(manager: ocp.CheckpointManager, step: int, what: str) -> InputError:
    others = sorted(set(manager.all_steps()) - {step})
    return InputError(
        f"checkpoint {step} in {manager.directory} is damaged ({what}); give another one of "
        f"{others}"
    )


def _choose(
    manager: ocp.CheckpointManager, workdir: str | pathlib.Path, checkpoint: str | int
) -> int:
    steps = sorted(manager.all_steps())
    if checkpoint == "latest" and steps:
        return steps[-1]
    best = manager.best_step() if checkpoint == "best" else None
    if best is not None:
        return best
    if str(checkpoint).isdecimal() and int(checkpoint) in steps:
        return int(checkpoint)
    raise InputError(
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
