"""Figures and tables of a check: arrays to the contents of its page."""

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

from m2det_jax.check import statistics as stats
from m2det_jax.check.remarks import title_of
from m2det_jax.data import DetectionIndex
from m2det_jax.pages import ClassRow, CoverageRow, Group, Remark, plots
from m2det_jax.pages.contents import SEVERITIES
from m2det_jax.pages.markup import count, number, percent

_SCATTERED = 2000  # boxes in the scatter plot
_PARTS = (("an anchor reaches it", "covered"), ("none does", "forced"))


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """One split with its boxes at the network input and how anchors meet them.

    Attributes:
        boxes: float32 [K, 4], network pixels.
        overlap: [K], best IoU with an anchor.
        reached: bool [K], whether it is the positive threshold or more.
    """

    index: DetectionIndex
    boxes: np.ndarray
    overlap: np.ndarray
    reached: np.ndarray

    @property
    def coverage(self) -> float:
        """Share of boxes that an anchor reaches; NaN without boxes."""
        return float(self.reached.mean()) if len(self.reached) else float("nan")


@dataclasses.dataclass
class Found:
    """All remarks, and how many more there are of some groups: {(kind, effect): number}."""

    remarks: list[Remark]
    more: collections.Counter = dataclasses.field(default_factory=collections.Counter)

    def groups(self) -> list[Group]:
        """Returns the remarks by kind and effect, errors first, then large groups."""
        counts = collections.Counter((r.kind, r.severity, r.effect) for r in self.remarks)
        groups = [
            Group(kind, title_of(kind), severity, number + self.more[kind, effect], effect)
            for (kind, severity, effect), number in counts.items()
        ]
        return sorted(groups, key=lambda g: (SEVERITIES.index(g.severity), -g.count, g.kind))

    def findings(self) -> list[Remark]:
        """Returns the remarks, errors first."""
        return sorted(self.remarks, key=lambda r: SEVERITIES.index(r.severity))


def class_rows(train: Split, val: Split) -> list[ClassRow]:
    """Returns one row a class; `coverage` is that of the training boxes."""
    num_classes = len(train.index.class_names)
    boxes = [np.bincount(s.index.labels, minlength=num_classes) for s in (train, val)]
    _, reached = stats.share_by(train.index.labels, train.reached, num_classes)
    images = np.zeros(num_classes, np.int64)
    for split in (train, val):
        ids = np.repeat(np.arange(split.index.num_images), split.index.counts)
        pairs = np.unique(np.stack([ids, split.index.labels], 1), axis=0)
        images += np.bincount(pairs[:, 1], minlength=num_classes)
    sides = np.sqrt(stats.areas(train.boxes))
    order = np.argsort(train.index.labels, kind="stable")
    by_class = np.split(sides[order], np.cumsum(boxes[0])[:-1])
    return [
        ClassRow(
            name=name,
            train=int(boxes[0][i]),
            val=int(boxes[1][i]),
            images=int(images[i]),
            median_side=float(np.median(by_class[i])) if boxes[0][i] else float("nan"),
            coverage=float(reached[i] / boxes[0][i]) if boxes[0][i] else float("nan"),
        )
        for i, name in enumerate(train.index.class_names)
    ]


def coverage_rows(split: Split, groups: np.ndarray, names: Sequence[str]) -> list[CoverageRow]:
    """Returns one row a group, and one for all boxes where there are several."""
    rows = []
    for i, name in enumerate(names):
        chosen = groups == i
        rows.append(_coverage_row(name, split.reached[chosen], split.overlap[chosen]))
    if len(names) > 1:
        rows.append(_coverage_row("all", split.reached, split.overlap))
    return rows


def _coverage_row(name: str, reached: np.ndarray, overlap: np.ndarray) -> CoverageRow:
    mean = float(overlap.mean()) if len(overlap) else float("nan")
    return CoverageRow(name, len(reached), int(reached.sum()), mean)


def size_tables(train: Split, val: Split) -> dict[str, list[CoverageRow]]:
    """Returns coverage by COCO's sizes at the network input, for both splits."""
    names = (
        "small, below 32 x 32 px",
        "medium",
        "large, from 96 x 96 px",
    )
    return {
        f"{what} boxes by size at the network input": coverage_rows(
            split, stats.size_groups(split.boxes), names
        )
        for what, split in (("Training", train), ("Validation", val))
    }


def tiles(train: Split, val: Split, threshold: float) -> list[tuple[str, str, str]]:
    """Returns (value, label, detail) of the figures that matter most."""
    counts, sides = train.index.counts, np.sqrt(stats.areas(train.boxes))
    median = number(float(np.median(sides))) if len(sides) else "–"
    crowd = number(float(np.median(counts))) if len(counts) else "–"
    return [
        (count(train.index.num_images), "training images",
         f"{count(len(train.boxes))} boxes"),
        (count(val.index.num_images), "validation images", f"{count(len(val.boxes))} boxes"),
        (count(len(train.index.class_names)), "classes",
         f"{int((np.bincount(train.index.labels) > 0).sum())} with training boxes"),
        (crowd, "objects per image", f"median; at most {train.index.max_objects}"),
        (f"{median} px", "median box side", "training, at the network input"),
        (percent(train.coverage), "boxes reached by anchors",
         f"IoU {threshold:g}; validation {percent(val.coverage)}"),
    ]  # fmt: skip


def figures(
    train: Split, val: Split, anchors: np.ndarray, image_size: tuple[int, int], threshold: float
) -> dict[str, list[str]]:
    """Returns the plots, {heading: SVG figures}; those under Anchors show the training boxes."""
    sides, groups = np.sqrt(stats.areas(train.boxes)), (~train.reached).astype(np.int64)
    shapes = train.boxes[:, 2:] - train.boxes[:, :2]
    some = np.random.default_rng(0).permutation(len(shapes))[:_SCATTERED]
    anchor_shapes = np.unique(np.round(anchors[:, 2:] - anchors[:, :2], 1), axis=0)
    size_edges, iou_edges = stats.side_edges(image_size), np.linspace(0, 1, 21)
    ticks = [t for t in (2, 8, 32, 96, 256, 1024) if t <= max(image_size)]
    by_reach = stats.histogram(sides, size_edges, groups)
    by_iou = stats.histogram(train.overlap, iou_edges)
    return {
        "Anchors": [
            plots.histogram(
                by_iou.edges, by_iou.counts, title="Best IoU of training boxes with an anchor",
                axis="IoU", ticks=(0, 0.25, 0.5, 0.75, 1),
                mark=(threshold, f"threshold {threshold:g}"),
                label=lambda v: number(v, 2),
            ),
            plots.histogram(
                by_reach.edges, _two_columns(by_reach.counts), title="Training boxes by size",
                axis="root of the area", unit="px", ticks=ticks, parts=_PARTS,
            ),
            plots.scatter(
                shapes[some], train.reached[some], anchor_shapes,
                title="Shapes of training boxes and anchors", largest=max(image_size),
            ),
        ],
        "Distributions": _distributions(train, val),
    }  # fmt: skip


def _two_columns(counts: np.ndarray) -> np.ndarray:
    counts = counts.reshape(len(counts), -1)
    return np.pad(counts, ((0, 0), (0, 2 - counts.shape[1])))


def _distributions(train: Split, val: Split) -> list[str]:
    parts = (("training", "train"), ("validation", "val"))
    which = np.repeat([0, 1], [len(train.boxes), len(val.boxes)])
    raw = np.concatenate([train.index.boxes, val.index.boxes])
    sides, shapes = np.sqrt(stats.areas(raw)), raw[:, 2:] - raw[:, :2]
    ratios = shapes[:, 0] / np.maximum(shapes[:, 1], 1e-6)
    per_image = np.concatenate([train.index.counts, val.index.counts])
    image_split = np.repeat([0, 1], [train.index.num_images, val.index.num_images])
    largest = int(per_image.max(initial=0))
    longest = max(np.concatenate([train.index.sizes, val.index.sizes]).max(initial=64), 64)
    sizes = stats.histogram(sides, stats.side_edges((int(longest), 1)), which)
    forms = stats.histogram(ratios, stats.ratio_edges(), which)
    crowds = stats.histogram(per_image, stats.count_edges(largest), image_split)
    ticks = [t for t in (2, 8, 32, 96, 256, 1024, 4096) if t <= longest]
    steps = [int(t) for t in crowds.edges[:: max(1, len(crowds.edges) // 5)]]
    return [
        plots.histogram(
            sizes.edges, _two_columns(sizes.counts), title="Box size in the image files",
            axis="root of the area", unit="px", ticks=ticks, parts=parts,
        ),
        plots.histogram(
            forms.edges, _two_columns(forms.counts), title="Aspect ratio of the boxes",
            axis="width over height", ticks=(1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8), parts=parts,
            label=_ratio,
        ),
        plots.histogram(
            crowds.edges, _two_columns(crowds.counts), title="Objects per image",
            axis="objects", ticks=steps, parts=parts,
        ),
    ]  # fmt: skip


def _ratio(value: float) -> str:
    return f"{number(value)}:1" if value >= 1 else f"1:{number(1 / value)}"
