"""Synthetic data set, drawn by `python -m m2det_jax.data.synthetic --out DIR --seed 0`."""

import argparse
import os
from pathlib import Path

from m2det_jax.data.synthetic.dataset import draw_dataset


def main() -> None:
    """Draws the data set that the flags name."""
    parser = argparse.ArgumentParser(description="Draws the synthetic detection data set.")
    parser.add_argument("--out", required=True, help="folder to write to, new or empty")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_train", type=int, default=2800, help="training images")
    parser.add_argument("--num_val", type=int, default=100, help="validation images")
    options = parser.parse_args()
    folder = Path(options.out)
    if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        parser.error(f"--out {folder}: there is something already; give a new folder")
    files = draw_dataset(
        options.out, seed=options.seed, num_train=options.num_train, num_val=options.num_val
    )
    print(*files, sep="\n")


if __name__ == "__main__":
    main()
