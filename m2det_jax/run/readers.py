"""Data loader processes and threads: their number, set by the config or chosen for the host.

`choose_readers` has the rule. The numbers change the speed only, never the batches.
"""

import argparse
import dataclasses
import functools
import logging
import math
import os
import pathlib
import shutil
import socket
import zlib
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from m2det_jax.errors import InputError

log = logging.getLogger("m2det_jax")

AUTOMATIC = -1
# Worker processes take seconds to start, because each imports the program. With fewer images than
# this, threads are faster.
FEW_IMAGES = 10_000
# One H100 trains on up to 900 images a second; one worker process delivers about 200.
WORKERS_PER_DEVICE, MOST_WORKERS, MOST_THREADS = 8, 16, 8
# Batches of one worker in shared memory: two that wait, one that is written, one in use.
BATCHES_PER_WORKER = 4
_CGROUP, _SHARED_MEMORY = pathlib.Path("/sys/fs/cgroup"), "/dev/shm"


@dataclasses.dataclass(frozen=True)
class Host:
    """Resources of this process.

    Attributes:
        cores: number of cores that it may use.
        devices: number of devices that it drives.
        platform: platform of the devices: "cpu", "gpu" or "tpu".
        processes: number of processes of the run that use the same cores, including this one.
        room: largest number of worker processes whose batches fit into shared memory.
    """

    cores: int
    devices: int
    platform: str
    processes: int = 1
    room: int = 2**30

    @property
    def share(self) -> int:
        """Number of cores for this process alone."""
        return max(self.cores // self.processes, 1)


@dataclasses.dataclass(frozen=True)
class Readers:
    """Numbers of processes and threads that read images.

    Attributes:
        workers: number of worker processes; 0: threads of this process read.
        threads: number of threads of each worker, or of this process.
        advice: what to do if they are too slow.
    """

    workers: int
    threads: int
    advice: str = ""


def choose_readers(
    host: Host,
    *,
    images: int | None = None,
    num_workers: int = AUTOMATIC,
    num_threads: int = AUTOMATIC,
) -> Readers:
    """Returns the readers for a host.

    If the devices are CPUs, the same cores compute and read, and few images a second are needed:
    two threads are enough. For accelerators, all cores except one read, as worker processes, at
    most 8 per device and 16 in total. Threads are used instead if there would be fewer than three
    workers, or if there are few images.

    Args:
        host: resources of this process.
        images: number of images that this process reads in total; None: endless.
        num_workers: number of worker processes that the user asks for, or AUTOMATIC.
        num_threads: number of threads that the user asks for, or AUTOMATIC.

    Raises:
        InputError: if a number is negative and not -1, or there would be no thread.
    """
    for name, value, least in (("num_workers", num_workers, 0), ("num_threads", num_threads, 1)):
        if value < least and value != AUTOMATIC:
            raise InputError(f"{name}: {least} or more expected, or -1 for automatic, got {value}")
    few = images is not None and images < FEW_IMAGES
    workers = min(host.share - 1, WORKERS_PER_DEVICE * host.devices, MOST_WORKERS, host.room)
    if host.platform == "cpu" or few or workers < 3:
        workers = 0
    if num_workers != AUTOMATIC:
        workers = num_workers
    threads = 2
    if not workers and host.platform != "cpu":
        threads = min(max(host.share, 2), MOST_THREADS)
    if num_threads != AUTOMATIC:
        threads = num_threads
    return Readers(workers, threads, _advice(host, workers))


def _advice(host: Host, workers: int) -> str:
    """Returns what to do if the readers are too slow."""
    more = min(host.share - 1, 2 * workers or host.share // 2)
    if max(workers, 1) < more <= host.room:
        return f"raise --config.data.num_workers={more} (now {workers}, for {host.share} cores)"
    if more > host.room:
        return (
            f"{_SHARED_MEMORY} has room for the batches of {host.room} worker "
            f"process{'es' * (host.room != 1)} only; "
            "enlarge it (docker run --shm-size=8g), then raise "
            f"--config.data.num_workers={more}"
        )
    cores = f"all {host.share} cores of this process are" if host.share > 1 else "its one core is"
    return (
        f"{cores} in use already; use more cores (SLURM: --cpus-per-task), image files about as "
        "large as the input of the network, a faster disk, or fewer steps in "
        "config.augment.pipeline"
    )


def local_readers(
    what: str,
    *,
    batch_bytes: int,
    images: int | None = None,
    streams: int = 1,
    num_workers: int = AUTOMATIC,
    num_threads: int = AUTOMATIC,
) -> Readers:
    """Returns the readers for this host, and logs the choice once.

    In a run of several processes, all of them must call this function.

    Args:
        what: name of the task, for the log, such as "training".
        batch_bytes: bytes of the images in a batch of this process.
        images: number of images that this process reads in total; None: endless.
        streams: number of batch streams that are read at the same time, each by its own readers.
        num_workers: number of worker processes that the user asks for, or AUTOMATIC.
        num_threads: number of threads that the user asks for, or AUTOMATIC.

    Raises:
        InputError: if a number is not valid.
    """
    cores, sharing = usable_cores(), _processes_beside()
    room = _free_shared_memory() // max(BATCHES_PER_WORKER * batch_bytes * streams * sharing, 1)
    host = Host(
        cores, jax.local_device_count(), jax.default_backend(), sharing * streams, int(room)
    )
    given = {"num_workers": num_workers, "num_threads": num_threads}
    readers = choose_readers(host, images=images, **given)
    threads = f"{readers.threads} thread{'s' * (readers.threads != 1)}"
    by = f"{readers.workers} worker processes, each with {threads}" if readers.workers else threads
    of_each = f" for each of {streams} input sizes" if streams > 1 else ""
    beside = f" for {sharing} processes" if sharing > 1 else ""
    _tell(f"{what}: images are read by {by}{of_each} ({cores} cores{beside}, "
          f"{host.devices} x {host.platform})")  # fmt: skip
    return readers


def eval_readers(
    num_images: int,
    batch_size: int,
    sizes: Sequence[tuple[int, int]],
    num_workers: int = AUTOMATIC,
    num_threads: int = AUTOMATIC,
) -> Readers:
    """Returns the readers of `data.eval_batches` over a data set at one or more input sizes.

    Args:
        num_images: number of images, over all processes.
        batch_size: images of a batch, over all processes.
        sizes: (height, width) in pixels; the batches of all sizes are read at the same time.
        num_workers: number of worker processes that the user asks for, or AUTOMATIC.
        num_threads: number of threads that the user asks for, or AUTOMATIC.
    """
    height, width = max(sizes, key=math.prod)
    return local_readers(
        "detection",
        batch_bytes=batch_size // jax.process_count() * height * width * 3,
        images=-(-num_images // jax.process_count()),
        streams=len(sizes),
        num_workers=num_workers,
        num_threads=num_threads,
    )


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags --num_workers and --num_threads."""
    for name, what in (
        ("num_workers", "worker processes that read images; 0: threads of this process read"),
        ("num_threads", "reading threads of each worker process, or of this process"),
    ):
        parser.add_argument(
            f"--{name}", type=int, default=AUTOMATIC, help=f"{what}; default: chosen for the host"
        )


@functools.cache
def _tell(text: str) -> None:
    log.info(text)


def usable_cores(cgroup: pathlib.Path = _CGROUP) -> int:
    """Returns the number of cores for this process, by affinity and the quota of its container.

    Args:
        cgroup: root folder of the control groups.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        cores = os.cpu_count() or 1
    return max(1, min(cores, math.floor(cgroup_quota(cgroup))))


def cgroup_quota(cgroup: pathlib.Path) -> float:
    """Returns the number of cores that a container may use, by cgroups version 2 or 1.

    Without a quota the number is very large.
    """
    for files in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        try:
            quota, period = " ".join((cgroup / file).read_text() for file in files).split()
            if quota.isdecimal() and int(quota):  # "max" or -1: no quota
                return int(quota) / int(period)
        except (OSError, ValueError, ZeroDivisionError):
            continue
    return 1_000_000


def _free_shared_memory() -> int:
    """Returns the free bytes of shared memory; a very large number if it has no limit."""
    try:
        return shutil.disk_usage(_SHARED_MEMORY).free
    except OSError:  # macOS
        return 2**60


@functools.cache
def _processes_beside() -> int:
    """Returns the number of processes of the run on this host with the same cores as this one."""
    if jax.process_count() == 1:
        return 1
    affinity = getattr(os, "sched_getaffinity", lambda _: ())
    own = zlib.crc32(f"{socket.gethostname()} {sorted(affinity(0))}".encode())
    return int((multihost_utils.process_allgather(np.uint32(own)) == own).sum())
