"""Wheel check: builds wheel and sdist, and uses the wheel as a newcomer does, without the checkout.

    make wheel                           # on python3
    make wheel PYTHON=python3.12         # on another Python
    python tests/wheel/check.py --python python3.12 --with jax==0.12.0.1 --with jaxlib==0.12.0.1

Needs build and twine (`make .venv/.installed-dev`). The wheel is built from the sdist, so both are
complete. It is installed in a new virtual environment, with an empty compilation cache, and every
command runs in a folder away from the checkout. Prints the seconds of each. The exit status is 1
if something is missing or fails.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]

# The demo of `m2det demo`, in a few steps: on images that are drawn already.
SHORT_EXPERIMENT = """
from m2det_jax.experiment import load_experiment


def get_config():
    config = load_experiment("quickstart")
    config.epochs = 2.0
    config.batch_size = 4
    config.eval.every_epochs = 2.0
    return config
"""
SHORT_DEMO = """
import pathlib

from m2det_jax import runtime
from m2det_jax.demo import demo

if __name__ == "__main__":
    runtime.start()
    demo(pathlib.Path("runs/demo"), config_name="short.py")
"""
LOAD = """
import m2det_jax

result = m2det_jax.load("runs/mine").predict("data/val/000000.jpg", threshold=0.0)
print(m2det_jax.__file__, result.boxes.shape, result)
"""


def expected_files() -> set[str]:
    """Returns the paths inside the wheel of all files of the package and of all experiments."""
    package = REPOSITORY / "m2det_jax"
    files = {path for path in package.rglob("*") if path.is_file()}
    inside = {
        f"m2det_jax/{path.relative_to(package).as_posix()}"
        for path in files
        if "__pycache__" not in path.parts
    }
    shipped = {f"m2det_jax/experiments/{p.name}" for p in (REPOSITORY / "experiments").glob("*.py")}
    return inside | shipped


def check_contents(wheel: pathlib.Path, sdist: pathlib.Path) -> None:
    """Compares the contents of both files with the checkout.

    Raises:
        SystemExit: if a file is missing, or the wheel has files that do not belong to it.
    """
    expected = expected_files()
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    info = f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"
    licences = {f"{info}/licenses/LICENSE", f"{info}/licenses/m2det_jax/drawing/LICENSE"}
    if missing := sorted((expected | licences) - names):
        sys.exit(f"error: {wheel.name}: missing: {', '.join(missing)}")
    if more := sorted(name for name in names - expected if not name.startswith(f"{info}/")):
        sys.exit(f"error: {wheel.name}: does not belong there: {', '.join(more)}")
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    sources = {name.replace("m2det_jax/experiments/", "experiments/") for name in expected}
    wanted = sources | {"LICENSE", "README.md", "pyproject.toml", "constraints.txt", "Makefile"}
    if missing := sorted(wanted - inside):
        sys.exit(f"error: {sdist.name}: missing: {', '.join(missing)}")
    print(
        f"{wheel.name}: {len(names)} files, {wheel.stat().st_size / 2**20:.2f} MiB; all are there"
    )


def build(dist: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Builds wheel and sdist, checks their metadata with twine, and returns their paths."""
    command = [sys.executable, "-m", "build", "--outdir", str(dist), str(REPOSITORY)]
    run(command, dist.parent, dict(os.environ))
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    command = [sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(sdist)]
    print(run(command, dist.parent, dict(os.environ)).strip())
    return wheel, sdist


def run(command: list[str], folder: pathlib.Path, environment: dict[str, str]) -> str:
    """Runs a command, prints its seconds and returns its output.

    Raises:
        SystemExit: if it fails; the end of its output is printed.
    """
    begin = time.perf_counter()
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
    )
    shown = " ".join([pathlib.Path(command[0]).name, *command[1:]]).strip()
    shown = shown if "\n" not in shown else f"{shown.splitlines()[0]} ..."
    print(f"{time.perf_counter() - begin:6.1f} s  {shown[:90]}", flush=True)
    if done.returncode:
        sys.exit(f"{done.stdout[-4000:]}\nerror: exit status {done.returncode}: {shown}")
    return done.stdout


def install(
    wheel: pathlib.Path, folder: pathlib.Path, python: str, pip: list[str]
) -> dict[str, str]:
    """Installs the wheel in a new environment; returns the environment variables that use it."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "JAX_", "XLA_", "M2DET_")) and name != "VIRTUAL_ENV"
    }
    environment["XDG_CACHE_HOME"] = str(folder / "cache")
    outside = dict(os.environ)
    run([python, "-m", "venv", "venv"], folder, outside)
    command = [str(folder / "venv/bin/python"), "-m", "pip", "install", "--quiet"]
    run([*command, "--disable-pip-version-check", str(wheel), *pip], folder, outside)
    environment["PATH"] = f"{folder / 'venv/bin'}{os.pathsep}{environment['PATH']}"
    return environment


def use(folder: pathlib.Path, environment: dict[str, str], version: str) -> None:
    """Uses the installed wheel as the quick start does, in a few steps.

    Raises:
        SystemExit: if a command fails, or did not do what it says.
    """
    bin_folder = folder / "venv/bin"
    python = str(bin_folder / "python")

    def m2det(*arguments: str) -> str:
        return run([str(bin_folder / "m2det"), *arguments], folder, environment)

    versions = m2det("--version")
    require(f"m2det_jax {version}" in versions, f"m2det --version printed {versions!r}")
    print(versions.splitlines()[1])
    m2det("doctor")
    draw = ["-m", "m2det_jax.data.synthetic", "--out", "data", "--num_train=16", "--num_val=12"]
    run([python, *draw], folder, environment)
    files = [f"--config.data.{name}_csv=data/{name}.csv" for name in ("train", "val", "classes")]
    short = ["--config.epochs=2.0", "--config.batch_size=4", "--config.eval.every_epochs=2.0"]
    trained = m2det("train", "--config", "small320", "--workdir", "runs/mine", *files, *short)
    require((folder / "runs/mine/checkpoints/8").is_dir(), f"no checkpoint 8\n{trained}")
    m2det("evaluate", "--workdir", "runs/mine")
    require((folder / "runs/mine/evaluation/00000008.json").is_file(), "no evaluation")
    m2det("predict", "--workdir", "runs/mine", "--threshold=0", "data/val/000000.jpg")
    found = json.loads((folder / "runs/mine/predictions/predictions.json").read_text())
    require(len(found) > 0, "m2det predict found nothing at threshold 0")
    printed = run([python, "-c", LOAD], folder, environment)
    require(str(folder.resolve()) in printed, f"imported from elsewhere: {printed}")
    require(f"({len(found)}, 4)" in printed, f"predict found {len(found)}, load: {printed}")

    shutil.copytree(folder / "data", folder / "runs/demo/data")
    (folder / "short.py").write_text(SHORT_EXPERIMENT)
    (folder / "short_demo.py").write_text(SHORT_DEMO)
    m2det("demo", "--help")
    run([python, "short_demo.py"], folder, environment)
    require((folder / "runs/demo/detections.jpg").is_file(), "the demo drew no picture")


def require(condition: bool, message: str) -> None:
    """Ends the program with a message unless the condition holds."""
    if not condition:
        sys.exit(f"error: {message}")


def main() -> None:
    """Checks the wheel on the Python that the flags name."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--python", default="python3", help="Python of the new environment")
    parser.add_argument(
        "--with",
        action="append",
        default=[],
        dest="requirements",
        metavar="REQUIREMENT",
        help="what pip also gets, such as jax==0.10.2; can be repeated",
    )
    parser.add_argument("--out", type=pathlib.Path, help="new folder that also gets both files")
    options = parser.parse_args()
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="m2det_wheel_") as temporary:
        folder = pathlib.Path(temporary).resolve()
        wheel, sdist = build(folder / "dist")
        check_contents(wheel, sdist)
        environment = install(wheel, folder, options.python, options.requirements)
        use(folder, environment, version=wheel.name.split("-")[1])
        if options.out:
            shutil.copytree(folder / "dist", options.out)
    print(f"the wheel works: {time.perf_counter() - begin:.0f} s in all")


if __name__ == "__main__":
    main()
