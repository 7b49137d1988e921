"""Formats of data sets: one way to read, to check and to write all of them."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from m2det_jax.data.errors import DataError, Findings
from m2det_jax.data.formats.class_file import list_classes, write_classes
from m2det_jax.data.formats.coco import read_coco, write_coco
from m2det_jax.data.formats.csv_boxes import RowReader, write_csv
from m2det_jax.data.formats.kitti import read_kitti, write_kitti, write_kitti_classes
from m2det_jax.data.formats.openimages import read_openimages, write_openimages
from m2det_jax.data.formats.own_module import read_own
from m2det_jax.data.formats.voc import read_voc, write_voc, write_voc_classes
from m2det_jax.data.formats.yolo import read_yolo, write_yolo, write_yolo_yaml
from m2det_jax.data.images import read_size
from m2det_jax.data.index import DetectionIndex
from m2det_jax.data.rows import Rows, build_index
from m2det_jax.data.sizes import ReadSize


@dataclasses.dataclass(frozen=True)
class Source:
    """Where one split of a data set lies; docs/data.md has the layout of each format.

    Attributes:
        format: a key of FORMATS, or the dotted name of a module of the user's with a function
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


Read = Callable[[Source, Findings], Rows | None]


@dataclasses.dataclass(frozen=True)
class Format:
    """A format of data sets.

    Attributes:
        read: reads a split; None: nothing could be read at all.
        write: writes an index under a root folder as a split, with the names of its image files
            without suffix.
        write_classes: writes the classes under a root folder, with the names of all splits; None:
            `write` does it.
        images: the folder of the images of a split, under the root.
        names_any_image: whether images may stay where they are.
        lists_classes: False: classes are named only with their objects, so that a split may lack
            some.
        not_read: what is left out of every conversion, where the files have it.
    """

    read: Read
    write: Callable[[DetectionIndex, Path, str, list[str]], None]
    images: str
    write_classes: Callable[[tuple[str, ...], Path, list[str]], None] | None = None
    names_any_image: bool = False
    lists_classes: bool = True
    not_read: str = ""


def _read_csv(source: Source, findings: Findings) -> Rows:
    names = source.classes
    if isinstance(names, str):
        names = list_classes(Path(source.root) / names, findings)
    return RowReader(Path(source.root) / source.split, names, findings).read()


def _write_csv(index: DetectionIndex, root: Path, split: str, stems: list[str]) -> None:
    write_classes(index.class_names, root / "classes.csv")
    write_csv(index, root / f"{split}.csv")


def _read_openimages(source: Source, findings: Findings) -> Rows | None:
    root, parent = Path(source.root), source.parent_label
    return read_openimages(root, source.split, findings, parent_label=parent)


def _plain(read: Callable[[Path, str, Findings], Rows | None]) -> Read:
    return lambda source, findings: read(Path(source.root), source.split, findings)


FORMATS: dict[str, Format] = {
    "csv": Format(_read_csv, _write_csv, "images/{split}", names_any_image=True),
    "coco": Format(
        _plain(read_coco),
        write_coco,
        "{split}",
        names_any_image=True,
        not_read="segmentations, keypoints, captions, licences, annotation ids",
    ),
    "voc": Format(
        _plain(read_voc),
        write_voc,
        "JPEGImages",
        write_voc_classes,
        lists_classes=False,
        not_read="poses, truncated, occluded, parts, segmentations",
    ),
    "kitti": Format(
        _plain(read_kitti),
        write_kitti,
        "{split}/image_2",
        write_kitti_classes,
        lists_classes=False,
        not_read="truncated, occluded, alpha and what stands for the object in space",
    ),
    "openimages": Format(
        _read_openimages,
        write_openimages,
        "{split}",
        not_read="Source, Confidence, IsOccluded, IsTruncated, IsDepiction, IsInside",
    ),
    "yolo": Format(_plain(read_yolo), write_yolo, "images/{split}", write_yolo_yaml),
}


def lists_classes(format: str) -> bool:
    """Returns whether a format lists its classes, so that every split has them all."""
    return format not in FORMATS or FORMATS[format].lists_classes


def read_csv(
    annotations: str | os.PathLike[str],
    classes: str | os.PathLike[str] | Sequence[str],
    *,
    num_threads: int = 8,
) -> DetectionIndex:
    """Reads an annotations file and the header of every image in it, and checks both.

    Args:
        annotations: the CSV file.
        classes: the class file, or the names themselves in the order of their ids.
        num_threads: for reading image headers.

    Raises:
        DataError: if anything is wrong; one line a finding, from both files and all images.
    """
    names = os.fspath(classes) if isinstance(classes, str | os.PathLike) else tuple(classes)
    source = Source("csv", split=os.fspath(annotations), classes=names)
    findings = Findings()
    rows = _read_csv(source, findings)
    index = build_index(rows, findings, num_threads=num_threads)
    findings.raise_if_any()
    return index


def read_dataset(source: Source, *, on_bad_box: str = "error") -> DetectionIndex:
    """Reads one split of a data set and the header of every image in it, and checks both.

    Raises:
        DataError: if anything is wrong for which training is refused; one line a finding.
    """
    index, findings = check_dataset(source, on_bad_box=on_bad_box)
    findings.raise_if_any()
    if index is None:
        raise DataError(f"{source.split}: nothing to read")
    return index


def check_dataset(
    source: Source, *, on_bad_box: str = "error", read: ReadSize = read_size
) -> tuple[DetectionIndex | None, Findings]:
    """Reads like `read_dataset`, but returns the findings, and an index of what is sound.

    Args:
        read: reads the size of an image: `images.read_size`, or that of a `SizeCache`.

    Returns:
        (the index, None where nothing could be read at all; the findings).
    """
    findings = Findings()
    if source.format in FORMATS:
        rows = FORMATS[source.format].read(source, findings)
    else:
        rows = read_own(source.format, source.root, source.split, findings)
    if rows is None:
        return None, findings
    return build_index(rows, findings, on_bad_box=on_bad_box, read=read), findings
