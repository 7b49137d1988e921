"""Validation of a run: how the moving averages of its weights do, beside training and after saves.

A step is saved before it is evaluated, and what the evaluation came to is added to its checkpoint.
So nothing that goes wrong in an evaluation costs a step, and a run that ends between the two
evaluates that step first when it goes on.
"""

import concurrent.futures
import dataclasses
import logging
import math
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from m2det_jax.config import Config
from m2det_jax.data import eval_batches, padded_objects
from m2det_jax.data.changes import shown
from m2det_jax.detector.evaluation import ON_DEVICE, detect, evaluate
from m2det_jax.detector.reading import Reading
from m2det_jax.metrics.detections import ImageDetections
from m2det_jax.run import checkpoint, memory
from m2det_jax.run.cost import read_cost, readable_bytes
from m2det_jax.run.hooks import NO_HOOKS, Hooks
from m2det_jax.run.progress import Progress
from m2det_jax.run.readers import FEW_IMAGES
from m2det_jax.run.signals import Stopped, StopSignals
from m2det_jax.run.state import TrainState
from m2det_jax.training.prepare import Run

log = logging.getLogger("m2det_jax")

# Of the totals of a run, what an evaluation changes; stored with the checkpoint it is about.
_FIGURES = ("AP", "best_AP", "evaluations_since_best")


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluated:
    """What an evaluation has come to.

    Attributes:
        step: of the state.
        metrics: as `detector.evaluation.evaluate` gives them.
        detections: of the validation images that could be read.
    """

    step: int
    metrics: dict[str, Any]
    detections: list[ImageDetections]


class Validation:
    """Evaluates the states of a run; to be used in a `with` statement, which ends its threads.

    Args:
        manager: has saved the step of every state that is evaluated.
        progress: where figures go; its totals are brought up to date.
        signals: heard between the batches of an evaluation.
        hooks: are told of the figures, once they are recorded.

    Attributes:
        latest: the last evaluation in this process, for the report; None: there is none, or no
            report is wanted.
    """

    def __init__(
        self,
        config: Config,
        run: Run,
        manager: ocp.CheckpointManager,
        progress: Progress,
        signals: StopSignals,
        hooks: Hooks = NO_HOOKS,
    ):
        self._config, self._run, self._manager = config, run, manager
        self._progress, self._signals, self._hooks = progress, signals, hooks
        self._threads = concurrent.futures.ThreadPoolExecutor(2, "validation")
        self._program: concurrent.futures.Future | None = None
        self._images: concurrent.futures.Future | None = None
        self._closed = False
        self.latest: Evaluated | None = None

    def compile(self) -> concurrent.futures.Future:
        """Starts to compile the program, beside the compilation of the train step; returns it."""
        if self._program is None:
            self._program = self._threads.submit(self._compile)
            # Of several processes all must compile in one order.
            if jax.process_count() > 1:
                concurrent.futures.wait([self._program])
        return self._program

    def read_images(self) -> None:
        """Starts to read every image once, if none of them has been evaluated so far."""
        if self._images is None and self._progress.totals["best_AP"] < 0:
            self._images = self._threads.submit(self._read_images)

    def problem(self) -> BaseException | None:
        """Returns what the threads have found wrong so far.

        memory.OutOfMemory: the evaluation does not fit beside the state of the run. InputError: an
        image cannot be read, and config.data.on_bad_image is not "skip".
        """
        for found in (self._program, self._images):
            if found is not None and found.done() and found.exception() is not None:
                return found.exception()
        return None

    def close(self) -> None:
        """Ends the threads."""
        self._closed = True
        self._threads.shutdown(cancel_futures=True)

    def __enter__(self) -> "Validation":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def run(self, state: TrainState) -> dict:
        """Evaluates a saved state, and records the figures in history, progress and checkpoint.

        Raises:
            Stopped: a signal came; the state is saved and its evaluation still to be done.
            OutOfMemory, InputError: as `problem` tells.
            ChildProcessError: a data worker died.
        """
        config, step, totals = self._config, int(state.step), self._progress.totals
        metrics = self.look(state).metrics
        # Without any object in the validation set there is no AP; a number keeps "best" defined.
        totals["AP"] = 0.0 if math.isnan(metrics["AP"]) else metrics["AP"]
        better = totals["AP"] > totals["best_AP"]
        totals["best_AP"] = max(totals["AP"], totals["best_AP"])
        totals["evaluations_since_best"] = 0 if better else totals["evaluations_since_best"] + 1
        scalars = {f"val_{name}": value for name, value in metrics.items() if name != "per_class"}
        # History first: a run that ends between the two evaluates again and cuts this record; the
        # other way round the record would be lost.
        self._progress.history.write(step, scalars)
        figures = {name: totals[name] for name in _FIGURES}
        checkpoint.record_evaluation(self._manager, step, figures)
        checkpoint.drop_old(self._manager, config.checkpoint.keep_latest)
        log.info("step %d  validation AP %.3f  AP50 %.3f  AP75 %.3f  loss %.4f  (best AP %.3f)",
                 step, metrics["AP"], metrics["AP50"], metrics["AP75"], metrics["loss"],
                 totals["best_AP"])  # fmt: skip
        self._hooks.on_evaluation_end(step, metrics)
        return metrics

    def look(self, state: TrainState) -> Evaluated:
        """Evaluates a saved state, and records nothing.

        Raises:
            Stopped, OutOfMemory, InputError, ChildProcessError: as `run`.
        """
        self.latest = None  # two sets of detections are never held
        config, step, program = self._config, int(state.step), self.compile()
        batch_size, many = config.eval.batch_size, self._run.val_index.num_images >= FEW_IMAGES
        with memory.batch_explained("the evaluation", "--config.eval.batch_size", batch_size):
            reading = Reading(
                batch_size,
                # Processes take seconds to start, again at every evaluation.
                num_workers=config.data.num_workers if many else 0,
                num_threads=config.data.num_threads,
                on_bad_image=config.data.on_bad_image,
            )
            images = detect(
                program.result(),
                state.eval_variables,
                self._run.val_index,
                self._run.detector,
                reading,
                sharding=self._run.by_batch,
                between=lambda: self._stop_if_asked(step),
            )
            num_batches = reading.num_batches(self._run.val_index)
            metrics, detections = evaluate(images, self._run.val_index, num_batches)
        evaluated = Evaluated(step, metrics, detections)
        if config.log.report and jax.process_index() == 0:
            self.latest = evaluated
        return evaluated

    def _stop_if_asked(self, step: int) -> None:
        if number := self._signals.agreed():
            self._manager.wait_until_finished()
            raise Stopped(number, step)

    def _compile(self) -> jax.stages.Compiled:
        run, batch_size = self._run, self._config.eval.batch_size
        key = "--config.eval.batch_size"
        with memory.batch_explained("the evaluation", key, batch_size):
            traced = run.eval_step.trace(run.state_shapes.eval_variables, self._batch())
            program = traced.lower().compile()
        state, variables = map(_bytes_of_each, (run.state_shapes, run.state_shapes.eval_variables))
        need, has = state - variables + read_cost(traced, program).memory, memory.available()
        log.info("the evaluation, batch %d, needs %s of each device, with the state of the run",
                 batch_size, readable_bytes(need))  # fmt: skip
        if has is not None and need > has:
            advice = memory.batch_advice("the evaluation", key, batch_size, jax.device_count())
            raise memory.OutOfMemory(f"out of memory: {advice}")
        return program

    def _batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of the batches that `evaluate` gives the program."""
        count, objects = self._config.eval.batch_size, padded_objects(self._run.val_index)
        shapes = {
            "image": ((count, *self._run.detector.resize.image_size, 3), np.uint8),
            "boxes": ((count, objects, 4), np.float32),
            "labels": ((count, objects), np.int32),
            "mask": ((count, objects), np.bool_),
            "image_id": ((count,), np.int32),
        }
        return {
            name: jax.ShapeDtypeStruct(*shapes[name], sharding=self._run.by_batch)
            for name in ON_DEVICE
        }

    def _read_images(self) -> None:
        index, bad = self._run.val_index, []
        with eval_batches(
            index,
            resize=self._run.detector.resize,
            batch_size=self._config.eval.batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            num_threads=1,
            on_bad_image=self._config.data.on_bad_image,
        ) as batches:
            for batch in batches:
                bad += [int(i) for i in batch.get("unreadable", ()) if i >= 0]
                if self._closed:
                    return
        if bad:
            log.warning("%d validation images cannot be read and will be left out: %s",
                        len(bad), shown([index.image_paths[i] for i in bad]))  # fmt: skip


def _bytes_of_each(tree: Any) -> int:
    """The bytes that a tree of shapes with shardings takes on each device."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )
