"""Weights of other programs, converted in and out: checkpoints of M2Det, and backbones."""

import dataclasses
import logging
import pathlib
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from safetensors.numpy import load_file, save_file

from m2det_jax.build import build_detector
from m2det_jax.config.dotted import to_dict
from m2det_jax.config.official import official_config, raise_if_not_official
from m2det_jax.data import read_classes
from m2det_jax.detector.detector import Detector
from m2det_jax.errors import InputError
from m2det_jax.model import init_variables
from m2det_jax.run.checkpoint import make_meta, open_manager
from m2det_jax.run.outputs import Outputs, new_folder, refuse_existing
from m2det_jax.trained import restore
from m2det_jax.training.resume import write_config
from m2det_jax.weights import pretrained
from m2det_jax.weights.files import read_tensors, write_tensors
from m2det_jax.weights.official import (
    official_fields,
    official_to_variables,
    rest_of,
    unused_names,
    variables_to_official,
)
from m2det_jax.weights.tensors import to_torch

log = logging.getLogger("m2det_jax")

# Tensors of an official state dict that we have no use for, kept in the workdir for the way back.
REST_FILE = "official_rest.safetensors"

# Classes of the data sets that the official checkpoints were trained on, in their order.
COCO = tuple(
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,"
    "stop sign,parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,"
    "backpack,umbrella,handbag,tie,suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,"
    "baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,fork,knife,spoon,bowl,"
    "banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,"
    "potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,"
    "oven,toaster,sink,refrigerator,book,clock,vase,scissors,teddy bear,hair drier,"
    "toothbrush".split(",")
)
VOC = tuple(
    "aeroplane,bicycle,bird,boat,bottle,bus,car,cat,chair,cow,diningtable,dog,horse,motorbike,"
    "person,pottedplant,sheep,sofa,train,tvmonitor".split(",")
)
KNOWN = {"coco": COCO, "voc": VOC}
# COCO's category ids have gaps where classes were taken out.
_GAPS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
COCO_IDS = tuple(number for number in range(1, 91) if number not in _GAPS)


def from_official(
    file: pathlib.Path,
    *,
    workdir: str,
    classes: str,
    size: int | None = None,
    config: str | None = None,
    new_class_heads: bool = False,
) -> None:
    """Converts an official M2Det checkpoint to a workdir for evaluate, predict and init_from.

    Args:
        classes: "coco", "voc", or a CSV file of class names.
        size, config: the input size, which names a shipped experiment, or an experiment.
        new_class_heads: with other classes than the file's give the class heads random weights.

    Raises:
        ValueError: if file, classes and config do not fit; nothing is written.
        FileNotFoundError: if a file is missing; nothing is written.
    """
    tensors = read_tensors(file)
    fields = official_fields(tensors, str(file))
    experiment = config or f"official_vgg{size}"
    settings = official_config(experiment, fields)
    class_names = KNOWN[classes] if classes in KNOWN else read_classes(classes)
    detector = build_detector(settings, class_names)
    _check_anchors(file, fields, detector, experiment)
    outputs = detector.model.num_class_outputs
    if fields["num_class_outputs"] != outputs:
        if not new_class_heads:
            raise InputError(
                f"{file}: made for {fields['num_class_outputs'] - 1} classes and background, but "
                f"--classes {classes} has {len(class_names)}; give the file's own classes, or "
                "--new_class_heads to start others from random class heads"
            )
        tensors = _with_new_class_heads(tensors, detector, settings.seed)
    origin = f"{file}, read as {_in_words(fields)}"
    variables = official_to_variables(tensors, detector.model, origin)
    unused = [name for name in unused_names(detector.model) if name in tensors]
    log.info("%s: %s; not used, the ImageNet classifier: %s", file, _in_words(fields),
             ", ".join(unused) or "(none there)")  # fmt: skip
    class_ids = COCO_IDS if classes == "coco" else ()
    meta = make_meta(to_dict(settings), class_names, {}, class_ids=class_ids)
    meta["converted_from"] = file.name
    with new_folder(workdir) as partial:
        with open_manager(partial) as manager:
            model = ocp.args.StandardSave(variables)
            manager.save(0, args=ocp.args.Composite(model=model, meta=ocp.args.JsonSave(meta)))
        save_file(rest_of(tensors, detector.model), partial / REST_FILE)
        write_config(Outputs(partial, "convert"), settings)
    print(f"written: {workdir}; try `python -m m2det_jax.predict --workdir {workdir} PHOTO`")


def from_backbone(
    file: pathlib.Path,
    *,
    output: str,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    channel_order: str | None = None,
) -> None:
    """Converts a backbone of torchvision, timm or SSD to a folder with its preprocessing.

    Args:
        mean, std, channel_order: in place of the preprocessing that is usual for such a file.
    """
    weights = pretrained.read(file)
    asked = {"mean": mean, "std": std, "channel_order": channel_order}
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in asked.items()
        if value is not None
    }
    preprocessing = dataclasses.replace(weights.preprocessing, **given)
    weights = dataclasses.replace(weights, preprocessing=preprocessing)
    pretrained.save(output, weights, file.name)
    print(f"written: {output}; train with --config.model.backbone={weights.backbone} "
          f"--config.model.backbone_weights={output} {preprocessing.flags()}")  # fmt: skip


def to_official(file: pathlib.Path, *, workdir: str, checkpoint: str = "latest") -> None:
    """Writes a checkpoint of the official form as a state dict for the official PyTorch code.

    Raises:
        InputError: if the config is not of the official form; names all keys that differ.
    """
    refuse_existing(file)
    restored = restore(workdir, checkpoint)
    raise_if_not_official(restored.config, workdir)
    kept = pathlib.Path(workdir) / REST_FILE
    rest = load_file(kept) if kept.is_file() else {}
    model = restored.detector.model
    state_dict = variables_to_official(restored.variables, model, rest)
    zeros = [name for name in unused_names(model) if name not in rest]
    if zeros:
        log.info("zeros, for the official network never uses them: %s", ", ".join(zeros))
    height, width = restored.detector.resize.image_size
    metadata = {"classes": "\n".join(restored.class_names), "input_size": f"{height} x {width}"}
    refuse_existing(file)  # made meanwhile
    write_tensors(file, state_dict, metadata)
    print(f"written: {file}, {len(state_dict)} tensors")


def _check_anchors(
    file: pathlib.Path, fields: dict[str, Any], detector: Detector, experiment: str
) -> None:
    ours, theirs = detector.model.anchors_per_cell, fields["anchors_per_cell"]
    if ours != theirs:
        raise InputError(
            f"{file}: has {theirs} anchors a cell, {experiment} has {ours}; give --config with an "
            "experiment that has its anchors"
        )


def _with_new_class_heads(
    tensors: dict[str, np.ndarray], detector: Detector, seed: int
) -> dict[str, np.ndarray]:
    """Returns the state dict with random class heads for the classes of the detector."""
    params = init_variables(detector.model, detector.resize.image_size, seed)["params"]
    fresh = {
        f"conf.{scale - 1}.{theirs}": to_torch(params["class_head"][f"scale_{scale}"][ours])
        for scale in range(1, detector.model.num_scales + 1)
        for ours, theirs in (("kernel", "weight"), ("bias", "bias"))
    }
    log.info("not loaded, random in their place (other classes): %s", ", ".join(fresh))
    return tensors | fresh


def _in_words(fields: dict[str, Any]) -> str:
    sfam = "with SFAM" if fields["sfam"] else "without SFAM"
    return (
        f"official M2Det, {fields['backbone']}, {fields['num_levels']} levels, "
        f"{fields['num_scales']} scales, {sfam}, {fields['num_class_outputs'] - 1} classes"
    )
