"""Training loop: batches, steps, checkpoints and evaluations, in order."""

import contextlib
import itertools
import pathlib
import runpy

import jax
from ml_collections import ConfigDict

from m2det_jax.config import Config, resolve
from m2det_jax.config.dotted import flatten
from m2det_jax.config.paths import absolute_paths
from m2det_jax.report.of_run import write_report
from m2det_jax.run.checkpoint import check_last_save, open_manager, save
from m2det_jax.run.devices import put_batch
from m2det_jax.run.hooks import NO_HOOKS, Hooks
from m2det_jax.run.lock import WorkdirLock
from m2det_jax.run.signals import Stopped, StopSignals
from m2det_jax.training.errors import explained, not_waiting_for_others
from m2det_jax.training.prepare import compile_steps, open_batches, prepare
from m2det_jax.training.resume import (
    describe_run,
    fresh_state,
    nothing_to_do,
    open_progress,
    start_or_resume,
    stops_early,
    write_beside,
)
from m2det_jax.training.samples import save_samples
from m2det_jax.training.step import INPUTS
from m2det_jax.training.validation import Validation


def train(
    config: ConfigDict | Config,
    workdir: pathlib.Path,
    *,
    allow_config_change: bool = False,
    hooks: Hooks = NO_HOOKS,
) -> dict:
    """Trains until the plan is done, resuming from workdir's latest checkpoint where there is one.

    Args:
        config: as an experiment returns it; nothing after this function sees a ConfigDict.
        allow_config_change: resume although keys differ that change the result.
        hooks: are told of the start and of evaluations; `fit` tells them of the end and of errors.

    Returns:
        The validation metrics of the last evaluation (moving-average weights); {} if there is none.

    Raises:
        Stopped: SIGTERM, SIGINT or SIGHUP came; the state is saved. For others see `explained`.
    """
    config = absolute_paths(resolve(config))  # of the folder that it is started in
    with explained(config, workdir) as costs, contextlib.ExitStack() as stack:
        enter = stack.enter_context
        lock = enter(WorkdirLock(workdir, enabled=jax.process_index() == 0))
        run = prepare(config, workdir)
        state = fresh_state(config, run, workdir)  # it may be refused: before a folder is made
        lock.create()
        signals = enter(StopSignals())  # around the checkpoints, whose end waits for the last save
        manager = enter(open_manager(workdir, keep_latest=config.checkpoint.keep_latest))
        state, start = start_or_resume(run, state, manager, config, allow_config_change)
        files = write_beside(config, run, workdir)
        progress = enter(open_progress(config, run, start, workdir))
        batches = enter(contextlib.closing(open_batches(config, run, start.step)))
        validation = enter(Validation(config, run, manager, progress, signals, hooks))
        enter(not_waiting_for_others(workdir))
        hooks.on_run_start(flatten(config), workdir, start.step, run.plan.steps)
        metrics = validation.run(state) if start.pending else {}
        if nothing_to_do(config, run, start):
            write_report(config, run, workdir, validation, state)
            return metrics
        if stopping := signals.agreed():
            raise Stopped(stopping, start.step)
        # All three at the same time: the evaluation and the step are compiled, batches are read.
        validation.compile()
        with progress.waiting():
            batch = next(batches)
        save_samples(config, files, run, start.step, batch, progress.history)
        programs = compile_steps(config, run, state, batch, costs)
        all_batches = itertools.chain([batch], batches)

        # A step, with all its parts, is done or not done: nothing is saved or left inside one.
        for step in range(start.step + 1, run.plan.stop + 1):
            with progress.waiting():
                batch = next(all_batches)
            train_step = programs[batch["image"].shape[1:3]]  # [B, H, W, 3]
            inputs = put_batch({name: batch[name] for name in INPUTS}, run.by_batch)
            state, step_metrics = train_step(state, inputs)
            progress.after_step(step, step_metrics, batch)
            check_last_save(manager)  # a full disk stops the run now, not a save later
            validation.read_images()
            problem = validation.problem()  # likewise what an evaluation would stumble over
            if problem is not None and jax.process_count() > 1:
                raise problem  # the others know nothing of it, and would not save
            stopping = signals.agreed()
            if not (run.plan.saves(step) or stopping or problem):
                continue
            lock.check()
            progress.check()  # a state with a bad loss is neither evaluated nor saved
            meta = describe_run(config, run, progress.totals)
            progress.pause(save, manager, state, progress.interval, meta)
            if problem is not None or (stopping and step != run.plan.stop):
                manager.wait_until_finished()
                raise problem or Stopped(stopping or 0, step)
            # Saved first: whatever becomes of the evaluation, the steps so far are safe.
            if run.plan.evaluates(step):
                metrics = progress.pause(validation.run, state)
                if stops_early(config, progress.totals, step):
                    break
        write_report(config, run, workdir, validation, state)
        return metrics


if __name__ == "__main__":  # main.py is the command line, and imports this module by its name
    runpy.run_module("m2det_jax.main", run_name="__main__", alter_sys=True)
