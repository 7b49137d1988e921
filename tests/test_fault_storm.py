"""Five rounds of the fault storm, and that it would notice what it looks for."""

import importlib
import os
import pathlib
import random
import re
import subprocess
import sys

import numpy as np
import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def repository_on_path(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY)


@pytest.fixture
def faults():
    return importlib.import_module("benchmarks.faults")


@pytest.fixture
def outcome():
    return importlib.import_module("benchmarks.outcome")


@pytest.mark.proof
def test_five_faults_of_one_run_leave_the_undisturbed_one(tmp_path):
    # This seed strikes with kill -9, SIGTERM, a worker's death, a full disk and a cut file.
    options = "--rounds 5 --faults_per_run 5 --seed 191".split()
    cache = ["--cache", os.environ["JAX_COMPILATION_CACHE_DIR"]]
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.fault_storm", "--workdir", tmp_path, *options, *cache],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    rounds = re.findall(r"^ +\d+  (.+?) {2,}\w+ .*  resumed +\d+ .* ok", result.stdout, re.M)
    assert len(rounds) == 5 and len(set(rounds)) >= 4, result.stdout
    assert "5 of 5 rounds ended like the undisturbed run" in result.stdout
    assert not any((tmp_path / "disk").iterdir())  # neither runs nor the small disk


def test_any_difference_is_noticed(outcome):
    array = np.array([1.0, np.nan, 0.0], np.float32)
    expected = {"train['params']": array, "history.jsonl": "[{'step': 1}]", "best step": 6}
    assert outcome.differences(dict(expected, **{"train['params']": array.copy()}), expected) == []
    for name, other in {
        "train['params']": array * np.float32(-1),  # -0 for 0
        "history.jsonl": "[]",
        "best step": 12,
    }.items():
        assert outcome.differences(expected | {name: other}, expected) == [name]
    assert outcome.differences(expected | {"train['params']": array.astype(float)}, expected)
    assert outcome.differences({"best step": 6}, expected) == ["train['params']", "history.jsonl"]
    assert outcome.differences(expected | {"files": {"x.tmp"}}, expected) == ["files"]


SAVED = "SIGTERM: step 5 is saved; the same command resumes from it"
ON = "the last good checkpoint is step 4 in x; the same command resumes from it"
FULL = "error: the disk is full; " + ON
DIED = "error: a data worker was ended by signal 9; "


@pytest.mark.parametrize(
    ("kind", "status", "text", "wrong"),
    [
        ("kill", -9, "", None),
        ("kill", 0, "", "status 0"),
        ("SIGTERM", 143, SAVED, None),
        ("SIGTERM", 1, SAVED, "status 1"),
        ("SIGTERM", 0, "step 12  validation AP 0.1", None),
        ("SIGTERM", 0, "step 6  validation AP 0.1", "before its end"),
        ("SIGINT", 130, "", None),
        ("SIGINT", 143, "", "status 143"),
        ("disk full", 1, FULL, None),
        ("disk full", 1, "Traceback\n" + FULL, "a traceback"),
        ("disk full", 1, "error: something; " + ON, "no clear message"),
        ("worker", 1, DIED + ON, None),
        ("worker", 1, DIED, "no clear message"),
        ("worker", -9, DIED + ON, "status -9"),
    ],
)
def test_a_wrong_end_is_noticed(faults, kind, status, text, wrong):
    found = faults.expected_end(kind, status, text)
    assert found is None if wrong is None else wrong in found


def test_a_process_that_outlives_its_parent_is_found(faults, tmp_path, monkeypatch):
    program = (
        "import subprocess, sys; print('step 3/12  loss 1.5', file=sys.stderr);"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    )
    training = faults.Training([sys.executable, "-c", program], dict(os.environ), tmp_path / "log")
    monkeypatch.setattr(faults, "ENDING", 0.3)
    status, left = training.end()
    assert status == 0 and len(left) == 1 and training.steps_seen() == 3
    assert training.resumed_from() is None
    assert training.wait_until(lambda: not training.members()) or not training.members()


def test_what_never_comes_is_not_waited_for(faults, tmp_path, monkeypatch):
    command = [sys.executable, "-c", "print('devices: 1')"]
    training = faults.Training(command, dict(os.environ), tmp_path / "log")
    assert not training.wait_until(lambda: (tmp_path / "never").exists())
    monkeypatch.setattr(faults, "PATIENCE", 0.2)
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    training = faults.Training(command, dict(os.environ), tmp_path / "log")
    with pytest.raises(TimeoutError, match="nothing happened"):
        training.wait_until(lambda: False)
    assert training.process.wait() == -9


@pytest.mark.parametrize("kind", ["truncated", "flipped", "deleted", "emptied"])
def test_the_newest_checkpoint_is_damaged_and_no_other(faults, kind, tmp_path):
    def contents(step):
        folder = tmp_path / "checkpoints" / step
        return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    for step in ("2", "10"):
        (tmp_path / "checkpoints" / step / "train").mkdir(parents=True)
        for name in ("train/array", "train/more", "checksums.json", "commit_success.txt"):
            (tmp_path / "checkpoints" / step / name).write_bytes(name.encode() * 9)
    whole = contents("2")
    faults.damage_latest(kind, tmp_path, random.Random(3))
    found = contents("10")
    assert contents("2") == whole
    if kind == "emptied":
        assert found == {}
        return
    changed = [name for name in whole if found.get(name) != whole[name]]
    assert len(changed) == 1 and changed[0] in ("array", "more")
    before, after = whole[changed[0]], found.get(changed[0])
    if kind == "flipped":
        bits = [a ^ b for a, b in zip(after, before, strict=True) if a != b]
        assert len(bits) == 1 and bits[0].bit_count() == 1
    elif kind == "truncated":
        assert len(after) < len(before) and before.startswith(after)
    else:
        assert after is None
