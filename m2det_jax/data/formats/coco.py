"""COCO's JSON, read and written: images, categories (ids may have gaps) and annotations.

    ROOT/annotations/instances_SPLIT.json    or SPLIT is itself a file, such as train/labels.json
    ROOT/SPLIT/*.jpg     or in ROOT/images/SPLIT, ROOT/images, the JSON's folder, or ROOT itself

Segmentations and keypoints are not read. A bbox is x, y, width, height in pixels from 0; with
iscrowd 1 it is a region.
"""

import array
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from m2det_jax.data.errors import Findings
from m2det_jax.data.files import read_text, resolve_path
from m2det_jax.data.formats.parsers import ParseError, stream_lists
from m2det_jax.data.index import DetectionIndex
from m2det_jax.data.places import Places
from m2det_jax.data.rows import Rows

_LISTS = ("images", "annotations", "categories")
_NUMBERS = {int, float}
_HALVES = re.compile("[\ud800-\udfff]")  # of characters: JSON may hold them, nothing writes them


def annotation_file(root: Path, split: str) -> Path:
    """Returns the JSON file that a split stands for."""
    if split.endswith(".json"):
        return root / split
    return root / "annotations" / f"instances_{split}.json"


def read_coco(root: Path, split: str, findings: Findings) -> Rows | None:
    """Reads one annotation file; None where it cannot be read at all."""
    path = annotation_file(root, split)
    text = read_text(path, findings)
    if text is None:
        return None
    reader = _Reader(path, findings)
    try:
        for name, position, line, value in stream_lists(text, _LISTS):
            reader.take(name, position, line, value)
    except ParseError as error:
        remedy = "nothing is read from here on; correct the file"
        findings.add(path, error.line, error.what, remedy, kind="not-text", value=error.value)
        return None
    folders = [root / split, root / "images" / split, root / "images", path.parent, root]
    return reader.rows([folder.absolute() for folder in folders if folder.suffix != ".json"])


class _Reader:
    """The entries of the three lists, in whatever order the file has them."""

    def __init__(self, path: Path, findings: Findings) -> None:
        self._path, self._findings = path, findings
        self._lists: set[str] = set()
        self._images: dict[int | str, tuple[str, int, int, int, int]] = {}
        self._categories: dict[int, str] = {}
        self._names: set[str] = set()
        self._numbers, self._areas = array.array("d"), array.array("d")
        self._wanted: dict[int | str, int] = {}  # image_id of an annotation: its number
        self._image_numbers, self._category_ids = array.array("q"), array.array("q")
        self._crowds, self._ids = array.array("b"), array.array("q")
        self._lines, self._positions = array.array("q"), array.array("q")

    def take(self, name: str, position: int, line: int, value: object) -> None:
        """Takes one entry of a list; position -1: the list is empty."""
        self._lists.add(name)
        if position < 0:
            return
        if not isinstance(value, dict):
            self._note(name, position, line, "the entry is not an object", str(value)[:50])
        elif name == "annotations":
            self._annotation(value, position, line)
        elif name == "images":
            self._image(value, position, line)
        else:
            self._category(value, position, line)

    def _note(
        self, name: str, position: int, line: int, what: str, value: str, kind: str = "bad-row"
    ) -> None:
        self._findings.add(
            self._path,
            line,
            what,
            "correct or remove the entry",
            kind=kind,
            value=value,
            item=f"{name}[{position}]",
        )

    def _annotation(self, entry: dict[str, Any], position: int, line: int) -> None:
        box: Any = entry.get("bbox")
        image: Any = entry.get("image_id")
        category: Any = entry.get("category_id")
        crowd, area, number = entry.get("iscrowd", 0), entry.get("area"), entry.get("id", -1)
        problem = None
        if type(box) is not list or len(box) != 4 or not set(map(type, box)) <= _NUMBERS:
            problem = "bbox is not x, y, width, height", box
        elif type(image) not in (int, str):
            problem = "image_id is not a number or a text", image
        elif not _is_id(category):
            problem = "category_id is not a whole number", category
        elif crowd not in (0, 1):
            problem = "iscrowd is not 0 or 1", crowd
        elif area is not None and not (type(area) in _NUMBERS and area >= 0):  # NaN is neither
            problem = "area is not a number from 0", area
        elif not _is_id(number):
            problem = "id is not a whole number", number
        if problem:
            self._note("annotations", position, line, problem[0], _shown(problem[1]))
            return
        try:
            self._numbers.extend(box)
        except OverflowError:  # a whole number beyond any float
            del self._numbers[4 * len(self._lines) :]
            self._numbers.extend([float("inf")] * 4)
        self._areas.append(float("nan") if area is None or not 0 < area < 1e30 else area)
        self._image_numbers.append(self._wanted.setdefault(image, len(self._wanted)))
        self._category_ids.append(category)
        self._crowds.append(crowd)
        self._ids.append(number)
        self._lines.append(line)
        self._positions.append(position)

    def _image(self, entry: dict[str, Any], position: int, line: int) -> None:
        number: Any = entry.get("id")
        name: Any = entry.get("file_name")
        sides: list[Any] = [entry.get(side) for side in ("width", "height")]
        sides = [0 if side is None else side for side in sides]
        if type(number) not in (int, str):
            self._note("images", position, line, "id is not a number or a text", _shown(number))
        elif type(name) is not str or not name.strip():
            self._note("images", position, line, "file_name is not a path", _shown(name))
        elif not all(_is_id(side) and side >= 0 for side in sides):
            self._note("images", position, line, "width or height is no size", _shown(sides))
        elif number in self._images:
            what = f"id repeats images[{self._images[number][4]}]"
            self._note("images", position, line, what, _shown(number), "bad-id")
        else:
            self._images[number] = (name, sides[0], sides[1], line, position)

    def _category(self, entry: dict[str, Any], position: int, line: int) -> None:
        number: Any = entry.get("id")
        name: Any = entry.get("name")
        note = self._note
        if not _is_id(number):
            note("categories", position, line, "id is not a whole number", _shown(number))
        elif type(name) is not str or not name.strip() or _HALVES.search(name):
            note("categories", position, line, "the name is not a text", _shown(name), "bad-class")
        elif number in self._categories:
            note("categories", position, line, "id is there twice", str(number), "bad-class")
        elif name in self._names:
            note("categories", position, line, "the name is there twice", name, "bad-class")
        else:
            self._categories[number] = name
            self._names.add(name)

    def rows(self, folders: list[Path]) -> Rows:
        """Returns what was read; images lie in the first of the folders that has the first one."""
        for name in _LISTS:
            empty = not {"images": self._images, "categories": self._categories}.get(name, True)
            if name not in self._lists or empty:
                what = f'no "{name}"'
                remedy = "a COCO file has the lists images, annotations and categories"
                self._findings.add(self._path, 0, what, remedy, kind="no-rows")
        folder = _folder_of(folders, [image[0] for image in self._images.values()])
        keep, images = self._known_images()
        class_ids = tuple(sorted(self._categories))
        labels = self._labels(class_ids, keep)
        self._check_ids(keep)
        described = list(self._images.values())
        searched = ", ".join(map(str, dict.fromkeys(folders)))
        rows = Rows(
            class_names=tuple(self._categories[number] for number in class_ids),
            image_paths=[resolve_path(str(folder), image[0]) for image in described],
            places=Places(
                files=(str(self._path),),
                image_files=np.zeros(len(described), np.int64),
                image_lines=np.array([image[3] for image in described], np.int64),
                box_lines=np.array(self._lines, np.int64)[keep],
                items=(("images[{}]", "annotations[{}]"),),
                image_items=np.array([image[4] for image in described], np.int64),
                box_items=np.array(self._positions, np.int64)[keep],
            ),
            numbers=np.array(self._numbers, np.float64).reshape(-1, 4)[keep],
            style="xywh",
            images=images,
            labels=labels,
            regions=np.array(self._crowds, np.bool_)[keep],
            areas=np.array(self._areas, np.float64)[keep],
            sizes=np.array([image[1:3] for image in described], np.int64).reshape(-1, 2),
            class_ids=class_ids,
            image_ids=tuple(self._images),
            missing_remedy=f"images are looked for in the first of these that has any: {searched}",
        )
        self._check_paths(rows)
        return rows

    def _known_images(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns (the annotations of known images, the positions of their images)."""
        positions = {number: i for i, number in enumerate(self._images)}
        found = np.array([positions.get(i, -1) for i in self._wanted], np.int64)
        images = found[np.array(self._image_numbers, np.int64)]
        names = list(self._wanted)
        for row in np.flatnonzero(images < 0):
            what, value = "image_id names no image", _shown(names[self._image_numbers[row]])
            self._note("annotations", self._positions[row], self._lines[row], what, value, "bad-id")
        keep = np.flatnonzero(images >= 0)
        return keep, images[keep]

    def _labels(self, class_ids: tuple[int, ...], keep: np.ndarray) -> np.ndarray:
        known, wanted = np.array(class_ids, np.int64), np.array(self._category_ids, np.int64)[keep]
        if not len(known):
            return np.full(len(wanted), -1)
        labels = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
        labels = np.where(known[labels] == wanted, labels, -1)
        for row in np.flatnonzero(labels < 0):
            place = self._positions[keep[row]], self._lines[keep[row]]
            what, value = "category_id names no category", str(wanted[row])
            self._note("annotations", *place, what, value, "unknown-class")
        return labels

    def _check_ids(self, keep: np.ndarray) -> None:
        ids = np.array(self._ids, np.int64)[keep]
        order = np.argsort(ids, kind="stable")
        same = (ids[order][1:] == ids[order][:-1]) & (ids[order][1:] >= 0)
        for position in np.flatnonzero(same) + 1:
            row, before = keep[order[position]], keep[order[position - 1]]
            what = f"id repeats annotations[{self._positions[before]}]"
            place = self._positions[row], self._lines[row]
            self._note("annotations", *place, what, str(ids[order[position]]), "bad-id")

    def _check_paths(self, rows: Rows) -> None:
        seen: dict[str, int] = {}
        items, lines = rows.places.image_items, rows.places.image_lines
        for i, path in enumerate(rows.image_paths):
            if seen.setdefault(path, i) != i:
                what = f"file_name repeats images[{items[seen[path]]}]"
                place = int(items[i]), int(lines[i])
                self._note("images", *place, what, path, "bad-id")


def _is_id(value: object) -> bool:
    return type(value) is int and -(2**62) < value < 2**62


def _shown(value: object) -> str:
    return "nothing" if value is None else str(value)[:100]


def _folder_of(folders: list[Path], names: list[str]) -> Path:
    for folder in folders:
        if any(os.path.isfile(resolve_path(str(folder), name)) for name in names[:1]):
            return folder
    return folders[0]


def coco_ids(ids: tuple[int | str | None, ...], count: int) -> list[int]:
    """Returns the whole numbers that COCO needs: the ids themselves if they are such, else 1..N."""
    whole = [i for i in ids if isinstance(i, int)]
    return whole if len(whole) == len(ids) == count else list(range(1, count + 1))


def write_coco(index: DetectionIndex, root: Path, split: str, stems: list[str]) -> None:
    """Writes ROOT/annotations/instances_SPLIT.json; it names images where they are."""
    folder = root / split
    image_ids = coco_ids(index.image_ids, index.num_images)
    class_ids = coco_ids(index.class_ids, len(index.class_names))
    annotations = []
    for i, image_id in enumerate(image_ids):
        rows = slice(index.offsets[i], index.offsets[i + 1])
        for box, label, area in zip(
            index.boxes[rows], index.labels[rows], index.areas[rows].tolist(), strict=True
        ):
            annotations.append(_annotation(image_id, class_ids[label], box, area, 0))
        for box, label in zip(*index.regions_of(i), strict=True):
            # A region of every class is a crowd of each.
            for k in range(len(class_ids)) if label < 0 else [label]:
                area = float(np.prod(box[2:] - box[:2]))
                annotations.append(_annotation(image_id, class_ids[k], box, area, 1))
    for k, annotation in enumerate(annotations, 1):
        annotation["id"] = k
    images = [
        {"id": image_id, "file_name": _name_in(folder, path), "width": w, "height": h}
        for image_id, path, (w, h) in zip(
            image_ids, index.image_paths, index.sizes.tolist(), strict=True
        )
    ]
    categories = [
        {"id": k, "name": name} for k, name in zip(class_ids, index.class_names, strict=True)
    ]
    target = root / "annotations" / f"instances_{split}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    content = {"images": images, "annotations": annotations, "categories": categories}
    target.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


def _annotation(
    image_id: int, class_id: int, box: np.ndarray, area: float, crowd: int
) -> dict[str, Any]:
    x1, y1, x2, y2 = box.astype(np.float64).tolist()
    bbox = [int(v) if v == int(v) else v for v in (x1, y1, x2 - x1, y2 - y1)]
    return {
        "id": 0,
        "image_id": image_id,
        "category_id": class_id,
        "bbox": bbox,
        "area": area,
        "iscrowd": crowd,
    }


def _name_in(folder: Path, path: str) -> str:
    inside = Path(path).is_relative_to(folder)
    return Path(path).relative_to(folder).as_posix() if inside else path
