"""What is made ready before the first step: initial weights and their warnings, and the plan."""

import jax
import numpy as np
import pytest
import support

from m2det_jax.build import build_detector
from m2det_jax.training.plan import make_plan
from m2det_jax.training.prepare import initial_variables

NAMES = ("cat", "dog")


def variables_of(**overrides):
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    config = support.tiny_config(overrides=dotted)
    return initial_variables(config, build_detector(config, NAMES))


@pytest.mark.parametrize("backbone", ["vgg16", "vgg19"])
def test_a_norm_free_backbone_from_noise_is_warned_of(backbone, log_of_run):
    variables_of(model__backbone=backbone, model__backbone_norm=False)
    assert "WARNING" in log_of_run.text
    assert f"--config.model.backbone_weights={backbone}." in log_of_run.text
    assert "--config.model.backbone_norm=True" in log_of_run.text


@pytest.mark.parametrize(
    "overrides", [{"model__backbone_norm": True}, {"model__backbone": "resnet18"}]
)
def test_backbones_with_norm_are_not(overrides, log_of_run):
    variables_of(**overrides)
    assert "WARNING" not in log_of_run.text


def test_an_absent_weights_file_is_named(tmp_path):
    path = tmp_path / "vgg16.safetensors"
    with pytest.raises((ValueError, FileNotFoundError), match="vgg16.safetensors"):
        variables_of(model__backbone_weights=str(path))


def test_the_seed_decides_the_weights():
    first, same, other = (jax.tree.leaves(variables_of(seed=seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, same, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_the_plan_rounds_epochs_to_whole_steps():
    config = support.tiny_config(overrides={"epochs": 3.0, "eval.every_epochs": 0.5})
    plan = make_plan(config, num_images=30)  # 3.75 steps an epoch
    assert (plan.steps, plan.evaluate_every) == (11, 2)
    config = support.changed(config, eval__every_epochs=1e-3)
    assert make_plan(config, num_images=30).evaluate_every == 1
