"""YOLO's text files and data.yaml, read and written: `class cx cy width height` a line.

    ROOT/data.yaml (or ROOT is the .yaml file itself), with the keys
      path          folder that the others start from, relative to the file; default: its folder
                    (a leading ../ that leads nowhere is left away, for Roboflow's exports)
      train, val..  a folder of images (at any depth), a .txt list of images, or a list of these
      names         class names, a list or {id: name}

There is one text file an image: the labels of a/images/b.jpg are in a/labels/b.txt (the last folder
called images counts), or beside the image where no folder is called so. All numbers are shares of
the image's sides. An image without a label file, or with an empty one, has no objects. Lines with a
polygon, as `class x1 y1 x2 y2 x3 y3 ...`, give the box around it.
"""

import itertools
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from m2det_jax.data.errors import Findings
from m2det_jax.data.files import SMALL, parse_number, read_text, resolve_path
from m2det_jax.data.formats.gather import Gather, read_ids
from m2det_jax.data.formats.parsers import ParseError, parse_yaml
from m2det_jax.data.images import IMAGE_SUFFIXES
from m2det_jax.data.index import DetectionIndex
from m2det_jax.data.rows import Rows

_NAMES = ("cx", "cy", "width", "height")
_FORM = "a line is class cx cy width height, the last four as shares of the image's sides"


def yaml_file(root: Path) -> Path:
    """Returns the file that describes a data set: root itself, or data.yaml in it."""
    return root if root.suffix in (".yaml", ".yml") else root / "data.yaml"


def read_yolo(root: Path, split: str, findings: Findings) -> Rows | None:
    """Reads a split; None where there is nothing to read."""
    path = yaml_file(root)
    text = read_text(path, findings, limit=SMALL // 16)
    if text is None:
        return None
    try:
        data = parse_yaml(text)
    except ParseError as error:
        remedy = "correct the file"
        findings.add(path, error.line, "not usable YAML", remedy, kind="not-text", value=error.what)
        return None
    names = _class_names(path, data, findings)
    images = _images(path, data, split, findings)
    if names is None or not images:
        return None
    gather, missing = Gather(names), []
    for image in images:
        label_file = label_path(image)
        number = gather.add_image(image, label_file, image_id=image)
        if not os.path.lexists(label_file):
            missing.append(label_file)
        elif (lines := read_text(Path(label_file), findings, limit=SMALL)) is not None:
            for line, row in enumerate(lines.splitlines(), 1):
                if row.strip():
                    _read_line(row, label_file, line, number, len(names), gather, findings)
    _note_missing(path, missing, len(images), findings)
    rows = gather.rows(style="cxcywh_share", names=_NAMES, missing_remedy="check the path")
    rows.image_ids = ()
    return rows


def label_path(image: str) -> str:
    """Returns the file with the labels of an image."""
    head, separator, tail = image.rpartition(f"{os.sep}images{os.sep}")
    moved = f"{head}{os.sep}labels{os.sep}{tail}" if separator else image
    return os.path.splitext(moved)[0] + ".txt"


def _class_names(path: Path, data: dict[Any, Any], findings: Findings) -> tuple[str, ...] | None:
    names, remedy = data.get("names"), "give names: [a, b] or names: {0: a, 1: b}"
    if isinstance(names, dict):
        # NaN and text sort before no number, so only whole numbers are compared.
        whole = all(type(key) is int for key in names)
        if not whole or sorted(names) != list(range(len(names))):
            what = "the ids of names are not 0, 1, 2, ..."
            value = ", ".join(str(key) for key in names)[:100]
            findings.add(path, 0, what, remedy, kind="bad-class", value=value)
            return None
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not names:
        findings.add(path, 0, "no names", remedy, kind="bad-class", value=str(names)[:100])
        return None
    taken: set[str] = set()
    for i, name in enumerate(names):
        what = ""
        if not isinstance(name, str) or not name.strip():
            what = f'names[{i}] is not a text, put it between "'
        elif name in taken:
            what = f"names[{i}] is there twice"
        if what:
            findings.add(path, 0, what, remedy, kind="bad-class", value=str(name)[:100])
            return None
        taken.add(name)
    if "nc" in data and data["nc"] != len(names):
        what = f"nc differs from the number of names, {len(names)}"
        findings.add(path, 0, what, "correct it", kind="bad-class", value=str(data["nc"])[:100])
        return None
    return tuple(names)


def _images(path: Path, data: dict[Any, Any], split: str, findings: Findings) -> list[str]:
    """Returns the absolute paths of the images of a split."""
    given, base = data.get(split), data.get("path") or ""
    entries: list[Any] = given if isinstance(given, list) else [given]
    if not entries or not all(isinstance(entry, str) and entry for entry in entries):
        keys = ", ".join(str(key) for key in data if key not in ("names", "nc", "path"))
        what = f"{split} names no folder or list of images"
        findings.add(
            path,
            0,
            what,
            f"the file has {keys or 'nothing'}",
            kind="no-rows",
            value=str(given)[:100],
        )
        return []
    if not isinstance(base, str):
        findings.add(
            path, 0, "path is not a text", "correct it", kind="bad-row", value=str(base)[:100]
        )
        return []
    found: dict[str, None] = {}
    for entry in entries:
        place = Path(os.path.abspath(path.parent / base / entry))
        if not place.exists() and entry.startswith("../"):
            # As exported by Roboflow: relative to a folder beside the file, as it were.
            place = Path(os.path.abspath(path.parent / base / entry[3:]))
        if place.is_dir():
            # Ordered by name, as a listing; directory order differs between machines.
            inside = sorted(p for p in place.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
            found |= dict.fromkeys(map(str, inside))
        elif place.suffix == ".txt":
            for _, name in read_ids(place, findings):
                folder = place.parent if name.startswith("./") else path.parent / base
                found[resolve_path(os.path.abspath(folder), name)] = None
        else:
            remedy = "path and split are relative to the folder of the YAML file"
            findings.add(place, 0, "no such folder", remedy, kind="no-file")
            return []
    if not found:
        findings.add(path, 0, f"{split} has no images", "check the path", kind="no-rows",
                     value=str(given)[:100])  # fmt: skip
    return list(found)


def _read_line(
    row: str,
    path: str,
    line: int,
    image: int,
    num_classes: int,
    gather: Gather,
    findings: Findings,
) -> None:
    fields = row.split()
    is_polygon = len(fields) >= 7 and len(fields) % 2 == 1
    if len(fields) != 5 and not is_polygon:
        what = f"{len(fields)} column(s) where 5 are expected"
        findings.add(path, line, what, _FORM, kind="bad-row", value=row.strip()[:100])
        return
    numbers: list[float] = []
    names = itertools.cycle(("x", "y")) if is_polygon else _NAMES
    for name, field in zip(names, fields[1:], strict=False):
        number = parse_number(field)
        # A share above 10 is no slip of an edge: the numbers are pixels.
        if number is None or abs(number) > 10:
            what = f"{name} is not a share of the image's side"
            findings.add(path, line, what, _FORM, kind="bad-row", value=field)
            return
        numbers.append(number)
    if is_polygon:
        numbers = _around(numbers)
        what, remedy = "a polygon, taken for the box around it", "nothing needs to be done"
        findings.add(path, line, what, remedy, kind="polygon", effect="note")
    label = -1
    if not (fields[0].isascii() and fields[0].isdecimal()) or len(fields[0]) > 9:
        what = "the class is not a whole number from 0"
        findings.add(path, line, what, _FORM, kind="bad-row", value=fields[0])
    elif int(fields[0]) >= num_classes:
        remedy = f"the names have ids 0 to {num_classes - 1}"
        findings.add(path, line, "unknown class", remedy, kind="unknown-class", value=fields[0])
    else:
        label = int(fields[0])
    gather.add_box(image, numbers, label, line)


def _around(polygon: list[float]) -> list[float]:
    """Returns cx, cy, width, height of the box around x1, y1, x2, y2, ..."""
    # min and max pass over a NaN that is not the first.
    sides = [[math.nan] if any(map(math.isnan, s)) else s for s in (polygon[::2], polygon[1::2])]
    centre = [(max(side) + min(side)) / 2 for side in sides]
    return centre + [max(side) - min(side) for side in sides]


def _note_missing(path: Path, missing: list[str], count: int, findings: Findings) -> None:
    if missing:
        all_missing = len(missing) == count
        findings.add(
            path,
            0,
            f"{len(missing)} of {count} images have no label file"
            + ("" if all_missing else ": they are taken for images without objects"),
            "labels of images/a.jpg are in labels/a.txt, or beside the image",
            kind="no-rows" if all_missing else "no-label",
            value=f"the first is {missing[0]}",
            effect="refuse" if all_missing else "note",
        )


def write_yolo(index: DetectionIndex, root: Path, split: str, stems: list[str]) -> None:
    """Writes labels/SPLIT/ID.txt and adds the split to data.yaml."""
    folder = root / "labels" / split
    folder.mkdir(parents=True, exist_ok=True)
    for i, stem in enumerate(stems):
        boxes, labels = index.objects(i)
        corners = boxes.astype(np.float64).reshape(-1, 2, 2) / index.sizes[i]  # [n, corner, xy]
        shares = np.concatenate([corners.mean(axis=1), corners[:, 1] - corners[:, 0]], axis=1)
        lines = [
            f"{label} {' '.join(f'{share:.10g}' for share in row)}\n"
            for label, row in zip(labels.tolist(), shares.tolist(), strict=True)
        ]
        (folder / f"{stem}.txt").write_text("".join(lines), encoding="utf-8")


def write_yolo_yaml(class_names: tuple[str, ...], root: Path, splits: list[str]) -> None:
    """Writes data.yaml for all splits."""
    content: dict[str, object] = {split: f"images/{split}" for split in splits}
    content |= {"nc": len(class_names), "names": dict(enumerate(class_names))}
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    (root / "data.yaml").write_text(text, encoding="utf-8")
