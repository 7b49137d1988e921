"""Draws detections on images and folders of images, and writes them as COCO results.

python -m m2det_jax.predict --workdir runs/mine PATH... [--output DIR] [--threshold 0.5]
"""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Iterator, Sequence

import jax
import numpy as np
import tqdm
from absl import app
from absl.flags import argparse_flags
from PIL import Image

from m2det_jax import devices, memory, runtime
from m2det_jax.data import DetectionIndex, eval_batches, load_image, read_size
from m2det_jax.detections import to_original
from m2det_jax.draw import draw_boxes
from m2det_jax.metrics import ImageDetections, coco_results
from m2det_jax.multiscale import MultiScale, make_views
from m2det_jax.trained import Restored, restore

log = logging.getLogger("m2det_jax")

IMAGE_SUFFIXES = frozenset(".jpg .jpeg .png .bmp .gif .webp .tif .tiff .ppm .pgm".split())


def find_images(paths: Sequence[str | pathlib.Path]) -> list[pathlib.Path]:
    """Returns the image files among `paths`; folders are searched to any depth, in order of name.

    Raises:
      ValueError: a path does not exist, or a folder holds no image; all such paths are named.
    """
    found, problems = [], []
    for path in map(pathlib.Path, paths):
        if path.is_dir():
            inside = [p for p in sorted(path.rglob("*")) if p.suffix.lower() in IMAGE_SUFFIXES]
            found += inside
            if not inside:
                problems.append(f"{path}: no images in this folder")
        elif path.is_file():
            found.append(path)
        else:
            problems.append(f"{path}: no such file or folder")
    if problems:
        raise ValueError("; ".join(problems))
    return list(dict.fromkeys(path.absolute() for path in found))


def index_of(paths: Sequence[pathlib.Path], class_names: tuple[str, ...]) -> DetectionIndex:
    """Returns the images as a data set without objects.

    Raises:
      ValueError: files that are no readable images, all of them named.
    """
    sizes, problems = [], []
    for path in paths:
        try:
            sizes.append(read_size(path))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("; ".join(problems))
    return DetectionIndex(
        image_paths=tuple(map(str, paths)),
        sizes=np.array(sizes, np.int32).reshape(-1, 2),
        boxes=np.zeros((0, 4), np.float32),
        labels=np.zeros((0,), np.int32),
        offsets=np.zeros(len(sizes) + 1, np.int64),
        class_names=class_names,
    )


def predict(
    workdir: pathlib.Path,
    paths: Sequence[str],
    *,
    checkpoint: str = "latest",
    output: str = "",
    threshold: float = 0.5,
    batch_size: int = 0,
    overrides: Sequence[str] = (),
) -> list[ImageDetections]:
    """Detects objects in images, draws them and writes all as JSON.

    Args:
      paths: image files and folders.
      output: folder for pictures and predictions.json; "": workdir/predictions.
      threshold: lowest score that is drawn and written, 0..1; instead of config.eval's.
      batch_size: images per call, over all devices; 0: one per device.
      overrides: changes of config.eval, such as "eval.nms=soft_linear".

    Returns:
      One ImageDetections per image, in pixels of the original image.
    """
    if any(override.startswith("eval.score_threshold=") for override in overrides):
        raise ValueError("--set eval.score_threshold: give predict --threshold instead")
    restored = restore(workdir, checkpoint, overrides)
    batch_size = batch_size or jax.device_count()
    devices.check_divisible("--batch_size", batch_size)
    index = index_of(find_images(paths), restored.class_names)
    index = dataclasses.replace(index, class_ids=restored.class_ids)
    folder = pathlib.Path(output or workdir / "predictions")
    folder.mkdir(parents=True, exist_ok=True)
    names = picture_names(index.image_paths)

    results = []
    found = detect_images(restored, index, threshold, batch_size)
    with memory.batch_explained("prediction", "--batch_size", batch_size):
        for detections in tqdm.tqdm(found, "predict", index.num_images, leave=False, disable=None):
            draw(detections, index).save(folder / names[detections.image_id], quality=92)
            results.append(detections)
    target = folder / "predictions.json"
    target.write_text(json.dumps(coco_results(index, results), indent=1) + "\n")
    count = sum(len(detections.scores) for detections in results)
    print(f"{count} detections in {len(results)} images; pictures and {target.name} in {folder}")
    return results


def detect_images(
    restored: Restored, index: DetectionIndex, threshold: float, batch_size: int
) -> Iterator[ImageDetections]:
    """Yields the detections of every image of an index, in order, by the views of the config."""
    suppression = restored.detector.suppression.at_threshold(threshold)
    detector = dataclasses.replace(restored.detector, suppression=suppression)
    replicated, by_batch = devices.data_mesh()
    variables = jax.device_put(restored.variables, replicated)
    if views := make_views(restored.config):
        multi = MultiScale(detector, views)
        for images, _ in multi.detect(variables, index, batch_size=batch_size, sharding=by_batch):
            yield from images
        return
    detect = detector.detect_fn()
    for batch in eval_batches(index, resize=detector.resize, batch_size=batch_size):
        found = detect(variables, jax.device_put(batch["image"], by_batch))
        yield from to_original(jax.device_get(found), batch, index)


def draw(detections: ImageDetections, index: DetectionIndex) -> Image.Image:
    """Returns the picture of an image with its detections."""
    return draw_boxes(
        load_image(index.image_paths[detections.image_id]),
        detections.boxes,
        detections.labels,
        index.class_names,
        detections.scores,
    )


def picture_names(paths: Sequence[str]) -> list[str]:
    """Returns one name per picture: the image's own, numbered where two would be the same."""
    taken, names = set(), []
    for path in paths:
        stem = pathlib.Path(path).stem
        name, number = f"{stem}.jpg", 1
        while name in taken:
            number += 1
            name = f"{stem}_{number}.jpg"
        taken.add(name)
        names.append(name)
    return names


def _parser() -> argparse_flags.ArgumentParser:
    parser = argparse_flags.ArgumentParser(
        prog="m2det-predict", description="Draw detections on images and write them as JSON."
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="image files or folders")
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="of the training run")
    parser.add_argument("--checkpoint", default="latest", help="latest (default), best, or a step")
    parser.add_argument("--output", default="", help="folder; default: WORKDIR/predictions")
    parser.add_argument("--threshold", type=float, default=0.5, help="lowest score (default 0.5)")
    parser.add_argument("--batch_size", type=int, default=0, help="default: one per device")
    runtime.add_overrides(parser)
    return parser


def main(args) -> None:
    """Runs the verb on parsed arguments."""
    runtime.one_line_errors(runtime.start)
    options = vars(args)
    runtime.one_line_errors(predict, options.pop("workdir"), options.pop("paths"), **options)


def cli() -> None:
    """Entry point of `m2det-predict`."""
    app.run(main, flags_parser=lambda argv: _parser().parse_args(argv[1:]))


if __name__ == "__main__":
    cli()
