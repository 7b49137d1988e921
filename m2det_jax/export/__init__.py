"""Export of a run's detector for use without this package: `python -m m2det_jax.export`."""


def cli() -> None:
    """Entry point of `m2det-export`."""
    from m2det_jax.export.__main__ import cli as run

    run()
