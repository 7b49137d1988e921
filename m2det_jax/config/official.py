"""Which configs describe the network of the official code, and the config of its checkpoints."""

from ml_collections import ConfigDict

from m2det_jax.config.experiment_checks import load_checked
from m2det_jax.config.experiments import flatten, load_experiment
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


def official_config(experiment: str, fields: dict) -> ConfigDict:
    """Returns an experiment's config with the network that an official checkpoint holds.

    Args:
      experiment: a shipped one or a file, of the official form.
      fields: of `weights.official.official_fields`.

    Raises:
      ValueError: the experiment is not of the official form; lists the keys.
    """
    config = load_checked(experiment)
    for key, value in fields.items():
        if key in config.model:
            config.model[key] = value
    config.model.backbone_official_stride = fields["backbone"].startswith("resnet")
    raise_if_not_official(config, f"experiment {experiment}")
    return config


def raise_if_not_official(config: ConfigDict, what: str) -> None:
    """Checks that the official code has a network that computes the same as the config's.

    Raises:
      ValueError: listing all keys that differ, with the value that they would have.
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


def _nearest_size(config: ConfigDict) -> int:
    """The official size whose anchors `ops.ssd_sizes` would take."""
    side = min(config.data.image_size)
    return min(OFFICIAL_SIZES, key=lambda size: abs(size - side))
