"""Writing data sets in any format, images included."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from m2det_jax.data.formats.write_tables import write_coco, write_csv_set, write_openimages
from m2det_jax.data.formats.write_texts import (
    kitti_names,
    write_kitti,
    write_voc,
    write_yolo,
    write_yolo_yaml,
)
from m2det_jax.data.image_files import place_image, unique_stems
from m2det_jax.data.index import DetectionIndex
from m2det_jax.data.reading.csv_source import write_classes

# Where the images of a split lie; the first two need not have them there.
_FOLDERS = {
    "csv": "images/{split}",
    "coco": "{split}",
    "voc": "JPEGImages",
    "kitti": "{split}/image_2",
    "openimages": "{split}",
    "yolo": "images/{split}",
}
_REFERRING = ("csv", "coco")  # formats that can name images anywhere
_WRITERS: dict[str, Callable] = {
    "voc": write_voc,
    "kitti": write_kitti,
    "openimages": write_openimages,
    "yolo": write_yolo,
}


@dataclasses.dataclass
class Written:
    """What was done with the images of a data set that was written."""

    linked: int = 0
    copied: int = 0
    referred: int = 0
    renamed: int = 0


def write_dataset(
    splits: dict[str, DetectionIndex], format: str, root: Path, *, copy_images: bool = False
) -> Written:
    """Writes splits, which have the same classes, as one data set.

    Args:
        splits: {name of the split: its index}.
        format: "csv", "coco", "voc", "kitti", "openimages" or "yolo".
        copy_images: True: images are copied. False: hard links, where the format asks for images
            in a place of its own (copies where links are impossible), else only their paths.
    """
    root = Path(root).absolute()
    root.mkdir(parents=True, exist_ok=True)
    report = Written()
    # Over all splits: in VOC they share one folder.
    stems = unique_stems([path for index in splits.values() for path in index.image_paths])
    for split, index in splits.items():
        own, stems = stems[: index.num_images], stems[index.num_images :]
        if copy_images or format not in _REFERRING:
            folder = root / _FOLDERS[format].format(split=split)
            index = _place(index, own, folder, copy_images, report)
        else:
            report.referred += index.num_images
        if format == "csv":
            write_csv_set(index, root, split)
        elif format == "coco":
            write_coco(index, root, split)
        else:
            _WRITERS[format](index, root, split, own)
    if format in ("voc", "kitti"):
        names = index.class_names if format == "voc" else kitti_names(index.class_names)
        write_classes(names, root / "classes.csv")
    elif format == "yolo":
        write_yolo_yaml(index.class_names, root, list(splits))
    return report


def _place(
    index: DetectionIndex, stems: list[str], folder: Path, copy: bool, report: Written
) -> DetectionIndex:
    """Puts the images into a folder; returns the index with their new paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for path, stem in zip(index.image_paths, stems, strict=True):
        target = folder / (stem + Path(path).suffix)
        copied = place_image(path, target, copy=copy)
        report.copied += copied
        report.linked += not copied
        report.renamed += Path(path).stem != stem
        paths.append(str(target))
    return dataclasses.replace(index, image_paths=tuple(paths))
