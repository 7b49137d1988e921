"""Report of a trained detector on one HTML page: `python -m m2det_jax.report`."""


def cli() -> None:
    """Entry point of `m2det-report`."""
    from m2det_jax.report.__main__ import cli as run

    run()
