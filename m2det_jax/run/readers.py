"""Readers of images: how many worker processes and threads, by the config or by what fits the host.

`choose_readers` is the rule. Batches do not depend on it, only the speed does.
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
# Worker processes, which all import the program, take seconds to start: so many images pay for it.
FEW_IMAGES = 10_000
# One H100 takes up to 900 images a second, a worker gives some 200.
WORKERS_PER_DEVICE, MOST_WORKERS, MOST_THREADS = 8, 16, 8
# Batches of a worker in shared memory: those that wait, one that is being put, one in use.
BATCHES_PER_WORKER = 4
_CGROUP, _SHARED_MEMORY = pathlib.Path("/sys/fs/cgroup"), "/dev/shm"


@dataclasses.dataclass(frozen=True)
class Host:
    """What this process has for its work.

    Attributes:
      cores: that it may use.
      devices: that it drives.
      platform: of them: "cpu", "gpu" or "tpu".
      processes: of the run that have the same cores, this one included.
      room: most worker processes for whose batches shared memory suffices.
    """

    cores: int
    devices: int
    platform: str
    processes: int = 1
    room: int = 2**30

    @property
    def share(self) -> int:
        """Cores for this process alone."""
        return max(self.cores // self.processes, 1)


@dataclasses.dataclass(frozen=True)
class Readers:
    """Who reads images.

    Attributes:
      workers: processes; 0: threads of this one.
      threads: of every worker, or of this process.
      advice: what to do where they do not suffice.
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

    A CPU computes with the cores that would read, and needs few images a second: two threads do.
    For accelerators all cores but one read, as processes, at most 8 a device and 16 in all; where
    these are fewer than three, or the images few, threads.

    Args:
      images: that this process reads in all; None: without end.
      num_workers, num_threads: as the user gives them, or AUTOMATIC.

    Raises:
      ValueError: a number is below -1.
    """
    for name, value, least in (("num_workers", num_workers, 0), ("num_threads", num_threads, 1)):
        if value < least and value != AUTOMATIC:
            raise InputError(f"{name}: {least} or more expected, or -1 for what fits, got {value}")
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
    """What to do where the readers do not keep up."""
    more = min(host.share - 1, 2 * workers or host.share // 2)
    if max(workers, 1) < more <= host.room:
        return f"raise --config.data.num_workers={more} (now {workers}, for {host.share} cores)"
    if more > host.room:
        return (
            f"{_SHARED_MEMORY} has no room for the batches of more worker processes than "
            f"{host.room}; enlarge it (docker run --shm-size=8g), then raise "
            f"--config.data.num_workers={more}"
        )
    cores = f"all {host.share} cores of this process are" if host.share > 1 else "its one core is"
    return (
        f"{cores} in use already; what helps: more cores (SLURM: --cpus-per-task), image files "
        "about as large as the input of the network, a faster disk, fewer steps in "
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
    """Returns the readers for this host, and logs once what was chosen.

    In a run of several processes all of them must call it.

    Args:
      what: is read, for the log.
      batch_bytes: of the images in a batch of this process.
      images: see choose_readers.
      streams: of batches that are read at the same time, each by readers of its own.
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
      num_images, batch_size: of all processes.
      sizes: (height, width) in pixels; batches of all of them are read at the same time.
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
    """Adds --num_workers and --num_threads."""
    for name, what in (
        ("num_workers", "processes that read images; 0: threads of this one"),
        ("num_threads", "reading threads of each such process, or of this one"),
    ):
        parser.add_argument(
            f"--{name}", type=int, default=AUTOMATIC, help=f"{what}; default: what fits the host"
        )


@functools.cache
def _tell(text: str) -> None:
    log.info(text)


def usable_cores(cgroup: pathlib.Path = _CGROUP) -> int:
    """Returns how many cores this process may use: by affinity and the quota of its container."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        cores = os.cpu_count() or 1
    return max(1, min(cores, math.floor(cgroup_quota(cgroup))))


def cgroup_quota(cgroup: pathlib.Path) -> float:
    """Returns the cores that a container may use, by version 2 or 1 of cgroups; else many."""
    for files in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        try:
            quota, period = " ".join((cgroup / file).read_text() for file in files).split()
            if quota.isdecimal() and int(quota):  # else "max" or -1: there is none
                return int(quota) / int(period)
        except (OSError, ValueError, ZeroDivisionError):
            continue
    return 1_000_000


def _free_shared_memory() -> int:
    """Returns the bytes that worker processes can put batches in; many where nothing limits it."""
    try:
        return shutil.disk_usage(_SHARED_MEMORY).free
    except OSError:  # macOS
        return 2**60


@functools.cache
def _processes_beside() -> int:
    """Returns how many processes of the run have this host and the same cores as this one."""
    if jax.process_count() == 1:
        return 1
    affinity = getattr(os, "sched_getaffinity", lambda _: ())
    own = zlib.crc32(f"{socket.gethostname()} {sorted(affinity(0))}".encode())
    return int((multihost_utils.process_allgather(np.uint32(own)) == own).sum())
