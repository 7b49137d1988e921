"""Resumed training on a GPU, bit for bit, and its losses beside those of the CPU."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np

from benchmarks import experiment
from benchmarks.gpu.report import Report
from benchmarks.gpu.setup import REDUCED, REPOSITORY, Setup
from benchmarks.train_step import build_step
from m2det_jax.run.checksums import finished_steps

STEPS = 20
# Of the loss: twenty steps of bfloat16 against float32.
TOLERANCE = {"float32": 2e-3, "bfloat16": 5e-2}
COMPARE = """
import pathlib, sys
from benchmarks.outcome import differences, outcome
found = differences(*(outcome(pathlib.Path(p)) for p in sys.argv[1:]))
print("differences:", ", ".join(n for n in found if n != "config.json") or "none")
"""


def losses_of(setup: Setup, dtype: str, device: jax.Device, steps: int) -> np.ndarray:
    """Returns the losses of so many steps on one batch, computed on a device."""
    config = setup.config("quickstart", f"model.dtype={dtype}", "batch_size=4")
    with jax.default_device(device), jax.default_matmul_precision("highest"):
        detector, variables = experiment.detector_with_variables(config, 5)
        objects = experiment.random_objects(detector.resize.image_size, 5, 4, 6)
        batch = {"image": experiment.random_images(detector, 4)} | objects
        jitted, state = build_step(config, detector, jax.device_get(variables))
        state, batch = jax.device_put((state, batch), device)
        found = []
        for _ in range(steps):
            state, metrics = jitted(state, batch)
            found.append(metrics["loss"])
        return np.array(jax.device_get(found))


def compare_losses(setup: Setup, report: Report) -> None:
    """Reports the largest relative difference of the losses from those of the CPU in float32."""
    steps = 4 if setup.reduced else STEPS
    cpu = losses_of(setup, "float32", jax.devices("cpu")[0], steps)
    for dtype, tolerance in TOLERANCE.items():
        error = np.abs(losses_of(setup, dtype, jax.devices()[0], steps) / cpu - 1).max()
        report.add(f"{steps} losses, {dtype}", error=float(error), tolerance=tolerance,
                   good=bool(error <= tolerance))  # fmt: skip


def lengths(setup: Setup) -> tuple[int, int]:
    """Returns the steps of the run, and between its checkpoints: long enough to be killed."""
    return (60, 20) if setup.reduced else (600, 100)


def command(setup: Setup, workdir: pathlib.Path) -> list[str]:
    """Returns the training command."""
    steps, every = lengths(setup)
    overrides = [
        *(REDUCED if setup.reduced else ()), *setup.drawn(96, (144, 192)), "batch_size=8",
        "deterministic=True", f"max_steps={steps}", f"checkpoint.every_steps={every}",
        "eval.every_epochs=1000.0", "epochs=1000.0",
    ]  # fmt: skip
    flags = [f"--config.{override}" for override in overrides]
    program = [sys.executable, "-m", "m2det_jax.main", "--config", "quickstart"]
    return [*program, "--workdir", str(workdir), *flags]


def finished(command: list[str], platform: str = "") -> str:
    """Runs a command to its end and returns all that it wrote.

    Raises:
        RuntimeError: it failed; the message has the end of what it wrote.
    """
    environment = os.environ | ({"JAX_PLATFORMS": platform} if platform else {})
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:4])}: {done.stdout[-1500:]}")
    return done.stdout


def compare_resumed(setup: Setup, report: Report) -> None:
    """Trains without a stop, and with kill -9 after a checkpoint; reports what differs."""
    whole, killed = setup.scratch / "whole", setup.scratch / "killed"
    finished(command(setup, whole))
    with subprocess.Popen(
        command(setup, killed), cwd=REPOSITORY, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        while not finished_steps(killed) and process.poll() is None and setup.seconds_left > 0:
            time.sleep(0.01)
        running = process.poll() is None
        report.add("kill -9", before_its_end=running)
        if running:
            os.killpg(process.pid, signal.SIGKILL)
    resumed = "resuming from step" in finished(command(setup, killed))
    compared = finished([sys.executable, "-c", COMPARE, str(whole), str(killed)], platform="cpu")
    differences = compared.strip().rpartition("differences: ")[2]
    report.add("kill -9", resumed=resumed, differences=differences, good=differences == "none")


def run(setup: Setup, report: Report) -> None:
    """Compares; the processes come first, while this one holds no memory of the GPU."""
    compare_resumed(setup, report)
    compare_losses(setup, report)
