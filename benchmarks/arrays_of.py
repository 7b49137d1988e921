"""Arrays that a commit computes, as a file: detections of a checkpoint, or augmented samples.

    PYTHONPATH=TREE python -P benchmarks/arrays_of.py detections OUT.npz WORKDIR IMAGE...
    PYTHONPATH=TREE python -P benchmarks/arrays_of.py samples OUT.npz BATCHES ARGUMENTS

A script for `benchmarks.same`, without other modules of this repository: in its process they are
those of TREE. Detections come from `m2det_jax.restore`, at all scores, by each kind of suppression.
Samples are the first batches that `python -m m2det_jax.main ARGUMENTS` would train on; the run ends
where it asks grain for them.
"""

import json
import pathlib
import runpy
import sys
from collections.abc import Iterator

import grain
import jax
import numpy as np
from PIL import Image

SUPPRESSIONS = ("hard", "soft_linear", "soft_gaussian")

Arrays = dict[str, np.ndarray]


class Found(BaseException):
    """Ends the run: its training batches are found."""


def detections(workdir: pathlib.Path, images: list[str]) -> Arrays:
    """Returns all detections of images, which are resized as they are."""
    import m2det_jax

    config = json.loads((workdir / "config.json").read_text())
    height, width = config["data"]["image_size"]
    pictures = [Image.open(path).convert("RGB").resize((width, height)) for path in images]
    batch = np.stack([np.asarray(picture) for picture in pictures])
    arrays = {}
    for kind in SUPPRESSIONS:
        overrides = [f"eval.nms={kind}", "eval.score_threshold=0.0"]
        restored = m2det_jax.restore(workdir, overrides=overrides)
        found = restored.detector.detect_fn()(restored.variables, batch)
        for path, leaf in jax.tree_util.tree_leaves_with_path(found):
            arrays[f"{kind}{jax.tree_util.keystr(path)}"] = np.asarray(leaf)
    return arrays


def training_batches(arguments: list[str]) -> grain.MapDataset:
    """Returns the batches that a training command would read, to be indexed by step."""
    batches, read = [], grain.MapDataset.to_iter_dataset

    def find(self, *args, **kwargs):
        if "scale" in self[0]:  # of evaluation: how to bring boxes back to the image
            return read(self, *args, **kwargs)
        batches.append(self)
        raise Found

    grain.MapDataset.to_iter_dataset = find
    sys.argv = ["main", *arguments]
    try:
        runpy.run_module("m2det_jax.main", run_name="__main__", alter_sys=True)
    except Found:
        return batches[0]
    raise RuntimeError("the run has not asked for training batches")


def samples(count: int, arguments: list[str]) -> Arrays:
    """Returns the arrays of the first training batches, by step and name."""
    batches = training_batches(arguments)

    def named() -> Iterator[tuple[str, np.ndarray]]:
        for step in range(count):
            for name, values in batches[step].items():
                yield f"{step:04d}/{name}", np.asarray(values)

    return dict(named())


def main(argv: list[str]) -> None:
    kind, out, first, *rest = argv
    if kind == "detections":
        arrays = detections(pathlib.Path(first), rest)
    else:
        arrays = samples(int(first), rest)
    np.savez(out, **arrays)


if __name__ == "__main__":
    main(sys.argv[1:])
