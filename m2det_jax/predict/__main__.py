"""Prediction on images, videos and cameras: drawn boxes, crops, JSON and labels.

    python -m m2det_jax.predict --workdir runs/mine PATH... [--output DIR] [--threshold 0.5]
    python -m m2det_jax.predict --workdir runs/mine --camera 0

The output folder receives predictions.jsonl, with one line per image, written during the run;
predictions.json, in COCO result form, written at the end; and the pictures. Of videos it receives
predictions.jsonl, with one line per frame, and the drawn videos. Images that cannot be
read are named and skipped. Exit status: 0; 3 if images were skipped; 1 if no image could be read,
or --strict refused one.
"""

import argparse
import inspect
import json
import pathlib
import sys
from typing import Any, TextIO

from absl import app
from absl.flags import argparse_flags

from m2det_jax import runtime
from m2det_jax.errors import InputError
from m2det_jax.pages.markup import without_nan
from m2det_jax.predict.labels import FORMS
from m2det_jax.predict.outputs import LINES
from m2det_jax.predict.run import Predicted, predict
from m2det_jax.predict.video import predict_videos
from m2det_jax.predict.video_files import is_video
from m2det_jax.run import readers

_INTERRUPTED = f"interrupted; {LINES} has the finished images, the same command starts again"


def _parser() -> argparse_flags.ArgumentParser:
    parser = argparse_flags.ArgumentParser(
        prog="m2det predict",
        description="Draw detections on images and write them as JSON. Exit status: 0; 3 if "
        "images were skipped; 1 if no image could be read.",
    )
    add = parser.add_argument
    add("paths", nargs="*", metavar="PATH", help="image files, folders, globs in quotes, http(s) "
        "URLs, a COCO image list, or video files")  # fmt: skip
    add("--list", default="", dest="list_file", metavar="FILE",
        help="text file with a path or URL a line; -: standard input")  # fmt: skip
    add("--camera", default="", metavar="CAMERA",
        help="a camera's number, its device, or the URL of a stream; Ctrl-C ends it")  # fmt: skip
    add("--workdir", required=True, type=pathlib.Path, help="folder of the training run")
    add("--checkpoint", default="latest", help="latest (default), best, or a step")
    add("--output", default="", help="folder; default: WORKDIR/predictions")
    add("--root", default="", help="folder of a COCO list's images; default: that of the list")
    add("--threshold", type=float, default=0.5, help="lowest score, 0..1 (default 0.5)")
    add("--class_threshold", action="append", default=[], dest="class_thresholds",
        metavar="NAME=SCORE", help="another threshold for a class; can be repeated")  # fmt: skip
    add("--classes", action="append", default=[], metavar="NAME,...",
        help="classes to keep; can be repeated")  # fmt: skip
    add("--batch_size", type=int, default=0, help="images per call; default: one per device")
    add(
        "--slice",
        type=_slices,
        dest="slices",
        metavar="PIXELS",
        help="see large images in "
        "overlapping tiles, too: pixels of a tile's longer side, or auto: the network input",
    )
    readers.add_flags(parser)
    add("--no_pictures", action="store_false", dest="pictures", help="write no pictures with boxes")
    add("--crops", action="store_true", help="write each detection as a JPEG, in crops/CLASS/")
    add("--save", action="append", default=[], metavar="FORM,...",
        help=f"other forms to write: {', '.join(FORMS)}; json is always written")  # fmt: skip
    add("--strict", action="store_true", help="stop if an image cannot be read")
    runtime.add_overrides(parser)
    runtime.add_json_flag(parser)
    return parser


def _slices(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def _of_videos(options: dict[str, Any]) -> dict[str, Any]:
    """Returns the options of videos and cameras; refuses what is given for images only."""
    parser, known = _parser(), inspect.signature(predict_videos).parameters
    flags = {action.dest: action.option_strings[-1:] for action in parser._actions}
    for name, value in options.items():
        if name not in known and value != parser.get_default(name):
            raise InputError(f"{flags[name][0]}: it is for images, not for videos and cameras")
    return {name: value for name, value in options.items() if name in known}


def write_document(document: TextIO, done: Predicted) -> None:
    """Writes the document of --json one image at a time, so that it never lies in memory."""
    counts = {name: getattr(done, name) for name in ("detections", "skipped", "undrawn")}
    files = [str(done.folder / name) for name in done.files]
    head = json.dumps({**counts, "folder": str(done.folder), "files": files}, indent=2)
    document.write(head.removesuffix("\n}") + ',\n  "images": [')
    for number, line in enumerate(done.lines()):
        document.write(f"{',' if number else ''}\n    {json.dumps(without_nan(line))}")
    document.write("\n  ]\n}\n")
    document.flush()  # so that an error is raised here


def main(args: argparse.Namespace) -> None:
    """Runs the command with parsed arguments; the exit status is 3 if images were skipped."""
    options = vars(args)
    workdir, paths = options.pop("workdir"), options.pop("paths")
    wanted = options.pop("json")
    with (
        runtime.one_line_errors(interrupted=_INTERRUPTED),
        runtime.stdout_for_json(wanted) as document,
    ):
        runtime.start()
        if options["camera"] or any(map(is_video, paths)):
            done = predict_videos(workdir, paths, **_of_videos(options))
        else:
            del options["camera"]
            done = predict(workdir, paths, **options)
        if document:
            write_document(document, done)
    if done.skipped or done.undrawn:
        sys.exit(3)


def cli() -> None:
    """Entry point of `m2det-predict`."""
    app.run(main, flags_parser=_parse)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = _parser()
    args = parser.parse_args(argv[1:])
    if not args.paths and not args.camera and not args.list_file:
        parser.error("the following arguments are required: PATH, --list or --camera")
    return args


if __name__ == "__main__":
    cli()
