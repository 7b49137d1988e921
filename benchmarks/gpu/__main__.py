"""Measures everything on a machine with one NVIDIA GPU and CUDA jax, without a network.

    python -m benchmarks.gpu --dry-run            # the parts, and for how long at most
    python -m benchmarks.gpu [--part NAME]        # all, or one; a process each
    python -m benchmarks.gpu --reduced            # the same code, tiny, on a CPU
    python -m benchmarks.gpu --wheels             # what to carry where no package index is
    python -m benchmarks.gpu --pack FOLDER        # what the machine needs, at most 55 MB

Figures are printed and written to gpu.json (--json) as they come: a part that is ended by its time
limit leaves what it has. Weights, reference outputs and pictures are looked for in inputs/, which
--pack makes, or in ../shared (--inputs).
"""

import argparse
import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from benchmarks import timing
from benchmarks.gpu import plan
from benchmarks.gpu.pack import pack, wheels
from benchmarks.gpu.report import Report, Skip
from benchmarks.gpu.setup import REPOSITORY, Setup, default_inputs


def run_here(part: plan.Part, setup: Setup, json_file: pathlib.Path) -> bool:
    """Runs a part in this process; returns False where it failed."""
    report = Report(json_file, part.name)
    try:
        part.load()(setup, report)
    except Skip as reason:
        report.end(f"skipped: {reason}")
    except Exception as error:
        # One part must not cost the others; the file and the exit status say it.
        report.end(f"error: {type(error).__name__}: {str(error).strip()[:500]}")
        sys.excepthook(type(error), error, error.__traceback__)
        return False
    else:
        report.end("whole")
    return True


def run_apart(part: plan.Part, command: list[str], json_file: pathlib.Path) -> bool:
    """Runs a part in a process of its own, which its time limit ends with all that it started."""
    process = subprocess.Popen(command, cwd=REPOSITORY, start_new_session=True)
    try:
        return process.wait(60 * part.minutes) == 0
    except subprocess.TimeoutExpired:
        Report(json_file, part.name, fresh=False).end("time limit")
        return True
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the flags."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [part.name for part in plan.PARTS]
    parser.add_argument("--part", action="append", choices=names, help="may be repeated")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and end")
    parser.add_argument("--reduced", action="store_true", help="tiny, in this process, on a CPU")
    parser.add_argument("--wheels", action="store_true", help="print what to carry, and end")
    parser.add_argument("--pack", metavar="FOLDER", type=pathlib.Path, help="new folder to fill")
    parser.add_argument("--json", type=pathlib.Path, default=pathlib.Path("gpu.json"))
    parser.add_argument("--inputs", type=pathlib.Path, default=default_inputs())
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what the flags say; returns 1 where a part failed."""
    args = parse(argv)
    parts = tuple(p for p in plan.PARTS if (p.name in args.part if args.part else p.default))
    if args.wheels or args.dry_run:
        print("\n".join(wheels()) if args.wheels else plan.describe(parts))
        return 0
    if args.pack:
        print(f"written: {args.pack}, {pack(args.pack, args.inputs) / 1e6:.1f} MB")
        return 0
    json_file, inputs = args.json.resolve(), args.inputs.resolve()
    good = True
    if args.inside or args.reduced:
        timing.print_machine()
        with tempfile.TemporaryDirectory(prefix="m2det_gpu_") as scratch:
            for part in parts:
                end = time.monotonic() + 60 * part.minutes
                setup = Setup(args.reduced, inputs, pathlib.Path(scratch), end)
                good &= run_here(part, setup, json_file)
        return 0 if good else 1
    print(plan.describe(parts), flush=True)
    for part in parts:
        command = [sys.executable, "-m", "benchmarks.gpu", "--inside", "--part", part.name]
        command += ["--json", str(json_file), "--inputs", str(inputs)]
        good &= run_apart(part, command, json_file)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
