"""Pictures of a check: which to show, and how anchors match their boxes."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from m2det_jax.build import augment_settings
from m2det_jax.config import Config
from m2det_jax.data import DetectionIndex, ResizeSettings, TrainSettings, load_image, train_batches
from m2det_jax.data.augment.drawing import map_image
from m2det_jax.datasets.coverage import Anchors
from m2det_jax.ops.coverage import aligned_iou
from m2det_jax.pages import Picture
from m2det_jax.pages.contents import SPLITS
from m2det_jax.pages.pictures import reduce


def choose(
    index: DetectionIndex, reached: np.ndarray, remarked: set[str], readable: np.ndarray, count: int
) -> list[tuple[int, str]]:
    """Chooses images worth looking at: [(image, reason)], the same ones every time.

    A third each: most boxes without an anchor, images with findings, and any; what a third lacks,
    the last one gets.

    Args:
        reached: bool [K], an anchor reaches the box.
        remarked: paths of images with findings.
        readable: bool [N].
    """
    rng = np.random.default_rng(0)
    images = np.repeat(np.arange(index.num_images), index.counts)
    missed = np.bincount(images[~reached], minlength=index.num_images)
    worst = [int(i) for i in np.argsort(-missed, kind="stable")[: 4 * count] if missed[i]]
    found = [i for i, path in enumerate(index.image_paths) if path in remarked]
    found = rng.permutation(found).tolist()
    anyone = rng.permutation(index.num_images).tolist()
    chosen: dict[int, str] = {}
    for limit, candidates, reason in (
        (-(-count // 3), worst, "most boxes without an anchor"),
        (-(-2 * count // 3), found, "has findings"),
        (count, anyone, "drawn at random"),
    ):
        fresh = (i for i in candidates if readable[i] and i not in chosen)
        chosen |= {int(i): reason for i in itertools.islice(fresh, max(limit - len(chosen), 0))}
    return list(chosen.items())


def whole_picture(
    index: DetectionIndex,
    image: int,
    reason: str,
    *,
    split: str,
    resize: ResizeSettings,
    anchors: Anchors,
) -> Picture:
    """Returns an image as it is, with boxes and positive anchors in its own pixels."""
    width, height = index.sizes[image].tolist()
    pixel_map = map_image((width, height), resize)
    scale, offset = np.tile(pixel_map.scale, 2), np.tile(pixel_map.offset, 2)
    boxes, labels = index.objects(image)
    network = (boxes * scale + offset).astype(np.float32)
    picture = _matched(network, labels, index.class_names, anchors)
    return Picture(
        image=reduce(load_image(index.image_paths[image])),
        size=(width, height),
        title=index.image_paths[image].rpartition("/")[2],
        reason=f"{SPLITS[split]}, {reason}",
        **picture | {"boxes": boxes, "anchors": (picture["anchors"] - offset) / scale},
    )


def augmented_pictures(
    config: Config, index: DetectionIndex, anchors: Anchors, count: int
) -> list[Picture]:
    """Returns the first training samples of a run, as its pipeline makes them."""
    if not index.num_images or not count:
        return []
    height, width = config.data.image_size
    settings = TrainSettings(
        augment_settings(config),
        batch_size=count,
        seed=config.seed,
        repeat_threshold=config.data.repeat_threshold,
    )
    with train_batches(index, settings) as batches:
        batch = next(batches)
    pictures = []
    for i, image_id in enumerate(batch["image_id"]):
        mask = batch["mask"][i]
        pictures.append(
            Picture(
                image=Image.fromarray(batch["image"][i]),
                size=(width, height),
                title=index.image_paths[image_id].rpartition("/")[2],
                reason=f"augmented to {width} x {height}",
                **_matched(
                    batch["boxes"][i][mask], batch["labels"][i][mask], index.class_names, anchors
                ),
            )
        )
    return pictures


def _matched(
    boxes: np.ndarray, labels: np.ndarray, class_names: Sequence[str], anchors: Anchors
) -> dict[str, Any]:
    """Returns the fields of a Picture that matching gives; boxes in network pixels."""
    positives, owners = anchors.positives(boxes)
    overlap = aligned_iou(anchors.boxes[positives], boxes[owners])
    covered = np.zeros(len(boxes), bool)
    # A box whose every anchor went to a neighbour has the forced one alone, as one out of reach.
    covered[owners[overlap >= anchors.positive_threshold]] = True
    return dict(
        boxes=boxes,
        names=[class_names[label] for label in labels],
        covered=covered,
        best_iou=anchors.overlaps(boxes),
        anchors=anchors.boxes[positives],
        owners=owners,
    )
