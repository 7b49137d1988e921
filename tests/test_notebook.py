"""The stored notebook docs/tour.ipynb; `make notebook` executes it."""

import json
import pathlib
import re

from m2det_jax.__main__ import VERBS

DOCS = pathlib.Path(__file__).parent.parent / "docs"
CELLS = json.loads((DOCS / "tour.ipynb").read_text())["cells"]
CODE = {"".join(cell["source"]): cell for cell in CELLS if cell["cell_type"] == "code"}


def test_it_is_stored_without_outputs():
    assert 10 <= len(CODE) <= 14
    for cell in CODE.values():
        assert cell["outputs"] == [] and cell["execution_count"] is None, cell["source"]
    assert (DOCS / "tour.ipynb").stat().st_size < 20_000


def test_what_make_notebook_changes_is_tagged():
    tagged = {tag: text for text, cell in CODE.items() for tag in cell["metadata"].get("tags", [])}
    assert tagged.keys() == {"install", "parameters"}
    assert "%pip install" in tagged["install"]
    assert "TRAIN_IMAGES, VAL_IMAGES, EPOCHS = " in tagged["parameters"]
    assert all("%pip install" not in text for text in CODE if text != tagged["install"])


def test_its_verbs_exist():
    verbs = re.findall(r"^!m2det ([a-z-]+)", "\n".join(CODE), flags=re.M)
    assert verbs and set(verbs) <= VERBS.keys()


def test_its_last_cell_is_from_the_page_of_the_checkpoints():
    page = (DOCS / "checkpoints.md").read_text()
    (last,) = [text for text in CODE if "import orbax" in text]
    assert last == list(CODE)[-1] and "m2det_jax" not in last
    lines = [
        line for line in last.splitlines() if line and not line.startswith(("folder", "print"))
    ]
    assert len(lines) > 6 and all(line in page for line in lines)
