"""Check of data and anchors before a training: `python -m m2det_jax.check`."""


def cli() -> None:
    """Entry point of `m2det-check`."""
    from m2det_jax.check.__main__ import cli as run

    run()
