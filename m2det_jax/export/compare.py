"""Comparison of an artefact, in a process without this package, with the native detector.

B pictures of a batch, A anchors, C classes, K detections.
"""

import collections
import dataclasses
import functools
import json
import logging
import math
import os
import pathlib
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from m2det_jax import ops
from m2det_jax.data import DetectionIndex
from m2det_jax.export.matching import BOX, SCORE, Candidates, Found, Match, match
from m2det_jax.inference.exported import suppress
from m2det_jax.inference.pictures import Picture, View, look_at
from m2det_jax.inference.stream import ahead, in_batches
from m2det_jax.metrics.detections import ImageDetections, original_boxes
from m2det_jax.metrics.scores import coco_metrics
from m2det_jax.run import readers
from m2det_jax.trained import Restored

log = logging.getLogger("m2det_jax")

RAW = 1e-4  # what two programs may differ by: of an output's standard deviation; in scores
BATCH = 8  # pictures
_Seen = tuple[Picture, list[View]]
_ALONE = pathlib.Path(__file__).with_name("alone.py")


@dataclasses.dataclass(frozen=True)
class Artefact:
    """An artefact to compare; its description lies beside it.

    Attributes:
        path: of the artefact.
        example: path of the program that opens it, detect.py.
        network: path of an artefact that gives the outputs before suppression; None: it does.
        raw: names of these outputs, some of those of `_Native.outputs`.
    """

    path: pathlib.Path
    example: pathlib.Path
    network: pathlib.Path | None
    raw: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Pictures of a comparison.

    Attributes:
        checked: paths of those that are compared one by one.
        index: a data set, to compare the average precision on it too; None: none.
    """

    checked: Sequence[str]
    index: DetectionIndex | None

    def batches(self) -> tuple[list[list[str]], int]:
        """Returns paths in batches, each path once, and how many batches are to be checked."""
        checked = list(in_batches(self.checked, BATCH))
        known = set(self.checked)
        rest = [path for path in self.index.image_paths if path not in known] if self.index else []
        return [*checked, *in_batches(rest, BATCH)], len(checked)


class _Tally:
    """Differences of all pictures that are checked, so far."""

    def __init__(self) -> None:
        self.pixels = 0  # pictures whose pixels differ
        self.pairs, self.box, self.score = 0, 0.0, 0.0
        self.reasons: collections.Counter[str] = collections.Counter()
        self._largest: dict[str, float] = {}
        self._sums: dict[str, np.ndarray] = {}

    def add_raw(self, name: str, native: np.ndarray, other: np.ndarray) -> None:
        """Adds an output before suppression, [B, A, ...]."""
        largest = float(np.abs(native - other).max())
        if not math.isfinite(largest):
            largest = math.inf
        self._largest[name] = max(self._largest.get(name, 0.0), largest)
        exact = native.astype(np.float64)
        sums = np.array([exact.size, exact.sum(), np.square(exact).sum()])
        self._sums[name] = self._sums.get(name, np.zeros(3)) + sums

    def add(self, one: Match) -> None:
        """Adds the detections of a picture."""
        self.pairs += one.pairs
        self.box, self.score = max(self.box, one.box), max(self.score, one.score)
        self.reasons.update(reason or "unexplained" for reason in one.reasons)

    def raw(self) -> dict[str, dict[str, float]]:
        """Returns largest difference and standard deviation of each output, and their ratio."""
        found = {}
        for name, largest in self._largest.items():
            count, total, squares = self._sums[name]
            deviation = math.sqrt(max(squares / count - (total / count) ** 2, 0.0))
            ratio = largest / deviation if deviation else math.inf * bool(largest)
            found[name] = {
                "largest_difference": largest, "deviation": deviation, "ratio": ratio,
            }  # fmt: skip
        return found


def compare(
    artefact: Artefact, restored: Restored, pictures: Pictures, python: str
) -> dict[str, Any]:
    """Detects in pictures by an artefact, in another process, and by the native detector.

    Both run on a CPU, at the score threshold of config.eval.

    Args:
        python: the interpreter of that process. It needs numpy, Pillow and what runs the artefact.

    Returns:
        The differences, as JSON can hold them; "within": whether all are as small as promised.

    Raises:
        RuntimeError: if the other process fails.
    """
    threshold = restored.config.eval.score_threshold
    batches, checked = pictures.batches()
    tally = _Tally()
    found: dict[str, tuple[Found, Found]] = {}  # native and the artefact's, by path
    with tempfile.TemporaryDirectory(prefix="m2det-export-") as name:
        folder = pathlib.Path(name)
        log.info("detecting in %d pictures by %s, in a process without m2det_jax",
                 sum(map(len, batches)), artefact.path.name)  # fmt: skip
        versions = _run_alone(artefact, batches, checked, threshold, folder, python)
        log.info("detecting in them by the native detector")
        native = _Native(restored, threshold)
        for number, seen in enumerate(_look(batches, restored)):
            with np.load(folder / f"batch_{number}.npz") as file:
                other = _suppressed(dict(file), native)
            pairs = _add_batch(tally, seen, other, native, artefact.raw)
            found |= dict(zip(batches[number], pairs, strict=True))
    result: dict[str, Any] = {
        "artefact": artefact.path.name,
        "process": versions | {"without": "m2det_jax"},
        "native": {"jax": jax.__version__, "dtype": restored.config.model.dtype},
        "pictures": len(pictures.checked),
        "pictures_with_other_pixels": tally.pixels,
        "score_threshold": threshold,
        "raw": tally.raw(),
        "matched": tally.pairs,
        "box_difference": tally.box,
        "score_difference": tally.score,
        "unmatched": dict(tally.reasons),
        "AP": _average_precision(pictures.index, found),
        "tolerances": {"raw": RAW, "box": BOX, "score": SCORE},
    }
    return result | {"within": _within(result)}


def _within(result: Mapping[str, Any]) -> bool:
    # Scores are probabilities. Most are near 0, so their deviation is no measure of a difference.
    sizes = [
        one["largest_difference" if name == "scores" else "ratio"]
        for name, one in result["raw"].items()
    ]
    unexplained = result["unmatched"].get("unexplained", 0)
    return max(sizes) <= RAW and not unexplained and not result["pictures_with_other_pixels"]


def _run_alone(
    artefact: Artefact,
    batches: list[list[str]],
    checked: int,
    threshold: float,
    folder: pathlib.Path,
    python: str,
) -> dict[str, str]:
    """Runs alone.py, which writes to a folder; returns the versions that it says."""
    request = {
        "artefact": os.path.abspath(artefact.path),
        "example": os.path.abspath(artefact.example),
        "network": os.path.abspath(artefact.network) if artefact.network else "",
        "raw": artefact.raw,
        "batches": [[os.path.abspath(path) for path in paths] for paths in batches],
        "checked": checked,
        "threshold": threshold,
        "folder": str(folder),
    }
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [python, "-P", str(_ALONE), str(folder / "request.json")],
        cwd=folder, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{artefact.path} fails in a process of its own: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def _look(batches: Sequence[Sequence[str]], restored: Restored) -> Iterator[list[_Seen]]:
    """Yields the pictures of each batch as the native detector sees them."""
    resizes = [restored.detector.resize]
    threads = readers.local_readers("the comparison", batch_bytes=0, images=0).threads

    def look(paths: Sequence[str]) -> list[_Seen]:
        return [look_at(path, resizes) for path in paths]

    return ahead(look, batches, threads=threads, most=threads)


class _Native:
    """The native detector, on a CPU."""

    def __init__(self, restored: Restored, threshold: float) -> None:
        detector = restored.detector
        self.suppression = detector.suppression.at_threshold(threshold)
        self._threshold = np.float32(threshold)
        self._device = _cpu()
        self._variables = jax.device_put(restored.variables, self._device)
        self._detect = detector.detect_above_fn()

        @jax.jit
        def network(variables: dict, images: jax.Array) -> dict[str, jax.Array]:
            outputs: Any = detector.model.apply(variables, detector.normalize(images), train=False)
            anchors = jnp.asarray(detector.anchors)[None]
            boxes = ops.decode(outputs["box_deltas"], anchors, detector.variances)
            boxes = ops.clip(boxes, detector.resize.image_size)
            scores = detector.class_scores(outputs["class_logits"])
            return dict(outputs) | {"boxes": boxes, "scores": scores}

        self._network = network
        self._suppress = jax.jit(functools.partial(suppress, detector.suppression))

    def outputs(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the outputs for images [B, H, W, 3], and boxes and scores [B, A, ...]."""
        return jax.device_get(self._network(self._variables, self._put(images)))

    def detections(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Returns boxes, scores, labels, valid [B, K, ...] of images [B, H, W, 3]."""
        found = self._detect(self._variables, self._put(images), self._threshold)
        return jax.device_get(found)._asdict()

    def suppress(self, boxes: np.ndarray, scores: np.ndarray) -> dict[str, np.ndarray]:
        """Returns boxes, scores, labels, valid [B, K, ...] of those of all anchors, [B, A, ...]."""
        found = self._suppress(self._put(boxes), self._put(scores), self._threshold)
        return jax.device_get(found)._asdict()

    def _put(self, images: np.ndarray) -> jax.Array:
        return jax.device_put(images, self._device)


def _suppressed(other: dict[str, np.ndarray], native: _Native) -> dict[str, np.ndarray]:
    """Returns what alone.py wrote, with detections: those of an artefact that does not suppress."""
    if "valid" in other:
        return other
    scores = np.zeros(other["shape"], np.float32)
    boxes = np.zeros((*scores.shape[:2], 4), np.float32)
    where = other["image"], other["anchor"]
    boxes[where], scores[where] = other["kept_boxes"], other["kept_scores"]
    return other | native.suppress(boxes, scores)


def _cpu() -> jax.Device:
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves it out
        return jax.local_devices()[0]


def _add_batch(
    tally: _Tally,
    seen: Sequence[_Seen],
    other: dict[str, np.ndarray],
    native: _Native,
    raw: Sequence[str],
) -> list[tuple[Found, Found]]:
    """Returns what both find in each picture of a batch, and adds the differences to a tally.

    Args:
        other: what alone.py wrote of the batch.
    """
    images = np.stack([view.image for _, (view,) in seen])
    found = native.detections(images)
    pairs = []
    for i, (picture, (view,)) in enumerate(seen):
        ours = _found(found, i, view.scale, view.offset, picture.size)
        theirs = _found(other, i, other["scale"][i], other["offset"][i], picture.size)
        pairs.append((ours, theirs))
    if "pixels" in other:
        outputs = native.outputs(images)
        for name in raw:
            tally.add_raw(name, outputs[name], other[f"raw_{name}"])
        for i, (picture, (view,)) in enumerate(seen):
            tally.pixels += not np.array_equal(view.image, other["pixels"][i])
            boxes = original_boxes(outputs["boxes"][i], view.scale, view.offset, picture.size)
            candidates = Candidates(boxes, outputs["scores"][i])
            tally.add(match(*pairs[i], candidates, native.suppression))
    return pairs


def _found(
    found: Mapping[str, np.ndarray],
    i: int,
    scale: np.ndarray,
    offset: np.ndarray,
    size: tuple[int, int],
) -> Found:
    """Returns the detections of picture i of a batch, boxes in its pixels."""
    valid = found["valid"][i]
    boxes = original_boxes(found["boxes"][i][valid], scale, offset, size)
    return Found(boxes, found["scores"][i][valid], found["labels"][i][valid])


def _average_precision(
    index: DetectionIndex | None, found: Mapping[str, tuple[Found, Found]]
) -> dict[str, float] | None:
    """Returns AP of both on a data set, and the difference; None without one."""
    if index is None:
        return None
    ours, theirs = (
        float(
            coco_metrics(
                index,
                [
                    ImageDetections(i, *found[path][side])
                    for i, path in enumerate(index.image_paths)
                ],
            )["AP"]
        )
        for side in (0, 1)
    )
    return {
        "native": ours, "artefact": theirs, "difference": theirs - ours, "images": index.num_images,
    }  # fmt: skip


def summary(result: Mapping[str, Any]) -> str:
    """Returns what `compare` found, in lines."""
    lines = [
        f"{result['artefact']}, on {result['pictures']} pictures, against the native detector:"
    ]
    for name, one in result["raw"].items():
        lines.append(
            f"  {name}: largest difference {one['largest_difference']:.2g}, "
            f"{one['ratio']:.1e} of the standard deviation"
        )
    lines.append(
        f"  detections: {result['matched']} matched, largest difference "
        f"{result['box_difference']:.2g} px, of the score {result['score_difference']:.1e}"
    )
    reasons = result["unmatched"]
    lines += [f"  without a partner: {count}, {reason}" for reason, count in reasons.items()]
    lines += [] if reasons else ["  without a partner: none"]
    if result["pictures_with_other_pixels"]:
        lines.append(f"  read with other pixels: {result['pictures_with_other_pixels']} pictures")
    if scores := result["AP"]:
        lines.append(
            f"  AP on {scores['images']} images: {scores['artefact']:.4f}, native "
            f"{scores['native']:.4f}, difference {scores['difference']:+.1e}"
        )
    return "\n".join(lines)
