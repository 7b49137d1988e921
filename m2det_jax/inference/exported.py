"""An exported detector: a file of `m2det export`, with the same `predict` as a trained one.

Beside the artefact lies its description, ARTEFACT.json: classes, input, preprocessing, suppression.
"""

import abc
import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from m2det_jax import ops
from m2det_jax.data import ResizeSettings
from m2det_jax.detector.detector import Suppression, Threshold
from m2det_jax.errors import InputError
from m2det_jax.inference.picture_detector import PictureDetector
from m2det_jax.inference.pictures import ImageLike, View
from m2det_jax.inference.programs import batch_of
from m2det_jax.inference.result import Result
from m2det_jax.metrics.detections import original_boxes

FOLDER = "export"  # in a workdir, where `m2det export` writes unless told otherwise
NAMES = {"stablehlo": "detector.stablehlo", "onnx": "detector.onnx"}  # by backend
ONNX_NMS = "detector_nms.onnx"  # the variant of NAMES["onnx"] with suppression inside


def find_artefact(path: pathlib.Path, backend: str | None) -> pathlib.Path | None:
    """Returns the artefact that a path means; None: the path is a workdir, and no backend is asked.

    Raises:
        InputError: if there is no such backend, or no artefact of it.
    """
    if backend is not None and backend not in NAMES:
        raise InputError(f"backend: expected one of {', '.join(NAMES)} or None, got {backend!r}")
    if backend is None:
        return path if path.is_file() and path.suffix.removeprefix(".") in NAMES else None
    if path.is_file():
        if path.suffix != f".{backend}":
            raise InputError(f"{path}: backend {backend!r} opens files *.{backend}")
        return path
    for folder in (path, path / FOLDER):
        if (artefact := folder / NAMES[backend]).is_file():
            return artefact
    raise InputError(
        f"{path}: no {NAMES[backend]} there or in {FOLDER}; write it with "
        f"m2det export --workdir {path} --format {backend}"
    )


def open_artefact(path: pathlib.Path) -> "ExportedDetector":
    """Opens a file that `m2det export` wrote.

    Raises:
        InputError: if it is not one, its description is missing, or it has been changed since.
    """
    description = read_description(path)
    backend = path.suffix.removeprefix(".")
    return ExportedDetector(path, description, _BACKENDS[backend](path, description))


def description_path(artefact: pathlib.Path) -> pathlib.Path:
    """Returns where the description of an artefact lies."""
    return artefact.with_name(f"{artefact.name}.json")


def read_description(artefact: pathlib.Path) -> dict[str, Any]:
    """Reads the description beside an artefact, and checks that both belong together.

    Raises:
        InputError: if one of them is missing, is not of `m2det export`, or has been changed.
    """
    beside = description_path(artefact)
    try:
        description = json.loads(beside.read_text(encoding="utf-8"))
        expected = description["sha256"]
    except FileNotFoundError:
        raise InputError(f"{beside}: missing; copy it together with {artefact.name}") from None
    except (ValueError, LookupError, TypeError):
        raise InputError(f"{beside}: not a description of m2det export; export again") from None
    with open(artefact, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != expected:
            raise InputError(
                f"{artefact}: it is not the file that {beside.name} describes; export again, or "
                "copy both"
            )
    return description


class ExportedDetector(PictureDetector):
    """A detector from a file of `m2det export`; `load` gives one.

    Attributes:
        path: the artefact.
        description: content of ARTEFACT.json: class names, input, suppression, versions.
        programs: what detects, for those who bring pictures to the input size themselves.
    """

    def __init__(
        self, path: pathlib.Path, description: dict[str, Any], programs: "ExportedPrograms"
    ) -> None:
        self.path, self.description, self.programs = path, description, programs

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class id."""
        return tuple(self.description["class_names"])

    @property
    def class_ids(self) -> tuple[int | str, ...]:
        """Category id of each class id in the data set of the training; (): it has none."""
        return tuple(self.description["class_ids"])

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the network input, pixels; images of any size are brought to it."""
        return self.programs.resizes[0].image_size

    @property
    def step(self) -> int:
        """Optimiser step of the checkpoint."""
        return self.description["step"]

    def __repr__(self) -> str:
        height, width = self.image_size
        return (
            f"ExportedDetector({self.path}, step {self.step}, input {height} x {width}, "
            f"{len(self.class_names)} classes)"
        )

    @property
    def _programs(self) -> "ExportedPrograms":
        return self.programs

    def _sliced(
        self,
        images: Iterable[ImageLike],
        threshold: float,
        batch_size: int,
        tile: tuple[int, int],
    ) -> Iterator[Result]:
        raise InputError(
            "slices: an exported detector sees pictures whole, because its suppression is inside; "
            "load the run itself"
        )


class ExportedPrograms(abc.ABC):
    """Detects by one view with an exported program.

    Attributes:
        resizes: the input size, and how an image is brought to it.
        suppression: that of the run.
    """

    def __init__(self, description: Mapping[str, Any]) -> None:
        resize = description["resize"]
        size, fill = tuple(description["image_size"]), tuple(resize["fill"])
        self.resizes = (ResizeSettings(size, resize["mode"], fill),)
        self.suppression = Suppression(**description["suppression"])

    @property
    def max_detections(self) -> int:
        """K."""
        return self.suppression.max_detections

    @property
    def score_threshold(self) -> float:
        """Lowest score of the config.eval that was exported, 0..1."""
        return float(self.suppression.score_threshold)

    @abc.abstractmethod
    def detect_images(self, images: np.ndarray, threshold: Threshold) -> ops.Detections:
        """Detects in uint8 [B, H, W, 3]; returns Detections [B, K], boxes in their pixels."""

    def detect_views(
        self, views: Sequence[Sequence[View]], threshold: float, batch_size: int
    ) -> ops.Detections:
        """Detects in up to `batch_size` pictures; returns Detections [batch_size, K]."""
        batch = batch_of([view for (view,) in views], batch_size)
        return self.detect_images(batch["image"], threshold)

    def to_picture(
        self, boxes: np.ndarray, views: Sequence[View], size: tuple[int, int]
    ) -> np.ndarray:
        """Returns boxes [n, 4] of `detect_views` in pixels of the picture of (width, height)."""
        (view,) = views
        return original_boxes(boxes, view.scale, view.offset, size).astype(np.float32)


class StableHLOPrograms(ExportedPrograms):
    """Detects with a file of jax.export, on jax's first device."""

    def __init__(self, path: pathlib.Path, description: Mapping[str, Any]) -> None:
        super().__init__(description)
        self._path, self._versions = path, description["versions"]

    def detect_images(self, images: np.ndarray, threshold: Threshold) -> ops.Detections:
        """Starts to detect; see `ExportedPrograms`."""
        found = self._call(images, np.float32(threshold))
        return ops.Detections(**found)

    @functools.cached_property
    def _call(self) -> Any:
        try:
            exported = jax.export.deserialize(bytearray(self._path.read_bytes()))
        except ValueError as error:
            raise InputError(
                f"{self._path}: jax {jax.__version__} cannot read it, jax {self._versions['jax']} "
                f"wrote it ({error}); install that version or a later one"
            ) from error
        return jax.jit(exported.call)


class ONNXPrograms(ExportedPrograms):
    """Detects with ONNX Runtime, and suppresses as the run does, soft suppression too, with jax."""

    def __init__(self, path: pathlib.Path, description: Mapping[str, Any]) -> None:
        super().__init__(description)
        if description["suppression_inside"]:
            raise InputError(
                f"{path}: its suppression is inside, per class and hard, for programs of your own; "
                f"load {NAMES['onnx']} beside it, which the suppression of the run follows"
            )
        self._path = path

    def network(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns boxes [B, A, 4] and scores [B, A, C] of uint8 images [B, H, W, 3]."""
        boxes, scores = self._session.run(["boxes", "scores"], {"images": np.asarray(images)})
        return boxes, scores

    def suppress(
        self, boxes: np.ndarray, scores: np.ndarray, threshold: Threshold
    ) -> ops.Detections:
        """Starts the suppression of what `network` gives; returns Detections [B, K]."""
        return self._suppress(boxes, scores, np.float32(threshold))

    def detect_images(self, images: np.ndarray, threshold: Threshold) -> ops.Detections:
        """Detects; see `ExportedPrograms`."""
        return self.suppress(*self.network(images), threshold)

    @functools.cached_property
    def _session(self) -> Any:
        try:
            import onnxruntime
        except ImportError as error:
            raise InputError(f"{self._path}: {error}; pip install 'm2det_jax[onnx]'") from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        # Its threads would wait busily for the next call, while jax suppresses.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        available = onnxruntime.get_available_providers()
        return onnxruntime.InferenceSession(str(self._path), options, providers=available)

    @functools.cached_property
    def _suppress(self) -> Any:
        return jax.jit(functools.partial(suppress, self.suppression))


def suppress(
    suppression: Suppression, boxes: jax.Array, scores: jax.Array, threshold: jax.Array
) -> ops.Detections:
    """Returns Detections [B, K] of boxes [B, A, 4] and scores [B, A, C] of all anchors."""
    above = suppression.at_threshold(threshold)

    def one_image(boxes: jax.Array, scores: jax.Array) -> ops.Detections:
        return above.detections(above.candidates(boxes, scores))

    return jax.vmap(one_image)(boxes, scores)


_BACKENDS = {"stablehlo": StableHLOPrograms, "onnx": ONNXPrograms}


def suppression_values(suppression: Suppression) -> dict[str, Any]:
    """Returns what a description keeps of a suppression: plain values by name."""
    return dataclasses.asdict(suppression)
