"""Pretrained backbones for training: from a weights file, or a folder that `convert` wrote."""

import dataclasses
import logging
import math
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from m2det_jax.errors import InputError
from m2det_jax.model import variable_shapes
from m2det_jax.model.backbones import make_backbone
from m2det_jax.run import checkpoint
from m2det_jax.run.outputs import new_folder
from m2det_jax.weights.imagenet import BackboneWeights, read_backbone
from m2det_jax.weights.preprocessing import Preprocessing

log = logging.getLogger("m2det_jax")


@dataclasses.dataclass(frozen=True)
class BackboneSettings:
    """Plain values of config.model and config.data that pretrained weights must fit.

    Attributes:
        weights: a weights file, or a folder that `save` wrote.
        backbone, width, norm: which backbone the network has.
        preprocessing: of the images that it sees.
    """

    weights: str
    backbone: str
    width: float
    norm: bool
    preprocessing: Preprocessing


def load_backbone(settings: BackboneSettings) -> BackboneWeights:
    """Returns a pretrained backbone.

    Raises:
        FileNotFoundError: if there is no such file.
        InputError: if the weights cannot be read, are of another backbone, or need another
            preprocessing than the network has; the message gives the flags to set.
    """
    path = settings.weights
    loaded = read(path)
    _check_kind(loaded, settings)
    if not loaded.preprocessing.agrees_with(settings.preprocessing):
        raise InputError(
            f"{path}: these weights want other images than the config gives; add "
            f"{loaded.preprocessing.flags()} (to train them on such images anyway, convert them "
            "with --mean, --std and --channel_order; docs/weights.md)"
        )
    log.info("backbone weights: %s, all tensors loaded", path)
    return loaded


def read(path: str | pathlib.Path) -> BackboneWeights:
    """Returns the backbone in a weights file, or in a folder that `save` wrote."""
    return _read_folder(pathlib.Path(path)) if pathlib.Path(path).is_dir() else read_backbone(path)


def save(folder: str | pathlib.Path, weights: BackboneWeights, origin: str) -> None:
    """Writes a backbone as a new folder with an Orbax checkpoint.

    Raises:
        InputError: if the folder exists already.
    """
    meta = {
        "backbone": {key: getattr(weights, key) for key in ("backbone", "width", "norm")},
        "absent": list(weights.absent),
        "preprocessing": dataclasses.asdict(weights.preprocessing),
        "converted_from": origin,
    }
    with new_folder(folder) as partial, checkpoint.open_manager(partial) as manager:
        model = ocp.args.StandardSave(weights.variables)
        manager.save(0, args=ocp.args.Composite(model=model, meta=ocp.args.JsonSave(meta)))
        manager.wait_until_finished()


def _read_folder(folder: pathlib.Path) -> BackboneWeights:
    if not (folder / "checkpoints").is_dir():
        raise InputError(
            f"{folder}: no backbone there; give a weights file, or a folder that "
            "`m2det_jax.convert backbone` wrote"
        )
    with checkpoint.open_manager(folder, read_only=True) as manager:
        try:
            args = ocp.args.Composite(meta=ocp.args.JsonRestore())
            meta = manager.restore(0, args=args).meta
            kind, preprocessing = meta["backbone"], meta["preprocessing"]
            absent = tuple(meta.get("absent", ()))  # not in folders of earlier versions
            abstract = _abstract(**kind, absent=absent)
            args = ocp.args.Composite(model=ocp.args.StandardRestore(abstract))
            variables = jax.device_get(manager.restore(0, args=args).model)
        except Exception as error:  # Orbax raises many kinds for a damaged or other checkpoint
            raise InputError(
                f"{folder}: no backbone there, or it is damaged ({type(error).__name__}); weights "
                "of a whole network go into --config.init_from"
            ) from error
    preprocessing = {k: tuple(v) if isinstance(v, list) else v for k, v in preprocessing.items()}
    return BackboneWeights(
        **kind, variables={"batch_stats": {}} | variables,
        preprocessing=Preprocessing(**preprocessing), absent=absent,
    )  # fmt: skip


def _abstract(backbone: str, width: float, norm: bool, absent: tuple[str, ...]) -> dict:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = variable_shapes(make_backbone(backbone, width=width, norm=norm), (64, 64))
    shapes = {
        collection: {name: tree for name, tree in modules.items() if name not in absent}
        for collection, modules in shapes.items()
    }
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)


def _check_kind(loaded: BackboneWeights, settings: BackboneSettings) -> None:
    pairs: dict[str, tuple[Any, Any]] = {
        "config.model.backbone": (settings.backbone, loaded.backbone),
        "config.model.backbone_width": (settings.width, loaded.width),
    }
    if loaded.backbone.startswith("vgg"):  # other backbones always have BatchNorm
        pairs["config.model.backbone_norm"] = (settings.norm, loaded.norm)
    wrong = {key: pair for key, pair in pairs.items() if not _same(*pair)}
    if wrong:
        asked = ", ".join(f"{key}={asked}" for key, (asked, _) in wrong.items())
        flags = " ".join(f"--{key}={has}" for key, (_, has) in wrong.items())
        raise InputError(
            f"{settings.weights}: the weights are not for {asked}; set {flags}, or give others"
        )


def _same(asked: Any, has: Any) -> bool:
    """Says whether two values of a config agree; a width that comes from tensors is rounded."""
    return math.isclose(asked, has, rel_tol=1e-6) if isinstance(has, float) else asked == has
