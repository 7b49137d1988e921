"""Speed of matching and losses for a batch, and memory of matching one crowded image.

    python -m benchmarks.matching [--rounds 20]

The batch is that of a training step at 320 px: 16 images with 64 objects each, 12,810 anchors, 80
classes. The crowded image has 5,000 boxes and the 32,760 anchors of 512 px. Its memory is what the
compiler reserves for intermediate values, without arguments and results.
"""

import argparse
from collections.abc import Sequence

import jax
import numpy as np

from benchmarks import timing
from benchmarks.experiment import random_objects
from m2det_jax import ops
from m2det_jax.model import feature_map_sizes

NUM_SCALES = 6


def anchors_for(side: int) -> np.ndarray:
    """Returns the anchors [A, 4] of M2Det's six scales for a square input."""
    size = (side, side)
    return ops.ssd_anchors(
        feature_map_sizes(size, NUM_SCALES), size, sizes=ops.ssd_sizes(size, NUM_SCALES)
    )


def measure_batch(*, batch_size: int, objects: int, classes: int, rounds: int) -> None:
    """Prints the time of matching alone, with the losses, and with their gradient."""
    anchors = anchors_for(320)
    truth = jax.device_put(random_objects((320, 320), classes, batch_size, objects))
    rng = np.random.default_rng(0)
    shape = batch_size, len(anchors)
    logits = jax.device_put(rng.normal(-4, 1, (*shape, classes)).astype(np.float32))
    deltas = jax.device_put(rng.normal(0, 1, (*shape, 4)).astype(np.float32))

    def assign(truth: dict[str, jax.Array]) -> ops.Targets:
        def one_image(boxes: jax.Array, labels: jax.Array, mask: jax.Array) -> ops.Targets:
            return ops.assign_targets(anchors, boxes, labels, mask)

        return jax.vmap(one_image)(truth["boxes"], truth["labels"], truth["mask"])

    def loss(outputs: tuple[jax.Array, jax.Array], truth: dict[str, jax.Array]) -> jax.Array:
        return ops.detection_losses(*outputs, assign(truth), beta=0.11)["loss"]

    assign_jit, loss_jit = jax.jit(assign), jax.jit(loss)
    grad_jit = jax.jit(jax.value_and_grad(loss))
    works = {
        "matching": lambda: assign_jit(truth),
        "matching + losses": lambda: loss_jit((logits, deltas), truth),
        "matching + losses + gradient": lambda: grad_jit((logits, deltas), truth),
    }
    print(f"batch of {batch_size}: {objects} objects, {len(anchors)} anchors, {classes} classes")
    for name, samples in timing.take_turns(works, rounds).items():
        timing.print_figure(name, timing.spread(samples))


def measure_crowd(*, objects: int, rounds: int) -> None:
    """Prints time and memory of matching one image with many objects."""
    anchors = anchors_for(512)
    truth = random_objects((512, 512), 80, 1, objects)
    arguments = jax.device_put([truth[name][0] for name in ("boxes", "labels", "mask")])
    assign = jax.jit(lambda *image: ops.assign_targets(anchors, *image))
    compiled = assign.lower(*arguments).compile()
    samples = timing.take_turns({"crowd": lambda: compiled(*arguments)}, rounds)["crowd"]
    memory = compiled.memory_analysis()
    print(f"one image: {objects} objects, {len(anchors)} anchors")
    timing.print_figure("matching", timing.spread(samples))
    if memory is None:  # some platforms do not report it
        timing.print_figure("temporary memory", "not reported on this platform")
    else:
        timing.print_figure("temporary memory", f"{memory.temp_size_in_bytes / 1e6:.1f} MB")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--objects", type=int, default=64, help="in each image of the batch")
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--crowd", type=int, default=5000, help="objects in the crowded image")
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args(argv)
    timing.print_machine()
    measure_batch(
        batch_size=args.batch_size, objects=args.objects, classes=args.classes, rounds=args.rounds
    )
    measure_crowd(objects=args.crowd, rounds=max(1, args.rounds // 5))


if __name__ == "__main__":
    main()
