"""Bit for bit: what two commits of this repository compute from the same data, compared.

    python -m benchmarks.same BEFORE [AFTER] [--cases NAME ...] [--steps N] [-- ARGUMENTS]

BEFORE and AFTER are commits; AFTER is the working tree if it is left out. The cases:

  quickstart, small320   all arrays of the checkpoint after 50, 20 steps of `m2det_jax.main`: both
                         kinds of weights, optimiser state, running metrics. With "-parts": batches
                         in two parts, by accumulation; with "-8": on eight virtual devices
  detections             of a checkpoint that BEFORE has trained, restored by both: all scores, by
                         each kind of suppression
  evaluation, prediction the numbers that the verbs write, of the same checkpoint
  samples                augmented batches of `quickstart`, and with every step in the pipeline, two
                         sizes, letterbox and repeated images: 320 samples each

Every computation has a process of its own in a checkout of its commit. A line a case has the
hashes of all arrays, and says "equal", or how many arrays differ and by how much. The status is 1
if any does. ARGUMENTS are given to each training, such as --config.model.backbone_width=0.125.
"""

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import absl.logging
import jax
import numpy as np
import orbax.checkpoint as ocp

from benchmarks import timing
from benchmarks.commits import checkout

SCRIPT = pathlib.Path(__file__).with_name("arrays_of.py")
IMAGES = 8  # for validation, detection and prediction
ALL_STEPS = (
    "--config.augment.pipeline=('mosaic', 'expand', 'crop', 'flip', 'photometric', 'affine', "
    "'scale_jitter', 'paste', 'mixup')",
    "--config.augment.flip_probability=0.5",
    "--config.augment.mixup_probability=0.5",
    "--config.data.train_sizes=((160, 208), (128, 192))",
    "--config.data.resize=letterbox",
    "--config.data.repeat_threshold=0.6",
    "--config.data.on_bad_image=skip",
)

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Training:
    """A training whose checkpoint is compared."""

    config: str
    steps: int
    devices: int = 1
    parts: int = 1

    def flags(self) -> list[str]:
        """Returns its arguments for `m2det_jax.main`."""
        keys = {"accumulation": self.parts, "max_steps": self.steps, "batch_size": 8}
        keys["batch_size"] *= self.parts if self.devices > 1 else 1  # a part on each device
        keys |= {"data.num_workers": 0, "data.num_threads": 2}
        return [
            f"--config=experiments/{self.config}.py",
            *(f"--config.{key}={value}" for key, value in keys.items()),
        ]


TRAININGS = {
    f"{config}{'-8' * (devices > 1)}{'-parts' * (parts > 1)}": Training(
        config, steps, devices, parts
    )
    for config, steps in (("quickstart", 50), ("small320", 20))
    for devices in (1, 8)
    for parts in (1, 2)
}
OTHERS = ("detections", "evaluation", "prediction", "samples")
CASES = (*TRAININGS, *OTHERS)


@dataclasses.dataclass
class Bench:
    """What the cases share.

    Attributes:
        folder: for data, workdirs and outputs.
        images: number of training images.
        steps: of each training; 0: as TRAININGS says.
        batches: of eight samples.
        arguments: for each training.
    """

    folder: pathlib.Path
    images: int = 400
    steps: int = 0
    batches: int = 40
    arguments: Sequence[str] = ()

    def data(self) -> list[str]:
        """Returns the flags that name the data set."""
        names = ("train", "val", "classes")
        return [f"--config.data.{name}_csv={self.folder / 'data' / name}.csv" for name in names]

    def validation_images(self) -> list[str]:
        return sorted(map(str, (self.folder / "data" / "val").glob("*.jpg")))

    def draw(self, tree: pathlib.Path) -> None:
        """Draws the data set, which all trees share, by one of them."""
        numbers = f"--num_train={self.images}", f"--num_val={IMAGES}"
        program = ["-m", "m2det_jax.data.synthetic", "--out", str(self.folder / "data"), *numbers]
        start(tree, program, self.folder)

    def outcome(self, case: str, tree: pathlib.Path, checkpoint: pathlib.Path, name: str) -> Arrays:
        """Returns the arrays of a case, as the code of a tree computes them.

        Args:
            checkpoint: workdir of a training, for OTHERS but samples.
            name: of the tree, for files.
        """
        out = self.folder / f"{case}_{name}"
        if training := TRAININGS.get(case):
            return checkpoint_arrays(self.train(training, tree, out))
        start_here = functools.partial(start, tree, folder=self.folder)
        workdir = f"--workdir={checkpoint}"
        if case == "evaluation":
            flags = ["--set=eval.test_flip=True", f"--output={out}.json"]
            start_here(["-m", "m2det_jax.evaluate", workdir, *flags])
            return json_arrays(json.loads(pathlib.Path(f"{out}.json").read_text()))
        if case == "prediction":
            flags = ["--threshold=0.0", "--no_pictures", f"--output={out}"]
            start_here(["-m", "m2det_jax.predict", workdir, *flags, *self.validation_images()])
            lines = (out / "predictions.jsonl").read_text().splitlines()
            return json_arrays([json.loads(line) for line in lines])
        script = ["-P", str(SCRIPT), case]
        if case == "detections":
            found = out.with_suffix(".npz")
            start_here([*script, str(found), str(checkpoint), *self.validation_images()])
            return read_arrays(found)
        arrays = {}
        for title, more in (("quickstart", ()), ("all", ALL_STEPS)):
            found = self.folder / f"{title}_{name}.npz"
            flags = [*Training("quickstart", 1).flags(), *self.data(), *self.arguments, *more]
            flags.append(f"--workdir={out}_{title}")
            start_here([*script, str(found), str(self.batches), *flags])
            arrays |= {f"{title}/{key}": array for key, array in read_arrays(found).items()}
        return arrays

    def train(self, training: Training, tree: pathlib.Path, workdir: pathlib.Path) -> pathlib.Path:
        """Trains by the code of a tree, and returns the workdir."""
        if self.steps:
            training = dataclasses.replace(training, steps=self.steps)
        flags = [*training.flags(), *self.data(), *self.arguments]
        program = ["-m", "m2det_jax.main", *flags, "--workdir", str(workdir)]
        start(tree, program, self.folder, devices=training.devices)
        return workdir


def start(
    tree: pathlib.Path, program: Sequence[str], folder: pathlib.Path, devices: int = 1
) -> None:
    """Runs Python on virtual CPU devices, with the package of a tree.

    Args:
        folder: of the compilation caches, one a tree, unless the environment names one.

    Raises:
        RuntimeError: it ended with another status than 0; the message has the end of its log.
    """
    count = "--xla_force_host_platform_device_count"
    flags = re.sub(rf"{count}=\d+", "", os.environ.get("XLA_FLAGS", ""))
    cache = folder / f"cache_{hashlib.sha256(str(tree).encode()).hexdigest()[:8]}"
    environment = {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        # Reductions of virtual devices block a thread each; jax makes as many as there are cores.
        "PJRT_NPROC": "32",
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(tree),
        "XLA_FLAGS": f"{flags} {count}={devices}".strip(),
    }
    command = [sys.executable, *program]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} in {tree}: {done.stderr[-3000:]}")


def checkpoint_arrays(workdir: pathlib.Path) -> Arrays:
    """Returns all arrays of the newest checkpoint, read by Orbax alone."""
    absl.logging.set_verbosity(absl.logging.ERROR)  # Orbax warns of what it does not need
    steps = sorted((workdir / "checkpoints").iterdir(), key=lambda p: int(p.name))
    arrays = {}
    for item in ("model", "train"):
        folder = steps[-1] / item
        shapes = ocp.StandardCheckpointer().metadata(folder).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
        found = ocp.PyTreeCheckpointer().restore(folder, restore_args=as_numpy)
        for path, leaf in jax.tree_util.tree_leaves_with_path(found):
            arrays[f"{item}{jax.tree_util.keystr(path)}"] = np.asarray(leaf)
    return arrays


def json_arrays(value: Any, path: str = "") -> Arrays:
    """Returns the numbers and texts of a JSON value, by path; paths of files go."""
    if isinstance(value, (Mapping, list)):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        parts = (json_arrays(inside, f"{path}/{key}") for key, inside in items)
        return {key: array for part in parts for key, array in part.items()}
    return {path: np.asarray("" if value is None else value)}


def read_arrays(path: pathlib.Path) -> Arrays:
    """Returns the arrays of an .npz file."""
    with np.load(path) as found:
        return dict(found)


def digest(arrays: Arrays) -> str:
    """Returns SHA-256 over paths, types, shapes and bytes of arrays, in the order of the paths."""
    total = hashlib.sha256()
    for path in sorted(arrays):
        array = np.ascontiguousarray(arrays[path])
        total.update(f"{path} {array.dtype.str} {array.shape}\n".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def difference(before: Arrays, after: Arrays) -> str:
    """Says how arrays differ, "" if by no bit: how many, and the largest difference of numbers."""
    said = []
    for title, one, other in (("before", before, after), ("after", after, before)):
        if alone := sorted(one.keys() - other.keys()):
            said.append(f"{len(alone)} only {title}, such as {alone[0]}")
    both = sorted(before.keys() & after.keys())
    unequal = [path for path in both if not _same_bits(before[path], after[path])]
    if unequal:
        sizes = {path: _distance(before[path], after[path]) for path in unequal}
        worst = max(sizes, key=sizes.get)
        said.append(
            f"{len(unequal)} of {len(both)} arrays differ, most by {sizes[worst]:.3g} at {worst}"
        )
    return "; ".join(said)


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return (a.dtype, a.shape) == (b.dtype, b.shape) and a.tobytes() == b.tobytes()


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference of two arrays' numbers; inf: of other shapes, or no numbers."""
    if a.shape != b.shape or a.dtype.kind not in "biuf" or b.dtype.kind not in "biuf":
        return np.inf
    apart = np.abs(a.astype(np.float64) - b.astype(np.float64))
    apart = np.where(np.isnan(apart), np.inf, apart)
    return float(apart.max(initial=0))


def compare(bench: Bench, trees: Mapping[str, pathlib.Path], cases: Sequence[str]) -> bool:
    """Runs cases by the trees "before" and "after", prints a line each; says if all are equal."""
    bench.draw(trees["before"])
    checkpoint, all_equal = bench.folder / "quickstart_before", True
    if set(cases) & {"detections", "evaluation", "prediction"} and "quickstart" not in cases:
        bench.train(TRAININGS["quickstart"], trees["before"], checkpoint)
    for case in sorted(cases, key=CASES.index):
        begin = time.perf_counter()
        found = [bench.outcome(case, tree, checkpoint, name) for name, tree in trees.items()]
        said = difference(*found)
        hashes = " ".join(digest(arrays)[:16] for arrays in found)
        verdict = f"DIFFERENT: {said}" if said else f"equal, {len(found[0])} arrays"
        took = time.perf_counter() - begin
        print(f"{case:20} {hashes}  {verdict}  ({took:.0f} s)", flush=True)
        all_equal &= not said
    return all_equal


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], usage="%(prog)s BEFORE [AFTER] [options] -- ARGUMENTS"
    )
    add = parser.add_argument
    add("before", help="a commit")
    add("after", nargs="?", default="", help="a commit; default: working tree")
    add("--cases", nargs="+", choices=CASES, default=CASES, metavar="CASE", help=" ".join(CASES))
    add("--steps", type=int, default=0, help="of each training (default 50 and 20)")
    add("--images", type=int, default=400, help="training images to draw (default 400)")
    add("--batches", type=int, default=40, help="of samples, eight each (default 40)")
    argv = sys.argv[1:] if argv is None else list(argv)
    split = argv.index("--") if "--" in argv else len(argv)
    args, arguments = parser.parse_args(argv[:split]), argv[split + 1 :]
    with tempfile.TemporaryDirectory(prefix="m2det_same_") as name, contextlib.ExitStack() as stack:
        folder = pathlib.Path(name)
        trees = {
            side: stack.enter_context(checkout(getattr(args, side), folder / side))
            for side in ("before", "after")
        }
        bench = Bench(folder, args.images, args.steps, args.batches, arguments)
        equal = compare(bench, trees, args.cases)
    timing.print_machine(devices=False)  # last: it sets XLA_FLAGS, which the processes inherit
    sys.exit(0 if equal else 1)


if __name__ == "__main__":
    main()
