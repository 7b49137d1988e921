"""Annotations as they stand in their files: what every format is parsed to, before any check.

Letters: N images, K boxes of all images together.
"""

import dataclasses

import numpy as np

# How four numbers of a file become edges in pixels that count from 0, x2 and y2 exclusive:
# (matrix or None, shift) for numbers @ matrix + shift, and whether they are shares of the image's
# sides.
_XYWH = np.array([[1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 1]], np.float64)
_CXCYWH = np.array([[1, 0, 1, 0], [0, 1, 0, 1], [-0.5, 0, 0.5, 0], [0, -0.5, 0, 0.5]], np.float64)
_STYLES = {
    "xyxy": (None, 0.0, False),
    "xywh": (_XYWH, 0.0, False),  # COCO
    "xyxy_from_1": (None, np.array([-1.0, -1.0, 0.0, 0.0]), False),  # VOC: both ends included
    "xyxy_share": (None, 0.0, True),  # Open Images, after reordering
    "cxcywh_share": (_CXCYWH, 0.0, True),  # YOLO
}

# How far a box may reach beyond its image by rounding alone, as (pixels, share of the side): two
# decimals of x and of width in COCO, six of centre and size in YOLO and of corners in Open Images.
ROUNDING = {"xywh": (0.011, 0.0), "xyxy_share": (0.0, 1e-6), "cxcywh_share": (0.0, 2e-6)}


@dataclasses.dataclass(eq=False)
class Rows:
    """The images and boxes of one split, checked for form only.

    Attributes:
        class_names: one name a class.
        image_paths: N absolute paths.
        files: annotation files; of image i it is files[image_files[i]] (int64 [N]).
        image_lines: int64 [N], where the image is named; 0: the file as a whole.
        numbers: float64 [K, 4], a box as written; `style` says what the numbers are.
        style: a key of _STYLES.
        images: int64 [K], the image of a box.
        labels: int64 [K], its class; -1: unknown (there is a finding), or any class (regions).
        lines: int64 [K], its line.
        regions: bool [K], crowds and "don't care" areas; None: none.
        difficult: bool [K]; None: none.
        areas: float64 [K], NaN where the file gives none; None: none.
        sizes: int64 [N, 2], (width, height) that the annotations give, 0 where they give none;
            None: none.
        class_ids, image_ids: the data set's own; (): none.
        names: what the four numbers are called in the format.
        missing_remedy: what to do about an image that is not there.
        items: ("images[{}]", "annotations[{}]") for files whose lines say little, filled with
            image_items int64 [N] and box_items int64 [K]; None: none.
    """

    class_names: tuple[str, ...]
    image_paths: list[str]
    files: list[str]
    image_files: np.ndarray
    image_lines: np.ndarray
    numbers: np.ndarray
    style: str
    images: np.ndarray
    labels: np.ndarray
    lines: np.ndarray
    regions: np.ndarray | None = None
    difficult: np.ndarray | None = None
    areas: np.ndarray | None = None
    sizes: np.ndarray | None = None
    class_ids: tuple[int | str, ...] = ()
    image_ids: tuple[int | str, ...] = ()
    names: tuple[str, str, str, str] = ("x1", "y1", "x2", "y2")
    missing_remedy: str = "check the path"
    items: tuple[str, str] | None = None
    image_items: np.ndarray | None = None
    box_items: np.ndarray | None = None

    def __post_init__(self) -> None:
        count = len(self.labels)
        if self.regions is None:
            self.regions = np.zeros(count, np.bool_)
        if self.difficult is None:
            self.difficult = np.zeros(count, np.bool_)
        if self.areas is None:
            self.areas = np.full(count, np.nan)
        if self.sizes is None:
            self.sizes = np.zeros((len(self.image_paths), 2), np.int64)

    @property
    def is_normalised(self) -> bool:
        """Whether boxes are given as shares of the image's sides."""
        return _STYLES[self.style][2]

    @property
    def gives_sides(self) -> bool:
        """Whether the last two numbers are width and height, not a corner."""
        return "wh" in self.style or "cxcy" in self.style

    def edges(self, sizes: np.ndarray) -> np.ndarray:
        """Returns float64 [K, 4]: edges in pixels of images with these (width, height) [N, 2]."""
        return self._edges(self.numbers, sizes[self.images])

    def edges_of(self, row: int, sizes: np.ndarray) -> list[float]:
        """Returns x1, y1, x2, y2 in pixels of one box."""
        return self._edges(self.numbers[[row]], sizes[self.images[[row]]])[0].tolist()

    def _edges(self, numbers: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        matrix, shift, is_share = _STYLES[self.style]
        with np.errstate(invalid="ignore", over="ignore"):
            edges = numbers if matrix is None else numbers @ matrix
            edges = edges + shift
            return edges * np.tile(sizes, 2) if is_share else edges

    def place_of_image(self, image: int) -> dict[str, object]:
        """Returns the arguments of a finding that say where an image is named."""
        return {
            "file": self.files[self.image_files[image]],
            "line": int(self.image_lines[image]),
            "item": self.items[0].format(self.image_items[image]) if self.items else "",
            "image": self.image_paths[image],
        }

    def place_of_box(self, row: int) -> dict[str, object]:
        """Returns the arguments of a finding that say where a box is written, and as what."""
        image = self.images[row]
        return {
            "file": self.files[self.image_files[image]],
            "line": int(self.lines[row]),
            "item": self.items[1].format(self.box_items[row]) if self.items else "",
            "image": self.image_paths[image],
            "value": ",".join(f"{value:.10g}" for value in self.numbers[row]),
        }

    def name_of_box(self, row: int) -> str:
        """Returns what another box of the same file may call it."""
        if self.items:
            return self.items[1].format(self.box_items[row])
        return f"line {self.lines[row]}"
