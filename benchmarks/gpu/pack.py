"""A folder for the machine with the GPU: code, weights in half precision, reduced pictures."""

import csv
import pathlib
import shutil
import subprocess

import numpy as np
from PIL import Image, ImageOps
from safetensors.numpy import load_file, save_file

from benchmarks.gpu.setup import REPOSITORY

LARGEST = 55e6  # bytes
WEIGHTS = "weights/vgg16_imagenet_features.safetensors"
DATASETS = ("bccd", "cards")
SIDE = 400  # longer side of the pictures, pixels: the network sees 320
CODE = ("m2det_jax", "benchmarks", "experiments", "tests", "docs/scaling.json", "pyproject.toml",
        "constraints.txt", "README.md", "LICENSE", "CHANGELOG.md")  # fmt: skip
# A machine with CUDA jax and PyTorch has the heavy ones; these are small, and pure Python or for
# one version of Python.
SMALL_WHEELS = (
    "absl-py", "beartype", "clu", "etils", "flax", "grain", "hypothesis", "jaxtyping",
    "ml_collections", "orbax-checkpoint", "pillow", "pycocotools", "PyYAML", "safetensors",
    "tensorboardX", "tqdm", "array-record", "more-itertools", "protobuf", "wadler-lindig",
    "wrapt", "humanize", "nest-asyncio", "pytest", "iniconfig", "pluggy", "sortedcontainers",
)  # fmt: skip
LARGE_WHEELS = ("jax", "jaxlib", "jax[cuda13]", "optax", "numpy")


def wheels() -> list[str]:
    """Returns requirements, a line each, with the versions that the project is tested with."""
    pinned: dict[str, list[str]] = {}  # more than one: for several versions of Python
    for line in (REPOSITORY / "constraints.txt").read_text().splitlines():
        if "==" in line and not line.startswith("#"):
            pinned.setdefault(_key(line.partition("==")[0]), []).append(line)

    def lines(names: tuple[str, ...]) -> list[str]:
        return [line for name in names for line in pinned.get(_key(name), [name])]

    return [
        "# pip download --only-binary=:all: -d wheels -r THIS; there: pip install --no-index",
        "# --find-links wheels -r THIS. Large; leave out what the machine has:",
        *lines(LARGE_WHEELS),
        "# small:",
        *lines(SMALL_WHEELS),
    ]


def _key(name: str) -> str:
    return name.partition("[")[0].strip().lower().replace("_", "-")


def pack(folder: pathlib.Path, inputs: pathlib.Path) -> int:
    """Fills a new folder with what the machine needs; returns its size in bytes.

    Raises:
        ValueError: the folder exists, an input is absent, or it became larger than 55 MB.
    """
    missing = [
        p for p in (WEIGHTS, *(f"datasets/{d}" for d in DATASETS)) if not (inputs / p).exists()
    ]
    if folder.exists() or missing:
        raise ValueError(f"{folder} exists" if folder.exists() else f"{inputs} lacks {missing}")
    listed = subprocess.check_output(["git", "ls-files", *CODE], cwd=REPOSITORY, text=True)
    for name in listed.splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPOSITORY / name, folder / name)
    weights = folder / "inputs" / WEIGHTS
    weights.parent.mkdir(parents=True)
    half = {name: x.astype(np.float16) for name, x in load_file(inputs / WEIGHTS).items()}
    save_file(half, weights)
    for name in DATASETS:
        reduce_dataset(inputs / "datasets" / name, folder / "inputs" / "datasets" / name)
    if (inputs / "reference").is_dir():
        shutil.copytree(inputs / "reference", folder / "inputs" / "reference")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > LARGEST:
        raise ValueError(f"{folder} has {size / 1e6:.1f} MB, more than {LARGEST / 1e6:.0f}")
    return size


def reduce_dataset(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies a data set in CSV form with pictures, and their boxes, of a longer side of SIDE."""
    target.mkdir(parents=True)
    for name in ("classes.csv", "LICENSE"):
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)
    factors: dict[str, float] = {}
    for split in ("train.csv", "val.csv"):
        with (source / split).open(newline="") as file:
            rows = list(csv.reader(file))
        for row in rows:
            path = row[0]
            if path not in factors:
                factors[path] = reduce_picture(source / path, target / path)
            row[1:5] = [f"{float(v) * factors[path]:g}" if v else "" for v in row[1:5]]
        with (target / split).open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)


def reduce_picture(source: pathlib.Path, target: pathlib.Path) -> float:
    """Writes a smaller JPEG; returns the factor on its sides."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(source) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    factor = min(1.0, SIDE / max(upright.size))
    size = tuple(max(1, round(side * factor)) for side in upright.size)
    upright.resize(size, Image.Resampling.LANCZOS).save(target, "JPEG", quality=85)
    return factor
