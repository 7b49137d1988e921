"""Downloads of prediction: the images of URLs, saved beside the results."""

import concurrent.futures
import pathlib
from collections.abc import Sequence

import tqdm

from m2det_jax.data.file_names import distinct_names
from m2det_jax.data.images import IMAGE_SUFFIXES
from m2det_jax.errors import InputError
from m2det_jax.inference.urls import download, is_url, path_of
from m2det_jax.run.outputs import Outputs

FOLDER = "downloads"
_AT_ONCE = 8  # downloads


def download_names(paths: Sequence[str], stems: Sequence[str]) -> dict[int, str]:
    """Returns the output name of the file of each URL, by its position among the inputs.

    Args:
        paths: paths and URLs.
        stems: a file name without suffix for each.
    """
    positions = [i for i, path in enumerate(paths) if is_url(path)]
    stems = distinct_names(stems[i] for i in positions)
    suffixes = [pathlib.PurePath(path_of(paths[i])).suffix.lower() for i in positions]
    # Our readers look at the content, other programs ask for a suffix.
    kept = [suffix if suffix in IMAGE_SUFFIXES else ".jpg" for suffix in suffixes]
    return {
        i: f"{FOLDER}/{stem}{suffix}"
        for i, stem, suffix in zip(positions, stems, kept, strict=True)
    }


def download_images(
    paths: Sequence[str], names: dict[int, str], outputs: Outputs
) -> tuple[dict[int, str], dict[int, str]]:
    """Saves the images of URLs; some at a time.

    Args:
        paths: paths and URLs.
        names: as `download_names` returns them.
        outputs: where they are saved.

    Returns:
        (files, problems): the file of each input, by position; what is wrong with the others.
    """
    files = {i: path for i, path in enumerate(paths) if i not in names}
    problems: dict[int, str] = {}

    def save(position: int) -> str:
        try:
            content = download(paths[position])
        except InputError as error:
            return str(error)
        outputs.write(names[position], content)
        return ""

    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE, "download") as pool:
        running = {pool.submit(save, position): position for position in names}
        try:
            done = concurrent.futures.as_completed(running)
            for future in tqdm.tqdm(done, "download", len(names), leave=False, disable=None):
                position = running[future]
                if problem := future.result():
                    problems[position] = problem
                else:
                    files[position] = str((outputs.folder / names[position]).absolute())
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return dict(sorted(files.items())), problems
