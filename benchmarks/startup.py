"""Startup time: from the start of the command to the end of its first training step.

    python -m benchmarks.startup [--config quickstart] [--rounds 3]

`python -m m2det_jax.main` is started on a drawn data set. The clock stops at the log line of step
1, which is written when the loss of the step is known. The time includes imports, reading the data,
building the model, tracing, compilation, the first batch and its sample pictures; it does not
include drawing the data set. Each round starts once with an empty compilation cache (cold), and
then again, in a new workdir, with the cache of the cold start (warm).
"""

import argparse
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence

from benchmarks import timing
from m2det_jax.data.synthetic import DatasetFiles, draw_dataset

FIRST_STEP = re.compile(r"\bstep 1/\d+ +loss ")


def command(config: str, files: DatasetFiles, workdir: pathlib.Path) -> list[str]:
    """Returns the command that trains one step and logs it."""
    data = [f"--config.data.{name}_csv={path}" for name, path in files._asdict().items()]
    one_step = ["--config.max_steps=1", "--config.log.every_steps=1"]
    program = [sys.executable, "-m", "m2det_jax.main"]
    return [*program, "--config", config, "--workdir", str(workdir), *data, *one_step]


def seconds_to_first_step(arguments: list[str], cache: pathlib.Path) -> float:
    """Starts a training command and returns the seconds until it logs its first step.

    Args:
        arguments: the command.
        cache: folder of the compilation cache.

    Raises:
        RuntimeError: if it ends without this log line; the message has its output.
    """
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    start = time.perf_counter()
    with subprocess.Popen(
        arguments, env=environment, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        duration, written = _time_of_first_step(process.stderr, start)
        # Wait for the rest (a checkpoint) without counting it: it would disturb the next start.
        process.communicate()
    if duration is None or process.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with {process.returncode}:\n{written}")
    return duration


def _time_of_first_step(lines: Iterable[str], start: float) -> tuple[float | None, str]:
    written = []
    for line in lines:
        if FIRST_STEP.search(line):
            return time.perf_counter() - start, "".join(written)
        written.append(line)
    return None, "".join(written)


def one_round(config: str, files: DatasetFiles) -> tuple[float, float]:
    """Returns the seconds of a cold start and of the warm start after it."""
    with tempfile.TemporaryDirectory(prefix="m2det_startup_") as folder:
        root = pathlib.Path(folder)
        cold, warm = (
            seconds_to_first_step(command(config, files, root / name), root / "cache")
            for name in ("cold", "warm")
        )
    return cold, warm


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="quickstart")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=600, help="training images to draw")
    args = parser.parse_args(argv)
    timing.print_machine(devices=False)
    print(f"{args.config}: from process start to the end of step 1")
    with tempfile.TemporaryDirectory(prefix="m2det_startup_data_") as folder:
        files = draw_dataset(folder, num_train=args.images, num_val=max(1, args.images // 6))
        pairs = []
        for number in range(1, args.rounds + 1):
            pairs.append(one_round(args.config, files))
            cold, warm = map(timing.readable, pairs[-1])
            timing.print_figure(f"round {number}", f"cold {cold}, warm {warm}")
    timing.print_figure("cold compilation cache", timing.spread([cold for cold, _ in pairs]))
    timing.print_figure("warm compilation cache", timing.spread([warm for _, warm in pairs]))
    ratio = statistics.median(warm / cold for cold, warm in pairs)
    timing.print_figure("warm / cold", f"{ratio:.2f}")


if __name__ == "__main__":
    main()
