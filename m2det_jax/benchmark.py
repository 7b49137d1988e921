"""Benchmark of a detector and of its exported files: milliseconds a picture, part by part.

python -m m2det_jax.benchmark --workdir runs/mine [--artefact runs/mine/export/detector.onnx]
"""

import argparse
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

import jax
import numpy as np
from absl import app
from absl.flags import argparse_flags

from m2det_jax import runtime
from m2det_jax.datasets.evaluation import DataChoice, read_data
from m2det_jax.errors import InputError
from m2det_jax.inference.exported import ExportedDetector, ONNXPrograms
from m2det_jax.inference.pictures import look_at
from m2det_jax.inference.trained_detector import TrainedDetector, load

PICTURES = 50  # that are decoded, at most
PARTS = ("network", "NMS", "network and NMS")  # beside "decode", which is the same for all

Parts = dict[str, Callable[[], Any]]


def benchmark(
    workdir: pathlib.Path,
    *,
    artefacts: Sequence[str] = (),
    images: Sequence[str] = (),
    checkpoint: str = "latest",
    batch_size: int = 1,
    rounds: int = 20,
    overrides: Sequence[str] = (),
    trust: bool = False,
    document: TextIO | None = None,
) -> dict[str, dict[str, float]]:
    """Measures a trained detector and exported ones, in turns, on the same pictures.

    Args:
        workdir: the --workdir of the training run.
        artefacts: files of `m2det export`.
        images: paths of pictures; (): of the validation set.
        checkpoint: "latest", "best" (by validation AP), or a step.
        batch_size: pictures of a call.
        rounds: calls of each part; the median counts.
        overrides: changes of config.eval, such as "eval.nms=soft_linear".
        trust: allow the import of a Python module that the run names as config.data.format.
        document: a file that also receives the figures, as JSON.

    Returns:
        Milliseconds a picture by detector ("native" or the path of an artefact) and part.

    Raises:
        InputError: if the checkpoint, an artefact or an argument is not valid, or there is no
            picture.
    """
    if batch_size < 1 or rounds < 1:
        raise InputError("--batch_size and --rounds: 1 or more expected")
    native = load(workdir, checkpoint, overrides)
    exported = {path: load(path, backend=pathlib.Path(path).suffix[1:]) for path in artefacts}
    others = [path for path, one in exported.items() if one.image_size != native.image_size]
    if others:
        raise InputError(f"{others[0]}: another input size than that of {workdir}; compare its run")
    paths = list(images) or _validation(native, trust)
    pixels, decoding = _decode(native, paths[:PICTURES], batch_size)
    works = {"native": _native_parts(native, pixels)}
    works |= {path: _exported_parts(one, pixels) for path, one in exported.items()}
    times = _in_turns(works, rounds)
    figures = {
        name: {"decode": decoding} | {part: 1000 * t / batch_size for part, t in parts.items()}
        for name, parts in times.items()
    }
    print(_table(figures, batch_size))
    if document:
        runtime.write_json(document, {"milliseconds": figures, "batch_size": batch_size})
    return figures


def _validation(native: TrainedDetector, trust: bool) -> list[str]:
    index, _ = read_data(DataChoice(), native.restored, native.workdir, trust=trust)
    return list(index.image_paths)


def _decode(
    native: TrainedDetector, paths: Sequence[str], batch_size: int
) -> tuple[np.ndarray, float]:
    """Returns a batch of pixels, uint8 [B, H, W, 3], and milliseconds to read a picture."""
    resizes, views, times = [native.restored.detector.resize], [], []
    for path in paths:
        start = time.perf_counter()
        _, (view,) = look_at(path, resizes)
        times.append(time.perf_counter() - start)
        views.append(view.image)
    chosen = [views[i % len(views)] for i in range(batch_size)]
    return np.stack(chosen), 1000 * statistics.median(times)


def _native_parts(native: TrainedDetector, pixels: np.ndarray) -> Parts:
    detector, variables = native.restored.detector, native.restored.variables
    threshold = np.float32(detector.suppression.score_threshold)

    @jax.jit
    def network(variables: dict, images: jax.Array) -> Any:
        return detector.model.apply(variables, detector.normalize(images), train=False)

    outputs, suppress = network(variables, pixels), jax.jit(detector.postprocess)
    whole = detector.detect_above_fn()
    return {
        "network": lambda: network(variables, pixels),
        "NMS": lambda: suppress(outputs),
        "network and NMS": lambda: whole(variables, jax.device_put(pixels), threshold),
    }


def _exported_parts(exported: ExportedDetector, pixels: np.ndarray) -> Parts:
    programs = exported.programs
    threshold = np.float32(programs.score_threshold)
    parts: Parts = {"network and NMS": lambda: programs.detect_images(pixels, threshold)}
    if isinstance(programs, ONNXPrograms):
        raw = programs.network(pixels)
        parts["network"] = lambda: programs.network(pixels)
        parts["NMS"] = lambda: programs.suppress(*raw, threshold)
    return parts


def _in_turns(works: Mapping[str, Parts], rounds: int) -> dict[str, dict[str, float]]:
    """Returns the median seconds of a call of each part; all take turns in each round."""
    calls = [(name, part, call) for name, parts in works.items() for part, call in parts.items()]
    times: dict[tuple[str, str], list[float]] = {(name, part): [] for name, part, _ in calls}
    for number in range(rounds + 1):
        for name, part, call in calls:
            start = time.perf_counter()
            jax.block_until_ready(call())
            if number:  # the first call compiles
                times[name, part].append(time.perf_counter() - start)
    return {
        name: {part: statistics.median(times[name, part]) for part in parts}
        for name, parts in works.items()
    }


def _table(figures: Mapping[str, Mapping[str, float]], batch_size: int) -> str:
    columns = ("decode", *PARTS)
    names = {name: pathlib.Path(name).name for name in figures}
    width = max(map(len, names.values()))
    lines = [f"milliseconds a picture, {batch_size} a call; - is not a part of its own"]
    lines.append(" ".join(["".ljust(width), *(column.rjust(15) for column in columns)]))
    for name, parts in figures.items():
        cells = [f"{parts[c]:.2f}" if c in parts else "-" for c in columns]
        lines.append(" ".join([names[name].ljust(width), *(cell.rjust(15) for cell in cells)]))
    return "\n".join(lines)


def _parser() -> argparse_flags.ArgumentParser:
    parser = argparse_flags.ArgumentParser(
        prog="m2det benchmark",
        description="Measure a trained detector and its exported files, in turns: milliseconds a "
        "picture for decoding, network and NMS.",
        conflict_handler="resolve",  # if training is imported too, absl has a flag --trust
    )
    add = parser.add_argument
    add("--workdir", required=True, type=pathlib.Path, help="folder of the training run")
    add("--artefact", action="append", default=[], dest="artefacts", metavar="FILE",
        help="file of m2det export; can be repeated")  # fmt: skip
    add("--images", nargs="+", default=(), metavar="PATH",
        help="pictures; default: 50 of the validation set")  # fmt: skip
    add("--checkpoint", default="latest", help="latest (default), best, or a step")
    add("--batch_size", type=int, default=1, help="pictures of a call (default 1)")
    add("--rounds", type=int, default=20, help="calls of each part (default 20); the median counts")
    add("--trust", action="store_true",
        help="import the Python module that the run names as config.data.format")  # fmt: skip
    runtime.add_overrides(parser)
    runtime.add_json_flag(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    """Runs the command with parsed arguments."""
    runtime.run_verb(benchmark, args)


def cli() -> None:
    """Entry point of `m2det-benchmark`."""
    app.run(main, flags_parser=lambda argv: _parser().parse_args(argv[1:]))


if __name__ == "__main__":
    cli()
