"""Really trains a few steps of a large experiment on a data set: loss, compilations, memory.

    python -m benchmarks.vgg512_steps --train_csv TRAIN.csv --classes_csv CLASSES.csv [--steps 20]

Goes through `m2det_jax.train.train`, as the command line does, in a temporary workdir (the
checkpoint at the end takes a few gigabytes there): the memory is that of the whole command. Batches
differ, so the loss is compared between the first and the last quarter of the steps.
"""

import argparse
import math
import pathlib
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from benchmarks import experiment, timing
from m2det_jax import runtime
from m2det_jax.history import read_history
from m2det_jax.train import train

MEMORY_LIMIT = 12 * 2**30
COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


def count_compilations() -> Counter:
    """Returns a counter of the compilations of each jitted function, counting from now on."""
    compilations = Counter()

    def listen(event: str, duration: float, **details) -> None:
        if event == COMPILE_EVENT:
            compilations[details.get("fun_name", "?")] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    return compilations


def first_and_last_quarter(losses: Sequence[float]) -> tuple[float, float]:
    """Returns the mean loss of the first and of the last quarter of the steps."""
    count = max(1, len(losses) // 4)
    return statistics.fmean(losses[:count]), statistics.fmean(losses[-count:])


def report(losses: Sequence[float], compilations: Counter) -> bool:
    """Prints the findings; returns whether all are as they should be."""
    first, last = first_and_last_quarter(losses)
    steps = sum(count for name, count in compilations.items() if "train_step" in name)
    memory = timing.peak_memory()
    checks = {
        "loss finite": (all(map(math.isfinite, losses)), f"{len(losses)} steps"),
        "loss falling": (last < first, f"{first:.4f} in the first quarter, {last:.4f} in the last"),
        "compilations of the step": (steps == 1, str(steps)),
        "peak memory of the process": (memory < MEMORY_LIMIT, f"{memory / 2**30:.2f} GiB"),
    }
    for name, (good, text) in checks.items():
        timing.print_figure(name, f"{text}: {'yes' if good else 'NO'}")
    return all(good for good, _ in checks.values())


def run(config: ConfigDict) -> bool:
    """Trains config.max_steps steps and prints what happened; returns whether all is well."""
    compilations = count_compilations()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="m2det_steps_") as folder:
        train(config, pathlib.Path(folder))
        history = [record for record in read_history(folder) if "loss" in record]
    for record in history:
        print("step {step:3d}  loss {loss:.4f}  class {loss_class:.4f}  box {loss_box:.4f}  "
              "positives {num_positives:.0f}  grad {grad_norm:.2f}  "
              "learning rate {learning_rate:.2e}".format(**record))  # fmt: skip
    durations = [config.batch_size / record["images_per_second"] for record in history[1:]]
    if durations:
        timing.print_figure("step, without the first", timing.spread(durations))
    timing.print_figure("whole command", timing.readable(time.perf_counter() - start))
    return report([record["loss"] for record in history], compilations)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    experiment.add_arguments(parser)
    parser.add_argument("--train_csv", required=True)
    parser.add_argument("--classes_csv", required=True)
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args(argv)
    # Nothing is validated in so few steps; the training file stands in.
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
