"""Strikes a short training run with faults, at random moments, and demands that nothing be lost.

    python -m benchmarks.fault_storm [--rounds 50] [--seed 0] [--workdir DIR]

A round: `python -m m2det_jax.main ...` is started on a drawn data set, with a data worker, struck
at a random moment (while it starts, compiles, steps, saves or evaluates), and the same command is
started again and runs to its end. Then all that the run leaves is compared with an undisturbed
run: parameters, batch statistics, moving averages, optimiser, running metrics and progress of the
last checkpoint, the best checkpoint, history.jsonl without its clock, and the files in the folder,
bit for bit. Nor may a step that was saved be lost, a process be left, or a lock stay.

Faults: kill -9, SIGTERM, SIGINT, SIGTERM twice, a data worker killed, the disk full (a small tmpfs
where mounting is allowed), a limit on the file size, a validation image cut short, and a file of
the newest checkpoint truncated, with a flipped bit or deleted, or all of them deleted.
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
# 12 steps, 6 an epoch. Saves, log lines and evaluations fall together and apart.
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
    """Where a storm takes place, and what its runs must come to."""

    root: pathlib.Path
    disk: pathlib.Path  # of the workdirs; small where mounting is allowed
    mounted: bool
    cache: pathlib.Path
    expected: Any = None
    starts: int = 0
    last: faults.Training | None = None

    def start(self, workdir: pathlib.Path) -> faults.Training:
        """Starts the command, always the same for one workdir."""
        self.starts += 1
        data = [f"data.{name}_csv={self.root}/data/{name}.csv" for name in ("train", "val")]
        data.append(f"data.classes_csv={self.root}/data/classes.csv")
        options = [f"--config.{setting}" for setting in [*SETTINGS.split(), *data]]
        program = [sys.executable, "-m", "m2det_jax.main", "--config", "quickstart"]
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(self.cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            # Quicker to compile; the steps are few.
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
        }
        log = self.root / "logs" / f"{self.starts:03d}.txt"
        command = [*program, "--workdir", str(workdir), *options]
        self.last = faults.Training(command, environment, log)
        return self.last

    def end(self) -> None:
        """Leaves nothing behind, also where the storm itself is interrupted."""
        if self.last is not None:
            self.last.kill_all()


@contextlib.contextmanager
def small_disk(folder: pathlib.Path, megabytes: int = 96) -> Iterator[bool]:
    """Mounts a small tmpfs on a folder; yields whether that was allowed."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "m2det_storm", str(folder)]
    mounted = shutil.which("mount") and not subprocess.run(command, capture_output=True).returncode
    try:
        yield bool(mounted)
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def one_round(
    storm: Storm, kind: str, training: faults.Training, workdir: pathlib.Path, moment: str, draw
) -> tuple[faults.Training | None, str, list[str]]:
    """Strikes a command that runs, and starts it again.

    Returns:
        (the second command, running; or None: the first ended before it was struck,
        what was seen, what went wrong).
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
        wrong.append(f"said that step {saved[1]} is saved, not {kept}")
    again = storm.start(workdir)
    again.wait_until(lambda: again.resumed_from() is not None)
    if (resumed := again.resumed_from()) != kept:
        wrong.append(f"resumed from {resumed}, not from {kept}: {again.text[-500:]}")
    if kind in faults.DAMAGE and f"checkpoint {steps[-1]} is damaged" not in again.text:
        wrong.append("the damage is not named")
    return again, f"logged {seen:2d}  saved {before:2d}  resumed {resumed!s:>2}", wrong


def finish(storm: Storm, training: faults.Training, workdir: pathlib.Path) -> list[str]:
    """Lets a command run to its end; returns what is not as in the undisturbed run."""
    status, orphans = training.end()
    wrong = [f"processes left behind: {orphans}"] if orphans else []
    if status:
        return [*wrong, f"ended with {status}: {training.text[-1000:]}"]
    wrong += [f"differs: {name}" for name in differences(outcome(workdir), storm.expected)]
    shutil.rmtree(workdir)
    return wrong


def blow(storm: Storm, rounds: int, faults_per_run: int, draw: random.Random) -> Counter:
    """Strikes so many times; prints a line each; returns {(kind, "ok" or "wrong"): rounds}."""
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
        if again is None:  # it was quicker; its end must be right all the same
            late = finish(storm, training, workdir)
            training = None
            if not late:
                continue
            seen, wrong = "ended before the blow", late
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
    parser.add_argument("--rounds", type=int, default=50, help="faults, each resumed from")
    parser.add_argument("--seed", type=int, default=0, help="of kinds and moments")
    parser.add_argument("--workdir", help="folder to work in and keep; default: a temporary one")
    parser.add_argument("--cache", help="compilation cache; default: one in the workdir")
    parser.add_argument("--faults_per_run", type=int, default=1, help="before a run may finish")
    args = parser.parse_args(argv)
    absl.logging.set_verbosity(absl.logging.ERROR)  # Orbax tells of what is meant here
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in the background of a script
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
        disk = "a tmpfs" if mounted else "none, mounting is not allowed"
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
    print(f"{args.rounds - failed} of {args.rounds} rounds ended as the undisturbed run did, "
          f"{time.monotonic() - started:.0f} s")  # fmt: skip
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
