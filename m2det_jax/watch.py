"""What one sees of a run: a line and a history record per interval, a progress bar, stop on NaN."""

import logging
import math
import time
from typing import Any

import jax
import numpy as np
import tqdm
from clu import metrics as clu_metrics

from m2det_jax.history import History

log = logging.getLogger("m2det_jax")

_NAMES = ("loss", "loss_class", "loss_box", "num_positives", "grad_norm", "learning_rate")
# Running averages since the last log line. They are saved with a checkpoint, so that the lines of
# a resumed run are those of a run that was never stopped.
IntervalMetrics = clu_metrics.Collection.create(
    **{name: clu_metrics.Average.from_output(name) for name in _NAMES}
)


@jax.jit
def _merge(running, metrics):
    return running.merge(IntervalMetrics.single_from_model_output(**metrics))


class Watch:
    """Follows a training loop from outside; the loop only reports to it.

    Args:
      history: where the records go.
      running: IntervalMetrics so far (restored, or empty).
      start_step, steps: where the run begins and ends.
      batch_size: global, for the images a second.
      every_steps: length of the interval.
    """

    def __init__(
        self,
        history: History,
        running: Any,
        *,
        start_step: int,
        steps: int,
        batch_size: int,
        every_steps: int,
    ):
        self.history, self.running = history, running
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

    def after_step(self, step: int, metrics: dict[str, jax.Array], image_ids: np.ndarray) -> None:
        """Takes note of a finished step; logs at the end of an interval.

        Raises:
          NonFiniteLoss: loss or gradient of the step before is NaN or infinite. One step late, so
            that the device always has work queued; `check` looks at the last step as well.
        """
        self.check()
        self.pending = (step, image_ids, metrics)
        self.running = _merge(self.running, metrics)
        self.steps_timed += 1
        self.bar.update()
        if step % self.every_steps == 0 or step == self.steps:
            self._log(step)

    def check(self) -> None:
        """Raises NonFiniteLoss if the last step noted had a loss or gradient that is not finite."""
        if self.pending is not None:
            step, image_ids, metrics = self.pending
            # A finite loss can have a gradient that is not, and weights that are not from it.
            for name, what in (("loss", "the loss"), ("grad_norm", "the norm of the gradient")):
                if not math.isfinite(metrics[name]):
                    raise NonFiniteLoss(step, f"{what} is {float(metrics[name])}", image_ids)
        self.pending = None

    def _log(self, step: int) -> None:
        values = {name: float(value) for name, value in self.running.compute().items()}
        elapsed = time.perf_counter() - self.started - self.paused
        rate = self.steps_timed / elapsed
        values["images_per_second"] = rate * self.batch_size
        values["data_wait_share"] = self.waited / elapsed
        left = (self.steps - step) / rate
        self.history.write(step, values)
        log.info(
            "step %d/%d  loss %.4f (class %.4f, box %.4f)  positives %.0f  grad %.2f  lr %.3g  "
            "%.1f images/s  waiting for data %.0f%%  left %s",
            step, self.steps, values["loss"], values["loss_class"], values["loss_box"],
            values["num_positives"], values["grad_norm"], values["learning_rate"],
            values["images_per_second"], 100 * values["data_wait_share"], _duration(left),
        )  # fmt: skip
        self.running = IntervalMetrics.empty()
        self._restart_clock()

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
