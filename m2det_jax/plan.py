"""The run in optimiser steps: how long it is, and what the epochs of its config are in steps."""

import dataclasses
import logging

from ml_collections import ConfigDict

from m2det_jax.data import DetectionIndex, describe_sampling, epoch_length, image_factors
from m2det_jax.optimizer import OptimizerSettings, scaled_learning_rate

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


def images_of_epoch(config: ConfigDict, index: DetectionIndex) -> float:
    """Returns how many images an epoch shows: each once, or by repeat-factor sampling."""
    threshold = config.data.repeat_threshold
    if not threshold:
        return index.num_images
    log.info(
        "repeat-factor sampling, threshold %g:\n%s", threshold, describe_sampling(index, threshold)
    )
    return epoch_length(image_factors(index, threshold))


def make_plan(config: ConfigDict, num_images: float) -> Plan:
    """Turns the epochs of a config into steps, for so many images an epoch."""
    per_epoch = num_images / config.batch_size
    steps = max(1, round(config.epochs * per_epoch))
    return Plan(
        steps=steps,
        stop=min(steps, config.max_steps or steps),
        evaluate_every=max(1, round(config.eval.every_epochs * per_epoch)),
        save_every=config.checkpoint.every_steps,
    )


def make_optimizer_settings(config: ConfigDict, plan: Plan, num_images: float) -> OptimizerSettings:
    """Turns config.optimizer into plain values in steps, with the learning rate scaled."""
    c = config.optimizer
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
    return OptimizerSettings(
        name=c.name,
        learning_rate=rate,
        momentum=c.momentum,
        weight_decay=c.weight_decay,
        clip_norm=c.clip_norm,
        backbone_factor=c.backbone_factor,
        schedule=c.schedule,
        steps=plan.steps,
        warmup_steps=round(c.warmup_epochs * per_epoch),
        warmup_start=c.warmup_start,
        decay_steps=tuple(round(epoch * per_epoch) for epoch in c.decay_epochs),
        decay_factors=tuple(c.decay_factors),
        final_factor=c.final_factor,
    )
