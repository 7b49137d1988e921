"""A network small enough for every test, and its variables."""

import pytest

from m2det_jax.model import M2Det, init_variables

TINY = dict(
    num_class_outputs=5,
    backbone_width=0.125,
    num_levels=2,
    num_scales=3,
    shallow_channels=8,
    deep_channels=16,
    reduced_channels=8,
    tum_width=16,
    tum_out=8,
)


@pytest.fixture(scope="session")
def make_tiny():
    """Function of M2Det fields to override -> (model, variables)."""

    def make(**fields):
        model = M2Det(**(TINY | fields))
        return model, init_variables(model, (64, 64), seed=0)

    return make
