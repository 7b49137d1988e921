"""Notebook execution: runs a copy of docs/tour.ipynb in a few steps, in a temporary folder.

    make notebook

Needs nbclient and ipykernel (`make .venv/.installed-dev`). The cell with the tag "install" is left
out, and the one with the tag "parameters" gets smaller numbers. The exit status is 1 if a cell
fails or does not show what it should.
"""

import os
import pathlib
import re
import sys
import tempfile
import time

import nbformat
from nbclient import NotebookClient

NOTEBOOK = pathlib.Path(__file__).resolve().parents[2] / "docs" / "tour.ipynb"
SHORT = "TRAIN_IMAGES, VAL_IMAGES, EPOCHS = 32, 8, 1.0"
# Text that the outputs of the code cells must have, by the start of a line of the cell.
SHOWN = {
    "!m2det doctor": r"m2det_jax \d",
    "!m2det check": r"report\.html",
    "run = m2det_jax.fit": r"AP50 \d\.\d{3} on the validation images",
    "metrics = ": r"AR_100 +\d\.\d{3}",
    "result = detector.predict": r"Result\(\d+ objects? in tour/data/val/000000\.jpg",
    "folder = ": r"step 4: [1-9]\d{4,} parameters",
}
PICTURES = ("Image.open", "result = detector.predict")


def shortened(path: pathlib.Path) -> nbformat.NotebookNode:
    """Returns the notebook without its installation and with the numbers of a short run."""
    notebook = nbformat.read(path, as_version=4)
    tags = [cell.metadata.get("tags", []) for cell in notebook.cells]
    if not tags.count(["install"]) == tags.count(["parameters"]) == 1:
        sys.exit(f'error: {path}: one cell each with the tag "install" and "parameters" expected')
    notebook.cells[tags.index(["parameters"])].source = SHORT
    del notebook.cells[tags.index(["install"])]
    return notebook


def output_of(notebook: nbformat.NotebookNode, start: str) -> tuple[str, bool]:
    """Returns the text that a cell printed or showed, and whether it showed a picture."""
    (cell,) = (
        cell for cell in notebook.cells if re.search(f"^{re.escape(start)}", cell.source, re.M)
    )
    data = [output.get("data", {}) for output in cell.outputs]
    text = [output.get("text", "") for output in cell.outputs]
    return "".join(text + [one.get("text/plain", "") for one in data]), any(
        "image/png" in one for one in data
    )


def main() -> None:
    """Executes the notebook and looks at what its cells show."""
    begin = time.perf_counter()
    # `!m2det` finds the command of the environment that this script runs in.
    os.environ["PATH"] = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    notebook = shortened(NOTEBOOK)
    with tempfile.TemporaryDirectory(prefix="m2det_tour_") as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    for start, pattern in SHOWN.items():
        text, _ = output_of(notebook, start)
        if not re.search(pattern, text):
            sys.exit(f"error: the cell {start!r} does not show {pattern!r}, but {text!r}")
    for start in PICTURES:
        if not output_of(notebook, start)[1]:
            sys.exit(f"error: the cell {start!r} shows no picture")
    print(f"{NOTEBOOK.name}: all cells work, {time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
