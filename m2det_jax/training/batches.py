"""Batches of a training run: who reads their images, and the sheet of the first pictures."""

import logging

import jax

from m2det_jax.build import augment_settings, train_sizes
from m2det_jax.config import Config
from m2det_jax.data import TrainSettings, train_batches
from m2det_jax.data.feeding.batches import Batches
from m2det_jax.draw import training_sheet
from m2det_jax.run import readers
from m2det_jax.run.history import History
from m2det_jax.run.outputs import Outputs
from m2det_jax.training.prepare import Run

log = logging.getLogger("m2det_jax")


def training_readers(config: Config) -> readers.Readers:
    """Returns who reads the training images of this process."""
    pixels = max(height * width for height, width in train_sizes(config))
    return readers.local_readers(
        "training",
        batch_bytes=config.batch_size // jax.process_count() * pixels * 3,
        num_workers=config.data.num_workers,
        num_threads=config.data.num_threads,
    )


def open_batches(
    config: Config, run: Run, start_step: int, chosen: readers.Readers | None = None
) -> Batches:
    """Opens the training data at the batch after `start_step`; close what it returns.

    Args:
        chosen: who reads the images; None: `training_readers`.
    """
    chosen = chosen or training_readers(config)
    settings = TrainSettings(
        augment_settings(config),
        batch_size=config.batch_size,
        seed=config.seed,
        sizes=train_sizes(config),
        repeat_threshold=config.data.repeat_threshold,
        on_bad_image=config.data.on_bad_image,
    )
    return train_batches(
        run.train_index,
        settings,
        start_step=start_step,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_workers=chosen.workers,
        num_threads=chosen.threads,
    )


def save_samples(config: Config, files: Outputs, run: Run, batch: dict, history: History) -> None:
    """Writes the first augmented pictures with their boxes, as the model is about to see them."""
    sheet = training_sheet(batch, run.detector.class_names, config.log.sample_images)
    if sheet is None:
        return
    with files.replacing("train_samples.png") as path:
        sheet.save(path, "PNG")
    history.write_image(0, "train_samples", sheet)
    log.info("augmented training pictures: %s", files.folder / "train_samples.png")
