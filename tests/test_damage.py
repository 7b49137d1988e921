"""Damage of every kind is found and named, whole checkpoints are left alone, none is lost."""

import json
import pathlib
import shutil

import pytest
import support
from support import PROGRESS, running_at, save_steps, state_at

from m2det_jax.config.dotted import to_dict
from m2det_jax.errors import InputError
from m2det_jax.run import checksums as damage
from m2det_jax.run.checkpoint import (
    make_meta,
    open_manager,
    record_evaluation,
    restore_latest,
    save,
)
from m2det_jax.run.checksums import (
    find_damage,
    finished_steps,
    has_checksums,
    move_damaged,
    write_checksums,
)
from m2det_jax.trained import restore


def make_checkpoint(folder: pathlib.Path) -> pathlib.Path:
    (folder / "model" / "d").mkdir(parents=True)
    (folder / "model" / "d" / "array").write_bytes(bytes(range(256)) * 40)
    (folder / "meta").write_text('{"step": 4}')
    write_checksums(folder)
    (folder / "commit_success.txt").write_text("done")
    (folder / "_CHECKPOINT_METADATA").write_text("{}")
    return folder


@pytest.fixture
def folder(tmp_path):
    return make_checkpoint(tmp_path / "checkpoints" / "4")


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


ARRAY, META, SUMS = "model/d/array", "meta", "checksums.json"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: flip(f / ARRAY), f"{ARRAY} has changed since"),
        (lambda f: truncate(f / ARRAY), f"{ARRAY} has 10239 of 10240 bytes"),
        (lambda f: (f / ARRAY).write_bytes(b""), f"{ARRAY} has 0 of 10240 bytes"),
        (lambda f: (f / META).write_text('{"step": 4} '), f"{META} has 12 of 11 bytes"),
        (lambda f: (f / META).unlink(), f"{META} is missing"),
        (lambda f: shutil.rmtree(f / "model"), f"{ARRAY} is missing"),
        (lambda f: ((f / META).unlink(), (f / META).mkdir()), f"{META} is missing"),
        (lambda f: (f / SUMS).write_bytes((f / SUMS).read_bytes()[:30]), f"{SUMS} is not a list"),
        (lambda f: (f / SUMS).write_bytes(b""), f"{SUMS} is not a list"),
        (lambda f: (f / SUMS).write_text("[]"), f"{SUMS} is not a list"),
        (lambda f: (f / SUMS).write_text('{"crc32": {"meta": 3}}'), f"{SUMS} is not a list"),
        (lambda f: (f / SUMS).write_bytes(b"\xff\xfe"), f"{SUMS} is not a list"),
    ],
)
def test_damage_is_found_and_named(change, said, folder):
    assert find_damage(folder) is None
    change(folder)
    assert find_damage(folder).startswith(said)


def test_every_byte_of_every_file_counts(folder):
    for path in (folder / ARRAY, folder / META):
        whole = path.read_bytes()
        for at in {0, 1, len(whole) // 3, len(whole) - 1}:
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x80]) + whole[at + 1 :])
            assert find_damage(folder) is not None
        path.write_bytes(whole)
    assert find_damage(folder) is None


def test_what_orbax_writes_later_and_a_missing_list_are_no_damage(folder):
    (folder / "commit_success.txt").unlink()
    (folder / "_CHECKPOINT_METADATA").write_text("something else")
    (folder / "more").write_text("a file that somebody added")
    assert find_damage(folder) is None and has_checksums(folder)
    (folder / SUMS).unlink()
    assert find_damage(folder) is None and not has_checksums(folder)


def test_damaged_ones_are_set_aside_with_the_reason(folder, warnings_of_run):
    older = make_checkpoint(folder.with_name("2"))
    newest = make_checkpoint(folder.with_name("6"))
    flip(older / ARRAY)
    truncate(newest / META)
    move_damaged(folder.parent)
    workdir = folder.parent.parent
    assert finished_steps(workdir) == [4]
    assert sorted(p.name for p in (workdir / "damaged").iterdir()) == ["2", "6"]
    first, second = (record.getMessage() for record in warnings_of_run.records)
    assert first.startswith("checkpoint 6 is damaged: meta has 10 of 11 bytes; moved to ")
    assert first.endswith("the one before it is used")
    assert second.startswith(f"checkpoint 2 is damaged: {ARRAY} has changed since")
    assert "one before" not in second


def test_the_same_step_may_be_damaged_twice(folder):
    for _ in range(2):
        shutil.rmtree(folder)
        flip(make_checkpoint(folder) / META)
        make_checkpoint(folder.with_name("2"))
        move_damaged(folder.parent)
        assert finished_steps(folder.parent.parent) == [2]
        shutil.rmtree(folder.with_name("2"))
        make_checkpoint(folder)


def test_where_all_are_damaged_nothing_is_moved(folder):
    flip(make_checkpoint(folder.with_name("6")) / ARRAY)
    truncate(folder / META)
    with pytest.raises(ValueError, match="none of the checkpoints in .*6: .*changed since.*4: m"):
        move_damaged(folder.parent)
    assert finished_steps(folder.parent.parent) == [4, 6]


def test_a_folder_without_checkpoints(tmp_path):
    move_damaged(tmp_path / "checkpoints")
    assert finished_steps(tmp_path) == [] and list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def saved(tiny_run, tmp_path_factory):
    """A folder with the steps 2, of AP 0.9, and 3 and 4."""
    workdir = tmp_path_factory.mktemp("saved")
    save_steps(workdir, tiny_run, {2: 0.9, 3: 0.3, 4: None})
    return workdir


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def latest_step(workdir, tiny_run) -> int:
    with open_manager(workdir) as manager:
        state, running, _ = restore_latest(manager, tiny_run.fresh_state(), running_at(tiny_run, 0))
    step = int(state.step)
    support.assert_trees_equal(state, state_at(tiny_run, step))
    support.assert_trees_equal(running, running_at(tiny_run, step))
    return step


@pytest.mark.parametrize("item", ["model", "train"])
def test_a_flipped_bit_in_an_array_is_stepped_over(item, copy, tiny_run):
    arrays = (copy / "checkpoints" / "4" / item).rglob("d/*")
    flip(max((p for p in arrays if p.is_file()), key=lambda p: p.stat().st_size))
    if item == "model":
        with pytest.raises(ValueError, match="checkpoint 4 .* is damaged .*changed since"):
            restore(copy)
    else:  # what only training needs is not read, nor are its checksums
        assert restore(copy).step == 4
    assert latest_step(copy, tiny_run) == 3


@pytest.mark.parametrize("change", [truncate, pathlib.Path.unlink, lambda p: p.write_bytes(b"")])
def test_files_that_are_not_listed_cannot_block_a_run(change, copy, tiny_run):
    newest = copy / "checkpoints" / "4"
    names = ("commit_success.txt", "_CHECKPOINT_METADATA")
    for path in [p for name in names for p in newest.rglob(name)]:
        change(path) if path.stat().st_size else path.unlink()
    assert latest_step(copy, tiny_run) in (3, 4)


def half_deleted(folder, with_list):
    """As a run leaves it that is killed while it removes an old checkpoint."""
    shutil.rmtree(folder / "model")
    shutil.rmtree(folder / "train")
    if not with_list:
        (folder / SUMS).unlink()


@pytest.mark.parametrize("with_list", [True, False])
def test_a_half_deleted_old_checkpoint_blocks_nothing(with_list, copy, tiny_run):
    save_steps(copy, tiny_run, {5: 0.95})  # now the best; 2 and 3 go
    checkpoints = copy / "checkpoints"
    shutil.copytree(checkpoints / "5", checkpoints / "3")
    half_deleted(checkpoints / "3", with_list)
    assert latest_step(copy, tiny_run) == 5
    assert restore(copy, "best").step == 5
    meta = make_meta(to_dict(tiny_run.config), tiny_run.run.train_index.class_names, PROGRESS)
    with open_manager(copy) as manager:
        save(manager, state_at(tiny_run, 6), running_at(tiny_run, 6), meta)
        record_evaluation(manager, 6, {"AP": 0.1})
    assert finished_steps(copy) == [5, 6]
    assert restore(copy, "best").step == 5


@pytest.mark.parametrize(
    "change", [lambda text: "", lambda text: text[:9], lambda text: text.replace("0.9", "0.1")]
)
def test_damaged_figures_of_an_evaluation_are_dropped(change, copy, tiny_run, warnings_of_run):
    path = copy / "checkpoints" / "2" / "metrics" / "metrics"
    path.write_text(change(path.read_text()))
    with pytest.raises(InputError, match=r"2/metrics is damaged; delete it"):
        restore(copy)
    assert latest_step(copy, tiny_run) == 4
    assert "checkpoint 2: its metrics are damaged" in warnings_of_run.text
    assert restore(copy, "best").step == 3
    with open_manager(copy) as manager:
        record_evaluation(manager, 2, {"AP": 0.8})
    assert restore(copy, "best").step == 2


def test_figures_are_there_whole_or_not_at_all(copy, monkeypatch):
    folder = copy / "checkpoints" / "4"
    with monkeypatch.context() as patch:
        patch.setattr(damage.os, "fsync", lambda handle: 1 / 0)  # killed on the way
        with pytest.raises(ZeroDivisionError):
            damage.write_figures(folder, {"AP": 0.7})
    assert not (folder / "metrics").exists()
    damage.write_figures(folder, {"AP": 0.7})
    damage.write_figures(folder, {"AP": 0.2})
    assert json.loads((folder / "metrics" / "metrics").read_text())["AP"] == 0.7
    assert not (copy / ".metrics.tmp").exists()
