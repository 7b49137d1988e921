"""benchmarks.gpu: its plan and limits, its report, its pack, and all its parts in reduced form."""

import csv
import importlib
import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def repository_on_path(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY)


def module(name):
    return importlib.import_module(f"benchmarks.gpu.{name}")


def test_the_plan_keeps_its_limits(capsys):
    plan = module("plan")
    assert all(0 < part.minutes <= 8 for part in plan.PARTS)
    assert sum(part.minutes for part in plan.PARTS if part.default) <= plan.LIMIT_MINUTES == 25
    assert module("__main__").main(["--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == [p.name for p in plan.PARTS if p.default]
    assert lines[-1].endswith("at most 25 min")
    for part in plan.PARTS:
        assert callable(part.load())


def test_wheels_have_the_versions_of_the_constraints(capsys):
    module("__main__").main(["--wheels"])
    lines = capsys.readouterr().out.splitlines()
    constraints = (REPOSITORY / "constraints.txt").read_text().splitlines()
    assert len(set(lines) & set(constraints)) > 12 and "grain==0.2.18" in lines


def test_the_report_is_whole_at_any_time(tmp_path, capsys):
    report, file = module("report"), tmp_path / "gpu.json"
    first = report.Report(file, "speed")
    first.add("vgg320", batch=64, ms=1.23456)
    first.add("vgg320", share=0.5)
    assert json.loads(file.read_text())["speed"]["ended"] == "no"
    second = report.Report(file, "detection")
    second.end("skipped: no GPU")
    first.end("whole")
    found = json.loads(file.read_text())
    assert found["speed"]["rows"] == {"vgg320": {"batch": 64, "ms": 1.23456, "share": 0.5}}
    assert (found["speed"]["ended"], found["detection"]["ended"]) == ("whole", "skipped: no GPU")
    assert "ms 1.235" in capsys.readouterr().out
    report.Report(file, "speed")
    assert json.loads(file.read_text())["speed"]["rows"] == {}


def test_a_part_is_ended_by_its_limit_and_keeps_its_figures(tmp_path):
    main, plan, file = module("__main__"), module("plan"), tmp_path / "gpu.json"
    report = module("report").Report(file, "slow")
    report.add("row", figure=1)
    start = time.monotonic()
    sleeping = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert main.run_apart(plan.Part("slow", 0.005, "sleeps"), sleeping, file)
    assert time.monotonic() - start < 30
    assert json.loads(file.read_text())["slow"] | {"seconds": 0} == {
        "rows": {"row": {"figure": 1}}, "ended": "time limit", "seconds": 0,
    }  # fmt: skip
    failing = [sys.executable, "-c", "raise SystemExit(3)"]
    assert not main.run_apart(plan.Part("slow", 1, "fails"), failing, file)


def test_an_error_of_a_part_is_noted_and_costs_no_other(tmp_path, monkeypatch, capsys):
    main, plan, file = module("__main__"), module("plan"), tmp_path / "gpu.json"

    def raising(setup, report):
        raise ValueError("no such thing")

    monkeypatch.setattr(plan.Part, "load", lambda part: raising)
    assert main.main(["--reduced", "--part", "speed", "--part", "ratio", "--json", str(file)]) == 1
    found = json.loads(file.read_text())
    assert found["speed"]["ended"] == found["ratio"]["ended"] == "error: ValueError: no such thing"


def test_a_pack_has_code_half_weights_and_smaller_pictures(tmp_path):
    pack, inputs = module("pack"), tmp_path / "inputs"
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((4, 3, 3, 3), np.float32)
    (inputs / "weights").mkdir(parents=True)
    save_file({"features.0.weight": kernel}, inputs / pack.WEIGHTS)
    for name in pack.DATASETS:
        folder = inputs / "datasets" / name
        (folder / "images").mkdir(parents=True)
        Image.new("RGB", (800, 500), (9, 9, 9)).save(folder / "images" / "a.jpg")
        Image.new("RGB", (300, 200), (9, 9, 9)).save(folder / "images" / "b.jpg")
        rows = "images/a.jpg,100,50,700,450,x\nimages/a.jpg,10,20,30,40,x\nimages/b.jpg,,,,,\n"
        (folder / "train.csv").write_text(rows)
        (folder / "val.csv").write_text("images/b.jpg,1,2,3,4,x\n")
        (folder / "classes.csv").write_text("x,0\n")
    size = pack.pack(tmp_path / "pack", inputs)
    assert 1e6 < size < pack.LARGEST
    packed = tmp_path / "pack" / "inputs"
    half = load_file(packed / pack.WEIGHTS)["features.0.weight"]
    assert half.dtype == np.float16
    np.testing.assert_allclose(half, kernel, rtol=1e-3)
    with (packed / "datasets" / "bccd" / "train.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["images/a.jpg", "50", "25", "350", "225", "x"]
    assert rows[2] == ["images/b.jpg", "", "", "", "", ""]
    with Image.open(packed / "datasets" / "cards" / "images" / "a.jpg") as image:
        assert image.size == (400, 250)
    assert (tmp_path / "pack" / "benchmarks" / "gpu" / "__main__.py").is_file()
    with pytest.raises(ValueError, match="exists"):
        pack.pack(tmp_path / "pack", inputs)


def test_idle_time_is_read_off_overlapping_kernels():
    busy = module("trace").busy_of([(10e6, 20e6), (0, 8e6), (15e6, 18e6), (24e6, 25e6)])
    assert busy.idle_share == pytest.approx(6 / 25)
    assert busy.largest_gap_ms == pytest.approx(4) and busy.kernels == 4


def test_the_largest_batch_is_a_power_of_two_that_fits():
    largest = module("speed").largest_batch
    assert largest(100, 50, 10, 1000) == 64  # 0.8 * 1000 - 150 = 650
    assert largest(100, 50, 10.2, 1000) == 32
    assert largest(100, 50, 1000, 1000) == 1
    assert largest(0, 0, 1, 10**9) == 256


def test_kinds_of_kernels_are_counted_by_hand():
    import jax
    import jax.numpy as jnp

    def work(x, w):
        return jnp.maximum(x @ w, 0).sum()

    shapes = (jax.ShapeDtypeStruct(s, np.float32) for s in ((4, 8), (8, 16)))
    kinds = module("lowering").count_kinds(jax.make_jaxpr(work)(*shapes).jaxpr)
    assert kinds["products"] == {
        "kernels": 1, "operations": 2 * 4 * 8 * 16, "bytes": 4 * (32 + 128 + 64),
    }  # fmt: skip
    assert kinds["reductions"]["bytes"] == 4 * (64 + 1)
    assert kinds["elementwise"]["operations"] == 64


@pytest.mark.proof
def test_all_parts_run_in_reduced_form(tmp_path):
    """A process of its own: one device, as on the machine that it is for."""
    file = tmp_path / "gpu.json"
    parts = [f"--part={part.name}" for part in module("plan").PARTS]
    environment = os.environ | {
        "XLA_FLAGS": "--xla_backend_optimization_level=0", "JAX_PLATFORMS": "cpu",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--reduced", *parts, "--json", str(file)],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(file.read_text())
    ends = {name: part["ended"] for name, part in found.items()}
    assert ends.pop("ratio") in ("whole", "skipped: PyTorch is not installed")
    assert set(ends.values()) == {"whole"} and len(ends) == len(parts) - 1
    rows = {name: part["rows"] for name, part in found.items()}
    assert rows["speed"]["vgg320"]["compilations"] == 1
    assert rows["speed"]["vgg320"]["images_per_second_real_data"] > 0
    assert all(row["good"] for row in rows["agreement"].values())
    assert rows["detection"]["batch 2"]["nms_soft_linear_ms"] > 0
    assert (
        rows["resume"]["kill -9"]["differences"] == "none" and rows["resume"]["kill -9"]["resumed"]
    )
    assert rows["accuracy"]["drawn"]["steps"] > 0
    assert rows["lowering"]["vgg320, train step, batch 2"]["platform"] == "cuda"
