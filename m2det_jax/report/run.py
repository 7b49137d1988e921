"""Report of a run: evaluates a checkpoint, judges its detections and writes the page."""

import dataclasses
import logging
import math
import pathlib
from collections.abc import Sequence
from typing import Any, TextIO

import numpy as np

from m2det_jax import runtime
from m2det_jax.build import augment_settings
from m2det_jax.config import Config
from m2det_jax.config.paths import find_paths, missing_paths
from m2det_jax.data import DetectionIndex, read_classes
from m2det_jax.data.classes import use_classes
from m2det_jax.datasets import record
from m2det_jax.datasets.coverage import config_anchors, network_boxes
from m2det_jax.datasets.evaluation import DataChoice, read_data, refuse_untrusted
from m2det_jax.datasets.loading import describe, read_split
from m2det_jax.detector.evaluation import only_read
from m2det_jax.errors import InputError
from m2det_jax.inference.evaluation import evaluate_restored
from m2det_jax.metrics.details import details
from m2det_jax.metrics.detections import ImageDetections
from m2det_jax.pages.markup import count, printable, without_nan
from m2det_jax.report.advice import Facts, advice
from m2det_jax.report.gallery import OF_EACH_KIND, choose, shots
from m2det_jax.report.outcomes import confusion, curve, kind_counts, outcomes
from m2det_jax.report.page import Report, render
from m2det_jax.report.suspects import suspects, suspects_csv
from m2det_jax.run import readers
from m2det_jax.run.history import read_history
from m2det_jax.run.outputs import Outputs, refuse_checkpoints
from m2det_jax.trained import Restored, restore

log = logging.getLogger("m2det_jax")

PAGE, SUSPECTS = "report.html", "suspects.csv"


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """The run that a page is about.

    Attributes:
        config: of the run.
        step: of the checkpoint.
        name: of the run, for people.
        source: the data that were evaluated, in words.
        training: int [C], training boxes by class; None: unknown.
        history: records of the run.
    """

    config: Config
    step: int
    name: str
    source: str
    training: np.ndarray | None
    history: Sequence[dict]


def report(
    workdir: pathlib.Path,
    *,
    checkpoint: str = "latest",
    batch_size: int = 0,
    output: str = "",
    overrides: Sequence[str] = (),
    num_workers: int = readers.AUTOMATIC,
    num_threads: int = readers.AUTOMATIC,
    trust: bool = False,
    document: TextIO | None = None,
    **data: Any,
) -> pathlib.Path:
    """Evaluates a checkpoint and writes report.html, one page that needs no other file.

    suspects.csv beside it lists the boxes whose label is most likely wrong.

    Args:
        workdir: the --workdir of the training run.
        checkpoint: "latest", "best" (by validation AP), or a step.
        batch_size: images per call, over all devices; 0: the value of the config.
        output: folder of the page; "": the workdir.
        overrides: changes of config.eval, such as "eval.nms=soft_linear".
        num_workers: worker processes that read images; -1: chosen for the host.
        num_threads: reading threads of each process; -1: chosen for the host.
        trust: allow the import of a Python module that the run names as config.data.format.
        document: a file that also receives figures and the name of the page, as JSON.
        data: fields of datasets.evaluation.DataChoice; none: the validation set of the run.

    Returns:
        The path of the page.

    Raises:
        InputError: if the checkpoint, the data or an argument is not valid, or a file of the user
            would be replaced.
    """
    choice = DataChoice(**data)
    restored = restore(workdir, checkpoint, overrides)
    outputs = Outputs(pathlib.Path(output or workdir), "report")
    refuse_checkpoints(outputs.folder, workdir)
    outputs.claim(page_files(PAGE), choice.files)
    index, source = read_data(choice, restored, workdir, trust=trust)
    outputs.claim(page_files(PAGE), index.image_paths)
    log.info("evaluating step %d on %d images of %s", restored.step, index.num_images, source)
    reading = {"num_workers": num_workers, "num_threads": num_threads}
    metrics, detections = evaluate_restored(restored, index, batch_size, "--batch_size", **reading)
    subject = subject_of(restored, workdir, source, trust)
    read = only_read(index, detections)
    contents = assemble(subject, *read, metrics, details(*read))
    write_page(outputs, PAGE, contents)
    page = outputs.folder / PAGE
    print(f"AP {metrics['AP']:.3f}, AP50 {metrics['AP50']:.3f}")
    for heading, text in contents.advice:
        print(printable(f"{heading}: {text}"))
    print(printable(f"written: {page}; open it in a browser"))
    if document:
        runtime.write_json(document, _document(contents, subject, page))
    return page


def _document(contents: Report, subject: Subject, page: pathlib.Path) -> dict[str, Any]:
    figures = {name: contents.metrics[name] for name in ("AP", "AP50")}
    advice = [{"subject": heading, "text": text} for heading, text in contents.advice]
    more = {"step": subject.step, "data": subject.source, "threshold": contents.threshold}
    files = [str(page.with_name(name)) for name in page_files(PAGE)]
    return without_nan(figures) | more | {"advice": advice, "files": files}


def subject_of(
    restored: Restored, workdir: pathlib.Path, source: str, trust: bool = False
) -> Subject:
    """Returns what a page about a restored run says of it.

    Args:
        source: what was evaluated.
        trust: allow the import of a Python module that the run names as config.data.format.

    Raises:
        InputError: if the history of the run is not valid.
    """
    return Subject(
        config=restored.config,
        step=restored.step,
        name=workdir.resolve().name,
        source=source,
        training=training_boxes(restored, workdir, trust),
        history=read_history(workdir),
    )


def training_boxes(restored: Restored, workdir: pathlib.Path, trust: bool) -> np.ndarray | None:
    """Returns the training boxes by class, int64 [C]; None, with a line, if they are not there."""
    try:
        refuse_untrusted(restored.config.data.format, trust, workdir)
        config = find_paths(restored.config, workdir)
        if missing := missing_paths(config, "train"):
            raise InputError(f"not there: {', '.join(missing)}")
        names = restored.class_names
        if config.data.format != "csv":
            names = ()
        elif config.data.class_map or config.data.labels_filter:
            names = read_classes(config.data.classes_csv)
        index = read_split(config, "train", names, record.size_cache(workdir).read_size)
        if not record.names_validation(config.data):
            index = record.split_off(config, workdir, index)[0]
        index = use_classes(index, restored.class_names, "the training set")
    except (ValueError, OSError) as error:
        log.warning("the report leaves out what is in the training data: %s", error)
        return None
    return np.bincount(index.labels, minlength=len(restored.class_names))


def assemble(
    subject: Subject,
    index: DetectionIndex,
    detections: Sequence[ImageDetections],
    metrics: dict[str, Any],
    figures: dict[str, Any],
) -> Report:
    """Returns the contents of the page.

    Args:
        index: what was evaluated; images that could not be read are none of it.
        metrics: as `metrics.scores.coco_metrics`.
        figures: as `metrics.details.details`.
    """
    config, judged = subject.config, outcomes(index, detections)
    suspected = suspects(index, judged)
    best = curve(judged, index)
    threshold = best.shown_threshold
    anchors, size = config_anchors(config), len(index.class_names)
    overlap = anchors.overlaps(network_boxes(index, augment_settings(config)))
    own = [metrics["per_class"].get(n, {}).get("AP50", math.nan) for n in index.class_names]
    facts = Facts(
        names=index.class_names,
        training=subject.training,
        truths=np.bincount(index.labels[judged.counted], minlength=size),
        ap50=np.array(own, float),
        reached=overlap >= anchors.positive_threshold,
        labels=index.labels,
        history=subject.history,
        step=subject.step,
        threshold=threshold if not math.isnan(best.threshold) else math.nan,
        f1=best.f1,
        counts=kind_counts(judged, size, threshold),
        missed=int(judged.missed(threshold).sum()),
        confused=confusion(judged, index, threshold),
        details=figures,
        suspected=suspected.likely(),
    )
    chosen = choose(judged, index, threshold, suspected)
    pictures = shots(judged, index, chosen, suspected)
    return Report(
        name=subject.name, facts=_facts(subject), metrics=metrics, details=figures, index=index,
        judged=judged, suspected=suspected, training=subject.training, history=subject.history,
        advice=advice(facts), threshold=threshold, shots=pictures,
        notes=_notes(config.eval.score_threshold),
    )  # fmt: skip


def page_files(name: str) -> list[str]:
    """Returns the names of a page and of the list of suspects beside it."""
    return [name, SUSPECTS if name == PAGE else f"{name.removesuffix('.html')}_{SUSPECTS}"]


def write_page(outputs: Outputs, name: str, contents: Report) -> None:
    """Writes a page and the list beside it, whose names (`page_files`) are claimed.

    Raises:
        InputError: if a file of that name exists that may not be replaced.
    """
    outputs.folder.mkdir(parents=True, exist_ok=True)
    page, suspected = page_files(name)
    outputs.write(page, render(contents))
    text = suspects_csv(contents.suspected, contents.index, contents.judged)
    outputs.write(suspected, text)


def _facts(subject: Subject) -> list[tuple[str, str]]:
    config = subject.config
    height, width = config.data.image_size
    trained = describe(config.data, "train")
    if subject.training is not None:
        trained += f", {count(int(subject.training.sum()))} boxes"
    return [
        ("Trained on", trained),
        ("Evaluated on", subject.source),
        ("Checkpoint", f"step {subject.step}"),
        ("Model", f"{config.model.backbone}, {width} x {height} px"),
        ("Batch", str(config.batch_size)),
        ("Epochs", f"{config.epochs:g}"),
    ]


def _notes(score_threshold: float) -> list[str]:
    return [
        f"Pictures: at most {OF_EACH_KIND} of each kind and 2 of one image; false alarms, "
        "confusions, duplicates and poor boxes with the highest scores, the largest misses, the "
        "most suspicious labels, and the best by score and overlap. Classes take turns, but for "
        "likely label errors, which the threshold does not change.",
        f"Detections below a score of {score_threshold:g} (config.eval.score_threshold) do not "
        "exist for this page.",
        "Difficult objects and detections in regions (crowds) do not count.",
    ]
