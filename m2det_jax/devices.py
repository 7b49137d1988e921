"""Devices and processes: joining a cluster, the mesh, where arrays lie, and gathering results.

One mesh axis, "data", over all devices of all processes. Batches are split along it; the training
state is replicated, or split as well (`config.sharding="fsdp"`).
"""

import logging
import math
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

log = logging.getLogger("m2det_jax")

AXIS = "data"
# Smaller arrays (biases, norms) stay whole: splitting them saves nothing and costs a message each.
SMALLEST_SPLIT = 4096


def join_cluster(coordinator: str, num_processes: int = 0, process_id: int = 0) -> None:
    """Makes this process one of several that train together; before jax meets a device.

    Args:
      coordinator: "" is one process alone; "auto" asks the environment of the cluster (SLURM, Open
        MPI, GKE and TPU pods, see jax.distributed); else "host:port" of process 0, with the two
        numbers that follow.
      num_processes: of the whole run.
      process_id: of this one, 0 .. num_processes - 1.

    Raises:
      ValueError: the numbers do not fit, the cluster is not recognised, or the others do not come.
    """
    if not coordinator:
        return
    given = {}
    if coordinator != "auto":
        if num_processes < 1 or not 0 <= process_id < num_processes:
            raise ValueError(
                f"config.distributed.coordinator={coordinator!r} needs num_processes of at least 1 "
                f"and a process_id from 0 to num_processes - 1, got num_processes={num_processes}, "
                f"process_id={process_id}"
            )
        given = dict(
            coordinator_address=coordinator, num_processes=num_processes, process_id=process_id
        )
    try:
        jax.distributed.initialize(**given)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"cannot join the other processes (config.distributed.coordinator={coordinator!r}): "
            f"{error}; start every process within five minutes with the same host:port, or give "
            "--config.distributed.coordinator=HOST:PORT, .num_processes and .process_id"
        ) from None
    log.info("process %d of %d", jax.process_index(), jax.process_count())


def data_mesh() -> tuple[NamedSharding, NamedSharding]:
    """Returns the shardings (replicated, split by batch) over all devices of all processes."""
    # Not jax.make_mesh: its axes are explicit by default, which the step is not written for.
    mesh = Mesh(np.array(jax.devices()), (AXIS,))
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
    # np.array copies: device_put alone may hand back the very array that it was given.
    return jax.tree.map(
        lambda x, where: jax.device_put(np.array(x), where, may_alias=False), tree, shardings
    )


def _is_sharding(value: Any) -> bool:
    return isinstance(value, Sharding)


def put_batch(batch: Any, by_batch: NamedSharding) -> Any:
    """Makes global arrays [B, ...] of this process's share of a batch [B / processes, ...]."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(by_batch, x), batch)


def fetch(tree: Any) -> Any:
    """Returns a tree of global arrays as numpy arrays, whole in every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


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
    if batch_size % (devices * parts):
        by = f"{devices} devices" + (f" x {parts} micro-batches" if parts > 1 else "")
        raise ValueError(
            f"{what}={batch_size} does not divide over {by}; give a multiple of {devices * parts}"
        )
