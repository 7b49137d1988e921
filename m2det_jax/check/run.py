"""Check of a data set: reads, decodes, measures, fits, and writes the report."""

import collections
import pathlib
from collections.abc import Sequence

import numpy as np
import tqdm
from ml_collections import ConfigDict

from m2det_jax.build import augment_settings
from m2det_jax.check.anchors import fit_to
from m2det_jax.check.boxes import check_boxes, check_classes
from m2det_jax.check.figures import Found, Split
from m2det_jax.check.files import check_files, check_repeats
from m2det_jax.check.image_facts import ImageFacts, iterate_facts
from m2det_jax.check.remarks import from_finding, remark
from m2det_jax.check.report import REPORT_FILES, assemble, write
from m2det_jax.check.samples import augmented_pictures, choose, whole_picture
from m2det_jax.config import Config, resolve
from m2det_jax.config.checks import validate_classes
from m2det_jax.data import DetectionIndex
from m2det_jax.data.errors import EFFECTS
from m2det_jax.datasets.coverage import Anchors, config_anchors, network_boxes
from m2det_jax.datasets.loading import check_datasets
from m2det_jax.pages import Contents, Picture, Remark, render_summary
from m2det_jax.pages.contents import NOTE, SPLITS
from m2det_jax.run.outputs import Outputs


def check(
    config: ConfigDict | Config,
    output: pathlib.Path,
    *,
    name: str,
    fit: bool = False,
    max_images: int = 0,
    samples: int = 24,
    smallest_side: float = 0.0,
) -> Contents:
    """Checks the data of a config; writes report.html and findings.json, prints a summary.

    Args:
        output: folder.
        name: of the experiment, for people.
        fit: fit anchors to the training boxes.
        max_images: image files decoded of each split; 0: all.
        samples: pictures on the page, and half as many augmented ones.
        smallest_side: pixels of the network input; 0: half a cell of the finest map.

    Returns:
        The contents of the page; `refused` says that training would refuse the data.

    Raises:
        ValueError: if the config is inconsistent, or nothing can be read.
        FileNotFoundError: if the config names files that are not there.
    """
    config = resolve(config)
    anchors = config_anchors(config)
    outputs = Outputs(output, "check")
    tables = [config.data.train_csv, config.data.val_csv, config.data.classes_csv]
    outputs.claim(REPORT_FILES, tables)
    output.mkdir(parents=True, exist_ok=True)
    indices, found = read_splits(config)
    outputs.claim(REPORT_FILES, [path for index in indices.values() for path in index.image_paths])
    facts = {split: decode(split, index, max_images, found) for split, index in indices.items()}
    splits = {split: measure(config, index, anchors) for split, index in indices.items()}
    found.remarks += check_all(config, splits, facts, anchors, smallest_side)
    readable = {split: readable_images(indices[split], facts[split]) for split in indices}
    sound = indices["train"].subset(np.flatnonzero(readable["train"]))
    report = assemble(
        config,
        name,
        splits,
        found,
        fit_to(config, splits) if fit and len(indices["train"].labels) else None,
        whole_pictures(config, splits, found.remarks, readable, samples),
        augmented_pictures(config, sound, anchors, -(-samples // 2)),
    )
    write(outputs, report)
    print(render_summary(report))
    print(f"\nreport: {output / 'report.html'}\nall findings: {output / 'findings.json'}")
    return report


def read_splits(config: Config) -> tuple[dict[str, DetectionIndex], Found]:
    """Returns the sound part of both splits, and what is wrong with the rest."""
    found, indices = Found([]), {}
    for split, (index, findings) in check_datasets(config).items():
        indices[split] = index
        found.remarks += [from_finding(finding, split) for finding in findings]
        kept = collections.Counter((f.kind, EFFECTS[f.effect]) for f in findings)
        for (kind, effect), number in findings.counts.items():
            found.more[kind, EFFECTS[effect]] += number - kept[kind, EFFECTS[effect]]
        if split == "train" and not findings.count("refuse"):
            validate_classes(config, index.class_names)
    return indices, found


def decode(
    split: str, index: DetectionIndex, max_images: int, found: Found
) -> dict[int, ImageFacts]:
    """Decodes image files in full, all or a sample: {image: facts}; notes that it is a sample."""
    images = np.arange(index.num_images)
    if 0 < max_images < index.num_images:
        images = np.sort(np.random.default_rng(0).choice(images, max_images, replace=False))
        what = f"{index.num_images - max_images:,} of {index.num_images:,} image files"
        remedy = "run without --max_images"
        found.remarks.append(remark("unchecked-images", split, what, remedy=remedy))
    facts = iterate_facts([index.image_paths[i] for i in images])
    bar = tqdm.tqdm(facts, f"{SPLITS[split]} images", len(images), leave=False, disable=None)
    return dict(zip(images.tolist(), bar, strict=True))


def measure(config: Config, index: DetectionIndex, anchors: Anchors) -> Split:
    """Brings all boxes of a split to the network input and compares them with the anchors."""
    boxes = network_boxes(index, augment_settings(config))
    overlap = anchors.overlaps(boxes)
    return Split(index, boxes, overlap, overlap >= anchors.positive_threshold)


def check_all(
    config: Config,
    splits: dict[str, Split],
    facts: dict[str, dict[int, ImageFacts]],
    anchors: Anchors,
    smallest_side: float,
) -> list[Remark]:
    """Returns the remarks on image files, boxes and classes that reading did not make."""
    sizes = zip(config.data.image_size, anchors.feature_maps[0], strict=True)
    cell = min(side / cells for side, cells in sizes)
    remarks = []
    for name, split in splits.items():
        index = split.index
        # Evaluation needs every image of its split.
        skipped = name == "train" and config.data.on_bad_image == "skip"
        remarks += check_files(
            name, facts[name], index.sizes, index.place_of_image, skipped=skipped
        )
        remarks += check_boxes(
            name,
            index,
            split.boxes,
            index.place_of_box,
            smallest_side=smallest_side or cell / 2,
            max_detections=config.eval.max_detections,
        )
    places = {name: split.index.place_of_image for name, split in splits.items()}
    remarks += check_repeats(facts, places)
    return remarks + check_classes(splits["train"].index, splits["val"].index)


def readable_images(index: DetectionIndex, facts: dict[int, ImageFacts]) -> np.ndarray:
    """Returns which images may be shown, bool [N]: decoded, and as large as their header says."""
    readable = np.zeros(index.num_images, bool)
    for i, fact in facts.items():
        readable[i] = not fact.problem and fact.size == tuple(index.sizes[i].tolist())
    return readable


def whole_pictures(
    config: Config,
    splits: dict[str, Split],
    remarks: Sequence[Remark],
    readable: dict[str, np.ndarray],
    samples: int,
) -> list[Picture]:
    """Returns pictures worth looking at: a third of them of the validation split."""
    anchors, resize = config_anchors(config), augment_settings(config)
    # What every image of a set has, such as being grey, marks none of them.
    remarked = {r.image for r in remarks if r.image and r.severity != NOTE}
    pictures = []
    for name, count in (("train", samples - samples // 3), ("val", samples // 3)):
        index, reached = splits[name].index, splits[name].reached
        chosen = choose(index, reached, remarked, readable[name], count)
        pictures += [
            whole_picture(index, image, reason, split=name, resize=resize, anchors=anchors)
            for image, reason in tqdm.tqdm(chosen, "pictures", leave=False, disable=None)
        ]
    return pictures
