"""Sheet of the first training pictures, as the model is about to see them."""

import logging

from m2det_jax.config import Config
from m2det_jax.drawing.boxes import training_sheet
from m2det_jax.run.history import History
from m2det_jax.run.outputs import Outputs
from m2det_jax.training.prepare import Run

log = logging.getLogger("m2det_jax")


def save_samples(
    config: Config, files: Outputs | None, run: Run, step: int, batch: dict, history: History
) -> None:
    """Writes the first augmented pictures with their boxes, as the model is about to see them.

    Args:
        files: what the run writes through; None: in all processes but the first, which write none.
        step: the last one done; only a run that begins, at 0, writes the sheet.
    """
    if step or files is None:
        return
    sheet = training_sheet(batch, run.detector.class_names, config.log.sample_images)
    if sheet is None:
        return
    with files.replacing("train_samples.png") as path:
        sheet.save(path, "PNG")
    history.write_image(0, "train_samples", sheet)
    log.info("augmented training pictures: %s", files.folder / "train_samples.png")
