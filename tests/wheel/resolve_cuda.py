"""CUDA resolution: what `pip install 'm2det_jax[cuda12]'` and `[cuda13]` would install.

    make resolve-cuda

Needs build (`make .venv/.installed-dev`) and no GPU. pip only resolves, from wheels alone, for
Linux on x86-64 and Python 3.11 and 3.12. The exit status is 1 if a requirement cannot be met.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
EXTRAS = {"cuda12": "jax-cuda12-plugin", "cuda13": "jax-cuda13-plugin"}
PYTHONS = ("3.11", "3.12")
# glibc 2.17, 2.27 and 2.28, which pip of another platform does not derive from one another.
PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_27_x86_64", "manylinux_2_28_x86_64")


def resolve(pip: str, requirement: str, python: str, folder: pathlib.Path) -> dict[str, str]:
    """Returns the versions by name of package that pip would install.

    Args:
        pip: a Python whose pip is used; an old pip downloads whole files to read their metadata.
        requirement: a wheel with an extra.
        python: version of the Python to resolve for, such as "3.12".
        folder: for a report of pip.

    Raises:
        SystemExit: if pip finds no versions that fit together; has what it says.
    """
    report, target = folder / "report.json", folder / "target"
    command = [pip, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--dry-run"]
    command += ["--only-binary", ":all:", "--python-version", python, "--target", str(target)]
    command += [flag for name in PLATFORMS for flag in ("--platform", name)]
    command += ["--report", str(report), requirement]
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.exit(f"{done.stdout[-3000:]}\nerror: {requirement} on Python {python}")
    found = json.loads(report.read_text())["install"]
    return {one["metadata"]["name"]: one["metadata"]["version"] for one in found}


def main() -> None:
    """Builds the wheel and resolves each extra on each Python."""
    with tempfile.TemporaryDirectory(prefix="m2det_cuda_") as temporary:
        folder = pathlib.Path(temporary)
        build = [sys.executable, "-m", "build", "--wheel", "--outdir", temporary, str(REPOSITORY)]
        subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
        (wheel,) = folder.glob("*.whl")
        subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
        pip = str(folder / "venv/bin/python")
        subprocess.run([pip, "-m", "pip", "install", "--quiet", "-U", "pip"], check=True)
        for extra, plugin in EXTRAS.items():
            for python in PYTHONS:
                found = resolve(pip, f"{wheel}[{extra}]", python, folder)
                if plugin not in found:
                    sys.exit(f"error: {extra} on Python {python}: no {plugin} among {found}")
                shown = [f"{name} {found[name]}" for name in ("jax", "jaxlib", plugin)]
                print(f"{extra}, Python {python}: {', '.join(shown)}; {len(found)} packages")


if __name__ == "__main__":
    main()
