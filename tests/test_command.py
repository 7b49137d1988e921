"""Tests of the command `m2det VERB`: every verb from any folder, exit statuses, and --json."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from PIL import Image
from test_main import ONE_DEVICE, start

from m2det_jax import __version__, runtime
from m2det_jax.__main__ import VERBS, cli
from m2det_jax.data import read_classes

SCRIPT = pathlib.Path(sys.executable).with_name("m2det")


def m2det(*arguments, cwd, **environment) -> subprocess.CompletedProcess:
    """Starts the console script."""
    return subprocess.run(
        [SCRIPT, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | ONE_DEVICE | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def strict_json(text: str) -> dict:
    """Reads one JSON document that has no NaN."""

    def refuse(name: str):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_answers_as_a_console_script(verb, tmp_path):
    result = m2det(verb, "--help", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    flag = {"convert": "to_official", "convert-dataset": "--split", "doctor": "--timeout"}
    assert flag.get(verb, "fit_anchors" if verb == "check" else "--workdir") in result.stdout
    assert "m2det-" not in result.stdout.partition("\n")[0]


def test_help_of_the_command_and_of_a_verb(capsys):
    for arguments in ([], ["--help"], ["-h"], ["help"]):
        cli(arguments)
        printed = capsys.readouterr().out
        assert all(f"  {verb} " in printed for verb in VERBS)
    assert len({verb.summary for verb in VERBS.values()}) == len(VERBS)
    with pytest.raises(SystemExit) as ended:
        cli(["help", "convert-dataset"])
    assert not ended.value.code and "usage: m2det convert-dataset" in capsys.readouterr().out


def test_the_version_names_what_it_is_built_on(capsys):
    cli(["--version"])
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == f"m2det_jax {__version__}"
    assert "Python 3." in rest[0] and "jaxlib 0." in rest[0] and "missing" not in rest[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["evalute"], "no verb 'evalute'; the nearest is 'evaluate'"),
        (["convert_dataset"], "the nearest is 'convert-dataset'"),
        (["help", "trian"], "the nearest is 'train'"),
        (["xyzzy"], "there are train, evaluate"),
        (["--json", "doctor"], "'--json' stands before the verb"),
    ],
)
def test_an_unknown_verb_ends_in_one_line(arguments, said, capsys):
    with pytest.raises(SystemExit) as ended:
        cli(arguments)
    printed = capsys.readouterr()
    assert ended.value.code == 2 and printed.out == ""
    assert (
        printed.err.startswith("error: ") and printed.err.count("\n") == 1 and said in printed.err
    )


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["convert-dataset", "--from", "csv"], 2),
        (
            [
                "convert-dataset",
                "--from",
                "csv",
                "--split",
                "a.csv",
                "--to",
                "yolo",
                "--output",
                "x",
            ],
            1,
        ),
        (["doctor", "--timeout", "nan"], 2),
    ],
)
def test_the_exit_status_of_a_verb_is_that_of_the_command(arguments, status, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["m2det"])
    with pytest.raises(SystemExit) as ended:
        cli(arguments)
    code = ended.value.code
    assert (code if isinstance(code, int) else 1) == status


def test_evaluate_prints_one_document(whole, drawn_files, tmp_path):
    names = read_classes(drawn_files.classes)
    rows = drawn_files.val.read_text().splitlines()
    kept = [row for row in rows if row.endswith(f",{names[0]}")]
    csv = tmp_path / "one_class.csv"
    csv.write_text("".join(f"{drawn_files.val.parent}/{row}\n" for row in kept))
    arguments = ("--workdir", whole[0], "--csv", csv, "--output", tmp_path / "x.json", "--json")
    result = start("evaluate", *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    document = strict_json(result.stdout)
    written = json.loads((tmp_path / "x.json").read_text())
    names_of_files = ("x.json", "x_detections.json", "x.html", "x_suspects.csv")
    assert document.pop("files") == [str(tmp_path / name) for name in names_of_files]
    assert all((tmp_path / name).is_file() for name in names_of_files)
    assert document == written and 0 <= document["AP50"] <= 1
    unseen = [name for name, figures in document["per_class"].items() if figures["AP"] is None]
    assert unseen == list(names)[1:]  # NaN: there is no ground truth
    assert "evaluating step 6" in result.stderr and "AP50" in result.stderr


def test_predict_prints_one_document_and_passes_its_status_on(whole, drawn_files, tmp_path):
    picture = sorted(drawn_files.val.with_suffix("").glob("*.jpg"))[0]
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    arguments = ("--workdir", whole[0], picture, "broken.jpg", "--output", "out", "--json")
    result = m2det("predict", *arguments, "--threshold", "0.01", cwd=tmp_path)
    assert result.returncode == 3, result.stderr
    document = strict_json(result.stdout)
    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    assert document["images"] == [json.loads(line) for line in lines]
    first, second = document["images"]
    with Image.open(picture) as image:
        assert (first["width"], first["height"]) == image.size
    assert "skipped" in second and document["skipped"] == 1 and document["undrawn"] == 0
    assert document["detections"] == len(first["detections"]) > 0
    assert document["files"] == ["out/predictions.jsonl", "out/predictions.json"]
    assert document["folder"] == "out" and "skipped: " in result.stderr


def test_check_prints_one_document_also_where_it_refuses(drawn_files, tmp_path):
    bad = tmp_path / "bad.csv"
    bad.write_text(drawn_files.train.read_text() + "gone.jpg,1,1,9,9,ring\n")
    for name in ("train", "val"):
        (tmp_path / name).symlink_to(drawn_files.train.with_suffix("").parent / name)
    data = [f"--config.data.train_csv={bad}", f"--config.data.val_csv={drawn_files.val}"]
    data.append(f"--config.data.classes_csv={drawn_files.classes}")
    arguments = ["--config", "quickstart", "--output", "out", "--samples", 1, "--json", *data]
    result = start("__main__", "check", *arguments, cwd=tmp_path)
    assert result.returncode == 1, result.stderr
    document = strict_json(result.stdout)
    assert document.pop("files") == ["out/report.html", "out/findings.json"]
    assert document == json.loads((tmp_path / "out" / "findings.json").read_text())
    assert document["refused"] and any("gone.jpg" in str(f) for f in document["findings"])
    assert "report: out/report.html" in result.stderr


def test_an_error_leaves_stdout_empty(tmp_path):
    result = m2det("evaluate", "--workdir", "gone", "--json", cwd=tmp_path)
    assert result.returncode == 1 and result.stdout == ""
    assert "error: " in result.stderr and "Traceback" not in result.stderr


def test_nothing_but_the_document_comes_to_stdout(capfd):
    print("before")
    with runtime.stdout_for_json(True) as document:
        print("a table")
        os.write(1, b"of a C library\n")
        runtime.write_json(document, {"AP": float("nan"), "list": [1, -float("inf")], "name": "é"})
        print("after it")
    print("behind")
    out, err = capfd.readouterr()
    assert out.startswith("before\n") and out.endswith("behind\n")
    inside = out.removeprefix("before\n").removesuffix("behind\n")
    assert strict_json(inside) == {"AP": None, "list": [1, None], "name": "é"}
    assert all(text in err for text in ("a table", "of a C library", "after it"))
    with runtime.stdout_for_json(False) as document:
        assert document is None
        print("people read this")
    assert capfd.readouterr().out == "people read this\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
def test_a_document_that_cannot_be_written_ends_in_one_line(tmp_path):
    program = (
        "from m2det_jax import runtime\n"
        "with runtime.one_line_errors(), runtime.stdout_for_json(True) as document:\n"
        "    runtime.write_json(document, {'a': 1})\n"
    )
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert result.returncode == 1
    assert "error: " in result.stderr and "Traceback" not in result.stderr
