"""Comparison of two runs: evaluates both on the same images and writes the page."""

import logging
import pathlib
from collections.abc import Sequence
from typing import Any, TextIO

import numpy as np

from m2det_jax import runtime
from m2det_jax.data import DetectionIndex
from m2det_jax.data.classes import use_classes
from m2det_jax.datasets.evaluation import DataChoice, read_data
from m2det_jax.datasets.loading import describe
from m2det_jax.errors import InputError
from m2det_jax.inference.evaluation import evaluate_restored
from m2det_jax.metrics.bootstrap import FIGURES, compare
from m2det_jax.metrics.detections import ImageDetections, part_of
from m2det_jax.pages.markup import count, printable
from m2det_jax.report.comparison.differences import Side, choose, shots
from m2det_jax.report.comparison.page import Comparison, render
from m2det_jax.report.comparison.words import sentences
from m2det_jax.report.gallery import OF_EACH_KIND, OF_ONE_IMAGE
from m2det_jax.report.outcomes import curve, outcomes
from m2det_jax.run import readers
from m2det_jax.run.outputs import Outputs, refuse_checkpoints
from m2det_jax.trained import Restored, restore

log = logging.getLogger("m2det_jax")

PAGE = "compare.html"


def compare_runs(
    workdir: pathlib.Path,
    other: pathlib.Path,
    *,
    checkpoint: str = "latest",
    other_checkpoint: str = "",
    batch_size: int = 0,
    output: str = "",
    overrides: Sequence[str] = (),
    num_workers: int = readers.AUTOMATIC,
    num_threads: int = readers.AUTOMATIC,
    trust: bool = False,
    document: TextIO | None = None,
    **data: Any,
) -> pathlib.Path:
    """Evaluates two runs on the same images and writes compare.html.

    Args:
        workdir: the --workdir of the first run, A.
        other: that of the second, B.
        checkpoint: of A: "latest", "best" (by validation AP), or a step.
        other_checkpoint: likewise of B; "": as `checkpoint`.
        batch_size: images per call, over all devices; 0: the value of each config.
        output: folder of the page; "": the workdir of A.
        overrides: changes of config.eval of both, such as "eval.nms=soft_linear".
        num_workers: worker processes that read images; -1: chosen for the host.
        num_threads: reading threads of each process; -1: chosen for the host.
        trust: allow the import of a Python module that A names as config.data.format.
        document: a file that also receives the differences and the name of the page, as JSON.
        data: fields of datasets.evaluation.DataChoice; none: the validation set of A.

    Returns:
        The path of the page.

    Raises:
        InputError: if a checkpoint, the data or an argument is not valid, the runs have other
            classes, or a file of the user would be replaced.
    """
    choice = DataChoice(**data)
    runs = (
        restore(workdir, checkpoint, overrides),
        restore(other, other_checkpoint or checkpoint, overrides),
    )
    _refuse_other_classes(workdir, other, *runs)
    outputs = Outputs(pathlib.Path(output or workdir), "report")
    for folder in (workdir, other):
        refuse_checkpoints(outputs.folder, folder)
    outputs.claim([PAGE], choice.files)
    index, source = read_data(choice, runs[0], workdir, trust=trust)
    outputs.claim([PAGE], index.image_paths)
    reading = {"num_workers": num_workers, "num_threads": num_threads}
    found = []
    for letter, run in zip("AB", runs, strict=True):
        log.info("evaluating step %d of %s on %d images of %s", run.step, letter,
                 index.num_images, source)  # fmt: skip
        found.append(_detections(run, index, batch_size, **reading))
    index, found = _read_by_both(index, found)
    contents, draws = assemble(runs, (workdir, other), index, source, found)
    outputs.folder.mkdir(parents=True, exist_ok=True)
    outputs.write(PAGE, render(contents))
    page = outputs.folder / PAGE
    for heading, text in sentences(contents.differences, index.class_names):
        print(printable(f"{heading}: {text}"))
    print(printable(f"written: {page}; open it in a browser"))
    if document:
        runtime.write_json(document, _document(contents, runs, source, draws, page))
    return page


def _refuse_other_classes(
    workdir: pathlib.Path, other: pathlib.Path, a: Restored, b: Restored
) -> None:
    """Raises InputError if two runs do not detect the same classes; their order may differ."""
    if set(a.class_names) == set(b.class_names):
        return
    parts = []
    for folder, mine, theirs in (
        (workdir, a.class_names, b.class_names), (other, b.class_names, a.class_names),
    ):  # fmt: skip
        if only := [name for name in mine if name not in theirs]:
            more = f" and {len(only) - 10} more" if len(only) > 10 else ""
            parts.append(f"only {folder} has {', '.join(only[:10])}{more}")
    raise InputError(
        f"{workdir} and {other} were trained on different classes, so their AP cannot be compared: "
        f"{'; '.join(parts)}. Compare runs with the same classes, or evaluate each alone"
    )


def _detections(
    run: Restored, index: DetectionIndex, batch_size: int, **reading: int
) -> list[ImageDetections]:
    """Returns the detections of a run, with the class numbers of the index."""
    own = use_classes(index, run.class_names, "the data")
    _, found = evaluate_restored(run, own, batch_size, "--batch_size", **reading)
    numbers = np.array([index.class_names.index(name) for name in run.class_names], np.int64)
    return [
        ImageDetections(one.image_id, one.boxes, one.scores, numbers[np.asarray(one.labels)])
        for one in found
    ]


def _read_by_both(
    index: DetectionIndex, found: Sequence[list[ImageDetections]]
) -> tuple[DetectionIndex, list[list[ImageDetections]]]:
    """Returns the index of the images that both have read, and their detections counted anew."""
    both = sorted(set.intersection(*({one.image_id for one in some} for some in found)))
    (shared, first), (_, second) = (part_of(index, some, both) for some in found)
    return shared, [first, second]


def assemble(
    runs: tuple[Restored, Restored],
    workdirs: tuple[pathlib.Path, pathlib.Path],
    index: DetectionIndex,
    source: str,
    found: Sequence[list[ImageDetections]],
) -> tuple[Comparison, int]:
    """Returns the contents of the page, and how often images were drawn."""
    differences, draws = compare(index, *found)
    first, second = (_side(index, some) for some in found)
    names = _names(runs, workdirs)
    facts = [("Evaluated on", source)]
    for letter, name, run in zip("AB", names, runs, strict=True):
        height, width = run.config.data.image_size
        facts.append(
            (letter, f"{name}, step {run.step}, {run.config.model.backbone}, {width} x {height} px")
        )
    contents = Comparison(
        names=names,
        facts=facts,
        index=index,
        differences=differences,
        sides=(first, second),
        shots=shots(first, second, index, choose(first, second, index)),
        notes=_notes(runs, draws),
    )
    return contents, draws


def _side(index: DetectionIndex, found: Sequence[ImageDetections]) -> Side:
    judged = outcomes(index, found)
    return Side(judged, curve(judged, index).shown_threshold)


def _names(
    runs: tuple[Restored, Restored], workdirs: tuple[pathlib.Path, pathlib.Path]
) -> tuple[str, str]:
    """Returns two different names: folders, with their parents or steps where they are needed."""
    first, second = (path.resolve() for path in workdirs)
    if first == second:
        return f"{first.name} step {runs[0].step}", f"{first.name} step {runs[1].step}"
    if first.name != second.name:
        return first.name, second.name
    return str(first), str(second)


def _notes(runs: tuple[Restored, Restored], draws: int) -> list[str]:
    notes = [
        f"Intervals: the images were drawn anew {count(draws)} times, with replacement, and the "
        "figures of both computed each time. The interval holds the middle 95 % of the "
        "differences. It says how much depends on the choice of the images; another training with "
        "another seed differs too.",
        f"Pictures: at most {OF_EACH_KIND} of each kind and {OF_ONE_IMAGE} of one image; the "
        "largest objects, and the false alarms with the highest scores. Classes take turns.",
        "Difficult objects and detections in regions (crowds) do not count.",
    ]
    trained = [describe(run.config.data, "train") for run in runs]
    if trained[0] != trained[1]:
        notes.append(
            f"A was trained on {trained[0]}, B on {trained[1]}. If one has seen some of these "
            "images in training, it looks better than it is."
        )
    return notes


def _document(
    contents: Comparison,
    runs: tuple[Restored, Restored],
    source: str,
    draws: int,
    page: pathlib.Path,
) -> dict[str, Any]:
    names = contents.index.class_names
    by_size, per_class = {}, {}
    for group, figures in contents.differences.items():
        plain = {
            figure: {"A": one.a, "B": one.b, "difference": one.a - one.b,
                     "low": one.low, "high": one.high}
            for figure, one in zip(FIGURES, figures, strict=True)
        }  # fmt: skip
        if isinstance(group, str):
            by_size[group] = plain
        else:
            per_class[names[group]] = plain
    sides = {
        letter: {"name": name, "step": run.step, "threshold": side.threshold}
        for letter, name, run, side in zip("AB", contents.names, runs, contents.sides, strict=True)
    }
    more = {"by_size": by_size, "per_class": per_class, "draws": draws, "files": [str(page)]}
    return sides | {"data": source} | more
