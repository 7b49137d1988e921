"""Prediction: detects objects in image files, draws them and writes JSON."""

import contextlib
import dataclasses
import json
import logging
import pathlib
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import jax
import tqdm

from m2det_jax.build import make_views
from m2det_jax.data import DetectionIndex, UnreadableImage
from m2det_jax.detector.reading import Reading, open_batches
from m2det_jax.detector.views import MultiScale
from m2det_jax.errors import InputError
from m2det_jax.inference.programs import Programs
from m2det_jax.inference.slices import detect_sliced, tile_size
from m2det_jax.inference.stream import in_batches
from m2det_jax.metrics.detections import ImageDetections, one_behind, to_original
from m2det_jax.pages.markup import printable
from m2det_jax.predict import labels
from m2det_jax.predict.classes import Limits, read_limits
from m2det_jax.predict.downloads import download_images, download_names
from m2det_jax.predict.inputs import Inputs, find_inputs, image_names, index_inputs
from m2det_jax.predict.outputs import (
    CROPS,
    LINES,
    NAMED,
    RESULTS,
    Record,
    Wanted,
    class_folders,
    drawing,
    write_results,
)
from m2det_jax.run import devices, memory, readers
from m2det_jax.run.outputs import Outputs, refuse_checkpoints
from m2det_jax.trained import Restored, restore

log = logging.getLogger("m2det_jax")


@dataclasses.dataclass(frozen=True)
class Predicted:
    """Result of a prediction run.

    Attributes:
        images: number of images that were read.
        detections: number of detections in them.
        skipped: number of images that could not be read.
        undrawn: number of images that were read, but could not be drawn.
        folder: output folder.
        files: names of the JSON files, and of a CSV table, in it.
    """

    images: int
    detections: int
    skipped: int
    undrawn: int
    folder: pathlib.Path
    files: tuple[str, ...] = (LINES, RESULTS)

    def lines(self) -> Iterator[dict]:
        """Yields the entry of each image in predictions.jsonl, in order."""
        with open(self.folder / LINES, encoding="utf-8") as file:
            yield from map(json.loads, file)


def predict(
    workdir: pathlib.Path,
    paths: Sequence[str],
    *,
    checkpoint: str = "latest",
    output: str = "",
    root: str = "",
    list_file: str = "",
    threshold: float = 0.5,
    class_thresholds: Sequence[str] = (),
    classes: Sequence[str] = (),
    batch_size: int = 0,
    num_workers: int = readers.AUTOMATIC,
    num_threads: int = readers.AUTOMATIC,
    pictures: bool = True,
    crops: bool = False,
    save: Sequence[str] = (),
    strict: bool = False,
    overrides: Sequence[str] = (),
    slices: int | str | None = None,
) -> Predicted:
    """Detects objects in images, draws them and writes them as JSON.

    Args:
        workdir: the --workdir of the training run.
        paths: image files, folders, globs and URLs, or a COCO image list.
        checkpoint: "latest", "best" (by validation AP), or a step.
        output: folder for pictures and JSON; "": workdir/predictions.
        root: folder of the images of a COCO list; "": the folder of the list.
        list_file: a text file with a path or URL a line; "-": standard input; "": none.
        threshold: lowest score that is drawn and written, 0..1; replaces the one of config.eval.
        class_thresholds: other thresholds of some classes, as NAME=SCORE.
        classes: names of the classes to keep; (): all.
        batch_size: images per call, over all devices; 0: one per device.
        num_workers, num_threads: processes that read images, and threads of each; -1: automatic.
        pictures: write pictures too, not only JSON.
        crops: write each detection as a picture of its own.
        save: other forms to write: json (always written), csv, coco, yolo, voc.
        strict: an image that cannot be read is an error.
        overrides: changes of config.eval, such as "eval.nms=soft_linear".
        slices: see large images in tiles, too: pixels of a tile's longer side, or "auto".

    Returns:
        The numbers of images and detections, and the output folder.

    Raises:
        InputError: if no image can be read, a user's file would be replaced, or a flag is wrong.
    """
    check_flags(threshold, batch_size, overrides)
    forms = labels.read_forms(save)
    restored = restore(workdir, checkpoint, overrides)
    limits = read_limits(threshold, class_thresholds, classes, restored.class_names)
    tile = None if slices is None else tile_size(slices, restored.detector.resize.image_size)
    batch_size = batch_size or jax.device_count()
    devices.check_divisible("--batch_size", batch_size)
    outputs = Outputs(output or workdir / "predictions", "predict")
    refuse_checkpoints(outputs.folder, workdir)
    inputs = find_inputs(paths, root, outputs, list_file)
    names = image_names(inputs.paths)
    downloads, earlier = _claim(outputs, inputs, names, forms, pictures, crops)
    local, problems = download_images(inputs.paths, downloads, outputs)
    index, kept, problems = _readable_images(inputs, local, problems, restored, strict)
    # Of tiles there are more than images.
    batch_size = batch_size if tile else devices.no_larger_batch(batch_size, index.num_images)
    outputs.folder.mkdir(parents=True, exist_ok=True)
    outputs.remove(RESULTS, *earlier)
    record = Record(index, kept, inputs.ids or range(len(inputs.paths)), inputs.paths, problems)
    bad = "error" if strict else "skip"
    how = {"num_workers": num_workers, "num_threads": num_threads}
    batches = detect_batches(restored, index, limits.lowest, batch_size, bad, tile, **how)
    wanted = _wanted([names[i] for i in kept], pictures, crops, restored.class_names)
    undrawn = _write_images(batches, record, limits, outputs, index, wanted, batch_size)
    _refuse_nothing(record, inputs)
    write_results(outputs)
    _save_labels(outputs, forms, index, kept)
    files = LINES, RESULTS, *([labels.TABLE] if "csv" in forms else [])
    numbers = record.images, record.detections, len(record.problems), undrawn
    done = Predicted(*numbers, outputs.folder, files)
    _say(done, ["pictures"] * pictures + [CROPS] * crops + [f for f in forms if f != "csv"])
    return done


def _claim(
    outputs: Outputs,
    inputs: Inputs,
    names: Sequence[str],
    forms: Sequence[str],
    pictures: bool,
    crops: bool,
) -> tuple[dict[int, str], list[str]]:
    """Checks that all files may be written; nothing is removed yet.

    Returns:
        (output name of the download of each URL, by its position; labels and crops of an earlier
        run, to be removed).
    """
    downloads = download_names(inputs.paths, names)
    files = [LINES, RESULTS, *downloads.values()]
    files += [labels.TABLE] if "csv" in forms else []
    files += [f"{name}.jpg" for name in names] if pictures else []
    local = [path for i, path in enumerate(inputs.paths) if i not in downloads]
    outputs.claim(files, [*local, *inputs.lists])
    folders = [form for form in forms if form in labels.DATASETS] + [CROPS] * crops
    return downloads, labels.earlier_files(outputs, folders)


def _refuse_nothing(record: Record, inputs: Inputs) -> None:
    if not record.images:
        raise InputError(_too_bad(record.problems, len(inputs.paths), strict=False))


def _wanted(names: list[str], pictures: bool, crops: bool, class_names: tuple[str, ...]) -> Wanted:
    return Wanted(
        pictures=[f"{name}.jpg" for name in names] if pictures else (),
        crops=names if crops else (),
        class_folders=class_folders(class_names),
    )


def _write_images(
    batches: Generator[list[ImageDetections]],
    record: Record,
    limits: Limits,
    outputs: Outputs,
    index: DetectionIndex,
    wanted: Wanted,
    batch_size: int,
) -> int:
    """Writes the lines and pictures of each batch; returns how many images could not be drawn."""
    with (
        memory.batch_explained("prediction", "--batch_size", batch_size),
        contextlib.closing(batches),
        drawing(outputs, index, wanted) as draw,
        outputs.stream(LINES) as append,
    ):
        bar = tqdm.tqdm(batches, "predict", -(-index.num_images // batch_size), leave=False,
                        disable=None)  # fmt: skip
        for number, batch in enumerate(bar):
            found = [limits.of(one) for one in batch]
            append(record.batch(found, (number + 1) * batch_size))
            for one in found:
                draw(one)
        append(record.rest())
    return draw.undrawn


def detect_batches(
    restored: Restored,
    index: DetectionIndex,
    threshold: float,
    batch_size: int,
    on_bad_image: str = "error",
    tile: tuple[int, int] | None = None,
    **reading: int,
) -> Generator[list[ImageDetections]]:
    """Yields the detections of each batch of an index, in order, with the views of the config.

    Args:
        restored: the detector.
        index: the images.
        threshold: lowest score, 0..1.
        batch_size: images per call, over all devices.
        on_bad_image: "error", or "skip": images that cannot be read are missing in the result.
        tile: (height, width) of tiles in which images are seen, too, pixels; None: they are not.
        reading: num_workers and num_threads of `Reading`.
    """
    if tile:
        yield from _sliced_batches(restored, index, threshold, batch_size, on_bad_image, tile)
        return
    suppression = restored.detector.suppression.at_threshold(threshold)
    detector = dataclasses.replace(restored.detector, suppression=suppression)
    replicated, by_batch = devices.data_mesh()
    variables = jax.device_put(restored.variables, replicated)
    how = Reading(batch_size, on_bad_image=on_bad_image, **reading)
    if views := make_views(restored.config):
        multi = MultiScale(detector, views)
        for images, _ in multi.detect(variables, index, how, sharding=by_batch):
            yield images
        return
    detect = detector.detect_fn()
    with open_batches(index, [detector.resize], how) as batches:
        dispatched = (
            (
                detect(variables, jax.device_put(batch["image"], by_batch)),
                {key: batch[key] for key in ("image_id", "scale", "offset")},
            )
            for (batch,) in batches
        )
        for found, placing in one_behind(dispatched):
            yield to_original(jax.device_get(found), placing, index)


def _sliced_batches(
    restored: Restored,
    index: DetectionIndex,
    threshold: float,
    batch_size: int,
    on_bad_image: str,
    tile: tuple[int, int],
) -> Generator[list[ImageDetections]]:
    """Yields what `detect_batches` does, of images that are seen in tiles, too.

    The batch size is that of the tiles, and the number of images in a list.
    """
    options: dict[str, Any] = {
        "tile": tile,
        "threshold": threshold,
        "batch_size": batch_size,
        "threads": min(readers.usable_cores(), readers.MOST_THREADS),
    }
    programs = Programs(restored)

    def detections() -> Iterator[ImageDetections | None]:
        position = 0
        while position < index.num_images:
            try:
                rest = iter(index.image_paths[position:])
                for found in detect_sliced(programs, rest, **options):
                    yield ImageDetections(position, found.boxes, found.scores, found.labels)
                    position += 1
            except UnreadableImage:
                if on_bad_image == "error":
                    raise
                yield None
                position += 1

    for batch in in_batches(detections(), batch_size):
        yield [found for found in batch if found is not None]


def _save_labels(outputs: Outputs, forms: Sequence[str], index: DetectionIndex,
                 kept: list[int]) -> None:  # fmt: skip
    for form in forms:
        if form == "csv":
            labels.write_table(outputs)
        elif flat := labels.write_labels(outputs, form, index, kept):
            log.warning("%s: %d detections without an area are left out", form, flat)


def _readable_images(
    inputs: Inputs,
    files: dict[int, str],
    missing: dict[int, str],
    restored: Restored,
    strict: bool,
) -> tuple[DetectionIndex, list[int], dict[int, str]]:
    """Returns what `index_inputs` does; raises InputError if too many images cannot be read."""
    index, kept, found = index_inputs(inputs, files, restored.class_names, restored.class_ids)
    problems = missing | found
    if problems and (strict or not kept):
        raise InputError(_too_bad(problems, len(inputs.paths), strict))
    return index, kept, problems


def check_flags(threshold: float, batch_size: int, overrides: Sequence[str]) -> None:
    """Raises InputError if a flag that images and videos share is wrong."""
    if any(override.startswith("eval.score_threshold=") for override in overrides):
        raise InputError("--set eval.score_threshold: give predict --threshold instead")
    if not 0 <= threshold <= 1:  # also refuses NaN
        raise InputError(f"--threshold: a score from 0 to 1 expected, got {threshold:g}")
    if batch_size < 0:
        raise InputError(f"--batch_size: 0 or more expected, got {batch_size}")


def _too_bad(problems: dict[int, str], count: int, strict: bool) -> str:
    shown = "; ".join([problems[i] for i in sorted(problems)][:NAMED])
    more = f"; and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
    what = "--strict" if strict else "nothing to predict on"
    return f"{what}: {len(problems)} of {count} images cannot be read: {shown}{more}"


def _say(done: Predicted, folders: Sequence[str]) -> None:
    if done.skipped > NAMED:
        log.warning("skipped: %d more; %s names them", done.skipped - NAMED, LINES)
    skipped = f", {done.skipped} images skipped" if done.skipped else ""
    undrawn = f", {done.undrawn} without a picture" if done.undrawn else ""
    *first, last = [*folders, *done.files]
    text = f"{done.detections} detections in {done.images} images{skipped}{undrawn}; "
    print(printable(f"{text}{', '.join(first)} and {last} in {done.folder}"))
