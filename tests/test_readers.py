"""Who reads the images: the rule by a table, cores by affinity and quota, and what the log says."""

import os
import types

import numpy as np
import pytest

from m2det_jax.config import default_config, resolve
from m2det_jax.run import readers
from m2det_jax.run.readers import Host, choose_readers


@pytest.mark.parametrize(
    ("cores", "devices", "platform", "processes", "workers", "threads"),
    [
        # CPUs compute with the cores that would read.
        (1, 1, "cpu", 1, 0, 2),
        (2, 1, "cpu", 1, 0, 2),
        (64, 8, "cpu", 1, 0, 2),
        # A GPU and too few cores for processes.
        (1, 1, "gpu", 1, 0, 2),
        (2, 1, "gpu", 1, 0, 2),
        (3, 1, "gpu", 1, 0, 3),
        # All cores but one, up to 8 a device and 16 in all.
        (4, 1, "gpu", 1, 3, 2),
        (8, 1, "gpu", 1, 7, 2),
        (16, 1, "gpu", 1, 8, 2),
        (16, 2, "gpu", 1, 15, 2),
        (128, 8, "gpu", 1, 16, 2),
        (224, 4, "tpu", 1, 16, 2),
        # Several processes with the same cores share them.
        (64, 1, "gpu", 8, 7, 2),
        (16, 1, "gpu", 8, 0, 2),
        (8, 1, "gpu", 2, 3, 2),
    ],
)
def test_the_rule(cores, devices, platform, processes, workers, threads):
    found = choose_readers(Host(cores, devices, platform, processes))
    assert (found.workers, found.threads) == (workers, threads)


@pytest.mark.parametrize(
    ("given", "workers", "threads"),
    [
        ({"images": 300}, 0, 8),  # read before workers would have started
        ({"images": 100_000}, 8, 2),
        ({"num_workers": 3}, 3, 2),
        ({"num_workers": 3, "images": 10}, 3, 2),
        ({"num_workers": 0}, 0, 8),
        ({"num_threads": 5}, 8, 5),
        ({"num_workers": 0, "num_threads": 1}, 0, 1),
    ],
)
def test_what_is_given_counts(given, workers, threads):
    found = choose_readers(Host(16, 1, "gpu"), **given)
    assert (found.workers, found.threads) == (workers, threads)


def test_shared_memory_holds_the_batches_of_workers():
    assert choose_readers(Host(16, 1, "gpu", room=4)).workers == 4
    little = choose_readers(Host(16, 1, "gpu", room=0))
    assert (little.workers, little.threads) == (0, 8)
    assert "room for the batches of 0 worker processes only" in little.advice
    assert "/dev/shm" in little.advice and "--shm-size" in little.advice


@pytest.mark.parametrize(
    ("host", "given", "advice"),
    [
        (Host(16, 1, "gpu"), {}, "raise --config.data.num_workers=15 (now 8, for 16 cores)"),
        (Host(64, 1, "gpu"), {}, "raise --config.data.num_workers=16 (now 8, for 64 cores)"),
        (Host(16, 1, "gpu"), {"num_workers": 0}, "raise --config.data.num_workers=8 (now 0"),
        (Host(16, 1, "cpu"), {}, "raise --config.data.num_workers=8 (now 0, for 16 cores)"),
        (Host(8, 1, "gpu"), {}, "all 8 cores of this process are in use already; use more cores"),
        (Host(2, 1, "cpu"), {}, "all 2 cores of this process are in use already; use more cores"),
        (Host(1, 1, "gpu"), {}, "its one core is in use already"),
    ],
)
def test_the_advice(host, given, advice):
    assert choose_readers(host, **given).advice.startswith(advice)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "250000 100000\n"}, 2.5),
        ({"cpu.max": "max 100000\n"}, 1_000_000),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1_000_000),
        ({"cpu.max": ""}, 1_000_000),
        ({}, 1_000_000),
    ],
)
def test_the_quota_of_a_container(tmp_path, files, cores):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert readers.cgroup_quota(tmp_path) == cores


def test_cores_by_affinity_and_quota(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 4, 5, 9}, raising=False)
    assert readers.usable_cores(tmp_path) == 4
    (tmp_path / "cpu.max").write_text("250000 100000")
    assert readers.usable_cores(tmp_path) == 2
    (tmp_path / "cpu.max").write_text("50000 100000")
    assert readers.usable_cores(tmp_path) == 1


@pytest.mark.parametrize(
    ("others", "sharing"),
    [([], 1), (["same"], 2), (["other cores"], 1), (["same", "other cores", "same"], 3)],
)
def test_processes_of_the_run_that_have_the_same_cores(monkeypatch, others, sharing):
    def gathered(own):
        return np.array([own, *(own if what == "same" else own + 1 for what in others)])

    monkeypatch.setattr(readers.jax, "process_count", lambda: 1 + len(others))
    monkeypatch.setattr(readers.multihost_utils, "process_allgather", gathered)
    assert readers._processes_beside.__wrapped__() == sharing


def test_this_host_reads_with_two_threads_and_says_so_once(monkeypatch):
    said = []
    monkeypatch.setattr(readers, "log", types.SimpleNamespace(info=said.append))
    readers._tell.cache_clear()
    for _ in range(2):
        found = readers.eval_readers(10_000, 8, [(64, 96)])
    assert (found.workers, found.threads) == (0, 2)  # the tests' devices are CPUs
    assert len(said) == 1 and said[0].startswith("detection: images are read by 2 threads")


def test_the_config_keeps_the_word_automatic():
    config = default_config()
    assert (config.data.num_workers, config.data.num_threads) == (-1, -1)
    resolve(config)
    config.data.num_workers, config.data.num_threads = -2, 0
    with pytest.raises(ValueError, match=r"num_workers=-2: give 0 or more, or -1 .*num_threads=0"):
        resolve(config)


@pytest.mark.parametrize("name", ["num_workers", "num_threads"])
def test_negative_numbers_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}: . or more expected, or -1 .*, got -2"):
        readers.choose_readers(readers.Host(4, 1, "gpu"), **{name: -2})
