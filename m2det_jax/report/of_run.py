"""Report at the end of a training run, from the detections of its last evaluation."""

import logging
import pathlib

import jax
import numpy as np

from m2det_jax.config import Config
from m2det_jax.datasets.loading import describe
from m2det_jax.datasets.record import names_validation
from m2det_jax.detector.evaluation import only_read
from m2det_jax.errors import in_words
from m2det_jax.metrics.details import details
from m2det_jax.report.run import PAGE, Subject, assemble, page_files, write_page
from m2det_jax.run.history import read_history
from m2det_jax.run.outputs import Outputs
from m2det_jax.run.signals import Stopped
from m2det_jax.run.state import TrainState
from m2det_jax.training.prepare import Run
from m2det_jax.training.validation import Evaluated, Validation

log = logging.getLogger("m2det_jax")


def write_report(
    config: Config, run: Run, workdir: pathlib.Path, validation: Validation, state: TrainState
) -> None:
    """Writes report.html of a run that is over; in the first process, if config.log.report is set.

    A run that has evaluated nothing in this process had nothing to do. Its page stays as it is; if
    there is none, the state is evaluated for it (in a run of one process). A page that cannot be
    written does not end the run: the log says why.

    Args:
        state: the last one.

    Raises:
        Stopped: a signal came while the state was evaluated.
    """
    if not config.log.report or jax.process_index():
        return
    evaluated = validation.latest
    if evaluated is None and (jax.process_count() > 1 or (workdir / PAGE).exists()):
        return
    try:
        _write(config, run, workdir, evaluated or validation.look(state))
    except Stopped:
        raise
    except Exception as error:  # of whatever kind: the weights are saved
        log.warning(
            "the run is complete, but its report is not written: %s: %s; try again with m2det "
            "report --workdir %s, or give --config.log.report=False",
            type(error).__name__, in_words(error), workdir,
        )  # fmt: skip


def _write(config: Config, run: Run, workdir: pathlib.Path, evaluated: Evaluated) -> None:
    outputs = Outputs(workdir, "report")
    outputs.claim(page_files(PAGE), run.val_index.image_paths)
    own = names_validation(config.data)
    source = describe(config.data, "val") if own else f"part of {describe(config.data, 'train')}"
    subject = Subject(
        config=config,
        step=evaluated.step,
        name=workdir.resolve().name,
        source=source,
        training=np.bincount(run.train_index.labels, minlength=len(run.train_index.class_names)),
        history=read_history(workdir),
    )
    read = only_read(run.val_index, evaluated.detections)
    contents = assemble(subject, *read, evaluated.metrics, details(*read))
    write_page(outputs, PAGE, contents)
    log.info("report: %s; open it in a browser", outputs.folder / PAGE)
