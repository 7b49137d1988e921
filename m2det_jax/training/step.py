"""One optimisation step, as a pure function.

B images of the global batch, A anchors, M objects per image (padded), H, W.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from m2det_jax.detector.detector import Detector
from m2det_jax.detector.objective import Batch, Metrics, StepSettings, losses_of, make_targets
from m2det_jax.model import statistics_over
from m2det_jax.run.state import TrainState


def _add_up(loss_fn: Callable, parts: int) -> Callable:
    """Returns f(params, batch_stats, images, targets, num_positives) over a batch in parts.

    Its results: gradients and losses added up over the parts, and the last batch statistics.
    """

    def split(x):  # [B, ...] -> [parts, B / parts, ...]; strided: each device keeps its own images
        return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)

    def add_up(params, batch_stats, images, targets, num_positives):
        grad_fn = jax.grad(loss_fn, has_aux=True)

        def accumulate(carry, part):
            gradients, losses, batch_stats = carry
            new, (part_losses, batch_stats) = grad_fn(params, batch_stats, *part, num_positives)
            sums = jax.tree.map(jnp.add, (gradients, losses), (new, part_losses))
            return (*sums, batch_stats), None

        if parts == 1:
            gradients, (losses, batch_stats) = grad_fn(
                params, batch_stats, images, targets, num_positives
            )
            return gradients, losses, batch_stats
        zeros = jax.tree.map(jnp.zeros_like, params)
        # A zero of the parameters' kind: under shard_map they differ from device to device.
        zero = jax.tree.leaves(zeros)[0].ravel()[0]
        carry = zeros, dict.fromkeys(("loss", "loss_class", "loss_box"), zero), batch_stats
        xs = jax.tree.map(split, (images, targets))
        # XLA's CPU convolutions are 40 times slower inside a loop, hence unrolled there.
        return jax.lax.scan(accumulate, carry, xs, unroll=jax.default_backend() == "cpu")[0]

    return add_up


def _on_each_device(add_up: Callable, mesh: Mesh) -> Callable:
    """Returns `add_up` with each device at its own images, and one all-reduce of the sums."""
    (axis,) = mesh.axis_names
    whole, split = PartitionSpec(), PartitionSpec(axis)

    def on_device(params, batch_stats, images, targets, num_positives):
        # As weights of this device alone; jax would add up the gradients of shared ones at once.
        own = jax.tree.map(lambda x: jax.lax.pcast(x, axis, to="varying"), params)
        with statistics_over(axis):
            *sums, batch_stats = add_up(own, batch_stats, images, targets, num_positives)
        return *jax.lax.psum(tuple(sums), axis), batch_stats

    in_specs = whole, whole, split, split, whole
    return jax.shard_map(on_device, mesh=mesh, in_specs=in_specs, out_specs=whole)


def warmed_up(decay: float, step: jax.Array) -> jax.Array:
    """Returns the share of itself that a moving average keeps at a step, the first being 0.

    A young average must forget the random start: the share rises with the steps to `decay`.
    """
    step = step.astype(jnp.float32)
    return jnp.minimum(decay, (1 + step) / (10 + step))


def with_share_kept(before, after, *, kept: float, wanted: jax.Array):
    """Returns the averages that would have kept the share `wanted` of `before`, not `kept`."""
    factor = (1 - wanted) / (1 - kept)
    return jax.tree.map(lambda old, new: old + factor * (new - old), before, after)


def make_train_step(
    detector: Detector,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    settings: StepSettings,
    mesh: Mesh | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Returns train_step(state, batch) -> (state, metrics); jit, donate and shard it outside.

    batch: image uint8 [B, H, W, 3], boxes float32 [B, M, 4], labels int32 [B, M], mask bool [B, M].
    metrics: float32 scalars loss, loss_class, loss_box, num_positives, grad_norm, learning_rate.

    With accumulation the batch goes through in as many equal parts, one after the other. Every
    part is normalised by the positives of the whole batch, so that the gradient is that of the
    whole batch but for the batch statistics, which are those of each part in turn.

    With skip_nonfinite a loss or gradient that is not finite changes nothing but the step's number.

    mesh: of one axis, along which batches are split, where every device has the whole state: with
    accumulation the devices then add up their gradients once, after the last part. Without it XLA
    places that, and may do it for each part.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        targets = make_targets(detector, settings, batch)
        num_positives = targets.positive.sum()

        def loss_fn(params, batch_stats, images, targets, num_positives):
            outputs, updated = detector.model.apply(
                {"params": params, "batch_stats": batch_stats},
                detector.normalize(images),
                train=True,
                mutable=["batch_stats"],
            )
            losses = losses_of(outputs, targets, settings, num_positives)
            del losses["num_positives"]  # of this part alone
            return losses["loss"], (losses, updated["batch_stats"])

        parts = settings.accumulation
        add_up = _add_up(loss_fn, parts)
        if mesh is not None and parts > 1:
            add_up = _on_each_device(add_up, mesh)
        gradients, losses, batch_stats = add_up(
            state.params, state.batch_stats, batch["image"], targets, num_positives
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        if settings.norm_warmup:
            batch_stats = with_share_kept(
                state.batch_stats,
                batch_stats,
                kept=detector.model.norm_momentum**parts,
                wanted=warmed_up(detector.model.norm_momentum, state.step) ** parts,
            )
        decay = warmed_up(settings.ema_decay, state.step)
        ema = optax.incremental_update(
            (params, batch_stats), (state.ema_params, state.ema_batch_stats), 1 - decay
        )
        metrics = losses | {
            "num_positives": num_positives.astype(jnp.float32),
            "grad_norm": optax.tree.norm(gradients),
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
        }
        old, state = state, TrainState(state.step + 1, params, batch_stats, *ema, opt_state)
        if settings.skip_nonfinite:
            finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
            kept = jax.tree.map(lambda new, was: jnp.where(finite, new, was), state, old)
            state = dataclasses.replace(kept, step=state.step)
        return state, metrics

    return train_step
