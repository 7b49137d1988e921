"""Results: the detections of one picture, in its pixels."""

import dataclasses
import io
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, overload

import numpy as np
from PIL import Image

from m2det_jax.drawing.boxes import draw_boxes
from m2det_jax.errors import InputError
from m2det_jax.inference.pictures import Picture
from m2det_jax.metrics.detections import xywh

_NOTEBOOK_SIDE = 1024  # pixels of a picture in a notebook, at most
_SHOWN = 10  # detections that repr names


class Detection(NamedTuple):
    """A detected object: box float32 [4] xyxy, score 0..1, label (class id) and its name."""

    box: np.ndarray
    score: float
    label: int
    name: str


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """The n detections of one picture, the surest first.

    `len(result)` is n. `result[3]` and iteration give `Detection`s; a slice, a mask or an array of
    positions gives a Result: `result[result.scores > 0.7]`, `result[result.names == "cat"]`.

    Attributes:
        boxes: float32 [n, 4], xyxy in pixels of the upright picture, x2 and y2 exclusive.
        scores: float32 [n], 0..1.
        labels: int32 [n], class ids from 0.
        class_names: name of each class id.
        class_ids: category id of each class id in the data set of the training; (): it has none.
        picture: where they were detected. It is not kept in memory: a file is read again, and an
            array or a PIL image is the one that was given.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    picture: Picture
    class_ids: tuple[int | str, ...] = ()

    @property
    def names(self) -> np.ndarray:
        """Class name of each detection, str [n]."""
        return np.array([self.class_names[label] for label in self.labels], np.str_)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the upright picture, pixels."""
        width, height = self.picture.size
        return height, width

    @property
    def source(self) -> str:
        """Path, URL or file name of the picture; "": it has none."""
        return self.picture.name

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        return map(self._detection, range(len(self)))

    @overload
    def __getitem__(self, key: int | np.integer) -> Detection: ...

    @overload
    def __getitem__(self, key: slice | Sequence | np.ndarray) -> "Result": ...

    def __getitem__(
        self, key: int | np.integer | slice | Sequence | np.ndarray
    ) -> "Detection | Result":
        if isinstance(key, int | np.integer) and not isinstance(key, bool):
            return self._detection(int(key))
        if not isinstance(key, slice):
            key = np.asarray(key)
            if key.ndim != 1 or key.dtype.kind not in "biu" and key.size:
                raise TypeError(
                    "a number, a slice, a mask or an array of positions expected, got "
                    f"{key.dtype} {key.shape}"
                )
            key = key if key.size else key.astype(np.intp)
        return dataclasses.replace(
            self, boxes=self.boxes[key], scores=self.scores[key], labels=self.labels[key]
        )

    def _detection(self, i: int) -> Detection:
        label = int(self.labels[i])
        return Detection(self.boxes[i], float(self.scores[i]), label, self.class_names[label])

    def draw(self) -> Image.Image:
        """Returns the picture, RGB, with the boxes, class names and scores.

        Raises:
            InputError: if the file cannot be read any more.
        """
        picture = draw_boxes(
            self.picture.load(), self.boxes, self.labels, self.class_names, self.scores
        )
        picture.info = {}  # an orientation in it would turn the upright picture again
        return picture

    def to_supervision(self) -> Any:
        """Returns `supervision.Detections`, with the class names as data["class_name"].

        Raises:
            ImportError: if supervision is not installed; says how to install it.
        """
        try:
            import supervision
        except ImportError as error:
            raise ImportError(
                "to_supervision needs the package supervision: pip install supervision"
            ) from error
        return supervision.Detections(
            xyxy=self.boxes,
            confidence=self.scores,
            class_id=self.labels.astype(int),
            data={"class_name": self.names},
        )

    def to_coco(self, image_id: int | str) -> list[dict]:
        """Returns COCO result records, ready for json.dump.

        Each has image_id, category_id (of the data set of the training where it has such ids, else
        the class id), category_name, bbox (x, y, width, height) and score.
        """
        ids = self.class_ids or range(len(self.class_names))
        return [
            {
                "image_id": image_id,
                "category_id": ids[label],
                "category_name": self.class_names[label],
                "bbox": box,
                "score": score,
            }
            for box, score, label in zip(
                xywh(self.boxes).tolist(), self.scores.tolist(), self.labels.tolist(), strict=True
            )
        ]

    def __repr__(self) -> str:
        height, width = self.image_size
        of = f" in {self.source}" if self.source else ""
        found = [f"{one.name} {one.score:.0%}" for one in self[:_SHOWN]]
        found += [f"and {len(self) - _SHOWN} more"] if len(self) > _SHOWN else []
        head = f"{len(self)} object{'s' * (len(self) != 1)}{of}, height {height}, width {width}"
        return f"Result({head}{': ' if found else ''}{', '.join(found)})"

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows; None, which leaves it the text: the file is gone."""
        try:
            picture = self.draw()
        except InputError:
            return None
        picture.thumbnail((_NOTEBOOK_SIDE, _NOTEBOOK_SIDE))
        content = io.BytesIO()
        picture.save(content, "PNG")
        return content.getvalue()
