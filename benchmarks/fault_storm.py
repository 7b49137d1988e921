"""Fault injection: a short training run is disturbed at random moments, and must lose nothing.

    python -m benchmarks.fault_storm [--rounds 50] [--seed 0] [--workdir DIR]

In each round `python -m m2det_jax.main ...` starts on a drawn data set, with one worker process. At
a random moment (during start, compilation, steps, a save or an evaluation) a fault is injected.
Then the same command is started again and runs to its end. The result must be the same, bit for
bit, as that of an undisturbed run: parameters, batch statistics, moving averages, optimiser,
running metrics and progress of the last checkpoint, the best checkpoint, history.jsonl without
measured times, and the names of the files in the workdir. No saved step may be lost, no process and
no lock may stay.

Faults: kill -9, SIGTERM, SIGINT, SIGTERM twice, a worker process killed, the disk full (on a small
tmpfs, if mounting is allowed), a limit on the file size, a validation image cut short, and damage
to the newest checkpoint: a file truncated, with a flipped bit, or deleted, or all files deleted.
"""

import argparse
import contextlib
import dataclasses
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import absl.logging

from benchmarks import faults
from benchmarks.outcome import differences, outcome
from m2det_jax.data.synthetic import draw_dataset
from m2det_jax.run.checksums import finished_steps

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
# 12 steps, 6 per epoch. Some saves, log lines and evaluations happen at the same step, some not.
SETTINGS = """
    epochs=2 batch_size=4 accumulation=2 data.image_size=(64,96) data.num_workers=1 anchors.sizes=()
    anchors.aspect_ratios=(2.0,) model.backbone=vgg16 model.backbone_width=0.125
    model.num_levels=1 model.num_scales=2 model.shallow_channels=16 model.deep_channels=16
    model.reduced_channels=8 model.tum_width=16 model.tum_out=8 log.every_steps=3
    log.sample_images=2 eval.every_epochs=1 eval.batch_size=4 eval.pre_nms_top_k=100
    checkpoint.every_steps=2
"""


@dataclasses.dataclass
class Storm:
    """Folders of the benchmark, and the result that its runs must have."""

    root: pathlib.Path
    disk: pathlib.Path  # has the workdirs; a small disk if mounting is allowed
    mounted: bool
    cache: pathlib.Path
    expected: Any = None
    starts: int = 0
    last: faults.Training | None = None

    def start(self, workdir: pathlib.Path) -> faults.Training:
        """Starts the training command; for one workdir it is always the same."""
        self.starts += 1
        data = [f"data.{name}_csv={self.root}/data/{name}.csv" for name in ("train", "val")]
        data.append(f"data.classes_csv={self.root}/data/classes.csv")
        options = [f"--config.{setting}" for setting in [*SETTINGS.split(), *data]]
        program = [sys.executable, "-m", "m2det_jax.main", "--config", "quickstart"]
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(self.cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            # Compiles faster; there are only a few steps.
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
        }
        log = self.root / "logs" / f"{self.starts:03d}.txt"
        command = [*program, "--workdir", str(workdir), *options]
        self.last = faults.Training(command, environment, log)
        return self.last

    def end(self) -> None:
        """Ends all processes, also if the benchmark itself is interrupted."""
        if self.last is not None:
            self.last.kill_all()


@contextlib.contextmanager
def small_disk(folder: pathlib.Path, megabytes: int = 96) -> Iterator[bool]:
    """Mounts a small tmpfs on a folder; yields whether this was allowed."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "m2det_storm", str(folder)]
    mounted = shutil.which("mount") and not subprocess.run(command, capture_output=True).returncode
    try:
        yield bool(mounted)
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def one_round(
    storm: Storm,
    kind: str,
    training: faults.Training,
    workdir: pathlib.Path,
    moment: str,
    draw: random.Random,
) -> tuple[faults.Training | None, str, list[str]]:
    """Injects a fault into a running command, and starts the command again.

    Args:
        storm: the benchmark.
        kind: kind of the fault.
        training: the running command.
        workdir: its workdir.
        moment: when to inject the fault.
        draw: source of random numbers.

    Returns:
        (the second command, running, or None if the first one ended before the fault;
        the observed steps as text; the list of what went wrong).
    """
    struck = faults.wait_for(moment, training, workdir, draw)
    before = ([0, *finished_steps(workdir)])[-1]
    if not (struck and faults.strike(kind, training, workdir, draw)):
        return None, "", []
    status, orphans = training.end()
    (storm.disk / "filler").unlink(missing_ok=True)
    faults.mend_images(storm.root / "data")
    text, seen = training.text, training.steps_seen()
    wrong = [what] if (what := faults.expected_end(kind, status, text)) else []
    if orphans:
        wrong.append(f"processes left behind: {orphans}")
    steps = [0, *finished_steps(workdir)]
    kept = steps[-2] if kind in faults.DAMAGE else steps[-1]
    if kept < before and kind not in faults.DAMAGE:
        wrong.append(f"checkpoint {before} is gone")
    if (saved := re.search(r"step (\d+) is saved", text)) and int(saved[1]) != kept:
        wrong.append(f"the message says that step {saved[1]} is saved, but {kept} is")
    again = storm.start(workdir)
    again.wait_until(lambda: again.resumed_from() is not None)
    if (resumed := again.resumed_from()) != kept:
        wrong.append(f"resumed from {resumed}, not from {kept}: {again.text[-500:]}")
    if kind in faults.DAMAGE and f"checkpoint {steps[-1]} is damaged" not in again.text:
        wrong.append("the damage is not reported")
    return again, f"logged {seen:2d}  saved {before:2d}  resumed {resumed!s:>2}", wrong


def finish(storm: Storm, training: faults.Training, workdir: pathlib.Path) -> list[str]:
    """Waits for the end of a command; returns the differences from the undisturbed run."""
    status, orphans = training.end()
    wrong = [f"processes left behind: {orphans}"] if orphans else []
    if status:
        return [*wrong, f"ended with {status}: {training.text[-1000:]}"]
    wrong += [f"differs: {name}" for name in differences(outcome(workdir), storm.expected)]
    shutil.rmtree(workdir)
    return wrong


def blow(storm: Storm, rounds: int, faults_per_run: int, draw: random.Random) -> Counter:
    """Injects faults; prints a line for each.

    Args:
        storm: the benchmark.
        rounds: number of faults.
        faults_per_run: number of faults before a run may finish.
        draw: source of random numbers.

    Returns:
        {(kind, "ok" or "wrong"): number of rounds}.
    """
    kinds = [kind for kind in faults.KINDS if storm.mounted or kind != "disk full"]
    order, results, training, number = [], Counter(), None, 0
    while number < rounds:
        if training is None:
            workdir = storm.disk / f"run{storm.starts:03d}"
            training, struck = storm.start(workdir), 0
        order = order or draw.sample(kinds, len(kinds))
        moment = draw.choice(faults.MOMENTS if struck == 0 else faults.MOMENTS[1:])
        started = time.monotonic()
        again, seen, wrong = one_round(storm, order[-1], training, workdir, moment, draw)
        faults.mend_images(storm.root / "data")
        if again is None:  # it ended before the fault; its result must still be right
            late = finish(storm, training, workdir)
            training = None
            if not late:
                continue
            seen, wrong = "ended before the fault", late
        else:
            training, struck = again, struck + 1
            if struck == faults_per_run or number == rounds - 1 or wrong:
                wrong += finish(storm, training, workdir)
                training = None
        kind, number = order.pop(), number + 1
        results[kind, "wrong" if wrong else "ok"] += 1
        seconds = time.monotonic() - started
        result = "ok" if training else "ok, the same end"
        result = "WRONG: " + "; ".join(wrong) if wrong else result
        what = f"{number:3d}  {kind:10}  {moment:10}  {seen}"
        print(f"{what}  {seconds:4.0f} s  {result}", flush=True)
    return results


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=50, help="number of faults (default 50)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the kinds and moments")
    parser.add_argument("--workdir", help="folder to use and keep; default: a temporary one")
    parser.add_argument("--cache", help="compilation cache; default: a folder in the workdir")
    parser.add_argument(
        "--faults_per_run", type=int, default=1, help="faults before a run may finish (default 1)"
    )
    args = parser.parse_args(argv)
    absl.logging.set_verbosity(absl.logging.ERROR)  # Orbax warns about what is intended here
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # for example in a background job
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with contextlib.ExitStack() as stack:
        folder = args.workdir or stack.enter_context(tempfile.TemporaryDirectory("m2det_storm"))
        root = pathlib.Path(folder).absolute()
        (root / "logs").mkdir(parents=True, exist_ok=True)
        draw_dataset(root / "data", num_train=24, num_val=8, short_side=(64, 96))
        mounted = stack.enter_context(small_disk(root / "disk"))
        cache = pathlib.Path(args.cache or root / "cache").absolute()
        storm = Storm(root, root / "disk", mounted, cache)
        stack.callback(storm.end)
        disk = "a tmpfs" if mounted else "none, because mounting is not allowed"
        print(f"small disk: {disk}; logs: {root}/logs", flush=True)
        started, workdir = time.monotonic(), storm.disk / "undisturbed"
        undisturbed = storm.start(workdir)
        if (status := undisturbed.end()[0]) != 0:
            sys.exit(f"the undisturbed run ended with {status}:\n{undisturbed.text}")
        storm.expected = outcome(workdir)
        shutil.rmtree(workdir)
        results = blow(storm, args.rounds, args.faults_per_run, random.Random(args.seed))
    print(f"\n{'fault':12}{'rounds':>8}{'wrong':>8}")
    for kind in [kind for kind in faults.KINDS if results[kind, "ok"] + results[kind, "wrong"]]:
        wrong = results[kind, "wrong"]
        print(f"{kind:12}{results[kind, 'ok'] + wrong:8d}{wrong:8d}")
    failed = sum(n for (_, result), n in results.items() if result == "wrong")
    print(f"{args.rounds - failed} of {args.rounds} rounds ended like the undisturbed run, "
          f"{time.monotonic() - started:.0f} s")  # fmt: skip
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
