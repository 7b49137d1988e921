"""Learning-rate schedules and the optimiser, as optax transformations."""

import dataclasses
import math

import jax
import optax


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """Plain values of config.optimizer with the epochs turned into steps.

    Attributes:
      learning_rate: already scaled for the batch, see `scaled_learning_rate`.
      steps, warmup_steps: length of the run and of the linear warm-up.
      decay_steps: steps at which the schedule "step" multiplies by decay_factor.
      clip_norm: largest global gradient norm; 0 does not clip.
    """

    name: str
    learning_rate: float
    momentum: float
    weight_decay: float
    clip_norm: float
    schedule: str
    steps: int
    warmup_steps: int
    decay_steps: tuple[int, ...]
    decay_factor: float
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
        boundaries = {step - warmup: settings.decay_factor for step in settings.decay_steps}
        body = optax.piecewise_constant_schedule(peak, boundaries)
    else:
        body = optax.constant_schedule(peak)
    if warmup == 0:
        return body
    # The first step already moves: peak / (warmup + 1), not 0.
    ramp = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
    return optax.join_schedules([ramp, body], [warmup])


def make_optimizer(
    settings: OptimizerSettings, frozen: tuple[tuple[str, ...], ...] = ()
) -> optax.GradientTransformation:
    """Returns clipping, weight decay and SGD with momentum or AdamW, with the schedule.

    Weight decay falls on kernels only (not on biases and norms), and never on parameters below
    one of the `frozen` paths, such as ("backbone", "conv1_1").
    """

    def decayed(params):
        def decide(path, _):
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
    return optax.chain(*parts)
