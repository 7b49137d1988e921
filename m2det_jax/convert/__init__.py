"""Weights of other programs in and out: `python -m m2det_jax.convert`."""


def cli(argv: list[str] | None = None) -> None:
    """Entry point of `m2det-convert`."""
    from m2det_jax.convert.__main__ import cli as run

    run(argv)
