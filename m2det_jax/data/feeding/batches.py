"""Batches that threads or worker processes prepare, and how those live and die."""

import atexit
import contextlib
import functools
import gc
import multiprocessing
import os
import re
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker, spawn

import grain
import numpy as np
from absl import flags

Batch = dict[str, np.ndarray]

_WORKER_NAME = "grain-process-prefetch"  # how grain names worker processes begins
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # by worker processes


class Batches(Iterator[Batch]):
    """An iterator of batches that owns threads or processes: close it, or use it in a `with`.

    images_of: names the images of a batch, counted from the first that the iterator gives.
    """

    def __init__(
        self,
        iterator: grain.DatasetIterator,
        images_of: Callable[[int], list[str]] = lambda batch: [],
    ) -> None:
        self._iterator: grain.DatasetIterator | None = iterator
        self._error: Exception | None = None
        self._images_of, self._given = images_of, 0

    def __next__(self) -> Batch:
        if self._error is not None:
            raise self._error
        if self._iterator is None:
            raise StopIteration
        try:
            with contextlib.nullcontext() if self._given else _signals_held_back():
                batch = next(self._iterator)
        except StopIteration:
            self.close()
            raise
        except Exception as error:
            # grain would go on with the batch after the broken one, and nobody would notice.
            self._error = _worker_died(error, self._images_of(self._given)) or error
            self.close()
            raise self._error from (None if self._error is error else error)
        self._given += 1
        return batch

    def close(self) -> None:
        """Ends the threads and processes; the iterator is over then."""
        iterator, self._iterator = self._iterator, None
        if iterator is not None:
            iterator.close()

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def iterate(
    batches: grain.MapDataset,
    num_workers: int,
    num_threads: int,
    images_of: Callable[[int], list[str]] = lambda batch: [],
) -> Batches:
    """Reads a data set of batches ahead, in worker processes or (0) in threads of this one."""
    # An element is a batch here; grain's default buffer of 500 would fill the memory.
    options = grain.ReadOptions(
        num_threads=num_threads, prefetch_buffer_size=max(num_threads, 2) if num_threads else 0
    )
    dataset = batches.to_iter_dataset(options)
    if num_workers:
        # grain's workers look at absl flags, which only an absl main has parsed.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        # It would start with the first worker, and lift what _signals_held_back holds back.
        resource_tracker.ensure_running()
        _leave_main_alone()
        _let_go_at_exit()
        workers = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=2)
        dataset = dataset.mp_prefetch(workers, worker_init_fn=_start_worker)
    return Batches(iter(dataset), images_of)


@functools.cache
def _let_go_at_exit() -> None:
    """Lets the last batches go before the program ends, which else complains of shared memory.

    Cycles in iterators hold them, and so does jax, which lets go when Python collects garbage.
    """

    def let_go() -> None:
        # A save that has failed leaves coroutines, of which the collector would warn.
        warnings.simplefilter("ignore", RuntimeWarning)
        for _ in range(5):
            gc.collect()
            time.sleep(0.1)  # a thread of grain's removes what was let go

    atexit.register(let_go)


@functools.cache
def _leave_main_alone() -> None:
    """Lets grain's workers start without the main module of the program.

    A spawned process imports it anew by default: a script without a `__main__` guard would begin a
    second time inside of each worker. What workers need comes to them pickled, by value where it is
    of the main module. All other processes of the program start as ever.
    """
    prepare = spawn.get_preparation_data

    def without_main(name: str) -> dict:
        data = prepare(name)
        if name.startswith(_WORKER_NAME):
            data.pop("init_main_from_name", None)
            data.pop("init_main_from_path", None)
        return data

    spawn.get_preparation_data = without_main


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Lets the worker processes that start inside inherit a deaf ear, until they see to it.

    Those of a group's signals that come meanwhile wait here, or go to another thread.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(index: int, count: int) -> None:
    """Ties a worker process to its parent, which alone answers to signals.

    A terminal and a cluster send their signals to all processes of a job; the parent still needs
    batches to finish its step. And a parent that is killed cannot end its workers.
    """
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)

    def follow_parent() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow_parent, name="follow parent", daemon=True).start()


def _worker_died(error: Exception, images: list[str]) -> ChildProcessError | None:
    """The error to raise where grain reports the end of a worker process, else None."""
    if not (found := re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error))):
        return None
    code = int(found[1])
    how = f"was ended by signal {-code}" if code < 0 else f"ended with status {code}"
    hint = {
        -signal.SIGKILL: " (out of memory? fewer data.num_workers need less)",
        -signal.SIGBUS: " (/dev/shm is full? enlarge it, or give fewer data.num_workers)",
    }.get(code, "")
    what = f". It read these images, or those of the next batches: {', '.join(images)}"
    return ChildProcessError(f"a data worker {how}{hint}{what if images else ''}")
