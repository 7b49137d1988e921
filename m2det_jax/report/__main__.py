"""Report of a trained detector: what it has learnt and where it fails, on one HTML page.

python -m m2det_jax.report --workdir runs/mine [--checkpoint best] [--csv other.csv]
"""

import argparse
import pathlib

from absl import app
from absl.flags import argparse_flags

from m2det_jax import runtime
from m2det_jax.datasets.evaluation import add_flags
from m2det_jax.run import readers


def _parser() -> argparse_flags.ArgumentParser:
    parser = argparse_flags.ArgumentParser(
        prog="m2det report",
        description="Show what a trained detector has learnt and where it fails, on one HTML page.",
        conflict_handler="resolve",  # if training is imported too, absl has a flag --trust
    )
    parser.add_argument(
        "--workdir", required=True, type=pathlib.Path, help="folder of the training run"
    )
    parser.add_argument("--checkpoint", default="latest", help="latest (default), best, or a step")
    parser.add_argument(
        "--batch_size", type=int, default=0, help="images per call; default: as in the config"
    )
    parser.add_argument("--output", default="", help="folder of report.html; default: WORKDIR")
    readers.add_flags(parser)
    trust = "import the Python module that the run names as config.data.format"
    parser.add_argument("--trust", action="store_true", help=trust)
    runtime.add_overrides(parser)
    runtime.add_json_flag(parser)
    add_flags(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    """Runs the command with parsed arguments."""
    from m2det_jax.report.run import report

    options = vars(args)
    workdir, wanted = options.pop("workdir"), options.pop("json")
    with runtime.one_line_errors(), runtime.stdout_for_json(wanted) as document:
        runtime.start()
        report(workdir, document=document, **options)


def cli() -> None:
    """Entry point of `m2det-report`."""
    app.run(main, flags_parser=lambda argv: _parser().parse_args(argv[1:]))


if __name__ == "__main__":
    cli()
