"""Outcome of a replay: as lines of text, and as a JSON document."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, TextIO

from m2det_jax import runtime
from m2det_jax.pages.markup import printable
from m2det_jax.replay.findings import Finding

MOST_NAMED = 5  # images in the text; the document has all


@dataclasses.dataclass(frozen=True)
class Replay:
    """What came of the repeated step.

    Attributes:
        start: step of the checkpoint that the replay began with; 0: the state before step 1.
        what: is not finite, and its value; "": loss and gradient are finite.
        metrics: of the step, by name; "nan", "inf" or "-inf" where they are not finite.
        same: the metrics are those of the run, bit for bit; None: the run noted none.
        finding: the first value that is not finite; None: there is none.
        images: (position in the batch, file name) of the finding's images.
        size: of the batch.
        layers: (name, largest absolute value) of the layers before the finding.
        notes: sentences about what may differ from the run.
    """

    workdir: pathlib.Path
    step: int
    start: int = 0
    what: str = ""
    metrics: Mapping[str, float | str] = dataclasses.field(default_factory=dict)
    same: bool | None = None
    finding: Finding | None = None
    images: tuple[tuple[int, str], ...] = ()
    size: int = 0
    layers: tuple[tuple[str, float], ...] = ()
    notes: tuple[str, ...] = ()


def document_of(found: Replay) -> dict[str, Any]:
    """Returns a replay as JSON values; docs/commands.md lists the keys."""
    finding = found.finding
    first = dataclasses.asdict(finding) if finding else None
    if first:
        first["images"] = [{"position": i, "file_name": name} for i, name in found.images]
    return {
        "workdir": str(found.workdir),
        "step": found.step or None,
        "from_step": found.start,
        "what": found.what or None,
        "metrics": dict(found.metrics),
        "same_as_run": found.same,
        "batch_size": found.size,
        "first": first,
        "layers_before": [{"layer": name, "largest": value} for name, value in found.layers],
        "notes": list(found.notes),
    }


def lines(found: Replay) -> list[str]:
    """Returns a replay as lines of text."""
    if not found.step:
        return [
            f"no step of {found.workdir} is kept as failed: its losses are finite, or it was "
            "trained by an older version; --step N looks into any step"
        ]
    loss = found.metrics["loss"]
    said = [f"step {found.step} of {found.workdir}: {found.what or f'the loss is {loss}, finite'}"]
    begin = f"the checkpoint of step {found.start}" if found.start else "the beginning of the run"
    same = {
        None: "",
        True: "; loss and gradient are those of the run, bit for bit",
        False: "; loss or gradient are not exactly those of the run",
    }[found.same]
    said.append(f"repeated from {begin}, {found.step - found.start} steps{same}")
    if found.finding:
        said += _about(found, found.finding)
    elif found.what:
        said.append(
            "looked into layer by layer every value is finite: the step and this look round "
            "differently, and a value is at the border of what its type can hold"
        )
    elif found.same is False:
        said.append("the failure does not happen again: see the notes, and suspect the device")
    return said + [f"note: {note}" for note in found.notes]


def _about(found: Replay, finding: Finding) -> list[str]:
    said = [f"first value that is not finite: {finding.text}"]
    if found.size and len(found.images) == found.size:
        said.append(f"images: all {found.size} of the batch")
    elif found.images:
        named = [f"{name} (position {i} of {found.size})" for i, name in found.images[:MOST_NAMED]]
        if len(found.images) > MOST_NAMED:
            named.append(f"and {len(found.images) - MOST_NAMED} others")
        said.append(f"image{'s' if len(found.images) > 1 else ''}: {', '.join(named)}")
    if found.layers:
        said.append("largest absolute values of the layers before it:")
        width = max(len(name) for name, _ in found.layers)
        said += [f"  {name:<{width}}  {value:.3g}" for name, value in found.layers]
    return [*said, f"what to do: {finding.remedy}"]


def tell(found: Replay, document: TextIO | None) -> None:
    """Prints a replay, and writes its document if one is wanted."""
    for line in lines(found):
        print(printable(line))
    if document:
        runtime.write_json(document, document_of(found))
