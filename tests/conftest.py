"""Test environment: typed ops and step, no implicit rank promotion, parsed flags, a cache."""

import functools
import logging
import os
import pathlib
import tempfile

# Eight virtual devices instead of eight accelerators; set before jax is imported. Without
# optimisation, because optimising the compiled code takes longer than running it.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0",
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# A reduction blocks one thread for each virtual device. By default there are few threads on few
# cores, so a device may get none while the others wait for it; XLA then aborts after 40 seconds.
os.environ.setdefault("PJRT_NPROC", "32")
# The cache is for the programs that tests start; this process leaves it out, as all commands do on
# several CPU devices. One per test process, because jax does not write cache entries atomically.
_WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
if _WORKER or "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _CACHE = f"m2det_jax_test_cache_{os.getuid()}{_WORKER}"
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(pathlib.Path(tempfile.gettempdir()) / _CACHE)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

from jaxtyping import install_import_hook  # noqa: E402

install_import_hook(["m2det_jax.ops", "m2det_jax.training.step"], "beartype.beartype")

import jax  # noqa: E402
import pytest  # noqa: E402
from absl import flags  # noqa: E402
from absl.flags import argparse_flags  # noqa: E402

from m2det_jax import runtime  # noqa: E402

runtime.add_xla_flags()  # the compiler flags of the commands
runtime.leave_out_cache_on_several_cpus()
jax.config.update("jax_numpy_rank_promotion", "raise")
# The worker processes of grain read absl flags, which only the main function of absl parses.
flags.FLAGS.mark_as_parsed()

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


def _directory(variable: str, default: str) -> pathlib.Path:
    path = pathlib.Path(os.environ.get(variable, REPOSITORY / default)).resolve()
    if not path.is_dir():
        pytest.skip(f"no folder {path}; set {variable}")
    return path


@pytest.fixture
def plain_parsers(monkeypatch):
    """Parsers of verbs take no flags of verbs that were imported by tests before."""
    plain = functools.partial(argparse_flags.ArgumentParser, inherited_absl_flags=None)
    monkeypatch.setattr(argparse_flags, "ArgumentParser", plain)


@pytest.fixture
def warnings_of_run(caplog, monkeypatch):
    """Warnings that the package logs, as caplog has them."""
    monkeypatch.setattr(logging.getLogger("m2det_jax"), "propagate", True)
    caplog.set_level(logging.WARNING, "m2det_jax")
    return caplog


@pytest.fixture
def log_of_run(warnings_of_run):
    """What the package logs, as caplog has it."""
    warnings_of_run.set_level(logging.INFO, "m2det_jax")
    return warnings_of_run


@pytest.fixture(scope="session")
def reference_dir() -> pathlib.Path:
    """Folder with the outputs of the official implementation."""
    return _directory("M2DET_REFERENCE", "../shared/reference")


@pytest.fixture(scope="session")
def bccd_dir() -> pathlib.Path:
    """Folder with the blood cell data set in our CSV form."""
    return _directory("M2DET_BCCD", "../shared/datasets/bccd")


@pytest.fixture(scope="session")
def drawn_files(tmp_path_factory):
    """A drawn data set of 24 training and 12 validation images."""
    import support

    from m2det_jax.data.synthetic import draw_dataset

    return draw_dataset(
        tmp_path_factory.mktemp("drawn"),
        num_train=support.NUM_TRAIN,
        num_val=support.NUM_VAL,
        short_side=(64, 96),
    )


@pytest.fixture(scope="session")
def tiny_run(drawn_files, tmp_path_factory):
    """A prepared tiny run; its step is compiled once for all tests."""
    import support

    from m2det_jax.training.prepare import first_state, prepare

    config = support.tiny_config(drawn_files)
    with support.counted_traces() as traces:
        run = prepare(config, tmp_path_factory.mktemp("tiny_run"))
    return support.TinyRun(config, run, jax.device_get(first_state(config, run)), traces)


@pytest.fixture(scope="session")
def whole(drawn_files, tmp_path_factory):
    """A complete run of 6 steps: (workdir, metrics, traces of its step)."""
    import support

    from m2det_jax.train import train

    workdir = tmp_path_factory.mktemp("whole")
    with support.counted_traces() as traces:
        metrics = train(support.short_config(drawn_files), workdir)
    return workdir, metrics, traces
