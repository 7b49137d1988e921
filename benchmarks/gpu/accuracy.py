"""Accuracy after a short training on a GPU: vgg320 with ImageNet weights on real photographs."""

import contextlib
import logging
import os
import pathlib
import re
import signal
import threading

import jax

from benchmarks.gpu.report import Report, Skip
from benchmarks.gpu.setup import Setup
from m2det_jax import evaluate, runtime
from m2det_jax.run.history import read_history
from m2det_jax.run.signals import Stopped
from m2det_jax.train import train

SECONDS = 180
WEIGHTS = "weights/vgg16_imagenet_features.safetensors"
OVERRIDES = (
    "model.dtype=bfloat16", "batch_size=16", "epochs=100000.0", "eval.every_epochs=100000.0",
    "optimizer.name=adamw", "optimizer.learning_rate=2e-4", "optimizer.reference_batch_size=16",
    "optimizer.weight_decay=0.02", "optimizer.clip_norm=10.0", "optimizer.schedule=constant",
    "optimizer.warmup_share=0.0", "optimizer.decay_shares=()", "optimizer.decay_factors=()",
    "optimizer.warmup_epochs=2.0",
    "optimizer.ema_decay=0.998", "augment.expand_max=2.0", "log.every_steps=20",
    "checkpoint.every_steps=1000000", "eval.nms=soft_linear",
)  # fmt: skip


class StopAfter(logging.Handler):
    """Sends this process SIGTERM, at which a run saves and stops, some seconds after step 1."""

    def __init__(self, seconds: float):
        super().__init__()
        self.timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM))
        self.timer.daemon = True

    def emit(self, record: logging.LogRecord) -> None:
        """Starts the clock at the first line of a step."""
        if not self.timer.is_alive() and re.match(r"step \d+/\d+ ", record.getMessage()):
            with contextlib.suppress(RuntimeError):  # it has run already
                self.timer.start()


def train_for(seconds: float, config, workdir: pathlib.Path) -> int:
    """Trains until so many seconds after the first logged step; returns the steps done."""
    log, stop = logging.getLogger("m2det_jax"), StopAfter(seconds)
    log.addHandler(stop)
    try:
        with contextlib.suppress(Stopped):
            train(config, workdir)
    finally:
        stop.timer.cancel()
        log.removeHandler(stop)
    return max([record["step"] for record in read_history(workdir)], default=0)


def run(setup: Setup, report: Report) -> None:
    """Trains on each data set, then evaluates on its validation pictures."""
    weights = setup.inputs / WEIGHTS
    missing = [p for p in (weights, setup.inputs / "datasets") if not p.exists()]
    if missing and not setup.reduced:
        raise Skip(f"no {', '.join(map(str, missing))}")
    runtime.start()
    for name in ("drawn",) if setup.reduced else ("bccd", "cards"):
        folder = setup.inputs / "datasets" / name
        data = [f"data.{part}_csv={folder / part}.csv" for part in ("train", "val", "classes")]
        own = [f"model.backbone_weights={weights}"]
        if setup.reduced:
            data, own = setup.drawn(24, (64, 96)), ["batch_size=4", "log.every_steps=1"]
        config = setup.config("vgg320", *OVERRIDES, *data, *own)
        workdir = setup.scratch / f"accuracy_{name}"
        steps = train_for(1 if setup.reduced else SECONDS, config, workdir)
        metrics = evaluate.evaluate_checkpoint(workdir)
        report.add(name, steps=steps, AP=metrics["AP"], AP50=metrics["AP50"])
        jax.clear_caches()
