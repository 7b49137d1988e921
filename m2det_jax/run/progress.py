"""What one sees of a run: a line and a history record per interval, a progress bar, stop on NaN."""

import logging
import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from clu import metrics as clu_metrics

from m2det_jax.run.devices import place
from m2det_jax.run.history import History

log = logging.getLogger("m2det_jax")

MUCH_WAITING = 0.2  # of the time
_NAMES = ("loss", "loss_class", "loss_box", "num_positives", "grad_norm", "learning_rate")
# Running averages since the last log line. They are saved with a checkpoint, so that the lines of
# a resumed run are those of a run that was never stopped.
IntervalMetrics = clu_metrics.Collection.create(
    **{name: clu_metrics.Average.from_output(name) for name in _NAMES}
)


@jax.jit
def _merge(running, metrics):
    merged = running.merge(IntervalMetrics.single_from_model_output(**metrics))
    # One NaN would make the mean of the interval NaN; such steps are counted instead.
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
    return jax.tree.map(lambda new, old: jnp.where(finite, new, old), merged, running)


class Watch:
    """Follows a training loop from outside; the loop only reports to it.

    Args:
      history: where the records go.
      running: IntervalMetrics so far (restored, or empty).
      progress: what is counted through all stops of the run, saved with each checkpoint; of it
        "nonfinite_steps" and "replaced_images" are counted here.
      image_paths: of the training set, to name images.
      max_nonfinite: so many steps that are not finite are let pass in a run.
      start_step, steps: where the run begins and ends.
      batch_size: global, for the images a second.
      every_steps: length of the interval.
      slow_data: what to do where the loop waits for data, for the log.
    """

    def __init__(
        self,
        history: History,
        running: Any,
        progress: dict[str, Any],
        *,
        start_step: int,
        steps: int,
        batch_size: int,
        every_steps: int,
        image_paths: Sequence[str],
        max_nonfinite: int = 0,
        slow_data: str = "",
    ):
        self.history, self.running, self.progress = history, running, progress
        self.image_paths, self.max_nonfinite = image_paths, max_nonfinite
        self.slow_data, self.intervals = slow_data, 0
        self.steps, self.batch_size, self.every_steps = steps, batch_size, every_steps
        self.bar = tqdm.tqdm(None, "train", steps, initial=start_step, disable=None, unit="step")
        self.pending: tuple[int, np.ndarray, dict[str, jax.Array]] | None = None
        self._restart_clock()

    def _restart_clock(self) -> None:
        self.started, self.waited, self.paused, self.steps_timed = time.perf_counter(), 0.0, 0.0, 0

    def wait_for(self, batches):
        """Takes the next batch, counting the time that the loop waits for it."""
        begin = time.perf_counter()
        batch = next(batches)
        self.waited += time.perf_counter() - begin
        return batch

    def pause(self, verb, *args, **kwargs):
        """Calls an evaluation or a save; its time does not count as training."""
        begin = time.perf_counter()
        result = verb(*args, **kwargs)
        self.paused += time.perf_counter() - begin
        return result

    def after_step(
        self,
        step: int,
        metrics: dict[str, jax.Array],
        image_ids: np.ndarray,
        replaced: np.ndarray | None = None,
    ) -> None:
        """Takes note of a finished step; logs at the end of an interval.

        Args:
          replaced: int32 [B], the unreadable image in whose place one stands, or -1.

        Raises:
          NonFiniteLoss: loss or gradient of the step before is NaN or infinite, once more than
            max_nonfinite. One step late, so that the device always has work queued; `check` looks
            at the last step as well.
        """
        self.check()
        for image_id in replaced[replaced >= 0] if replaced is not None else ():
            self.progress["replaced_images"] += 1
            log.warning("step %d: cannot read image %s, another one in its place; %d times so far",
                        step, self.image_paths[image_id],
                        self.progress["replaced_images"])  # fmt: skip
        self.pending = (step, image_ids, metrics)
        self.running = _merge(self.running, metrics)
        self.steps_timed += 1
        self.bar.update()
        if step % self.every_steps == 0 or step == self.steps:
            self._log(step)

    def check(self) -> None:
        """Looks at loss and gradient of the last step noted: raises NonFiniteLoss, or counts it."""
        if self.pending is None:
            return
        (step, image_ids, metrics), self.pending = self.pending, None
        # A finite loss can have a gradient that is not, and weights that are not from it.
        for name, what in (("loss", "the loss"), ("grad_norm", "the norm of the gradient")):
            if not math.isfinite(metrics[name]):
                error = NonFiniteLoss(step, f"{what} is {float(metrics[name])}", image_ids)
                break
        else:
            return
        if self.progress["nonfinite_steps"] >= self.max_nonfinite:
            raise error
        self.progress["nonfinite_steps"] += 1
        log.warning("%s; its update is left out, the %d. of at most %d. Images: %s", error,
                    self.progress["nonfinite_steps"], self.max_nonfinite,
                    ", ".join(self.image_paths[i] for i in image_ids))  # fmt: skip

    def _log(self, step: int) -> None:
        values = {name: float(value) for name, value in self.running.compute().items()}
        elapsed = time.perf_counter() - self.started - self.paused
        rate = self.steps_timed / elapsed
        values["images_per_second"] = rate * self.batch_size
        values["data_wait_share"] = self.waited / elapsed
        for name in ("nonfinite_steps", "replaced_images"):
            if self.progress[name]:
                values[name] = self.progress[name]
        left = (self.steps - step) / rate
        self.history.write(step, values)
        log.info(
            "step %d/%d  loss %.4f (class %.4f, box %.4f)  positives %.0f  grad %.2f  lr %.3g  "
            "%.1f images/s  waiting for data %.0f%%  left %s",
            step, self.steps, values["loss"], values["loss_class"], values["loss_box"],
            values["num_positives"], values["grad_norm"], values["learning_rate"],
            values["images_per_second"], 100 * values["data_wait_share"], _duration(left),
        )  # fmt: skip
        self._advise(values["data_wait_share"])
        # Where the old ones lie: of several processes, none could save arrays of its own.
        where = jax.tree.map(lambda x: x.sharding, self.running)
        self.running = place(IntervalMetrics.empty(), where)
        self._restart_clock()

    def _advise(self, wait_share: float) -> None:
        """Says once what to do about waits for data; not of the first interval: reading begins."""
        self.intervals += 1
        if self.intervals > 1 and wait_share > MUCH_WAITING and self.slow_data:
            log.warning("training waits for data, %.0f%% of the last steps' time; %s",
                        100 * wait_share, self.slow_data)  # fmt: skip
            self.slow_data = ""

    def close(self) -> None:
        """Ends the progress bar."""
        self.bar.close()


class NonFiniteLoss(FloatingPointError):
    """The loss of a step, or its gradient, was NaN or infinite; `what` says which."""

    def __init__(self, step: int, what: str, image_ids: np.ndarray):
        super().__init__(f"{what} at step {step}")
        self.step, self.what, self.image_ids = step, what, image_ids


def _duration(seconds: float) -> str:
    minutes, hours = round(seconds / 60), round(seconds / 3600, 1)
    return f"{seconds:.0f} s" if seconds < 120 else f"{minutes} min" if hours < 2 else f"{hours} h"
