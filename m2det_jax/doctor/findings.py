"""Findings of `m2det doctor`: problems of the installation, and their fixes.

`diagnose` is a pure function of the collected facts.
"""

import dataclasses
import re
import shlex
from collections.abc import Iterator

from m2det_jax.doctor.facts import Facts, Nvidia, Query

ERROR, WARNING = "error", "warning"
# Oldest driver of NVIDIA, and oldest compute capability, that the wheels of jax run with.
CUDA12_DRIVER, CUDA13_DRIVER, CUDA13_CAPABILITY = 525, 580, 7.5
LEAST_DISK, LITTLE_DISK = 2**30, 5 * 2**30  # bytes
LITTLE_SHARED_MEMORY = 2**30
_CUDA_PLUGIN = re.compile(r"jax-(cuda\d+)-plugin")


@dataclasses.dataclass(frozen=True)
class Finding:
    """A problem.

    Attributes:
        severity: "error": it must be fixed; "warning": everything works, but not at its best.
        subject: "packages", "jax", "gpu", "disk", "cache" or "shared memory".
        text: the problem.
        remedy: the fix: a sentence, or one command to run.
    """

    severity: str
    subject: str
    text: str
    remedy: str


def diagnose(facts: Facts) -> list[Finding]:
    """Returns the problems, in the order in which to fix them; []: all is well."""
    return [*_packages(facts), *_plugins(facts), *_query(facts), *_gpu(facts), *_room(facts)]


def uses_gpu(facts: Facts) -> bool:
    """Returns whether jax computes on a GPU."""
    return any(device.platform in ("gpu", "cuda", "rocm") for device in facts.query.devices)


def cuda_extra(facts: Facts) -> str | None:
    """Returns the extra of jax for the NVIDIA GPUs of the machine; None: their driver is too old.

    CUDA 13 needs a newer driver and a newer GPU than CUDA 12. If the driver is unknown, the answer
    is CUDA 12, because newer drivers support it too.
    """
    nvidia, driver = facts.nvidia, _major(facts.nvidia)
    if driver is not None and driver < CUDA12_DRIVER:
        return None
    new_gpu = nvidia.capability is None or nvidia.capability >= CUDA13_CAPABILITY
    fitting = ["cuda12"]
    if driver is not None and driver >= CUDA13_DRIVER and new_gpu:
        fitting.insert(0, "cuda13")
    offered = [extra for extra in fitting if extra in (facts.cuda_extras or fitting)]
    return offered[0] if offered else None


def pip_line(facts: Facts, extra: str, *options: str) -> str:
    """Returns the command that installs jax with an extra, without changing its version."""
    jax = facts.packages.get("jax")
    version = f"=={jax.version}" if jax and jax.version and jax.fits else ""
    return _pip(facts, "install", *options, f"jax[{extra}]{version}")


def _pip(facts: Facts, *arguments: str) -> str:
    return shlex.join([facts.executable, "-m", "pip", *arguments])


def _packages(facts: Facts) -> Iterator[Finding]:
    """Yields packages that are missing, or whose version is not allowed."""
    bad = [package for package in facts.packages.values() if not package.fits]
    if not facts.installed:
        text = "m2det_jax runs from a folder and is not installed, so its requirements are unknown"
        yield Finding(WARNING, "packages", text, "run `pip install .` in that folder")
    if bad:
        said = ", ".join(
            f"{package.name} {package.version or 'is missing'}"
            + (f" (needed: {package.required})" if package.required else "")
            for package in bad
        )
        wanted = [f"{package.name}{package.required}" for package in bad]
        text = f"missing packages or wrong versions: {said}"
        yield Finding(ERROR, "packages", text, _pip(facts, "install", *wanted))


def _plugins(facts: Facts) -> Iterator[Finding]:
    """Yields CUDA plugins that jax ignores because the version of jaxlib differs."""
    if (jaxlib := _jaxlib(facts)) is None:
        return
    bad = [name for name in facts.plugins if _is_unlike(facts, name)]
    if bad:
        said = ", ".join(f"{name} {facts.plugins[name]}" for name in bad)
        text = f"{said}, but jaxlib {jaxlib}: jax ignores a plugin of another version"
        yield Finding(ERROR, "gpu", text, _install(facts, _target(facts) or bad[0].split("-")[1]))


def _query(facts: Facts) -> Iterator[Finding]:
    """Yields a jax that hangs or fails."""
    query = facts.query
    at = {(): "is imported", ("import",): "looks for devices"}.get(query.done, "computes")
    if query.timed_out:
        yield Finding(
            ERROR,
            "jax",
            f"no answer within {query.limit:g} s while jax {at}: {_last_line(query)}",
            "check that `nvidia-smi` answers and that no other program blocks the device; if "
            "`nvidia-smi` hangs too, restart the machine; --timeout waits longer; "
            "JAX_PLATFORMS=cpu uses the CPU instead",
        )
    elif query.status != 0:
        unknown = re.search(r"Unknown flags? in XLA_FLAGS: *(.*)", "\n".join(query.messages))
        if unknown:
            text = f"XLA_FLAGS has an unknown flag: {unknown[1].strip()}"
            yield Finding(ERROR, "jax", text, "remove the flag from XLA_FLAGS")
            return
        asked = facts.environment.get("JAX_PLATFORMS", "")
        of = f" of JAX_PLATFORMS={asked!r}" if asked and query.done == ("import",) else ""
        text = f"jax fails while it {at}{of}: {_last_line(query)}"
        yield Finding(ERROR, "jax", text, _remedy(facts))


def _remedy(facts: Facts) -> str:
    """Returns the fix for a jax that fails."""
    for name in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME"):
        asked = facts.environment.get(name, "").split(",")[0]
        wants_gpu = asked in ("cuda", "gpu") and facts.nvidia.count
        if asked not in ("", "cpu") and not wants_gpu:
            return f"unset {name}, or install the platform {facts.environment[name]!r}"
    if "import" not in facts.query.done:
        return _pip(facts, "install", "--force-reinstall", "jax", "jaxlib")
    if facts.nvidia.count:
        return _repair(facts)
    return "run python -c 'import jax; print(jax.devices())' to see the complete message"


def _gpu(facts: Facts) -> Iterator[Finding]:
    """Yields the reasons why jax does not use an NVIDIA GPU."""
    nvidia = facts.nvidia
    if uses_gpu(facts):
        return
    if not nvidia.count:
        if nvidia.on_bus:
            yield Finding(
                WARNING,
                "gpu",
                f"{nvidia.on_bus} NVIDIA GPU on the PCI bus, but no driver of NVIDIA is loaded",
                f"install the driver, version {CUDA13_DRIVER} or newer; if this is a container, "
                "start it with the GPU: docker run --gpus all",
            )
        return
    for reason, remedy in _reasons(facts):
        yield Finding(ERROR, "gpu", f"{_seen(nvidia)}, but jax does not use it: {reason}", remedy)


def _reasons(facts: Facts) -> list[tuple[str, str]]:
    """Returns all reasons with their fixes; if none is found, the message of jax."""
    reasons = _reasons_of_environment(facts)
    if facts.query.timed_out or any(_is_unlike(facts, name) for name in facts.plugins):
        return reasons  # another finding says it
    reasons += _reasons_of_plugins(facts)
    if not reasons and facts.query.status == 0:
        reasons.append((f"message: {_last_line(facts.query)}", _repair(facts)))
    return reasons


def _reasons_of_environment(facts: Facts) -> list[tuple[str, str]]:
    nvidia, environment, reasons = facts.nvidia, facts.environment, []
    if not nvidia.device_files and not nvidia.gpus:
        reasons.append(
            ("there is no /dev/nvidia0", "start the container with the GPU: docker run --gpus all")
        )
    for name in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME"):
        chosen = environment.get(name, "").split(",")[0]
        if chosen and chosen not in ("cuda", "gpu"):
            reasons.append((f"{name} is {environment[name]!r}", f"unset {name}"))
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and (not visible.strip() or visible.strip().startswith("-")):
        reasons.append(
            (
                f"CUDA_VISIBLE_DEVICES is {visible!r}, which hides all GPUs",
                "unset CUDA_VISIBLE_DEVICES",
            )
        )
    if nvidia.problem:
        remedy = "repair the driver until `nvidia-smi` works; after an update, restart the machine"
        reasons.append((nvidia.problem, remedy))
    return reasons


def _reasons_of_plugins(facts: Facts) -> list[tuple[str, str]]:
    if facts.system != "Linux":
        return [(f"jax has no CUDA support on {facts.system}", "use Linux, or WSL2 on Windows")]
    extra, there = cuda_extra(facts), _cuda_plugins(facts)
    if extra is None:
        need = CUDA12_DRIVER if "cuda12" in (facts.cuda_extras or ("cuda12",)) else CUDA13_DRIVER
        reason = f"its driver {facts.nvidia.driver} is too old"
        return [(reason, f"install NVIDIA driver {CUDA13_DRIVER} or newer (at least {need})")]
    if not there:
        return [("no CUDA plugin of jax is installed", pip_line(facts, extra))]
    if len(there) > 1:
        reason = f"the plugins for {' and '.join(there)} are both installed"
    elif there != [_target(facts)]:
        reason = (
            f"the plugin for {there[0]} needs driver {CUDA13_DRIVER} and compute capability "
            f"{CUDA13_CAPABILITY}"
        )
    else:
        return []
    return [(reason, _install(facts, extra))]


def _target(facts: Facts) -> str | None:
    """Returns the CUDA version to have in the end, such as "cuda12"; None: the driver is too old.

    One installed plugin is kept if it fits: cuda12 also works where cuda13 is possible.
    """
    extra, there = cuda_extra(facts), _cuda_plugins(facts)
    if extra and there == ["cuda12"] and "cuda12" in (facts.cuda_extras or there):
        return "cuda12"
    return there[0] if there and not facts.nvidia.count else extra


def _install(facts: Facts, target: str) -> str:
    """Returns the command that installs the plugin for a CUDA version, and removes others."""
    line = pip_line(facts, target)
    others = [name for name in _cuda_plugins(facts) if name != target]
    if not others:
        return line
    names = [f"jax-{name}-{part}" for name in others for part in ("plugin", "pjrt")]
    return f"{_pip(facts, 'uninstall', '-y', *names)} && {line}"


def _repair(facts: Facts) -> str:
    """Returns the fix for an installed plugin that does not work."""
    if facts.environment.get("LD_LIBRARY_PATH"):
        return "unset LD_LIBRARY_PATH: its CUDA libraries can replace those of jax"
    there = _cuda_plugins(facts)
    extra = there[0] if there else cuda_extra(facts)
    if extra is None:
        return f"install NVIDIA driver {CUDA13_DRIVER} or newer"
    return pip_line(facts, extra, "--force-reinstall")


def _room(facts: Facts) -> Iterator[Finding]:
    """Yields folders that are full or not writable."""
    for subject, place in (("disk", facts.work), ("cache", facts.cache)):
        if not place.writable:
            severity = ERROR if subject == "disk" else WARNING
            remedy = "change to another folder, or give --workdir"
            if subject == "cache":
                remedy = "set JAX_COMPILATION_CACHE_DIR to another folder, for faster starts"
            yield Finding(severity, subject, f"{place.path}: not writable", remedy)
        elif place.free is not None and place.free < LITTLE_DISK:
            severity = ERROR if place.free < LEAST_DISK and subject == "disk" else WARNING
            use = "a checkpoint takes up to a few GiB"
            if subject == "cache":
                use = "compiled programs for faster starts are kept there"
            text = f"{place.path}: only {gib(place.free)} free; {use}"
            yield Finding(severity, subject, text, "delete files, or use another disk")
    memory = facts.shared_memory
    if memory and memory.free is not None and memory.free < LITTLE_SHARED_MEMORY:
        text = f"{memory.path}: only {gib(memory.free)} free for the batches of worker processes"
        remedy = "enlarge it (docker run --shm-size=8g), so that more processes can read images"
        yield Finding(WARNING, "shared memory", text, remedy)


def gib(count: int) -> str:
    """Returns bytes as "1.5 GiB"."""
    return f"{count / 2**30:.1f} GiB"


def _seen(nvidia: Nvidia) -> str:
    names = ", ".join(sorted(set(nvidia.gpus)))
    driver = f"driver {nvidia.driver}" if nvidia.driver else "driver unknown"
    about = f"{names}, {driver}" if names else driver
    return f"{nvidia.count} NVIDIA GPU in this machine ({about})"


def _major(nvidia: Nvidia) -> int | None:
    found = re.match(r"\d+", nvidia.driver)
    return int(found[0]) if found else None


def _jaxlib(facts: Facts) -> str | None:
    package = facts.packages.get("jaxlib")
    return package.version if package else None


def _cuda_plugins(facts: Facts) -> list[str]:
    """Returns "cuda12" and "cuda13", as far as the plugin is installed."""
    return [found[1] for name in facts.plugins if (found := _CUDA_PLUGIN.fullmatch(name))]


def _is_unlike(facts: Facts, plugin: str) -> bool:
    """Returns whether jaxlib ignores a plugin because the version numbers differ."""
    jaxlib = _jaxlib(facts)
    return (
        plugin.startswith("jax-cuda")
        and jaxlib is not None
        and _numbers(facts.plugins[plugin]) != _numbers(jaxlib)
    )


def _numbers(version: str) -> str:
    found = re.match(r"\d+(\.\d+)*", version)
    return found[0] if found else version


def _last_line(query: Query) -> str:
    if query.messages:
        return query.messages[-1]
    if query.status is not None and query.status < 0:
        return f"signal {-query.status}"
    return "no message"
