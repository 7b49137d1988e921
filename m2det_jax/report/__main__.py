"""Report of a trained detector: what it has learnt and where it fails, on one HTML page.

python -m m2det_jax.report --workdir runs/mine [--checkpoint best] [--csv other.csv]
"""

import argparse

from absl import app
from absl.flags import argparse_flags

from m2det_jax import runtime
from m2det_jax.inference.evaluation import evaluation_parser


def _parser() -> argparse_flags.ArgumentParser:
    return evaluation_parser(
        "m2det report",
        "Show what a trained detector has learnt and where it fails, on one HTML page.",
        "folder of report.html; default: WORKDIR",
    )


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
