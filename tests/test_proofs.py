"""The proofs that compare commits: the roads through the package, and equal bits."""

import importlib
import pathlib
import shutil

import numpy as np
import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def repository_on_path(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY)


@pytest.fixture
def roads():
    return importlib.import_module("benchmarks.roads")


@pytest.fixture
def same():
    return importlib.import_module("benchmarks.same")


def call(file: str, name: str, *, traced: bool = False) -> dict:
    return {"file": file, "line": 1, "name": name, "traced": traced}


MAIN, TRAIN = call("main.py", "main"), call("train.py", "train")
WRAPPER = [call("runtime.py", "one_line_errors"), call("main.py", "main.<locals>.run")]
STEP = [call("step.py", "train_step", traced=True), call("step.py", "loss", traced=True)]


def test_hops_are_the_same_wherever_the_step_is_compiled(roads):
    before_the_loop = {
        "model": [MAIN, *WRAPPER, TRAIN, call("prepare.py", "compile"), *STEP],
        "step": [MAIN, *WRAPPER, TRAIN],
    }
    not_ahead = {"model": [MAIN, *WRAPPER, TRAIN, *STEP]}
    for calls in (before_the_loop, not_ahead):
        assert roads.hops(calls) == [MAIN, TRAIN, *STEP]
        assert roads.hops(calls, wrapper=True) == [MAIN, *WRAPPER, TRAIN, *STEP]


def test_a_box_is_found_as_text_as_numbers_and_in_arrays():
    recorded = importlib.import_module("benchmarks.recorded_run")
    find = recorded.BoxRoad()._found_in
    x1, y1, x2, y2 = recorded.COORDINATES
    array = np.float32([[1, 2, 3, 4], [x1, y1, x2, y2]])
    for value in (f"a.png,{x1},{y1},{x2},{y2},a", [x1, (y1, {"": x2}), str(y2)], array, array.T):
        assert find(value) == recorded.ALL
    assert find([x1, x2, "41", None, np.uint8([13])]) == {0, 2}
    assert find(array + np.float32(0.001)) == recorded.NONE


@pytest.mark.proof
def test_the_roads_of_this_package(roads, tmp_path):
    roads.draw_data(tmp_path)
    arguments = [*roads.training(tmp_path, steps=1), f"--workdir={tmp_path / 'run'}"]
    found = roads.record(REPOSITORY, tmp_path, ["--box", "--stop", *arguments])
    hops = roads.hops(found["calls"])
    assert (hops[0]["file"], hops[0]["name"]) == ("main.py", "main")
    assert len(hops) == 4 and len(hops) <= len(found["calls"]["model"])
    source = (REPOSITORY / "m2det_jax" / hops[-1]["file"]).read_text().splitlines()
    around = "".join(source[max(hops[-1]["line"] - 3, 0) : hops[-1]["line"] + 3])
    assert "model.apply" in around
    road = found["road"]
    assert {"train.py", "data/rows.py", "ops/matching.py", "ops/losses.py"} <= road.keys()
    assert len(road) <= 15 and not any(file.startswith("model/") for file in road)
    assert road.keys() <= found["holds"].keys() and "main.py" not in found["holds"]
    readers = found["readers"]
    assert any(file.startswith("config/") for file in readers)
    assert not any(file.startswith(("ops/", "model/", "data/")) for file in readers)


def test_equal_is_by_every_bit(same):
    one = {"a": np.float32([1, 2]), "b": np.int32([3])}
    assert same.difference(one, {k: v.copy() for k, v in one.items()}) == ""
    zero, minus = {"a": np.float32([0.0])}, {"a": np.float32([-0.0])}
    assert same.difference(zero, minus) == "1 of 1 arrays differ, most by 0 at a"
    assert same.digest(zero) != same.digest(minus)
    other = {"a": np.float32([1, 2.5]), "c": np.int32([3])}
    assert same.difference(one, other) == (
        "1 only before, such as b; 1 only after, such as c; 1 of 1 arrays differ, most by 0.5 at a"
    )
    assert "most by inf at a" in same.difference(one, one | {"a": np.float64([1, 2])[:1]})
    nothing = {"a": np.float32([np.nan])}
    assert same.difference(nothing, {"a": np.float32([np.nan])}) == ""
    assert "most by inf" in same.difference(nothing, zero)


def test_numbers_of_json_are_found_by_path(same):
    found = same.json_arrays({"a": [1.5, {"b": None}], "c": "x"})
    assert {path: array.item() for path, array in found.items()} == {
        "/a/0": 1.5,
        "/a/1/b": "",
        "/c": "x",
    }


def test_parts_on_several_devices_have_an_image_each(same):
    flags = {name: same.TRAININGS[name].flags() for name in same.TRAININGS}
    assert len(flags) == 8
    assert "--config.batch_size=16" in flags["small320-8-parts"]
    assert all("--config.batch_size=8" in flags[f"quickstart{end}"] for end in ("", "-parts", "-8"))


@pytest.mark.proof
def test_a_doctored_copy_is_noticed(same, tmp_path, capsys):
    copy = tmp_path / "copy"
    for name in ("m2det_jax", "experiments"):
        shutil.copytree(REPOSITORY / name, copy / name)
    experiment = copy / "experiments" / "quickstart.py"
    text = experiment.read_text()
    assert "box_weight=0.4" in text
    experiment.write_text(text.replace("box_weight=0.4", "box_weight=0.4001"))
    tiny = {"backbone_width": 0.125, "num_levels": 1, "tum_width": 16, "tum_out": 8}
    arguments = [f"--config.model.{key}={value}" for key, value in tiny.items()]
    bench = same.Bench(tmp_path, images=16, steps=1, batches=1, arguments=arguments)
    trees = {"before": REPOSITORY, "after": copy}
    assert not same.compare(bench, trees, ["quickstart", "samples"])
    training, samples = capsys.readouterr().out.splitlines()
    assert training.startswith("quickstart ") and "arrays differ, most by" in training
    assert samples.startswith("samples ") and "equal, 11 arrays" in samples
