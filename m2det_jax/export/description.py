"""Description of an artefact: what one must know to use it; it lies beside it as JSON."""

import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping
from typing import Any

import jax

from m2det_jax import __version__
from m2det_jax.inference.exported import suppression_values
from m2det_jax.trained import Restored

_RESIZE = (
    "EXIF orientation is applied and transparency laid over white. 'stretch' fills the input; "
    "'letterbox' keeps the aspect and centres the picture on the fill colour (RGB). Pillow's "
    "bilinear resize, antialiased. read_picture in detect.py does it."
)


def describe(
    restored: Restored, content: bytes, weights_license: str, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the description of an artefact: what one must know to use it, for JSON.

    Args:
        content: the artefact.
        facts: what is so in its format alone.
    """
    detector, config = restored.detector, restored.config
    resize = {"mode": detector.resize.mode, "fill": list(detector.resize.fill), "how": _RESIZE}
    return {
        **facts,
        "sha256": hashlib.sha256(content).hexdigest(),
        "class_names": list(restored.class_names),
        "class_ids": list(restored.class_ids),
        "image_size": list(detector.resize.image_size),
        "resize": resize,
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
    }


def stablehlo_facts(restored: Restored, exported: jax.export.Exported) -> dict[str, Any]:
    """Returns what a description says of a file of jax.export."""
    height, width = restored.detector.resize.image_size
    count = restored.detector.suppression.max_detections
    return {
        "format": "stablehlo",
        "suppression_inside": True,
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
        "platforms": list(exported.platforms),
        "calling_convention_version": exported.calling_convention_version,
        "readable_by": f"jax.export.deserialize of jax {jax.__version__} and later; jax promises "
        "it for six months. An earlier jax may refuse it.",
    }


def onnx_facts(restored: Restored, opset: int, *, inside: bool) -> dict[str, Any]:
    """Returns what a description says of an ONNX model; inside: it suppresses, too."""
    height, width = restored.detector.resize.image_size
    anchors, classes = len(restored.detector.anchors), len(restored.class_names)
    inputs = {"images": f"uint8 [b, {height}, {width}, 3], RGB; any b"}
    outputs = {
        "boxes": f"float32 [b, {anchors}, 4], x1, y1, x2, y2 in pixels of the input",
        "scores": f"float32 [b, {anchors}, {classes}], 0..1, of class_names",
    }
    if inside:
        inputs["threshold"] = "float32 [1], lowest score, 0..1"
        outputs["selected"] = "int64 [n, 3], image, class and anchor of what the suppression keeps"
    return {
        "format": "onnx",
        "suppression_inside": inside,
        "input": inputs,
        "output": outputs,
        "opset": opset,
        "readable_by": f"runtimes with opset {opset}",
    }


def _versions() -> dict[str, str]:
    packages = ("jax", "jaxlib", "flax", "numpy", "pillow")
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"m2det_jax": __version__, "python": platform.python_version()} | found
