"""Open Images' CSV files, read and written: boxes as shares of the sides, machine names as classes.

    ROOT/*SPLIT-annotations-bbox.csv     header ImageID,...,LabelName,...,XMin,XMax,YMin,YMax,...
    ROOT/*class-descriptions*.csv        /m/01g317,Person
    ROOT/*hierarchy*.json                only for parent_label
    ROOT/SPLIT-images.csv                ImageID; optional: images without any box are named here
    ROOT/SPLIT/ID.jpg                    or ROOT/images/SPLIT/ID.jpg

Files may also lie in ROOT/annotations. Boxes with IsGroupOf 1 are regions; the classes are all of
the descriptions, or those under parent_label.
"""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from m2det_jax.data.classes import class_remedy
from m2det_jax.data.errors import Findings
from m2det_jax.data.files import SMALL, parse_number, read_text
from m2det_jax.data.formats.csv_boxes import read_records
from m2det_jax.data.formats.gather import Gather, images_by_stem
from m2det_jax.data.index import DetectionIndex
from m2det_jax.data.rows import Rows

_CORNERS = ("XMin", "YMin", "XMax", "YMax")
_COLUMNS = ("ImageID", "LabelName", *_CORNERS)


def read_openimages(
    root: Path, split: str, findings: Findings, *, parent_label: str = ""
) -> Rows | None:
    """Reads a split; None where a file that is needed is missing."""
    table = _one_file(root, f"*{split}-annotations-bbox.csv", findings)
    described = _one_file(root, "*class-descriptions*.csv", findings)
    if table is None or described is None:
        return None
    names = _read_names(described, findings)
    chosen = dict(names)
    if parent_label:
        tree = _one_file(root, "*hierarchy*.json", findings)
        below = _labels_below(tree, parent_label, names, findings) if tree else None
        if below is None:
            return None
        chosen = {mid: name for mid, name in names.items() if mid in below}
    if not chosen:
        return None
    reader = _Reader(root, split, names, chosen, findings)
    reader.read(table)
    reader.read_images(root / f"{split}-images.csv")
    if not reader.gather.num_images and not findings.count("refuse"):
        findings.add(table, 0, "no boxes and no images", "a row is a box", kind="no-rows")
    rows = reader.gather.rows(
        style="xyxy_share",
        names=_CORNERS,
        missing_remedy=f"images lie in {root / split} or {root / 'images' / split}",
    )
    rows.class_ids = tuple(chosen)
    return rows


def _one_file(root: Path, pattern: str, findings: Findings) -> Path | None:
    found = sorted({*root.glob(pattern), *(root / "annotations").glob(pattern)})
    if len(found) > 1:
        # What is offered for download beside the list that the boxes use.
        found = [path for path in found if "boxable" in path.name] or found
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} files are called {pattern}, one is needed"
    value = ", ".join(path.name for path in found)
    findings.add(root, 0, what, "see docs/data.md", kind="no-file", value=value)
    return None


def _read_names(path: Path, findings: Findings) -> dict[str, str]:
    """Returns {machine name: name}."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for line, fields in read_records(path, findings):
        problem = None
        if len(fields) != 2 or not all(field.strip() for field in fields):
            problem = "not machine name, name"
        elif fields == ["LabelName", "DisplayName"]:
            continue
        elif fields[0] in names:
            problem = "the machine name is there twice"
        elif fields[1] in taken:
            problem = "the name is there twice"
        if problem:
            value = ",".join(fields)[:100]
            findings.add(path, line, problem, "correct the row", kind="bad-class", value=value)
        else:
            names[fields[0]] = fields[1]
            taken.add(fields[1])
    if not names:
        findings.add(path, 0, "no classes", "a row is /m/01g317,Person", kind="no-rows")
    return names


def _labels_below(
    path: Path, parent: str, names: dict[str, str], findings: Findings
) -> set[str] | None:
    """Returns the machine names of a class of the hierarchy and of all under it."""
    text = read_text(path, findings, limit=SMALL)
    if text is None:
        return None
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        value = str(error)[:100]
        findings.add(path, 0, "not usable JSON", "correct it", kind="not-text", value=value)
        return None
    wanted = {mid for mid, name in names.items() if name == parent}
    below: set[str] = set()
    stack: list[tuple[Any, bool]] = [(tree, False)]
    while stack:
        node, inside = stack.pop()
        if not isinstance(node, dict):
            continue
        label = node.get("LabelName")
        inside = inside or (isinstance(label, str) and label in wanted)
        if inside and isinstance(label, str):
            below.add(label)
        children = [node.get(key) for key in ("Subcategory", "Part")]
        stack += [(c, inside) for part in children if isinstance(part, list) for c in part]
    if not below:
        remedy = class_remedy(parent, tuple(names.values()))
        findings.add(
            path, 0, "parent_label is not in it", remedy, kind="unknown-class", value=parent
        )
        return None
    return below


class _Reader:
    """The images and boxes of a split, as far as they are read."""

    def __init__(
        self,
        root: Path,
        split: str,
        names: dict[str, str],
        chosen: dict[str, str],
        findings: Findings,
    ) -> None:
        self.gather = Gather(tuple(chosen.values()))
        self._findings, self._names = findings, names
        self._labels = {mid: i for i, mid in enumerate(chosen)}
        self._folder = root / split
        if not self._folder.is_dir() and (root / "images" / split).is_dir():
            self._folder = root / "images" / split
        self._pictures = images_by_stem(self._folder)
        self._images: dict[str, int] = {}

    def read(self, path: Path) -> None:
        """Reads the table of the boxes."""
        columns = None
        for line, fields in read_records(path, self._findings):
            if columns is None:
                missing = [name for name in _COLUMNS if fields.count(name) != 1]
                if missing:
                    what = f"no header row with {', '.join(missing)}, each once"
                    value = ",".join(fields)[:100]
                    remedy = "the first row names the columns"
                    self._findings.add(path, line, what, remedy, kind="header-row", value=value)
                    return
                columns = {name: fields.index(name) for name in fields}
                width = len(fields)
            elif len(fields) != width:
                what = f"{len(fields)} column(s) where the header has {width}"
                value = ",".join(fields)[:100]
                self._findings.add(path, line, what, "correct the row", kind="bad-row", value=value)
            else:
                self._box({name: fields[i] for name, i in columns.items()}, path, line)
        if columns is None:
            self._findings.add(
                path, 0, "no rows", "the first row names the columns", kind="no-rows"
            )

    def read_images(self, path: Path) -> None:
        """Reads the list of images, where there is one."""
        if not path.is_file():
            return
        for line, fields in read_records(path, self._findings):
            if fields[0] != "ImageID":
                self._image(fields[0], path, line)

    def _image(self, name: str, path: Path, line: int) -> int:
        if name not in self._images:
            picture = self._pictures.get(name, self._folder / f"{name}.jpg")
            self._images[name] = self.gather.add_image(picture, path, line, image_id=name)
        return self._images[name]

    def _box(self, row: dict[str, str], path: Path, line: int) -> None:
        box: list[float] = []
        add = self._findings.add
        for name in _CORNERS:
            number = parse_number(row[name])
            if number is None or abs(number) > 10:
                what, remedy = f"{name} is not a share of the image's side", "give 0 to 1"
                add(path, line, what, remedy, kind="bad-row", value=row[name])
                return
            box.append(number)
        group = row.get("IsGroupOf", "0")
        if not row["ImageID"].strip() or group not in ("0", "1", "-1"):
            what = "IsGroupOf is not 0, 1 or -1" if row["ImageID"].strip() else "ImageID is empty"
            add(path, line, what, "correct the row", kind="bad-row", value=group)
            return
        image = self._image(row["ImageID"], path, line)
        label = self._labels.get(row["LabelName"])
        if label is None:
            if row["LabelName"] in self._names:
                return  # not under parent_label
            remedy = "add it to the class descriptions"
            add(path, line, "unknown class", remedy, kind="unknown-class", value=row["LabelName"])
            label = -1
        self.gather.add_box(image, box, label, line, region=group == "1")


def write_openimages(index: DetectionIndex, root: Path, split: str, stems: list[str]) -> None:
    """Writes the table of the boxes, the list of the images and the names of the classes."""
    mids = index.class_ids
    if not all(isinstance(mid, str) for mid in mids) or not mids:
        mids = tuple(f"/x/{i}" for i in range(len(index.class_names)))
    with open(root / "class-descriptions.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(zip(mids, index.class_names, strict=True))
    with open(root / f"{split}-images.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([["ImageID"], *([s] for s in stems)])
    header = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,"
    header += "IsGroupOf,IsDepiction,IsInside"
    with open(root / f"{split}-annotations-bbox.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header.split(","))
        for i, stem in enumerate(stems):
            objects = [(*pair, 0) for pair in zip(*index.objects(i), strict=True)]
            groups = [(*pair, 1) for pair in zip(*index.regions_of(i), strict=True)]
            for box, label, group in objects + groups:
                shares = box.astype(np.float64) / np.tile(index.sizes[i], 2)
                x1, y1, x2, y2 = (f"{share:.10g}" for share in shares)
                for k in range(len(mids)) if label < 0 else [label]:
                    flags = [-1, -1, group, -1, -1]
                    writer.writerow([stem, "xclick", mids[k], 1, x1, x2, y1, y2, *flags])
