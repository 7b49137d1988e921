"""A trained detector that is sure of something, and a service of it."""

import pytest
import serving
import support

import m2det_jax


@pytest.fixture(scope="session")
def workdir(whole, tmp_path_factory):
    """The workdir of a tiny run (input 64 x 96, six classes), whose scores are about 0.9."""
    return support.make_surer(whole[0], tmp_path_factory.mktemp("sure"), 12)


@pytest.fixture(scope="session")
def detector(workdir):
    return m2det_jax.load(workdir)


@pytest.fixture(scope="session")
def service(detector):
    with serving.running(detector, threshold=0.3, max_pixels=3_000_000) as service:
        yield service
