"""Demo on a drawn data set: draws it, trains, evaluates, and writes pictures and a report.

    python -m m2det_jax.demo --workdir runs/demo

The data set is written as image files and CSV, and is read like the data of a user.
"""

import argparse
import logging
import pathlib
import random
import time

from absl import app
from absl.flags import argparse_flags
from PIL import Image

from m2det_jax import runtime
from m2det_jax.config import experiments
from m2det_jax.data import load_image, read_classes, read_csv
from m2det_jax.data.synthetic import draw_dataset
from m2det_jax.drawing.boxes import contact_sheet, draw_boxes
from m2det_jax.evaluate import evaluate_checkpoint
from m2det_jax.predict import predict
from m2det_jax.predict.outputs import detections_of
from m2det_jax.report.run import PAGE
from m2det_jax.run.outputs import Outputs, new_folder
from m2det_jax.train import train

log = logging.getLogger("m2det_jax")

SHEET = "detections.jpg"


def demo(workdir: pathlib.Path, *, seed: int = 0, config_name: str = "quickstart") -> dict:
    """Runs the demo, or resumes it if it was started with the same workdir before.

    Args:
        workdir: folder for the data, the run, its report and the pictures.
        seed: seed of the drawn data set and of the training.
        config_name: experiment to train.

    Returns:
        The validation metrics.
    """
    begin = time.perf_counter()
    data, outputs = workdir / "data", Outputs(workdir, "demo")
    outputs.claim([SHEET])
    if not (data / "classes.csv").is_file():
        log.info("drawing the data set in %s", data)
        with new_folder(data) as partial:
            draw_dataset(partial, seed=seed)
    config = experiments.load_experiment(config_name)
    config.seed = seed
    for name in ("train", "val", "classes"):
        config.data[f"{name}_csv"] = str(data / f"{name}.csv")
    train(config, workdir)
    metrics = evaluate_checkpoint(workdir, report=False)  # training has written one
    with outputs.replacing(SHEET) as path:
        draw_sheet(workdir, data, seed).save(path, "JPEG", quality=92)
    minutes = (time.perf_counter() - begin) / 60
    print(f"\nAP50 {metrics['AP50']:.3f}  AP {metrics['AP']:.3f}  after {minutes:.1f} minutes")
    print(f"pictures of detections: {workdir / SHEET} and {workdir / 'predictions'}")
    if (page := workdir / PAGE).exists():
        print(f"report: {page}; open it in a browser")
    return metrics


def draw_sheet(workdir: pathlib.Path, data: pathlib.Path, seed: int) -> Image.Image:
    """Draws 12 validation images on one sheet: their ground truth and the detections."""
    index = read_csv(data / "val.csv", read_classes(data / "classes.csv"))
    chosen = sorted(random.Random(seed).sample(range(index.num_images), 12))
    done = predict(workdir, [index.image_paths[i] for i in chosen])
    pictures, titles = [], []
    for image_id, line in zip(chosen, done.lines(), strict=True):
        found = detections_of(line, index.class_names)
        image = load_image(index.image_paths[image_id])
        boxes, labels = index.objects(image_id)
        pictures += [
            draw_boxes(image, boxes, labels, index.class_names, dashed=True, zoom=1.5),
            draw_boxes(image, found.boxes, found.labels, index.class_names, found.scores, zoom=1.5),
        ]
        titles += ["ground truth", "detected"]
    return contact_sheet(pictures, columns=4, titles=titles)


def _parser() -> argparse_flags.ArgumentParser:
    parser = argparse_flags.ArgumentParser(
        prog="m2det demo", description="Draw a data set, train on it, evaluate, write pictures."
    )
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/demo"))
    parser.add_argument(
        "--seed", type=_seed, default=0, help="seed of the drawn data and of the training"
    )
    return parser


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number, 0 or more")
    if int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text}: must be below 2^32")
    return int(text)


def main(args: argparse.Namespace) -> None:
    """Runs the command with parsed arguments."""
    with runtime.one_line_errors(interrupted=runtime.GOES_ON):
        runtime.start()
        demo(args.workdir, seed=args.seed)


def cli() -> None:
    """Entry point of `m2det-demo`."""
    app.run(main, flags_parser=lambda argv: _parser().parse_args(argv[1:]))


if __name__ == "__main__":
    cli()
