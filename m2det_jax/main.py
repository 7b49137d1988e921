r"""Trains M2Det from the command line.

    python -m m2det_jax.main --config experiments/vgg512.py --workdir runs/mine \
        --config.data.train_csv=train.csv --config.data.val_csv=val.csv \
        --config.data.classes_csv=classes.csv

The same command resumes a run that has stopped; --workdir alone is enough for that. Any key of the
config can be set with --config.section.key=value.
"""

import pathlib

from absl import app, flags

from m2det_jax.config import command_line

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run: checkpoints, history, pictures. Default: runs/EXPERIMENT."
)
_ALLOW_CONFIG_CHANGE = flags.DEFINE_bool(
    "allow_config_change", False, "Resume even if config keys that change the result differ."
)


def parse(argv: list[str]) -> list[str]:
    """Parses the flags; an error in them is printed as one line."""
    return command_line.parse(argv, __doc__, "workdir")


def main(argv: list[str]) -> None:
    """Trains the experiment that the flags name."""
    del argv
    # Imported late: `--help` and a misspelt flag answer at once.
    from m2det_jax import runtime
    from m2det_jax.train import train

    config = command_line.CONFIG.value
    workdir = pathlib.Path(_WORKDIR.value or f"runs/{command_line.config_name()}")

    distributed = dict(
        coordinator=config.distributed.coordinator,
        num_processes=config.distributed.num_processes,
        process_id=config.distributed.process_id,
        heartbeat_seconds=config.distributed.heartbeat_seconds,
    )
    with runtime.one_line_errors(interrupted=runtime.GOES_ON):
        runtime.start(config.platform, config.deterministic, distributed)
        train(config, workdir, allow_config_change=_ALLOW_CONFIG_CHANGE.value)


def cli() -> None:
    """Entry point of `m2det-train`."""
    app.run(main, flags_parser=parse)


if __name__ == "__main__":
    cli()
