"""The train step, compiled before its first call, with a report of what it costs."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax

from m2det_jax.run import memory
from m2det_jax.run.cost import StepCost, describe, read_cost

log = logging.getLogger("m2det_jax")


class CompiledStep:
    """Calls a jitted step by programs that are compiled, and reported, ahead of the first call.

    The first call compiles the step for all image sizes, the largest first, so that what does not
    fit is known before anything is computed. Nothing is traced or compiled twice.

    Args:
      jitted: (state, batch) -> (state, metrics).
      image_sizes: (height, width) of all pictures that will come.
      settings: for advice where memory does not suffice; its image_size is that of evaluation.

    Raises:
      memory.OutOfMemory: when called: the program needs more than the device has.
    """

    def __init__(
        self,
        jitted: Callable,
        image_sizes: Sequence[tuple[int, int]],
        settings: memory.MemorySettings,
    ):
        self.jitted, self.settings = jitted, settings
        self.image_sizes = sorted(image_sizes, key=lambda size: -size[0] * size[1])
        self._programs: dict[tuple, jax.stages.Compiled] = {}
        self._costs: dict[tuple[int, int], StepCost] = {}
        self._size = self.image_sizes[0]  # of the last call, or in compilation

    def __call__(self, state: Any, batch: dict[str, jax.Array]) -> tuple[Any, dict]:
        """Takes a step; donates the state as `jitted` does."""
        key = _shapes(batch)
        if key not in self._programs:
            self._compile_all(state, batch)
        self._size = batch["image"].shape[1:3]  # [B, H, W, 3]
        return self._programs[key](state, batch)

    def explained(self) -> contextlib.AbstractContextManager:
        """Turns the end of a device's memory, also noticed after a call, into one message."""
        return memory.explained(lambda: self._advice(self._size))

    def _compile_all(self, state: Any, batch: dict[str, jax.Array]) -> None:
        own = batch["image"].shape[1:3]
        for size in self.image_sizes if own in self.image_sizes else [own]:
            count, _, _, channels = batch["image"].shape
            image = jax.ShapeDtypeStruct((count, *size, channels), batch["image"].dtype)
            like = batch | {"image": image}
            self._size = size
            log.info("compiling the train step for pictures of %d x %d", *size)
            traced = self.jitted.trace(state, like)
            program = self._programs[_shapes(like)] = traced.lower().compile()
            self._costs[size] = read_cost(traced, program)
            self._report(size)

    def _report(self, size: tuple[int, int]) -> None:
        cost, limit = self._costs[size], memory.available()
        num_devices = self.settings.num_devices
        log.info("the train step for pictures of %d x %d, batch %d:\n%s", *size,
                 self.settings.batch_size, describe(cost, num_devices, limit))  # fmt: skip
        # Every byte counted is allocated before the program starts, so this could only fail; on a
        # CPU the kernel would kill the process without a word.
        if limit is not None and cost.memory > limit:
            raise memory.OutOfMemory(f"out of memory: {self._advice(size)}")

    def _advice(self, size: tuple[int, int]) -> str:
        settings = dataclasses.replace(self.settings, image_size=size)
        return memory.train_advice(settings, self._costs.get(size), memory.available())


def _shapes(batch: dict[str, Any]) -> tuple:
    return tuple(batch[name].shape for name in sorted(batch))
