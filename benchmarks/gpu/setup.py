"""What the parts of the GPU measurement share: inputs, a scratch folder, experiments, data."""

import dataclasses
import pathlib
import time

from benchmarks import experiment
from m2det_jax.config import Config
from m2det_jax.data.synthetic import DatasetFiles, draw_dataset

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent.parent
# The reduced form: the same code on a network and pictures for seconds on a CPU.
REDUCED = (
    "data.image_size=(64,96)", "model.backbone_width=0.125", "model.num_levels=1",
    "model.num_scales=2", "model.shallow_channels=16", "model.deep_channels=16",
    "model.reduced_channels=8", "model.tum_width=16", "model.tum_out=8", "anchors.sizes=()",
)  # fmt: skip


def default_inputs() -> pathlib.Path:
    """Returns the folder with weights/, reference/ and datasets/: of a pack, or ../shared."""
    packed = REPOSITORY / "inputs"
    return packed if packed.is_dir() else REPOSITORY.parent / "shared"


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a part is given.

    Attributes:
        reduced: small networks, few rounds, for a CPU.
        inputs: folder with weights/, reference/ and datasets/.
        scratch: folder to write in, not kept.
        end: time.monotonic() at which the part is ended.
    """

    reduced: bool
    inputs: pathlib.Path
    scratch: pathlib.Path
    end: float

    @property
    def seconds_left(self) -> float:
        """Seconds until the part is ended."""
        return self.end - time.monotonic()

    def config(self, name: str, *overrides: str) -> Config:
        """Returns an experiment with overrides; in the reduced form a tiny network of its kind."""
        return experiment.load(name, [*(REDUCED if self.reduced else ()), *overrides])

    def drawn(self, images: int, short_side: tuple[int, int]) -> list[str]:
        """Draws a data set, once; returns the overrides that name it."""
        if self.reduced:
            images, short_side = 24, (64, 96)
        folder = self.scratch / f"drawn_{images}_{short_side[0]}"
        names = {part: folder / f"{part}.csv" for part in DatasetFiles._fields}
        if not folder.is_dir():
            folder.mkdir(parents=True)
            files = draw_dataset(
                folder, num_train=images, num_val=max(8, images // 16), short_side=short_side
            )
            names = files._asdict()
        return [f"data.{part}_csv={path}" for part, path in names.items()]
