"""Memory of the devices: how much there is, and what to change where it is not enough."""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax

from m2det_jax.run.cost import StepCost, readable_bytes

# An estimate is trusted to fit if it leaves this share of the memory free: allocators fragment.
_SLACK = 0.1


class OutOfMemory(MemoryError):
    """The memory of a device does not suffice; the message says what to change."""


@dataclasses.dataclass(frozen=True)
class MemorySettings:
    """What of a config decides how much memory a step takes; see config/keys.py."""

    image_size: tuple[int, int]
    batch_size: int
    accumulation: int
    remat: bool
    dtype: str
    sharding: str
    num_devices: int


def available() -> int | None:
    """Returns the bytes that a device has for this process; None where it does not tell.

    Of several local devices the one that has least counts. Virtual devices of a CPU share the
    memory of the host.
    """
    devices = jax.local_devices()
    if devices[0].platform == "cpu":
        return host_memory() // len(devices)
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in devices]
    return min(limits) if all(limits) else None


def host_memory() -> int:
    """Returns the bytes of this machine, with swap, or what a container may use of them."""
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
    """Tells whether a device, or the compiler for it, ran out of memory."""
    if not isinstance(error, jax.errors.JaxRuntimeError):
        return False
    return any(text in str(error) for text in ("RESOURCE_EXHAUSTED", "OUT_OF_MEMORY"))


@contextlib.contextmanager
def explained(advice: Callable[[], str]) -> Iterator[None]:
    """Turns the end of a device's memory into one message.

    Args:
      advice: called then; says what does not fit and what to change.

    Raises:
      OutOfMemory: the advice, with the first line of what jax said.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_exhausted(error):
            raise
        said = str(error).strip().splitlines()[0]
        raise OutOfMemory(f"out of memory: {advice()} (jax: {said})") from error


def batch_explained(what: str, key: str, batch_size: int) -> contextlib.AbstractContextManager:
    """Turns the end of a device's memory into `batch_advice`."""
    return explained(lambda: batch_advice(what, key, batch_size, jax.device_count()))


def train_advice(settings: MemorySettings, cost: StepCost | None, limit: int | None) -> str:
    """Says what the train step needs, what a device has, and which keys of the config to change.

    Args:
      cost: of the step as compiled; None: it could not be compiled.
      limit: bytes that a device has; None: unknown.
    """
    height, width = settings.image_size
    what = (
        f"the train step for pictures of {height} x {width}, batch {settings.batch_size} on "
        f"{settings.num_devices} device{'s' if settings.num_devices > 1 else ''}"
    )
    need = f"{what}, needs {readable_bytes(cost.memory)} of each" if cost else f"{what}, is too big"
    has = f"; a device has {readable_bytes(limit)}" if limit else ""
    return f"{need}{has}. What takes less: {'; '.join(train_remedies(settings, cost, limit))}"


def train_remedies(settings: MemorySettings, cost: StepCost | None, limit: int | None) -> list[str]:
    """Returns changes of the config that save memory, those that change the result least first."""
    s = settings
    remedies = []
    if not s.remat:
        remedies.append("--config.model.remat=True (now False; same result, longer steps)")
    if s.sharding == "replicated" and s.num_devices > 1:
        remedies.append("--config.sharding=fsdp (now replicated; same result, for large states)")
    parts = [n for n in range(s.accumulation + 1, s.batch_size // s.num_devices + 1)
             if s.batch_size % (s.num_devices * n) == 0]  # fmt: skip
    if parts:
        needs = {n: cost and cost.with_temporaries(s.accumulation / n) for n in parts}
        n = _first_that_fits(needs, limit)
        remedies.append(
            f"--config.accumulation={n} (now {s.accumulation}{_about(needs[n])}; batch statistics "
            "are those of the parts)"
        )
    if s.dtype == "float32" and jax.default_backend() != "cpu":
        about = _about(cost and cost.with_temporaries(0.5))
        remedies.append(f"--config.model.dtype=bfloat16 (now float32{about})")
    whole = s.num_devices * s.accumulation
    batches = [n for n in range(s.batch_size - whole, 0, -whole) if s.batch_size % n == 0]
    if batches:
        needs = {n: cost and cost.with_temporaries(n / s.batch_size) for n in batches}
        n = _first_that_fits(needs, limit)
        remedies.append(
            f"--config.batch_size={n} (now {s.batch_size}{_about(needs[n])}; the learning rate "
            "follows)"
        )
    return remedies or ["a smaller config.data.image_size or model, or more devices"]


def _first_that_fits(needs: dict[int, int | None], limit: int | None) -> int:
    """Returns the first value whose need is below the limit; the last if none is, if known."""
    values = list(needs)
    if limit is None or needs[values[0]] is None:
        return values[0]
    return next((n for n in values if needs[n] <= (1 - _SLACK) * limit), values[-1])


def _about(need: int | None) -> str:
    return f", would need about {readable_bytes(need)}" if need else ""


def state_advice(state: Any, settings: MemorySettings) -> str:
    """Says what to do where the devices cannot hold even the state, a tree of arrays."""
    size = readable_bytes(sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
    fsdp = ""
    if settings.sharding == "replicated" and settings.num_devices > 1:
        fsdp = "split it over the devices with --config.sharding=fsdp, or "
    return (
        f"weights, moving averages and optimiser state alone take {size}, more than a device has "
        f"free; {fsdp}see that no other program uses the device, or give a smaller config.model"
    )


def batch_advice(what: str, key: str, batch_size: int, num_devices: int) -> str:
    """Says which batch size to lower where an evaluation or prediction does not fit.

    Args:
      key: as it is given, such as "--config.eval.batch_size".
    """
    smaller = [n for n in range(num_devices, batch_size, num_devices) if 2 * n <= batch_size]
    remedy = "one image a device is the least; give a smaller input size, or more devices"
    if smaller:
        remedy = f"give {key}={smaller[-1]} (now {batch_size})"
    elif batch_size > num_devices:
        remedy = f"give {key}={num_devices} (now {batch_size})"
    return f"{what} does not fit into the memory of a device; {remedy}"
