"""The lines of the Dockerfile in an empty environment, for machines that cannot build an image.

    python tests/docker/check.py [--workdir RUN] [--extras serve]

Copies what COPY names, runs each RUN line with no other environment than ENV and ARG, and starts
ENTRYPOINT. With a trained run it also asks HEALTHCHECK, sends an image and ends the service by
SIGTERM. /opt becomes a temporary folder, and this Python stands for that of the base image. It
needs an index of Python packages, and one to two minutes.
"""

import argparse
import io
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
DOCKERFILE = REPOSITORY / "docs/docker/Dockerfile"
KNOWN = {
    "FROM", "ARG", "WORKDIR", "COPY", "RUN", "ENV", "USER", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK",
    "ENTRYPOINT", "CMD",
}  # fmt: skip


def read_lines() -> list[tuple[str, str]]:
    """Returns (instruction, rest) of each line of the Dockerfile."""
    text = DOCKERFILE.read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    found = [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines]
    unknown = {name for name, _ in found} - KNOWN
    if unknown:
        raise SystemExit(f"error: this check does not know {unknown}")
    return found


def value_of(name: str) -> str:
    """Returns the rest of the only line of an instruction."""
    (rest,) = [rest for instruction, rest in read_lines() if instruction == name]
    return rest


def command_of(name: str) -> list[str]:
    """Returns the command of ENTRYPOINT, CMD or HEALTHCHECK."""
    return json.loads(re.search(r"\[.*\]", value_of(name))[0])


def environment(extras: str) -> dict[str, str]:
    """Returns the environment of the image, with the PATH that this Python needs."""
    pairs = dict(pair.split("=", 1) for pair in value_of("ENV").split())
    return pairs | {"EXTRAS": extras, "PATH": "/usr/local/bin:/usr/bin:/bin"}


def copy_files(folder: pathlib.Path) -> None:
    """Copies what COPY names to the folder of WORKDIR."""
    for instruction, rest in read_lines():
        if instruction == "COPY":
            *sources, target = rest.split()
            for source in sources:
                if (REPOSITORY / source).is_dir():
                    skip = shutil.ignore_patterns("__pycache__")
                    shutil.copytree(REPOSITORY / source, folder / target, ignore=skip)
                else:
                    shutil.copy(REPOSITORY / source, folder / target)


def serve(command: list[str], health: list[str], variables: dict[str, str]) -> None:
    """Starts the service, waits for it, asks it, and ends it."""
    process = subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True)
    try:
        for line in process.stderr:
            print("   ", line, end="")
            if "ready:" in line:
                break
        subprocess.run(health, env=variables, check=True)
        from PIL import Image

        content = io.BytesIO()
        Image.new("RGB", (320, 240)).save(content, "JPEG")
        address = "http://127.0.0.1:8000/predict"
        with urllib.request.urlopen(address, content.getvalue(), timeout=60) as answer:
            print("    an image is answered:", sorted(json.load(answer)))
        process.send_signal(signal.Signals[value_of("STOPSIGNAL")])
        begin = time.monotonic()
        status = process.wait(120)
        print(f"    ended {time.monotonic() - begin:.1f} s after SIGTERM, exit status {status}")
        if status:
            raise SystemExit("error: the service did not end in order")
    finally:
        process.kill()


def main() -> None:
    """Runs the check with the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    whole = lambda text: pathlib.Path(text).absolute()  # noqa: E731 (the folder changes below)
    parser.add_argument("--workdir", type=whole, help="a trained run to serve")
    parser.add_argument("--extras", default=value_of("ARG").partition("=")[2])
    parser.add_argument("--index_url", default=os.environ.get("PIP_INDEX_URL", ""),
                        help="package index, where pip has another by default")  # fmt: skip
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = pathlib.Path(name)
        variables = {
            key: text.replace("/opt", name) for key, text in environment(args.extras).items()
        }
        if args.index_url:
            variables["PIP_INDEX_URL"] = args.index_url
        folder = root / value_of("WORKDIR").removeprefix("/opt/")
        folder.mkdir()
        copy_files(folder)
        for instruction, rest in read_lines():
            if instruction == "RUN":
                print("RUN", rest, flush=True)
                line = rest.replace("/opt", name).replace(
                    "python -m venv", f"{sys.executable} -m venv"
                )
                subprocess.run(["/bin/sh", "-c", line], cwd=folder, env=variables, check=True)
        # Nothing of the checkout may be needed.
        os.chdir(root)
        entry, health = (
            [word.replace("/opt", name) for word in command_of(instruction)]
            for instruction in ("ENTRYPOINT", "HEALTHCHECK")
        )
        print("ENTRYPOINT", *entry, "--help")
        subprocess.run([*entry, "--help"], env=variables, check=True, stdout=subprocess.DEVNULL)
        if args.workdir:
            print("ENTRYPOINT", *entry, "--workdir", args.workdir)
            serve([*entry, "--workdir", str(args.workdir)], health, variables)
    print("all lines of the Dockerfile work")


if __name__ == "__main__":
    main()
