"""ONNX models of a detector: boxes and scores of all anchors, and a variant with suppression.

jax2onnx converts, in a process of its own: it replaces functions of jax and flax. It asks for an
older Orbax than this package needs, so it is installed without its dependencies (docs/export.md).
"""

import importlib.util
import logging
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import jax
import jax.numpy as jnp

from m2det_jax.detector.detector import Suppression
from m2det_jax.errors import InputError
from m2det_jax.export.programs import boxes_and_scores_of
from m2det_jax.trained import Restored, restore

OPSET = 21
INSTALL = "pip install 'm2det_jax[onnx]' && pip install --no-deps jax2onnx"


def convert(workdir: pathlib.Path, step: int) -> Any:
    """Converts a checkpoint of a run.

    Returns:
        An onnx.ModelProto: images uint8 [b, H, W, 3] -> boxes [b, A, 4], scores [b, A, C].

    Raises:
        InputError: if a package is missing; says how to install it.
        RuntimeError: if jax2onnx fails.
    """
    missing = [name for name in ("jax2onnx", "onnx", "onnxruntime") if not _is_installed(name)]
    if missing:
        raise InputError(f"--format onnx needs {', '.join(missing)}: {INSTALL}")
    import onnx

    with tempfile.TemporaryDirectory(prefix="m2det-export-") as folder:
        path = pathlib.Path(folder) / "model.onnx"
        arguments = [str(workdir), str(step), str(path)]
        command = [sys.executable, "-m", "m2det_jax.export.onnx_files", *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the conversion by jax2onnx fails: {done.stderr}")
        return onnx.load(path)


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _convert(restored: Restored) -> Any:
    import jax2onnx
    import onnx

    function = boxes_and_scores_of(restored)

    def in_order(images: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = function(images)
        return found["boxes"], found["scores"]

    images: Any = jax.ShapeDtypeStruct(("b", *restored.detector.resize.image_size, 3), jnp.uint8)
    logging.disable(logging.WARNING)  # hundreds of lines on shapes
    model = jax2onnx.to_onnx(in_order, [images], model_name="m2det", opset=OPSET)
    graph = model.graph
    # Shapes inside the graph are partly those of another order of axes; runtimes infer their own.
    del graph.value_info[:]
    _rename(graph, {graph.input[0].name: "images", graph.output[0].name: "boxes",
                    graph.output[1].name: "scores"})  # fmt: skip
    onnx.checker.check_model(model, full_check=True)
    return model


def with_suppression(model: Any, suppression: Suppression) -> Any:
    """Returns a copy of a model that `convert` gives with a NonMaxSuppression node behind it.

    It has one more input, threshold float32 [1], and one more output, selected int64 [n, 3]: image,
    class and anchor of the boxes that stay. Each class is suppressed alone.
    """
    import onnx

    model_with = onnx.ModelProto()
    model_with.CopyFrom(model)
    graph, helper, kinds = model_with.graph, onnx.helper, onnx.TensorProto
    count = suppression.max_per_class or suppression.max_detections
    graph.initializer.extend(
        [
            helper.make_tensor("most_of_a_class", kinds.INT64, [1], [count]),
            helper.make_tensor("iou_threshold", kinds.FLOAT, [1], [suppression.iou_threshold]),
        ]
    )
    graph.node.extend(
        [
            helper.make_node("Transpose", ["scores"], ["scores_by_class"], perm=[0, 2, 1]),
            helper.make_node(
                "NonMaxSuppression",
                ["boxes", "scores_by_class", "most_of_a_class", "iou_threshold", "threshold"],
                ["selected"],
            ),
        ]
    )
    graph.input.append(helper.make_tensor_value_info("threshold", kinds.FLOAT, [1]))
    graph.output.append(helper.make_tensor_value_info("selected", kinds.INT64, ["n", 3]))
    onnx.checker.check_model(model_with)
    return model_with


def _rename(graph: Any, names: dict[str, str]) -> None:
    """Gives values of a graph other names."""
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in (*graph.input, *graph.output):
        value.name = names.get(value.name, value.name)


def main() -> None:
    """Converts what the command line names: workdir, step and the file to write."""
    import onnx

    workdir, step, path = sys.argv[1:]
    onnx.save(_convert(restore(workdir, int(step))), path)


if __name__ == "__main__":
    main()
