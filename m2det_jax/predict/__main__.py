"""Draws detections on images, folders and COCO image lists, and writes them as JSON.

    python -m m2det_jax.predict --workdir runs/mine PATH... [--output DIR] [--threshold 0.5]

The folder gets predictions.jsonl, a line an image as they are done; predictions.json, COCO results,
at the end; and the pictures. What cannot be read is named and skipped. The exit status is 0, 3
where something was skipped, 1 where nothing was done or --strict refuses.
"""

import pathlib
import sys

from absl import app
from absl.flags import argparse_flags

from m2det_jax import runtime
from m2det_jax.predict.outputs import LINES
from m2det_jax.predict.run import predict
from m2det_jax.run import readers

_INTERRUPTED = f"interrupted; {LINES} has what was done, the same command begins anew"


def _parser() -> argparse_flags.ArgumentParser:
    parser = argparse_flags.ArgumentParser(
        prog="m2det-predict",
        description="Draw detections on images and write them as JSON. Exit status: 0; 3 where "
        "images were skipped; 1 where nothing was done.",
    )
    add = parser.add_argument
    add("paths", nargs="+", metavar="PATH", help="image files or folders, or a COCO image list")
    add("--workdir", required=True, type=pathlib.Path, help="of the training run")
    add("--checkpoint", default="latest", help="latest (default), best, or a step")
    add("--output", default="", help="folder; default: WORKDIR/predictions")
    add("--root", default="", help="folder of the images of a list; default: that of the list")
    add("--threshold", type=float, default=0.5, help="lowest score, 0..1 (default 0.5)")
    add("--batch_size", type=int, default=0, help="default: one per device")
    readers.add_flags(parser)
    add("--no_pictures", action="store_false", dest="pictures", help="write JSON only")
    add("--strict", action="store_true", help="refuse images that cannot be read")
    runtime.add_overrides(parser)
    return parser


def main(args) -> None:
    """Runs the verb on parsed arguments; exit status 3 where images were skipped."""
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
