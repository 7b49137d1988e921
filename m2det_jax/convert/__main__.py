"""Converts weights: official M2Det checkpoints in and out, and pretrained backbones in.

    python -m m2det_jax.convert official m2det512_vgg.pth --workdir runs/m2det512 --size 512 \
        --classes coco
    python -m m2det_jax.convert backbone resnet50.pth --output backbones/resnet50
    python -m m2det_jax.convert to_official --workdir runs/mine mine.pth

A .safetensors needs nothing; a .pth needs PyTorch (pip install '.[torch]'). docs/weights.md says
where the files come from.
"""

import argparse
import pathlib
from collections.abc import Callable
from typing import Any

from m2det_jax.config.official import OFFICIAL_SIZES


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line; `verb` of the result names the conversion."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("m2det convert", description=__doc__, formatter_class=raw)
    verbs = parser.add_subparsers(dest="verb", required=True)

    official = verbs.add_parser("official", help="an official M2Det checkpoint to a workdir")
    official.add_argument("file", metavar="FILE", help=".pth or .safetensors")
    official.add_argument("--workdir", required=True, help="new folder for evaluate and predict")
    form = official.add_mutually_exclusive_group(required=True)
    form.add_argument("--size", type=int, choices=OFFICIAL_SIZES, help="input size it is made for")
    form.add_argument("--config", help="experiment of the official form, in place of --size")
    official.add_argument("--classes", required=True, help="coco, voc, or a CSV: class_name,id")
    official.add_argument(
        "--new_class_heads",
        action="store_true",
        help="the classes may be others than the file's: the class heads get random weights",
    )

    backbone = verbs.add_parser("backbone", help="torchvision, timm or SSD weights of a backbone")
    backbone.add_argument("file", metavar="FILE", help=".pth or .safetensors")
    backbone.add_argument("--output", required=True, help="new folder")
    rgb: dict[str, Any] = dict(type=float, nargs=3, metavar=("R", "G", "B"))
    backbone.add_argument("--mean", **rgb, help="0..255, where the usual one is wrong")
    backbone.add_argument("--std", **rgb, help="0..255, where the usual one is wrong")
    backbone.add_argument("--channel_order", choices=("rgb", "bgr"), help="likewise")

    out = verbs.add_parser("to_official", help="a checkpoint of ours to the official code's form")
    out.add_argument("file", metavar="OUT", help="new .pth or .safetensors")
    out.add_argument("--workdir", required=True, help="of the training run")
    out.add_argument("--checkpoint", default="latest", help="latest (default), best, or a step")
    return parser.parse_args(argv)


def cli(argv: list[str] | None = None) -> None:
    """Entry point of `m2det-convert`."""
    options = vars(parse(argv))
    # Imported late: `--help` and a misspelt flag answer at once.
    from m2det_jax import runtime
    from m2det_jax.convert import weights

    verbs: dict[str, Callable[..., None]] = {
        "official": weights.from_official,
        "backbone": weights.from_backbone,
        "to_official": weights.to_official,
    }
    verb, file = verbs[options.pop("verb")], pathlib.Path(options.pop("file"))
    with runtime.one_line_errors():
        runtime.start()
        verb(file, **options)


if __name__ == "__main__":
    cli()
