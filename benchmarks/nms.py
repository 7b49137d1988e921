"""Time of box decoding and NMS for one image, as a share of the forward pass.

    python -m benchmarks.nms [--config vgg512] [--rounds 10]

From raw outputs to detections as in `m2det_jax.detector`: sigmoid, decode, clip, class-wise NMS of
the 1,000 best (anchor, class) pairs of the image, at most 300 detections. At 512 px there are
32,760 anchors, with 80 classes. The boxes are random; the scores are like those of a trained
detector, see `trained_like_logits`. NMS, forward pass and matrix product are timed in turns.

With `--set eval.nms=soft_linear` (or soft_gaussian) it is soft-NMS of 200 candidates per class. Few
boxes overlap, so nearly all of them are selected one after the other: the most expensive case.
"""

import argparse
import statistics
from collections.abc import Sequence

import jax
import numpy as np

from benchmarks import experiment, timing
from m2det_jax.config import Config

# Per cent of the forward pass, by config.eval.nms.
TARGETS = {"hard": 2.0, "soft_linear": 10.0, "soft_gaussian": 10.0}
PRE_NMS_TOP_K = 1000
MAX_DETECTIONS = 300


def trained_like_logits(
    rng: np.random.Generator, num_anchors: int, num_classes: int, num_high: int
) -> np.ndarray:
    """Returns class logits, float32 [A, C]: almost all have a probability near 0, a few a high one.

    Background logits are normal with mean -6 (probability 0.0025) and standard deviation 1.
    `num_high` random pairs of anchor and class are normal with mean 1 (0.73) and standard deviation
    1.5.

    Args:
        rng: source of random numbers.
        num_anchors: number of anchors, A.
        num_classes: number of classes, C.
        num_high: number of pairs with a high score.
    """
    logits = rng.standard_normal((num_anchors, num_classes), np.float32) - 6
    high = rng.choice(logits.size, num_high, replace=False)
    logits.reshape(-1)[high] = rng.normal(1, 1.5, num_high)
    return logits


def raw_outputs(anchors: int, classes: int, num_high: int) -> dict[str, np.ndarray]:
    """Returns class_logits [1, A, C] and box_deltas [1, A, 4], both random."""
    rng = np.random.default_rng(0)
    logits = trained_like_logits(rng, anchors, classes, num_high)
    return {
        "class_logits": logits[None],
        "box_deltas": rng.standard_normal((1, anchors, 4), np.float32),
    }


def measure(config: Config, *, classes: int, num_high: int, rounds: int) -> None:
    """Prints the time of both and the share in per cent."""
    detector, variables = experiment.detector_with_variables(config, classes)
    images = jax.device_put(experiment.random_images(detector, 1))
    outputs = jax.device_put(raw_outputs(len(detector.anchors), classes, num_high))
    forward = jax.jit(experiment.forward_pass(detector))
    postprocess = jax.jit(detector.postprocess)
    works = {
        "gemm": timing.gemm(timing.default_gemm_size()),
        "forward": lambda: forward(variables, images),
        "nms": lambda: postprocess(outputs),
    }
    samples = timing.take_turns(works, rounds)
    share = 100 * statistics.median(samples["nms"]) / statistics.median(samples["forward"])
    probability = jax.nn.sigmoid(outputs["class_logits"])
    threshold = detector.suppression.score_threshold
    above, kept = (probability > threshold).sum(), postprocess(outputs).valid.sum()
    timing.print_figure("anchors x classes", f"{len(detector.anchors)} x {classes}")
    timing.print_figure(f"scores above {threshold}", f"{above}, kept after suppression: {kept}")
    timing.print_figure("decode + NMS, batch 1", timing.spread(samples["nms"]))
    timing.print_figure("forward, batch 1", timing.spread(samples["forward"]))
    target = TARGETS[config.eval.nms]
    verdict = "met" if share <= target else "MISSED"
    timing.print_figure("decode + NMS / forward", f"{share:.2f} % (at most {target} %: {verdict})")
    flops = experiment.forward_flops(detector, variables, 1)
    timing.print_speed("forward", flops, samples["forward"], samples["gemm"])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    experiment.add_arguments(parser)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--high", type=int, default=500, help="pairs with a high score")
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args(argv)
    overrides = [
        f"eval.pre_nms_top_k={PRE_NMS_TOP_K}", f"eval.max_detections={MAX_DETECTIONS}", *args.set
    ]  # fmt: skip
    config = experiment.load(args.config, overrides)
    timing.print_machine()
    print(f"{args.config}: {config.data.image_size}, {args.classes} classes, {config.model.dtype}")
    measure(config, classes=args.classes, num_high=args.high, rounds=args.rounds)


if __name__ == "__main__":
    main()
