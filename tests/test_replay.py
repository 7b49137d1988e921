"""A step whose loss is not finite is kept, and its replay finds step, layer and image."""

import dataclasses
import errno
import hashlib
import io
import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import support
from flax.linen.module import wrap_method_once
from flax.traverse_util import flatten_dict

from m2det_jax.build import build_detector
from m2det_jax.data import read_classes
from m2det_jax.data.feeding import batches
from m2det_jax.model.layers import ConvBlock
from m2det_jax.replay.findings import before, first_finding
from m2det_jax.replay.layers import Probe, Values, _largest
from m2det_jax.replay.outcome import tell
from m2det_jax.replay.run import _bad_weights, _Steps, choose, replay
from m2det_jax.run.progress import Failure, NonFiniteLoss
from m2det_jax.train import train
from m2det_jax.training import nonfinite

LAYER = "backbone/conv2_1"
IMAGE = 5  # of the training set; with this seed it comes in step 2, and in step 4 again


@pytest.fixture
def white(monkeypatch):
    """Makes one image white after augmentation, and gives its number."""
    plain = batches.augment

    def augment(index, image_id, settings, rng):
        image, boxes, rows = plain(index, image_id, settings, rng)
        return (np.full_like(image, 255) if image_id == IMAGE else image), boxes, rows

    monkeypatch.setattr(batches, "augment", augment)


def plant(monkeypatch, spoil) -> None:
    """Lets a layer of the network spoil its output where the image is white."""
    plain = ConvBlock.__call__

    def __call__(self, x, *, train):
        y = plain(self, x, train=train)
        if "/".join(self.path) != LAYER:
            return y
        inside = y[:, 6:-6, 6:-6]  # where no padding is seen
        is_white = (inside == inside[:, :1, :1]).all((1, 2, 3))
        return spoil(y, is_white[:, None, None, None])

    monkeypatch.setattr(ConvBlock, "__call__", wrap_method_once(__call__))


def small_config(files, **overrides):
    common = dict(
        data__num_workers=0, checkpoint__every_steps=1, model__num_levels=1, eval__every_epochs=9.0,
        model__backbone_norm=False, augment__enabled=False,
    )  # fmt: skip
    return support.short_config(files, **common | overrides)


def fail(config, workdir) -> str:
    with pytest.raises(FloatingPointError) as caught:
        train(config, workdir)
    return str(caught.value)


def contents(folder: pathlib.Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def replayed(workdir, **choice):
    """Returns a replay and its document; the run has not changed."""
    was, document = contents(workdir), io.StringIO()
    found = replay(choose(workdir, **choice))
    tell(found, document)
    assert contents(workdir) == was
    return found, json.loads(document.getvalue())


@pytest.mark.parametrize(
    ("where", "spoil"),
    [
        ("forward", lambda y, white: jnp.where(white, jnp.inf, y)),
        ("backward", lambda y, white: y + jnp.sqrt(jnp.where(white, 0 * y, 1))),
    ],
)
def test_the_layer_and_the_image_are_found(
    where, spoil, white, drawn_files, tmp_path, monkeypatch, capsys
):
    plant(monkeypatch, spoil)
    workdir = tmp_path / "run"
    message = fail(small_config(drawn_files), workdir)
    (folder,) = (workdir / "nonfinite").iterdir()
    step = int(folder.name)
    assert step > 1  # some checkpoint comes before it
    assert f"m2det replay --workdir {workdir} --step {step} names" in message
    found, document = replayed(workdir)
    record = json.loads((folder / "record.json").read_text())
    (position,) = [i for i, image in enumerate(record["images"]) if image["image_id"] == IMAGE]
    name = record["images"][position]["file_name"]
    assert (found.step, found.start, found.same) == (step, step - 1, True)
    assert (found.finding.where, found.finding.layer) == (where, LAYER)
    assert found.images == ((position, name),)
    assert document["first"]["images"] == [{"position": position, "file_name": name}]
    assert document["step"] == step and document["what"] == record["what"]
    assert document["same_as_run"] is True and not document["notes"]
    assert all(np.isfinite(entry["largest"]) for entry in document["layers_before"])
    printed = capsys.readouterr().out
    assert f"{LAYER} (ConvBlock)" in printed and f"{name} (position {position} of 8)" in printed
    assert "bit for bit" in printed and f"the checkpoint of step {step - 1}" in printed


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_a_huge_learning_rate_is_found_in_the_first_layer_that_overflows(drawn_files, tmp_path):
    workdir = tmp_path / "run"
    fail(small_config(drawn_files, optimizer__learning_rate=1e28), workdir)
    found, document = replayed(workdir)
    assert found.step == found.start + 1 and found.same
    assert (
        document["first"]["where"] == "forward" and "learning_rate" in document["first"]["remedy"]
    )
    # The network itself, without a probe, as the judge.
    config = small_config(drawn_files)
    detector = build_detector(config, read_classes(drawn_files.classes))
    with np.load(workdir / "nonfinite" / str(found.step) / "batch.npz") as batch:
        images = batch["image"]
    with ocp.PyTreeCheckpointer() as checkpointer:
        folder = workdir / "checkpoints" / str(found.start) / "train"
        state = checkpointer.restore(folder.absolute())
    _, seen = detector.model.apply(
        {"params": state["params"], "batch_stats": state["batch_stats"]},
        detector.normalize(images), train=True,
        capture_intermediates=True, mutable=["batch_stats", "intermediates"],
    )  # fmt: skip
    outputs = {
        "/".join(path[:-1]): np.asarray(value[0])
        for path, value in flatten_dict(seen["intermediates"]).items()
        if isinstance(value[0], jax.Array)
    }
    assert not np.isfinite(outputs[found.finding.layer]).all()
    for name, _ in found.layers:
        module, _, place = name.partition(" (")
        if place.endswith("output"):
            assert np.isfinite(outputs[module]).all()


def test_weights_that_an_update_has_spoilt_are_named(tiny_run):
    def program(state, batch):
        scale = np.where(state.step >= 3, np.inf, 1)  # the update of step 4
        params = state.params | {"box_head": jax.tree.map(lambda x: x * scale, head)}
        return dataclasses.replace(state, params=params, step=state.step + 1), {}

    state = tiny_run.fresh_state()
    head = state.params["box_head"]
    batches = ({"step": step, **support.random_batch(step)} for step in itertools.count(2))
    steps = _Steps({(64, 96): program}, tiny_run.run, state, 0)
    batch = steps.repeat({"step": 1, **support.random_batch(1)}, batches, 6)
    assert (batch["step"], int(steps.state.step), steps.bad_since()) == (6, 5, 4)
    names = _bad_weights(steps.state.params)
    assert names and all(name.startswith("box_head/") for name in names)
    assert "the update of step 4 made them so" in first_finding(values(), names, since=4).text


def test_boxes_of_an_image_and_a_batch_that_is_another_now(
    drawn_files, tmp_path, monkeypatch, capsys, warnings_of_run
):
    """In a run that leaves such steps out; the image comes once in each epoch."""
    plain = batches.augment

    def augment(index, image_id, settings, rng):
        image, boxes, rows = plain(index, image_id, settings, rng)
        return image, boxes * (np.nan if image_id == IMAGE else 1), rows

    workdir = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(batches, "augment", augment)
        train(small_config(drawn_files, on_nonfinite="skip"), workdir)
    assert nonfinite.kept_steps(workdir) == [2, 4]
    record = json.loads((workdir / "nonfinite" / "4" / "record.json").read_text())
    (position,) = [i for i, image in enumerate(record["images"]) if image["image_id"] == IMAGE]
    # Without what spoils the boxes, as if the data had been mended since.
    found, document = replayed(workdir, step=4)
    assert (found.start, found.finding.where) == (0, "batch")  # older checkpoints are deleted
    assert found.images == ((position, record["images"][position]["file_name"]),)
    assert "The kept one is used" in document["notes"][0]
    capsys.readouterr()
    finite, document = replayed(workdir, step=6)
    assert (finite.start, finite.what, finite.finding, finite.same) == (5, "", None, None)
    assert document["first"] is None and np.isfinite(document["metrics"]["loss"])
    assert "finite" in capsys.readouterr().out


def test_a_run_without_a_failure_says_so(whole, capsys):
    found, document = replayed(whole[0])
    assert found.step == 0 and document["step"] is None and document["first"] is None
    assert "no step of" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("step", "message"), [(7, "--step=7: the run has 6 steps"), (-1, "give a step of the run")]
)
def test_a_step_that_the_run_does_not_have_is_refused(whole, step, message):
    with pytest.raises(ValueError, match=message):
        replay(choose(whole[0], step))


def test_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no run there; give the --workdir of a training run"):
        choose(tmp_path / "gone")


def failure(step: int) -> Failure:
    error = NonFiniteLoss(step, "the loss is nan", np.array([1, 2]), ["a.jpg", "b.jpg"])
    batch = {"image": np.zeros((2, 4, 6, 3), np.uint8), "image_id": np.array([1, 2], np.int32)}
    return Failure(step, error, {"loss": jnp.float32(np.nan), "grad_norm": jnp.float32(2)}, batch)


def describe() -> dict:
    return {"config": {"seed": 3}}


def test_a_failed_step_is_kept_with_its_batch_and_its_keys(tmp_path):
    nonfinite.keep(tmp_path, describe, failure(7))
    record = nonfinite.read_record(tmp_path, 7)
    assert (record["step"], record["seed"], record["what"]) == (7, 3, "the loss is nan")
    assert record["metrics"] == {"loss": "nan", "grad_norm": 2.0}
    assert record["images"][1] == {"image_id": 2, "file_name": "b.jpg"}
    batch = nonfinite.read_batch(tmp_path, 7)
    assert batch["image"].shape == (2, 4, 6, 3) and batch["image_id"].tolist() == [1, 2]
    assert nonfinite.read_record(tmp_path, 8) is nonfinite.read_batch(tmp_path, 8) is None


def test_few_failures_are_kept_and_none_is_replaced(tmp_path):
    for step in (12, 7, 9, 8, 30):
        nonfinite.keep(tmp_path, describe, failure(step))
    assert nonfinite.kept_steps(tmp_path) == [7, 9, 12]
    was = contents(tmp_path)
    nonfinite.keep(tmp_path, lambda: {"config": {"seed": 4}}, failure(9))
    assert contents(tmp_path) == was


def test_several_processes_keep_their_own_parts(tmp_path, monkeypatch):
    for process in (0, 1, 11):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        for step in range(1, 6):
            nonfinite.keep(tmp_path, describe, failure(step))
    names = sorted(path.name for path in (tmp_path / "nonfinite").iterdir())
    assert names == sorted(
        f"{step}{p}" for step in (1, 2, 3) for p in ("", "-process1", "-process11")
    )
    assert nonfinite.kept_steps(tmp_path) == [1, 2, 3]


def test_files_of_the_user_stay(tmp_path, warnings_of_run):
    (tmp_path / "nonfinite").write_text("mine")
    nonfinite.keep(tmp_path, describe, failure(7))
    assert (tmp_path / "nonfinite").read_text() == "mine"
    assert "the batch of step 7 cannot be kept" in warnings_of_run.text


def test_a_workdir_that_is_gone_does_not_come_back(tmp_path):
    nonfinite.keep(tmp_path / "gone", describe, failure(7))
    assert not (tmp_path / "gone").exists()


def test_a_full_disk_does_not_hide_the_failure(drawn_files, tmp_path, monkeypatch, warnings_of_run):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with support.warnings_of_run() as said:
        nonfinite.keep(tmp_path, describe, failure(7))
    assert said == ["the batch of step 7 cannot be kept: [Errno 28] No space left on device"]
    assert not list((tmp_path / "nonfinite").iterdir())


def test_a_damaged_record_is_named(tmp_path):
    nonfinite.keep(tmp_path, describe, failure(7))
    (tmp_path / "nonfinite" / "7" / "record.json").write_text("{")
    with pytest.raises(ValueError, match="record.json: not a record of this version"):
        nonfinite.read_record(tmp_path, 7)
    (tmp_path / "nonfinite" / "7" / "batch.npz").write_text("no archive")
    assert nonfinite.read_batch(tmp_path, 7) is None


def values(**changes) -> Values:
    probes = [Probe(f"layer{i}", "Conv", "output") for i in range(4)]
    sound = dict(
        probes=probes, forward=np.ones((4, 3)), backward=np.ones((4, 3)), boxes=np.ones(3, bool),
        targets=np.ones(3, bool), losses=np.ones(3), gradients={"a/kernel": 1.0, "b/bias": 2.0},
        norm=2.0,
    )  # fmt: skip
    return Values(**sound | changes)


def spoilt(shape, *places, value=np.nan) -> np.ndarray:
    array = np.ones(shape)
    for place in places:
        array[place] = value
    return array


@pytest.mark.parametrize(
    ("changes", "weights", "expected"),
    [
        ({}, [], None),
        ({"norm": np.inf}, ["c/kernel"], ("weights", "c/kernel", ())),
        ({"boxes": np.array([True, False, True])}, [], ("batch", "", (1,))),
        ({"targets": np.array([True, True, False])}, [], ("targets", "", (2,))),
        ({"forward": spoilt((4, 3), (2, 1), (3, 0))}, [], ("forward", "layer2", (1,))),
        ({"losses": spoilt(3, 0, value=np.inf)}, [], ("loss", "", (0,))),
        ({"backward": spoilt((4, 3), (0, 1), (2, 2))}, [], ("backward", "layer2", (2,))),
        ({"gradients": {"a": 1.0, "b": np.inf}}, [], ("gradient", "b", ())),
        ({"norm": np.inf}, [], ("norm", "b/bias", ())),
    ],
)
def test_the_first_of_several_is_named(changes, weights, expected):
    finding = first_finding(values(**changes), weights)
    if expected is None:
        assert finding is None
        return
    assert (finding.where, finding.layer, finding.images) == expected
    assert finding.text and finding.remedy


def test_what_came_before_is_in_the_order_of_computation():
    forward = values(forward=np.array([[1, 5], [7, 2], [3, np.inf], [1, 1]]))
    assert before(forward, first_finding(forward, [])) == [
        ("layer0 (Conv), output", 5.0), ("layer1 (Conv), output", 7.0),
    ]  # fmt: skip
    backward = values(backward=np.array([[1, 5], [np.nan, 2], [3, 4], [6, 1]]))
    assert before(backward, first_finding(backward, [])) == [
        ("layer3 (Conv), output", 6.0), ("layer2 (Conv), output", 4.0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "largest"),
    [([1, -3], 3), ([np.nan, 1], np.nan), ([1, -np.inf], np.inf), ([np.inf, np.nan], np.nan)],
)
def test_the_largest_value_tells_what_is_not_finite(row, largest):
    x = jnp.asarray([[row] * 40, [[1, 2]] * 40], jnp.bfloat16)
    np.testing.assert_array_equal(jax.jit(lambda x: _largest(x, 2))(x), [largest, 2])
    np.testing.assert_array_equal(_largest(x), largest)
