"""The record of a run survives kills and resumes without doubled steps."""

import json
import math
import os
import struct
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog

from m2det_jax.run.history import History, read_history


def events(workdir) -> list[Event]:
    """All events below a folder, file after file; record: length, crc, data, crc."""
    found = []
    for path in sorted((workdir / "tensorboard").iterdir(), key=lambda p: p.stat().st_mtime_ns):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            found.append(Event.FromString(data[at + 12 : at + 12 + length]))
            at += 16 + length
    return found


def write_steps(workdir, steps, start_step=0):
    with History(workdir, start_step) as history:
        for step in steps:
            history.write(step, {"loss": 10.0 / (step + 1)})


def test_lines_come_back(tmp_path):
    with History(tmp_path / "new" / "run") as history:
        history.write(1, {"loss": 2.5, "num_positives": 7})
        history.write(1, {"val_AP": 0.25})
        assert len(read_history(tmp_path / "new" / "run")) == 2  # without waiting for the end
    assert read_history(tmp_path / "new" / "run") == [
        {"step": 1, "loss": 2.5, "num_positives": 7},
        {"step": 1, "val_AP": 0.25},
    ]


def test_a_line_is_on_the_disk_before_anything_else_happens(tmp_path, monkeypatch):
    synced = []

    def note(handle):
        synced.append((os.readlink(f"/proc/self/fd/{handle}"), os.fstat(handle).st_size))

    monkeypatch.setattr("m2det_jax.run.history.os.fsync", note)
    with History(tmp_path) as history:
        history.write(1, {"loss": 2.5})
        path = tmp_path / "history.jsonl"
        assert (str(path), path.stat().st_size) in synced and path.stat().st_size > 10


def test_no_history_is_empty(tmp_path):
    assert read_history(tmp_path) == []


@pytest.mark.parametrize(
    "value",
    [
        np.float32(1.5),
        np.array(1.5),
        jnp.float32(1.5),
        jnp.asarray(1.5, jnp.bfloat16),
        np.float64(1.5),
        1.5,
    ],
)
def test_any_scalar(tmp_path, value):
    with History(tmp_path) as history:
        history.write(np.int64(3), {"x": value, "n": jnp.int32(4), "flag": np.bool_(True)})
    assert read_history(tmp_path) == [{"step": 3, "x": 1.5, "n": 4, "flag": 1}]


def test_non_finite_numbers_are_strict_json(tmp_path):
    with History(tmp_path) as history:
        history.write(1, {"loss": math.nan, "norm": np.float32(np.inf), "ok": 1.0})

    def refuse(name):
        raise AssertionError(name)

    text = (tmp_path / "history.jsonl").read_text()
    assert json.loads(text, parse_constant=refuse)["loss"] is None
    (record,) = read_history(tmp_path)
    assert math.isnan(record["loss"]) and math.isnan(record["norm"]) and record["ok"] == 1.0


def test_resume_cuts_what_comes_after(tmp_path):
    write_steps(tmp_path, range(1, 11))
    write_steps(tmp_path, range(5, 8), start_step=4)
    assert [record["step"] for record in read_history(tmp_path)] == [1, 2, 3, 4, 5, 6, 7]
    assert [path.name for path in tmp_path.glob("history*")] == ["history.jsonl"]


def test_new_run_in_an_old_folder_starts_over(tmp_path):
    write_steps(tmp_path, range(1, 5))
    write_steps(tmp_path, range(1, 3))
    assert [record["step"] for record in read_history(tmp_path)] == [1, 2]


def test_torn_last_line(tmp_path):
    write_steps(tmp_path, [1, 2])
    path = tmp_path / "history.jsonl"
    path.write_bytes(path.read_bytes() + b'{"step": 3, "lo')
    assert [record["step"] for record in read_history(tmp_path)] == [1, 2]
    write_steps(tmp_path, [3], start_step=2)
    assert [record["step"] for record in read_history(tmp_path)] == [1, 2, 3]


def test_killed_writer_leaves_whole_lines(tmp_path):
    program = (
        "import os, signal, sys; from m2det_jax.run.history import History\n"
        "h = History(sys.argv[1])\n"
        "for i in range(1, 4): h.write(i, {'loss': i})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    result = subprocess.run([sys.executable, "-c", program, str(tmp_path)])
    assert result.returncode != 0
    assert [record["step"] for record in read_history(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize("line", ["not json", '{"loss": 1}', '{"step": "4"}', "[1]", ""])
def test_damaged_line_is_named(tmp_path, line):
    (tmp_path / "history.jsonl").write_text('{"step": 1}\n' + line + '\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"history\.jsonl:2: a JSON object with an integer 'step'"):
        read_history(tmp_path)
    with pytest.raises(ValueError, match=r"history\.jsonl:2"):
        History(tmp_path, 5)


@pytest.mark.parametrize("value", [np.zeros(2), "text", None, 1j])
def test_only_numbers_are_taken(tmp_path, value):
    with History(tmp_path) as history:
        with pytest.raises(ValueError, match="'x' must be one number"):
            history.write(1, {"x": value})
        with pytest.raises(ValueError, match="'step' would hide"):
            history.write(1, {"step": 3})
    assert read_history(tmp_path) == []


def test_disabled_writes_nothing(tmp_path):
    with History(tmp_path / "run", 3, enabled=False) as history:
        history.write(1, {"loss": 1.0})
        history.write_image(1, "picture", np.zeros((4, 6, 3), np.uint8))
        history.flush()
    assert not (tmp_path / "run").exists()


def test_tensorboard_scalars_and_pictures(tmp_path):
    with History(tmp_path) as history:
        history.write(3, {"loss": 0.75, "lr": 1e-3})
        history.write_image(4, "array", np.full((4, 6, 3), 9, np.uint8))
        history.write_image(5, "pil", Image.new("L", (6, 4)))
        history.flush()
    history.close()
    values = {v.tag: (e.step, v) for e in events(tmp_path) for v in e.summary.value}
    assert values["loss"][0] == 3 and values["loss"][1].simple_value == 0.75
    assert values["lr"][1].simple_value == pytest.approx(1e-3)
    for name, step in (("array", 4), ("pil", 5)):
        image = values[name][1].image
        assert (values[name][0], image.height, image.width) == (step, 4, 6)


def test_tensorboard_hides_what_comes_after_the_resumed_step(tmp_path):
    write_steps(tmp_path, range(1, 6))
    write_steps(tmp_path, [4, 5], start_step=3)
    starts = [e.step for e in events(tmp_path) if e.session_log.status == SessionLog.START]
    assert starts[-1] == 4  # TensorBoard drops earlier events from this step on
