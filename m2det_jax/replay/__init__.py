"""Replay of a step whose loss is not finite: `python -m m2det_jax.replay`."""


def cli() -> None:
    """Entry point of `m2det-replay`."""
    from m2det_jax.replay.__main__ import cli as run

    run()
