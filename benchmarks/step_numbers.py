"""Numbers of a train step (operations, memory, all-reduces), read from its program."""

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from benchmarks import experiment
from m2det_jax.build import build_detector, step_settings
from m2det_jax.config import Config
from m2det_jax.detector.detector import Detector
from m2det_jax.model import variable_shapes
from m2det_jax.run import devices
from m2det_jax.run.cost import read_cost
from m2det_jax.run.state import TrainState, create_train_state
from m2det_jax.training.optimizer import make_optimizer, make_schedule
from m2det_jax.training.plan import make_optimizer_settings, make_plan
from m2det_jax.training.step import make_train_step

DEVICES, CLASSES, OBJECTS, NUM_IMAGES = 8, 80, 64, 1000
SMALL = 2**16  # bytes; the time of a smaller message is only latency
# Less optimised machine code, which is never run; memory and operations are the same.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
_ITEM = {"pred": 1, "s8": 1, "u8": 1, "f16": 2, "bf16": 2, "f32": 4, "s32": 4, "u32": 4}


def messages(hlo: str) -> list[int]:
    """Returns the bytes of every message between devices in the text of a compiled program."""
    kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
    made = rf"^ *(?:ROOT )?\S+ = (.*?) (?:{kinds})(?:-start)?\("
    found = re.findall(made, hlo, re.MULTILINE)
    return [
        sum(
            _ITEM[kind] * math.prod(int(n) for n in shape.split(",") if n)
            for kind, shape in re.findall(r"(\w+)\[([\d,]*)\]", result)
        )
        for result in found
    ]


def bytes_of(tree: Any) -> int:
    """Returns the bytes of a tree of arrays or shapes."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def saved_bytes(detector: Detector, variables: dict, batch_size: int) -> int:
    """Returns the bytes that the forward pass keeps for the backward pass in the traced program."""
    images = jax.ShapeDtypeStruct((batch_size, *detector.resize.image_size, 3), np.uint8)

    def backward(params: dict, batch_stats: dict, images: jax.Array) -> Any:
        def forward(params: dict) -> tuple[dict, dict]:
            return detector.model.apply(
                {"params": params, "batch_stats": batch_stats},
                detector.normalize(images), train=True, mutable=["batch_stats"],
            )  # fmt: skip

        return jax.vjp(forward, params, has_aux=True)[1]

    kept = jax.eval_shape(backward, variables["params"], variables["batch_stats"], images)
    return bytes_of(kept)


def step_of(
    config: Config, mesh: Mesh | None = None
) -> tuple[Detector, Callable, TrainState, dict[str, jax.ShapeDtypeStruct]]:
    """Returns detector and train step of a config, and state and batch as shapes.

    Args:
        mesh: see `make_train_step`.
    """
    detector = build_detector(config, tuple(f"class {i}" for i in range(CLASSES)))
    settings = make_optimizer_settings(config, make_plan(config, NUM_IMAGES), NUM_IMAGES)
    optimizer = make_optimizer(settings, detector.model.frozen_paths())
    variables = variable_shapes(detector.model, detector.resize.image_size)
    state = jax.eval_shape(lambda v: create_train_state(v, optimizer), variables)
    shape, objects = jax.ShapeDtypeStruct, (config.batch_size, OBJECTS)
    batch = {
        "image": shape((config.batch_size, *detector.resize.image_size, 3), np.uint8),
        "boxes": shape((*objects, 4), np.float32),
        "labels": shape(objects, np.int32),
        "mask": shape(objects, bool),
    }
    step = make_train_step(
        detector, optimizer, make_schedule(settings), step_settings(config), mesh
    )
    return detector, step, state, batch


def read_program(config: Config) -> dict[str, int]:
    """Compiles the train step for DEVICES devices, one image on each; returns numbers per device.

    Returns:
        Operations ("flops", "compiler_flops") and bytes (all others, except "small_reductions": the
        number of all-reduces under SMALL bytes).
    """
    config = dataclasses.replace(config, batch_size=DEVICES)
    replicated, by_batch = devices.data_mesh()
    _, step, state, batch = step_of(config, replicated.mesh)
    traced = jax.jit(
        step, donate_argnums=0, in_shardings=(replicated, by_batch),
        out_shardings=(replicated, replicated),
    ).trace(state, batch)  # fmt: skip
    compiled = traced.lower().compile(compiler_options=QUICK)
    cost, reduced = read_cost(traced, compiled), messages(compiled.as_text())
    return {
        "flops": cost.flops // DEVICES,
        "compiler_flops": cost.compiler_flops,
        "temporaries": cost.temporaries,
        "parameters": bytes_of(state.params),
        "average": bytes_of((state.ema_params, state.ema_batch_stats)),
        "optimizer": bytes_of(state.opt_state),
        "state": bytes_of(state),
        "reduced": sum(reduced),
        "small_reductions": sum(size < SMALL for size in reduced),
    }


def read_numbers(name: str) -> dict[str, int]:
    """Returns the numbers of `read_program`, and the bytes kept per image for the backward pass."""
    numbers = read_program(experiment.load(name))
    half = experiment.load(name, ["model.dtype=bfloat16"])
    detector = build_detector(half, tuple(f"class {i}" for i in range(CLASSES)))
    variables = variable_shapes(detector.model, detector.resize.image_size)
    kept = [saved_bytes(detector, variables, count) for count in (1, 2)]
    return numbers | {"kept_bfloat16": kept[1] - kept[0]}


def numbers_of(names: Sequence[str], file: pathlib.Path | None) -> dict[str, dict[str, int]]:
    """Returns the numbers of experiments; reads them from a file, and adds missing ones to it."""
    found = json.loads(file.read_text()) if file and file.exists() else {}
    missing = [name for name in names if name not in found]
    if missing:
        jax.config.update("jax_num_cpu_devices", DEVICES)  # before jax uses a device
    for name in missing:
        found[name] = read_numbers(name)
        if file:
            file.write_text(json.dumps(found, indent=1) + "\n")
    return {name: found[name] for name in names}
