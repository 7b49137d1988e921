"""Diagnosis of an installation and its machine: what `python -m m2det_jax.doctor` does."""


def cli(argv: list[str] | None = None) -> None:
    """Entry point of `m2det doctor`."""
    from m2det_jax.doctor.__main__ import cli as run

    run(argv)
