"""The process around a verb: log lines, devices, compilation cache, and one-line error endings."""

import argparse
import contextlib
import functools
import importlib.metadata
import importlib.util
import logging
import os
import pathlib
import pkgutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import absl.logging
import jax
import tqdm

from m2det_jax.errors import BUG, InputError, in_words
from m2det_jax.pages.markup import printable_lines
from m2det_jax.run import devices as cluster
from m2det_jax.run.memory import is_exhausted
from m2det_jax.run.signals import Stopped

log = logging.getLogger("m2det_jax")

# What Ctrl-C is answered with, where a run keeps checkpoints.
GOES_ON = "interrupted; the same command goes on from the last checkpoint, if there is one"


def start(
    platform: str = "", deterministic: bool = False, distributed: Mapping[str, Any] | None = None
) -> None:
    """Sets up logging and the compilation cache, and reports the devices.

    Args:
      platform: "" takes what jax finds; else the run is refused on another platform.
      deterministic: asks for deterministic GPU kernels; must come before jax meets a device.
      distributed: arguments of `devices.join_cluster`; None: one process.

    Raises:
      ValueError: jax does not find the platform that is asked for, or the other processes.
    """
    _configure_logging()
    start_quietly(platform, deterministic, distributed)


def start_quietly(
    platform: str = "", deterministic: bool = False, distributed: Mapping[str, Any] | None = None
) -> None:
    """As `start`, in a program of the user's: logging stays as it is."""
    set_up_jax(deterministic=deterministic)
    if distributed is None:
        cluster.refuse_several_processes("see docs/clusters.md")
    else:
        cluster.join_cluster(**distributed)
        if jax.process_index():  # one voice is enough
            log.setLevel(logging.WARNING)
    devices = _devices(platform)
    kinds = ", ".join(sorted({device.device_kind for device in devices}))
    log.info("devices: %d x %s (%s), jax %s", len(devices), devices[0].platform, kinds,
             jax.__version__)  # fmt: skip


def set_up_jax(*, deterministic: bool = False) -> None:
    """Sets the XLA flags and the folder of the compilation cache; a user's own choices stay."""
    add_xla_flags(deterministic=deterministic)
    # A second start need not compile again; JAX_COMPILATION_CACHE_DIR chooses another place.
    if not jax.config.jax_compilation_cache_dir:
        home = os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(home) / "m2det_jax"))


def add_xla_flags(*, deterministic: bool = False) -> None:
    """Adds to XLA_FLAGS what programs are compiled with; a user's own choice for a CPU stays.

    XLA reads the variable once, when jax meets its first device.
    """
    flags = os.environ.get("XLA_FLAGS", "").split()
    # XLA aborts on a flag that it does not know, and the plugin of a device may bring an older one.
    if jax.__version_info__ < (0, 13) and _only_cpu():
        # By default a CPU's convolutions go to YNNPACK too. Eigen's take a third of the time off
        # quickstart's training step with jax 0.10.2, a seventh with 0.12.0.1.
        name = "--xla_cpu_experimental_ynn_fusion_type="
        if not any(flag.startswith(name) for flag in flags):
            flags.append(f"{name}LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE")
    # The last of two counts: what the config asks for is not undone by the variable.
    if deterministic and (asked := "--xla_gpu_deterministic_ops=true") not in flags[-1:]:
        flags.append(asked)
    os.environ["XLA_FLAGS"] = " ".join(flags)


def _only_cpu() -> bool:
    """Says whether jax will run on the CPU alone, without asking jax, which would read XLA_FLAGS.

    Where no platforms are chosen, jax loads the plugins of devices that it finds installed.
    """
    if chosen := jax.config.jax_platforms:
        return chosen == "cpu"
    if importlib.util.find_spec("libtpu") or os.environ.get("PJRT_NAMES_AND_LIBRARY_PATHS"):
        return False
    if importlib.metadata.entry_points(group="jax_plugins"):
        return False
    # Plugins without an entry point are modules of this package, which its distributions share.
    spec = importlib.util.find_spec("jax_plugins")
    return spec is None or not any(pkgutil.iter_modules(spec.submodule_search_locations))


def _devices(platform: str) -> list[jax.Device]:
    try:
        devices = jax.devices()
    except RuntimeError as error:
        raise InputError(f"jax finds no usable device: {error}") from None
    # jax calls NVIDIA and AMD devices "gpu".
    if platform and devices[0].platform != platform:
        raise InputError(
            f"config.platform is {platform!r}, but jax finds only {devices[0].platform!r} devices; "
            "for NVIDIA GPUs install m2det_jax[cuda12] or [cuda13] and check `nvidia-smi`; "
            "or run with --config.platform=''"
        )
    return devices


def _configure_logging() -> None:
    if not log.handlers:
        handler = _BesideTheBar()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False
        sys.unraisablehook = functools.partial(_without_closed_loops, sys.unraisablehook)
    absl.logging.set_verbosity(absl.logging.WARNING)
    for logger in (absl.logging.get_absl_logger(), logging.getLogger("asyncio")):
        logger.addFilter(_worth_reading)


class _BesideTheBar(logging.StreamHandler):
    """Writes log lines above a progress bar, not through it."""

    def emit(self, record: logging.LogRecord) -> None:
        # A terminal that was closed, or a full disk under a log file, must not end a run.
        with (
            contextlib.suppress(OSError),
            tqdm.tqdm.external_write_mode(file=sys.stderr),
        ):
            # File names may hold what a terminal obeys.
            sys.stderr.write(printable_lines(self.format(record)) + "\n")


# Orbax warns of what is meant here: saves between evaluations, and reading without writing.
_EXPECTED = ("did not provide metrics", "read_only=True", "Given directory is read only")


def _worth_reading(record: logging.LogRecord) -> bool:
    # The threads of a save that fails tell it in hundreds of lines, and then it is raised as well.
    if record.exc_info and ("orbax" in record.pathname or record.name == "asyncio"):
        return False
    return not any(text in record.getMessage() for text in _EXPECTED)


@contextlib.contextmanager
def expected_warnings_left_out() -> Iterator[None]:
    """Leaves out, inside, what Orbax warns of and is meant; in a program with its own logging."""
    loggers = (absl.logging.get_absl_logger(), logging.getLogger("asyncio"))
    for logger in loggers:
        logger.addFilter(_worth_reading)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(_worth_reading)


def _without_closed_loops(hook: Callable, unraisable: Any) -> None:
    """Leaves out what the threads of a failed save tell an event loop that is closed by then."""
    if str(unraisable.exc_value) != "Event loop is closed":
        hook(unraisable)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Adds --set, whose values `trained.restore` takes as overrides."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="eval.KEY=VALUE",
        help="change a key of config.eval, such as eval.nms=soft_linear or "
        "eval.test_sizes=320,512; may be repeated",
    )


@contextlib.contextmanager
def one_line_errors(interrupted: str = "interrupted") -> Iterator[None]:
    """Ends the process in one clear message for what the user can mend, instead of a traceback.

    All other errors keep theirs, and say that they are bugs; M2DET_TRACEBACK=1 keeps all.

    One process of several leaves the others behind at any error, see `devices.leave`.

    Args:
        interrupted: what Ctrl-C is answered with.
    """
    try:
        with _translated(interrupted):
            yield
    except BaseException as error:
        code = error.code if isinstance(error, SystemExit) else 1
        # All of them stop for a signal, and together.
        if not jax.distributed.is_initialized() or isinstance(error.__context__, Stopped):
            raise
        if isinstance(error, SystemExit):
            print(code, file=sys.stderr)
        else:
            traceback.print_exc()
        cluster.leave(code if isinstance(code, int) else 1)


@contextlib.contextmanager
def _translated(interrupted: str) -> Iterator[None]:
    try:
        yield
    except (InputError, OSError, FloatingPointError) as error:
        if os.environ.get("M2DET_TRACEBACK"):
            raise
        sys.exit(printable_lines(f"error: {in_words(error)}"))
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if os.environ.get("M2DET_TRACEBACK") or not (
            isinstance(error, MemoryError) or is_exhausted(error)
        ):
            raise
        sys.exit(printable_lines(f"error: {str(error) or 'out of memory'}"))
    except Stopped as stopped:
        with contextlib.suppress(OSError):  # the terminal may be gone
            print(stopped, file=sys.stderr)
        sys.exit(stopped.status)
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        error.add_note(BUG)
        raise
