"""Device thread: it runs the detector on the images that wait, in batches of fixed sizes.

Nothing waits for a batch to become full: a free device takes what is there. Every batch is full,
because the largest size that the waiting images fill is taken; each size is compiled at the start.
While the device computes a batch, the thread prepares the next.
"""

import collections
import concurrent.futures
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from m2det_jax.inference.picture_detector import Seen
from m2det_jax.inference.pictures import look_at
from m2det_jax.inference.result import Result
from m2det_jax.inference.trained_detector import TrainedDetector
from m2det_jax.serve.figures import Figures

log = logging.getLogger("m2det_jax")

_MOST_FAILURES = 3  # batches in a row, after which the service calls itself ill


def batch_sizes(most: int) -> tuple[int, ...]:
    """Returns the sizes of batches: powers of two below `most`, and `most`."""
    return (*(2**k for k in range(most.bit_length()) if 2**k < most), most)


@dataclasses.dataclass(eq=False, frozen=True)
class _Job:
    """An image that waits, and where its result goes."""

    seen: Seen
    threshold: float
    result: concurrent.futures.Future[Result]
    since: float


@dataclasses.dataclass(eq=False, frozen=True)
class _Batch:
    """A batch that the device computes, and what waits for it."""

    jobs: Sequence[_Job]
    fetch: Callable[[], list[Result]]
    since: float


class Device:
    """A detector in a thread of its own.

    Every image that was submitted gets a result or an error, whatever happens in the thread.

    Attributes:
        detector: the detector.
        sizes: the sizes of batches, ascending.
        ready: set when all sizes are compiled, or the thread has failed.
        failure: what ended the thread; None: nothing did.
    """

    def __init__(self, detector: TrainedDetector, batch_size: int, figures: Figures) -> None:
        self.detector, self.sizes = detector, batch_sizes(batch_size)
        self.ready = threading.Event()
        self.failure: BaseException | None = None
        self._figures = figures
        self._waiting: collections.deque[_Job] = collections.deque()
        self._changed = threading.Condition()
        self._closed = False
        self._failures = 0
        self._busy_since: float | None = None
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)

    def start(self) -> None:
        """Starts the thread, which compiles first."""
        self._thread.start()

    def submit(self, seen: Seen, threshold: float) -> concurrent.futures.Future[Result]:
        """Queues an image; a future that is cancelled in time costs the device nothing."""
        job = _Job(seen, threshold, concurrent.futures.Future(), time.monotonic())
        with self._changed:
            if self._closed or self.failure:
                job.result.set_exception(RuntimeError("the device thread has ended"))
            else:
                self._waiting.append(job)
                self._changed.notify()
        return job.result

    def illness(self, limit: float) -> str:
        """Returns why this process should be started again; "": it is well.

        Args:
            limit: seconds that a batch may take.
        """
        if self.failure:
            return f"the device thread has ended: {self.failure}"
        if self._failures >= _MOST_FAILURES:
            return f"the last {self._failures} batches failed"
        since = self._busy_since
        if since is not None and time.monotonic() - since > limit:
            return f"the device has not answered for {time.monotonic() - since:.0f} seconds"
        return ""

    def close(self, limit: float) -> bool:
        """Finishes what waits and ends the thread; returns whether it ended in `limit` seconds."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(limit)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._compile()
            self._serve()
        except BaseException as error:
            log.exception("the device thread has ended")
            self.failure = error
        finally:
            with self._changed:
                self._closed = True
                left = list(self._waiting)
                self._waiting.clear()
            _fail(left, RuntimeError("the device thread has ended"))
            self.ready.set()

    def _compile(self) -> None:
        """Runs every size of batch once."""
        begin = time.monotonic()
        height, width = self.detector.image_size
        seen = look_at(np.zeros((height, width, 3), np.uint8), self.detector.resizes)
        for size in self.sizes:
            self.detector.start_batch([seen] * size, 0.5, size)()
        sizes = ", ".join(map(str, self.sizes))
        log.info("ready: batch sizes %s are compiled (%.1f s)", sizes, time.monotonic() - begin)
        self.ready.set()

    def _serve(self) -> None:
        before: _Batch | None = None
        jobs: list[_Job] | None = None
        try:
            while (jobs := self._take(wait=before is None)) is not None:
                batch = self._begin(jobs) if jobs else None
                if before:
                    self._finish(before)
                before = batch
                self._busy_since = batch.since if batch else None
        except BaseException as error:
            _fail([*(before.jobs if before else ()), *(jobs or ())], RuntimeError(str(error)))
            raise

    def _take(self, *, wait: bool) -> list[_Job] | None:
        """Returns the jobs of the next batch; [] if none waits; None: there will be none."""
        with self._changed:
            while wait and not self._waiting and not self._closed:
                self._changed.wait()
            # A client that has gone has cancelled its job.
            while self._waiting and self._waiting[0].result.cancelled():
                self._waiting.popleft()
            jobs: list[_Job] = []
            size = max((n for n in self.sizes if n <= len(self._waiting)), default=0)
            while self._waiting and len(jobs) < size:
                job = self._waiting.popleft()
                if job.result.set_running_or_notify_cancel():
                    jobs.append(job)
            return None if wait and not jobs and self._closed else jobs

    def _begin(self, jobs: list[_Job]) -> _Batch | None:
        """Starts the device on a batch."""
        since = time.monotonic()
        self._busy_since = self._busy_since or since
        self._figures.batch.observe(len(jobs))
        for job in jobs:
            self._figures.stage.labels("queue").observe(since - job.since)
        # Some of its images may have been given up after the size was chosen.
        size = min(n for n in self.sizes if n >= len(jobs))
        threshold = min(job.threshold for job in jobs)
        try:
            fetch = self.detector.start_batch([job.seen for job in jobs], threshold, size)
        except Exception as error:
            self._failed(jobs, error)
            return None
        return _Batch(jobs, fetch, since)

    def _finish(self, batch: _Batch) -> None:
        """Waits for the device, and hands the results on."""
        try:
            results = batch.fetch()
            for job, result in zip(batch.jobs, results, strict=True):
                job.result.set_result(result[result.scores > np.float32(job.threshold)])
        except Exception as error:
            self._failed(batch.jobs, error)
            return
        self._failures = 0
        self._figures.stage.labels("device").observe(time.monotonic() - batch.since)

    def _failed(self, jobs: Sequence[_Job], error: Exception) -> None:
        log.error("a batch of %d images failed", len(jobs), exc_info=error)
        self._failures += 1
        _fail(jobs, error)


def _fail(jobs: Sequence[_Job], error: Exception) -> None:
    for job in jobs:
        if not job.result.done():
            job.result.set_exception(error)
