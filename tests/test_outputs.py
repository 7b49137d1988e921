"""Output files: whole or absent, replaced only by the verb that wrote them, never an input."""

import json
import multiprocessing
import os
import signal
import time

import pytest

from m2det_jax.data.file_names import distinct_names
from m2det_jax.run.outputs import MANIFEST, Outputs, new_folder, refuse_existing


def outputs_of(folder, verb="predict") -> Outputs:
    """The files of a new run."""
    return Outputs(folder, verb)


def test_what_a_run_wrote_the_next_may_replace(tmp_path):
    outputs_of(tmp_path / "a" / "b").write("sub/x.json", "one")
    again = outputs_of(tmp_path / "a" / "b")
    again.claim(["sub/x.json"])
    again.write("sub/x.json", "two")
    assert (tmp_path / "a/b/sub/x.json").read_text() == "two"
    assert sorted(os.listdir(tmp_path / "a/b/sub")) == ["x.json"]


@pytest.mark.parametrize("change", ["verb", "content", "time", "copied", "link", "gone", "folder"])
def test_what_counts_as_ours(tmp_path, change):
    outputs_of(tmp_path).write("x.json", "one")
    path, verb = tmp_path / "x.json", "predict"
    if change == "verb":
        verb = "evaluate"
    elif change == "content":
        path.write_text("two")
        os.utime(path, ns=(1, 1))
    elif change == "time":
        os.utime(path, ns=(1, 1))
    elif change == "copied":
        path.write_text("one")
    elif change == "link":
        path.rename(tmp_path / "y.json")
        path.symlink_to("y.json")
    elif change in ("gone", "folder"):
        path.unlink()
    if change == "folder":
        path.mkdir()
    outputs = outputs_of(tmp_path, verb)
    if change in ("time", "copied", "gone"):
        outputs.claim(["x.json"])
        outputs.write("x.json", "new")
        return
    for act in (outputs.claim, lambda names: outputs.write(names[0], "new")):
        with pytest.raises(ValueError, match=r"x\.json: exists already.*move it"):
            act(["x.json"])
    assert path.is_dir() or path.read_text() in ("one", "two")


def test_a_file_that_appears_meanwhile_stays(tmp_path):
    outputs = outputs_of(tmp_path)
    outputs.claim(["x", "lines"])
    (tmp_path / "x").write_text("mine")
    with pytest.raises(ValueError, match="exists already"):
        outputs.write("x", "new")
    (tmp_path / "lines").symlink_to("nowhere")
    with pytest.raises(ValueError, match="exists already"), outputs.stream("lines"):
        pass
    assert (tmp_path / "x").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == [MANIFEST, "lines", "x"]


@pytest.mark.parametrize("how", ["name", "hard link", "link", "link to the folder", "manifest"])
def test_no_input_is_written_to(tmp_path, how):
    """Not even one that the same verb wrote: its picture may be looked at again."""
    folder, name = tmp_path / "out", "a.jpg"
    outputs_of(folder).write(name, "picture")
    read, through = folder / name, folder
    if how == "hard link":
        read = tmp_path / "b.jpg"
        os.link(folder / name, read)
    elif how == "link":
        read = tmp_path / "b.jpg"
        read.symlink_to(folder / name)
    elif how == "link to the folder":
        through = tmp_path / "other"
        through.symlink_to(folder)
    elif how == "manifest":
        read, name = folder / MANIFEST, "other.jpg"
    with pytest.raises(ValueError, match="it is one of the files to read .*another folder"):
        outputs_of(through).claim([name], [tmp_path / "absent", read])
    outputs_of(through).claim([name], [tmp_path / "absent"])


def test_names_that_are_one_file_on_some_systems_are_refused(tmp_path):
    for pair in (("A.jpg", "a.jpg"), ("\u00e4.jpg", "a\u0308.jpg"), ("ß", "SS")):
        with pytest.raises(ValueError, match="are the same file on some file systems"):
            outputs_of(tmp_path).claim(pair)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file, not a folder"):
        outputs_of(tmp_path / "file").claim(["x"])
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(ValueError, match="is a file, not a folder"):
        outputs_of(tmp_path / "link").claim(["x"])


def test_distinct_names():
    names = ["a", "A", "a_2", "a", "\u00e4", "a\u0308", "b"]
    assert distinct_names(names) == ["a", "A_2", "a_2_2", "a_3", "\u00e4", "a\u0308_2", "b"]
    begin = time.perf_counter()
    assert len(set(distinct_names(["photo"] * 100_000))) == 100_000
    assert time.perf_counter() - begin < 20


def test_a_file_is_whole_or_absent(tmp_path):
    outputs = outputs_of(tmp_path)
    outputs.write("x", "whole")
    with pytest.raises(KeyError), outputs.replacing("x") as partial:
        partial.write_text("half")
        raise KeyError("on the way")
    assert (tmp_path / "x").read_text() == "whole"
    assert sorted(os.listdir(tmp_path)) == [MANIFEST, "x"]


def test_a_damaged_manifest_claims_nothing(tmp_path):
    outputs_of(tmp_path).write("x", "one")
    manifest = tmp_path / MANIFEST
    manifest.write_bytes(b"\xff\xfe\n[1]\n{}\nnull\n" + manifest.read_bytes()[:-10])
    with pytest.raises(ValueError, match="exists already"):
        outputs_of(tmp_path).claim(["x"])
    outputs_of(tmp_path).write("y", "two")
    assert outputs_of(tmp_path).wrote("y")
    manifest.unlink()
    manifest.symlink_to("x")
    with pytest.raises(ValueError, match="not a plain file"):
        outputs_of(tmp_path)


def test_a_stream_grows_by_whole_pieces(tmp_path):
    with outputs_of(tmp_path).stream("lines") as append:
        assert (tmp_path / "lines").read_text() == ""
        append('{"a": 1}\n')
        assert (tmp_path / "lines").read_text() == '{"a": 1}\n'
        append('{"b": 2}\n')
    with pytest.raises(KeyboardInterrupt), outputs_of(tmp_path).stream("lines") as append:
        append('{"c": 3}\n')
        raise KeyboardInterrupt
    assert (tmp_path / "lines").read_text() == '{"c": 3}\n'
    (tmp_path / "lines").write_text('{"c": 4}\n')
    with pytest.raises(ValueError, match="exists already"), outputs_of(tmp_path).stream("lines"):
        pass


def _write_for_ever(folder) -> None:
    outputs = Outputs(folder, "predict")
    with outputs.stream("lines") as append:
        for i in range(10**9):
            append(f"{i} " * 20_000 + "\n")
            outputs.write(f"{i % 3}.txt", f"{i} " * 20_000)


def test_a_run_that_is_killed_can_be_started_again(tmp_path):
    names = ["lines", "0.txt", "1.txt", "2.txt"]
    for round in range(5):
        process = multiprocessing.get_context("spawn").Process(
            target=_write_for_ever, args=(tmp_path,)
        )
        process.start()
        while not (tmp_path / "2.txt").exists():
            time.sleep(0.01)
        time.sleep(0.03 * round)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        outputs_of(tmp_path).claim(names)


@pytest.mark.parametrize(
    ("content", "killed", "ours"),
    [
        ("first\nsec", True, True),  # a line of which a part was written
        ("first\nsec", False, False),  # shortened by somebody
        ("other\nsec", True, False),
        ("first\nsecond\nmine", True, False),
        ("mine", True, False),
    ],
)
def test_the_lines_of_a_run_that_was_killed(tmp_path, content, killed, ours):
    with outputs_of(tmp_path).stream("lines") as append:
        append("first\n")
        append("second\n")
    if killed:
        manifest = tmp_path / MANIFEST
        manifest.write_text("".join(manifest.read_text().splitlines(keepends=True)[:-1]))
    (tmp_path / "lines").write_text(content)
    assert outputs_of(tmp_path).wrote("lines") == ours


def test_a_run_of_before_is_recorded(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    outputs = outputs_of(tmp_path, "train")
    outputs.record("config.json")
    outputs.write("config.json", "{1}")
    notes = [json.loads(line) for line in (tmp_path / MANIFEST).read_text().splitlines()]
    assert [(note["verb"], note["name"], note["size"]) for note in notes] == [
        ("train", "config.json", 2),
        ("train", "config.json", 3),
    ]


def test_a_file_that_only_gets_longer(tmp_path):
    history = tmp_path / "history.jsonl"
    history.write_text("mine")
    with pytest.raises(ValueError, match=r"history\.jsonl: exists already"):
        outputs_of(tmp_path).claim(["x"], appended=["history.jsonl"])
    history.unlink()
    outputs = outputs_of(tmp_path)
    outputs.claim(["x"], appended=["history.jsonl"])
    history.touch()
    outputs.record("history.jsonl")
    history.write_text("line\n")
    outputs_of(tmp_path).claim(["x"], appended=["history.jsonl"])
    with pytest.raises(ValueError, match="exists already"):
        outputs_of(tmp_path).claim(["history.jsonl"])


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(KeyError), new_folder(tmp_path / "a" / "out") as partial:
        (partial / "half").write_text("x")
        raise KeyError("on the way")
    assert os.listdir(tmp_path / "a") == []
    with new_folder(tmp_path / "a" / "out") as partial:
        (partial / "file").write_text("x")
    assert os.listdir(tmp_path / "a") == ["out"] and (tmp_path / "a/out/file").exists()
    (tmp_path / "link").symlink_to("nowhere")
    for taken in (tmp_path / "a" / "out", tmp_path / "a" / "out" / "file", tmp_path / "link"):
        with pytest.raises(ValueError, match="exists already"), new_folder(taken):
            pass
        with pytest.raises(ValueError, match="exists already"):
            refuse_existing(taken)
    (tmp_path / "empty").mkdir()
    with new_folder(tmp_path / "empty") as partial:
        (partial / "file").write_text("x")
    assert (tmp_path / "empty/file").exists()
