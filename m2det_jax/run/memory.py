"""Memory of the devices: how much there is, and what to change when it runs out."""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax

from m2det_jax.run.cost import StepCost, readable_bytes

# An estimate counts as fitting if it leaves this share of the memory free: allocators fragment.
_SLACK = 0.1


class OutOfMemory(MemoryError):
    """A device is out of memory; the message says what to change."""


@dataclasses.dataclass(frozen=True)
class MemorySettings:
    """Settings of a config that change the memory of a step; see config/keys.py."""

    image_size: tuple[int, int]
    batch_size: int
    accumulation: int
    remat: bool
    dtype: str
    sharding: str
    num_devices: int


def available() -> int | None:
    """Returns the bytes of a device that this process can use; None if they are unknown.

    If there are several local devices, the smallest value counts. Virtual devices of a CPU share
    the memory of the host.
    """
    devices = jax.local_devices()
    if devices[0].platform == "cpu":
        return host_memory() // len(devices)
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in devices]
    known = [limit for limit in limits if limit]
    return min(known) if len(known) == len(limits) else None


def host_memory() -> int:
    """Returns the bytes of this machine, including swap, or the limit of its container."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("SwapTotal:"):
            total += 1024 * int(line.split()[1])
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):  # cgroups, version 2 and 1
        if (text := _read(f"/sys/fs/cgroup/{limit}").strip()).isdigit():
            total = min(total, int(text))
    return total


def _read(path: str) -> str:
    try:
        return pathlib.Path(path).read_text()
    except OSError:
        return ""


def is_exhausted(error: BaseException) -> bool:
    """Returns whether a device, or the compiler for it, ran out of memory."""
    if not isinstance(error, jax.errors.JaxRuntimeError):
        return False
    return any(text in str(error) for text in ("RESOURCE_EXHAUSTED", "OUT_OF_MEMORY"))


@contextlib.contextmanager
def explained(advice: Callable[[], str]) -> Iterator[None]:
    """Turns an out-of-memory error of jax into a message that says what to change.

    Args:
        advice: returns what does not fit and what to change; called only after such an error.

    Raises:
        OutOfMemory: if a device is out of memory; with the advice and the first line of jax's
            message.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_exhausted(error):
            raise
        said = str(error).strip().splitlines()[0]
        raise OutOfMemory(f"out of memory: {advice()} (jax: {said})") from error


def batch_explained(what: str, key: str, batch_size: int) -> contextlib.AbstractContextManager:
    """Turns an out-of-memory error of jax into `batch_advice`; see there for the arguments."""
    return explained(lambda: batch_advice(what, key, batch_size, jax.device_count()))


def train_advice(settings: MemorySettings, cost: StepCost | None, limit: int | None) -> str:
    """Returns what the train step needs, what a device has, and which config keys to change.

    Args:
        settings: the settings of the step.
        cost: cost of the compiled step; None: it could not be compiled.
        limit: bytes of a device; None: unknown.
    """
    height, width = settings.image_size
    what = (
        f"the train step for pictures of {height} x {width}, batch {settings.batch_size} on "
        f"{settings.num_devices} device{'s' if settings.num_devices > 1 else ''}"
    )
    need = f"needs {readable_bytes(cost.memory)} per device" if cost else "is too big"
    has = f"; a device has {readable_bytes(limit)}" if limit else ""
    remedies = "; ".join(train_remedies(settings, cost, limit))
    return f"{what}, {need}{has}. To use less memory: {remedies}"


def train_remedies(settings: MemorySettings, cost: StepCost | None, limit: int | None) -> list[str]:
    """Returns config changes that save memory; those that change the result least come first.

    Args:
        settings: the settings of the step.
        cost: cost of the compiled step; None: unknown.
        limit: bytes of a device; None: unknown.
    """
    s = settings
    remedies = []

    def need(factor: float) -> int | None:
        return cost.with_temporaries(factor) if cost else None

    if not s.remat:
        remedies.append("--config.model.remat=True (now False; same result, slower steps)")
    if s.sharding == "replicated" and s.num_devices > 1:
        remedies.append("--config.sharding=fsdp (now replicated; same result, for large states)")
    parts = [n for n in range(s.accumulation + 1, s.batch_size // s.num_devices + 1)
             if s.batch_size % (s.num_devices * n) == 0]  # fmt: skip
    if parts:
        needs = {n: need(s.accumulation / n) for n in parts}
        n = _first_that_fits(needs, limit)
        remedies.append(
            f"--config.accumulation={n} (now {s.accumulation}{_about(needs[n])}; batch statistics "
            "are then computed for each part)"
        )
    if s.dtype == "float32" and jax.default_backend() != "cpu":
        about = _about(need(0.5))
        remedies.append(f"--config.model.dtype=bfloat16 (now float32{about})")
    whole = s.num_devices * s.accumulation
    batches = [n for n in range(s.batch_size - whole, 0, -whole) if s.batch_size % n == 0]
    if batches:
        needs = {n: need(n / s.batch_size) for n in batches}
        n = _first_that_fits(needs, limit)
        remedies.append(
            f"--config.batch_size={n} (now {s.batch_size}{_about(needs[n])}; the learning rate "
            "is scaled with it)"
        )
    return remedies or ["a smaller config.data.image_size or model, or more devices"]


def _first_that_fits(needs: dict[int, int | None], limit: int | None) -> int:
    """Returns the first value whose need fits into the limit, else the last.

    If the limit or the needs are unknown, returns the first value.
    """
    values = list(needs)
    if limit is None or needs[values[0]] is None:
        return values[0]
    room = (1 - _SLACK) * limit
    return next((n for n, need in needs.items() if need is not None and need <= room), values[-1])


def _about(need: int | None) -> str:
    return f", would need about {readable_bytes(need)}" if need else ""


def state_advice(state: Any, settings: MemorySettings) -> str:
    """Returns what to do if even the state, a tree of arrays, does not fit into the devices."""
    size = readable_bytes(sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
    fsdp = ""
    if settings.sharding == "replicated" and settings.num_devices > 1:
        fsdp = "split it over the devices with --config.sharding=fsdp, or "
    return (
        f"weights, moving averages and optimiser state alone take {size}, more than a device has "
        f"free; {fsdp}check that no other program uses the device, or use a smaller config.model"
    )


def batch_advice(what: str, key: str, batch_size: int, num_devices: int) -> str:
    """Returns which batch size to lower if an evaluation or prediction is out of memory.

    Args:
        what: what does not fit, such as "the evaluation".
        key: the flag of the batch size, such as "--config.eval.batch_size".
        batch_size: images per call, over all devices.
        num_devices: number of devices.
    """
    smaller = [n for n in range(num_devices, batch_size, num_devices) if 2 * n <= batch_size]
    remedy = "one image per device is the minimum; give a smaller input size, or more devices"
    if smaller:
        remedy = f"give {key}={smaller[-1]} (now {batch_size})"
    elif batch_size > num_devices:
        remedy = f"give {key}={num_devices} (now {batch_size})"
    return f"{what} does not fit into the memory of a device; {remedy}"
