"""The roads through the package, side by side: to the gradient, of a box, of the config.

    python -m benchmarks.roads [COMMIT ...] [--steps 2]

Without a commit: the working tree. For each commit a tiny detector is trained, evaluated and used
by `python -m m2det_jax.{main,evaluate,predict}`, and `benchmarks.recorded_run` notes what happens:

- Hops to the gradient: calls of the package from `main` of main.py to `model.apply` in training,
  each a hop, the last into `model.apply`. Counted are the calls that are open when the compiled
  step is called, and the functions that jax has traced for it: what a reader follows, whether
  the step is compiled where it is called or before the loop. "In a traceback" counts the frames
  above an error raised in the model while it is traced instead, by way of the compilation.
  The error wrapper is runtime.py and the function inside `main` that it calls.
- Files of the box: those with a function on the road of one box, from its row in a CSV file to the
  loss: it holds the four coordinates, or, where jax traces it, an array that depends on them, and
  hands them on; `recorded_run.BoxRoad` says it exactly. Image size is network size and nothing is
  augmented, so that the numbers stay as they are. Files that only look at the box, such as
  those of checks and logs, are counted apart, together with the others.
- Files that read a ConfigDict while the verbs run, and modules whose source names the class.
- Modules that one other alone imports, of fewer lines than structure.SHORT.
"""

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import structure
from benchmarks.commits import checkout

HEIGHT, WIDTH, IMAGES = 64, 96, 8
SCRIPT = pathlib.Path(__file__).with_name("recorded_run.py")
COORDINATES = "13.15625,17.28125,41.71875,53.40625"  # as in recorded_run
TINY = """
    data.num_workers=0 data.num_threads=1 augment.enabled=False model.backbone_width=0.125
    model.num_levels=1 model.shallow_channels=16 model.deep_channels=16 model.reduced_channels=8
    model.tum_width=16 model.tum_out=8 log.sample_images=0 eval.every_epochs=1
""".split()

Call = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Roads:
    """What is recorded of a commit.

    Attributes:
        calls, with_parts: the calls open at "model" and "step", without and with accumulation.
        holds, road: {file: {function: its first line}}.
        readers: {file: functions that read a ConfigDict}.
        named: modules whose source names ConfigDict.
        small: {module: lines} of those with one importer.
    """

    calls: dict[str, list[Call]]
    with_parts: dict[str, list[Call]]
    holds: dict[str, dict[str, int]]
    road: dict[str, dict[str, int]]
    readers: dict[str, list[str]]
    named: list[str]
    small: dict[str, int]


def draw_data(folder: pathlib.Path) -> None:
    """Writes eight training images and two for validation, of the network's size, with boxes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", IMAGES), ("val", 2)):
        rows = []
        for i in range(count):
            name = f"{split}{i}.png"
            pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name)
            followed = split == "train" and i == 0
            rows.append(f"{name},{COORDINATES if followed else f'{8 + i},9,{50 + i},60'},a")
        (folder / f"{split}.csv").write_text("\n".join(rows) + "\n")
    (folder / "classes.csv").write_text("a,0\nb,1\n")


def record(tree: pathlib.Path, folder: pathlib.Path, arguments: Sequence[str]) -> dict:
    """Runs a verb of a tree, recorded; returns what recorded_run has written.

    Raises:
        RuntimeError: the run failed; the message has the end of its log.
    """
    out = folder / "recorded.json"
    environment = {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        **os.environ,
        "PYTHONPATH": str(tree),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "M2DET_TRACEBACK": "1",
    }
    command = [sys.executable, "-P", str(SCRIPT), str(out), *arguments]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} in {tree}: {done.stderr[-3000:]}")
    return json.loads(out.read_text())


def training(data: pathlib.Path, steps: int) -> list[str]:
    """Returns the verb and the flags of a tiny training, all but --workdir."""
    keys = [f"data.{name}_csv={data / name}.csv" for name in ("train", "val", "classes")]
    keys += [f"data.image_size=({HEIGHT}, {WIDTH})", f"batch_size={IMAGES}", f"epochs={steps}"]
    return ["main", "--config=experiments/quickstart.py", *(f"--config.{k}" for k in keys + TINY)]


def read_roads(tree: pathlib.Path, commit: str, folder: pathlib.Path, steps: int) -> Roads:
    """Trains, evaluates and predicts by the code of a tree, recorded.

    Args:
        commit: of which the tree is a checkout; "": the working tree.
        folder: empty; for data, workdirs and logs.
    """
    draw_data(folder)
    train = training(folder, steps)
    run = functools.partial(record, tree, folder)
    workdir = f"--workdir={folder / 'run'}"
    trained = run(["--box", *train, workdir])
    parts = run(["--stop", *train, "--config.accumulation=2", f"--workdir={folder / 'parts'}"])
    used = [run(["evaluate", workdir]), run(["predict", workdir, str(folder / "val0.png")])]
    readers: dict[str, set[str]] = {}
    for found in (trained, *used):
        for file, functions in found["readers"].items():
            readers.setdefault(file, set()).update(functions)
    sources, folders = structure.read_sources(commit)
    counted = structure.measure(sources, folders)
    lines = counted.file_lines
    return Roads(
        calls=trained["calls"],
        with_parts=parts["calls"],
        holds=trained["holds"],
        road=trained["road"],
        readers={file: sorted(functions) for file, functions in sorted(readers.items())},
        named=sorted(name for name, text in sources.items() if re.search(r"\bConfigDict\b", text)),
        small={m: lines[m] for m in sorted(counted.one_importer) if lines[m] < structure.SHORT},
    )


def hops(calls: dict[str, list[Call]], *, wrapper: bool = False) -> list[Call]:
    """Returns the calls from `main` to the one of `model.apply`; wrapper: with the error wrapper.

    Args:
        calls: open at "model", and at "step" where that is called as a compiled program.
    """
    road = calls["model"]
    if "step" in calls:
        road = calls["step"] + [call for call in road if call["traced"]]
    return [call for call in road if wrapper or not _wraps_errors(call)]


def _wraps_errors(call: Call) -> bool:
    return call["file"] == "runtime.py" or call["name"].startswith("main.<locals>")


def figures(roads: Roads) -> dict[str, str]:
    """Returns a row of text for each thing that is counted."""
    in_traceback = [call for call in roads.calls["model"] if not _wraps_errors(call)]
    return {
        "hops to the gradient": f"{len(hops(roads.calls))}",
        "  with accumulation": f"{len(hops(roads.with_parts))}",
        "  with the error wrapper": f"{len(hops(roads.calls, wrapper=True))}",
        "  in a traceback": f"{len(in_traceback)}",
        "files on the road of a box": f"{len(roads.road)}",
        "  that hold the box": f"{len(roads.holds)}",
        "files that read a ConfigDict": f"{len(roads.readers)}",
        "  modules that name it": f"{len(roads.named)}",
        f"one importer, < {structure.SHORT} lines": f"{len(roads.small)}",
    }


def lists(roads: Roads) -> str:
    """Returns what is behind the figures, by name."""

    def calls(title: str, found: list[Call]) -> list[str]:
        lines = [f"{title}: {len(found)}"]
        return lines + [f"  {call['file']}:{call['line']} {call['name']}" for call in found]

    def files(title: str, found: dict) -> list[str]:
        lines = [f"{title}: {len(found)}"]
        return lines + [f"  {file}: {', '.join(map(str, found[file]))}" for file in found]

    return "\n".join(
        [
            *calls("hops to the gradient, with the error wrapper", hops(roads.calls, wrapper=True)),
            *calls("with accumulation, without the wrapper", hops(roads.with_parts)),
            *calls("frames in a traceback", roads.calls["model"]),
            *files("files on the road of a box", roads.road),
            *files(
                "files that only look at it",
                {file: found for file, found in roads.holds.items() if file not in roads.road},
            ),
            *files("files that read a ConfigDict", roads.readers),
            f"modules that name ConfigDict: {' '.join(roads.named)}",
            "modules with one importer: "
            + ", ".join(f"{name} {lines}" for name, lines in roads.small.items()),
        ]
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="The numbers are defined at the top of benchmarks/roads.py.",
    )
    parser.add_argument("commits", nargs="*", metavar="COMMIT", help="default: the working tree")
    parser.add_argument("--steps", type=int, default=2, help="of the training (default 2)")
    options = parser.parse_args(argv)
    found = {}
    for commit in options.commits or [""]:
        with (
            tempfile.TemporaryDirectory(prefix="m2det_roads_") as folder,
            checkout(commit, pathlib.Path(folder) / "tree") as tree,
        ):
            (data := pathlib.Path(folder) / "data").mkdir()
            found[commit or "working tree"] = read_roads(tree, commit, data, options.steps)
    columns = [figures(roads) for roads in found.values()]
    print(f"{'':30}" + "".join(f"{name[:16]:18}" for name in found))
    for row in columns[0]:
        print(f"{row:30}" + "".join(f"{column[row]:18}" for column in columns))
    for name, roads in found.items():
        print(f"\n{name}\n{lists(roads)}")


if __name__ == "__main__":
    main()
