"""Devices and processes: joining a cluster, the mesh, where arrays lie, and gathering results.

One mesh axis, "data", over all devices of all processes. Batches are split along it; the training
state is replicated, or split as well (`config.sharding="fsdp"`).
"""

import logging
import math
import os
import sys
import threading
import zlib
from collections.abc import Sequence
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from m2det_jax.errors import InputError

log = logging.getLogger("m2det_jax")

AXIS = "data"
# Smaller arrays (biases, norms) stay whole: splitting them saves nothing and costs a message each.
SMALLEST_SPLIT = 4096


def join_cluster(
    coordinator: str, num_processes: int = 0, process_id: int = 0, heartbeat_seconds: int = 100
) -> None:
    """Makes this process one of several that train together; before jax meets a device.

    Args:
      coordinator: "" is one process alone; "auto" asks the environment of the cluster (SLURM, Open
        MPI, GKE and TPU pods, see jax.distributed); else "host:port" of process 0, with the two
        numbers that follow.
      num_processes: of the whole run.
      process_id: of this one, 0 .. num_processes - 1.
      heartbeat_seconds: a process that is silent for so long is taken for dead. Then jax aborts
        all of them (SIGABRT), also where they wait in a computation for it.

    Raises:
      ValueError: the numbers do not fit, the cluster is not recognised, or the coordinator's port
        is taken. (Where the others do not come within five minutes, jax aborts.)
    """
    if not coordinator:
        refuse_several_processes("--config.distributed.coordinator=auto makes them one run")
        return
    given = {}
    if coordinator != "auto":
        if num_processes < 1 or not 0 <= process_id < num_processes:
            raise InputError(
                f"config.distributed.coordinator={coordinator!r} needs num_processes of at least 1 "
                f"and a process_id from 0 to num_processes - 1, got num_processes={num_processes}, "
                f"process_id={process_id}"
            )
        given = dict(
            coordinator_address=coordinator, num_processes=num_processes, process_id=process_id,
            # In a SLURM job jax would else leave this process one GPU of its host.
            cluster_detection_method="deactivate",
        )  # fmt: skip
    # Its handler of SIGTERM would let a process that has not begun to train wait for kill -9.
    jax.config.update("jax_enable_preemption_service", False)
    # Where the others do not come, jax aborts without a word about the place.
    log.info("waiting for the other processes, five minutes at most: coordinator %s%s", coordinator,
             f", process {process_id} of {num_processes}" if given else "")  # fmt: skip
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=heartbeat_seconds, **given)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"cannot join the other processes (config.distributed.coordinator={coordinator!r}): "
            f"{error}; start every process within five minutes with the same host:port, or give "
            "--config.distributed.coordinator=HOST:PORT, .num_processes and .process_id"
        ) from None
    log.info("process %d of %d", jax.process_index(), jax.process_count())


def refuse_several_processes(remedy: str) -> None:
    """Refuses a process that `srun` or `mpirun` has started several of.

    Raises:
      ValueError: they would not know of each other, and all do and write the same.
    """
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        if (count := os.environ.get(name, "1")) != "1":
            raise InputError(
                f"this is one of {count} processes ({name}={count}) that would all do the same; "
                f"start one (srun --ntasks=1, mpirun -n 1); for training, {remedy}"
            )


def refuse_unlike(what: str, text: str) -> None:
    """Refuses a run whose processes were not given the same; the same in all of them.

    Args:
      what: it is, for the message.
      text: that must be equal in all processes.

    Raises:
      ValueError: it is not.
    """
    if jax.process_count() == 1:
        return
    sums = multihost_utils.process_allgather(np.uint32(zlib.crc32(text.encode())))
    unlike = [i for i, found in enumerate(sums) if found != sums[0]]
    if unlike:
        raise InputError(
            f"{what} of process {', '.join(map(str, unlike))} is not that of process 0; start all "
            "processes of a run with the same flags, versions and data"
        )


def leave_after(error: Exception, remedy: str) -> NoReturn:
    """Ends this process where a computation over all processes has failed under it."""
    first = (str(error).strip().splitlines() or [""])[0][:200]
    print(
        f"error: a computation of all {jax.process_count()} processes failed here, in process "
        f"{jax.process_index()}; most likely another one has ended: see what it wrote. {remedy}. "
        f"({first})",
        file=sys.stderr,
    )
    leave(1)


def leave(status: int, patience: float = 10.0) -> NoReturn:
    """Ends one process of several after an error, though the others may wait for it.

    At a normal end jax waits minutes for all processes. One that has failed would be waited for by
    those that still compute with it; they hear of it when it is gone.

    Args:
      status: of the process.
      patience: seconds for the others to come to the same end, if they do.
    """
    thread = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    thread.start()
    thread.join(patience)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def data_mesh(
    devices: Sequence[jax.Device] | None = None,
) -> tuple[NamedSharding, NamedSharding]:
    """Returns the shardings (replicated, split by batch) over devices; None: of all processes."""
    # Not jax.make_mesh: its axes are explicit by default, which the step is not written for.
    mesh = Mesh(np.array(devices or jax.devices()), (AXIS,))
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(AXIS))


def state_sharding(tree: Any, replicated: NamedSharding, kind: str) -> Any:
    """Returns a tree of shardings for the arrays of `tree`.

    Args:
      kind: "replicated" keeps every array whole on every device. "fsdp" splits each array of
        SMALLEST_SPLIT numbers or more along its longest axis that the devices divide, so that
        parameters, moving averages and optimiser state take a device's share of the memory; XLA
        gathers a layer's weights where they are used (Rajbhandari et al. 2020, arXiv 1910.02054).
    """
    count = replicated.mesh.size

    def of(array) -> NamedSharding:
        shape = np.shape(array)
        fitting = [axis for axis, size in enumerate(shape) if size % count == 0]
        if kind == "replicated" or math.prod(shape) < SMALLEST_SPLIT or not fitting:
            return replicated
        longest = max(fitting, key=lambda axis: shape[axis])
        spec = PartitionSpec(*(AXIS if axis == longest else None for axis in range(len(shape))))
        return NamedSharding(replicated.mesh, spec)

    return jax.tree.map(of, tree)


def place(tree: Any, sharding: Any) -> Any:
    """Puts a tree on the devices, each leaf in memory of its own, so that donating one is safe.

    Args:
      sharding: one for all leaves, or a tree of one for each.
    """
    shardings = jax.tree.map(lambda _: sharding, tree) if _is_sharding(sharding) else sharding
    return jax.tree.map(_place, tree, shardings)


def _place(array: Any, sharding: Sharding) -> jax.Array:
    # Piece by piece, not by one device_put: that would compare each array among all processes.
    array = np.asarray(array)
    pieces = [
        # np.array copies: device_put alone may hand back the very array that it was given.
        jax.device_put(np.array(array[index]), device, may_alias=False)
        for device, index in sharding.addressable_devices_indices_map(array.shape).items()
    ]
    return jax.make_array_from_single_device_arrays(array.shape, sharding, pieces)


def _is_sharding(value: Any) -> bool:
    return isinstance(value, Sharding)


def put_batch(batch: Any, by_batch: Sharding) -> Any:
    """Makes global arrays [B, ...] of this process's share of a batch [B / processes, ...]."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(by_batch, x), batch)


def fetch(tree: Any) -> Any:
    """Returns a tree of global arrays as numpy arrays, whole in every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def start_maximum(value: int) -> jax.Array:
    """Starts to compute the largest value of all processes, int32; waits for nothing."""
    _, by_device = data_mesh()
    local = np.full(jax.local_device_count(), value, np.int32)
    return _maximum(jax.make_array_from_process_local_data(by_device, local))


@jax.jit
def _maximum(values: jax.Array) -> jax.Array:
    return values.max()


def wait_for_all(what: str) -> None:
    """Waits until every process has come to the place called `what`."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def check_divisible(what: str, batch_size: int, parts: int = 1) -> None:
    """Refuses a batch that does not divide over devices and micro-batches.

    Raises:
      ValueError: naming both numbers.
    """
    devices = jax.device_count()
    if batch_size < 1 or batch_size % (devices * parts):
        by = f"{devices} devices" + (f" x {parts} micro-batches" if parts > 1 else "")
        raise InputError(
            f"{what}={batch_size} does not divide over {by}; give a multiple of {devices * parts}"
        )


def no_larger_batch(batch_size: int, num_images: int) -> int:
    """Returns the batch size, or what holds all images on all devices where that is smaller."""
    devices = jax.device_count()
    return min(batch_size, -(-num_images // devices) * devices)
