r"""Checks a data set against a config, without training, and shows it on one HTML page.

    python -m m2det_jax.check --config experiments/small320.py \
        --config.data.train_csv=train.csv --config.data.val_csv=val.csv \
        --config.data.classes_csv=classes.csv

Every annotation is checked, and every image file is decoded in full. Prints what was found, how
well the anchors fit, and writes report.html (open it in a browser) and findings.json. The exit
status is 1 where training would refuse the data, else 0.
"""

import json
import math
import pathlib
import sys

from absl import app, flags

from m2det_jax.config import command_line

_OUTPUT = flags.DEFINE_string("output", None, "Folder. Default: runs/check-EXPERIMENT.")
_FIT_ANCHORS = flags.DEFINE_bool(
    "fit_anchors", False, "Fit anchor sizes and ratios to the training boxes; print config lines."
)
_MAX_IMAGES = flags.DEFINE_integer(
    "max_images", 0, "Image files decoded of each split, drawn by seed; 0: all.", lower_bound=0
)
_SAMPLES = flags.DEFINE_integer(
    "samples", 24, "Pictures on the page, and half as many augmented ones.", lower_bound=0
)
_SMALLEST_SIDE = flags.DEFINE_float(
    "smallest_side", 0.0, "Pixels of the network input below which a box is implausible; 0: half "
    "a cell of the finest map, 4 pixels.", lower_bound=0.0,
)  # fmt: skip
_JSON = flags.DEFINE_bool(
    "json", False, "Print one JSON document to stdout, and everything else to stderr."
)
flags.register_validator("smallest_side", math.isfinite, "give a number of pixels, 0 or more")


def parse(argv: list[str]) -> list[str]:
    """Parses flags; what is wrong with them ends in one line."""
    return command_line.parse(argv, __doc__, "fit_anchors")


def main(argv: list[str]) -> None:
    """Checks the data that the flags name; exit status 1 where training would refuse them."""
    del argv
    # Imported late: `--help` and a misspelt flag answer at once.
    from m2det_jax import runtime
    from m2det_jax.check.report import REPORT_FILES
    from m2det_jax.check.run import check

    name = command_line.config_name()
    output = pathlib.Path(_OUTPUT.value or f"runs/check-{name}")

    with runtime.one_line_errors(), runtime.stdout_for_json(_JSON.value) as document:
        runtime.start()
        found = check(
            command_line.CONFIG.value,
            output,
            name=name,
            fit=_FIT_ANCHORS.value,
            max_images=_MAX_IMAGES.value,
            samples=_SAMPLES.value,
            smallest_side=_SMALLEST_SIDE.value,
        )
        if document:
            page, table = (output / name for name in REPORT_FILES)
            written = json.loads(table.read_text(encoding="utf-8"))
            runtime.write_json(document, written | {"files": [str(page), str(table)]})
    if found.refused:
        sys.exit(1)


def cli() -> None:
    """Entry point of `m2det-check`."""
    app.run(main, flags_parser=parse)


if __name__ == "__main__":
    cli()
