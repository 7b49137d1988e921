"""Agreement of a GPU with the CPU: operations, the model, official outputs, and the test suites.

Errors are the largest difference over the standard deviation of what the CPU gives.
"""

import json
import math
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Callable

import jax
import numpy as np

from benchmarks import experiment
from benchmarks.gpu.report import Report
from benchmarks.gpu.setup import REPOSITORY, Setup
from m2det_jax import ops
from m2det_jax.model import M2Det, official_form
from m2det_jax.weights.official import official_fields, official_to_variables

# float32 without TF32: sums in another order. What is exact on both must be equal.
TOLERANCES = {"exact": 0.0, "operations": 1e-5, "network": 1e-3}
# Names of jax.default_matmul_precision. Convolutions follow it, too.
PRECISIONS = {"float32": "highest", "TF32": "tensorfloat32"}
CASES = ("vgg16_320_sfam_c21", "vgg16_320_nosfam_c21", "resnet50_320_sfam_c21")


def error_of(found, expected) -> float:
    """Returns the largest difference of two trees over the deviation of each expected array."""
    worst = 0.0
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        difference = np.abs(a - b).max() if a.size else 0.0
        worst = max(worst, float(difference / max(b.std(), 1e-12) if difference else 0.0))
    return worst


def works(seed: int = 0) -> dict[str, tuple[str, Callable, tuple]]:
    """Returns operations by name: (kind of tolerance, function, arguments)."""
    rng = np.random.default_rng(seed)
    anchors = ops.ssd_anchors([(16, 16), (8, 8)], (128, 128), sizes=(20.0, 50.0, 90.0))
    corner = rng.uniform(0, 90, (12, 2)).astype(np.float32)
    boxes = np.concatenate([corner, corner + rng.uniform(8, 60, (12, 2))], 1).astype(np.float32)
    labels, mask = rng.integers(0, 4, 12), np.arange(12) < 9
    deltas = rng.normal(0, 1, (len(anchors), 4)).astype(np.float32)
    scores = rng.uniform(0, 1, (len(anchors), 4)).astype(np.float32) ** 4
    targets = ops.assign_targets(
        anchors, boxes, labels, mask, positive_threshold=0.5, negative_threshold=0.4
    )
    return {
        "iou": ("operations", ops.iou, (anchors, boxes)),
        "giou": ("operations", ops.giou, (anchors, boxes)),
        "decode": ("operations", ops.decode, (deltas, anchors)),
        "match": ("exact", lambda *args: ops.match(*args).positive, (anchors, boxes, mask)),
        "nms": ("exact", lambda b, s: ops.multiclass_nms(b, s).labels, (anchors, scores)),
        "soft_nms": ("exact", lambda b, s: ops.multiclass_soft_nms(b, s).labels, (anchors, scores)),
        "losses": ("operations", lambda s, d: ops.detection_losses(
            s[None] * 8 - 4, d[None], jax.tree.map(lambda x: x[None], targets)), (scores, deltas)),
    }  # fmt: skip


def on_both(function: Callable, args: tuple) -> float:
    """Returns the error of the first device against the CPU."""
    results = []
    for device in (jax.devices()[0], jax.devices("cpu")[0]):
        with jax.default_device(device):
            results.append(jax.device_get(jax.jit(function)(*jax.device_put(args, device))))
    return error_of(*results)


def compare_operations(report: Report) -> None:
    """Reports each operation, and fails where one is beyond its tolerance."""
    for name, (kind, function, args) in works().items():
        with jax.default_matmul_precision("highest"):
            error = on_both(function, args)
        note(report, name, error, TOLERANCES[kind])


def note(report: Report, name: str, error: float, tolerance: float) -> None:
    """Reports an error beside its tolerance."""
    report.add(name, error=error, tolerance=tolerance, good=error <= tolerance)


def compare_model(setup: Setup, report: Report) -> None:
    """Reports outputs and gradients of the quickstart network on both, and in lower precision."""
    config = setup.config("quickstart")
    detector, variables = experiment.detector_with_variables(config, 5)
    images = experiment.random_images(detector, 2)

    def outputs_and_gradients(variables, images):
        def loss(params):
            outputs, _ = detector.model.apply(
                variables | {"params": params},
                detector.normalize(images), train=True, mutable=["batch_stats"],
            )  # fmt: skip
            return sum((x**2).mean() for x in jax.tree.leaves(outputs)), outputs

        return jax.grad(loss, has_aux=True)(variables["params"])

    variables = jax.device_get(variables)
    with jax.default_matmul_precision("highest"):
        error = on_both(outputs_and_gradients, (variables, images))
    note(report, "quickstart: outputs and gradients", error, 30 * TOLERANCES["network"])


def reference_tensor(key: str, shape: list[int]) -> np.ndarray:
    """Draws a tensor by the rule of the reference outputs; reference/README.md has it."""
    seed_key = re.sub(r"^leach\.\d+\.", "leach.0.", key)
    seed_key = re.sub(r"^sfam_module\.(fc[12])\.\d+\.", r"sfam_module.\1.0.", seed_key)
    rng = np.random.default_rng(zlib.crc32(seed_key.encode()))
    if key.endswith("num_batches_tracked"):
        return np.zeros((), np.int64)
    normal = rng.standard_normal(shape, np.float32)
    if key.endswith("running_var"):
        return 1 + 0.1 * np.abs(normal)
    if key.endswith(("running_mean", "bias")):
        return 0.1 * normal
    if len(shape) == 1:
        return 1 + 0.1 * normal
    gain = 2 if key.startswith("base.") and "layer" not in key else 1
    return normal * np.float32(math.sqrt(gain / np.prod(shape[1:])))


def compare_official(setup: Setup, name: str, report: Report) -> None:
    """Reports the errors against the official code's outputs at full size."""
    folder = setup.inputs / "reference"
    case = json.loads((folder / "official_state_dicts.json").read_text())[name]
    reference = np.load(folder / "official_forward.npz")
    weights = {key: reference_tensor(key, shape) for key, shape in case["state_dict"].items()}
    stride = case["backbone"].startswith("resnet")
    fields = official_form() | official_fields(weights, name) | {"backbone_official_stride": stride}
    variables = jax.device_put(official_to_variables(weights, M2Det(**fields)))
    rng = np.random.default_rng(case["image_seed"])
    image = rng.standard_normal((1, 3, 320, 320), np.float32).transpose(0, 2, 3, 1)
    expected = [reference[f"{name}/{part}"] for part in ("loc", "conf")]
    ways = {key: (value, "float32") for key, value in PRECISIONS.items()}
    for way, (precision, dtype) in (ways | {"bfloat16": ("default", "bfloat16")}).items():
        model = M2Det(**fields | {"dtype": jax.numpy.dtype(dtype)})
        with jax.default_matmul_precision(precision):
            outputs = jax.jit(lambda v, x, m=model: m.apply(v, x, train=False))(variables, image)
        index = reference[f"{name}/index"]
        found = [np.asarray(outputs[k][0], np.float32)[index]
                 for k in ("box_deltas", "class_logits")]  # fmt: skip
        error = error_of(found, expected)
        if way == "float32":
            note(report, f"{name}, {way}", error, 2e-5 * 50)
        else:
            report.add(f"{name}, {way}", error=error)


def run_suites(setup: Setup, report: Report) -> None:
    """Reports how many tests of ops and model pass on the device."""
    environment = os.environ | {
        "JAX_PLATFORMS": "", "XLA_PYTHON_CLIENT_PREALLOCATE": "false", "XLA_FLAGS": "",
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
    }  # fmt: skip
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider"]
    try:
        done = subprocess.run(
            [*command, "tests/ops", "tests/model"], cwd=REPOSITORY, env=environment, text=True,
            capture_output=True, timeout=max(10.0, setup.seconds_left - 5),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        report.add("suites of ops and model", result="time limit")
        return
    lines = (done.stdout or done.stderr).strip().splitlines()
    failed = [line.split()[1] for line in lines if line.startswith("FAILED")]
    result = lines[-1] if lines else "nothing"
    report.add("suites of ops and model", result=result, failed=", ".join(failed) or "none")


def run(setup: Setup, report: Report) -> None:
    """Compares the first device with the CPU."""
    compare_operations(report)
    compare_model(setup, report)
    if setup.reduced:
        return
    for name in CASES:
        compare_official(setup, name, report)
    run_suites(setup, report)
