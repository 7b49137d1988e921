"""Process setup of a command: log lines, devices, compilation cache, and errors in one line."""

import argparse
import contextlib
import functools
import importlib.metadata
import importlib.util
import json
import logging
import os
import pathlib
import pkgutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO

import absl.logging
import jax
import tqdm
from jax.experimental.compilation_cache import compilation_cache

from m2det_jax.errors import BUG, InputError, in_words
from m2det_jax.pages.markup import printable_lines, without_nan
from m2det_jax.run import devices as cluster
from m2det_jax.run.memory import is_exhausted
from m2det_jax.run.signals import Stopped

log = logging.getLogger("m2det_jax")

# The message after Ctrl-C for commands that keep checkpoints.
GOES_ON = "interrupted; the same command resumes from the last checkpoint, if there is one"


def start(
    platform: str = "", deterministic: bool = False, distributed: Mapping[str, Any] | None = None
) -> None:
    """Sets up logging and the compilation cache, and reports the devices.

    Args:
        platform: the platform to require, such as "gpu"; "": any platform that jax finds.
        deterministic: request deterministic GPU kernels. This must happen before jax uses a device.
        distributed: arguments of `devices.join_cluster`; None: one process.

    Raises:
        InputError: if jax does not find the platform or the other processes.
    """
    _configure_logging()
    start_quietly(platform, deterministic, distributed)


def start_quietly(
    platform: str = "", deterministic: bool = False, distributed: Mapping[str, Any] | None = None
) -> None:
    """Does what `start` does, without a change of logging: for programs of the user."""
    set_up_jax(deterministic=deterministic)
    if distributed is None:
        cluster.refuse_several_processes("see docs/clusters.md")
    else:
        cluster.join_cluster(**distributed)
        if jax.process_index():  # only process 0 logs
            log.setLevel(logging.WARNING)
    devices = _devices(platform)
    leave_out_cache_on_several_cpus()
    kinds = ", ".join(sorted({device.device_kind for device in devices}))
    log.info("devices: %d x %s (%s), jax %s", len(devices), devices[0].platform, kinds,
             jax.__version__)  # fmt: skip


def set_up_jax(*, deterministic: bool = False) -> None:
    """Sets the XLA flags and the folder of the compilation cache; what the user has set is kept."""
    add_xla_flags(deterministic=deterministic)
    # So the next start need not compile again. JAX_COMPILATION_CACHE_DIR sets another folder.
    if not _option("jax_compilation_cache_dir"):
        home = os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(home) / "m2det_jax"))


def leave_out_cache_on_several_cpus() -> None:
    """Turns the compilation cache off if jax has several CPU devices, virtual ones or processes.

    XLA loads their programs from the cache without the order of the collectives. Two devices may
    then wait in different ones, for ever: a sharded step in the first hundred times (jax 0.10.2).
    """
    if jax.default_backend() == "cpu" and jax.device_count() > 1:
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()  # jax asks the option once


def add_xla_flags(*, deterministic: bool = False) -> None:
    """Adds our compiler flags to XLA_FLAGS; a CPU flag that the user has set is kept.

    XLA reads the variable once, when jax uses its first device.

    Args:
        deterministic: request deterministic GPU kernels.
    """
    flags = os.environ.get("XLA_FLAGS", "").split()
    # XLA aborts on an unknown flag, and the plugin of a device may contain an older XLA.
    if jax.__version_info__ < (0, 13) and _only_cpu():
        # By default, convolutions on a CPU use YNNPACK too. With Eigen instead, the training step
        # of quickstart takes a third less time with jax 0.10.2, a seventh less with 0.12.0.1.
        name = "--xla_cpu_experimental_ynn_fusion_type="
        if not any(flag.startswith(name) for flag in flags):
            flags.append(f"{name}LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE")
    # XLA uses the last of two equal flags, so the config wins over the variable.
    if deterministic and (asked := "--xla_gpu_deterministic_ops=true") not in flags[-1:]:
        flags.append(asked)
    os.environ["XLA_FLAGS"] = " ".join(flags)


def _option(name: str) -> Any:
    """Returns an option of jax, which defines them when it runs: their type is not known."""
    return getattr(jax.config, name)


def _only_cpu() -> bool:
    """Returns whether jax will use the CPU alone. Asking jax itself would make it read XLA_FLAGS.

    If no platform is chosen, jax loads every device plugin that is installed.
    """
    if chosen := _option("jax_platforms"):
        return chosen == "cpu"
    if importlib.util.find_spec("libtpu") or os.environ.get("PJRT_NAMES_AND_LIBRARY_PATHS"):
        return False
    if importlib.metadata.entry_points(group="jax_plugins"):
        return False
    # Plugins without an entry point are modules of this namespace package.
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
            "for NVIDIA GPUs install m2det_jax[cuda12] or [cuda13] (`m2det doctor` says which); "
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
            # A file name may contain control characters of a terminal.
            sys.stderr.write(printable_lines(self.format(record)) + "\n")


# Warnings of Orbax about what is intended here: saves without metrics, and read-only access.
_EXPECTED = ("did not provide metrics", "read_only=True", "Given directory is read only")


def _worth_reading(record: logging.LogRecord) -> bool:
    # The threads of a failed save log hundreds of lines; the error is raised afterwards as well.
    if record.exc_info and ("orbax" in record.pathname or record.name == "asyncio"):
        return False
    return not any(text in record.getMessage() for text in _EXPECTED)


@contextlib.contextmanager
def expected_warnings_left_out() -> Iterator[None]:
    """Ignores warnings of Orbax about what is intended; for programs that configure logging."""
    loggers = (absl.logging.get_absl_logger(), logging.getLogger("asyncio"))
    changed = [logger for logger in loggers if _worth_reading not in logger.filters]
    for logger in changed:
        logger.addFilter(_worth_reading)
    try:
        yield
    finally:
        for logger in changed:
            logger.removeFilter(_worth_reading)


def _without_closed_loops(hook: Callable, unraisable: Any) -> None:
    """Ignores the errors that threads of a failed save raise because the event loop is closed."""
    if str(unraisable.exc_value) != "Event loop is closed":
        hook(unraisable)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Adds the flag --set; its values are the overrides of `trained.restore`."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="eval.KEY=VALUE",
        help="change a key of config.eval, such as eval.nms=soft_linear or "
        "eval.test_sizes=320,512; can be repeated",
    )


@contextlib.contextmanager
def one_line_errors(interrupted: str = "interrupted") -> Iterator[None]:
    """Prints an error that the user can fix as one line, without traceback, and ends the process.

    All other errors keep their traceback and are marked as bugs. M2DET_TRACEBACK=1 keeps every
    traceback. In a run of several processes, a process that fails does not wait for the others; see
    `devices.leave`.

    Args:
        interrupted: the message after Ctrl-C.

    Raises:
        SystemExit: if the user can fix the error, or a signal stopped the process.
    """
    try:
        with _translated(interrupted):
            yield
    except BaseException as error:
        code = error.code if isinstance(error, SystemExit) else 1
        # After a signal all processes stop together.
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


@contextlib.contextmanager
def stdout_for_json(wanted: bool) -> Iterator[TextIO | None]:
    """Yields stdout for the JSON document of --json; None if the user does not want it.

    Inside, all other output to stdout goes to stderr: that of this process, of C libraries and of
    worker processes.
    """
    if not wanted:
        yield None
        return
    stdout = sys.stdout
    stdout.flush()
    document = open(os.dup(1), "w", encoding="utf-8")  # noqa: SIM115 (closed below)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield document
    finally:
        stdout.flush()  # what was written to the old object, before the document's end
        os.dup2(document.fileno(), 1)
        with contextlib.suppress(OSError):  # `write_json` has raised it
            document.close()


def write_json(document: TextIO, value: Any) -> None:
    """Writes a value as a JSON document; NaN and infinity become null.

    Raises:
        OSError: if the file cannot be written.
    """
    json.dump(without_nan(value), document, indent=2, allow_nan=False)
    document.write("\n")
    document.flush()  # so that an error is raised here


def add_json_flag(parser: argparse.ArgumentParser) -> None:
    """Adds the flag --json."""
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON document to stdout, and everything else to stderr",
    )


def run_verb(work: Callable[..., object], args: argparse.Namespace) -> None:
    """Runs work(workdir, document=..., **flags) with the flags of a verb that has --json."""
    flags = vars(args)
    workdir, wanted = flags.pop("workdir"), flags.pop("json")
    with one_line_errors(), stdout_for_json(wanted) as document:
        start()
        work(workdir, document=document, **flags)
