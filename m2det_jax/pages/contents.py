"""What the report shows, as plain values; `check` fills it in."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image


@dataclasses.dataclass(frozen=True)
class Finding:
    """One row of the table of findings."""

    kind: str
    severity: str  # "error", "warning" or "note"
    split: str  # "train", "val" or ""
    file: str
    line: int  # 0 where there is none to name
    item: str  # the place in a file whose lines say little, such as annotations[17]
    image: str
    what: str
    effect: str
    remedy: str

    @property
    def where(self) -> str:
        """The file and the place in it."""
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.item}" if self.item else place


@dataclasses.dataclass(frozen=True)
class Group:
    """All findings of one kind with one effect; count is the true one, however many are listed."""

    kind: str
    title: str
    severity: str
    count: int
    effect: str


@dataclasses.dataclass(frozen=True)
class ClassRow:
    """One class: boxes by split, images it is in, and the share of its boxes that anchors reach."""

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
    """The page.

    Attributes:
        name: of the experiment.
        facts: (label, value) pairs under the heading.
        refused: training would refuse this data.
        groups, findings: findings may be a part of what groups count.
        coverage: tables, {caption: rows}.
        figures: titles of figure groups and their SVG figures, {heading: [html]}.
        fit: None where anchors were not fitted.
        notes: sentences on what was sampled, and how.
    """

    name: str
    facts: Sequence[tuple[str, str]]
    tiles: Sequence[tuple[str, str, str]]  # (value, label, detail)
    refused: bool
    groups: Sequence[Group]
    findings: Sequence[Finding]
    classes: Sequence[ClassRow]
    coverage: dict[str, Sequence[CoverageRow]]
    figures: dict[str, Sequence[str]]
    pictures: Sequence[Picture]
    augmented: Sequence[Picture]
    fit: Fit | None
    threshold: float
    notes: Sequence[str]
