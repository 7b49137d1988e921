"""Replay of a step whose loss is not finite: the first layer and the image where it happens.

python -m m2det_jax.replay --workdir runs/mine [--step 1234]
"""

import argparse
import pathlib

from absl import app
from absl.flags import argparse_flags

from m2det_jax import runtime


def _parser() -> argparse_flags.ArgumentParser:
    parser = argparse_flags.ArgumentParser(
        prog="m2det replay",
        description="Repeat a training step whose loss is not finite, and name the first layer and "
        "the image where a value is not finite. The run is not changed.",
        conflict_handler="resolve",  # if training is imported too, absl has flags of these names
    )
    add = parser.add_argument
    add("--workdir", required=True, type=pathlib.Path, help="folder of the training run")
    add("--step", type=int, default=0, help="step to repeat; default: the first that failed")
    trust = "import the Python module that the run names as config.data.format"
    add("--trust", action="store_true", help=trust)
    runtime.add_json_flag(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    """Runs the command with parsed arguments."""
    from m2det_jax.replay.outcome import tell
    from m2det_jax.replay.run import choose, replay

    with runtime.one_line_errors(), runtime.stdout_for_json(args.json) as document:
        chosen = choose(args.workdir, args.step)
        runtime.start(deterministic=chosen.config.deterministic)
        tell(replay(chosen, trust=args.trust), document)


def cli() -> None:
    """Entry point of `m2det-replay`."""
    app.run(main, flags_parser=lambda argv: _parser().parse_args(argv[1:]))


if __name__ == "__main__":
    cli()
