"""A trained detector for use from Python: images in, boxes in their pixels out."""

import functools
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

from m2det_jax import runtime
from m2det_jax.config import Config
from m2det_jax.datasets.evaluation import read_data
from m2det_jax.errors import InputError
from m2det_jax.inference.evaluation import data_choice, evaluate_restored
from m2det_jax.inference.exported import ExportedDetector, find_artefact, open_artefact
from m2det_jax.inference.picture_detector import THRESHOLD, PictureDetector
from m2det_jax.inference.pictures import ImageLike
from m2det_jax.inference.programs import Programs
from m2det_jax.inference.result import Result
from m2det_jax.inference.slices import detect_sliced
from m2det_jax.run import readers
from m2det_jax.trained import Restored, restore

__all__ = ["THRESHOLD", "TrainedDetector", "load"]


@overload
def load(
    workdir: str | os.PathLike,
    checkpoint: str | int = ...,
    overrides: Sequence[str] | Mapping[str, Any] = ...,
) -> "TrainedDetector": ...


@overload
def load(
    workdir: str | os.PathLike,
    checkpoint: str | int = ...,
    overrides: Sequence[str] | Mapping[str, Any] = ...,
    *,
    backend: str,
) -> ExportedDetector: ...


def load(
    workdir: str | os.PathLike,
    checkpoint: str | int = "latest",
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    backend: str | None = None,
) -> "TrainedDetector | ExportedDetector":
    """Loads a detector, ready for use: a trained one from its workdir alone, or an exported one.

    Programs are kept in jax's compilation cache, ~/.cache/m2det_jax unless jax has been told
    another place, so that a later process compiles nothing.

    Args:
        workdir: what training was given as workdir, or a folder that `m2det_jax.convert` wrote of
            a whole detector; or a file that `m2det export` wrote, such as detector.stablehlo.
        checkpoint: "latest", "best" (by validation AP), or a step.
        overrides: changes of config.eval, such as {"eval.nms": "soft_linear"} or
            ["eval.nms=soft_linear"].
        backend: "stablehlo" or "onnx": open what `m2det export` wrote in this format, `workdir`
            itself or a file in its folder export. None: `workdir` says it.

    Returns:
        A TrainedDetector; an ExportedDetector of an exported file, which has the same `predict`.

    Raises:
        InputError: if there is no such checkpoint or file, it is damaged, or an override does not
            fit.
    """
    runtime.set_up_jax()
    runtime.leave_out_cache_on_several_cpus()
    workdir = pathlib.Path(workdir)
    if artefact := find_artefact(workdir, backend):
        if checkpoint != "latest" or overrides:
            raise InputError(
                f"{artefact}: checkpoint and overrides were chosen when it was exported; leave "
                "them out, or export again"
            )
        return open_artefact(artefact)
    if isinstance(overrides, Mapping):
        overrides = [f"{key}={value}" for key, value in overrides.items()]
    with runtime.expected_warnings_left_out():
        return TrainedDetector(restore(workdir, checkpoint, overrides), workdir)


class TrainedDetector(PictureDetector):
    """A trained detector; `load` and `fit` give one.

    Threads may use it together.

    Attributes:
        restored: model, variables, config and class names, for all that is not offered here.
        workdir: where it is from.
    """

    def __init__(self, restored: Restored, workdir: pathlib.Path) -> None:
        self.restored, self.workdir = restored, workdir

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class id."""
        return self.restored.class_names

    @property
    def class_ids(self) -> tuple[int | str, ...]:
        """Category id of each class id in the data set of the training; (): it has none."""
        return self.restored.class_ids

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the network input, pixels; images of any size are brought to it."""
        return self.restored.detector.resize.image_size

    @property
    def step(self) -> int:
        """Optimiser step of the checkpoint."""
        return self.restored.step

    @property
    def config(self) -> Config:
        """What it was trained with, and config.eval as it is used."""
        return self.restored.config

    def __repr__(self) -> str:
        height, width = self.image_size
        names = ", ".join(self.class_names[:5]) + ", ..." * (len(self.class_names) > 5)
        return (
            f"TrainedDetector({self.workdir}, step {self.step}, input {height} x {width}, "
            f"{len(self.class_names)} classes: {names})"
        )

    def evaluate(
        self,
        data: str | os.PathLike | Mapping[str, Any] | None = None,
        *,
        batch_size: int = 0,
        num_workers: int = readers.AUTOMATIC,
        num_threads: int = readers.AUTOMATIC,
        trust: bool = False,
    ) -> dict[str, Any]:
        """Evaluates the detector on annotated images, as `python -m m2det_jax.evaluate` does.

        Args:
            data: a CSV file of annotations; a folder with val.csv; or a mapping with the flags of
                the verb, such as {"format": "coco", "root": "coco", "split": "val2017"}, or
                {"csv": "test.csv", "classes": "classes.csv"}. None: the run's validation set.
            batch_size: images per call, over all devices; 0: that of the config.
            num_workers: processes that read images; -1: what fits the host.
            num_threads: threads of each that read images; -1: likewise.
            trust: a Python module that the run names as config.data.format may be imported.

        Returns:
            The metrics: AP, AP50 and the others of COCO, VOC AP50, the losses, and per_class.

        Raises:
            DataError: if the data have errors for which training is refused.
            InputError: if there are no annotations, or the classes do not fit; says what to do.
        """
        choice = data_choice(data)
        index, _ = read_data(choice, self.restored, self.workdir, trust=trust)
        reading = {"num_workers": num_workers, "num_threads": num_threads}
        return evaluate_restored(self.restored, index, batch_size, "batch_size", **reading)[0]

    @functools.cached_property
    def _programs(self) -> Programs:
        return Programs(self.restored)

    def _sliced(
        self,
        images: Iterable[ImageLike],
        threshold: float,
        batch_size: int,
        tile: tuple[int, int],
    ) -> Iterator[Result]:
        """Yields the results of images that are seen in tiles, too."""
        found_in = detect_sliced(
            self._programs,
            images,
            tile=tile,
            threshold=threshold,
            batch_size=batch_size,
            threads=self._threads,
        )
        for found in found_in:
            yield Result(
                boxes=found.boxes,
                scores=found.scores,
                labels=found.labels,
                class_names=self.class_names,
                picture=found.picture,
                class_ids=self.class_ids,
            )
