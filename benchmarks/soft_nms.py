"""Rounds and kernels of soft-NMS: one pick a round by the official list, against several by score.

    python -m benchmarks.soft_nms [--classes 80] [--candidates 200] [--batch_size 1]

Both ways are compiled, and the kernels in a round of their loops are counted in the compiled text
(every fusion is one; a GPU fuses more, so that it is the ratio that counts). Then both ways take
the boxes of drawn scenes, and the rounds that they need follow from the picks; that they give the
same bits is checked. Nothing is timed.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from benchmarks import programs, timing
from m2det_jax.ops.soft_nms import (
    PICKS_PER_ROUND,
    _decay,
    _pick,
    _pick_by_list,
    _pick_by_score,
)

THRESHOLD, FLOOR, NUM_SCENES = 0.05, 0.001, 8


class Scene(NamedTuple):
    """What an image shows: of how many classes there are objects, and how many of each."""

    classes: int
    objects: int


SCENES = {"one object": Scene(1, 1), "a room": Scene(6, 3), "a crowd": Scene(2, 60)}


def candidates(rng: np.random.Generator, scene: Scene, classes: int, count: int):
    """Returns boxes [G, N, 4] and scores [G, N] as a trained detector gives them.

    Around each object lie anchors that are moved and stretched; the better one fits, the higher its
    score. The rest of a class is background: boxes anywhere with scores near 0.
    """
    corner = rng.uniform(0, 480, (classes, count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(8, 200, (classes, count, 2))], -1)
    scores = rng.beta(1, 200, (classes, count))
    for label in range(min(scene.classes, classes)):
        around = min(count, 40 * scene.objects)
        size = rng.uniform(20, 160, (scene.objects, 2))
        start = rng.uniform(0, 512 - size)
        which = np.arange(around) % scene.objects
        off = rng.normal(0, 0.15, (around, 4))
        moved = start[which] + off[:, :2] * size[which]
        stretched = size[which] * np.exp(off[:, 2:])
        boxes[label, :around] = np.concatenate([moved, moved + stretched], -1)
        confidence = rng.uniform(0.3, 1, scene.objects)[which]
        fit = np.exp(-4 * np.abs(off).sum(axis=1)) * rng.uniform(0.8, 1, around)
        scores[label, :around] = confidence * fit
    return boxes.astype(np.float32), scores.astype(np.float32)


def compiled(pick: Callable, method: str, shape: tuple[int, int, int]) -> jax.stages.Compiled:
    """Compiles one way for batches [B, G, N]."""

    def picks(boxes, scores):
        def of_image(boxes, scores):
            valid = (scores > THRESHOLD) & (scores >= FLOOR)
            return pick(boxes, scores, valid, _decay(method, 0.3, 0.5), FLOOR, shape[2])

        return jax.vmap(of_image)(boxes, scores)

    boxes = jax.ShapeDtypeStruct((*shape, 4), np.float32)
    return jax.jit(picks).lower(boxes, jax.ShapeDtypeStruct(shape, np.float32)).compile()


def compare(method: str, classes: int, count: int, batch_size: int) -> None:
    """Prints kernels a round, and of each kind of scene the rounds and kernels of both ways."""
    shape = (batch_size, classes, count)
    ways = {p: compiled(p, method, shape) for p in (_pick_by_list, _pick_by_score, _pick)}
    kernels = {
        pick: sum(loop.body + loop.condition for loop in programs.loops(program.as_text()))
        for pick, program in ways.items()
        if pick is not _pick
    }
    for name, pick, picks in (
        ("list", _pick_by_list, 1),
        ("score", _pick_by_score, PICKS_PER_ROUND),
    ):
        timing.print_figure(f"{method}, by {name}", f"{kernels[pick]} kernels for {picks} pick(s)")
    for name, scene in SCENES.items():
        rng = np.random.default_rng(0)
        most, ties = [], []
        for _ in range(NUM_SCENES):
            drawn = [candidates(rng, scene, classes, count) for _ in range(batch_size)]
            boxes, scores = (np.stack(x) for x in zip(*drawn, strict=True))
            by_list, picks = ways[_pick_by_list](boxes, scores), ways[_pick](boxes, scores)
            for old, new in zip(by_list, picks, strict=True):
                np.testing.assert_array_equal(old, new)
            most.append(int(np.asarray(picks.valid).sum(axis=2).max()))
            ties.append(bool(np.asarray(ways[_pick_by_score](boxes, scores)[1]).any()))
        by_list, again = np.mean(most), np.mean(np.multiply(most, ties))
        by_score = np.mean(-(-np.array(most) // PICKS_PER_ROUND))
        old = by_list * kernels[_pick_by_list]
        new = by_score * kernels[_pick_by_score] + again * kernels[_pick_by_list]
        timing.print_figure(
            f"  {name}",
            f"rounds {by_list:.1f} -> {by_score + again:.1f}, kernels {old:,.0f} -> {new:,.0f}, "
            f"ties in {sum(ties)} of {NUM_SCENES}",
        )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--candidates", type=int, default=200, help="boxes of each class")
    parser.add_argument("--batch_size", type=int, default=1)
    args = parser.parse_args(argv)
    timing.print_machine()
    for method in ("linear", "gaussian"):
        compare(method, args.classes, args.candidates, args.batch_size)


if __name__ == "__main__":
    main()
