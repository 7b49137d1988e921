"""Evaluates a trained detector: the COCO table, VOC AP50 and AP per class.

python -m m2det_jax.evaluate --workdir runs/mine [--checkpoint best] [--csv other.csv]
"""

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

from m2det_jax import devices, memory, runtime
from m2det_jax.checkpoint import Restored, restore
from m2det_jax.data import DetectionIndex, eval_batches, read_csv
from m2det_jax.datasets import load_validation
from m2det_jax.detect import Detector
from m2det_jax.detections import to_original
from m2det_jax.metrics import ImageDetections, coco_metrics, coco_results, format_table
from m2det_jax.multiscale import MultiScale, make_views
from m2det_jax.outputs import Outputs
from m2det_jax.report.markup import printable
from m2det_jax.train_step import StepSettings, eval_losses

log = logging.getLogger("m2det_jax")


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
    num_threads: int = 2,
) -> tuple[dict, list[ImageDetections]]:
    """Runs a jitted eval step over a data set.

    Returns:
      (metrics, detections): the metrics of `coco_metrics` with loss, loss_class and loss_box
      added, and one ImageDetections per image, in pixels of the original images.
    """
    batches = eval_batches(
        index,
        resize=detector.resize,
        batch_size=batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_threads=num_threads,
    )
    detections, losses = [], []
    total = -(-index.num_images // batch_size)
    for batch in tqdm.tqdm(batches, "evaluate", total, leave=False, disable=None):
        batch = devices.put_batch(batch, sharding)
        arrays = {k: batch[k] for k in ("image", "boxes", "labels", "mask", "image_id")}
        found, terms = eval_step(variables, arrays)
        placing = {k: batch[k] for k in ("image_id", "scale", "offset")}
        detections += to_original(*devices.fetch((found, placing)), index)
        losses.append(jax.device_get(terms))
    return summarize(index, detections, losses)


def evaluate_views(
    multi: MultiScale,
    variables: dict,
    index: DetectionIndex,
    *,
    batch_size: int,
    sharding: jax.sharding.Sharding,
    num_threads: int = 2,
) -> tuple[dict, list[ImageDetections]]:
    """As `evaluate`, by several views of each image; `multi` is made with settings of the loss."""
    found = multi.detect(
        variables, index, batch_size=batch_size, sharding=sharding, num_threads=num_threads
    )
    detections, losses = [], []
    total = -(-index.num_images // batch_size)
    for images, terms in tqdm.tqdm(found, "evaluate", total, leave=False, disable=None):
        detections += images
        losses.append(jax.device_get(terms))
    return summarize(index, detections, losses)


def summarize(
    index: DetectionIndex, detections: list[ImageDetections], losses: list[dict]
) -> tuple[dict, list[ImageDetections]]:
    """Returns (metrics, detections) of `evaluate` from the loss terms of its batches."""
    # Several processes have dealt the images among them; ties in score go by this order.
    detections.sort(key=lambda one: one.image_id)
    metrics = coco_metrics(index, detections)
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
    )


def evaluate_checkpoint(
    workdir: pathlib.Path,
    *,
    checkpoint: str = "latest",
    csv: str = "",
    batch_size: int = 0,
    output: str = "",
    overrides: Sequence[str] = (),
) -> dict:
    """Restores a checkpoint, evaluates it, prints the table and writes metrics and detections.

    Args:
      csv: annotations to evaluate on; "": the validation set of the run.
      batch_size: images per call, over all devices; 0: that of the config.
      output: JSON file for the metrics; "": workdir/evaluation/STEP.json. The detections, in COCO
        result form, go beside it.
      overrides: changes of config.eval, such as "eval.nms=soft_linear".
    """
    restored = restore(workdir, checkpoint, overrides)
    target = pathlib.Path(output or workdir / "evaluation" / f"{restored.step:08d}.json")
    names = (target.name, f"{target.stem}_detections.json")
    outputs = Outputs(target.parent, "evaluate")
    outputs.claim(names, [csv] if csv else [])
    if csv:
        index, source = read_csv(csv, restored.class_names), csv
    else:
        index, source = load_validation(
            restored.config, workdir, restored.class_names, restored.class_ids
        )
    batch_size = batch_size or restored.config.eval.batch_size
    devices.check_divisible("--batch_size", batch_size)
    outputs.claim(names, index.image_paths)
    target.parent.mkdir(parents=True, exist_ok=True)
    log.info("evaluating step %d on %d images of %s", restored.step, index.num_images, source)
    with memory.batch_explained("the evaluation", "--batch_size", batch_size):
        metrics, detections = _evaluate_restored(restored, index, batch_size)
    record = without_nan(metrics) | {"step": restored.step, "data": source}
    record["eval"] = restored.config.eval.to_dict()
    outputs.write(names[0], json.dumps(record, indent=2) + "\n")
    outputs.write(names[1], json.dumps(coco_results(index, detections)) + "\n")
    print(format_table(metrics))
    print(printable(f"written: {target} and {names[1]}"))
    return metrics


def _evaluate_restored(
    restored: Restored, index: DetectionIndex, batch_size: int
) -> tuple[dict, list[ImageDetections]]:
    detector, settings = restored.detector, step_settings(restored.config)
    replicated, by_batch = devices.data_mesh()
    variables = jax.device_put(restored.variables, replicated)
    common = dict(batch_size=batch_size, sharding=by_batch)
    if views := make_views(restored.config):
        multi = MultiScale(detector, views, settings)
        return evaluate_views(multi, variables, index, **common)
    eval_step = jax.jit(make_eval_step(detector, settings))
    return evaluate(eval_step, variables, index, detector, **common)


def _parser() -> argparse_flags.ArgumentParser:
    parser = argparse_flags.ArgumentParser(
        prog="m2det-evaluate", description="Evaluate a trained detector on annotated images."
    )
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="of the training run")
    parser.add_argument("--checkpoint", default="latest", help="latest (default), best, or a step")
    parser.add_argument("--csv", default="", help="annotations; default: the run's validation set")
    parser.add_argument("--batch_size", type=int, default=0, help="default: that of the config")
    parser.add_argument("--output", default="", help="default: WORKDIR/evaluation/STEP.json")
    runtime.add_overrides(parser)
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
