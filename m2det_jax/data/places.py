"""Places: file, line and item where images and boxes are annotated, for messages."""

import dataclasses
from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np

_FILLED: Any = None  # of an attribute that __post_init__ fills


class Place(TypedDict, total=False):
    """Where something is annotated; {}: unknown. Arguments of `Findings.add`."""

    file: str
    line: int  # counted from 1; 0: the file as a whole
    item: str  # such as "annotations[17]"; "": the line says it


@dataclasses.dataclass(frozen=True, eq=False)
class Places:
    """The places of N images and K boxes, in the order of an index or of rows.

    Attributes:
        files: annotation files.
        image_files: int64 [N]; image i is annotated in files[image_files[i]].
        image_lines: int64 [N], the line that names the image; 0: the file as a whole.
        box_lines: int64 [K], the line of a box.
        items: for each file None, or, where lines say little, the names of an image and of a box,
            such as ("images[{}]", "annotations[{}]"). Given as None: None for each file.
        image_items, box_items: int64 [N] and [K], the numbers in these names. Given as None: 0.
    """

    files: tuple[str, ...]
    image_files: np.ndarray
    image_lines: np.ndarray
    box_lines: np.ndarray
    items: tuple[tuple[str, str] | None, ...] = _FILLED
    image_items: np.ndarray = _FILLED
    box_items: np.ndarray = _FILLED

    def __post_init__(self) -> None:
        if self.items is None:
            object.__setattr__(self, "items", (None,) * len(self.files))
        for name, like in (("image_items", self.image_lines), ("box_items", self.box_lines)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, np.zeros_like(like))

    def of_image(self, image: int) -> Place:
        """Returns file, line and item of an image."""
        return self._named(image, self.image_lines[image], 0, self.image_items[image])

    def of_box(self, image: int, row: int) -> Place:
        """Returns file, line and item of a box of an image."""
        return self._named(image, self.box_lines[row], 1, self.box_items[row])

    def _named(self, image: int, line: int, what: int, item: int) -> Place:
        file = int(self.image_files[image])
        items = self.items[file]
        named = items[what].format(item) if items else ""
        return {"file": self.files[file], "line": int(line), "item": named}

    def subset(self, images: np.ndarray, rows: np.ndarray) -> "Places":
        """Returns the places of some images and boxes, in the order given."""
        return dataclasses.replace(
            self,
            image_files=self.image_files[images],
            image_lines=self.image_lines[images],
            box_lines=self.box_lines[rows],
            image_items=self.image_items[images],
            box_items=self.box_items[rows],
        )

    @classmethod
    def joined(cls, parts: Sequence["Places"]) -> "Places":
        """Returns the places of data sets put one after the other."""
        starts = np.cumsum([0, *(len(part.files) for part in parts)])
        return cls(
            files=tuple(file for part in parts for file in part.files),
            image_files=np.concatenate(
                [part.image_files + start for part, start in zip(parts, starts, strict=False)]
            ),
            image_lines=np.concatenate([part.image_lines for part in parts]),
            box_lines=np.concatenate([part.box_lines for part in parts]),
            items=tuple(items for part in parts for items in part.items),
            image_items=np.concatenate([part.image_items for part in parts]),
            box_items=np.concatenate([part.box_items for part in parts]),
        )
