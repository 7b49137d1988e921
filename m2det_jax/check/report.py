"""Report of a check: the contents of its page, and the files that it writes."""

import dataclasses
import json
from collections.abc import Sequence

from m2det_jax.build import make_anchors
from m2det_jax.check import figures
from m2det_jax.check.figures import Found, Split
from m2det_jax.config import Config
from m2det_jax.datasets.loading import describe
from m2det_jax.datasets.record import names_validation
from m2det_jax.pages import Contents, Fit, Picture, render_page
from m2det_jax.pages.contents import ERROR
from m2det_jax.pages.markup import without_nan
from m2det_jax.run.outputs import Outputs

REPORT_FILES = ("report.html", "findings.json")


def assemble(
    config: Config,
    name: str,
    splits: dict[str, Split],
    found: Found,
    fitted: Fit | None,
    pictures: Sequence[Picture],
    augmented: Sequence[Picture],
) -> Contents:
    """Returns the contents of the page."""
    train, val = splits["train"], splits["val"]
    threshold = config.anchors.positive_threshold
    height, width = config.data.image_size
    groups = found.groups()
    return Contents(
        name=name,
        facts=_facts(config),
        tiles=figures.tiles(train, val, threshold),
        refused=any(group.severity == ERROR for group in groups),
        groups=groups,
        findings=found.findings(),
        classes=figures.class_rows(train, val),
        coverage=figures.size_tables(train, val),
        figures=figures.figures(train, val, make_anchors(config), (height, width), threshold),
        pictures=pictures,
        augmented=augmented,
        fit=fitted,
        threshold=threshold,
        notes=_notes(splits, pictures, augmented),
    )


def _facts(config: Config) -> list[tuple[str, str]]:
    val, (height, width) = "split off by seed", config.data.image_size
    if names_validation(config.data):
        val = describe(config.data, "val")
    return [
        ("Training", describe(config.data, "train")),
        ("Validation", val),
        ("Network input", f"{width} x {height} px, {config.data.resize}"),
        ("Bad boxes", config.data.on_bad_box),
    ]


def _notes(
    splits: dict[str, Split], pictures: Sequence[Picture], augmented: Sequence[Picture]
) -> list[str]:
    total = sum(split.index.num_images for split in splits.values())
    return [
        f"Pictures: {len(pictures)} of {total:,} images; of each split a third with the most boxes "
        "that no anchor reaches, a third with findings, the rest drawn at random by a fixed seed.",
        f"Augmented: the first {len(augmented)} samples of a run with the config's seed.",
        "The same image is one with the same bytes, or the same decoded pixels; a picture that was "
        "scaled or compressed again is not recognised.",
        "Counts, tables and plots are of all annotations; the scatter plot shows a sample.",
    ]


def write(outputs: Outputs, report: Contents) -> None:
    """Writes report.html and findings.json.

    Raises:
        InputError: if it would replace a file of someone else's.
    """
    page, table = REPORT_FILES
    outputs.write(page, render_page(report))
    groups = [dataclasses.asdict(group) for group in report.groups]
    everything = {
        "experiment": report.name,
        "refused": report.refused,
        "groups": groups,
        "coverage": {
            caption: [dataclasses.asdict(row) for row in rows]
            for caption, rows in report.coverage.items()
        },
        "classes": [dataclasses.asdict(row) for row in report.classes],
        "fit": report.fit and dataclasses.asdict(report.fit),
        "findings": [dataclasses.asdict(finding) for finding in report.findings],
    }
    text = json.dumps(without_nan(everything), indent=1)
    outputs.write(table, text + "\n")
