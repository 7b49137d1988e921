"""Export of a run's detector for use without this package, compared with the native detector."""

import dataclasses
import functools
import json
import logging
import pathlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

import jax
import jax.numpy as jnp

from m2det_jax import runtime
from m2det_jax.build import make_views
from m2det_jax.data import DetectionIndex
from m2det_jax.data.images import IMAGE_SUFFIXES
from m2det_jax.datasets.evaluation import DataChoice, read_data
from m2det_jax.errors import InputError
from m2det_jax.export.compare import Artefact, Pictures, compare, summary
from m2det_jax.export.description import describe, onnx_facts, stablehlo_facts
from m2det_jax.export.programs import detection_of, export_stablehlo, network_of
from m2det_jax.inference.exported import (
    FOLDER,
    NAMES,
    ONNX_NMS,
    description_path,
)
from m2det_jax.pages.markup import printable
from m2det_jax.run.outputs import Outputs, refuse_checkpoints
from m2det_jax.trained import Restored, restore

log = logging.getLogger("m2det_jax")

EXAMPLE = "detect.py"
CHECKED = 50  # pictures that are compared one by one, at most


def export(
    workdir: pathlib.Path,
    *,
    format: str,
    checkpoint: str = "latest",
    output: str = "",
    check_images: Sequence[str] = (),
    check_python: str = "",
    weights_license: str = "",
    overrides: Sequence[str] = (),
    trust: bool = False,
    document: TextIO | None = None,
) -> dict[str, Any]:
    """Writes an artefact of a run's detector, its description and an example; compares it.

    Args:
        workdir: the --workdir of the training run.
        format: "stablehlo" or "onnx".
        checkpoint: "latest", "best" (by validation AP), or a step.
        output: folder of the files; "": WORKDIR/export.
        check_images: files and folders of pictures to compare on, the first CHECKED of them; ():
            pictures of the validation set.
        check_python: interpreter that runs the artefact for the comparison; "": this one.
        weights_license: licence of the weights, for the description.
        overrides: changes of config.eval, such as "eval.nms=soft_linear".
        trust: allow the import of a Python module that the run names as config.data.format.
        document: a file that also receives the comparison and the names of the files, as JSON.

    Returns:
        The comparison of each artefact by its name, see `compare.compare`.

    Raises:
        InputError: if the checkpoint or an argument is not valid, a file of the user would be
            replaced, or the artefact differs from the native detector; it is kept then.
    """
    restored = restore(workdir, checkpoint, overrides)
    outputs = Outputs(output or workdir / FOLDER, "export")
    refuse_checkpoints(outputs.folder, workdir)
    artefacts = [NAMES[format]] + [ONNX_NMS] * (format == "onnx")
    names = [f"{name}{end}" for name in artefacts for end in ("", ".json", ".comparison.json")]
    names.append(EXAMPLE)
    outputs.claim(names)
    pictures = _pictures(restored, workdir, check_images, trust)
    outputs.claim(names, pictures.checked)
    if make_views(restored.config):
        log.warning("config.eval.test_sizes and test_flip are left out: an artefact has one view")
    log.info("exporting step %d", restored.step)
    example = pathlib.Path(__file__).with_name(EXAMPLE).read_text(encoding="utf-8")
    outputs.write(EXAMPLE, example)
    results = {}
    with tempfile.TemporaryDirectory(prefix="m2det-export-") as folder:
        for artefact, native in _write(
            format, workdir, outputs, restored, weights_license, pathlib.Path(folder)
        ):
            result = compare(artefact, native, pictures, check_python or sys.executable)
            name = artefact.path.name
            outputs.write(f"{name}.comparison.json", json.dumps(result, indent=2) + "\n")
            print(summary(result))
            results[name] = result
    print(printable(f"written: {outputs.folder}: {', '.join(names)}"))
    if document:
        files = [str(outputs.folder / name) for name in names]
        runtime.write_json(document, {"comparisons": list(results.values()), "files": files})
    for name, result in results.items():
        if not result["within"]:
            raise InputError(
                f"{outputs.folder / name}: it differs from the native detector by more than it "
                f"should (see {name}.comparison.json); do not use it, and report this"
            )
    return results


def _pictures(
    restored: Restored, workdir: pathlib.Path, check_images: Sequence[str], trust: bool
) -> Pictures:
    """Returns the pictures to compare on: those that are given, and the validation set."""
    index: DetectionIndex | None = None
    try:
        index, _ = read_data(DataChoice(), restored, workdir, trust=trust)
    except InputError as error:
        if not check_images:
            raise InputError(f"{error}; or give pictures by --check_images") from None
        log.warning("AP is not compared: %s", error)
    if check_images:
        return Pictures(_files(check_images), index)
    assert index is not None
    paths = index.image_paths
    count = min(CHECKED, len(paths))
    return Pictures([paths[i * len(paths) // count] for i in range(count)], index)


def _files(given: Sequence[str]) -> list[str]:
    """Returns the first pictures of files and folders, sorted in each folder.

    Raises:
        InputError: if there is none.
    """
    found: list[str] = []
    for path in map(pathlib.Path, given):
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        found += [
            str(file)
            for file in inside
            if file == path or file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
        ]
    if not found:
        raise InputError(f"--check_images {' '.join(map(str, given))}: no pictures there")
    return list(dict.fromkeys(found))[:CHECKED]


def _write(
    format: str,
    workdir: pathlib.Path,
    outputs: Outputs,
    restored: Restored,
    weights_license: str,
    folder: pathlib.Path,
) -> Iterator[tuple[Artefact, Restored]]:
    """Writes artefacts and their descriptions; yields each with the detector to compare it with.

    Args:
        folder: for what only the comparison needs.
    """
    example, described = outputs.folder / EXAMPLE, functools.partial(describe, restored)
    if format == "stablehlo":
        name = NAMES[format]
        content, facts = _stablehlo(restored)
        description = described(content, weights_license, facts)
        _write_described(outputs, name, content, description)
        network = write_network(folder, restored, description)
        raw = ("class_logits", "box_deltas")
        yield Artefact(outputs.folder / name, example, network, raw), restored
        return
    from m2det_jax.export import onnx_files

    log.info("converting by jax2onnx, in a process of its own")
    model, raw = onnx_files.convert(workdir, restored.step), ("boxes", "scores")
    content = model.SerializeToString()
    facts = onnx_facts(restored, onnx_files.OPSET, inside=False)
    _write_described(outputs, NAMES[format], content, described(content, weights_license, facts))
    plain = outputs.folder / NAMES[format]
    yield Artefact(plain, example, None, raw), restored
    hard = hard_suppression(restored)
    how = hard.detector.suppression
    content = onnx_files.with_suppression(model, how).SerializeToString()
    facts = onnx_facts(restored, onnx_files.OPSET, inside=True)
    _write_described(outputs, ONNX_NMS, content, describe(hard, content, weights_license, facts))
    yield Artefact(outputs.folder / ONNX_NMS, example, plain, raw), hard


def hard_suppression(restored: Restored) -> Restored:
    """Returns the same with the suppression that an ONNX node can do: hard, each class alone."""
    how = dataclasses.replace(restored.detector.suppression, nms="hard", class_agnostic=False)
    detector = dataclasses.replace(restored.detector, suppression=how)
    return dataclasses.replace(restored, detector=detector)


def _write_described(
    outputs: Outputs, name: str, content: bytes, description: dict[str, Any]
) -> None:
    outputs.write(name, content)
    outputs.write(f"{name}.json", json.dumps(description, indent=2) + "\n")


def _stablehlo(restored: Restored) -> tuple[bytes, dict[str, Any]]:
    """Returns the artefact and what its description says of this format."""
    threshold = jax.ShapeDtypeStruct((), jnp.float32)
    size = restored.detector.resize.image_size
    exported = export_stablehlo(detection_of(restored), size, threshold)
    return bytes(exported.serialize()), stablehlo_facts(restored, exported)


def write_network(
    folder: pathlib.Path, restored: Restored, description: dict[str, Any]
) -> pathlib.Path:
    """Writes the network alone, for the comparison; returns its path."""
    exported = export_stablehlo(network_of(restored), restored.detector.resize.image_size)
    path = folder / "network.stablehlo"
    path.write_bytes(exported.serialize())
    description_path(path).write_text(json.dumps(description), encoding="utf-8")
    return path
