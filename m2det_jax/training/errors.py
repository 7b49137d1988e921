"""Errors of a training run, with what to do about them and the checkpoint that is left."""

import contextlib
import dataclasses
import errno
import pathlib
import re
import shlex
from collections.abc import Iterator

import jax

from m2det_jax.build import memory_settings
from m2det_jax.config import Config
from m2det_jax.data import UnreadableImage
from m2det_jax.errors import InputError
from m2det_jax.run import checksums, memory
from m2det_jax.run.cost import StepCost
from m2det_jax.run.devices import leave_after
from m2det_jax.run.progress import NonFiniteLoss

_DISK = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file would grow beyond the allowed file size",
    errno.EROFS: "the file system is read-only",
    errno.EIO: "the disk reports an input or output error",
    errno.ESTALE: "the server of the folder no longer knows it (stale file handle)",
}


@contextlib.contextmanager
def explained(config: Config, workdir: pathlib.Path) -> Iterator[dict[tuple[int, int], StepCost]]:
    """Adds to the errors of a training run what to change, and what it can be resumed from.

    Gives a dict of the train steps' costs by image size (height, width), to be filled as they are
    compiled: the advice where a device runs out of memory is about the largest.

    Raises:
        InputError: config, data or checkpoints do not fit, an image cannot be read, or another
            process trains in workdir.
        FileNotFoundError: a file that the config names is missing, or workdir has been removed.
        FloatingPointError: the loss is not finite; names the step and the images.
        OSError: the disk is full or gone, or (ChildProcessError) a data worker died.
        OutOfMemory: a device has not enough memory.
    """
    costs: dict[tuple[int, int], StepCost] = {}
    try:
        # Devices may say it long after the call.
        with memory.explained(lambda: _step_advice(config, costs)):
            yield costs
    except NonFiniteLoss as error:
        raise FloatingPointError(
            f"{error}. {_about_images(error, config)}; {what_is_left(workdir)}; m2det replay "
            f"--workdir {shlex.quote(str(workdir))} --step {error.step} names the first layer and "
            "image"
        ) from None
    except memory.OutOfMemory as error:
        need = "; of these, accumulation, dtype and batch_size need --allow_config_change now"
        begun = need if checksums.finished_steps(workdir) else ""
        raise memory.OutOfMemory(f"{error}; {what_is_left(workdir)}{begun}") from error
    except ChildProcessError as error:
        raise ChildProcessError(f"{error}; {what_is_left(workdir)}") from error
    except UnreadableImage as error:
        raise InputError(
            f"{error}; mend or remove the file, or give --config.data.on_bad_image=skip; "
            f"{what_is_left(workdir)}"
        ) from error
    except (OSError, ValueError) as error:
        if (trouble := disk_trouble(error)) is None:
            raise
        raise OSError(f"{trouble}; {what_is_left(workdir)}") from error


@contextlib.contextmanager
def not_waiting_for_others(workdir: pathlib.Path) -> Iterator[None]:
    """Ends this process at once where a computation over several processes fails inside.

    To be entered after the checkpoints are opened: at their end Orbax would wait for the others.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or memory.is_exhausted(error):
            raise
        leave_after(error, what_is_left(workdir))


def what_is_left(workdir: pathlib.Path) -> str:
    """Says what a run that had to stop can be resumed from."""
    folder = workdir / "checkpoints"
    steps = checksums.finished_steps(workdir)
    if not steps:
        return f"no checkpoint is saved in {folder} yet; the same command starts again"
    last = f"the last good checkpoint is step {steps[-1]} in {folder}"
    return f"{last}; the same command resumes from it"


def disk_trouble(error: BaseException) -> str | None:
    """Says in a few words what a disk refused, or None where the error is of another kind.

    Orbax reports the errors of its threads as ValueError, with the number in the text.
    """
    number: int | None = getattr(error, "errno", None)
    if found := re.search(r"os_error_code='(\d+)'", str(error)):
        number = int(found[1])
    return str(error).splitlines()[0] if number == errno.ENOENT else _DISK.get(number or 0)


def _step_advice(config: Config, costs: dict[tuple[int, int], StepCost]) -> str:
    settings, cost = memory_settings(config), None
    if costs:
        size = max(costs, key=lambda size: costs[size].memory)
        settings, cost = dataclasses.replace(settings, image_size=size), costs[size]
    return memory.train_advice(settings, cost, memory.available())


def _about_images(error: NonFiniteLoss, config: Config) -> str:
    mixing = [name for name in ("mosaic", "paste", "mixup") if name in config.augment.pipeline]
    others = f" (and what {', '.join(mixing)} added to it)" if mixing else ""
    return (
        f"Images of that batch{others}: {', '.join(error.image_paths)}. Look at them, or lower "
        "config.optimizer.learning_rate, lengthen the warm-up (warmup_share or warmup_epochs), "
        "lower clip_norm, or leave out a few such steps with --config.on_nonfinite=skip"
    )
