"""The train step: one optimisation step as a pure function, with gradient accumulation.

B images of the global batch, A anchors, M objects per image (padded), H, W.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from m2det_jax.detector.detector import Detector
from m2det_jax.detector.objective import (
    LOSSES,
    Batch,
    Metrics,
    StepSettings,
    losses_of,
    make_targets,
)
from m2det_jax.run.progress import interval_means
from m2det_jax.run.state import TrainState

# What a step takes of a batch.
INPUTS = ("image", "boxes", "labels", "mask")
# What it returns beside the new state, and the history records.
METRICS = (*LOSSES, "grad_norm", "learning_rate")
# Their means since the last log line. They are saved with a checkpoint, so that the lines of a
# resumed run are those of a run that was never stopped.
IntervalMetrics = interval_means(METRICS)


def accumulate(grad_fn: Callable, parts: int) -> Callable:
    """Returns a gradient function that takes a batch in equal parts, one after the other.

    Args:
        grad_fn: (params, stats, batch, shared) -> ((value, (aux, stats)), gradients), as
            jax.value_and_grad with has_aux=True gives it. All are trees of any form. The arrays of
            `batch` are [B, ...]; `stats` go from one part to the next; `shared` is the same for
            all parts.
        parts: divides B.

    Returns:
        The function with the same arguments and results: values, aux and gradients added up over
        the parts, and the stats of the last one.
    """

    def split(x: jax.Array) -> jax.Array:
        # [B, ...] -> [parts, B / parts, ...]; strided: each device keeps its own images
        return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)

    def accumulated(params: Any, stats: Any, batch: Any, shared: Any) -> Any:
        def add_part(carry: Any, part: Any) -> Any:
            gradients, stats = carry
            (value, (aux, stats)), more = grad_fn(params, stats, part, shared)
            return (jax.tree.map(jnp.add, gradients, more), stats), (value, aux)

        carry = jax.tree.map(jnp.zeros_like, params), stats
        # XLA's CPU convolutions are 40 times slower inside a loop, hence unrolled there.
        (gradients, stats), each = jax.lax.scan(
            add_part,
            carry,
            jax.tree.map(split, batch),
            unroll=jax.default_backend() == "cpu",
        )
        value, aux = jax.tree.map(sum, each)  # of arrays [parts, ...], over the parts
        return (value, (aux, stats)), gradients

    return accumulated


def on_each_device(grad_fn: Callable, mesh: Mesh | AbstractMesh) -> Callable:
    """Returns a gradient function in which each device of a mesh takes its own images.

    Values, aux and gradients are added up over the devices, once, and the stats are averaged.

    Args:
        grad_fn: as that of `accumulate`.
        mesh: of one axis, along which the batch is split.
    """
    (axis,) = mesh.axis_names
    whole, split = PartitionSpec(), PartitionSpec(axis)

    def on_device(params: Any, stats: Any, batch: Any, shared: Any) -> Any:
        # As weights of this device alone; jax would add up the gradients of shared ones at once.
        own, stats = jax.lax.pcast((params, stats), axis, to="varying")
        (value, (aux, stats)), gradients = grad_fn(own, stats, batch, shared)
        value, aux, gradients = jax.lax.psum((value, aux, gradients), axis)
        return (value, (aux, jax.lax.pmean(stats, axis))), gradients

    in_specs = whole, whole, split, whole
    return jax.shard_map(on_device, mesh=mesh, in_specs=in_specs, out_specs=whole)


def warmed_up(decay: float, step: jax.Array) -> jax.Array:
    """Returns the share of itself that a moving average keeps at a step, the first being 0.

    A young average must forget the random start: the share rises with the steps to `decay`.
    """
    step = step.astype(jnp.float32)
    return jnp.minimum(decay, (1 + step) / (10 + step))


def with_share_kept(before: Any, after: Any, *, kept: float, wanted: jax.Array) -> Any:
    """Returns the averages that would have kept the share `wanted` of `before`, not `kept`."""
    factor = (1 - wanted) / (1 - kept)
    return jax.tree.map(lambda old, new: old + factor * (new - old), before, after)


def unless_nonfinite(after: TrainState, before: TrainState, metrics: Metrics) -> TrainState:
    """Returns `after`; where loss or gradient is not finite, `before` with the step's number."""
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
    kept = jax.tree.map(lambda new, was: jnp.where(finite, new, was), after, before)
    return dataclasses.replace(kept, step=after.step)


def make_train_step(
    detector: Detector,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    settings: StepSettings,
    mesh: Mesh | AbstractMesh | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Returns train_step(state, batch) -> (state, metrics); jit, donate and shard it outside.

    With accumulation the batch goes through in as many equal parts, one after the other. Every
    part is normalised by the positives of the whole batch, so that the gradient is that of the
    whole batch but for the batch statistics, which are those of each part in turn.

    With skip_nonfinite a loss or gradient that is not finite changes nothing but the step's number.

    Args:
        mesh: of one axis, along which batches are split, where every device has the whole state.
            The devices then add up their gradients once, after the last part. Statistics of
            BatchNorm are over all of them or, with settings.norm_over "device", over the images
            of each. With None XLA places what is sent, and the statistics are over all.

    Returns:
        A function of a batch with the INPUTS image uint8 [B, H, W, 3], boxes float32 [B, M, 4],
        labels int32 [B, M] and mask bool [B, M]; its metrics are float32 scalars, the METRICS.
    """
    parts, model = settings.accumulation, detector.model
    if mesh is not None and mesh.size > 1 and settings.norm_over == "global":
        model = model.clone(norm_axis=mesh.axis_names[0])

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        targets = make_targets(detector, settings, batch)
        num_positives = targets.positive.sum()

        def loss_fn(params: Any, batch_stats: Any, inputs: Any, num_positives: jax.Array) -> Any:
            images, targets = inputs
            outputs, updated = model.apply(
                {"params": params, "batch_stats": batch_stats},
                detector.normalize(images),
                train=True,
                mutable=["batch_stats"],
            )
            losses = losses_of(outputs, targets, settings, num_positives)
            return losses["loss"], (losses, updated["batch_stats"])

        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        if parts > 1:
            grad_fn = accumulate(grad_fn, parts)
        if mesh is not None and mesh.size > 1:
            grad_fn = on_each_device(grad_fn, mesh)
        (_, (losses, batch_stats)), gradients = grad_fn(
            state.params, state.batch_stats, (batch["image"], targets), num_positives
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        if settings.norm_warmup:
            batch_stats = with_share_kept(
                state.batch_stats,
                batch_stats,
                kept=model.norm_momentum**parts,
                wanted=warmed_up(model.norm_momentum, state.step) ** parts,
            )
        decay = warmed_up(settings.ema_decay, state.step)
        ema: tuple[Any, Any] = optax.incremental_update(
            (params, batch_stats), (state.ema_params, state.ema_batch_stats), 1 - decay
        )
        metrics = losses | {
            "grad_norm": optax.tree.norm(gradients),
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
        }
        after = TrainState(state.step + 1, params, batch_stats, *ema, opt_state)
        if settings.skip_nonfinite:
            after = unless_nonfinite(after, state, metrics)
        return after, metrics

    return train_step
