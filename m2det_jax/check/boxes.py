"""Remarks on boxes and classes that are legal and yet likely mistakes."""

from collections.abc import Callable

import numpy as np

from m2det_jax.check.remarks import remark
from m2det_jax.data.index import DetectionIndex
from m2det_jax.data.places import Place
from m2det_jax.pages.contents import Remark

# Row of a box in the index -> where it is annotated.
PlaceOf = Callable[[int], Place]

TWIN_IOU = 0.95


def check_boxes(
    split: str,
    index: DetectionIndex,
    network_boxes: np.ndarray,
    place: PlaceOf,
    *,
    smallest_side: float,
    max_detections: int,
) -> list[Remark]:
    """Returns remarks on the boxes of a split.

    Args:
        network_boxes: [K, 4] pixels of the network input.
        place: of a box.
        smallest_side: pixels of the network input that both sides of a plausible box have.
        max_detections: that evaluation keeps of an image.
    """
    images = np.repeat(np.arange(index.num_images), index.counts)
    sides = (network_boxes[:, 2:] - network_boxes[:, :2]).reshape(-1, 2)
    remarks = []
    for row in np.flatnonzero(sides.min(axis=1, initial=np.inf) < smallest_side).tolist():
        width, height = sides[row]
        what = (
            f"{index.class_names[index.labels[row]]} is {width:.1f} x {height:.1f} pixels at the "
            f"network input, a side below {smallest_side:g}"
        )
        remedy = "a slip of the mouse? else train at a larger config.data.image_size"
        path = index.image_paths[images[row]]
        remarks.append(remark("tiny-box", split, what, place(row), image=path, remedy=remedy))
    for image in range(index.num_images):
        remarks += _twins(split, index, image, place)
    for image in np.flatnonzero(index.counts > max_detections).tolist():
        what = f"{index.counts[image]} objects, config.eval.max_detections={max_detections}"
        row = int(index.offsets[image])
        remedy = f"raise config.eval.max_detections to {index.max_objects} or more"
        path = index.image_paths[image]
        remarks.append(remark("crowded-image", split, what, place(row), image=path, remedy=remedy))
    return remarks


def _twins(split: str, index: DetectionIndex, image: int, place: PlaceOf) -> list[Remark]:
    """Returns pairs of boxes of one image with an IoU of TWIN_IOU or more, the later one named."""
    boxes, labels = index.objects(image)
    # Boxes that nearly coincide begin nearly at the same place: only neighbours in x1 are compared.
    order = np.argsort(boxes[:, 0], kind="stable")
    start = int(index.offsets[image])
    remarks = []
    for step in range(1, len(order)):
        early, late = order[:-step], order[step:]
        a, b = boxes[early], boxes[late]
        if not np.any(b[:, 0] - a[:, 0] < (1 / TWIN_IOU - 1) * (a[:, 2] - a[:, 0])):
            break
        for pair in np.flatnonzero(_iou(a, b) >= TWIN_IOU):
            first, second = sorted((int(early[pair]), int(late[pair])))
            if np.array_equal(boxes[first], boxes[second]) and labels[first] == labels[second]:
                continue  # an exact repetition is found as the annotations are read
            names = [index.class_names[labels[k]] for k in (first, second)]
            there = place(start + first)
            other = there.get("item") or (f"line {there['line']}" if there.get("line") else "")
            overlap = float(_iou(boxes[[first]], boxes[[second]])[0])
            what = f"{names[1]} overlaps {names[0]}" + (f" of {other}" if other else "")
            what += f" with IoU {overlap:.3f}"
            path, remedy = index.image_paths[image], "keep one, if they are one object"
            here = place(start + second)
            remarks.append(remark("twin-box", split, what, here, image=path, remedy=remedy))
    return remarks


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    inner = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    intersection = np.maximum(inner, 0).prod(axis=1)
    areas = (a[:, 2:] - a[:, :2]).prod(axis=1) + (b[:, 2:] - b[:, :2]).prod(axis=1)
    return intersection / np.maximum(areas - intersection, np.finfo(np.float32).tiny)


def check_classes(train: DetectionIndex, val: DetectionIndex) -> list[Remark]:
    """Returns remarks on classes and splits that have no boxes."""
    count = len(train.class_names)
    in_train = np.bincount(train.labels, minlength=count) > 0
    in_val = np.bincount(val.labels, minlength=count) > 0
    remarks = []
    for i, name in enumerate(train.class_names):
        if not in_train[i] and not in_val[i]:
            what, remedy = "neither split has a box of it", "remove the class, or add examples"
            kind = "unused-class"
        elif not in_train[i]:
            what, remedy = "only validation has boxes of it", "split the images anew"
            kind = "untrained-class"
        elif not in_val[i]:
            what, remedy = "only training has boxes of it", "split the images anew"
            kind = "unmeasured-class"
        else:
            continue
        remarks.append(remark(kind, "", f"{name}: {what}", remedy=remedy))
    for split, index in (("train", train), ("val", val)):
        if not index.num_images or not len(index.labels):
            what = f"{index.num_images} images and no boxes"
            remarks.append(remark("no-boxes", split, what))
            continue
        if empty := int((index.counts == 0).sum()):
            what = f"{empty} of {index.num_images} images have no boxes"
            remarks.append(remark("unlabelled-images", split, what))
    return remarks
