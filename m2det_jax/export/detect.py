"""Detection with an exported M2Det detector; needs numpy, Pillow, and jax or ONNX Runtime alone.

    python detect.py detector.stablehlo photo.jpg [more.jpg ...]
    python detect.py detector_nms.onnx photo.jpg [more.jpg ...]

It prints a line of JSON for each picture. Use it as it is, or as an example.
"""

import json
import math
import sys
from typing import Any

import numpy as np
from PIL import Image, ImageOps


def open_artefact(path: str) -> tuple[Any, dict]:
    """Opens an artefact, beside which its description lies.

    Returns:
        (function, description). The function takes uint8 images [B, H, W, 3] and the lowest score,
        and returns boxes [B, K, 4], scores, labels and valid [B, K], by name. detector.onnx gives
        boxes [B, A, 4] and scores [B, A, C] of all anchors instead, for a suppression of your own.
    """
    with open(f"{path}.json", encoding="utf-8") as file:
        description = json.load(file)
    if description["format"] == "onnx":
        return _open_onnx(path, description), description
    import jax

    with open(path, "rb") as file:
        exported = jax.export.deserialize(bytearray(file.read()))
    return jax.jit(exported.call), description


def _open_onnx(path: str, description: dict) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    providers = onnxruntime.get_available_providers()
    session = onnxruntime.InferenceSession(path, options, providers=providers)

    def run(images: np.ndarray, threshold: float = 0.0) -> dict:
        if not description["suppression_inside"]:
            boxes, scores = session.run(["boxes", "scores"], {"images": images})
            return {"boxes": boxes, "scores": scores}
        inputs = {"images": images, "threshold": np.array([threshold], np.float32)}
        boxes, scores, selected = session.run(["boxes", "scores", "selected"], inputs)
        return _highest(boxes, scores, selected, description["suppression"]["max_detections"])

    return run


def _highest(boxes: np.ndarray, scores: np.ndarray, selected: np.ndarray, count: int) -> dict:
    """Returns the boxes [B, count, 4] that a NonMaxSuppression node selected, the surest first.

    Args:
        boxes, scores: [B, A, 4] and [B, A, C], of all anchors.
        selected: [n, 3], image, class and anchor.
    """
    number = len(boxes)
    found = {
        "boxes": np.zeros((number, count, 4), np.float32),
        "scores": np.zeros((number, count), np.float32),
        "labels": np.full((number, count), -1, np.int32),
        "valid": np.zeros((number, count), bool),
    }
    for i in range(number):
        _, labels, anchors = selected[selected[:, 0] == i].T
        order = np.argsort(-scores[i, anchors, labels], kind="stable")[:count]
        labels, anchors, kept = labels[order], anchors[order], slice(len(order))
        found["boxes"][i, kept] = boxes[i, anchors]
        found["scores"][i, kept] = scores[i, anchors, labels]
        found["labels"][i, kept], found["valid"][i, kept] = labels, True
    return found


def read_picture(
    path: str, description: dict
) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[int, int]]:
    """Reads a picture as the network is to see it.

    Returns:
        (uint8 [H, W, 3] RGB, scale [2], offset [2], (width, height)): a point (x, y) of the upright
        picture is at (x, y) * scale + offset of the array.
    """
    height, width = description["image_size"]
    wanted, resize = np.array([width, height]), description["resize"]
    with Image.open(path) as image:
        if image.format == "PNG":
            image.load()  # its orientation may come behind the pixels
        turned = image.format != "TIFF" and image.getexif().get(274, 1) >= 5
        size = image.size[::-1] if turned else image.size
        scale = wanted / size
        if resize["mode"] == "letterbox":
            scale = np.full(2, scale.min())
        # A large JPEG is decoded at 1/2, 1/4 or 1/8, if that is at least twice what is needed.
        least = [math.ceil(2 * side * share) for side, share in zip(size, scale, strict=True)]
        image.draft("RGB", tuple(least[::-1] if turned else least))
        picture = _rgb(ImageOps.exif_transpose(image))
    reduced = (tuple(-(-side // factor) for side in size) for factor in (1, 2, 4, 8))
    factor = 2 ** list(reduced).index(picture.size)
    # The picture fills whole pixels of the array; the rest is the fill colour.
    margin = (wanted - scale * size) / 2
    low = np.minimum(np.rint(margin), wanted - 1).astype(int)
    high = np.maximum(np.rint(scale * size + margin), low + 1).astype(int)
    part = (0, 0, size[0] / factor, size[1] / factor)
    sides = tuple((high - low).tolist())
    drawn = picture.resize(sides, Image.Resampling.BILINEAR, box=part)
    canvas = Image.new("RGB", (width, height), tuple(resize["fill"]))
    canvas.paste(drawn, tuple(low.tolist()))
    return np.asarray(canvas), (high - low) / size, low, size


def _rgb(image: Image.Image) -> Image.Image:
    """16-bit grey becomes 8-bit grey, transparent pixels are laid over white."""
    if image.mode.startswith("I"):
        wide = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def detect(path: str, artefact: Any, description: dict, threshold: float = 0.5) -> list[dict]:
    """Returns class, score and box (x1, y1, x2, y2 in pixels) of the objects in a picture."""
    pixels, scale, offset, size = read_picture(path, description)
    found = artefact(pixels[None], np.float32(threshold))
    if "valid" not in found:
        raise SystemExit("this artefact has no suppression inside; use detector_nms.onnx")
    boxes, scores, labels, valid = (
        np.asarray(found[name])[0] for name in ("boxes", "scores", "labels", "valid")
    )
    boxes = np.clip((boxes - np.tile(offset, 2)) / np.tile(scale, 2), 0, np.tile(size, 2))
    names = description["class_names"]
    return [
        {"class": names[labels[i]], "score": float(scores[i]), "box": boxes[i].tolist()}
        for i in np.flatnonzero(valid)
    ]


if __name__ == "__main__":
    opened = open_artefact(sys.argv[1])
    for name in sys.argv[2:]:
        print(json.dumps({"picture": name, "objects": detect(name, *opened)}))
