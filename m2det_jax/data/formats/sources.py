"""Data sets by the name of their format: one way to read, and to inspect, all of them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from m2det_jax.data.errors import Findings
from m2det_jax.data.formats.coco import read_coco
from m2det_jax.data.formats.kitti import read_kitti
from m2det_jax.data.formats.openimages import read_openimages
from m2det_jax.data.formats.voc import read_voc
from m2det_jax.data.formats.yolo import read_yolo
from m2det_jax.data.images import read_size
from m2det_jax.data.index import DetectionIndex
from m2det_jax.data.reading.csv_source import read_csv_rows
from m2det_jax.data.reading.own_source import read_own
from m2det_jax.data.reading.row_checks import build_index
from m2det_jax.data.reading.rows import Rows
from m2det_jax.data.reading.size_checks import ReadSize


@dataclasses.dataclass(frozen=True)
class Source:
    """Where one split of a data set lies; docs/data.md has the layout of each format.

    Attributes:
        format: a key of READERS, or the dotted name of a module of the user's with a function
            read(root, split) -> DetectionIndex.
        root: folder of the data set; "": the current one.
        split: "csv": the annotations file; else the name of the split.
        classes: "csv": the class file, or the names in the order of their ids; else not used.
        parent_label: "openimages": only classes under this one of the label hierarchy.
    """

    format: str
    root: str = ""
    split: str = ""
    classes: str | tuple[str, ...] = ()
    parent_label: str = ""


def _read_csv(source: Source, findings: Findings) -> Rows:
    classes = source.classes
    if isinstance(classes, str):
        classes = Path(source.root) / classes
    return read_csv_rows(Path(source.root) / source.split, classes, findings)


def _read_openimages(source: Source, findings: Findings) -> Rows | None:
    root, parent = Path(source.root), source.parent_label
    return read_openimages(root, source.split, findings, parent_label=parent)


def _plain(read: Callable[[Path, str, Findings], Rows | None]):
    return lambda source, findings: read(Path(source.root), source.split, findings)


READERS: dict[str, Callable[[Source, Findings], Rows | None]] = {
    "csv": _read_csv,
    "coco": _plain(read_coco),
    "voc": _plain(read_voc),
    "kitti": _plain(read_kitti),
    "openimages": _read_openimages,
    "yolo": _plain(read_yolo),
}


def read_dataset(source: Source, *, on_bad_box: str = "error") -> DetectionIndex:
    """Reads one split of a data set and the header of every image in it, and checks both.

    Raises:
        DataError: one line a finding for which training is refused, all of them.
    """
    index, findings = inspect_dataset(source, on_bad_box=on_bad_box)
    findings.raise_if_any()
    return index


def inspect_dataset(
    source: Source, *, on_bad_box: str = "error", read: ReadSize = read_size
) -> tuple[DetectionIndex | None, Findings]:
    """Reads like `read_dataset`, but returns the findings, and an index of what is sound.

    The index is None where nothing could be read at all. `read` gives the size of an image; that of
    a `SizeCache` opens only the files that it does not know.
    """
    findings = Findings()
    if source.format in READERS:
        rows = READERS[source.format](source, findings)
    else:
        rows = read_own(source.format, source.root, source.split, findings)
    if rows is None:
        return None, findings
    return build_index(rows, findings, on_bad_box=on_bad_box, read=read), findings
