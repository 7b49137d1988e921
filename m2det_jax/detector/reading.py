"""Reading a data set for detection: batches at one or more input sizes, by readers that fit."""

import contextlib
import dataclasses
from collections.abc import Generator, Iterator, Sequence

import jax
import numpy as np

from m2det_jax.data import DetectionIndex, ResizeSettings, eval_batches
from m2det_jax.detector.objective import Metrics
from m2det_jax.metrics.detections import ImageDetections
from m2det_jax.run import readers

# Of every batch its images' detections, in original pixels, and its losses, if they are computed.
Detected = Generator[tuple[list[ImageDetections], Metrics | None], None, None]


@dataclasses.dataclass(frozen=True)
class Reading:
    """How the images of a data set are read for detection.

    Attributes:
        batch_size: images of a batch, over all devices.
        num_workers, num_threads: processes that read images of each input size, and threads of
            each; -1: what fits the host.
        on_bad_image: "error"; or "skip": the images that cannot be read are missing.
    """

    batch_size: int
    num_workers: int = readers.AUTOMATIC
    num_threads: int = readers.AUTOMATIC
    on_bad_image: str = "error"

    def num_batches(self, index: DetectionIndex) -> int:
        """Returns the number of batches of a data set; the last one may be filled up."""
        return -(-index.num_images // self.batch_size)


@contextlib.contextmanager
def open_batches(
    index: DetectionIndex, resizes: Sequence[ResizeSettings], reading: Reading
) -> Iterator[Iterator[tuple[dict[str, np.ndarray], ...]]]:
    """Gives an iterator of batches as `data.eval_batches` yields them, one for each input size."""
    sizes = [resize.image_size for resize in resizes]
    chosen = readers.eval_readers(
        index.num_images, reading.batch_size, sizes, reading.num_workers, reading.num_threads
    )
    with contextlib.ExitStack() as stack:
        batches = [
            stack.enter_context(
                eval_batches(
                    index,
                    resize=resize,
                    batch_size=reading.batch_size,
                    process_index=jax.process_index(),
                    process_count=jax.process_count(),
                    num_workers=chosen.workers,
                    num_threads=chosen.threads,
                    on_bad_image=reading.on_bad_image,
                )
            )
            for resize in resizes
        ]
        yield zip(*batches, strict=True)
