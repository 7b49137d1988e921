"""Workers: threads or processes that prepare batches ahead, and how they end."""

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
from collections.abc import Iterator
from multiprocessing import resource_tracker, spawn
from typing import Any

import grain
from absl import flags

_WORKER_NAME = "grain-process-prefetch"  # how grain names worker processes begins
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # by worker processes


def read_ahead(
    batches: grain.MapDataset, num_workers: int, num_threads: int
) -> grain.DatasetIterator:
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
        # It would start with the first worker, and let through the signals that are held back.
        resource_tracker.ensure_running()
        _leave_main_alone()
        _free_memory_at_exit()
        workers = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=2)
        dataset = dataset.mp_prefetch(workers, worker_init_fn=_start_worker)
    return iter(dataset)


@functools.cache
def _free_memory_at_exit() -> None:
    """Frees the shared memory of the last batches before the program ends, which else complains.

    Cycles in iterators hold it, and so does jax, which frees it when Python collects garbage.
    """

    def free() -> None:
        # A save that failed leaves coroutines, of which the collector would warn.
        warnings.simplefilter("ignore", RuntimeWarning)
        for _ in range(5):
            gc.collect()
            time.sleep(0.1)  # a thread of grain's removes what was freed

    atexit.register(free)


@functools.cache
def _leave_main_alone() -> None:
    """Makes grain's workers start without the main module of the program.

    A spawned process imports it again by default: a script without a `__main__` guard would start a
    second time inside each worker. What workers need is sent to them pickled, by value if it is of
    the main module. All other processes of the program start as before.
    """
    prepare = spawn.get_preparation_data

    def without_main(name: str) -> dict[str, Any]:
        data = prepare(name)
        if name.startswith(_WORKER_NAME):
            data.pop("init_main_from_name", None)
            data.pop("init_main_from_path", None)
        return data

    spawn.get_preparation_data = without_main


@contextlib.contextmanager
def signals_held_back() -> Iterator[None]:
    """Blocks signals, which worker processes that start inside inherit until they are set up.

    Signals to this process that come meanwhile wait here, or go to another thread.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(index: int, count: int) -> None:
    """Makes a worker process ignore signals and end with its parent.

    A terminal and a cluster send their signals to all processes of a job, but the parent still
    needs batches to finish its step. And a parent that is killed cannot end its workers.
    """
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)

    def follow_parent() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=follow_parent, name="follow parent", daemon=True).start()


def worker_died(error: Exception, images: list[str]) -> ChildProcessError | None:
    """Returns the error to raise where grain reports the end of a worker process, else None."""
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
