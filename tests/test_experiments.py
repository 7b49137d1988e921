"""Every shipped experiment at its full size, in shapes only."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import support

from m2det_jax.build import augment_settings, build_detector, step_settings
from m2det_jax.config import default_config, resolve
from m2det_jax.config.dotted import flatten, freeze, to_dict, with_values
from m2det_jax.config.experiments import experiments_dir, load_experiment
from m2det_jax.config.stored import stored_config
from m2det_jax.data import AugmentSettings
from m2det_jax.model import variable_shapes
from m2det_jax.run.state import create_train_state
from m2det_jax.training.optimizer import make_schedule
from m2det_jax.training.plan import make_optimizer_settings, make_plan

CLASSES = tuple(f"class{i}" for i in range(5))
NAMES = sorted(path.stem for path in experiments_dir().glob("*.py"))
# Cells of six scales, squared and summed, times the six anchors of a cell.
ANCHORS = {
    "vgg320": 6 * (40**2 + 20**2 + 10**2 + 5**2 + 3**2 + 1),
    "vgg512": 6 * (64**2 + 32**2 + 16**2 + 8**2 + 4**2 + 2**2),
    "vgg800": 6 * (100**2 + 50**2 + 25**2 + 13**2 + 7**2 + 5**2),
    "official_vgg704": 6 * (88**2 + 44**2 + 22**2 + 11**2 + 6**2 + 4**2),
    "keras_vgg320": 9 * (40**2 + 20**2 + 10**2 + 5**2 + 3**2 + 1),
}


@functools.cache
def built(name: str):
    """Returns an experiment's (config, detector, shapes of its variables); not to be changed."""
    config = freeze(load_experiment(name))
    detector = build_detector(config, CLASSES)
    return config, detector, variable_shapes(detector.model, detector.resize.image_size)


def one_of_each_network() -> list[str]:
    """The experiment with the largest images of each kind of network and loss.

    For tests that trace a whole step, which takes seconds; the depth of a backbone is no kind.
    """
    largest = {}
    for name in NAMES:
        config = freeze(load_experiment(name))
        family = to_dict(config.model) | {"backbone": config.model.backbone.rstrip("0123456789")}
        key = str([family, config.loss, config.anchors.kind, config.optimizer.name])
        if key not in largest or config.data.image_size > largest[key][0]:
            largest[key] = (config.data.image_size, name)
    return sorted(name for _, name in largest.values())


def shapes_of_batch(config) -> dict[str, jax.ShapeDtypeStruct]:
    size, (height, width) = config.batch_size, config.data.image_size
    return {
        "image": jax.ShapeDtypeStruct((size, height, width, 3), np.uint8),
        "boxes": jax.ShapeDtypeStruct((size, 16, 4), np.float32),
        "labels": jax.ShapeDtypeStruct((size, 16), np.int32),
        "mask": jax.ShapeDtypeStruct((size, 16), np.bool_),
    }


def test_the_shipped_ones_are_there():
    official = {f"official_vgg{size}" for size in (320, 512, 704, 800)}
    assert {"quickstart", "small320", "vgg320", "vgg512", "vgg800", "keras_vgg320"} <= set(NAMES)
    assert official | {"official_resnet101_320"} <= set(NAMES)
    assert {"resnet101_320", "resnet101_512", "resnet50_512", "mobilenet320"} <= set(NAMES)


def test_the_official_recipe():
    config, detector, _ = built("official_vgg512")
    model = detector.model
    assert (model.tum_out, model.sfam, model.anchors_per_cell) == (256, False, 6)
    assert model.share_base_reduction and model.largest_scale_norm
    schedule = make_schedule(make_optimizer_settings(config, make_plan(config, 1600), 1600))
    epochs = (0, 5, 89.99, 90, 110, 130, 150, 159.99)
    rates = [float(schedule(int(100 * epoch))) for epoch in epochs]
    expected = [1e-6, 4e-3, 4e-3, 2e-3, 4e-4, 4e-5, 4e-6, 4e-6]
    np.testing.assert_allclose(rates, expected, rtol=1e-3)
    assert (config.epochs, config.batch_size, config.eval.nms) == (160, 16, "soft_linear")
    augment, evaluation = config.augment, config.eval
    assert (augment.expand_probability, augment.expand_max, augment.hue) == (0.6, 4, 36)
    assert (evaluation.score_threshold, evaluation.soft_iou_threshold) == (0.1, 0.3)
    assert (evaluation.max_per_class, evaluation.soft_score_floor) == (50, 0.001)
    assert (detector.mean, detector.channel_order) == ((123, 117, 104), "bgr")
    assert detector.std == (1, 1, 1)
    batches = {"vgg704": 11, "vgg800": 9, "resnet101_320": 12}
    assert all(built(f"official_{n}")[0].batch_size == size for n, size in batches.items())
    for size in (320, 704, 800):
        other = built(f"official_vgg{size}")[0]
        assert (other.optimizer.learning_rate, other.loss) == (4e-3, config.loss)


# (warm-up, decays) in epochs of the shipped run, which the shares of a recipe stand for.
IN_EPOCHS = {
    "quickstart": (0.5, ()),
    "small320": (2.0, ()),
    "keras_vgg320": (0.0, ()),
    "official": (5.0, (90.0, 110.0, 130.0, 150.0)),
    "paper": (5.0, (90.0, 120.0)),
}


@pytest.mark.parametrize("num_images", [1, 37, 292, 800, 1234.5, 117_266])
@pytest.mark.parametrize("name", NAMES)
def test_shares_of_the_run_are_the_epochs_of_the_shipped_one(name, num_images):
    config = freeze(load_experiment(name))
    kind = "official" if name.startswith("official") else name if name in IN_EPOCHS else "paper"
    warmup, decays = IN_EPOCHS[kind]
    found = make_optimizer_settings(config, make_plan(config, num_images), num_images)
    per_epoch = num_images / config.batch_size
    expected = dataclasses.replace(
        found,
        warmup_steps=round(warmup * per_epoch),
        decay_steps=tuple(round(epoch * per_epoch) for epoch in decays),
    )
    if found.schedule != "step":
        found = dataclasses.replace(found, decay_steps=())
    assert found == expected
    step = np.arange(min(found.steps, 20_000))
    rates, before = (jax.vmap(make_schedule(s))(step) for s in (found, expected))
    np.testing.assert_array_equal(rates, before)


def test_a_config_that_is_older_than_the_shares_means_what_it_meant():
    before = default_config().to_dict()
    for key in ("warmup_share", "decay_shares", "norm_warmup"):
        del before["optimizer"][key]
    before["epochs"] = 50.0
    config = stored_config(before)
    with support.warnings_of_run():
        found = make_optimizer_settings(config, make_plan(config, 3200), 3200)
    assert (found.warmup_steps, found.decay_steps) == (500, (9000, 12000))
    assert not step_settings(config).norm_warmup


@pytest.mark.parametrize("name", NAMES)
def test_slow_averages_of_batchnorm_warm_up_but_in_other_peoples_recipes(name):
    config = freeze(load_experiment(name))
    slow = config.model.norm_momentum >= 0.99  # faster ones have forgotten their start soon
    theirs = name.startswith(("official", "keras"))
    assert config.optimizer.norm_warmup == (slow and not theirs)


@pytest.mark.parametrize("name", NAMES)
def test_short_runs_learn_at_the_whole_schedule_or_say_that_they_do_not(name):
    config = freeze(load_experiment(name))
    for epochs in (4.0, 20.0, 50.0):
        config = with_values(config, {"epochs": epochs})
        plan = make_plan(config, 3200)
        with support.warnings_of_run() as warned:
            found = make_optimizer_settings(config, plan, 3200)
        if name.startswith("official"):
            (line,) = warned
            assert "ends before 4 of 4 decays" in line
            assert ("inside the warm-up" in line) == (epochs == 4)
            continue
        assert not warned
        schedule = make_schedule(found)
        assert max(map(schedule, range(found.warmup_steps + 1))) == found.learning_rate
        if found.schedule == "step":
            last = float(schedule(found.steps - 1))
            np.testing.assert_allclose(last, found.learning_rate / 100, rtol=1e-5)


def test_the_form_of_the_keras_port():
    config, detector, variables = built("keras_vgg320")
    assert {"tower_1", "tower_4", "output"} < variables["params"]["box_head"].keys()
    assert detector.model.upsample == "bilinear"
    assert variables["params"]["class_head"]["output"]["kernel"].shape == (3, 3, 256, 9 * 5)
    # One set of anchors for training and detection, of 10 to 320 px times the octave scales.
    size = detector.anchors[:, 2:] - detector.anchors[:, :2]
    side = np.sqrt(size.prod(1))
    np.testing.assert_allclose(side[:3], 10 * 2 ** (np.arange(3) / 3), rtol=1e-4)
    np.testing.assert_allclose(side[-3:], 320 * 2 ** (np.arange(3) / 3), rtol=1e-4)
    # A box loss with sigma is |d| - 1 / (2 sigma^2) far out, so beta is 1 / sigma^2.
    assert config.loss.smooth_l1_beta == pytest.approx(1 / 3**2)
    assert (config.anchors.negative_threshold, config.anchors.positive_threshold) == (0.4, 0.5)


def test_a_step_of_each_network_is_tried():
    names = set(one_of_each_network())
    assert {"quickstart", "vgg800", "official_vgg800", "official_resnet101_320"} <= names
    assert {"resnet101_512", "mobilenet320", "keras_vgg320"} <= names
    assert not {"vgg320", "official_vgg704", "resnet101_320", "resnet50_512"} & names


@pytest.mark.parametrize("name", NAMES)
def test_the_values_of_an_experiment_are_legal(name):
    config, _, _ = built(name)
    resolve(config)
    assert isinstance(augment_settings(config), AugmentSettings)


@pytest.mark.parametrize("name", one_of_each_network())
def test_the_step_of_an_experiment_fits_together(name):
    config, detector, variables = built(name)
    step, optimizer = support.make_step(config, detector, num_images=1000)
    state = jax.eval_shape(lambda v: create_train_state(v, optimizer), variables)
    after, metrics = jax.eval_shape(step, state, shapes_of_batch(config))

    assert jax.tree.map(np.shape, after) == jax.tree.map(np.shape, state)
    assert (
        jax.tree.leaves(jax.tree.map(lambda a, b: a.dtype == b.dtype, after, state)).count(0) == 0
    )
    assert all(value.shape == () for value in metrics.values())
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(after.params))


@pytest.mark.parametrize("name", NAMES)
def test_there_is_one_anchor_for_each_row_of_logits(name):
    config, detector, variables = built(name)
    image = jax.ShapeDtypeStruct((2, *config.data.image_size, 3), np.uint8)

    def forward(variables, images):
        outputs = detector.model.apply(variables, detector.normalize(images), train=False)
        return outputs, detector.postprocess(outputs)

    outputs, found = jax.eval_shape(forward, variables, image)
    count = len(detector.anchors)
    background = config.loss.kind == "softmax"
    assert outputs["class_logits"].shape == (2, count, len(CLASSES) + background)
    assert outputs["box_deltas"].shape == (2, count, 4)
    assert found.boxes.shape == (2, config.eval.max_detections, 4)
    if name in ANCHORS:
        assert count == ANCHORS[name]


def test_the_counts_of_the_paper():
    assert (ANCHORS["vgg320"], ANCHORS["vgg512"]) == (12_810, 32_760)


@pytest.mark.parametrize("name", NAMES)
def test_anchors_cover_the_image(name):
    config, detector, _ = built(name)
    anchors = detector.anchors
    height, width = config.data.image_size
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    assert (centres > 0).all() and (centres < [width, height]).all()
    assert (anchors.min(0)[:2] <= 0).all() and (anchors.max(0)[2:] >= [width, height]).all()


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_only_overrides_keys_that_exist(name):
    config = built(name)[0]
    assert flatten(config).keys() == flatten(default_config()).keys()
    source = (experiments_dir() / f"{name}.py").read_text()
    assert source.startswith('"""') and ("make demo" in source or "m2det_jax.main" in source)
