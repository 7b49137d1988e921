"""Finding of a replay: where in a step a value is first not finite, and of which image.

A step computes in this order: weights, batch, targets of the anchors, forward pass, loss, backward
pass, gradients of the parameters, their norm.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from m2det_jax.replay.layers import Probe, Values


@dataclasses.dataclass(frozen=True)
class Finding:
    """The first value that is not finite.

    Attributes:
        where: "weights", "batch", "targets", "forward", "loss", "backward", "gradient" or "norm".
        layer: path of a module or of a parameter; "": it is not in one.
        kind: class of the module, and "input" or "output" of it; "": no module.
        images: positions in the batch; empty: no image of its own.
        text: all this as a sentence, without the images.
        remedy: what to do.
    """

    where: str
    layer: str
    kind: str
    images: tuple[int, ...]
    text: str
    remedy: str


_LOWER = (
    "lower config.optimizer.learning_rate, lengthen the warm-up (warmup_share or warmup_epochs), "
    "or lower clip_norm"
)
_LOOK = "look at these images and their boxes (m2det check shows them)"


def first_finding(values: Values, bad_weights: Sequence[str], *, since: int = 0) -> Finding | None:
    """Returns the first value of a step that is not finite; None: all are finite.

    Args:
        values: what is inside the step.
        bad_weights: paths of parameters that are not finite before the step.
        since: the step whose update made them so; 0: unknown.
    """
    if bad_weights:
        text = f"the weights {', '.join(bad_weights[:3])} are not finite before the step"
        more = f" (and {len(bad_weights) - 3} others)" if len(bad_weights) > 3 else ""
        update = f"; the update of step {since} made them so" if since else ""
        return Finding("weights", bad_weights[0], "", (), text + more + update, _LOWER)
    for look in (_batch, _forward, _loss, _backward, _gradient):
        if found := look(values):
            return found
    return None


def _batch(values: Values) -> Finding | None:
    for where, finite, what in (
        ("batch", values.boxes, "boxes of the batch are not finite, after augmentation"),
        ("targets", values.targets, "what anchors are to predict is not finite: a box has no area"),
    ):
        if not finite.all():
            return Finding(where, "", "", _positions(~finite), what, _LOOK)
    return None


def _forward(values: Values) -> Finding | None:
    bad = np.flatnonzero(_not_finite(values.forward).any(1))
    if not len(bad):
        return None
    probe, row = values.probes[bad[0]], values.forward[bad[0]]
    return _at(probe, row, "forward", f"forward pass: the {probe.place} of {_name(probe)}")


def _loss(values: Values) -> Finding | None:
    bad = _not_finite(values.losses)
    if not bad.any():
        return None
    text = "the loss is not finite, although all that the network predicts is"
    return Finding("loss", "", "", _positions(bad), text, _LOOK)


def _backward(values: Values) -> Finding | None:
    bad = np.flatnonzero(_not_finite(values.backward).any(1))
    if not len(bad):
        return None
    probe, row = values.probes[bad[-1]], values.backward[bad[-1]]
    where = f"backward pass: the gradient at the {probe.place} of {_name(probe)}"
    return _at(probe, row, "backward", where)


def _gradient(values: Values) -> Finding | None:
    bad = [name for name, value in values.gradients.items() if not np.isfinite(value)]
    if bad:
        text = (
            f"the gradient of {bad[0]} is not finite, although the gradient at every layer is: the "
            "sum over positions and images is too large"
        )
        return Finding("gradient", bad[0], "", (), text, _LOWER)
    if np.isfinite(values.norm):
        return None
    name = max(values.gradients, key=lambda name: values.gradients[name])
    text = (
        f"the norm of the gradient is {values.norm}, although each gradient is finite; the largest "
        f"is that of {name}, {values.gradients[name]:.3g}"
    )
    return Finding("norm", name, "", (), text, _LOWER)


def _at(probe: Probe, row: np.ndarray, where: str, what: str) -> Finding:
    images = _positions(_not_finite(row))
    value = "NaN" if np.isnan(row).any() else "infinite"
    remedy = _LOWER if len(images) == len(row) else f"{_LOOK}, or {_LOWER}"
    return Finding(
        where, probe.module, f"{probe.kind} {probe.place}", images, f"{what} is {value}", remedy
    )


def before(values: Values, finding: Finding, count: int = 6) -> list[tuple[str, float]]:
    """Returns the largest values of the layers before a finding, in the order of computation.

    Args:
        finding: in the forward or the backward pass; any other has none.
        count: of layers.
    """
    if finding.where not in ("forward", "backward"):
        return []
    table = values.forward if finding.where == "forward" else values.backward[::-1]
    probes = values.probes if finding.where == "forward" else values.probes[::-1]
    first = int(np.flatnonzero(_not_finite(table).any(1))[0])
    kept = [
        (f"{_name(probe)}, {probe.place}", float(row.max()))
        for probe, row in zip(probes[:first], table[:first], strict=True)
    ]
    return kept[-count:]


def _name(probe: Probe) -> str:
    return f"{probe.module} ({probe.kind})"


def _positions(bad: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.flatnonzero(bad))


def _not_finite(values: np.ndarray) -> np.ndarray:
    return ~np.isfinite(values)
