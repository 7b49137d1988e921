"""Label files of prediction: detections as a CSV table, or as a data set for labelling tools."""

import csv
import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Sequence

import numpy as np

from m2det_jax.data import DetectionIndex
from m2det_jax.data.formats.write import write_dataset
from m2det_jax.errors import InputError
from m2det_jax.predict.outputs import LINES, detections_of
from m2det_jax.run.outputs import Outputs

TABLE = "predictions.csv"
_SPLIT, _SCRATCH = "predicted", ".m2det-partial-labels"
_HEAD = ("file_name", "class_name", "score", "x1", "y1", "x2", "y2")
FORMS = ("json", "csv", "coco", "yolo", "voc")  # json: predictions.json, which is always written
DATASETS = ("coco", "yolo", "voc")


def read_forms(save: Sequence[str]) -> list[str]:
    """Returns the forms that --save asks for, each once, without json.

    Args:
        save: names of forms, one or several with commas between.

    Raises:
        InputError: if there is no such form.
    """
    asked = [name for text in save for name in text.split(",")]
    for name in asked:
        if name not in FORMS:
            raise InputError(f"--save {name}: there is no such form; give {', '.join(FORMS)}")
    return [form for form in FORMS if form in asked and form != "json"]


def earlier_files(outputs: Outputs, folders: Sequence[str]) -> list[str]:
    """Returns the names of the files in some folders of the outputs, all of an earlier run.

    Raises:
        InputError: if one of them may not be replaced.
    """
    names = [
        path.relative_to(outputs.folder).as_posix()
        for folder in folders
        for path in sorted((outputs.folder / folder).rglob("*"))
        if path.is_symlink() or not path.is_dir()
    ]
    outputs.claim(names)
    return names


def write_table(outputs: Outputs) -> None:
    """Writes the detections of predictions.jsonl as a CSV table, a row each, with a head."""
    with (
        outputs.replacing(TABLE) as partial,
        open(partial, "w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(_HEAD)
        for line in _lines(outputs):
            for one in line.get("detections", ()):
                x, y, width, height = one["bbox"]
                box = [f"{value:.6g}" for value in (x, y, x + width, y + height)]
                name = one["category_name"]
                writer.writerow([line["file_name"], name, f"{one['score']:.6g}", *box])


def write_labels(outputs: Outputs, form: str, index: DetectionIndex, kept: Sequence[int]) -> int:
    """Writes the detections of predictions.jsonl as a data set, into the folder named for its form.

    Args:
        outputs: where predictions.jsonl is.
        form: one of DATASETS.
        index: the images, without objects.
        kept: position among the inputs, that is the line, of each image of the index.

    Returns:
        The number of detections without an area, which are left out.
    """
    labelled, flat = _with_detections(index, kept, _lines(outputs))
    if form == "coco":  # tools find images by a name below a folder
        labelled = dataclasses.replace(labelled, image_paths=_below_one(labelled.image_paths))
    elif form == "voc":
        labelled = dataclasses.replace(labelled, boxes=whole_pixels(labelled.boxes))
    # Written beside, so that no file that may not be replaced is ever touched.
    scratch = outputs.folder / _SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)  # left by a run that was killed
    try:
        write_dataset({_SPLIT: labelled}, form, scratch)
        for path in sorted(scratch.rglob("*")):
            if path.is_file():
                with outputs.replacing(f"{form}/{path.relative_to(scratch).as_posix()}") as partial:
                    path.replace(partial)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return flat


def whole_pixels(boxes: np.ndarray) -> np.ndarray:
    """Returns boxes [n, 4] with whole numbers, as tools for VOC expect them; none becomes empty."""
    rounded = np.rint(boxes)
    empty = (rounded[:, 2:] <= rounded[:, :2]).any(axis=1)
    rounded[empty, :2], rounded[empty, 2:] = np.floor(boxes[empty, :2]), np.ceil(boxes[empty, 2:])
    return rounded


def _lines(outputs: Outputs) -> Iterator[dict]:
    with open(outputs.folder / LINES, encoding="utf-8") as file:
        yield from map(json.loads, file)


def _below_one(paths: Sequence[str]) -> tuple[str, ...]:
    """Returns the paths below the folder that all of them share."""
    shared = os.path.commonpath([os.path.dirname(path) for path in paths])
    return tuple(pathlib.Path(path).relative_to(shared).as_posix() for path in paths)


def _with_detections(
    index: DetectionIndex, kept: Sequence[int], lines: Iterator[dict]
) -> tuple[DetectionIndex, int]:
    """Returns the images that have been read, with their detections as objects.

    Returns:
        (index, number of detections without an area, which it lacks).
    """
    row_of = {position: row for row, position in enumerate(kept)}
    rows, boxes, labels, flat = [], [], [], 0
    for position, line in enumerate(lines):
        if "skipped" in line:
            continue
        found = detections_of(line, index.class_names)
        has_area = (found.boxes[:, 2:] > found.boxes[:, :2]).all(axis=1)
        rows.append(row_of[position])
        boxes.append(found.boxes[has_area])
        labels.append(found.labels[has_area])
        flat += int((~has_area).sum())
    return DetectionIndex(
        image_paths=tuple(index.image_paths[row] for row in rows),
        sizes=index.sizes[rows],
        boxes=np.concatenate(boxes).astype(np.float32),
        labels=np.concatenate(labels).astype(np.int32),
        offsets=np.cumsum([0, *map(len, labels)], dtype=np.int64),
        class_names=index.class_names,
        class_ids=index.class_ids,
        image_ids=tuple(index.image_ids[row] for row in rows),
    ), flat
