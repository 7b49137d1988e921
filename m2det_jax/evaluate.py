"""Evaluates a trained detector: the COCO table, VOC AP50 and AP per class.

python -m m2det_jax.evaluate --workdir runs/mine [--checkpoint best] [--csv other.csv]
python -m m2det_jax.evaluate --workdir runs/mine --format coco --root coco --split val2017
"""

import dataclasses
import json
import logging
import math
import pathlib
from collections.abc import Callable, Sequence

import jax
import numpy as np
import tqdm
from absl import app
from absl.flags import argparse_flags

from m2det_jax import devices, memory, readers, runtime
from m2det_jax.data import DetectionIndex, eval_batches
from m2det_jax.data.changes import shown
from m2det_jax.detect import Detector
from m2det_jax.detections import to_original
from m2det_jax.errors import InputError
from m2det_jax.evaluation_data import DataChoice, add_flags, read_data
from m2det_jax.metrics import ImageDetections, coco_metrics, coco_results, format_table
from m2det_jax.multiscale import MultiScale, make_views
from m2det_jax.outputs import Outputs, refuse_checkpoints
from m2det_jax.report.markup import printable
from m2det_jax.train_step import StepSettings, eval_losses
from m2det_jax.trained import Restored, restore

log = logging.getLogger("m2det_jax")

ON_DEVICE = ("image", "boxes", "labels", "mask", "image_id")  # of a batch, what the step takes
_PLACING = ("image_id", "scale", "offset")


def make_eval_step(detector: Detector, settings: StepSettings) -> Callable:
    """Returns eval_step(variables, batch) -> (Detections [B, K] in network pixels, loss terms).

    batch is that of `data.eval_batches`; the images that only fill the last batch (image_id -1)
    count nowhere.
    """

    def eval_step(variables, batch):
        outputs = detector.model.apply(variables, detector.normalize(batch["image"]), train=False)
        return detector.postprocess(outputs), eval_losses(detector, settings, outputs, batch)

    return eval_step


def evaluate(
    eval_step: Callable,
    variables: dict,
    index: DetectionIndex,
    detector: Detector,
    *,
    batch_size: int,
    sharding: jax.sharding.Sharding,
    num_workers: int = readers.AUTOMATIC,
    num_threads: int = readers.AUTOMATIC,
    on_bad_image: str = "error",
    between: Callable[[], None] = lambda: None,
) -> tuple[dict, list[ImageDetections]]:
    """Runs a jitted eval step over a data set.

    Args:
      num_workers, num_threads: that read images; -1: what fits the host.
      on_bad_image: "error"; or "skip": images that cannot be read are named, and left out.
      between: called before each batch; may raise to end the evaluation.

    Returns:
      (metrics, detections): the metrics of `coco_metrics` with loss, loss_class and loss_box
      added, and one ImageDetections per image, in pixels of the original images.
    """
    chosen = readers.eval_readers(
        index.num_images, batch_size, [detector.resize.image_size], num_workers, num_threads
    )
    batches = eval_batches(
        index,
        resize=detector.resize,
        batch_size=batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_workers=chosen.workers,
        num_threads=chosen.threads,
        on_bad_image=on_bad_image,
    )
    detections, losses = [], []
    total = -(-index.num_images // batch_size)
    with batches, tqdm.tqdm(total=total, desc="evaluate", leave=False, disable=None) as bar:
        for batch in batches:
            between()
            batch = devices.put_batch(batch, sharding)
            found, terms = eval_step(variables, {k: batch[k] for k in ON_DEVICE})
            found, placing = devices.fetch((found, {k: batch[k] for k in _PLACING}))
            detections += to_original(found, placing, index)
            losses.append(jax.device_get(terms))
            bar.update()
    return summarize(index, detections, losses)


def evaluate_views(
    multi: MultiScale,
    variables: dict,
    index: DetectionIndex,
    *,
    batch_size: int,
    sharding: jax.sharding.Sharding,
    num_workers: int = readers.AUTOMATIC,
    num_threads: int = readers.AUTOMATIC,
    on_bad_image: str = "error",
) -> tuple[dict, list[ImageDetections]]:
    """As `evaluate`, by several views of each image; `multi` is made with settings of the loss."""
    found = multi.detect(
        variables,
        index,
        batch_size=batch_size,
        sharding=sharding,
        num_workers=num_workers,
        num_threads=num_threads,
        on_bad_image=on_bad_image,
    )
    detections, losses = [], []
    total = -(-index.num_images // batch_size)
    for images, terms in tqdm.tqdm(found, "evaluate", total, leave=False, disable=None):
        detections += images
        losses.append(jax.device_get(terms))
    return summarize(index, detections, losses)


def without_unreadable(
    index: DetectionIndex, detections: list[ImageDetections]
) -> tuple[DetectionIndex, list[ImageDetections]]:
    """Leaves images out of an index that could not be read, counts the rest anew, says which.

    Args:
      detections: one for each image that was read, in order.

    Raises:
      ValueError: no image could be read.
    """
    kept = [found.image_id for found in detections]
    if len(kept) == index.num_images:
        return index, detections
    if not kept:
        raise InputError(f"none of the {index.num_images} images to evaluate on can be read")
    unreadable = sorted(set(range(index.num_images)) - set(kept))
    names = shown([index.image_paths[i] for i in unreadable])
    log.warning("%d of %d images cannot be read and are left out of the evaluation: %s",
                len(unreadable), index.num_images, names)  # fmt: skip
    moved = [dataclasses.replace(d, image_id=i) for i, d in enumerate(detections)]
    return index.subset(kept), moved


def summarize(
    index: DetectionIndex, detections: list[ImageDetections], losses: list[dict]
) -> tuple[dict, list[ImageDetections]]:
    """Returns (metrics, detections) of `evaluate` from the loss terms of its batches."""
    # Several processes have dealt the images among them; ties in score go by this order.
    detections.sort(key=lambda one: one.image_id)
    metrics = coco_metrics(*without_unreadable(index, detections))
    # Each batch's losses are per positive anchor; weigh them by the positives to get the set's.
    weights = np.maximum([terms["num_positives"] for terms in losses], 1.0)
    for name in ("loss", "loss_class", "loss_box"):
        metrics[name] = float(np.average([terms[name] for terms in losses], weights=weights))
    return metrics, detections


def without_nan(value):
    """Returns nested dicts of figures with NaN (no ground truth) as None, which JSON can hold."""
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    return None if math.isnan(value) else value


def step_settings(config) -> StepSettings:
    """Returns the plain values of a config that shape matching and losses."""
    return StepSettings(
        positive_threshold=config.anchors.positive_threshold,
        negative_threshold=config.anchors.negative_threshold,
        loss_kind=config.loss.kind,
        focal_alpha=tuple(config.loss.focal_alpha_per_class) or config.loss.focal_alpha,
        focal_gamma=config.loss.focal_gamma,
        negative_ratio=config.loss.negative_ratio,
        smooth_l1_beta=config.loss.smooth_l1_beta,
        box_weight=config.loss.box_weight,
        ema_decay=config.optimizer.ema_decay,
        accumulation=config.accumulation,
        skip_nonfinite=config.on_nonfinite == "skip",
        norm_warmup=config.optimizer.norm_warmup,
    )


def evaluate_checkpoint(
    workdir: pathlib.Path,
    *,
    checkpoint: str = "latest",
    batch_size: int = 0,
    output: str = "",
    overrides: Sequence[str] = (),
    num_workers: int = readers.AUTOMATIC,
    num_threads: int = readers.AUTOMATIC,
    trust: bool = False,
    **data,
) -> dict:
    """Restores a checkpoint, evaluates it, prints the table and writes metrics and detections.

    Args:
      batch_size: images per call, over all devices; 0: that of the config.
      output: JSON file for the metrics; "": workdir/evaluation/STEP.json. The detections, in COCO
        result form, go beside it.
      overrides: changes of config.eval, such as "eval.nms=soft_linear".
      num_workers, num_threads: that read images; -1: what fits the host.
      trust: a Python module that the run names as config.data.format may be imported.
      data: fields of evaluation_data.DataChoice, such as csv="test.csv"; none: the validation set
        of the run.
    """
    choice = DataChoice(**data)
    restored = restore(workdir, checkpoint, overrides)
    target = pathlib.Path(output or workdir / "evaluation" / f"{restored.step:08d}.json")
    names = (target.name, f"{target.stem}_detections.json")
    outputs = Outputs(target.parent, "evaluate")
    refuse_checkpoints(outputs.folder, workdir)
    outputs.claim(names, choice.files)
    index, source = read_data(choice, restored, workdir, trust=trust)
    batch_size = batch_size or restored.config.eval.batch_size
    devices.check_divisible("--batch_size", batch_size)
    batch_size = devices.no_larger_batch(batch_size, index.num_images)
    outputs.claim(names, index.image_paths)
    target.parent.mkdir(parents=True, exist_ok=True)
    log.info("evaluating step %d on %d images of %s", restored.step, index.num_images, source)
    with memory.batch_explained("the evaluation", "--batch_size", batch_size):
        metrics, detections = _evaluate_restored(
            restored, index, batch_size, num_workers=num_workers, num_threads=num_threads
        )
    record = without_nan(metrics) | {"step": restored.step, "data": source}
    record["eval"] = restored.config.eval.to_dict()
    outputs.write(names[0], json.dumps(record, indent=2) + "\n")
    outputs.write(names[1], json.dumps(coco_results(index, detections)) + "\n")
    print(format_table(metrics))
    print(printable(f"written: {target} and {names[1]}"))
    return metrics


def _evaluate_restored(
    restored: Restored, index: DetectionIndex, batch_size: int, **reading: int
) -> tuple[dict, list[ImageDetections]]:
    detector, settings = restored.detector, step_settings(restored.config)
    replicated, by_batch = devices.data_mesh()
    variables = jax.device_put(restored.variables, replicated)
    bad = restored.config.data.on_bad_image
    common = dict(batch_size=batch_size, sharding=by_batch, on_bad_image=bad, **reading)
    if views := make_views(restored.config):
        multi = MultiScale(detector, views, settings)
        return evaluate_views(multi, variables, index, **common)
    eval_step = jax.jit(make_eval_step(detector, settings))
    return evaluate(eval_step, variables, index, detector, **common)


def _parser() -> argparse_flags.ArgumentParser:
    parser = argparse_flags.ArgumentParser(
        prog="m2det-evaluate",
        description="Evaluate a trained detector on annotated images.",
        conflict_handler="resolve",  # where training is imported too, absl has a flag --trust
    )
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="of the training run")
    parser.add_argument("--checkpoint", default="latest", help="latest (default), best, or a step")
    parser.add_argument("--batch_size", type=int, default=0, help="default: that of the config")
    parser.add_argument("--output", default="", help="default: WORKDIR/evaluation/STEP.json")
    readers.add_flags(parser)
    trust = "import the Python module that the run names as config.data.format"
    parser.add_argument("--trust", action="store_true", help=trust)
    runtime.add_overrides(parser)
    add_flags(parser)
    return parser


def main(args) -> None:
    """Runs the verb on parsed arguments."""
    runtime.one_line_errors(runtime.start)
    options = vars(args)
    runtime.one_line_errors(evaluate_checkpoint, options.pop("workdir"), **options)


def cli() -> None:
    """Entry point of `m2det-evaluate`."""
    app.run(main, flags_parser=lambda argv: _parser().parse_args(argv[1:]))


if __name__ == "__main__":
    cli()
