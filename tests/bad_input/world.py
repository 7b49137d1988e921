"""Folder of small valid files for bad-input tests, and commands that run in it."""

import contextlib
import dataclasses
import functools
import importlib
import io
import logging
import os
import re
import shlex
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
import support
from absl import app, flags
from absl.flags import argparse_flags
from sound_sets import SOUND, Content, png, write_files

from m2det_jax.config import resolve
from m2det_jax.config.dotted import to_dict
from m2det_jax.config.experiments import load_experiment
from m2det_jax.model import init_variables
from m2det_jax.model.backbones import make_backbone
from m2det_jax.run import checkpoint
from m2det_jax.run.devices import place
from m2det_jax.run.outputs import Outputs
from m2det_jax.training import prepare, resume
from m2det_jax.training.step import IntervalMetrics
from m2det_jax.weights import pretrained
from m2det_jax.weights.imagenet import BackboneWeights
from m2det_jax.weights.preprocessing import IMAGENET

VERBS = {
    "train": "main", "check": "check", "evaluate": "evaluate", "predict": "predict",
    "demo": "demo", "convert": "convert", "convert_dataset": "convert_dataset",
}  # fmt: skip

_DATA = {
    "data.train_csv": "train.csv",
    "data.val_csv": "val.csv",
    "data.classes_csv": "classes.csv",
}
_TINY = support.TINY | support.SHORT | _DATA | {"log.sample_images": 0}
FILES: dict[str, Content] = {
    "a.png": png(), "b.png": png(), "c.png": png(),
    "train.csv": "a.png,1,2,10,12,cat\nb.png,3,4,20,22,dog\n",
    "val.csv": "c.png,5,6,30,25,cat\n",
    "classes.csv": "cat,0\ndog,1\n",
    "tiny.py": "from m2det_jax.config import default_config\n\n\ndef get_config():\n"
               "    config = default_config()\n"
               f"    config.update_from_flattened_dict({_TINY!r})\n    return config\n",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Case:
    """One bad input.

    Attributes:
        verb: a key of VERBS.
        name: what is wrong.
        line: arguments of the command, which runs in a folder with FILES and `files`.
        expected: regular expressions that the message must match.
        files: files with changed content; None: the file is missing.
        sets: data sets of other formats, each written to a folder of that name.
        make: function that changes the folder before the command runs.
        status: exit status of the process; 2: a message of argparse, after the usage.
        message: the complete message, if it is known; used by `shape`.
    """

    verb: str
    name: str
    line: str
    expected: tuple[str, ...]
    files: dict[str, Content] = dataclasses.field(default_factory=dict)
    sets: tuple[str, ...] = ()
    make: Callable[[Path], None] | None = None
    status: int = 1
    message: str = ""

    @property
    def shape(self) -> tuple[str, str]:
        """The verb, and the message without names and numbers; equal shapes test the same check."""
        text = self.message or re.sub(r"\\(.)", r"\1", " ".join(self.expected).replace(".*", " "))
        text = re.sub(r"'[^']*'|\"[^\"]*\"|`[^`]*`", "QUOTED", text)
        text = re.sub(r"(--)?(no)?config\.[\w.]*\w(=\S+)?", "KEY", text)
        text = re.sub(r"--\w+(=\S+)?", "FLAG", text)
        text = re.sub(r"[^\s:;,()]*[/.][^\s:;,()]*\w", "FILE", text)
        return self.verb, re.sub(r"\d[\d.,e+]*", "NUMBER", text)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit status, the message, and all that it printed."""

    status: int
    message: str
    printed: str


def make_templates(folder: Path) -> None:
    """Writes what takes seconds: a run (steps 3 and 6), converted weights, a backbone."""
    write_files(folder, FILES)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # the paths of its data are relative
        config = resolve(load_experiment("tiny.py"))
        run = prepare.prepare(config, Path("run"))
        first = prepare.first_state(config, run)
        running = place(IntervalMetrics.empty(), run.replicated)
        names = run.train_index.class_names
        meta = checkpoint.make_meta(to_dict(config), names, support.PROGRESS, run.fingerprints)
        with checkpoint.open_manager("run") as manager:
            for step, ap in ((3, 0.25), (6, 0.5)):
                step = place(np.int32(step), run.replicated)
                state = dataclasses.replace(first, step=step)
                checkpoint.save(manager, state, running, meta)
                checkpoint.record_evaluation(manager, int(step), {"AP": ap})
        resume.write_config(Outputs(Path("run"), "train"), config)
        model = ocp.args.StandardSave(state.eval_variables)
        with checkpoint.open_manager("converted") as manager:
            manager.save(0, args=ocp.args.Composite(model=model, meta=ocp.args.JsonSave(meta)))
    variables = init_variables(make_backbone("resnet18", width=0.125, norm=True), (64, 64), 0)
    weights = BackboneWeights("resnet18", 0.125, True, variables, IMAGENET)
    pretrained.save(folder / "backbone", weights, "resnet18.pth")


def prepare_folder(case: Case, folder: Path, templates: Path) -> None:
    """Writes the files of a case into a folder."""
    write_files(folder, FILES | case.files)
    for format in case.sets:
        write_files(folder / format, SOUND[format])
    for name in ("run", "converted", "backbone"):
        if re.search(rf"\b{name}\b", case.line):
            shutil.copytree(templates / name, folder / name)
    if case.make:
        case.make(folder)


@contextlib.contextmanager
def quiet_process():
    """Restores at the end what a command changes in its process: logging and environment."""
    logger, environment = logging.getLogger("m2det_jax"), dict(os.environ)
    before = logger.handlers[:], logger.level, logger.propagate, sys.unraisablehook
    filters = {name: logging.getLogger(name).filters[:] for name in ("absl", "asyncio")}
    try:
        yield
    finally:
        logger.handlers[:], logger.level, logger.propagate, sys.unraisablehook = before
        for name, kept in filters.items():
            logging.getLogger(name).filters[:] = kept
        os.environ.clear()
        os.environ.update(environment)


def forget_flags() -> None:
    """Restores the absl flags to their state before a command line was parsed."""
    for name in [name for name in flags.FLAGS if name.startswith("config.")]:
        delattr(flags.FLAGS, name)
    for name in flags.FLAGS:
        flags.FLAGS[name].unparse()
    flags.FLAGS.mark_as_parsed()


def run(verb: str, line: str, folder: Path) -> Outcome:
    """Runs the entry point of a command in a folder."""
    module = importlib.import_module(f"m2det_jax.{VERBS[verb]}")
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, quiet_process(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as outside of tests; ml_collections causes one
        patch.chdir(folder)
        patch.syspath_prepend(folder)  # like python -m
        patch.setattr(sys, "argv", [f"m2det-{verb}", *shlex.split(line)])
        # The function of absl would change the process permanently.
        patch.setattr(app, "run", lambda main, flags_parser: main(flags_parser(sys.argv)))
        # Otherwise a parser would inherit the flags of commands that ran before.
        plain = functools.partial(argparse_flags.ArgumentParser, inherited_absl_flags=None)
        patch.setattr(argparse_flags, "ArgumentParser", plain)
        forget_flags()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                module.cli()
            code = 0
        except SystemExit as error:
            code = error.code or 0
        finally:
            forget_flags()
    text = out.getvalue() + err.getvalue()
    if isinstance(code, str):
        return Outcome(1, code, text + code)
    if found := [part for part in text.split("\n\n") if part.startswith("error: ")]:
        return Outcome(code, "\n".join(re.findall("^  - (.*)", "\n".join(found), re.M)), text)
    lines = text.strip().splitlines()
    return Outcome(code, lines[-1] if lines else "", text)
