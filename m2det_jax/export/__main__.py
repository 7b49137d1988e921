"""Export of a run's detector for use without this package, compared with the native one.

python -m m2det_jax.export --workdir runs/mine --format stablehlo [--checkpoint best]
"""

import argparse
import pathlib

from absl import app
from absl.flags import argparse_flags

from m2det_jax import runtime

FORMATS = ("stablehlo", "onnx")


def _parser() -> argparse_flags.ArgumentParser:
    parser = argparse_flags.ArgumentParser(
        prog="m2det export",
        description="Export the detector of a run for use without this package, and compare it "
        "with the native detector in another process.",
        conflict_handler="resolve",  # if training is imported too, absl has a flag --trust
    )
    add = parser.add_argument
    add("--workdir", required=True, type=pathlib.Path, help="folder of the training run")
    add(
        "--format",
        required=True,
        choices=FORMATS,
        help="stablehlo: a file of jax.export; onnx: for ONNX Runtime and others",
    )
    add("--checkpoint", default="latest", help="latest (default), best, or a step")
    add("--output", default="", metavar="DIR", help="default: WORKDIR/export")
    add("--check_images", nargs="+", default=(), metavar="PATH",
        help="pictures or folders to compare on; default: up to 50 for validation")  # fmt: skip
    add("--check_python", default="", metavar="PROGRAM",
        help="Python that runs the artefact for the comparison, such as that of an environment "
        "without this package; default: this one")  # fmt: skip
    add("--weights_license", default="", metavar="TEXT", help="for the description")
    add("--trust", action="store_true",
        help="import the Python module that the run names as config.data.format")  # fmt: skip
    runtime.add_overrides(parser)
    runtime.add_json_flag(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    """Runs the command with parsed arguments."""
    from m2det_jax.export.run import export

    runtime.run_verb(export, args)


def cli() -> None:
    """Entry point of `m2det-export`."""
    app.run(main, flags_parser=lambda argv: _parser().parse_args(argv[1:]))


if __name__ == "__main__":
    cli()
