"""Prediction on images, folders and COCO image lists: pictures with boxes, and JSON.

    python -m m2det_jax.predict --workdir runs/mine PATH... [--output DIR] [--threshold 0.5]

The output folder receives predictions.jsonl, with one line per image, written during the run;
predictions.json, in COCO result form, written at the end; and the pictures. Images that cannot be
read are named and skipped. Exit status: 0; 3 if images were skipped; 1 if no image could be read,
or --strict refused one.
"""

import argparse
import pathlib
import sys

from absl import app
from absl.flags import argparse_flags

from m2det_jax import runtime
from m2det_jax.predict.outputs import LINES
from m2det_jax.predict.run import predict
from m2det_jax.run import readers

_INTERRUPTED = f"interrupted; {LINES} has the finished images, the same command starts again"


def _parser() -> argparse_flags.ArgumentParser:
    parser = argparse_flags.ArgumentParser(
        prog="m2det-predict",
        description="Draw detections on images and write them as JSON. Exit status: 0; 3 if "
        "images were skipped; 1 if no image could be read.",
    )
    add = parser.add_argument
    add("paths", nargs="+", metavar="PATH", help="image files or folders, or a COCO image list")
    add("--workdir", required=True, type=pathlib.Path, help="folder of the training run")
    add("--checkpoint", default="latest", help="latest (default), best, or a step")
    add("--output", default="", help="folder; default: WORKDIR/predictions")
    add("--root", default="", help="folder of the images of a list; default: the list's folder")
    add("--threshold", type=float, default=0.5, help="lowest score, 0..1 (default 0.5)")
    add("--batch_size", type=int, default=0, help="images per call; default: one per device")
    readers.add_flags(parser)
    add("--no_pictures", action="store_false", dest="pictures", help="write JSON only")
    add("--strict", action="store_true", help="stop if an image cannot be read")
    runtime.add_overrides(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    """Runs the command with parsed arguments; the exit status is 3 if images were skipped."""
    options = vars(args)
    workdir, paths = options.pop("workdir"), options.pop("paths")
    with runtime.one_line_errors(interrupted=_INTERRUPTED):
        runtime.start()
        done = predict(workdir, paths, **options)
    if done.skipped or done.undrawn:
        sys.exit(3)


def cli() -> None:
    """Entry point of `m2det-predict`."""
    app.run(main, flags_parser=lambda argv: _parser().parse_args(argv[1:]))


if __name__ == "__main__":
    cli()
