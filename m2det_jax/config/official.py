"""Which configs describe the network of the official code, and the config of its checkpoints."""

import dataclasses

from m2det_jax.config.dotted import flatten, freeze, with_values
from m2det_jax.config.experiment_checks import load_checked
from m2det_jax.config.experiments import load_experiment
from m2det_jax.config.keys import Config, Model
from m2det_jax.errors import InputError

OFFICIAL_SIZES = (320, 512, 704, 800)
# Keys that say what a network computes from an image ...
_FORM = (
    "model.", "anchors.", "loss.kind", "data.mean", "data.std", "data.channel_order", "data.resize"
)  # fmt: skip
# ... but for those that the official code leaves open, or that only training looks at.
_OPEN = frozenset(
    "model.backbone model.backbone_weights model.backbone_official_stride model.frozen_stages "
    "model.num_levels model.num_scales model.reduced_channels model.tum_width model.tum_out "
    "model.sfam model.norm_momentum model.dtype anchors.positive_threshold "
    "anchors.negative_threshold".split()
)


def official_config(experiment: str, fields: dict) -> Config:
    """Returns an experiment's config with the network that an official checkpoint holds.

    Args:
        experiment: a shipped one or a file, of the official form.
        fields: of `weights.official.official_fields`.

    Raises:
        InputError: the experiment is not of the official form; lists the keys.
    """
    keys = {field.name for field in dataclasses.fields(Model)}
    values = {f"model.{name}": value for name, value in fields.items() if name in keys}
    values["model.backbone_official_stride"] = fields["backbone"].startswith("resnet")
    config = with_values(freeze(load_checked(experiment)), values)
    raise_if_not_official(config, f"experiment {experiment}")
    return config


def raise_if_not_official(config: Config, what: str) -> None:
    """Checks that the official code has a network that computes the same as the config's.

    Raises:
        InputError: listing all keys that differ, with the value that they would have.
    """
    reference = flatten(load_experiment(f"official_vgg{_nearest_size(config)}"))
    ours, model = flatten(config), config.model
    wanted = {
        key: value for key, value in reference.items() if key.startswith(_FORM) and key not in _OPEN
    }
    if model.num_scales != reference["model.num_scales"]:  # no released anchors to compare with
        del wanted["anchors.sizes"], wanted["anchors.steps"]
    wanted["model.tum_out"] = model.tum_width
    wanted["model.backbone_official_stride"] = model.backbone.startswith("resnet")
    differing = [
        f"config.{key}={ours.get(key)!r}, not {value!r}"
        for key, value in wanted.items()
        if ours.get(key) != value
    ]
    if differing:
        raise InputError(f"{what}: not of the official form: {'; '.join(differing)}")


def _nearest_size(config: Config) -> int:
    """The official size whose anchors `ops.ssd_sizes` would take."""
    side = min(config.data.image_size)
    return min(OFFICIAL_SIZES, key=lambda size: abs(size - side))
