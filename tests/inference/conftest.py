"""A trained detector that is sure of something, for the tests of inference."""

import pytest
import support

import m2det_jax


@pytest.fixture(scope="session")
def workdir(whole, tmp_path_factory):
    """The workdir of a tiny run (input 64 x 96, six classes), whose scores lie all over 0..1."""
    return support.make_surer(whole[0], tmp_path_factory.mktemp("sure"))


@pytest.fixture(scope="session")
def detector(workdir):
    return m2det_jax.load(workdir)
