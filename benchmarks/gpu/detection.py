"""Time of detection on a GPU: network, decoding with its candidates, NMS and soft-NMS apart."""

import dataclasses
import statistics

import jax

from benchmarks import experiment, timing
from benchmarks.gpu.report import Report
from benchmarks.gpu.setup import Setup
from benchmarks.nms import raw_outputs

CLASSES, HIGH = 80, 500
KINDS = ("hard", "soft_linear", "soft_gaussian")


def run(setup: Setup, report: Report) -> None:
    """Measures batches of 1 and 32 images."""
    rounds = 2 if setup.reduced else 20
    for batch in (2,) if setup.reduced else (1, 32):
        report.add(f"batch {batch}", **times(setup, batch, rounds))


def times(setup: Setup, batch: int, rounds: int) -> dict[str, float]:
    """Returns milliseconds of each stage for a batch, the median of the rounds."""
    classes, high = (4, 20) if setup.reduced else (CLASSES, HIGH)
    config = setup.config("vgg512", "model.dtype=bfloat16")
    detector, variables = experiment.detector_with_variables(config, classes)
    images = jax.device_put(experiment.random_images(detector, batch))
    one = raw_outputs(len(detector.anchors), classes, high)
    outputs = jax.device_put({key: x.repeat(batch, axis=0) for key, x in one.items()})
    forward = jax.jit(experiment.forward_pass(detector))
    works = {"network": lambda: forward(variables, images)}
    for kind in KINDS:
        suppression = dataclasses.replace(detector.suppression, nms=kind)
        own = dataclasses.replace(detector, suppression=suppression)
        choose = jax.jit(own.candidates)
        candidates = choose(outputs)
        suppress = jax.jit(jax.vmap(own.suppression.detections))
        if kind != "soft_gaussian":  # the candidates of both soft kinds are the same
            works[f"decode_{kind}"] = lambda choose=choose: choose(outputs)
        works[f"nms_{kind}"] = lambda f=suppress, c=candidates: f(c)
    samples = timing.take_turns(works, rounds)
    found = {f"{name}_ms": 1e3 * statistics.median(s) for name, s in samples.items()}
    whole = found["network_ms"] + found["decode_hard_ms"] + found["nms_hard_ms"]
    return found | {"images_per_second": 1e3 * batch / whole}
