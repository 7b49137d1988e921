"""The run in optimiser steps: how long it is, and what the epochs of its config are in steps."""

import dataclasses
import logging
import math

from m2det_jax.config import Config
from m2det_jax.data import DetectionIndex, describe_sampling, epoch_length, image_factors
from m2det_jax.training.optimizer import OptimizerSettings, scaled_learning_rate

log = logging.getLogger("m2det_jax")


@dataclasses.dataclass(frozen=True)
class Plan:
    """The run in optimiser steps."""

    steps: int  # the schedule ends here
    stop: int  # this start of the program ends here: steps, or config.max_steps
    evaluate_every: int
    save_every: int

    def evaluates(self, step: int) -> bool:
        """Tells whether the state is evaluated after this step."""
        return step > 0 and (step % self.evaluate_every == 0 or step == self.steps)

    def saves(self, step: int) -> bool:
        """Tells whether the state is saved after this step; before each evaluation it is."""
        return self.evaluates(step) or step == self.stop or step % self.save_every == 0


def images_of_epoch(config: Config, index: DetectionIndex) -> float:
    """Returns how many images an epoch shows: each once, or by repeat-factor sampling."""
    threshold = config.data.repeat_threshold
    if not threshold:
        return index.num_images
    log.info(
        "repeat-factor sampling, threshold %g:\n%s", threshold, describe_sampling(index, threshold)
    )
    return epoch_length(image_factors(index, threshold))


def make_plan(config: Config, num_images: float) -> Plan:
    """Turns the epochs of a config into steps, for so many images an epoch.

    Warns where the run does not come to what config.eval asks for.
    """
    per_epoch = num_images / config.batch_size
    steps = max(1, round(config.epochs * per_epoch))
    plan = Plan(
        steps=steps,
        stop=min(steps, config.max_steps or steps),
        evaluate_every=max(1, round(config.eval.every_epochs * per_epoch)),
        save_every=config.checkpoint.every_steps,
    )
    for line in _about_evaluations(config, plan):
        log.warning("WARNING: %s", line)
    return plan


def _about_evaluations(config: Config, plan: Plan) -> list[str]:
    """Returns a line for each key of config.eval that a run of this length gives nothing to do."""
    if plan.evaluate_every > plan.steps:
        return [
            f"validation comes at the end alone, at step {plan.steps}: config.eval.every_epochs="
            f"{config.eval.every_epochs:g} is more than config.epochs={config.epochs:g}"
        ]
    evaluations = math.ceil(plan.steps / plan.evaluate_every)
    if evaluations <= config.eval.patience:
        return [
            f"config.eval.patience={config.eval.patience} stops nothing: the run has {evaluations} "
            "evaluations. Lower it, or config.eval.every_epochs"
        ]
    return []


def make_optimizer_settings(config: Config, plan: Plan, num_images: float) -> OptimizerSettings:
    """Turns config.optimizer into plain values in steps, with the learning rate scaled.

    Warns where the run does not come to a part of its schedule.
    """
    c = config.optimizer
    warmup_epochs, decay_epochs = _schedule_epochs(config)
    per_epoch = num_images / config.batch_size
    rate = scaled_learning_rate(c.learning_rate, config.batch_size, c.reference_batch_size, c.name)
    log.info(
        "learning rate %.3g: %.3g at batch %d, scaled %s to batch %d; %d steps of %g epochs",
        rate,
        c.learning_rate,
        c.reference_batch_size,
        "linearly" if c.name == "sgd" else "by the square root",
        config.batch_size,
        plan.steps,
        config.epochs,
    )
    if c.backbone_factor != 1:
        log.info("learning rate of the backbone: %g of that", c.backbone_factor)
    settings = OptimizerSettings(
        name=c.name,
        learning_rate=rate,
        momentum=c.momentum,
        weight_decay=c.weight_decay,
        clip_norm=c.clip_norm,
        backbone_factor=c.backbone_factor,
        schedule=c.schedule,
        steps=plan.steps,
        warmup_steps=round(warmup_epochs * per_epoch),
        warmup_start=c.warmup_start,
        decay_steps=tuple(round(epoch * per_epoch) for epoch in decay_epochs),
        decay_factors=c.decay_factors,
        final_factor=c.final_factor,
    )
    for line in _about_schedule(config, plan, settings):
        log.warning("WARNING: %s", line)
    return settings


def schedule_stretches(config: Config) -> bool:
    """Says whether another config.epochs changes the learning rate of the steps before it."""
    c = config.optimizer
    if c.schedule == "step" and c.decay_shares:
        return True
    return c.schedule == "cosine" or c.warmup_share > 0


def same_schedule(a: Config, b: Config) -> bool:
    """Says whether warm-up and decays, in epochs in one run and in shares in the other, are one.

    Our recipes counted them in epochs before 0.2.
    """

    def shares(config: Config) -> tuple[float, ...]:
        warmup, decays = _schedule_epochs(config)
        return tuple(round(epochs / config.epochs, 12) for epochs in (warmup, *decays))

    def counts_shares(config: Config) -> bool:
        return bool(config.optimizer.warmup_share or config.optimizer.decay_shares)

    return counts_shares(a) != counts_shares(b) and shares(a) == shares(b)


def _schedule_epochs(config: Config) -> tuple[float, tuple[float, ...]]:
    """Returns how many epochs the warm-up has, and after how many each decay comes."""
    c = config.optimizer
    warmup = c.warmup_share * config.epochs if c.warmup_share else c.warmup_epochs
    if c.decay_shares:
        return warmup, tuple(share * config.epochs for share in c.decay_shares)
    return warmup, c.decay_epochs


def _about_schedule(config: Config, plan: Plan, settings: OptimizerSettings) -> list[str]:
    """Returns a line for each length that the schedule does not fit, with the keys to change."""
    c, warmup = config.optimizer, settings.warmup_steps
    decays = settings.decay_steps if settings.schedule == "step" else ()
    given = f"warmup_epochs={c.warmup_epochs:g}"
    if c.warmup_share:
        given = f"warmup_share={c.warmup_share:g}"
    warmup_is = f"the warm-up of {warmup} steps (config.optimizer.{given})"
    given = f"decay_epochs={c.decay_epochs}"
    if c.decay_shares:
        given = f"decay_shares={c.decay_shares}"
    decays_are = f"decays of the learning rate (config.optimizer.{given})"
    misfits = []
    if warmup >= plan.steps:
        misfits.append(f"it ends inside {warmup_is}")
    if late := sum(step >= plan.steps for step in decays):
        misfits.append(f"it ends before {late} of {len(decays)} {decays_are}")
    if early := sum(step < min(warmup, plan.steps) for step in decays):
        misfits.append(f"{early} of {len(decays)} {decays_are} come before the end of {warmup_is}")
    lines = []
    if misfits:
        lines.append(
            f"the schedule does not fit the run of {plan.steps} steps (config.epochs="
            f"{config.epochs:g}): {'; '.join(misfits)}. Change these keys, or give shares of the "
            "run instead: config.optimizer.warmup_share and decay_shares"
        )
    if plan.stop < plan.steps and plan.stop <= warmup < plan.steps:
        lines.append(
            f"config.max_steps={config.max_steps} stops inside {warmup_is}; the schedule is that "
            f"of all {plan.steps} steps. For a short run of its own lower config.epochs instead"
        )
    return lines
