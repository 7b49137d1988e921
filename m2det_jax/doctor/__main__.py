"""Diagnosis of this installation: versions, devices, disk space; why the GPU is not used.

    python -m m2det_jax.doctor [--json] [--timeout 60]

jax runs in a separate process, so that this command ends even if a device hangs. The exit status is
0 if all is well, 1 if something must be fixed.
"""

import argparse
import collections
import dataclasses
import json
import math
import signal
import sys
from collections.abc import Mapping, Sequence

from m2det_jax.doctor.facts import SHOWN, Facts, Folder, gather
from m2det_jax.doctor.findings import ERROR, Finding, diagnose, gib, uses_gpu


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("m2det doctor", description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("--json", action="store_true", help="print one JSON document to stdout, nothing else")
    add(
        "--timeout", type=_seconds, default=60.0, help="time limit for jax, in seconds (default 60)"
    )
    return parser.parse_args(argv)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number of seconds above 0")
    return value


def document(facts: Facts, findings: Sequence[Finding]) -> dict:
    """Returns facts and findings as the document of --json; docs/commands.md lists the keys."""
    return {
        "well": not any(finding.severity == ERROR for finding in findings),
        "uses_gpu": uses_gpu(facts),
        "findings": [dataclasses.asdict(finding) for finding in findings],
        **dataclasses.asdict(facts),
    }


def lines(facts: Facts, findings: Sequence[Finding]) -> list[str]:
    """Returns facts and findings as lines of text."""
    found = [
        f"m2det_jax {facts.version}, Python {facts.python}: {facts.executable}",
        "packages: " + ", ".join(f"{name} {_version(facts, name)}" for name in SHOWN),
        "plugins: " + (_pairs(facts.plugins, " ") or "none: jax computes on the CPU"),
        f"devices: {_devices(facts)}",
        f"NVIDIA: {_nvidia(facts)}",
        "environment: " + (_pairs(facts.environment, "=") or "no relevant variable is set"),
        f"compilation cache: {_folder(facts.cache)}",
        f"current folder: {_folder(facts.work)}",
        f"shared memory: {_folder(facts.shared_memory) if facts.shared_memory else 'no limit'}",
        f"extras: {_extras(facts)}",
        "",
    ]
    for finding in findings:
        found += [f"{finding.severity}: {finding.text}", f"    {finding.remedy}"]
    errors = sum(finding.severity == ERROR for finding in findings)
    found.append(f"{errors} to fix" if errors else "all is well")
    return found


def _version(facts: Facts, name: str) -> str:
    package = facts.packages.get(name)
    return (package and package.version) or "missing"


def _pairs(values: Mapping[str, str], between: str) -> str:
    # A value may contain control characters of a terminal.
    pairs = (f"{name}{between}{value}" for name, value in values.items())
    return ", ".join("".join(c if c.isprintable() else repr(c)[1:-1] for c in p) for p in pairs)


def _devices(facts: Facts) -> str:
    query = facts.query
    if not query.devices:
        return "none: see below"
    kinds = collections.Counter((device.platform, device.kind) for device in query.devices)
    named = ", ".join(f"{count} x {name} ({kind})" for (name, kind), count in kinds.items())
    if memory := query.devices[0].memory:
        named += f", {gib(memory)} each"
    if query.seconds is not None:
        named += f"; a convolution works ({query.seconds:.1f} s with its compilation)"
    return named + ("; the GPU is used" if uses_gpu(facts) else "; no GPU is used")


def _nvidia(facts: Facts) -> str:
    nvidia = facts.nvidia
    if not nvidia.count:
        return nvidia.problem or "no GPU in this machine"
    names = ", ".join(nvidia.gpus) or f"{nvidia.count} GPU"
    return ", ".join(
        part
        for part in (
            names,
            f"driver {nvidia.driver or 'unknown'}",
            nvidia.capability and f"compute capability {nvidia.capability}",
            nvidia.problem,
        )
        if part
    )


def _folder(place: Folder) -> str:
    if place.free is None or place.total is None:
        return place.path
    return f"{place.path}, {gib(place.free)} of {gib(place.total)} free"


def _extras(facts: Facts) -> str:
    return ", ".join(
        f"{name} {'no (' + ', '.join(missing) + ')' if missing else 'yes'}"
        for name, missing in facts.extras.items()
    )


def main(options: argparse.Namespace) -> None:
    """Runs the command with parsed options; the exit status is 1 if something must be fixed."""
    facts = gather(options.timeout)
    findings = diagnose(facts)
    found = document(facts, findings)
    print(json.dumps(found, indent=2) if options.json else "\n".join(lines(facts, findings)))
    if not found["well"]:
        sys.exit(1)


def cli(argv: Sequence[str] | None = None) -> None:
    """Entry point of `m2det doctor`."""
    options = parse(argv)
    try:
        main(options)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    cli()
