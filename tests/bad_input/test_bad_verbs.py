"""Every bad input is refused by every verb in clear words: none with a trace, none accepted."""

import collections
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import cases_convert
import cases_train
import cases_use
import pytest
from sound_sets import png
from world import VERBS, Case, make_templates, prepare_folder, run

from m2det_jax.run.outputs import MANIFEST

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
CASES = cases_train.CASES + cases_use.CASES + cases_convert.CASES
ROLES = ("train", "val", "classes")
DATASET = cases_convert.DATASET
# Legal, if odd: (verb, what, command line, files, what is printed).
ODD = [
    ("check", "crlf and a byte order mark", cases_use.CHECK,
     {"train.csv": b"\xef\xbb\xbfa.png,1,2,10,12,cat\r\nb.png,3,4,20,22,dog\r\n"}, "2 boxes"),
    ("check", "an override twice: the last counts",
     cases_use.CHECK + "--config.epochs=0 --config.epochs=3", {}, "training images"),
    ("check", "a stored config of few keys", "--config c.json --output report",
     {"c.json": json.dumps({"data": {f"{k}_csv": f"{k}.csv" for k in ROLES}})},
     "training images"),
    ("convert_dataset", "a class dropped", DATASET + "--class_map cat=", {}, "1 objects of other"),
    ("convert_dataset", "two classes made one", DATASET + "--class_map cat=dog", {}, "1 classes"),
    ("convert_dataset", "an image of one pixel", DATASET,
     {"a.png": png((1, 1)), "train.csv": "a.png,0,0,1,1,cat\n"}, "1 objects"),
    ("convert_dataset", "names beyond ASCII", DATASET,
     {"ä 图.png": png(), "train.csv": "ä 图.png,1,2,10,12,cat\n"}, "1 images"),
    ("evaluate", "nothing but background", "--workdir run", {"val.csv": "c.png,,,,,\n"}, "AP50"),
]  # fmt: skip


@pytest.fixture(scope="module")
def templates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("templates")
    make_templates(folder)
    return folder


def test_the_table_is_long_and_no_two_cases_are_alike():
    names = [(case.verb, case.name) for case in CASES]
    assert len(set(names)) == len(CASES) >= 300
    counts = collections.Counter(case.verb for case in CASES)
    assert counts.keys() == VERBS.keys() and min(counts.values()) >= 10, counts
    shapes = collections.defaultdict(list)
    for case in CASES:
        shapes[case.shape].append(case.name)
    assert not [names for names in shapes.values() if len(names) > 1]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.verb}: {case.name}")
def test_bad_input(case, templates, tmp_path):
    prepare_folder(case, tmp_path, templates)
    before = contents(tmp_path)
    outcome = run(case.verb, case.line, tmp_path)
    assert outcome.status == case.status, outcome.printed
    for expected in case.expected:
        assert re.search(expected, outcome.message), outcome.message
    assert "Traceback" not in outcome.printed and 'File "' not in outcome.printed
    assert before.items() <= contents(tmp_path).items(), "a file was changed"


@pytest.mark.parametrize(("verb", "name", "line", "files", "expected"), ODD,
                         ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_odd_input_is_taken(verb, name, line, files, expected, templates, tmp_path):
    prepare_folder(Case(verb, name, line, (), files), tmp_path, templates)
    outcome = run(verb, line, tmp_path)
    assert outcome.status == 0, outcome.printed
    assert re.search(expected, outcome.printed), outcome.printed


@pytest.mark.parametrize("name", [
    "unknown key", "experiment of broken syntax", "output in use", "own format that fails",
    "picture is a bomb", "no workdir",
])  # fmt: skip
def test_bad_input_of_a_started_command(name, templates, tmp_path):
    case = next(case for case in CASES if case.name == name)
    prepare_folder(case, tmp_path, templates)
    result = subprocess.run(
        [sys.executable, "-m", f"m2det_jax.{VERBS[case.verb]}", *shlex.split(case.line)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == case.status, result.stderr
    assert "Traceback" not in result.stderr
    assert re.search(case.expected[0], result.stderr + result.stdout), result.stderr


def contents(folder) -> dict[str, bytes]:
    """Returns what is in every file by its path, but for links and pipes."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    # A run writes its config as it begins.
    files = [path for path in files if path.name not in ("config.json", MANIFEST)]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}
