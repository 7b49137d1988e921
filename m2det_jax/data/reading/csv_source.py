"""The CSV form of a data set, compatible with keras-retinanet and keras-m2det.

Annotations, one box a row: `path,x1,y1,x2,y2,class_name`. An image without objects: `path,,,,,`.
Paths are relative to the CSV file's folder unless absolute. Classes: `class_name,id`, ids 0..C-1.
No header rows. Fields are quoted as the csv module does; a byte order mark, Windows line ends and
blank lines are accepted. Everything else that is wrong is collected and reported at once.
"""

import csv
import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from m2det_jax.data.errors import Findings
from m2det_jax.data.index import DetectionIndex
from m2det_jax.data.reading.csv_rows import RowReader, read_records
from m2det_jax.data.reading.row_checks import build_index
from m2det_jax.data.reading.rows import Rows

_CLASS_FORM = "a row is class_name,id, with ids 0, 1, 2, ... and no header"


def read_classes(path: str | os.PathLike) -> tuple[str, ...]:
    """Reads a class file; returns the names in the order of their ids.

    Raises:
        DataError: with every malformed row.
    """
    findings = Findings()
    names = class_list(Path(path), findings)
    findings.raise_if_any()
    return names


def read_csv(
    annotations: str | os.PathLike,
    classes: str | os.PathLike | Sequence[str],
    *,
    num_threads: int = 8,
) -> DetectionIndex:
    """Reads an annotations file and the header of every image in it, and checks both.

    Args:
        annotations: the CSV file.
        classes: the class file, or the names themselves in the order of their ids.
        num_threads: for reading image headers.

    Raises:
        DataError: one line a finding, from both files and all images.
    """
    findings = Findings()
    rows = read_csv_rows(Path(annotations), classes, findings)
    index = build_index(rows, findings, num_threads=num_threads)
    findings.raise_if_any()
    return index


def read_csv_rows(
    annotations: Path, classes: str | os.PathLike | Sequence[str], findings: Findings
) -> Rows:
    """Reads both files, as `read_csv`, but not the images."""
    if isinstance(classes, str | os.PathLike):
        class_names = class_list(Path(classes), findings)
    else:
        class_names = tuple(classes)
    return RowReader(annotations, class_names, findings).read()


def write_csv(index: DetectionIndex, path: str | os.PathLike) -> None:
    """Writes the annotations of an index so that `read_csv` gives the same index again.

    Images under the file's folder are written with relative paths, others with absolute ones.
    """
    folder = os.path.dirname(os.path.abspath(path))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        for i, image_path in enumerate(index.image_paths):
            inside = os.path.commonpath([folder, image_path]) == folder
            name = os.path.relpath(image_path, folder) if inside else image_path
            boxes, labels = index.objects(i)
            for box, label in zip(boxes, labels, strict=True):
                writer.writerow([name, *map(_shortest, box), index.class_names[label]])
            if not len(labels):
                writer.writerow([name, "", "", "", "", ""])


def write_classes(class_names: Sequence[str], path: str | os.PathLike) -> None:
    """Writes a class file, ids in the order of the names."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows((name, i) for i, name in enumerate(class_names))


def _shortest(value: np.float32) -> str:
    """Returns the shortest decimal text that reads back as the same float32."""
    return str(int(value)) if value == int(value) else str(value)


def class_list(path: Path, findings: Findings) -> tuple[str, ...]:
    """Reads a class file; returns the names by id, and with findings all that could be read."""
    lines: dict[str, int] = {}
    names: dict[int, str] = {}
    before = len(findings)
    for line, fields in read_records(path, findings):
        problem = _class_problem(fields, lines, names, is_first=not lines)
        if problem:
            what, value, remedy = problem
            kind = "header-row" if what == "a header row" else "bad-class"
            findings.add(path, line, what, remedy, kind=kind, value=value)
        if len(fields) == 2:
            lines.setdefault(fields[0], line)
        if not problem:
            names[int(fields[1])] = fields[0]
    if not lines and len(findings) == before:
        findings.add(path, 0, "no classes", _CLASS_FORM, kind="no-rows")
    if len(findings) == before and max(names) != len(names) - 1:
        gap = next(i for i in itertools.count() if i not in names)
        findings.add(
            path,
            0,
            "ids have a gap",
            f"number the {len(names)} classes 0 to {len(names) - 1}",
            kind="bad-class",
            value=f"{gap} is missing, {max(names)} is the largest",
        )
    if len(findings) > before:
        return tuple(lines)
    return tuple(names[i] for i in range(len(names)))


def _class_problem(
    fields: list[str], lines: dict[str, int], names: dict[int, str], *, is_first: bool
) -> tuple[str, str, str] | None:
    """Returns (what, value, remedy) of a row of the class file, or None for a sound row."""
    text = ",".join(fields)
    if len(fields) != 2:
        return f"{len(fields)} column(s) where 2 are expected", text[:100], _CLASS_FORM
    name, number = fields
    if not number.strip().isdecimal() or not number.isascii() or len(number) > 9:
        if is_first and number.strip().replace("_", "").isalpha():
            return "a header row", text, f"remove it: {_CLASS_FORM}"
        return "id is not a whole number from 0", number, _CLASS_FORM
    if not name.strip():
        return "the class name is empty", text, _CLASS_FORM
    if name != name.strip():
        return "blanks around the class name", repr(name), "remove them"
    if name in lines:
        return f"class name repeats line {lines[name]}", name, "names must differ"
    if int(number) in names:
        return f"id {number} is taken by {names[int(number)]}", name, "ids must differ"
    return None
