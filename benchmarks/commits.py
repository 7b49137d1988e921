"""Training time of two commits of this repository, measured in turns.

    python -m benchmarks.commits BEFORE [AFTER] [--rounds 2] -- --config small320 \\
        --config.max_steps=300 --config.data.train_csv=train.csv ...

BEFORE and AFTER are commits; without AFTER the working tree is used. `python -m m2det_jax.main`,
with the arguments after --, runs in a folder with BEFORE and in a folder with AFTER, in the order
before, after, after, before, and so on. So a machine that becomes slower does so for both. Each run
has its own workdir. Each commit has its own compilation cache, which is empty at first. The last
line is the ratio of the medians, after / before.
"""

import argparse
import contextlib
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

from benchmarks import timing

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


@contextlib.contextmanager
def checkout(commit: str, folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a folder with the files of a commit; for "" the working tree itself."""
    if not commit:
        yield REPOSITORY
        return
    git = ["git", "-C", str(REPOSITORY), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(folder), commit], check=True)
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def seconds_of_run(
    tree: pathlib.Path, arguments: Sequence[str], workdir: pathlib.Path, cache: pathlib.Path
) -> float:
    """Trains with the code of a folder and returns the seconds from start to end.

    Args:
        tree: folder with the code.
        arguments: arguments of the training command.
        workdir: folder of the run.
        cache: folder of the compilation cache.

    Raises:
        RuntimeError: if the exit status is not 0; the message has the end of the log.
    """
    command = [sys.executable, "-m", "m2det_jax.main", "--workdir", str(workdir), *arguments]
    environment = os.environ | {"PYTHONPATH": str(tree), "JAX_COMPILATION_CACHE_DIR": str(cache)}
    start = time.perf_counter()
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    duration = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} in {tree}: {done.stderr[-2000:]}")
    return duration


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], usage="%(prog)s BEFORE [AFTER] [options] -- ARGUMENTS"
    )
    parser.add_argument("before", help="a commit")
    parser.add_argument("after", nargs="?", default="", help="a commit; default: working tree")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each commit (default 2)")
    argv = sys.argv[1:] if argv is None else list(argv)
    split = argv.index("--") if "--" in argv else len(argv)
    args, arguments = parser.parse_args(argv[:split]), argv[split + 1 :]
    timing.print_machine(devices=False)
    times: dict[str, list[float]] = {"before": [], "after": []}
    with tempfile.TemporaryDirectory("m2det_commits") as folder, contextlib.ExitStack() as stack:
        root = pathlib.Path(folder)
        trees = {
            name: stack.enter_context(checkout(getattr(args, name), root / name)) for name in times
        }
        for number in range(args.rounds):
            order = list(times) if number % 2 == 0 else list(times)[::-1]
            for name in order:
                workdir = root / f"run_{name}_{number}"
                took = seconds_of_run(trees[name], arguments, workdir, root / f"cache_{name}")
                times[name].append(took)
                print(f"round {number + 1}  {name:6}  {took:7.1f} s", flush=True)
    before, after = (statistics.median(times[name]) for name in ("before", "after"))
    print(f"after over before: {after / before:.3f} ({after:.1f} s over {before:.1f} s)")


if __name__ == "__main__":
    main()
