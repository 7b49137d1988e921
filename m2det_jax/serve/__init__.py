"""Service over HTTP of a trained detector: what `python -m m2det_jax.serve` does."""


def cli(argv: list[str] | None = None) -> None:
    """Entry point of `m2det-serve`."""
    from m2det_jax.serve.__main__ import cli as run

    run(argv)
