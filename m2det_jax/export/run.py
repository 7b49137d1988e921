"""Export of a run's detector for use without this package, compared with the native detector."""

import hashlib
import importlib.metadata
import json
import logging
import pathlib
import platform
import sys
import tempfile
from collections.abc import Sequence
from typing import Any, TextIO

import jax
import jax.numpy as jnp

from m2det_jax import __version__, runtime
from m2det_jax.build import make_views
from m2det_jax.data import DetectionIndex
from m2det_jax.data.images import IMAGE_SUFFIXES
from m2det_jax.datasets.evaluation import DataChoice, read_data
from m2det_jax.errors import InputError
from m2det_jax.export.compare import Artefact, Pictures, compare, summary
from m2det_jax.export.programs import detection_of, export_stablehlo, network_of
from m2det_jax.inference.exported import FOLDER, NAMES, description_path, suppression_values
from m2det_jax.pages.markup import printable
from m2det_jax.run.outputs import Outputs, refuse_checkpoints
from m2det_jax.trained import Restored, restore

log = logging.getLogger("m2det_jax")

EXAMPLE = "detect.py"
CHECKED = 50  # pictures that are compared one by one, at most
_RESIZE = (
    "EXIF orientation is applied and transparency laid over white. 'stretch' fills the input; "
    "'letterbox' keeps the aspect and centres the picture on the fill colour (RGB). Pillow's "
    "bilinear resize, antialiased. read_picture in detect.py does it."
)


def export(
    workdir: pathlib.Path,
    *,
    format: str,
    checkpoint: str = "latest",
    output: str = "",
    check_images: Sequence[str] = (),
    check_python: str = "",
    weights_license: str = "",
    overrides: Sequence[str] = (),
    trust: bool = False,
    document: TextIO | None = None,
) -> dict[str, Any]:
    """Writes an artefact of a run's detector, its description and an example; compares it.

    Args:
        workdir: the --workdir of the training run.
        format: "stablehlo".
        checkpoint: "latest", "best" (by validation AP), or a step.
        output: folder of the files; "": WORKDIR/export.
        check_images: files and folders of pictures to compare on, the first CHECKED of them; ():
            pictures of the validation set.
        check_python: interpreter that runs the artefact for the comparison; "": this one.
        weights_license: licence of the weights, for the description.
        overrides: changes of config.eval, such as "eval.nms=soft_linear".
        trust: allow the import of a Python module that the run names as config.data.format.
        document: a file that also receives the comparison and the names of the files, as JSON.

    Returns:
        The comparison, see `compare.compare`.

    Raises:
        InputError: if the checkpoint or an argument is not valid, a file of the user would be
            replaced, or the artefact differs from the native detector; it is kept then.
    """
    restored = restore(workdir, checkpoint, overrides)
    outputs = Outputs(output or workdir / FOLDER, "export")
    refuse_checkpoints(outputs.folder, workdir)
    name = NAMES[format]
    names = [name, f"{name}.json", f"{name}.comparison.json", EXAMPLE]
    outputs.claim(names)
    pictures = _pictures(restored, workdir, check_images, trust)
    outputs.claim(names, pictures.checked)
    if make_views(restored.config):
        log.warning("config.eval.test_sizes and test_flip are left out: an artefact has one view")
    log.info("exporting step %d", restored.step)
    example = pathlib.Path(__file__).with_name(EXAMPLE).read_text(encoding="utf-8")
    outputs.write(EXAMPLE, example)
    description = _write_stablehlo(outputs, restored, weights_license)
    with tempfile.TemporaryDirectory(prefix="m2det-export-") as folder:
        network = _write_network(pathlib.Path(folder), restored, description)
        raw = ("class_logits", "box_deltas")
        artefact = Artefact(outputs.folder / name, outputs.folder / EXAMPLE, network, raw)
        result = compare(artefact, restored, pictures, check_python or sys.executable)
    outputs.write(names[2], json.dumps(result, indent=2) + "\n")
    print(summary(result))
    print(printable(f"written: {outputs.folder}: {', '.join(names)}"))
    if document:
        runtime.write_json(document, result | {"files": [str(outputs.folder / n) for n in names]})
    if not result["within"]:
        raise InputError(
            f"{outputs.folder / name}: it differs from the native detector by more than it should "
            f"(see {names[2]}); do not use it, and report this"
        )
    return result


def _pictures(
    restored: Restored, workdir: pathlib.Path, check_images: Sequence[str], trust: bool
) -> Pictures:
    """Returns the pictures to compare on: those that are given, and the validation set."""
    index: DetectionIndex | None = None
    try:
        index, _ = read_data(DataChoice(), restored, workdir, trust=trust)
    except InputError as error:
        if not check_images:
            raise InputError(f"{error}; or give pictures by --check_images") from None
        log.warning("AP is not compared: %s", error)
    if check_images:
        return Pictures(_files(check_images), index)
    assert index is not None
    paths = index.image_paths
    count = min(CHECKED, len(paths))
    return Pictures([paths[i * len(paths) // count] for i in range(count)], index)


def _files(given: Sequence[str]) -> list[str]:
    """Returns the first pictures of files and folders, sorted in each folder.

    Raises:
        InputError: if there is none.
    """
    found: list[str] = []
    for path in map(pathlib.Path, given):
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        found += [
            str(file)
            for file in inside
            if file == path or file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
        ]
    if not found:
        raise InputError(f"--check_images {' '.join(map(str, given))}: no pictures there")
    return list(dict.fromkeys(found))[:CHECKED]


def _write_stablehlo(outputs: Outputs, restored: Restored, weights_license: str) -> dict[str, Any]:
    """Writes the artefact and its description; returns the description."""
    size = restored.detector.resize.image_size
    threshold = jax.ShapeDtypeStruct((), jnp.float32)
    exported = export_stablehlo(detection_of(restored), size, threshold)
    content = bytes(exported.serialize())
    description = describe(restored, "stablehlo", content, weights_license) | {
        "platforms": list(exported.platforms),
        "calling_convention_version": exported.calling_convention_version,
        "readable_by": f"jax.export.deserialize of jax {jax.__version__} and later; jax promises "
        "it for six months. An earlier jax may refuse it.",
    }
    outputs.write(NAMES["stablehlo"], content)
    outputs.write(f"{NAMES['stablehlo']}.json", json.dumps(description, indent=2) + "\n")
    return description


def _write_network(
    folder: pathlib.Path, restored: Restored, description: dict[str, Any]
) -> pathlib.Path:
    """Writes the network alone, for the comparison; returns its path."""
    exported = export_stablehlo(network_of(restored), restored.detector.resize.image_size)
    path = folder / "network.stablehlo"
    path.write_bytes(exported.serialize())
    description_path(path).write_text(json.dumps(description), encoding="utf-8")
    return path


def describe(
    restored: Restored, format: str, content: bytes, weights_license: str
) -> dict[str, Any]:
    """Returns the description of an artefact: what one must know to use it, for JSON."""
    detector, config = restored.detector, restored.config
    height, width = detector.resize.image_size
    count = detector.suppression.max_detections
    return {
        "format": format,
        "sha256": hashlib.sha256(content).hexdigest(),
        "class_names": list(restored.class_names),
        "class_ids": list(restored.class_ids),
        "image_size": [height, width],
        "input": {
            "images": f"uint8 [b, {height}, {width}, 3], RGB; any b",
            "threshold": "float32 [], lowest score, 0..1",
        },
        "output": {
            "boxes": f"float32 [b, {count}, 4], x1, y1, x2, y2 in pixels of the input",
            "scores": f"float32 [b, {count}], 0..1, the highest first",
            "labels": f"int32 [b, {count}], position in class_names",
            "valid": f"bool [b, {count}], which of them are detections",
        },
        "resize": {
            "mode": detector.resize.mode, "fill": list(detector.resize.fill), "how": _RESIZE,
        },
        "preprocessing": {
            "inside": True,
            "mean": list(detector.mean),
            "std": list(detector.std),
            "channel_order": detector.channel_order,
        },
        "suppression": suppression_values(detector.suppression),
        "step": restored.step,
        "backbone": config.model.backbone,
        "license": {
            "program": "Apache-2.0",
            "weights": weights_license
            or "not stated; it follows from the training images and the starting weights",
        },
        "versions": _versions(),
    }  # fmt: skip


def _versions() -> dict[str, str]:
    packages = ("jax", "jaxlib", "flax", "numpy", "pillow")
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"m2det_jax": __version__, "python": platform.python_version()} | found
