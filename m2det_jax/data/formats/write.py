"""Writing data sets in any format, images included; what a format cannot hold is said before."""

import dataclasses
import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from m2det_jax.data.file_names import unique_stems
from m2det_jax.data.formats.coco import coco_ids
from m2det_jax.data.formats.kitti import kitti_names
from m2det_jax.data.formats.sources import FORMATS
from m2det_jax.data.index import DetectionIndex


@dataclasses.dataclass
class Written:
    """Numbers of images of a data set that was written, by what was done with them."""

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
        format: a key of FORMATS.
        copy_images: True: images are copied. False: hard links, where the format asks for images
            in a place of its own (copies where links are impossible), else only their paths.
    """
    root = Path(root).absolute()
    root.mkdir(parents=True, exist_ok=True)
    report = Written()
    # Over all splits: in VOC they share one folder.
    stems = unique_stems([path for index in splits.values() for path in index.image_paths])
    form = FORMATS[format]
    for split, index in splits.items():
        own, stems = stems[: index.num_images], stems[index.num_images :]
        if copy_images or not form.names_any_image:
            folder = root / form.images.format(split=split)
            index = _put_images(index, own, folder, copy_images, report)
        else:
            report.referred += index.num_images
        form.write(index, root, split, own)
    if form.write_classes is not None and splits:
        form.write_classes(index.class_names, root, list(splits))
    return report


def _put_images(
    index: DetectionIndex, stems: list[str], folder: Path, copy: bool, report: Written
) -> DetectionIndex:
    """Puts the images into a folder; returns the index with their new paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for path, stem in zip(index.image_paths, stems, strict=True):
        target = folder / (stem + Path(path).suffix)
        copied = link_or_copy(path, target, copy=copy)
        report.copied += copied
        report.linked += not copied
        report.renamed += Path(path).stem != stem
        paths.append(str(target))
    return dataclasses.replace(index, image_paths=tuple(paths))


def link_or_copy(source: str, target: Path, *, copy: bool) -> bool:
    """Puts an image file at target, as a hard link unless copied; returns whether it was copied.

    A file that is there is replaced. Where hard links are impossible, as between file systems, the
    file is copied.
    """
    if target.exists() and os.path.samefile(source, target):
        return False
    target.unlink(missing_ok=True)
    if not copy:
        try:
            os.link(os.path.realpath(source), target)
            return False
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
                raise
    shutil.copyfile(source, target)
    return True


def not_held(index: DetectionIndex, format: str) -> list[str]:
    """Returns a sentence for each thing of an index that a format cannot hold, or not as it is."""
    return _of_boxes(index, format) + _of_regions(index, format) + _of_ids(index, format)


def _of_boxes(index: DetectionIndex, format: str) -> list[str]:
    found = []
    if index.difficult.any() and format != "voc":
        found.append(f"{index.difficult.sum()} objects lose their flag difficult")
    sides = index.boxes[:, 2:] - index.boxes[:, :2]
    whole = sides[:, 0] * sides[:, 1]
    differing = int((np.abs(index.areas - whole) > 1e-4 * whole).sum())  # beyond rounding
    if differing and format != "coco":
        found.append(f"{differing} objects lose their area, which differs from that of the box")
    fractions = int((index.boxes != np.rint(index.boxes)).any(axis=1).sum())
    if fractions and format == "voc":
        found.append(f"{fractions} boxes have fractions of pixels, which VOC itself rarely has")
    return found


def _of_regions(index: DetectionIndex, format: str) -> list[str]:
    total, of_all = len(index.regions), int((index.region_labels < 0).sum())
    if total and format in ("csv", "voc", "yolo"):
        return [f"{total} ignore regions (crowds, don't-care areas) are left out"]
    if total - of_all and format == "kitti":
        return [f"{total - of_all} ignore regions of one class become DontCare, of every class"]
    if of_all and format in ("coco", "openimages"):
        return [f"{of_all} ignore regions of every class are written once for each class"]
    return []


def _of_ids(index: DetectionIndex, format: str) -> list[str]:
    found, names = [], index.class_names
    if not FORMATS[format].lists_classes:
        unused = [name for k, name in enumerate(names) if not (index.labels == k).any()]
        if unused:
            found.append(
                f"classes without an object are named only in our list classes.csv: "
                f"{', '.join(unused[:10])}"
            )
        if list(names) != sorted(names):
            found.append("the order of the classes is held only by our list classes.csv")
    if format == "kitti" and kitti_names(names) != list(names):
        found.append("blanks in class names become _")
    kept = {"coco": all(isinstance(i, int) for i in index.class_ids),
            "openimages": all(isinstance(i, str) for i in index.class_ids)}  # fmt: skip
    plain = index.class_ids in ((), tuple(range(len(names))))
    if not plain and not kept.get(format, False):
        found.append("the category ids are lost")
    kept_ids: Sequence[int | str] = []  # of csv and yolo
    if format == "coco":
        kept_ids = coco_ids(index.image_ids, index.num_images)
    elif format in ("voc", "kitti", "openimages"):
        kept_ids = [os.path.splitext(os.path.basename(path))[0] for path in index.image_paths]
    if index.image_ids and list(index.image_ids) != kept_ids:
        found.append("the image ids are lost")
    if format == "openimages" and not index.counts.all():
        empty = int((index.counts == 0).sum())
        found.append(f"{empty} images without objects are named only in our list SPLIT-images.csv")
    return found
