"""The examples of docs/python.md run, in order, as one program; so do those of the first pages."""

import logging
import pathlib
import re
import shutil

import pytest
import support
from PIL import Image

import m2det_jax
from m2det_jax.config import default_config

PAGE = pathlib.Path(__file__).parent.parent.parent / "docs" / "python.md"


@pytest.fixture
def place(workdir, drawn_files, tmp_path, monkeypatch):
    """A folder with what the page takes for granted."""
    shutil.copytree(workdir, tmp_path / "runs" / "mine")
    shutil.copytree(drawn_files.train.parent, tmp_path / "data")
    for name in ("photo.jpg", "a.jpg", "b.png"):
        Image.effect_mandelbrot((640, 480), (-2, -1, 1, 1), 50).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    loggers = [logging.getLogger(name) for name in ("m2det_jax", None)]
    before = [(logger.level, logger.handlers[:]) for logger in loggers]
    yield tmp_path
    for logger, (level, handlers) in zip(loggers, before, strict=True):  # the page changes them
        logger.setLevel(level)
        logger.handlers[:] = handlers


def test_the_examples_run(place, capsys):
    page = PAGE.read_text()
    examples = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(examples) == 7
    calls = []

    def tiny(data, experiment=None, *, workdir, epochs, **options):
        """As fit, for seconds: what the page asks for is noted."""
        calls.append((data, experiment, workdir, epochs, options))
        options = {key: value for key, value in options.items() if key == "hooks"}
        keys = support.TINY | support.SHORT
        return m2det_jax.fit(data, default_config(), workdir="runs/tiny", **options, **keys)

    scope = {}
    program = "\n".join(examples).replace("m2det_jax.fit(", "tiny(")
    exec(compile(program, str(PAGE), "exec"), scope | {"tiny": tiny})
    assert [call[:4] for call in calls] == [
        ("data", "small320", "runs/mine", 40),
        ("data", None, "runs/mine", 60),
    ]
    printed = capsys.readouterr().out
    assert "Result(" in printed and "runs/tiny: step 6 of 6" in printed and "done" in printed
    with Image.open(place / "drawn.png") as drawn:
        assert drawn.size == (640, 480)


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_example_of_a_first_page_runs(page, place, capsys):
    (example,) = re.findall(
        r"```python\n(.*?)```", (PAGE.parent.parent / page).read_text(), re.DOTALL
    )
    assert 'checkpoint="best"' in example  # the run of the fixture is not evaluated, so has none
    scope = {}
    exec(compile(example.replace('"best"', '"latest"'), page, "exec"), scope)
    result = scope["result"]
    assert result.image_size == (480, 640) and result.boxes.shape == (len(result), 4)
    assert capsys.readouterr().out.strip()


def test_what_the_page_says_is_so():
    from m2det_jax.inference import trained_detector, urls

    page = PAGE.read_text()
    assert f"at most {urls.MAX_BYTES // 2**20} MiB, in {urls.SECONDS:.0f} seconds" in page
    assert f"`threshold` (default {trained_detector.THRESHOLD})" in page
    for name in re.findall(r"`m2det_jax\.(\w+)`", page):
        assert hasattr(m2det_jax, name) or (PAGE.parent.parent / "m2det_jax" / name).exists(), name
