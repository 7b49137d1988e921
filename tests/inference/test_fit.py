"""Training from Python: data, config keys, hooks, resuming, and scripts without a main guard."""

import json
import logging
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
import support

import m2det_jax
from m2det_jax import fitting
from m2det_jax.config import default_config
from m2det_jax.config.dotted import flatten
from m2det_jax.errors import InputError
from m2det_jax.run.history import read_history
from m2det_jax.run.signals import Stopped
from m2det_jax.train import train
from m2det_jax.trained import restore

KEYS = support.TINY | support.SHORT


class Told(m2det_jax.Hooks):
    """Writes down what it is told; raises in the hook named by `fails`."""

    def __init__(self, fails=""):
        self.told, self.fails = [], fails

    def _note(self, name, *what):
        self.told.append((name, *what))
        if name == self.fails:
            raise RuntimeError(f"from {name}")

    def on_run_start(self, config, workdir, step, steps):
        self._note("start", config["optimizer.learning_rate"], workdir, step, steps)

    def on_evaluation_end(self, step, metrics):
        self._note("evaluation", step, metrics["AP"])

    def on_run_end(self, run):
        self._note("end", run)

    def on_exception(self, error):
        self._note("exception", error)


@pytest.fixture
def folder(drawn_files) -> pathlib.Path:
    return drawn_files.train.parent


@pytest.fixture(scope="module")
def fitted(drawn_files, tmp_path_factory):
    """A run of fit, and what its hooks were told."""
    hooks, workdir = Told(), tmp_path_factory.mktemp("fitted") / "run"
    data = drawn_files.train.parent
    run = m2det_jax.fit(data, default_config(), workdir=workdir, hooks=hooks, **KEYS)
    return run, hooks.told


def test_it_is_the_road_of_the_command_line(fitted, whole):
    """The same parameters, history and metrics, bit for bit."""
    run, _ = fitted
    workdir, metrics, _ = whole
    for ours, theirs in zip(
        support.leaves(restore(run.workdir).variables),
        support.leaves(restore(workdir).variables),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)
    assert run.metrics["AP"] == metrics["AP"] and run.metrics["loss"] == metrics["loss"]
    timeless = [
        {k: v for k, v in record.items() if k in ("step", "loss", "val_AP", "val_loss")}
        for record in (*run.history, *read_history(workdir))
    ]
    half = len(timeless) // 2
    assert timeless[:half] == timeless[half:] and half >= 4


def test_what_it_returns(fitted):
    run, _ = fitted
    assert run.detector.step == 6 and run.detector.workdir == run.workdir
    assert run.detector is run.detector and run.history is run.history
    assert run.history == read_history(run.workdir)
    assert {"AP", "AP50", "per_class", "loss"} <= run.metrics.keys()
    assert run.detector.evaluate()["AP"] == pytest.approx(run.metrics["AP"], abs=1e-6)


def test_the_hooks_of_a_run(fitted):
    run, told = fitted
    assert [name for name, *_ in told] == ["start", "evaluation", "evaluation", "end"]
    assert told[0] == ("start", 0.005, run.workdir, 0, 6)
    assert [step for _, step, _ in told[1:3]] == [3, 6]
    assert told[2][2] == run.metrics["AP"] and told[3][1] is run


def test_it_goes_on_and_is_told_from_where(fitted, folder, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(fitted[0].workdir, workdir)
    hooks = Told()
    run = m2det_jax.fit(folder, workdir=workdir, epochs=3, hooks=hooks)  # the config in workdir
    assert [name for name, *_ in hooks.told] == ["start", "evaluation", "end"]
    assert hooks.told[0][3:] == (6, 9) and run.detector.step == 9
    assert [record["step"] for record in run.history if "val_AP" in record] == [3, 6, 9]
    hooks = Told()
    assert m2det_jax.fit(workdir=workdir, hooks=hooks).metrics == {}
    assert [name for name, *_ in hooks.told] == ["start", "end"]
    with pytest.raises(InputError, match="config.data.image_size"):
        m2det_jax.fit({"image_size": (96, 96)}, workdir=workdir)


@pytest.mark.parametrize("fails", ["start", "evaluation", "end"])
def test_an_error_in_a_hook_ends_the_run(fitted, folder, tmp_path, fails):
    workdir, hooks = tmp_path / "run", Told(fails)
    with pytest.raises(RuntimeError, match=f"from {fails}") as raised:
        m2det_jax.fit(folder, default_config(), workdir=workdir, hooks=hooks, **KEYS)
    names = [name for name, *_ in hooks.told]
    before = {"start": [], "evaluation": ["start"], "end": ["start", "evaluation", "evaluation"]}
    assert names == [*before[fails], fails, "exception"]
    assert hooks.told[-1][1] is raised.value
    if fails == "evaluation":  # its step is saved
        assert restore(workdir).step == 3


def test_an_error_of_the_run_is_told(folder, tmp_path):
    hooks = Told()
    with pytest.raises(InputError, match="batch_size") as raised:
        m2det_jax.fit(
            folder, default_config(), workdir=tmp_path, hooks=hooks, **KEYS | {"batch_size": 3}
        )
    assert hooks.told == [("exception", raised.value)]


def test_ctrl_c_is_a_keyboard_interrupt_with_the_state_saved(folder, tmp_path):
    class Interrupt(Told):
        def on_evaluation_end(self, step, metrics):
            super().on_evaluation_end(step, metrics)
            os.kill(os.getpid(), signal.SIGINT)

    hooks, workdir = Interrupt(), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt, match="is saved") as raised:
        m2det_jax.fit(folder, default_config(), workdir=workdir, hooks=hooks, **KEYS)
    assert hooks.told[-1] == ("exception", raised.value)
    assert 3 <= restore(workdir).step < 6


class _Trained(Exception):
    pass


@pytest.fixture
def config_of(monkeypatch, tmp_path):
    """Calls fit; returns the flat config and the workdir that training would get."""
    got = {}

    def fake(config, workdir, *, allow_config_change, hooks):
        got.update(config=flatten(config), workdir=workdir)
        raise _Trained

    monkeypatch.setattr(fitting, "train", fake)
    monkeypatch.chdir(tmp_path)

    def call(*args, **kwargs):
        with pytest.raises(_Trained):
            m2det_jax.fit(*args, **kwargs)
        return got["config"], got["workdir"]

    return call


def test_defaults(config_of, folder):
    config, workdir = config_of(folder)
    assert workdir == pathlib.Path("runs/small320")
    assert config["data.image_size"] == (320, 320) and config["epochs"] == 80.0
    assert config["data.train_csv"] == str(folder / "train.csv")
    assert config["data.val_csv"] == str(folder / "val.csv")
    assert config["data.classes_csv"] == str(folder / "classes.csv")
    assert config_of(folder, "experiments/quickstart.py")[1] == pathlib.Path("runs/quickstart")


def test_a_folder_without_val_csv_has_a_part_split_off(config_of, folder, tmp_path):
    for name in ("train.csv", "classes.csv"):
        shutil.copy(folder / name, tmp_path)
    assert config_of(str(tmp_path))[0]["data.val_csv"] == ""
    mapping = {"train_csv": tmp_path / "train.csv", "classes_csv": "c.csv"}
    config, _ = config_of(mapping)
    assert config["data.train_csv"] == str(tmp_path / "train.csv") and config["data.val_csv"] == ""


def test_keys_of_all_forms(config_of):
    data = {"format": "coco", "root": pathlib.Path("coco"), "image_size": [64, 96]}
    config, workdir = config_of(
        data,
        "quickstart",
        workdir="here",
        epochs=3,
        batch_size=np.int64(4),
        seed=7,
        optimizer={"learning_rate": np.float32(0.5), "name": "sgd"},
        **{"eval.patience": 2, "model": {"backbone_norm": True}},
    )
    assert workdir == pathlib.Path("here")
    expected = {
        "data.format": "coco", "data.root": "coco", "data.image_size": (64, 96), "epochs": 3.0,
        "batch_size": 4, "seed": 7, "optimizer.learning_rate": 0.5, "optimizer.name": "sgd",
        "eval.patience": 2, "model.backbone_norm": True,
    }  # fmt: skip
    assert {key: config[key] for key in expected} == expected
    assert isinstance(config["epochs"], float) and config["model.backbone"] == "resnet18"


def test_a_config_of_the_user_is_not_changed(config_of, folder):
    config = default_config()
    assert config_of(folder, config, workdir="x", seed=9)[0]["seed"] == 9
    assert config.seed == 0 and config.data.train_csv == "data/train.csv"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batch_sise": 3}, "config.batch_sise: there is no such key; .* config.batch_size"),
        ({"optimizer": {"lerning_rate": 1.0}}, "the nearest is config.optimizer.learning_rate"),
        ({"data": {"trian_csv": "x"}}, "config.data.trian_csv: .* config.data.train_csv"),
        ({"batch_size": "3"}, "config.batch_size='3': give a value of type int, now 8"),
        ({"batch_size": 3.5}, "config.batch_size=3.5: give a value of type int"),
        ({"batch_size": True}, "config.batch_size=True: give a value of type int"),
        ({"batch_size": None}, "config.batch_size=None: give a value of type int"),
        ({"distributed": {"coordinator": "auto"}}, "`fit` trains in this process alone"),
        ({"deterministic": 1}, "config.deterministic=1: give a value of type bool"),
        ({"epochs": "many"}, "config.epochs='many': give a value of type float"),
        ({"experiment": "small230"}, "no such file; shipped experiments: .*small320"),
        ({"data": "no such"}, "no train.csv and no classes.csv there"),
        ({"data": 3}, "a folder or a mapping expected, got int"),
        ({"experiment": default_config()}, "workdir: give one"),
        (
            {"hooks": print},
            "hooks: an object of a class of m2det_jax.Hooks expected, got <built-in",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    tmp_path, monkeypatch, arguments, words
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=words):
        m2det_jax.fit(**arguments)
    assert not list(tmp_path.iterdir())


def test_a_module_that_only_a_workdir_names_is_not_imported(tmp_path, config_of):
    config = default_config()
    config.data.format = "own_reader"
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    with pytest.raises(InputError, match="importing it"):
        m2det_jax.fit(workdir=tmp_path)
    for arguments in ({"trust": True}, {"data": {"format": "own_reader"}}):
        assert config_of(workdir=tmp_path, **arguments)[0]["data.format"] == "own_reader"


def test_logging_stays_as_it_is(fitted):
    log = logging.getLogger("m2det_jax")
    assert not logging.getLogger("absl").filters
    assert log.propagate or log.handlers  # nothing of a program without handlers is hidden


SCRIPT = textwrap.dedent(
    """
    import sys
    import m2det_jax

    print("begins", __name__)
    assert not hasattr(sys.modules["__main__"], "begun")
    begun = True
    data, workdir = sys.argv[1:]
    run = m2det_jax.fit(
        data, "quickstart", workdir=workdir, epochs=1, batch_size=8, max_steps=1,
        **{"data.image_size": (64, 96), "data.num_workers": 2, "data.num_threads": 1,
           "model.num_levels": 1, "model.num_scales": 2, "anchors.sizes": (12, 28, 56)},
    )
    print("step", run.detector.step)
    print(f"AP {run.detector.evaluate(data, num_workers=1)['AP']:.6f}")
    print(len(run.detector.predict([f"{data}/{name}" for name in NAMES])))
    """
)


def test_a_script_without_a_main_guard_with_workers(folder, drawn_files, tmp_path):
    names = [line.split(",")[0] for line in drawn_files.val.read_text().splitlines()][:3]
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("NAMES", repr(names)))
    command = [sys.executable, str(script), str(folder), str(tmp_path / "run")]
    environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert lines[:2] == ["begins __main__", "step 1"], lines
    assert lines[2].startswith("AP 0.") and lines[3:] == ["3"]
    assert "Traceback" not in done.stderr and "leaked" not in done.stderr


def test_processes_of_the_program_still_begin_with_its_main_module(tmp_path):
    """Only grain's workers leave it alone."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import multiprocessing
            from m2det_jax.data.feeding.workers import _leave_main_alone

            def answer(queue):
                queue.put(__name__)

            if __name__ == "__main__":
                _leave_main_alone()
                _leave_main_alone()
                context = multiprocessing.get_context("spawn")
                queue = context.Queue()
                process = context.Process(target=answer, args=(queue,))
                process.start()
                print(queue.get(timeout=60))
                process.join()
            """
        )
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "__mp_main__", done.stderr


def test_train_takes_hooks_too(whole, drawn_files):
    hooks = Told()
    train(support.short_config(drawn_files), whole[0], hooks=hooks)
    assert [name for name, *_ in hooks.told] == ["start"]
    assert jax.process_count() == 1


@pytest.mark.parametrize(
    ("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_a_signal_ends_more_than_a_trial(tmp_path, folder, monkeypatch, number, kind):
    """`except Exception` around many trials does not catch it."""

    def stopped(*args, **kwargs):
        raise Stopped(number, 3)

    monkeypatch.setattr(fitting, "train", stopped)
    told = Told()
    with pytest.raises(kind):
        m2det_jax.fit(folder, default_config(), workdir=tmp_path / "run", hooks=told)
    assert [isinstance(what, kind) for name, what in told.told if name == "exception"] == [True]


def test_a_hook_that_fails_hides_no_error(tmp_path, folder, monkeypatch):
    class Failing(m2det_jax.Hooks):
        def on_exception(self, error):
            raise RuntimeError("the mail server is down")

    monkeypatch.setattr(fitting, "train", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError) as caught:
        m2det_jax.fit(folder, default_config(), workdir=tmp_path / "run", hooks=Failing())
    assert "the mail server is down" in caught.value.__notes__[0]
