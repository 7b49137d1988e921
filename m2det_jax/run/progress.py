"""Progress of a training run: log lines, history records, a progress bar, and a stop on NaN."""

import contextlib
import functools
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from clu import metrics as clu_metrics

from m2det_jax.run.devices import place
from m2det_jax.run.history import History

log = logging.getLogger("m2det_jax")

MUCH_WAITING = 0.2  # of the time
_T = TypeVar("_T")
Batch = Mapping[str, np.ndarray]  # arrays [B, ...] by name


@functools.cache
def interval_means(names: tuple[str, ...]) -> type[clu_metrics.Collection]:
    """Returns the class of running means of scalars with these names, in this order."""
    return clu_metrics.Collection.create(
        **{name: clu_metrics.Average.from_output(name) for name in names}
    )


@jax.jit
def _merge(interval: Any, metrics: dict[str, jax.Array]) -> Any:
    merged = interval.merge(type(interval).single_from_model_output(**metrics))
    # One NaN would make the mean of the interval NaN; such steps are counted instead.
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
    return jax.tree.map(lambda new, old: jnp.where(finite, new, old), merged, interval)


class Progress:
    """Follows a training loop, which reports to it; usable in a `with` statement.

    Attributes:
        interval: running means of the step's metrics since the last log line.
        totals: what is counted through all stops of the run. Of it "nonfinite_steps" and
            "replaced_images" are counted here. Both are saved with each checkpoint.

    Args:
        history: where the records go.
        start_step, steps: where the run begins and ends.
        batch_size: global, for the images a second.
        every_steps: length of the interval.
        image_paths: of the training set, to name images.
        max_nonfinite: number of steps with a NaN or infinite loss that a run may have.
        on_failure: is told of each such step before anything else is done about it.
        slow_data: what to do where the loop waits for data, for the log.
    """

    def __init__(
        self,
        history: History,
        interval: clu_metrics.Collection,
        totals: dict[str, Any],
        *,
        start_step: int,
        steps: int,
        batch_size: int,
        every_steps: int,
        image_paths: Sequence[str],
        max_nonfinite: int = 0,
        on_failure: Callable[["Failure"], None] = lambda failure: None,
        slow_data: str = "",
    ):
        self.history, self.interval, self.totals = history, interval, totals
        self.image_paths, self.max_nonfinite = image_paths, max_nonfinite
        self.on_failure = on_failure
        self.slow_data, self.intervals = slow_data, 0
        self.steps, self.batch_size, self.every_steps = steps, batch_size, every_steps
        self.bar = tqdm.tqdm(None, "train", steps, initial=start_step, disable=None, unit="step")
        # With its batch, which the loop would drop as the next one comes.
        self.pending: tuple[int, Batch, dict[str, jax.Array]] | None = None
        self._restart_clock()

    def _restart_clock(self) -> None:
        self.started, self.waited, self.paused, self.steps_timed = time.perf_counter(), 0.0, 0.0, 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time that the loop waits for its next batch."""
        begin = time.perf_counter()
        yield
        self.waited += time.perf_counter() - begin

    def pause(self, work: Callable[..., _T], *args: Any, **kwargs: Any) -> _T:
        """Calls an evaluation or a save; its time does not count as training."""
        begin = time.perf_counter()
        result = work(*args, **kwargs)
        self.paused += time.perf_counter() - begin
        return result

    def after_step(
        self,
        step: int,
        metrics: dict[str, jax.Array],
        batch: Batch,
    ) -> None:
        """Takes note of a finished step; logs at the end of an interval.

        Args:
            batch: arrays [B, ...] of this process, of which "image_id" is needed here: int32 [B];
                and "replaced" where it is there: the unreadable image in whose place one stands,
                or -1.

        Raises:
            NonFiniteLoss: loss or gradient of the step before is NaN or infinite, once more than
                max_nonfinite. One step late, so that the device always has work queued; `check`
                looks at the last step as well.
        """
        self.check()
        replaced = batch.get("replaced", np.empty(0, np.int32))
        for image_id in replaced[replaced >= 0]:
            self.totals["replaced_images"] += 1
            log.warning("step %d: cannot read image %s, another one in its place; %d times so far",
                        step, self.image_paths[image_id],
                        self.totals["replaced_images"])  # fmt: skip
        self.pending = (step, batch, metrics)
        self.interval = _merge(self.interval, metrics)
        self.steps_timed += 1
        self.bar.update()
        if step % self.every_steps == 0 or step == self.steps:
            self._log(step)

    def check(self) -> None:
        """Looks at loss and gradient of the last step noted: raises NonFiniteLoss, or counts it."""
        if self.pending is None:
            return
        (step, batch, metrics), self.pending = self.pending, None
        if not (what := not_finite(metrics)):
            return
        paths = [self.image_paths[i] for i in batch["image_id"]]
        error = NonFiniteLoss(step, what, batch["image_id"], paths)
        self.on_failure(Failure(step, error, metrics, batch))
        if self.totals["nonfinite_steps"] >= self.max_nonfinite:
            raise error
        self.totals["nonfinite_steps"] += 1
        log.warning("%s; its update is left out, the %d. of at most %d. Images: %s", error,
                    self.totals["nonfinite_steps"], self.max_nonfinite,
                    ", ".join(error.image_paths))  # fmt: skip

    def _log(self, step: int) -> None:
        means = {name: float(value) for name, value in self.interval.compute().items()}
        elapsed = time.perf_counter() - self.started - self.paused
        rate = self.steps_timed / elapsed
        speed = {
            "images_per_second": rate * self.batch_size,
            "data_wait_share": self.waited / elapsed,
        }
        counts = {name: self.totals[name] for name in ("nonfinite_steps", "replaced_images")}
        self.history.write(step, means | speed | {k: n for k, n in counts.items() if n})
        losses = [name for name in means if name.startswith("loss_")]
        log.info(
            "step %d/%d  loss %.4f (%s)  positives %.0f  grad %.2f  lr %.3g  "
            "%.1f images/s  waiting for data %.0f%%  left %s",
            step, self.steps, means["loss"],
            ", ".join(f"{name.removeprefix('loss_')} {means[name]:.4f}" for name in losses),
            means["num_positives"], means["grad_norm"], means["learning_rate"],
            speed["images_per_second"], 100 * speed["data_wait_share"],
            _duration((self.steps - step) / rate),
        )  # fmt: skip
        self._advise(speed["data_wait_share"])
        # Where the old ones lie: of several processes, none could save arrays of its own.
        where = jax.tree.map(lambda x: x.sharding, self.interval)
        self.interval = place(type(self.interval).empty(), where)
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

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def not_finite(metrics: Mapping[str, jax.Array]) -> str:
    """Returns what of a step's metrics is not finite, and its value; "": loss and gradient are."""
    # A finite loss can have a gradient that is not, and weights that are not from it.
    for name, what in (("loss", "the loss"), ("grad_norm", "the norm of the gradient")):
        if not math.isfinite(metrics[name]):
            return f"{what} is {float(metrics[name])}"
    return ""


class NonFiniteLoss(FloatingPointError):
    """The loss of a step, or the norm of its gradient, is NaN or infinite.

    Attributes:
        step: that it is of.
        what: is not finite, and its value.
        image_ids, image_paths: of the step's batch.
    """

    def __init__(self, step: int, what: str, image_ids: np.ndarray, image_paths: Sequence[str]):
        super().__init__(f"{what} at step {step}")
        self.step, self.what = step, what
        self.image_ids, self.image_paths = image_ids, image_paths


class Failure(NamedTuple):
    """A step whose loss or gradient is not finite, with its metrics and its batch."""

    step: int
    error: NonFiniteLoss
    metrics: Mapping[str, jax.Array]
    batch: Batch


def _duration(seconds: float) -> str:
    minutes, hours = round(seconds / 60), round(seconds / 3600, 1)
    return f"{seconds:.0f} s" if seconds < 120 else f"{minutes} min" if hours < 2 else f"{hours} h"
