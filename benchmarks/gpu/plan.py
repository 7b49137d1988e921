"""Parts of the GPU measurement: what each runs, and for how long at most."""

import dataclasses
import importlib
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the measurement.

    Attributes:
        name: as given to --part; benchmarks/gpu/NAME.py has its `run(setup, report)`.
        minutes: after which it is ended; what it has written until then counts.
        what: it runs, for people.
        default: it runs where no --part is given.
    """

    name: str
    minutes: float
    what: str
    default: bool = True

    def load(self) -> Callable:
        """Returns run(setup, report) of the part."""
        return importlib.import_module(f"benchmarks.gpu.{self.name}").run


# The most valuable first: a machine may be taken away.
PARTS = (
    Part("speed", 6, "train steps of vgg320, vgg512, vgg800 in bfloat16, largest power-of-two "
         "batch: ms, images/s, share of the GEMM peak, memory, compilations, idle time, waiting "
         "for data"),
    Part("agreement", 3, "ops and model on the GPU against the CPU; official reference outputs in "
         "float32, TF32 and bfloat16; the test suites of ops and model"),
    Part("detection", 3, "vgg512 at batch 1 and 32: network, decoding, NMS and soft-NMS apart"),
    Part("accuracy", 8, "vgg320 with ImageNet weights on bccd and cards: AP after 3 minutes each"),
    Part("resume", 3, "20 losses against the CPU; kill -9 and resume under config.deterministic, "
         "bit for bit"),
    Part("ratio", 2,
         "a PyTorch M2Det in bfloat16 and channels_last, training and detection, beside ours"),
    Part("lowering", 8, "on a CPU: the programs that CUDA would get, operations and bytes by kind "
         "of kernel", default=False),
)  # fmt: skip
LIMIT_MINUTES = 25


def find(name: str) -> Part:
    """Returns the part of that name."""
    (part,) = [part for part in PARTS if part.name == name]
    return part


def describe(parts: tuple[Part, ...]) -> str:
    """Writes what would run, a line a part."""
    lines = [f"{part.name:10s} at most {part.minutes:g} min  {part.what}" for part in parts]
    total = sum(part.minutes for part in parts)
    return "\n".join([*lines, f"{'all':10s} at most {total:g} min"])
