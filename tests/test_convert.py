"""The command convert: official checkpoints through evaluate and predict and back, backbones."""

import dataclasses
import json
import os

import jax
import numpy as np
import pytest
import support
import torch_state_dicts as torch_form
from safetensors.numpy import load_file, save_file

from m2det_jax.build import backbone_settings
from m2det_jax.config import default_config, resolve
from m2det_jax.convert import __main__
from m2det_jax.data import load_image, read_classes
from m2det_jax.evaluate import evaluate_checkpoint
from m2det_jax.predict import predict
from m2det_jax.train import train
from m2det_jax.trained import restore
from m2det_jax.training import prepare
from m2det_jax.weights import pretrained
from m2det_jax.weights.preprocessing import CAFFE, IMAGENET

THIN = 0.125
EXPERIMENT = """
from m2det_jax.experiment import load_experiment


def get_config():
    config = load_experiment("official_vgg320")
    config.data.image_size = (64, 96)
    config.model.num_scales = 3
    config.anchors.steps = ()
    config.eval.score_threshold = 0.01
    return config
"""


def run(*arguments):
    __main__.cli([str(argument) for argument in arguments])


def error_of(*arguments) -> str:
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    text = str(stopped.value)
    assert text.startswith("error: ")
    return text


@pytest.fixture(scope="module")
def official(tmp_path_factory, drawn_files):
    """A synthetic checkpoint: ResNet-18, one level, three scales; (file, tensors, experiment)."""
    folder = tmp_path_factory.mktemp("official")
    classes = 1 + len(read_classes(drawn_files.classes))
    base = torch_form.resnet((2, 2, 2, 2), bottleneck=False)
    shapes = torch_form.official(
        classes=classes, levels=1, scales=3, planes=16, backbone=base, base_channels=(128, 512)
    )
    tensors = torch_form.with_equal_copies(torch_form.drawn(shapes))
    save_file({f"module.{n}": t for n, t in tensors.items()}, folder / "m2det.safetensors")
    (folder / "tiny.py").write_text(EXPERIMENT)
    return folder / "m2det.safetensors", tensors, folder / "tiny.py"


@pytest.fixture(scope="module")
def converted(official, drawn_files, tmp_path_factory):
    file, _, experiment = official
    workdir = tmp_path_factory.mktemp("converted") / "run"
    run("official", file, "--workdir", workdir, "--config", experiment,
        "--classes", drawn_files.classes)  # fmt: skip
    return workdir


def test_a_converted_checkpoint_evaluates_and_predicts(converted, drawn_files, tmp_path):
    metrics = evaluate_checkpoint(converted, csv=str(drawn_files.val))
    assert np.isfinite(metrics["loss"]) and 0 <= metrics["AP"] <= 1
    picture = sorted(drawn_files.val.with_suffix("").glob("*.jpg"))[0]
    done = predict(converted, [str(picture)], output=str(tmp_path), threshold=0.02)
    assert done.detections == len(json.loads((tmp_path / "predictions.json").read_text())) > 0

    restored = restore(converted)
    assert restored.class_names == read_classes(drawn_files.classes)
    image = np.asarray(load_image(picture))[:64, :96]
    seen = np.asarray(restored.detector.normalize(jax.numpy.asarray(image[None])))
    expected = image[None, ..., ::-1].astype(np.float32) - np.float32([104, 117, 123])
    np.testing.assert_array_equal(seen, expected)  # BGR, as the official code feeds it


def test_the_official_form_comes_back_bit_for_bit(converted, official, tmp_path):
    out = tmp_path / "back.safetensors"
    run("to_official", out, "--workdir", converted)
    back = load_file(out)
    assert back.keys() == official[1].keys()
    for name, tensor in official[1].items():
        assert (back[name].dtype, back[name].shape) == (tensor.dtype, tensor.shape), name
        np.testing.assert_array_equal(back[name], tensor, err_msg=name)
    assert "exists already" in error_of("to_official", out, "--workdir", converted)


def test_pth_goes_the_whole_way(official, drawn_files, tmp_path):
    torch = support.import_or_skip("torch")
    file, tensors, experiment = official
    state_dict = {f"module.{n}": torch.from_numpy(t) for n, t in tensors.items()}
    torch.save(state_dict, tmp_path / "m2det.pth")
    run("official", tmp_path / "m2det.pth", "--workdir", tmp_path / "run", "--config", experiment,
        "--classes", drawn_files.classes)  # fmt: skip
    run("to_official", tmp_path / "back.pth", "--workdir", tmp_path / "run")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[n], torch.from_numpy(t)) for n, t in tensors.items())
    half = (tmp_path / "m2det.pth").read_bytes()[:1_000_000]
    (tmp_path / "half.pth").write_bytes(half)
    text = error_of("official", tmp_path / "half.pth", "--workdir", tmp_path / "none",
                    "--size", 320, "--classes", "coco")  # fmt: skip
    assert "half.pth: damaged or cut off" in text and "\n" not in text
    assert sorted(os.listdir(tmp_path)) == ["back.pth", "half.pth", "m2det.pth", "run"]


def test_what_does_not_fit_ends_in_one_message_and_leaves_nothing(official, drawn_files, tmp_path):
    file, tensors, experiment = official
    folder = tmp_path / "out" / "run"
    fixed = ("--workdir", folder, "--classes", drawn_files.classes)
    text = error_of("official", file, "--workdir", folder, "--config", experiment,
                    "--classes", "voc")  # fmt: skip
    assert f"made for {len(read_classes(drawn_files.classes))} classes and background" in text
    assert "--classes voc has 20" in text and "--new_class_heads" in text and "\n" not in text
    text = error_of("official", file, *fixed, "--config", "vgg320")
    assert "experiment vgg320: not of the official form: " in text and "\n" not in text
    assert "config.model.share_base_reduction=False, not True" in text
    broken = {n: t for n, t in tensors.items() if n not in ("unet1.smooth.1.bn.bias", "Norm.bias")}
    broken["loc.1.weight"] = broken["loc.1.weight"][:12]
    save_file(broken, tmp_path / "broken.safetensors")
    text = error_of("official", tmp_path / "broken.safetensors", *fixed, "--config", experiment)
    first, *rest = text.splitlines()
    official_classes = read_classes(drawn_files.classes)
    assert first.startswith(f"error: {tmp_path / 'broken.safetensors'}, read as official M2Det, ")
    assert first.endswith(f"3 scales, with SFAM, {len(official_classes)} classes: 3 problems")
    assert len(rest) == 3
    assert "missing: Norm.bias (16,)" in text
    assert "missing: unet1.smooth.1.bn.bias (16,)" in text
    assert "wrong shape: loc.1.weight is (12, 16, 3, 3), expected (24, 16, 3, 3)" in text
    save_file({"x": np.zeros(3)}, tmp_path / "other.safetensors")
    text = error_of("official", tmp_path / "other.safetensors", *fixed, "--config", experiment)
    assert "not an official M2Det checkpoint" in text and "\n" not in text
    assert not (tmp_path / "out").exists()


def test_other_classes_need_permission_and_get_random_heads(official, converted, tmp_path, caplog):
    file, tensors, experiment = official
    run("official", file, "--workdir", tmp_path / "run", "--config", experiment,
        "--classes", "voc", "--new_class_heads")  # fmt: skip
    ours, before = restore(tmp_path / "run"), restore(converted)
    assert len(ours.class_names) == 20
    assert ours.variables["params"]["class_head"]["scale_2"]["kernel"].shape[-1] == 6 * 21
    for part in ("backbone", "mlfpn", "box_head"):
        support.assert_trees_equal(ours.variables["params"][part], before.variables["params"][part])


def test_fine_tuning_starts_from_a_converted_checkpoint(converted):
    source = restore(converted)
    config = support.changed(source.config, init_from=str(converted))
    variables = prepare.initial_variables(config, prepare.build_detector(config, ("x", "y")))
    for part in ("backbone", "mlfpn", "box_head"):
        support.assert_trees_equal(variables["params"][part], source.variables["params"][part])
    assert variables["params"]["class_head"]["scale_1"]["kernel"].shape[-1] == 6 * 3


def test_a_checkpoint_of_another_form_is_not_written(whole, tmp_path):
    text = error_of("to_official", tmp_path / "out.safetensors", "--workdir", whole[0])
    for key in ("model.backbone_width=0.125", "loss.kind='focal'", "data.channel_order='rgb'"):
        assert f"config.{key}" in text
    assert os.listdir(tmp_path) == []


def test_converted_weights_are_no_run_to_resume(converted, drawn_files, tmp_path, tiny_run):
    config = support.short_config(drawn_files)
    folder = tmp_path / "backbone"
    weights = tiny_backbone(CAFFE)
    pretrained.save(folder, weights, "x.pth")
    with pytest.raises(ValueError, match="holds converted weights.*--config.init_from"):
        train(config, folder)
    with pytest.raises(ValueError, match="a backbone alone.*--config.model.backbone_weights"):
        restore(folder)
    with pytest.raises(ValueError, match="no backbone there.*init_from"):
        pretrained.read(converted)


def tiny_backbone(preprocessing):
    return pretrained.BackboneWeights(
        "vgg16", THIN, True, prepare.init_variables(
            pretrained.make_backbone("vgg16", width=THIN, norm=True), (64, 64), seed=3
        ), preprocessing,
    )  # fmt: skip


def ssd_backbone(path, backbone="vgg16", **data):
    """The settings of a thin backbone and of other keys of config.data."""
    config = default_config()
    config.model.update(backbone=backbone, backbone_width=THIN, backbone_weights=str(path))
    config.data.update(data)
    return backbone_settings(resolve(config))


def test_backbones_bring_their_preprocessing(tmp_path):
    """From the file, from the folder that convert writes, and from one with another on purpose."""
    file, folder, other = (tmp_path / name for name in ("ssd.safetensors", "a", "b"))
    save_file(torch_form.drawn(torch_form.reduced_vgg16(THIN)), file)
    run("backbone", file, "--output", folder)
    run("backbone", file, "--output", other, "--mean", *IMAGENET.mean, "--std", *IMAGENET.std,
        "--channel_order", "rgb")  # fmt: skip
    right = dataclasses.asdict(CAFFE)
    for path in (file, folder):
        with pytest.raises(ValueError, match="want other images") as error:
            pretrained.load_backbone(ssd_backbone(path))
        assert CAFFE.flags() in str(error.value)
        assert "--config.data.mean='(123.0, 117.0, 104.0)'" in CAFFE.flags()
        with pytest.raises(ValueError, match="want other images"):
            pretrained.load_backbone(ssd_backbone(path, **right | {"channel_order": "rgb"}))
        loaded = pretrained.load_backbone(ssd_backbone(path, **right))
        support.assert_trees_equal(loaded, pretrained.read(file).variables)
    support.assert_trees_equal(pretrained.load_backbone(ssd_backbone(other)), loaded)
    assert "exists already" in error_of("backbone", file, "--output", folder)


def test_backbone_weights_of_another_network_name_the_keys(tmp_path):
    pretrained.save(tmp_path / "b", tiny_backbone(IMAGENET), "x.pth")
    settings = ssd_backbone(tmp_path / "b", backbone="resnet18")
    with pytest.raises(ValueError) as error:
        pretrained.load_backbone(settings)
    assert "not for config.model.backbone=resnet18" in str(error.value)
    assert "--config.model.backbone=vgg16 --config.model.backbone_norm=True" in str(error.value)
    with pytest.raises(ValueError, match="no backbone there"):
        pretrained.read(tmp_path)


def test_a_run_starts_from_a_converted_backbone(tmp_path, drawn_files):
    pretrained.save(tmp_path / "b", tiny_backbone(IMAGENET), "x.pth")
    config = support.tiny_config(drawn_files, {"model.backbone_weights": str(tmp_path / "b")})
    detector = prepare.build_detector(config, ("a", "b"))
    variables = prepare.initial_variables(config, detector)
    for collection in ("params", "batch_stats"):
        support.assert_trees_equal(
            variables[collection]["backbone"], tiny_backbone(IMAGENET).variables[collection]
        )
