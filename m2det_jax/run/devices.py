"""Devices and processes: joining a cluster, the mesh, sharding, and gathering results.

There is one mesh axis, "data", over all devices of all processes. Batches are split along it; the
training state is replicated, or split too (`config.sharding="fsdp"`).
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
# Number of elements. Smaller arrays (biases, norms) are replicated: splitting them saves almost
# nothing and costs one message each.
SMALLEST_SPLIT = 4096


def join_cluster(
    coordinator: str, num_processes: int = 0, process_id: int = 0, heartbeat_seconds: int = 100
) -> None:
    """Joins this process with the others of a run; must be called before jax uses a device.

    If the other processes do not start within five minutes, jax aborts.

    Args:
        coordinator: "": a single process; "auto": read the environment of the cluster (SLURM,
            Open MPI, GKE and TPU pods, see jax.distributed); otherwise "host:port" of process 0,
            together with the two numbers that follow.
        num_processes: number of processes of the run.
        process_id: number of this process, 0 .. num_processes - 1.
        heartbeat_seconds: a process that is silent for this time counts as dead. Then jax aborts
            all processes (SIGABRT), even if they wait in a computation for it.

    Raises:
        InputError: if the numbers are not valid, the cluster is not recognised, or the port of the
            coordinator is in use.
    """
    if not coordinator:
        refuse_several_processes("--config.distributed.coordinator=auto makes them one run")
        return
    given: dict[str, Any] = {}
    if coordinator != "auto":
        if num_processes < 1 or not 0 <= process_id < num_processes:
            raise InputError(
                f"config.distributed.coordinator={coordinator!r} needs num_processes of at least 1 "
                f"and a process_id from 0 to num_processes - 1, got num_processes={num_processes}, "
                f"process_id={process_id}"
            )
        given = dict(
            coordinator_address=coordinator, num_processes=num_processes, process_id=process_id,
            # Otherwise, in a SLURM job, jax would give this process only one GPU of its host.
            cluster_detection_method="deactivate",
        )  # fmt: skip
    # With this service, SIGTERM would not end a process before training starts; only kill -9 would.
    jax.config.update("jax_enable_preemption_service", False)
    # If the others do not start, jax aborts without saying where it waited.
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
    """Refuses to run as one of several processes that `srun` or `mpirun` has started.

    Args:
        remedy: what to do for training; the end of the message.

    Raises:
        InputError: if there are several processes. Without a coordinator they do not know of each
            other, and all would do the same work and write the same files.
    """
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        if (count := os.environ.get(name, "1")) != "1":
            raise InputError(
                f"this is one of {count} processes ({name}={count}) that would all do the same; "
                f"start only one (srun --ntasks=1, mpirun -n 1); for training, {remedy}"
            )


def refuse_unlike(what: str, text: str) -> None:
    """Refuses a run if its processes have different inputs; all processes must call it.

    Args:
        what: name of the input, for the message, such as "the config".
        text: the input as text.

    Raises:
        InputError: if the text differs between processes; all processes raise it.
    """
    if jax.process_count() == 1:
        return
    sums = multihost_utils.process_allgather(np.uint32(zlib.crc32(text.encode())))
    unlike = [i for i, found in enumerate(sums) if found != sums[0]]
    if unlike:
        raise InputError(
            f"{what} of process {', '.join(map(str, unlike))} differs from that of process 0; "
            "start all processes of a run with the same flags, versions and data"
        )


def leave_after(error: Exception, remedy: str) -> NoReturn:
    """Ends this process after a computation over all processes has failed.

    Args:
        error: the error of the computation.
        remedy: what to do now; part of the message.
    """
    first = (str(error).strip().splitlines() or [""])[0][:200]
    print(
        f"error: a computation of all {jax.process_count()} processes failed in process "
        f"{jax.process_index()}; most likely another process has ended: see its output. {remedy}. "
        f"({first})",
        file=sys.stderr,
    )
    leave(1)


def leave(status: int, patience: float = 10.0) -> NoReturn:
    """Ends one process of several after an error, without waiting long for the others.

    At a normal exit jax waits minutes for all processes, and the others may wait for this one in a
    computation. They notice the failure only when this process has ended.

    Args:
        status: exit status of the process.
        patience: seconds to wait in case the others end too.
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
    """Returns two shardings: replicated, and split along the batch.

    Args:
        devices: the devices of the mesh; None: all devices of all processes.
    """
    # Not jax.make_mesh: its axes are explicit by default, which the step does not support.
    mesh = Mesh(np.array(devices or jax.devices()), (AXIS,))
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(AXIS))


def state_sharding(tree: Any, replicated: NamedSharding, kind: str) -> Any:
    """Returns a tree of shardings for the arrays of `tree`.

    Args:
        tree: arrays, or shapes of arrays.
        replicated: the replicated sharding of the mesh.
        kind: "replicated" stores every array fully on every device. "fsdp" splits each array of
            SMALLEST_SPLIT elements or more along its longest axis that is divisible by the number
            of devices. Each device then holds only a part of the parameters, moving averages and
            optimiser state; XLA gathers the weights of a layer where they are used (Rajbhandari et
            al. 2020, arXiv 1910.02054).
    """
    count = replicated.mesh.size

    def of(array: Any) -> NamedSharding:
        shape = np.shape(array)
        fitting = [axis for axis, size in enumerate(shape) if size % count == 0]
        if kind == "replicated" or math.prod(shape) < SMALLEST_SPLIT or not fitting:
            return replicated
        longest = max(fitting, key=lambda axis: shape[axis])
        spec = PartitionSpec(*(AXIS if axis == longest else None for axis in range(len(shape))))
        return NamedSharding(replicated.mesh, spec)

    return jax.tree.map(of, tree)


def place(tree: Any, sharding: Any) -> Any:
    """Puts a tree on the devices. No two leaves share memory, so each can be donated.

    Args:
        tree: arrays.
        sharding: one sharding for all leaves, or a tree with one for each leaf.
    """
    shardings = jax.tree.map(lambda _: sharding, tree) if _is_sharding(sharding) else sharding
    return jax.tree.map(_place, tree, shardings)


def _place(array: Any, sharding: Sharding) -> jax.Array:
    # One device_put for the whole array would compare it between all processes.
    array = np.asarray(array)
    pieces = [
        # np.array makes a copy: device_put alone may return the memory of its argument.
        jax.device_put(np.array(array[index]), device, may_alias=False)
        for device, index in sharding.addressable_devices_indices_map(array.shape).items()
    ]
    return jax.make_array_from_single_device_arrays(array.shape, sharding, pieces)


def _is_sharding(value: Any) -> bool:
    return isinstance(value, Sharding)


def put_batch(batch: Any, by_batch: Sharding) -> Any:
    """Makes global arrays [B, ...] from this process's part of a batch [B / processes, ...]."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(by_batch, x), batch)


def fetch(tree: Any) -> Any:
    """Returns a tree of global arrays as numpy arrays, complete in every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def start_maximum(value: int) -> jax.Array:
    """Starts to compute the largest value of all processes, int32, and does not wait for it."""
    _, by_device = data_mesh()
    local = np.full(jax.local_device_count(), value, np.int32)
    return _maximum(jax.make_array_from_process_local_data(by_device, local))


@jax.jit
def _maximum(values: jax.Array) -> jax.Array:
    return values.max()


def wait_for_all(what: str) -> None:
    """Waits until every process has called this function with the same `what`."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def check_divisible(what: str, batch_size: int, parts: int = 1) -> None:
    """Checks that a batch can be split evenly over devices and micro-batches.

    Args:
        what: name of the setting, for the message.
        batch_size: images of the batch, over all devices.
        parts: number of micro-batches.

    Raises:
        InputError: if it cannot be split evenly.
    """
    devices = jax.device_count()
    if batch_size < 1 or batch_size % (devices * parts):
        by = f"{devices} devices" + (f" x {parts} micro-batches" if parts > 1 else "")
        raise InputError(
            f"{what}={batch_size} cannot be split evenly over {by}; give a multiple of "
            f"{devices * parts}"
        )


def no_larger_batch(batch_size: int, num_images: int) -> int:
    """Returns the batch size, reduced if the devices need less for `num_images` images."""
    devices = jax.device_count()
    return min(batch_size, -(-num_images // devices) * devices)
