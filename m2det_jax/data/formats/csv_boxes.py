"""CSV annotations: one box a row, `path,x1,y1,x2,y2,class_name`, as in keras-retinanet.

An image without objects has the row `path,,,,,`. Paths are relative to the CSV file's folder unless
absolute. There is no header row. Fields are quoted as the csv module does; a byte order mark,
Windows line ends and blank lines are accepted. Everything else that is wrong is a finding.
"""

import array
import csv
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from m2det_jax.data.classes import class_remedy
from m2det_jax.data.errors import Findings
from m2det_jax.data.files import open_lines, parse_number, resolve_path, shortest
from m2det_jax.data.index import DetectionIndex
from m2det_jax.data.places import Places
from m2det_jax.data.rows import Rows

_COORDINATES = ("x1", "y1", "x2", "y2")
_FIELDS = ("path", *_COORDINATES, "class_name")
_ROW_FORM = "a row is path,x1,y1,x2,y2,class_name, or path,,,,, for an image without objects"


def read_records(path: Path, findings: Findings) -> Iterator[tuple[int, list[str]]]:
    """Yields (line, fields) of every record that is not blank; line is where the record begins.

    A byte order mark and any kind of line end are accepted; a file that cannot be read as UTF-8
    CSV text ends with a finding.
    """
    with open_lines(path, findings) as lines:
        # strict: an unclosed quote would otherwise swallow the rest of the file as one field.
        reader = csv.reader(lines, strict=True)
        line = 1
        try:
            for fields in reader:
                if len(fields) > 1 or (fields and fields[0].strip()):
                    yield line, fields
                line = reader.line_num + 1
        except csv.Error as error:
            remedy = 'nothing is read from here on; look for an unclosed or stray "'
            findings.add(path, line, "not valid CSV", remedy, kind="not-text", value=str(error))


class RowReader:
    """The reader of one annotations file.

    Args:
        path: the file.
        class_names: the classes in the order of their ids; (): unknown, which has its finding.
        findings: takes what is wrong.
    """

    def __init__(self, path: Path, class_names: tuple[str, ...], findings: Findings) -> None:
        self.path = path
        self.folder = os.path.dirname(os.path.abspath(path))
        self._image_paths: list[str] = []  # absolute, in order of appearance
        self._image_lines: list[int] = []  # of the first row of each image
        self._empty_lines: dict[int, int] = {}  # {image: line} of the rows `path,,,,,`
        self._findings = findings
        self._class_names = class_names
        self._class_ids = {name: i for i, name in enumerate(class_names)}
        self._by_text: dict[str, int] = {}  # image of a path as written
        self._by_path: dict[str, int] = {}  # image of an absolute path
        self._class_remedy: dict[str, str] = {}

    def read(self) -> Rows:
        """Reads the whole file; images and boxes are in its order."""
        boxes, images = array.array("d"), array.array("q")
        labels, lines = array.array("q"), array.array("q")
        first_line, before = 0, len(self._findings)
        for line, fields in read_records(self.path, self._findings):
            first_line = first_line or line
            box = _parse_box(fields)
            if box is None:
                self._read_other(fields, line, is_first=line == first_line)
                continue
            label = self._class_ids.get(fields[5])
            if label is None:
                self._unknown_class(fields[5], line)
                label = -1
            boxes.extend(box)
            images.append(self._image(fields[0], line))
            labels.append(label)
            lines.append(line)
        if not first_line and len(self._findings) == before:
            self._findings.add(self.path, 0, "no rows", _ROW_FORM, kind="no-rows")
        rows = Rows(
            class_names=self._class_names,
            image_paths=self._image_paths,
            places=Places(
                files=(str(self.path),),
                image_files=np.zeros(len(self._image_paths), np.int64),
                image_lines=np.array(self._image_lines, np.int64),
                box_lines=np.array(lines, np.int64),
            ),
            numbers=np.array(boxes, np.float64).reshape(-1, 4),
            style="xyxy",
            images=np.array(images, np.int64),
            labels=np.array(labels, np.int64),
            missing_remedy=f"relative paths start from the folder of the CSV file, {self.folder}",
        )
        self._check_empty_images(rows)
        return rows

    def _image(self, text: str, line: int) -> int:
        """Returns the number of the image that a path, as written, stands for."""
        image = self._by_text.get(text)
        if image is None:
            path = resolve_path(self.folder, text)
            image = self._by_path.setdefault(path, len(self._image_paths))
            self._by_text[text] = image
            if image == len(self._image_paths):
                self._image_paths.append(path)
                self._image_lines.append(line)
        return image

    def _read_other(self, fields: list[str], line: int, *, is_first: bool) -> None:
        """Takes a row that is no box: an image without objects, or a finding."""
        stripped, text = [field.strip() for field in fields], ",".join(fields)
        add = self._findings.add
        if is_first and _looks_like_header(stripped):
            what, remedy = "a header row", f"remove it: {_ROW_FORM}"
            add(self.path, line, what, remedy, kind="header-row", value=text)
        elif len(fields) != len(_FIELDS):
            what, remedy = f"{len(fields)} column(s) where 6 are expected", _column_remedy(fields)
            add(self.path, line, what, remedy, kind="bad-row", value=_shorten(text))
        elif stripped[0] and not any(stripped[1:]):
            self._empty_image(fields[0], line)
        elif not all(stripped):
            empty = ", ".join(n for n, field in zip(_FIELDS, stripped, strict=True) if not field)
            add(self.path, line, f"{empty} empty", _ROW_FORM, kind="bad-row", value=text)
        else:
            for name, field in zip(_COORDINATES, fields[1:5], strict=True):
                if parse_number(field) is None:
                    what = f"{name} is not a number"
                    add(self.path, line, what, "give pixels", kind="bad-row", value=field)

    def _empty_image(self, text: str, line: int) -> None:
        image = self._image(text, line)
        if image in self._empty_lines:
            what = f"repeats line {self._empty_lines[image]}"
            self._findings.add(
                self.path,
                line,
                what,
                "remove one of them",
                kind="duplicate",
                value=f"{text},,,,,",
                image=self._image_paths[image],
            )
        self._empty_lines.setdefault(image, line)

    def _unknown_class(self, name: str, line: int) -> None:
        if not self._class_ids:
            return  # the class file could not be read, which has its own finding
        if name not in self._class_remedy:
            self._class_remedy[name] = class_remedy(name, self._class_names)
        remedy = self._class_remedy[name]
        self._findings.add(
            self.path, line, "unknown class", remedy, kind="unknown-class", value=name
        )

    def _check_empty_images(self, rows: Rows) -> None:
        if not self._empty_lines:
            return
        images, first_rows = np.unique(rows.images, return_index=True)
        with_boxes = dict(
            zip(images.tolist(), rows.places.box_lines[first_rows].tolist(), strict=True)
        )
        for image, line in self._empty_lines.items():
            if image in with_boxes:
                self._findings.add(
                    self.path,
                    line,
                    f"said to have no objects, but line {with_boxes[image]} gives it a box",
                    "remove this row or the boxes",
                    kind="contradiction",
                    value=rows.image_paths[image],
                    image=rows.image_paths[image],
                )


def _parse_box(fields: list[str]) -> tuple[float, float, float, float] | None:
    """Returns the coordinates of a row that is complete and numeric, else None."""
    try:
        path, x1, y1, x2, y2, name = fields
        box = float(x1), float(y1), float(x2), float(y2)
    except ValueError:
        return None
    if not path.strip() or not name.strip() or "_" in x1 + y1 + x2 + y2:
        return None
    return box


def _looks_like_header(fields: list[str]) -> bool:
    """Returns whether a first row has words for coordinates, and no number anywhere."""
    words = fields[1:5]
    return len(fields) > 1 and all(words) and all(parse_number(f) is None for f in fields)


def _column_remedy(fields: list[str]) -> str:
    for separator, name in ((";", "semicolons"), ("\t", "tabs")):
        if len(fields) == 1 and separator in fields[0]:
            return f"separate the fields with commas, not {name}"
    if len(fields) > len(_FIELDS):
        return f'{_ROW_FORM}; put a name that has a comma between "'
    return _ROW_FORM


def _shorten(text: str) -> str:
    return text if len(text) <= 100 else text[:97] + "..."


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
                writer.writerow([name, *map(shortest, box), index.class_names[label]])
            if not len(labels):
                writer.writerow([name, "", "", "", "", ""])
