"""What `python -m m2det_jax.check` does: data and anchors looked at before a training."""


def cli() -> None:
    """Entry point of `m2det-check`."""
    from m2det_jax.check.__main__ import cli as run

    run()
