"""Findings of `m2det doctor`: what must be mended in an installation, and how.

`diagnose` is a pure function of gathered facts.
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
    """Something that is not as it should be.

    Attributes:
        severity: "error": it must be mended; "warning": it works, and could be better.
        subject: what it is about: "packages", "jax", "gpu", "disk", "cache", "shared memory".
        text: what was found.
        remedy: what to do; a command stands alone.
    """

    severity: str
    subject: str
    text: str
    remedy: str


def diagnose(facts: Facts) -> list[Finding]:
    """Returns what is wrong, the first thing to mend first; []: all is well."""
    return [*_packages(facts), *_plugins(facts), *_query(facts), *_gpu(facts), *_room(facts)]


def uses_gpu(facts: Facts) -> bool:
    """Returns whether jax computes on a GPU."""
    return any(device.platform in ("gpu", "cuda", "rocm") for device in facts.query.devices)


def cuda_extra(facts: Facts) -> str | None:
    """Returns the extra of jax for the NVIDIA GPUs of a machine; None: their driver is too old.

    CUDA 13 needs a newer driver and a newer GPU than CUDA 12. If the driver is not known, it is
    CUDA 12, which newer drivers run as well.
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
    """Returns the command that installs jax with an extra, in the version that is there."""
    jax = facts.packages.get("jax")
    version = f"=={jax.version}" if jax and jax.version and jax.fits else ""
    return _pip(facts, "install", *options, f"jax[{extra}]{version}")


def _pip(facts: Facts, *arguments: str) -> str:
    return shlex.join([facts.executable, "-m", "pip", *arguments])


def _packages(facts: Facts) -> Iterator[Finding]:
    """What is missing, or has a version that m2det_jax or jax does not take."""
    bad = [package for package in facts.packages.values() if not package.fits]
    if not facts.installed:
        text = "m2det_jax runs from a folder and is not installed: what it requires is unknown"
        yield Finding(WARNING, "packages", text, "pip install . in that folder")
    if bad:
        said = ", ".join(
            f"{package.name} {package.version or 'is missing'}"
            + (f" (needed: {package.required})" if package.required else "")
            for package in bad
        )
        wanted = [f"{package.name}{package.required}" for package in bad]
        text = f"packages that do not fit: {said}"
        yield Finding(ERROR, "packages", text, _pip(facts, "install", *wanted))


def _plugins(facts: Facts) -> Iterator[Finding]:
    """CUDA plugins that jax leaves aside because jaxlib has another version."""
    if (jaxlib := _jaxlib(facts)) is None:
        return
    bad = [name for name in facts.plugins if _is_unlike(facts, name)]
    if bad:
        said = ", ".join(f"{name} {facts.plugins[name]}" for name in bad)
        text = f"{said} and jaxlib {jaxlib} do not fit: jax uses a plugin only of its own version"
        # The GPU may want the other plugin than the one that is there.
        extra = cuda_extra(facts) if facts.nvidia.count else None
        extra = extra or bad[0].split("-")[1]
        yield Finding(ERROR, "gpu", text, pip_line(facts, extra))


def _query(facts: Facts) -> Iterator[Finding]:
    """jax that hangs, dies, or does not compute."""
    query = facts.query
    at = {(): "is imported", ("import",): "looks for devices"}.get(query.done, "computes")
    if query.timed_out:
        yield Finding(
            ERROR,
            "jax",
            f"no answer in {query.limit:g} s while jax {at}: {_last_line(query)}",
            "look whether `nvidia-smi` answers and whether other programs hold the device; "
            "restart the machine if it hangs too; --timeout waits longer; JAX_PLATFORMS=cpu does "
            "without the device",
        )
    elif query.status != 0:
        unknown = re.search(r"Unknown flags? in XLA_FLAGS: *(.*)", "\n".join(query.messages))
        if unknown:
            text = f"XLA_FLAGS has a flag that this XLA does not know: {unknown[1].strip()}"
            yield Finding(ERROR, "jax", text, "take it out of XLA_FLAGS")
            return
        asked = facts.environment.get("JAX_PLATFORMS", "")
        of = f" of JAX_PLATFORMS={asked!r}" if asked and query.done == ("import",) else ""
        text = f"jax fails as it {at}{of}: {_last_line(query)}"
        yield Finding(ERROR, "jax", text, _remedy(facts))


def _remedy(facts: Facts) -> str:
    """What to do about a jax that fails for a reason that its message may tell."""
    for name in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME"):
        if facts.environment.get(name, "cpu") != "cpu":
            return f"unset {name}, now {facts.environment[name]!r}, or install what it asks for"
    if "import" not in facts.query.done:
        return _pip(facts, "install", "--force-reinstall", "jax", "jaxlib")
    if facts.nvidia.count:
        return _repair(facts)
    return "python -c 'import jax; print(jax.devices())' shows the whole message"


def _gpu(facts: Facts) -> Iterator[Finding]:
    """An NVIDIA GPU that jax does not use."""
    nvidia = facts.nvidia
    if uses_gpu(facts):
        return
    if not nvidia.count:
        if nvidia.on_bus:
            yield Finding(
                WARNING,
                "gpu",
                f"{nvidia.on_bus} NVIDIA GPU on the PCI bus, but no driver of NVIDIA is loaded",
                f"install the driver, {CUDA13_DRIVER} or newer; in a container start it with the "
                "GPU (docker run --gpus all)",
            )
        return
    for reason, remedy in _reasons(facts):
        yield Finding(ERROR, "gpu", f"{_seen(nvidia)}, but jax does not use it: {reason}", remedy)


def _reasons(facts: Facts) -> list[tuple[str, str]]:
    """Returns (reason, remedy) for all that keeps jax from the GPU; the last resort if nothing."""
    reasons = _reasons_of_environment(facts)
    if facts.query.timed_out or any(_is_unlike(facts, name) for name in facts.plugins):
        return reasons  # said above
    reasons += _reasons_of_plugins(facts)
    if not reasons and facts.query.status == 0:
        reasons.append((f"it says: {_last_line(facts.query)}", _repair(facts)))
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
            (f"CUDA_VISIBLE_DEVICES is {visible!r}, no GPU", "unset CUDA_VISIBLE_DEVICES")
        )
    if nvidia.problem:
        remedy = "mend the driver until `nvidia-smi` works; after an update restart the machine"
        reasons.append((nvidia.problem, remedy))
    return reasons


def _reasons_of_plugins(facts: Facts) -> list[tuple[str, str]]:
    if facts.system != "Linux":
        return [(f"jax has no CUDA for {facts.system}", "use Linux, or WSL2 on Windows")]
    extra, there = cuda_extra(facts), _cuda_plugins(facts)
    if extra is None:
        need = CUDA12_DRIVER if "cuda12" in (facts.cuda_extras or ("cuda12",)) else CUDA13_DRIVER
        reason = f"its driver {facts.nvidia.driver} is too old"
        return [(reason, f"install a driver of NVIDIA, {CUDA13_DRIVER} or newer ({need} at least)")]
    if not there:
        return [("no CUDA plugin of jax is installed", pip_line(facts, extra))]
    others = [name for name in there if name != extra]
    # cuda12 runs wherever cuda13 does; two plugins are in the way of each other.
    if len(there) > 1 or (others and extra == "cuda12"):
        wrong = others if extra in there else there
        names = [f"jax-{name}-{part}" for name in wrong for part in ("plugin", "pjrt")]
        line = _pip(facts, "uninstall", "-y", *names)
        if len(there) > 1:
            reason = f"the plugins for {' and '.join(there)} are both installed"
        else:
            reason = f"the plugin for {there[0]} needs driver {CUDA13_DRIVER} and compute "
            reason += f"capability {CUDA13_CAPABILITY}"
        return [(reason, f"{line} && {pip_line(facts, extra)}")]
    return []


def _repair(facts: Facts) -> str:
    """What to do about an installed plugin that does not work."""
    if facts.environment.get("LD_LIBRARY_PATH"):
        return "unset LD_LIBRARY_PATH: its CUDA libraries may come before those of jax"
    there = _cuda_plugins(facts)
    extra = there[0] if there else cuda_extra(facts)
    if extra is None:
        return f"install a driver of NVIDIA, {CUDA13_DRIVER} or newer"
    return pip_line(facts, extra, "--force-reinstall")


def _room(facts: Facts) -> Iterator[Finding]:
    """Places for files that are full, small, or cannot be written."""
    for subject, place in (("disk", facts.work), ("cache", facts.cache)):
        if not place.writable:
            severity = ERROR if subject == "disk" else WARNING
            remedy = "work in another folder, or give --workdir"
            if subject == "cache":
                remedy = "set JAX_COMPILATION_CACHE_DIR: else every start compiles anew"
            yield Finding(severity, subject, f"{place.path}: cannot be written", remedy)
        elif place.free is not None and place.free < LITTLE_DISK:
            severity = ERROR if place.free < LEAST_DISK else WARNING
            text = f"{place.path}: only {gib(place.free)} free; a checkpoint takes up to a few GiB"
            yield Finding(severity, subject, text, "make room, or use another disk")
    memory = facts.shared_memory
    if memory and memory.free is not None and memory.free < LITTLE_SHARED_MEMORY:
        text = f"{memory.path}: only {gib(memory.free)} free for the batches of data workers"
        remedy = "enlarge it (docker run --shm-size=8g): else fewer processes read images"
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
    """Returns whether jaxlib refuses a plugin: the numbers of both versions must be the same."""
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
    return "it says nothing"
