"""Training steps of a large experiment on a data set: loss, compilations, memory.

    python -m benchmarks.vgg512_steps --train_csv TRAIN.csv --classes_csv CLASSES.csv [--steps 20]

Calls `m2det_jax.train.train`, like the command line, in a temporary workdir; the checkpoint at the
end takes a few gigabytes there. The memory is that of the whole command. The loss differs more
between small batches than it falls in a few steps. So each loss is compared with that of the
untrained weights on the same batch; it must be lower at the end.
"""

import argparse
import contextlib
import math
import pathlib
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax

from benchmarks import experiment, timing
from m2det_jax import runtime
from m2det_jax.build import step_settings
from m2det_jax.config import Config
from m2det_jax.detector.objective import losses_of, make_targets
from m2det_jax.run.history import read_history
from m2det_jax.train import train
from m2det_jax.training.prepare import first_state, open_batches, prepare

MEMORY_LIMIT = 12 * 2**30
COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


def count_compilations() -> Counter:
    """Returns a counter that counts the compilations of each jitted function from now on."""
    compilations = Counter()

    def listen(event: str, duration: float, **details: Any) -> None:
        if event == COMPILE_EVENT:
            compilations[details.get("fun_name", "?")] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    return compilations


def untrained_losses(config: Config, workdir: pathlib.Path) -> list[float]:
    """Returns the loss of the initial weights on the batch of every training step."""
    run = prepare(config, workdir)
    state = first_state(config, run)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    detector, settings = run.detector, step_settings(config)

    @jax.jit
    def untrained_loss(variables: dict, batch: dict[str, jax.Array]) -> jax.Array:
        images = detector.normalize(batch["image"])
        outputs, _ = detector.model.apply(variables, images, train=True, mutable=["batch_stats"])
        return losses_of(outputs, make_targets(detector, settings, batch), settings)["loss"]

    with contextlib.closing(open_batches(config, run, 0)) as batches:
        return [
            float(untrained_loss(variables, jax.device_put(next(batches), run.by_batch)))
            for _ in range(config.max_steps)
        ]


def last_quarter(losses: Sequence[float]) -> float:
    """Returns the mean loss of the last quarter of the steps."""
    return statistics.fmean(losses[-max(1, len(losses) // 4) :])


def report(
    losses: Sequence[float], untrained: Sequence[float], compilations: Counter, memory: int
) -> bool:
    """Prints the results; returns whether all are good.

    Args:
        losses: loss of every training step.
        untrained: loss of the initial weights on the same batches.
        compilations: number of compilations by name of the function.
        memory: peak memory of the process at the end of training, in bytes.
    """
    before, after = last_quarter(untrained), last_quarter(losses)
    steps = sum(count for name, count in compilations.items() if "train_step" in name)
    checks = {
        "loss finite": (all(map(math.isfinite, losses)), f"{len(losses)} steps"),
        "loss falling": (
            after < before,
            f"batches of the last quarter: {before:.4f} untrained, {after:.4f} in training",
        ),
        "compilations of the step": (steps == 1, str(steps)),
        "peak memory of the process": (memory < MEMORY_LIMIT, f"{memory / 2**30:.2f} GiB"),
    }
    for name, (good, text) in checks.items():
        timing.print_figure(name, f"{text}: {'yes' if good else 'NO'}")
    return all(good for good, _ in checks.values())


def run(config: Config) -> bool:
    """Trains config.max_steps steps and prints the results; returns whether all are good."""
    compilations = count_compilations()
    with tempfile.TemporaryDirectory(prefix="m2det_steps_") as folder:
        start = time.perf_counter()
        train(config, pathlib.Path(folder))
        whole = time.perf_counter() - start
        memory = timing.peak_memory()
        untrained = untrained_losses(config, pathlib.Path(folder))
        history = [record for record in read_history(folder) if "loss" in record]
    for record, before in zip(history, untrained, strict=True):
        print("step {step:3d}  untrained {before:.4f}  loss {loss:.4f}  class {loss_class:.4f}  "
              "box {loss_box:.4f}  positives {num_positives:.0f}  grad {grad_norm:.2f}  "
              "learning rate {learning_rate:.2e}".format(**record, before=before))  # fmt: skip
    durations = [config.batch_size / record["images_per_second"] for record in history[1:]]
    if durations:
        timing.print_figure("step, without the first", timing.spread(durations))
    timing.print_figure("whole command", timing.readable(whole))
    return report([record["loss"] for record in history], untrained, compilations, memory)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    experiment.add_arguments(parser)
    parser.add_argument("--train_csv", required=True)
    parser.add_argument("--classes_csv", required=True)
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args(argv)
    # In a few steps nothing is validated, so the training file can be the validation file.
    data = {"train_csv": args.train_csv, "val_csv": args.train_csv, "classes_csv": args.classes_csv}
    overrides = [f"data.{key}={value}" for key, value in data.items()]
    overrides += [f"batch_size={args.batch_size}", f"max_steps={args.steps}", "log.every_steps=1"]
    config = experiment.load(args.config, overrides + args.set)
    timing.print_machine()
    runtime.start(config.platform, config.deterministic)
    print(f"{args.config}: {config.data.image_size}, batch {config.batch_size}, set: {args.set}")
    raise SystemExit(not run(config))


if __name__ == "__main__":
    main()
