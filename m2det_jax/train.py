"""Trains a detector: the whole loop, in order."""

import contextlib
import logging
import pathlib
from collections.abc import Iterator

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from m2det_jax.build import augment_settings, train_sizes
from m2det_jax.config import Config, resolve
from m2det_jax.config.dotted import flatten, to_dict
from m2det_jax.config.paths import absolute_paths
from m2det_jax.data import UnreadableImage, train_batches
from m2det_jax.datasets import record
from m2det_jax.draw import training_sheet
from m2det_jax.errors import InputError
from m2det_jax.run import checkpoint, guard, memory, readers
from m2det_jax.run.checksums import finished_steps
from m2det_jax.run.devices import leave_after, place, put_batch
from m2det_jax.run.history import History
from m2det_jax.run.hooks import Hooks
from m2det_jax.run.outputs import Outputs
from m2det_jax.run.progress import IntervalMetrics, NonFiniteLoss, Watch
from m2det_jax.run.state import TrainState
from m2det_jax.training.prepare import Run, first_state, prepare
from m2det_jax.training.resume import (
    claim_files,
    own_files,
    start_or_resume,
    what_is_left,
    write_config,
)
from m2det_jax.training.validation import Validation

log = logging.getLogger("m2det_jax")


def train(
    config: ConfigDict | Config,
    workdir: pathlib.Path,
    *,
    allow_config_change: bool = False,
    hooks: Hooks | None = None,
) -> dict:
    """Trains until the plan is done, resuming from workdir's latest checkpoint where there is one.

    Args:
      config: as an experiment returns it; nothing after this function sees a ConfigDict.
      allow_config_change: resume although keys differ that change the result.
      hooks: are told of the start and of evaluations; of the end and of errors only `fit` tells.

    Returns:
      The validation metrics of the last evaluation (moving-average weights); {} if there was none.

    Raises:
      ValueError, FileNotFoundError: config, data or checkpoints do not fit, or another process
        trains in workdir; says what to do.
      FloatingPointError: the loss is not finite; names the step, the images and the checkpoint.
      OSError: the disk is full or gone, or a data worker died; names the last good checkpoint.
      MemoryError: the memory of a device does not suffice; says what to change.
      Stopped: SIGTERM or SIGINT came; the state is saved.
    """
    config = absolute_paths(resolve(config))  # of the folder that it is started in
    try:
        with guard.WorkdirLock(workdir, enabled=jax.process_index() == 0) as lock:
            return run_locked(config, workdir, lock, allow_config_change, hooks or Hooks())
    except ChildProcessError as error:
        raise ChildProcessError(f"{error}; {what_is_left(workdir)}") from error
    except memory.OutOfMemory as error:
        need = "; of these, accumulation, dtype and batch_size need --allow_config_change now"
        begun = need if finished_steps(workdir) else ""
        raise memory.OutOfMemory(f"{error}; {what_is_left(workdir)}{begun}") from error
    except UnreadableImage as error:
        raise InputError(
            f"{error}; mend or remove the file, or give --config.data.on_bad_image=skip; "
            f"{what_is_left(workdir)}"
        ) from error
    except (OSError, ValueError) as error:
        if (trouble := guard.disk_trouble(error)) is None:
            raise
        raise OSError(f"{trouble}; {what_is_left(workdir)}") from error


def run_locked(
    config: Config,
    workdir: pathlib.Path,
    lock: guard.WorkdirLock,
    allow_config_change: bool,
    hooks: Hooks,
) -> dict:
    """Sets up what the loop needs, in the order in which it must end, and runs it."""
    run = prepare(config, workdir)
    state = None if finished_steps(workdir) else first_state(config, run)
    if state is not None and jax.process_index() == 0:
        claim_files(workdir)
    lock.create()
    running = place(IntervalMetrics.empty(), run.replicated)
    with contextlib.ExitStack() as stack:
        # Around the checkpoints, whose end waits for the last save.
        signals = stack.enter_context(guard.StopSignals())
        manager = stack.enter_context(
            checkpoint.open_manager(workdir, keep_latest=config.checkpoint.keep_latest)
        )
        state, running, progress, evaluated = start_or_resume(
            run, state, running, manager, config, allow_config_change
        )
        step = int(state.step)
        files = own_files(workdir) if jax.process_index() == 0 else None
        if files is not None:
            write_config(files, config)
        indices = run.train_index, run.val_index
        record.remember(config, workdir, *indices, run.fingerprints, run.sizes)
        history = History(workdir, step, evaluated=evaluated, enabled=jax.process_index() == 0)
        stack.enter_context(contextlib.closing(history))
        chosen = training_readers(config)
        batches = stack.enter_context(contextlib.closing(open_batches(config, run, step, chosen)))
        watch = Watch(
            history,
            running,
            progress,
            start_step=step,
            steps=run.plan.steps,
            batch_size=config.batch_size,
            every_steps=config.log.every_steps,
            image_paths=run.train_index.image_paths,
            max_nonfinite=config.max_nonfinite if config.on_nonfinite == "skip" else 0,
            slow_data=chosen.advice if jax.process_index() == 0 else "",
        )
        stack.enter_context(contextlib.closing(watch))
        pending = run.plan.evaluates(step) and not evaluated
        validation = Validation(config, run, manager, watch, signals, pending=pending)
        stack.enter_context(contextlib.closing(validation))
        hooks.on_run_start(flatten(config), workdir, step, run.plan.steps)
        try:
            with run.train_step.explained():  # devices may say it long after the call
                return loop(
                    config,
                    files,
                    run,
                    state,
                    lock,
                    manager,
                    batches,
                    watch,
                    signals,
                    validation,
                    hooks,
                )
        except NonFiniteLoss as error:
            why = explain(error, run, config)
            raise FloatingPointError(f"{why}; {what_is_left(workdir)}") from None
        except jax.errors.JaxRuntimeError as error:
            if jax.process_count() == 1:
                raise
            leave_after(error, what_is_left(workdir))  # here: Orbax would wait for the others


def loop(
    config: Config,
    files: Outputs | None,
    run: Run,
    state: TrainState,
    lock: guard.WorkdirLock,
    manager: ocp.CheckpointManager,
    batches: Iterator[dict],
    watch: Watch,
    signals: guard.StopSignals,
    validation: Validation,
    hooks: Hooks,
) -> dict:
    """Steps from the state's step to the end of the plan; returns the last validation metrics.

    A step, with all its micro-batches, is done or not done: nothing is saved or left inside one.
    """
    plan, progress, metrics, start = run.plan, watch.progress, {}, int(state.step)
    if validation.pending:
        log.info("step %d was saved and not evaluated; evaluating it first", start)
        metrics = validation.run(state)
        hooks.on_evaluation_end(start, metrics)
    if nothing_to_do(config, run, start, progress):
        return metrics
    if stopping := signals.agreed():
        raise guard.Stopped(stopping, start)
    validation.compile()
    for step in range(start + 1, plan.stop + 1):
        batch = watch.wait_for(batches)
        image_ids, replaced = batch.pop("image_id"), batch.pop("replaced", None)
        if step == 1 and files is not None:  # process 0
            save_samples(config, files, run, batch, watch.history)
        state, step_metrics = run.train_step(state, put_batch(batch, run.by_batch))
        watch.after_step(step, step_metrics, image_ids, replaced)
        checkpoint.check_last_save(manager)  # a full disk stops the run now, not a save later
        validation.read_images()
        problem = validation.problem()  # likewise what an evaluation would stumble over
        if problem is not None and jax.process_count() > 1:
            raise problem  # the others know nothing of it, and would not save

        stopping = signals.agreed()
        if not (plan.saves(step) or stopping or problem):
            continue
        lock.check()
        watch.check()  # a state with a bad loss is neither evaluated nor saved
        names, ids = run.train_index.class_names, run.train_index.class_ids
        meta = checkpoint.make_meta(to_dict(config), names, progress, run.fingerprints, ids)
        watch.pause(checkpoint.save, manager, state, watch.running, meta)
        if problem is not None:
            manager.wait_until_finished()
            raise problem
        if stopping and step != plan.stop:
            manager.wait_until_finished()
            raise guard.Stopped(stopping, step)
        # Saved first: whatever becomes of the evaluation, the steps so far are safe.
        if plan.evaluates(step):
            metrics = watch.pause(validation.run, state)
            hooks.on_evaluation_end(step, metrics)
            if out_of_patience(config, progress):
                log.info("stopping early at step %d: no better AP in %d evaluations",
                         step, config.eval.patience)  # fmt: skip
                break
    return metrics


def nothing_to_do(config: Config, run: Run, start: int, progress: dict) -> bool:
    """Tells, and logs, whether a run that is started at this step is over."""
    if start >= run.plan.stop:
        key = "epochs" if run.plan.stop == run.plan.steps else "max_steps"
        log.info("nothing to do: step %d of %d is done; raise config.%s to go on",
                 start, run.plan.stop, key)  # fmt: skip
        return True
    if over := out_of_patience(config, progress):
        log.info("nothing to do: stopped early at step %d; raise config.eval.patience to go on",
                 start)  # fmt: skip
    return over


def out_of_patience(config: Config, progress: dict) -> bool:
    """Tells whether the run has had config.eval.patience evaluations without a better AP."""
    return 0 < config.eval.patience <= progress["evaluations_since_best"]


def open_batches(
    config: Config, run: Run, start_step: int, chosen: readers.Readers | None = None
) -> Iterator[dict]:
    """Opens the training data at the batch after `start_step`; chosen: who reads them."""
    chosen = chosen or training_readers(config)
    return train_batches(
        run.train_index,
        settings=augment_settings(config),
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=start_step,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_workers=chosen.workers,
        num_threads=chosen.threads,
        repeat_threshold=config.data.repeat_threshold,
        sizes=train_sizes(config),
        on_bad_image=config.data.on_bad_image,
    )


def training_readers(config: Config) -> readers.Readers:
    """Returns who reads the training images of this process."""
    pixels = max(height * width for height, width in train_sizes(config))
    return readers.local_readers(
        "training",
        batch_bytes=config.batch_size // jax.process_count() * pixels * 3,
        num_workers=config.data.num_workers,
        num_threads=config.data.num_threads,
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


def explain(error: NonFiniteLoss, run: Run, config: Config) -> str:
    """Says where the loss broke."""
    mixing = [name for name in ("mosaic", "paste", "mixup") if name in config.augment.pipeline]
    others = f" (beside what {', '.join(mixing)} added)" if mixing else ""
    names = ", ".join(run.train_index.image_paths[i] for i in error.image_ids)
    return (
        f"{error}. Images of that batch{others}: {names}. Look at them, or lower "
        "config.optimizer.learning_rate, lengthen warmup_epochs, lower clip_norm, or leave out a "
        "few such steps with --config.on_nonfinite=skip"
    )
