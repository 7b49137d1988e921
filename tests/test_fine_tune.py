"""Starting from other weights: what is taken, what is not, and what the log says of it."""

import pathlib

import jax
import numpy as np
import pytest
import support

from m2det_jax.build import build_detector
from m2det_jax.data.synthetic import DatasetFiles
from m2det_jax.model import is_class_output
from m2det_jax.train import train
from m2det_jax.trained import restore
from m2det_jax.training.plan import make_optimizer_settings, make_plan
from m2det_jax.training.prepare import initial_variables
from m2det_jax.weights import pretrained
from m2det_jax.weights.imagenet import BackboneWeights
from m2det_jax.weights.preprocessing import IMAGENET


@pytest.fixture(scope="module")
def source(tiny_run, tmp_path_factory):
    """A workdir with checkpoints 1 (the best) and 2, all different, of five classes."""
    workdir = tmp_path_factory.mktemp("source")
    support.save_steps(workdir, tiny_run, {1: 0.5, 2: 0.25})
    return workdir


def start(source, class_names, **overrides):
    """Returns (variables, the random ones they would have been) of a run that starts from it."""
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    config = support.tiny_config(overrides={"seed": 5} | dotted)
    detector = build_detector(config, class_names)
    fresh = initial_variables(config, detector)
    config = support.changed(config, init_from=str(source))
    return initial_variables(config, detector), fresh


def by_path(tree) -> dict[tuple[str, ...], np.ndarray]:
    return {
        tuple(entry.key for entry in path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def test_the_same_classes_take_all_averages(source, tiny_run, log_of_run):
    names = tiny_run.run.train_index.class_names
    variables, _ = start(source, names)
    support.assert_trees_equal(variables, restore(source).variables)
    support.assert_trees_equal(variables["params"], support.state_at(tiny_run, 2).ema_params)
    assert "not loaded" not in log_of_run.text and "WARNING: " not in log_of_run.text
    total = sum(x.size for x in jax.tree.leaves(variables))
    logged = [r.getMessage() for r in log_of_run.records if "  loaded: " in r.getMessage()]
    counted = [int(m.split("tensors, ")[1].split()[0].replace(",", "")) for m in logged]
    assert sum(counted) == total
    assert {m.split()[1].rstrip(",") for m in logged} == {
        "backbone", "box_head", "class_head/scale_1", "class_head/scale_2", "mlfpn/ffm1",
        "mlfpn/ffm2_1", "mlfpn/ffm2_2", "mlfpn/sfam", "mlfpn/tum_1", "mlfpn/tum_2",
    }  # fmt: skip


def test_which_checkpoint_is_ones_choice(source, tiny_run):
    names = tiny_run.run.train_index.class_names
    best, _ = start(source, names, init_checkpoint="best")
    first, _ = start(source, names, init_checkpoint="1")
    support.assert_trees_equal(best["params"], support.state_at(tiny_run, 1).ema_params)
    support.assert_trees_equal(first, best)
    with pytest.raises(ValueError, match=r"no checkpoint '7'.*\[1, 2\]"):
        start(source, names, init_checkpoint="7")


@pytest.mark.parametrize("kind", ["fewer", "renamed", "reordered"])
def test_other_classes_get_fresh_outputs(kind, source, tiny_run, log_of_run):
    names = tiny_run.run.train_index.class_names
    others = {
        "fewer": names[:2],
        "renamed": ("cat", *names[1:]),
        "reordered": (names[1], names[0], *names[2:]),
    }[kind]
    variables, fresh = start(source, others)
    restored, text = by_path(restore(source).variables), log_of_run.text
    for path, value in by_path(variables).items():
        name = "/".join(path)
        if is_class_output(path[1:]):
            np.testing.assert_array_equal(value, by_path(fresh)[path], err_msg=name)
            assert f"not loaded: {name} {value.shape}" in text
        else:
            np.testing.assert_array_equal(value, restored[path], err_msg=name)
            assert f"not loaded: {name}" not in text
    assert text.count("not loaded: ") == 4  # kernel and bias at two scales
    assert (
        f"because the classes are {'in another order' if kind == 'reordered' else 'other'}" in text
    )
    assert f"({', '.join(others)})" in text and f"({', '.join(names)})" in text


def test_all_tensors_that_do_not_fit_are_listed(source, tiny_run):
    names = tiny_run.run.train_index.class_names
    with pytest.raises(ValueError) as caught:
        start(source, names, model__tum_out=12, model__sfam=False)
    text = str(caught.value)
    assert (
        "params/mlfpn/tum_1/smooth_2/conv/kernel: (1, 1, 16, 12) here, (1, 1, 16, 8) there" in text
    )
    assert "params/mlfpn/sfam/squeeze_scale_2/bias: nothing here, (1,) there" in text
    assert "params/box_head/scale_1/kernel: (3, 3, 24, 24) here, (3, 3, 16, 24) there" in text
    assert "params/class_head/scale_2/kernel" in text
    assert "config.model.sfam is False here, True there" in text
    assert "config.model.tum_out is 12 here, 8 there" in text
    assert "backbone" not in text and "\n" not in text
    with pytest.raises(ValueError) as caught:
        start(source, ("cat",), model__tum_out=12, model__sfam=False)
    assert "class_head" not in str(caught.value)  # these would be fresh anyway


def test_other_preprocessing_and_anchors_are_warned_of(source, tiny_run, log_of_run):
    names = tiny_run.run.train_index.class_names
    start(source, names, data__mean=(0.0, 0.0, 0.0), anchors__clip=False, eval__iou_threshold=0.6)
    warnings = [r.getMessage() for r in log_of_run.records if "WARNING: " in r.getMessage()]
    assert len(warnings) == 2
    assert any(
        "config.data.mean=(123.675, 116.28, 103.53), this run has (0.0" in w for w in warnings
    )
    assert any("config.anchors.clip=True, this run has False" in w for w in warnings)


def test_a_path_without_checkpoints_says_what_to_give(tmp_path, tiny_run):
    with pytest.raises(ValueError, match="give the --workdir of a training run"):
        start(tmp_path / "nothing", tiny_run.run.train_index.class_names)


def test_a_backbone_alone_is_no_start(tmp_path, tiny_run):
    kernel = np.zeros((3, 3, 3, 64), np.float32)
    variables = {"params": {"conv1_1": {"conv": {"kernel": kernel}}}, "batch_stats": {}}
    weights = BackboneWeights("vgg16", 1.0, True, variables, IMAGENET)
    pretrained.save(tmp_path / "vgg16", weights, "a test")
    with pytest.raises(ValueError, match="a backbone alone.*backbone_weights="):
        start(tmp_path / "vgg16", tiny_run.run.train_index.class_names)


def renamed(files: DatasetFiles, folder: pathlib.Path) -> DatasetFiles:
    """The same data set with the class "disc" called "coin"."""
    for name, file in files._asdict().items():
        lines = file.read_text().replace("disc", "coin").splitlines()
        start = "" if name == "classes" else f"{file.parent}/"  # of the images' paths
        (folder / file.name).write_text("".join(f"{start}{line}\n" for line in lines))
    return DatasetFiles(*(folder / file.name for file in files))


def test_a_run_starts_there_and_then_goes_on_from_its_own(
    source, drawn_files, tmp_path, log_of_run, tiny_run
):
    files = renamed(drawn_files, tmp_path)
    config = support.short_config(files, init_from=str(source), max_steps=1)
    train(config, tmp_path / "run")
    assert "initial weights: moving averages of step 2" in log_of_run.text
    assert log_of_run.text.count("not loaded: params/class_head/") == 4
    # One small step from the source's weights, and for the classes from those that the seed draws.
    trained = by_path(jax.device_get(restore(tmp_path / "run").variables["params"]))
    loaded = by_path(support.state_at(tiny_run, 2).ema_params)
    drawn = by_path(tiny_run.initial.params)
    for path in (path for path in trained if path[-1] == "kernel"):
        near, far = (drawn, loaded) if is_class_output(path) else (loaded, drawn)
        distances = [np.abs(trained[path] - tree[path]).max() for tree in (near, far)]
        assert 0 < distances[0] < distances[1], path

    log_of_run.clear()
    config = support.changed(config, max_steps=2, init_from=str(tmp_path / "gone by now"))
    train(config, tmp_path / "run")
    assert "gone by now is not read: the run goes on" in log_of_run.text
    assert "initial weights" not in log_of_run.text
    assert restore(tmp_path / "run").step == 2


def test_a_slower_backbone_is_told(log_of_run):
    config = support.tiny_config(overrides={"optimizer.backbone_factor": 0.25})
    make_optimizer_settings(config, make_plan(config, 40), 40)
    assert "learning rate of the backbone: 0.25 of that" in log_of_run.text
