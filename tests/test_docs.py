"""What the documentation names is there: experiments, config keys, tests and files."""

import dataclasses
import pathlib
import re

import pytest

from m2det_jax.__main__ import VERBS
from m2det_jax.config import default_config
from m2det_jax.config.dotted import flatten
from m2det_jax.config.experiments import experiments_dir
from m2det_jax.doctor.facts import Facts, Folder, Nvidia, Package, Query
from m2det_jax.doctor.findings import Finding

REPOSITORY = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def quoted() -> set[str]:
    """All that stands between backticks outside of code blocks."""
    text = (REPOSITORY / "docs/fidelity.md").read_text()
    return set(re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S)))


def test_config_keys_exist(quoted):
    keys = flatten(default_config())
    sections = {key.partition(".")[0] for key in keys if "." in key}
    named = {name.partition("=")[0] for name in quoted if name.partition(".")[0] in sections}
    assert len(named) > 12
    assert named <= keys.keys()


def test_experiments_exist(quoted):
    shipped = {path.stem for path in experiments_dir().glob("*.py")}
    pattern = r"(official_|keras_)?(vgg|resnet\d+_|mobilenet)\d{3}|official_resnet101_320"
    named = {name for name in quoted if re.fullmatch(pattern, name)}
    assert named == {name for name in shipped if re.fullmatch(pattern, name)}
    assert len(named) >= 12


def test_tests_exist(quoted):
    named = {name for name in quoted if name.startswith("tests/")}
    assert len(named) > 5
    assert all((REPOSITORY / name).exists() for name in named), named


def test_the_flags_for_clusters_exist():
    text = (REPOSITORY / "docs/clusters.md").read_text()
    named = set(re.findall(r"\bconfig\.([a-z_]+(?:\.[a-z_]+)*)", text))
    assert len(named) > 10
    assert named <= flatten(default_config()).keys()
    tests = set(re.findall(r"`(tests/\w+\.py)`", text))
    assert len(tests) == 3 and all((REPOSITORY / name).exists() for name in tests)


def test_the_map_has_every_folder_and_names_files_that_exist():
    text = (REPOSITORY / "CONTRIBUTING.md").read_text()
    (folders,) = re.findall(r"```\nm2det_jax/\n(.*?)\nexperiments/", text, flags=re.S)
    package = REPOSITORY / "m2det_jax"
    named = set(re.findall(r"(?<=  )[a-z_]+(?:/|\.py)(?=  )", f"{folders}  "))
    data = {f"{path.parent.name}/" for path in (package / "data").glob("*/__init__.py")}
    root = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    files = {path.name for path in package.glob("*.py")} - {"__init__.py"}
    assert named == data | root | files
    for name in re.findall(r"`([a-z_/]+/[a-z_]*(?:\.py|\.md)?)`", text):
        assert (REPOSITORY / name).exists() or (package / name).exists(), name


def test_the_page_of_the_commands_has_every_verb_and_key():
    text = (REPOSITORY / "docs/commands.md").read_text()
    table = text[: text.index("## Exit status")]
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| (.*?) \|", table, flags=re.M))
    assert rows.keys() == VERBS.keys()
    for name, verb in VERBS.items():
        assert f"`python -m m2det_jax.{verb.module}`" in rows[name]
    (row,) = re.findall(r"^\| `doctor` \| (`well`.*) \|$", text, flags=re.M)
    named = set(re.findall(r"`([a-z_]+)`", row))
    parts = (Facts, Finding, Package, Query, Nvidia, Folder)
    keys = {field.name for part in parts for field in dataclasses.fields(part)}
    assert named == (keys - {"name"}) | {"well", "uses_gpu", "findings"}
