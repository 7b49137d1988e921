"""Report of a trained detector: what it has learnt and where it fails, on one HTML page.

python -m m2det_jax.report --workdir runs/mine [--checkpoint best] [--csv other.csv]
python -m m2det_jax.report --workdir runs/mine --compare runs/other
"""

import argparse
import pathlib

from absl import app
from absl.flags import argparse_flags

from m2det_jax import runtime
from m2det_jax.errors import InputError
from m2det_jax.inference.evaluation import evaluation_parser


def _parser() -> argparse_flags.ArgumentParser:
    parser = evaluation_parser(
        "m2det report",
        "Show what a trained detector has learnt and where it fails, on one HTML page.",
        "folder of report.html or compare.html; default: WORKDIR",
    )
    parser.add_argument(
        "--compare", type=pathlib.Path, metavar="DIR",
        help="workdir of another run: show what is better and worse than there, in compare.html",
    )  # fmt: skip
    parser.add_argument(
        "--compare_checkpoint", default="", metavar="CHECKPOINT",
        help="of the other run; default: as --checkpoint",
    )  # fmt: skip
    return parser


def main(args: argparse.Namespace) -> None:
    """Runs the command with parsed arguments."""
    from m2det_jax.report.comparison.run import compare_runs
    from m2det_jax.report.run import report

    options = vars(args)
    workdir, wanted = options.pop("workdir"), options.pop("json")
    other, other_checkpoint = options.pop("compare"), options.pop("compare_checkpoint")
    with runtime.one_line_errors(), runtime.stdout_for_json(wanted) as document:
        if other_checkpoint and not other:
            raise InputError("--compare_checkpoint needs the other run: add --compare DIR")
        runtime.start()
        if other:
            options["other_checkpoint"] = other_checkpoint
            compare_runs(workdir, other, document=document, **options)
        else:
            report(workdir, document=document, **options)


def cli() -> None:
    """Entry point of `m2det-report`."""
    app.run(main, flags_parser=lambda argv: _parser().parse_args(argv[1:]))


if __name__ == "__main__":
    cli()
