"""Learning-rate schedules and the optimiser, as optax transformations."""

import dataclasses
import math
from typing import Any

import jax
import optax


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """Plain values of config.optimizer with the epochs turned into steps.

    Attributes:
      learning_rate: already scaled for the batch, see `scaled_learning_rate`.
      steps, warmup_steps: length of the run and of the linear warm-up.
      warmup_start: where the warm-up begins; 0: at 1 / (warmup_steps + 1) of the learning rate.
      decay_steps, decay_factors: steps at which the schedule "step" multiplies, and by what.
      backbone_factor: learning rate of the parameters below "backbone" over that of the others.
      clip_norm: largest global gradient norm; 0 does not clip.
    """

    name: str
    learning_rate: float
    momentum: float
    weight_decay: float
    clip_norm: float
    backbone_factor: float
    schedule: str
    steps: int
    warmup_steps: int
    warmup_start: float
    decay_steps: tuple[int, ...]
    decay_factors: tuple[float, ...]
    final_factor: float


def scaled_learning_rate(
    learning_rate: float, batch_size: int, reference_batch_size: int, optimizer: str
) -> float:
    """Scales a learning rate with the batch: linearly for sgd, by the square root for adamw.

    Linear is Goyal et al. 2017 (arXiv 1706.02677); Adam's step does not grow with the gradient,
    whose noise falls with the square root of the batch, hence the root there.
    """
    ratio = batch_size / reference_batch_size
    return learning_rate * (ratio if optimizer == "sgd" else math.sqrt(ratio))


def make_schedule(settings: OptimizerSettings) -> optax.Schedule:
    """Returns the learning rate as a function of the step: linear warm-up, then the schedule."""
    peak, warmup = settings.learning_rate, settings.warmup_steps
    if settings.schedule == "cosine":
        body = optax.cosine_decay_schedule(
            peak, max(1, settings.steps - warmup), alpha=settings.final_factor
        )
    elif settings.schedule == "step":
        body = optax.piecewise_constant_schedule(peak, _boundaries(settings))
    else:
        body = optax.constant_schedule(peak)
    if warmup == 0:
        return body
    # The first step already moves: peak / (warmup + 1), not 0.
    start = settings.warmup_start or peak / (warmup + 1)
    ramp = optax.linear_schedule(start, peak, warmup)
    return optax.join_schedules([ramp, body], [warmup])


def _boundaries(settings: OptimizerSettings) -> dict[int, float]:
    """Step after the warm-up -> factor; a short run may round several epochs to one step."""
    boundaries: dict[int, float] = {}
    for step, factor in zip(settings.decay_steps, settings.decay_factors, strict=True):
        step -= settings.warmup_steps
        boundaries[step] = boundaries.get(step, 1.0) * factor
    return boundaries


def make_optimizer(
    settings: OptimizerSettings, frozen: tuple[tuple[str, ...], ...] = ()
) -> optax.GradientTransformation:
    """Returns clipping, weight decay and SGD with momentum or AdamW, with the schedule.

    Weight decay falls on kernels only (not on biases and norms), and never on parameters below
    one of the `frozen` paths, such as ("backbone", "conv1_1"). What the backbone's parameters move
    by, weight decay included, is multiplied by `backbone_factor`.
    """

    def decayed(params: Any) -> Any:
        def decide(path: Any, _: Any) -> bool:
            keys = tuple(entry.key for entry in path)
            return keys[-1] == "kernel" and not any(keys[: len(f)] == f for f in frozen)

        return jax.tree_util.tree_map_with_path(decide, params)

    schedule = make_schedule(settings)
    parts = [optax.clip_by_global_norm(settings.clip_norm)] if settings.clip_norm else []
    if settings.name == "adamw":
        parts += [optax.adamw(schedule, weight_decay=settings.weight_decay, mask=decayed)]
    else:
        parts += [
            optax.add_decayed_weights(settings.weight_decay, mask=decayed),
            optax.sgd(schedule, momentum=settings.momentum),
        ]
    return _slower_backbone(optax.chain(*parts), settings.backbone_factor)


def _slower_backbone(
    inner: optax.GradientTransformation, factor: float
) -> optax.GradientTransformation:
    """Wraps an optimiser without changing its state: checkpoints fit with any factor."""
    if factor == 1:
        return inner

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = inner.update(gradients, state, params)
        slower = jax.tree.map(lambda x: factor * x, updates["backbone"])
        return updates | {"backbone": slower}, state

    return optax.GradientTransformation(inner.init, update)
