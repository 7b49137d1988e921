"""The verb benchmark: a table of parts, in turns, for a run and what it exports."""

import json

import numpy as np
import pytest
from test_export import pictures

import m2det_jax
from m2det_jax import benchmark
from m2det_jax.errors import InputError
from m2det_jax.export import run

pytestmark = pytest.mark.exports


def test_parts_are_measured_in_turns():
    calls = []

    def part(name):
        return lambda: calls.append(name) or np.zeros(1)

    works = {"native": {"network": part("a"), "NMS": part("b")}, "x": {"network": part("c")}}
    times = benchmark._in_turns(works, 3)
    assert calls == ["a", "b", "c"] * 4
    assert times.keys() == works.keys() and all(t >= 0 for t in times["native"].values())


def test_a_run_and_its_artefact(workdir, tmp_path, capsys):
    restored = m2det_jax.load(workdir).restored
    outputs = run.Outputs(tmp_path, "export")
    list(run._write("stablehlo", workdir, outputs, restored, "", tmp_path))
    artefact = str(tmp_path / "detector.stablehlo")
    options = dict(images=pictures(tmp_path / "p", (40, 60), (64, 96)), rounds=2, batch_size=3)
    with open(tmp_path / "document.json", "w") as document:
        figures = benchmark.benchmark(workdir, artefacts=[artefact], document=document, **options)
    assert figures.keys() == {"native", artefact}
    assert figures["native"].keys() == {"decode", "network", "NMS", "network and NMS"}
    assert figures[artefact].keys() == {"decode", "network and NMS"}
    assert all(value > 0 for parts in figures.values() for value in parts.values())
    document = json.loads((tmp_path / "document.json").read_text())
    assert document == {"milliseconds": figures, "batch_size": 3}
    printed = capsys.readouterr().out
    assert "3 a call" in printed and "detector.stablehlo" in printed and " - " in printed


def test_wrong_numbers_are_refused(workdir):
    with pytest.raises(InputError, match="1 or more expected"):
        benchmark.benchmark(workdir, rounds=0)
