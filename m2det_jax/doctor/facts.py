"""Facts about the installation and the machine, collected without importing jax here."""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence

from packaging.requirements import InvalidRequirement, Requirement

from m2det_jax import __version__

SHOWN = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow")
VARIABLES = (
    "XLA_FLAGS",
    "JAX_PLATFORMS",
    "JAX_PLATFORM_NAME",
    "CUDA_VISIBLE_DEVICES",
    "LD_LIBRARY_PATH",
    "XLA_PYTHON_CLIENT_PREALLOCATE",
    "XLA_PYTHON_CLIENT_MEM_FRACTION",
    "JAX_COMPILATION_CACHE_DIR",
    "PJRT_NAMES_AND_LIBRARY_PATHS",
)
_PLUGIN = re.compile(r"jax-(cuda|rocm)\d+-(plugin|pjrt)|libtpu|jax-metal")
_DRIVER = re.compile(r"\s(\d{3}\.\d+(?:\.\d+)?)\s")
_SMI_LIMIT = 15.0  # seconds
_LINES = 12  # of what jax wrote to stderr


@dataclasses.dataclass(frozen=True)
class Package:
    """A package that m2det_jax or jax requires.

    Attributes:
        name: of the distribution.
        required: the versions that are allowed, such as ">=0.12.8,<0.13"; "": any.
        version: the installed version; None: not installed.
        fits: whether the installed version is allowed.
    """

    name: str
    required: str
    version: str | None
    fits: bool


@dataclasses.dataclass(frozen=True)
class Device:
    """A device of jax.

    Attributes:
        platform: "cpu", "gpu" or "tpu".
        kind: such as "NVIDIA H100 80GB HBM3".
        memory: bytes that jax may use; None: unknown.
    """

    platform: str
    kind: str
    memory: int | None = None


@dataclasses.dataclass(frozen=True)
class Query:
    """The answer of jax in a separate process.

    Attributes:
        devices: the devices that jax computes on.
        done: the stages that are finished, of "import", "devices" and "convolution".
        seconds: duration of the first convolution with its compilation; None: not finished.
        timed_out: whether the process was stopped after `limit` seconds.
        limit: the time limit, in seconds.
        status: exit status of the process; negative: number of a signal; None: timed out.
        messages: the last lines of its stderr.
    """

    devices: tuple[Device, ...] = ()
    done: tuple[str, ...] = ()
    seconds: float | None = None
    timed_out: bool = False
    limit: float = 0.0
    status: int | None = 0
    messages: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Nvidia:
    """NVIDIA GPUs of the machine, found without jax.

    Attributes:
        gpus: names of the GPUs that nvidia-smi lists.
        driver: version of the driver, such as "580.65.06"; "": unknown.
        capability: lowest compute capability of the GPUs, such as 9.0; None: unknown.
        device_files: the files /dev/nvidia0, /dev/nvidia1, ...
        known_to_driver: number of GPUs in /proc/driver/nvidia/gpus.
        on_bus: number of NVIDIA display controllers on the PCI bus.
        problem: message of nvidia-smi if it fails; "": it works, or is not installed.
    """

    gpus: tuple[str, ...] = ()
    driver: str = ""
    capability: float | None = None
    device_files: tuple[str, ...] = ()
    known_to_driver: int = 0
    on_bus: int = 0
    problem: str = ""

    @property
    def count(self) -> int:
        """Number of GPUs: the largest number of the three sources."""
        return max(len(self.gpus), len(self.device_files), self.known_to_driver)


@dataclasses.dataclass(frozen=True)
class Folder:
    """Space in a folder.

    Attributes:
        path: of the folder.
        free: free bytes on its disk; None: unknown.
        total: bytes of its disk; None: unknown.
        writable: whether files can be written there.
    """

    path: str
    free: int | None
    total: int | None
    writable: bool


@dataclasses.dataclass(frozen=True)
class Facts:
    """The input of `diagnose`.

    Attributes:
        version: version of m2det_jax.
        installed: whether m2det_jax is installed as a package, so that its requirements are known.
        python: version of Python.
        executable: path of the Python program.
        system: "Linux", "Darwin" or "Windows".
        packages: the required packages by name.
        plugins: versions of the installed device plugins of jax, by name.
        cuda_extras: CUDA extras of the installed jax, such as "cuda12".
        query: the answer of jax.
        nvidia: NVIDIA GPUs of the machine.
        environment: the variables of VARIABLES that are set.
        cache: folder of compiled programs.
        work: the current folder, where runs are written by default.
        shared_memory: memory for the batches of worker processes; None: the system has no limit.
        extras: the missing packages of each optional extra of m2det_jax.
    """

    version: str
    installed: bool
    python: str
    executable: str
    system: str
    packages: Mapping[str, Package]
    plugins: Mapping[str, str]
    cuda_extras: tuple[str, ...]
    query: Query
    nvidia: Nvidia
    environment: Mapping[str, str]
    cache: Folder
    work: Folder
    shared_memory: Folder | None
    extras: Mapping[str, tuple[str, ...]]


def gather(limit: float) -> Facts:
    """Collects the facts.

    Args:
        limit: time limit for jax, in seconds.

    Returns:
        The facts about this process and machine.
    """
    return Facts(
        version=__version__,
        installed=_version("m2det_jax") is not None,
        python=platform.python_version(),
        executable=sys.executable,
        system=platform.system(),
        packages=packages(),
        plugins=plugins(),
        cuda_extras=tuple(name for name in _extras_of("jax") if re.fullmatch(r"cuda\d+", name)),
        query=query_devices(limit),
        nvidia=nvidia(),
        environment={name: os.environ[name] for name in VARIABLES if name in os.environ},
        cache=folder(cache_folder(os.environ)),
        work=folder(os.getcwd()),
        shared_memory=folder("/dev/shm") if os.path.isdir("/dev/shm") else None,
        extras=extras(),
    )


def packages() -> dict[str, Package]:
    """Returns the packages that m2det_jax and jax require, and those of SHOWN, by name."""
    found: dict[str, Package] = {}
    required = [*_requirements("m2det_jax"), *_requirements("jax")]
    for requirement in required:
        name, version = _plain(requirement.name), _version(requirement.name)
        fits = version is not None and requirement.specifier.contains(version, prereleases=True)
        known = found.get(name)
        if known is None or (known.fits and not fits):
            found[name] = Package(name, str(requirement.specifier), version, fits)
    for name in SHOWN:
        version = _version(name)
        found.setdefault(name, Package(name, "", version, version is not None))
    return found


def extras() -> dict[str, tuple[str, ...]]:
    """Returns the missing packages of each optional extra of m2det_jax."""
    found = {}
    for extra in _extras_of("m2det_jax"):
        names = []
        for requirement in _requirements("m2det_jax", extra):
            if inner := requirement.extras:  # jax[cuda12]
                more = [r for name in inner for r in _requirements(requirement.name, name)]
                names += [r.name for r in more]
            else:
                names.append(requirement.name)
        missing = sorted({_plain(name) for name in names if _version(name) is None})
        found[extra] = tuple(missing)
    return found


def plugins() -> dict[str, str]:
    """Returns the versions of the installed device plugins of jax, by name."""
    names = {_plain(d.name): d.version for d in importlib.metadata.distributions() if d.name}
    return {name: names[name] for name in sorted(names) if _PLUGIN.fullmatch(name)}


def query_devices(limit: float) -> Query:
    """Asks jax for its devices in a separate process, which is killed after `limit` seconds."""
    program = pathlib.Path(__file__).with_name("query.py")
    # Another program may use the GPU, so do not reserve its memory.
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    status, output, errors = ask([sys.executable, "-P", str(program)], limit, environment)
    found = list(_json_lines(output))
    answers = {answer["stage"]: answer for answer in found}
    return Query(
        devices=tuple(Device(**device) for device in answers.get("devices", {}).get("devices", ())),
        done=tuple(answers),
        seconds=answers.get("convolution", {}).get("seconds"),
        timed_out=status is None,
        limit=limit,
        status=status,
        messages=tuple(_readable(errors)[-_LINES:]),
    )


def nvidia(root: pathlib.Path = pathlib.Path("/")) -> Nvidia:
    """Looks for NVIDIA GPUs with nvidia-smi, in /dev and /proc/driver/nvidia, and on the PCI bus.

    Args:
        root: folder that contains dev, proc and sys.

    Returns:
        The GPUs.
    """
    rows, problem = _nvidia_smi()
    driver = rows[0][1] if rows else ""
    try:
        version = (root / "proc/driver/nvidia/version").read_text(errors="replace")
        driver = driver or "".join(_DRIVER.findall(version.partition("\n")[0])[:1])
    except OSError:
        pass  # no driver is loaded, or the system is not Linux
    capabilities = [float(row[2]) for row in rows if re.fullmatch(r"\d+\.\d+", row[2])]
    return Nvidia(
        gpus=tuple(row[0] for row in rows),
        driver=driver,
        capability=min(capabilities, default=None),
        device_files=tuple(
            sorted(f"/dev/{path.name}" for path in (root / "dev").glob("nvidia[0-9]*"))
        ),
        known_to_driver=len(list((root / "proc/driver/nvidia/gpus").glob("*"))),
        on_bus=sum(_is_nvidia(path) for path in (root / "sys/bus/pci/devices").glob("*")),
        problem=problem,
    )


def cache_folder(environment: Mapping[str, str]) -> str:
    """Returns the folder of compiled programs, by the rule of `runtime.start`."""
    home = environment.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")
    chosen = environment.get("JAX_COMPILATION_CACHE_DIR")
    return chosen or str(pathlib.Path(home) / "m2det_jax")


def folder(path: str) -> Folder:
    """Returns the space in a folder, or in its nearest parent that exists."""
    if "://" in path:  # a bucket
        return Folder(path, None, None, True)
    there = pathlib.Path(os.path.abspath(path))
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        usage = shutil.disk_usage(there)
    except OSError:
        return Folder(path, None, None, False)
    return Folder(path, usage.free, usage.total, there.is_dir() and os.access(there, os.W_OK))


def ask(
    command: Sequence[str], limit: float, environment: Mapping[str, str] | None = None
) -> tuple[int | None, str, str]:
    """Runs a program for at most `limit` seconds, then kills it and its child processes.

    Args:
        command: the program and its arguments.
        limit: time limit, in seconds.
        environment: its environment variables; None: those of this process.

    Returns:
        (exit status, stdout, stderr). The status is None after the time limit, and 127 if the
        program cannot be started.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        return 127, "", str(error)
    status: int | None = None
    try:
        output, errors = process.communicate(timeout=limit)
        status = process.returncode
    except subprocess.TimeoutExpired:
        _kill(process)
        try:
            output, errors = process.communicate(timeout=2)
        except subprocess.TimeoutExpired as expired:
            # A process that hangs inside a driver cannot be killed. Do not wait for it.
            output, errors = expired.stdout or b"", expired.stderr or b""
    except BaseException:
        _kill(process)
        raise
    return status, output.decode(errors="replace"), errors.decode(errors="replace")


def _kill(process: subprocess.Popen) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (AttributeError, ProcessLookupError):  # Windows has no process groups; or it has ended
        process.kill()


def _nvidia_smi() -> tuple[list[list[str]], str]:
    """Returns rows [name, driver version, compute capability or ""], and an error message."""
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return [], ""
    problem, end = "", time.monotonic() + _SMI_LIMIT
    # Old versions do not have compute_cap.
    for fields in ("name,driver_version,compute_cap", "name,driver_version"):
        command = [smi, f"--query-gpu={fields}", "--format=csv,noheader"]
        status, output, errors = ask(command, max(end - time.monotonic(), 1.0))
        if status == 0:
            rows = [[part.strip() for part in row.split(",")] for row in output.splitlines()]
            return [[*row, ""][:3] for row in rows if len(row) > 1], ""
        said = _readable(output + errors)
        problem = problem or (" ".join(said[:3]) if said else f"exit status {status}")
        if status is None:
            return [], f"nvidia-smi does not answer in {_SMI_LIMIT:.0f} s"
    return [], f"nvidia-smi: {problem}"


def _is_nvidia(device: pathlib.Path) -> bool:
    """Returns whether a PCI device is a display controller (class 0x03) of NVIDIA (0x10de)."""
    try:
        vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
    except OSError:
        return False
    return vendor == "0x10de" and kind.startswith("0x03")


def _requirements(name: str, extra: str = "") -> list[Requirement]:
    """Returns the requirements of a distribution; with an extra, only those that it adds."""
    try:
        lines = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        marker = requirement.marker
        if marker is None or marker.evaluate({"extra": ""}):
            if not extra:
                found.append(requirement)
        elif extra and marker.evaluate({"extra": extra}):
            found.append(requirement)
    return found


def _extras_of(name: str) -> list[str]:
    try:
        return importlib.metadata.metadata(name).get_all("Provides-Extra") or []
    except importlib.metadata.PackageNotFoundError:
        return []


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _json_lines(text: str) -> Iterator[dict]:
    """Yields the lines of the query. Plugins can print other lines."""
    for line in text.splitlines():
        if line.startswith('{"stage"'):
            try:
                yield json.loads(line)
            except ValueError:  # killed in the middle of a line
                return


def _readable(text: str) -> list[str]:
    """Returns the lines that are not empty, without control characters."""
    lines = ("".join(c if c.isprintable() else " " for c in line) for line in text.splitlines())
    return [line.strip() for line in lines if line.strip()]
