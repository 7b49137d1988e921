"""The report at the end of a training run: written once, and never in the way of the run."""

import shutil
import signal
import types

import jax
import pytest
from support import changed, short_config

from m2det_jax import train
from m2det_jax.metrics.detections import ImageDetections
from m2det_jax.metrics.scores import coco_metrics
from m2det_jax.report import of_run
from m2det_jax.report.of_run import write_report
from m2det_jax.run.signals import Stopped
from m2det_jax.training.validation import Evaluated


def evaluated(index, step: int = 7) -> Evaluated:
    """An evaluation that finds every object but those of the first image, which is not read."""
    spans = [slice(*index.offsets[i : i + 2]) for i in range(index.num_images)]
    found = [
        ImageDetections(i, index.boxes[s], index.labels[s] * 0.1 + 0.5, index.labels[s])
        for i, s in enumerate(spans)
    ]
    metrics = coco_metrics(index, found) | {"loss": 1.0}
    return Evaluated(step, metrics, found[1:])


def nothing_to_look_at(state):
    raise AssertionError("evaluated once more")


@pytest.fixture
def written(tiny_run, tmp_path):
    """Writes a report in tmp_path as a run does, and returns its text; "": there is none."""

    def write(latest=None, look=nothing_to_look_at, **keys) -> str:
        validation = types.SimpleNamespace(latest=latest, look=look)
        config = changed(tiny_run.config, **keys)
        write_report(config, tiny_run.run, tmp_path, validation, None)
        page = tmp_path / "report.html"
        return page.read_text(encoding="utf-8") if page.exists() else ""

    return write


def test_a_page_of_the_last_evaluation(written, tiny_run, log_of_run, tmp_path):
    index = tiny_run.run.val_index
    page = written(evaluated(index))
    assert "step 7" in page and tiny_run.config.data.val_csv in page
    assert f"{len(tiny_run.run.train_index.labels)} boxes" in page
    kept = len(index.labels) - int(index.counts[0])  # no object of the first image is missed
    assert f"{kept} objects to find" in page and "100.0&nbsp;%" in page
    assert str(tmp_path / "report.html") in log_of_run.text
    assert "step 9" in written(evaluated(index, 9))  # its own page is replaced


def test_a_run_with_nothing_to_do_keeps_its_page(written, tiny_run, tmp_path):
    first = evaluated(tiny_run.run.val_index)
    assert "step 7" in written(look=lambda state: first)
    (tmp_path / "report.html").write_text("mine")
    assert written() == "mine"


@pytest.mark.parametrize("off", ["key", "second process", "several processes"])
def test_no_page(off, written, tiny_run, monkeypatch):
    latest = evaluated(tiny_run.run.val_index)
    if off == "second process":
        monkeypatch.setattr(jax, "process_index", lambda: 1)
    if off == "several processes":  # one alone cannot evaluate
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        latest = None
    assert written(latest, log__report=off != "key") == ""


def test_a_page_that_cannot_be_written_ends_no_run(
    written, tiny_run, tmp_path, monkeypatch, warnings_of_run
):
    latest = evaluated(tiny_run.run.val_index)
    (tmp_path / "report.html").write_text("mine")
    assert written(latest) == "mine"
    assert "its report is not written: InputError" in warnings_of_run.text
    assert f"m2det report --workdir {tmp_path}" in warnings_of_run.text
    (tmp_path / "report.html").unlink()
    monkeypatch.setattr(of_run, "assemble", lambda *_: 1 / 0)
    assert written(latest) == "" and "ZeroDivisionError" in warnings_of_run.text


def test_a_signal_is_no_failure(written):
    def stop(state):
        raise Stopped(signal.SIGTERM, 7)

    with pytest.raises(Stopped):
        written(look=stop)


def test_training_evaluates_once_and_leaves_a_page(whole, drawn_files, tmp_path):
    """Which the same command writes again only if it is gone."""
    workdir = shutil.copytree(whole[0], tmp_path / "run")
    page = workdir / "report.html"
    text = page.read_text(encoding="utf-8")
    assert "<dd>step 6</dd>" in text and f"<h1>{whole[0].name}</h1>" in text
    before = page.stat().st_mtime_ns
    assert train.train(short_config(drawn_files), workdir) == {}
    assert page.stat().st_mtime_ns == before
    page.unlink()
    assert train.train(short_config(drawn_files), workdir) == {}
    again = page.read_text(encoding="utf-8")
    pictures = text.count('<figure class="picture"')
    assert "<dd>step 6</dd>" in again and again.count('<figure class="picture"') == pictures > 0
