"""The shipped commands, really started."""

import importlib
import json
import os
import pathlib
import subprocess
import sys
import tomllib

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
# Optimising the compiled code takes longer than the two steps it runs.
ONE_DEVICE = {"XLA_FLAGS": "--xla_backend_optimization_level=0", "JAX_PLATFORMS": "cpu"}
TINY = [
    "--config.epochs=0.4",
    "--config.batch_size=4",
    "--config.data.image_size=(64,96)",
    "--config.anchors.sizes=()",
    "--config.model.backbone=vgg16",
    "--config.model.backbone_norm=True",
    "--config.model.backbone_width=0.125",
    "--config.model.num_levels=2",
    "--config.model.num_scales=2",
    "--config.log.every_steps=1",
    "--config.eval.batch_size=2",
]


def start(module: str, *arguments, cwd, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", f"m2det_jax.{module}", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | ONE_DEVICE | {"PYTHONPATH": str(REPOSITORY)} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def one_line(result: subprocess.CompletedProcess) -> str:
    """The only line of an error that ended a command, the note of the devices set aside."""
    assert result.returncode != 0
    lines = [line for line in result.stderr.splitlines() if "devices:" not in line]
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    assert result.stdout == ""
    return lines[0]


@pytest.fixture(scope="module")
def trained(drawn_files, tmp_path_factory):
    """Folder of a run of quickstart, shrunk to two steps, from one CSV alone: (workdir, result)."""
    workdir = tmp_path_factory.mktemp("main") / "runs" / "tiny"
    data = [
        f"--config.data.train_csv={drawn_files.train}",
        f"--config.data.classes_csv={drawn_files.classes}",
        "--config.data.val_csv=",
    ]
    arguments = ["--config", "quickstart", "--workdir", workdir, *TINY, *data]
    return workdir, start("main", *arguments, cwd=workdir.parents[1])


def test_the_shipped_command_trains(trained):
    workdir, result = trained
    assert result.returncode == 0, result.stderr
    assert "step 1/2 " in result.stderr and "step 2/2 " in result.stderr
    assert "learning rate 0.00" in result.stderr and "batch 4" in result.stderr
    assert "split off 5 of 24 images" in result.stderr
    assert "Total" in result.stderr  # the overview of the parameters
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == ["2"]
    assert "Traceback" not in result.stderr and "Warning" not in result.stderr


def test_evaluate_needs_only_the_workdir(trained):
    workdir, _ = trained
    result = start("evaluate", "--workdir", workdir.name, cwd=workdir.parent)
    assert result.returncode == 0, result.stderr
    assert "AP50" in result.stdout and "on 5 images of" in result.stderr
    written = json.loads((workdir / "evaluation" / "00000002.json").read_text())
    assert written["step"] == 2 and 0 <= written["AP50"] <= 1


def test_predict_writes_pictures_and_json(trained, drawn_files, tmp_path):
    workdir, _ = trained
    picture = sorted(drawn_files.val.with_suffix("").glob("*.jpg"))[0]
    arguments = ["--workdir", workdir, "--output", tmp_path / "out", "--threshold", 0, picture]
    result = start("predict", *arguments, "--checkpoint", "best", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / picture.name).is_file()
    found = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert found and {entry["file_name"] for entry in found} == {str(picture)}
    assert f"{len(found)} detections in 1 images" in result.stdout


@pytest.mark.parametrize("name", ["experiments/vgg512.py", "vgg512"])
def test_missing_data_says_what_to_give(name, tmp_path):
    line = one_line(start("main", "--config", name, cwd=tmp_path))
    for part in ("data/train.csv", "data/val.csv", "data/classes.csv"):
        assert part in line
    assert "--config.data.train_csv=FILE" in line
    assert "make demo" in line and "python -m m2det_jax.demo" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--config.batchsize=3"], ["--config.batchsize", "nearest is --config.batch_size"]),
        (["--config.optimizer.lerning_rate=1"], ["--config.optimizer.learning_rate"]),
        (["--noconfig.augment.enable"], ["--noconfig.augment.enable", "--config.augment.enabled"]),
        (["--config.batch_size=many"], ["--config.batch_size=many", "int"]),
        (["--config.batch_size=2.5"], ["--config.batch_size=2.5", "int"]),
        (["--config.augment.enabled=perhaps"], ["--config.augment.enabled=perhaps"]),
        (["--config.data.image_size=big"], ["config.data.image_size=('big',)", "64 or more"]),
        (["--config.data.resize=crop"], ["'crop'", "'stretch', 'letterbox'"]),
        (["--wrkdir=x"], ["wrkdir", "workdir"]),
        (["stray"], ["stray"]),
        (["--config.platform=gpu"], ["'gpu'", "'cpu'", "m2det_jax[cuda12]"]),
    ],
)
def test_a_wrong_argument_ends_in_one_line(arguments, parts, tmp_path):
    line = one_line(start("main", "--config", "quickstart", *arguments, cwd=tmp_path))
    assert all(part in line for part in parts), line
    assert not list(tmp_path.iterdir())


def test_without_or_with_an_unknown_experiment(tmp_path):
    for module in ("main", "train"):
        assert "--config experiments/vgg512.py" in one_line(start(module, cwd=tmp_path))
    line = one_line(start("main", "--config=vgg1024", cwd=tmp_path))
    assert "vgg1024" in line and "quickstart" in line and "vgg800" in line


def test_a_batch_that_does_not_divide_gives_both_numbers(drawn_files, tmp_path):
    data = [f"--config.data.{k}_csv={v}" for k, v in drawn_files._asdict().items()]
    devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=3"}
    line = one_line(start("main", "--config", "quickstart", *TINY, *data, cwd=tmp_path, **devices))
    assert "config.batch_size=4" in line and "3 devices" in line and "multiple of 3" in line


@pytest.mark.parametrize(
    ("module", "options"),
    [
        ("main", ["--config", "--workdir", "--config.section.key=value"]),
        ("train", ["--config", "--workdir", "--config.section.key=value"]),
        ("evaluate", ["--workdir", "--checkpoint", "--csv", "--batch_size", "--output", "--set"]),
        (
            "predict",
            [
                "--set",
                "PATH",
                "--workdir",
                "--checkpoint",
                "--threshold",
                "--output",
                "--root",
                "--no_pictures",
                "--strict",
                "--num_workers",
            ],
        ),
        ("demo", ["--workdir", "--seed"]),
        ("convert_dataset", ["--from", "--to", "--split", "--output", "--force", "--copy_images"]),
        ("check", ["--config", "--output", "fit_anchors", "--max_images", "--samples"]),
        ("doctor", ["--json", "--timeout"]),
    ],
)
def test_help_shows_the_options(module, options, tmp_path):
    result = start(module, "--help", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert all(option in result.stdout for option in options), result.stdout


def test_help_of_the_console_script(tmp_path):
    program = (
        "import sys; from m2det_jax.main import cli; sys.argv = ['m2det-train', '--help']; cli()"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert result.returncode == 0, result.stderr
    assert "--config:" in result.stdout and "--workdir:" in result.stdout


@pytest.mark.parametrize(("module", "arguments"), [("evaluate", []), ("predict", ["picture.jpg"])])
def test_a_folder_that_is_no_run_ends_in_one_line(module, arguments, tmp_path):
    line = one_line(start(module, "--workdir", tmp_path / "gone", *arguments, cwd=tmp_path))
    assert "gone" in line and "--workdir of a training run" in line


def test_console_commands_point_at_functions():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert set(project["scripts"]) == {
        "m2det", "m2det-demo", "m2det-train", "m2det-check", "m2det-evaluate", "m2det-predict",
        "m2det-report", "m2det-convert", "m2det-convert-dataset", "m2det-replay",
        "m2det-export", "m2det-benchmark", "m2det-serve",
    }  # fmt: skip
    for target in project["scripts"].values():
        module, function = target.split(":")
        assert callable(getattr(importlib.import_module(module), function))
