"""Output files of prediction: a JSON line per image, COCO results, pictures and crops."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import json
import logging
import math
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from m2det_jax.data import DetectionIndex, load_image
from m2det_jax.data.file_names import distinct_names
from m2det_jax.drawing.boxes import draw_boxes
from m2det_jax.metrics.detections import ImageDetections
from m2det_jax.metrics.scores import coco_results
from m2det_jax.pages.markup import printable
from m2det_jax.run import readers
from m2det_jax.run.outputs import Outputs

log = logging.getLogger("m2det_jax")

LINES, RESULTS = "predictions.jsonl", "predictions.json"
CROPS = "crops"
_UNSAFE, _LONGEST = '/\\:*?"<>|', 200  # characters that file systems refuse; bytes of a name
NAMED = 20  # number of skipped images that the log names; predictions.jsonl names all


class Record:
    """The lines of predictions.jsonl, and counts of images and detections.

    Args:
        index: the images whose header can be read.
        kept: position among the inputs of each image of the index.
        ids: image id of each input.
        paths: file of each input.
        problems: what is wrong with the other inputs, by position.

    Attributes:
        images, detections: numbers so far.
        problems: what is wrong with an input, by position; images that fail later are added.
    """

    def __init__(
        self,
        index: DetectionIndex,
        kept: list[int],
        ids: Sequence[int | str],
        paths: Sequence[str],
        problems: dict[int, str],
    ) -> None:
        self._index, self._kept, self._ids, self._paths = index, kept, ids, paths
        self.images = self.detections = 0
        self.problems = problems
        self._position = self._done = self._named = 0

    def batch(self, found: list[ImageDetections], end: int) -> str:
        """Returns the lines of the images of the index up to `end`; missing ones are skipped."""
        by_image, lines = {one.image_id: one for one in found}, []
        end = min(end, self._index.num_images)
        for i in range(self._done, end):
            if i not in by_image:
                self.problems[self._kept[i]] = why_unreadable(self._index.image_paths[i])
                continue
            lines += [*self._skipped(self._kept[i]), self._line(by_image[i])]
            self._position = self._kept[i] + 1
        self._done = end
        return "".join(lines)

    def rest(self) -> str:
        """Returns the lines of the images after the last one with detections."""
        return "".join(self._skipped(len(self._paths)))

    def _skipped(self, end: int) -> Iterator[str]:
        for position in range(self._position, end):
            problem = self.problems[position]
            self._named += 1
            if self._named <= NAMED:
                log.warning("skipped: %s", printable(problem))
            entry = {"image_id": self._ids[position], "file_name": self._paths[position]}
            yield json.dumps(entry | {"skipped": problem}) + "\n"

    def _line(self, found: ImageDetections) -> str:
        index, position = self._index, self._kept[found.image_id]
        detections = coco_results(index, [found])
        for one in detections:
            del one["image_id"], one["file_name"]
        width, height = index.sizes[found.image_id].tolist()
        entry = {
            "image_id": self._ids[position],
            "file_name": self._paths[position],
            "width": width,
            "height": height,
            "detections": detections,
        }
        self.images, self.detections = self.images + 1, self.detections + len(detections)
        return json.dumps(entry) + "\n"


def why_unreadable(path: str) -> str:
    """Reads an image again and returns why this fails."""
    try:
        load_image(path)
    except ValueError as error:
        return str(error)
    return f"cannot read image {path}: the first attempt failed, a second one did not"


def detections_of(line: dict, class_names: Sequence[str]) -> ImageDetections:
    """Returns the detections of a line of predictions.jsonl, with the image id of the line."""
    found = line["detections"]
    boxes = np.array([one["bbox"] for one in found], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    labels = [class_names.index(one["category_name"]) for one in found]
    scores = np.array([one["score"] for one in found])
    return ImageDetections(line["image_id"], boxes, scores, np.array(labels, np.int64))


def write_results(outputs: Outputs) -> None:
    """Writes the COCO results from the lines of predictions.jsonl, one at a time."""
    with (
        open(outputs.folder / LINES, encoding="utf-8") as lines,
        outputs.replacing(RESULTS) as partial,
        open(partial, "w", encoding="utf-8") as file,
    ):
        separator = "["
        for line in map(json.loads, lines):
            image = {"image_id": line["image_id"], "file_name": line["file_name"]}
            for found in line.get("detections", ()):
                file.write(f"{separator}\n {json.dumps(image | found)}")
                separator = ","
        file.write("[]\n" if separator == "[" else "\n]\n")


@dataclasses.dataclass(frozen=True)
class Wanted:
    """The files to draw of each image of an index.

    Attributes:
        pictures: name of the picture with boxes; (): none.
        crops: name of the image, to which the number of a crop is added; (): none.
        class_folders: folder of the crops of each class.
    """

    pictures: Sequence[str] = ()
    crops: Sequence[str] = ()
    class_folders: Sequence[str] = ()


class Drawer:
    """Draws pictures in threads; the number of waiting pictures is bounded.

    Args:
        outputs: where the pictures are written.
        index: the images.
        wanted: what is drawn.

    Attributes:
        undrawn: number of images that could not be drawn.
    """

    def __init__(self, outputs: Outputs, index: DetectionIndex, wanted: Wanted) -> None:
        self._outputs, self._index, self._wanted = outputs, index, wanted
        self.undrawn = 0
        self._running: collections.deque[concurrent.futures.Future] = collections.deque()
        self._threads = min(readers.usable_cores(), 8)
        self.pool = concurrent.futures.ThreadPoolExecutor(self._threads, "draw")

    def __call__(self, found: ImageDetections) -> None:
        """Starts to draw an image; waits first if too many others are not done."""
        if self._wanted.pictures or (self._wanted.crops and len(found.boxes)):
            self._running.append(self.pool.submit(self._draw, found))
            self.wait(2 * self._threads)

    def wait(self, most: int) -> None:
        """Waits until at most `most` pictures are not done; raises the error of a thread."""
        while len(self._running) > most:
            if problem := self._running.popleft().result():
                self.undrawn += 1
                log.warning("no picture: %s", printable(problem))

    def _draw(self, found: ImageDetections) -> str | None:
        index, path = self._index, self._index.image_paths[found.image_id]
        try:
            image = load_image(path)
        except ValueError as error:  # in full size it may need too much memory, for example
            return str(error)
        if self._wanted.pictures:
            picture = draw_boxes(image, found.boxes, found.labels, index.class_names, found.scores)
            self._save(picture, self._wanted.pictures[found.image_id])
        if self._wanted.crops:
            for number, (box, label) in enumerate(zip(found.boxes, found.labels, strict=True), 1):
                folder = self._wanted.class_folders[int(label)]
                name = f"{CROPS}/{folder}/{self._wanted.crops[found.image_id]}_{number}.jpg"
                self._save(image.crop(crop_of(box, image.size)), name)
        return None

    def _save(self, picture: Image.Image, name: str) -> None:
        with self._outputs.replacing(name) as partial:
            picture.save(partial, "JPEG", quality=92)


def crop_of(box: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Returns a box (x1, y1, x2, y2) in whole pixels: all that it touches, at least one.

    Args:
        box: float [4] xyxy, pixels, inside the image.
        size: (width, height) of the image.
    """
    x1, y1 = (min(int(low), most - 1) for low, most in zip(box[:2], size, strict=True))
    x2, y2 = (math.ceil(high) for high in box[2:])
    return x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)


def class_folders(class_names: Sequence[str]) -> list[str]:
    """Returns a folder name for each class; what file systems refuse becomes _."""
    plain = ("".join(c if c.isprintable() and c not in _UNSAFE else "_" for c in name)
             for name in class_names)  # fmt: skip
    return distinct_names(name.encode()[:_LONGEST].decode(errors="ignore").strip(". ") or "_"
                          for name in plain)  # fmt: skip


@contextlib.contextmanager
def drawing(outputs: Outputs, index: DetectionIndex, wanted: Wanted) -> Iterator[Drawer]:
    """Yields a `Drawer`; at the end no picture is half written."""
    drawer = Drawer(outputs, index, wanted)
    try:
        yield drawer
        drawer.wait(0)
    finally:
        drawer.pool.shutdown(cancel_futures=True)
