"""What of an index a format cannot hold: said before it is written."""

import os

import numpy as np

from m2det_jax.data.formats.write_tables import coco_ids
from m2det_jax.data.formats.write_texts import kitti_names
from m2det_jax.data.index import DetectionIndex

_NAMED_BY_BOXES = ("voc", "kitti")  # formats without a list of classes


def losses(index: DetectionIndex, format: str) -> list[str]:
    """Returns one sentence for everything that the format holds not at all, or otherwise."""
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
    if format in _NAMED_BY_BOXES:
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
    kept_ids = []  # of csv and yolo
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
