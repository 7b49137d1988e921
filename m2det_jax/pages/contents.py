"""Contents of the page as plain values; `check` fills them in."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

SPLITS = {"train": "training", "val": "validation"}  # in words
SEVERITIES = ERROR, WARNING, NOTE = "error", "warning", "note"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """A remark on one box, image, class or file: one row of the table of findings.

    Attributes:
        kind: names the group.
        severity: one of SEVERITIES.
        split: "train", "val", or "" for both together.
        file, line, item: the annotation file, the line in it, from 1 (0: the file as a whole),
            and, where lines say little, the item, such as "annotations[17]".
        image: path of the image that it is about, or "".
        what: the finding, in one clause.
        effect: what training does about it.
        remedy: what to do, or "".
    """

    kind: str
    severity: str
    split: str
    file: str = ""
    line: int = 0
    item: str = ""
    image: str = ""
    what: str
    effect: str
    remedy: str = ""

    @property
    def where(self) -> str:
        """The file and the place in it."""
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.item}" if self.item else place


@dataclasses.dataclass(frozen=True)
class Group:
    """All remarks of one kind with one effect; `count` is of all, however many are listed."""

    kind: str
    title: str
    severity: str
    count: int
    effect: str


@dataclasses.dataclass(frozen=True)
class ClassRow:
    """One class: boxes by split, images with it, and the share of its boxes that anchors reach."""

    name: str
    train: int
    val: int
    images: int
    median_side: float  # root of the area, pixels of the network input
    coverage: float  # 0..1; NaN without boxes


@dataclasses.dataclass(frozen=True)
class CoverageRow:
    """Boxes of one group, and how many of them an anchor reaches."""

    name: str
    boxes: int
    covered: int
    mean_iou: float


@dataclasses.dataclass(frozen=True)
class Fit:
    """What --fit_anchors found: coverage (share, mean best IoU) by split, before and after."""

    better: bool
    lines: tuple[str, ...]
    before: dict[str, tuple[float, float]]
    after: dict[str, tuple[float, float]]


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """A picture with boxes, K of them, and P positive anchors. Coordinates are its own pixels.

    Attributes:
        image: RGB; may be reduced when the page is made, coordinates keep to `size`.
        size: (width, height) that the coordinates refer to.
        title, reason: what it is, and why it was chosen.
        boxes: [K, 4] xyxy.
        names: class names of the boxes.
        covered: bool [K]; an anchor reaches the positive threshold with the box.
        best_iou: [K].
        anchors: [P, 4] xyxy.
        owners: [P], the box that each anchor has to find.
    """

    image: Image.Image
    size: tuple[int, int]
    title: str
    reason: str
    boxes: np.ndarray
    names: Sequence[str]
    covered: np.ndarray
    best_iou: np.ndarray
    anchors: np.ndarray
    owners: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Contents:
    """Everything that the page shows.

    Attributes:
        name: of the experiment.
        facts: (label, value) pairs under the heading.
        tiles: (value, label, detail) of the figures that matter most.
        refused: training would refuse this data.
        groups, findings: findings may be fewer than the groups count.
        coverage: tables, {caption: rows}.
        figures: titles of figure groups and their SVG figures, {heading: [html]}.
        threshold: the IoU from which on an anchor reaches a box.
        fit: None where anchors were not fitted.
        notes: sentences on what was sampled, and how.
    """

    name: str
    facts: Sequence[tuple[str, str]]
    tiles: Sequence[tuple[str, str, str]]
    refused: bool
    groups: Sequence[Group]
    findings: Sequence[Remark]
    classes: Sequence[ClassRow]
    coverage: Mapping[str, Sequence[CoverageRow]]
    figures: Mapping[str, Sequence[str]]
    pictures: Sequence[Picture]
    augmented: Sequence[Picture]
    fit: Fit | None
    threshold: float
    notes: Sequence[str]
