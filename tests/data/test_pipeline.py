"""Batches: a function of seed and step alone, every image in its turn, errors that arrive."""

import dataclasses
import itertools
import multiprocessing
import os
import pathlib
import signal
import threading
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from m2det_jax.data import (
    AugmentSettings,
    ResizeSettings,
    TrainSettings,
    eval_batches,
    read_csv,
    train_batches,
)

SETTINGS = AugmentSettings((48, 64))
PLAIN = TrainSettings(SETTINGS, batch_size=4, seed=0)
OF_SETTINGS = {field.name for field in dataclasses.fields(TrainSettings)}
KEYS = {"image", "boxes", "labels", "mask", "image_id"}


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """Eleven noisy images of different sizes; image i has i % 4 boxes."""
    folder = tmp_path_factory.mktemp("set")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(11):
        width, height = 60 + 7 * i, 90 - 5 * i
        noise = rng.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
        rows += [f"{i}.png,{j},{2 * j},{30 + j},{20 + 5 * j},b" for j in range(i % 4)]
        rows += [f"{i}.png,,,,,"] * (i % 4 == 0)
    (folder / "train.csv").write_text("\n".join(rows))
    return read_csv(folder / "train.csv", ("a", "b"))


def take(count, index, **options):
    chosen = {name: options.pop(name) for name in OF_SETTINGS & options.keys()}
    settings = dataclasses.replace(PLAIN, **{"seed": 5} | chosen)
    with train_batches(index, settings, **options) as batches:
        return list(itertools.islice(batches, count))


def equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def test_shapes_and_padding(index):
    (batch,) = take(1, index)
    assert batch.keys() == KEYS
    described = {key: (value.shape, value.dtype.name) for key, value in batch.items()}
    assert described == {
        "image": ((4, 48, 64, 3), "uint8"),
        "boxes": ((4, 8, 4), "float32"),
        "labels": ((4, 8), "int32"),
        "mask": ((4, 8), "bool"),
        "image_id": ((4,), "int32"),
    }
    for batch in take(12, index):
        assert (batch["mask"].sum(axis=1) <= batch["image_id"] % 4).all()
        assert (
            not batch["boxes"][~batch["mask"]].any() and not batch["labels"][~batch["mask"]].any()
        )
        x1, y1, x2, y2 = batch["boxes"][batch["mask"]].T
        assert (x1 >= 0).all() and (x1 < x2).all() and (x2 <= 64).all()
        assert (y1 >= 0).all() and (y1 < y2).all() and (y2 <= 48).all()
        assert (batch["labels"][batch["mask"]] == 1).all()


def test_epochs_are_permutations(index):
    ids = np.concatenate([batch["image_id"] for batch in take(11, index)])
    epochs = [ids[start : start + 11].tolist() for start in (0, 11, 22, 33)]
    assert all(sorted(epoch) == list(range(11)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_seed_and_epoch_change_the_augmentation(index):
    first, other = take(1, index)[0], take(1, index, seed=6)[0]
    assert equal(first, take(1, index)[0]) and not equal(first, other)
    one = index.subset([5])
    batches = take(3, one, batch_size=2)
    images = [image.tobytes() for batch in batches for image in batch["image"]]
    assert len(set(images)) == len(images)


@pytest.mark.parametrize("start_step", [1, 7])
def test_resume_at_a_step(index, start_step):
    whole = take(10, index)[start_step:]
    resumed = take(len(whole), index, start_step=start_step)
    assert all(equal(a, b) for a, b in zip(whole, resumed, strict=True))


@pytest.mark.parametrize("options", [{"num_threads": 0}, {"num_threads": 5}, {"num_workers": 2}])
def test_workers_and_threads_change_nothing(index, options):
    expected = take(7, index, start_step=2)
    got = take(7, index, start_step=2, **options)
    assert all(equal(a, b) for a, b in zip(expected, got, strict=True))


def test_processes_share_each_global_batch(index):
    expected = take(6, index)
    shares = [take(6, index, process_index=i, process_count=2) for i in range(2)]
    for step, batch in enumerate(expected):
        for key in KEYS:
            merged = np.stack([share[step][key] for share in shares], axis=1)
            assert np.array_equal(merged.reshape(batch[key].shape), batch[key])


def test_batch_larger_than_the_set(index):
    (batch,) = take(1, index.subset([3, 6]), batch_size=7)
    assert set(batch["image_id"].tolist()) == {0, 1} and len(batch["image"]) == 7


def test_max_objects(index):
    assert take(1, index, max_objects=3)[0]["boxes"].shape == (4, 3, 4)
    with pytest.raises(ValueError, match="an image has 3 objects, got 2"):
        take(1, index, max_objects=2)


@pytest.mark.parametrize("options", [{"num_threads": 0}, {"num_threads": 2}, {"num_workers": 1}])
def test_unreadable_image_is_named(index, tmp_path, options):
    content = pathlib.Path(index.image_paths[3]).read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    paths = (*index.image_paths[:3], str(tmp_path / "cut.png"), *index.image_paths[4:])
    broken = dataclasses.replace(index, image_paths=paths)
    batches = train_batches(broken, PLAIN, **options)
    with batches, pytest.raises(ValueError, match=r"cut\.png"):
        list(itertools.islice(batches, 4))
    # Nothing goes on as if the batch had not been there.
    with pytest.raises(ValueError, match=r"cut\.png"):
        next(batches)


def strike_starting_worker(numbers):
    """Sends signals to the first worker as soon as it exists, long before it has set itself up."""

    def strike():
        end = time.monotonic() + 60
        while not (workers := multiprocessing.active_children()) and time.monotonic() < end:
            time.sleep(0.001)
        for number in numbers:
            os.kill(workers[0].pid, number)

    thread = threading.Thread(target=strike)
    thread.start()
    return thread


def test_a_worker_outlives_the_signals_of_its_group_and_its_death_is_told(index):
    with train_batches(index, PLAIN, num_workers=1) as batches:
        thread = strike_starting_worker([signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
        first = next(batches)
        thread.join()
        assert equal(first, take(1, index, seed=0)[0])
        (worker,) = multiprocessing.active_children()
        os.kill(worker.pid, signal.SIGTERM)
        next(batches)
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(ChildProcessError) as caught:
            for _ in range(50):  # some batches were ready before
                next(batches)
        message = str(caught.value)
        assert "a data worker was ended by signal 9 (out of memory? fewer" in message
        assert any(path in message for path in index.image_paths)
        with pytest.raises(ChildProcessError):
            next(batches)
    assert not multiprocessing.active_children()


def test_an_unreadable_image_is_replaced_and_told(index, tmp_path):
    bad = str(tmp_path / "absent.png")
    paths = (*index.image_paths[:10], bad)
    broken = dataclasses.replace(index, image_paths=paths)
    expected = take(6, index)
    for batch, whole in zip(take(6, broken, on_bad_image="skip"), expected, strict=True):
        was_bad = whole["image_id"] == 10
        # The next of the last image is the first.
        assert batch["image_id"].tolist() == np.where(was_bad, 0, whole["image_id"]).tolist()
        assert batch["replaced"].tolist() == np.where(was_bad, 10, -1).tolist()
        assert np.array_equal(batch["image"][~was_bad], whole["image"][~was_bad])
    none = dataclasses.replace(index, image_paths=(bad,) * 11)
    with pytest.raises(ValueError, match=r"cannot read image .*absent\.png: no such file"):
        take(1, none, on_bad_image="skip")


def test_closing_ends_it(index):
    batches = train_batches(index, PLAIN)
    next(batches)
    batches.close()
    batches.close()
    assert list(batches) == []


@pytest.mark.parametrize("mode", ["stretch", "letterbox"])
def test_eval_batches(index, mode):
    resize = ResizeSettings((48, 64), mode=mode)
    batches = list(eval_batches(index, resize=resize, batch_size=4))
    assert [batch["image_id"].tolist() for batch in batches] == [
        [0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, -1]
    ]  # fmt: skip
    for batch in batches:
        assert batch.keys() == KEYS | {"scale", "offset"}
        assert batch["scale"].dtype == batch["offset"].dtype == np.float32
        for row, image_id in enumerate(batch["image_id"]):
            boxes = batch["boxes"][row][batch["mask"][row]]
            if image_id < 0:
                assert not len(boxes) and (batch["image"][row] == resize.fill).all()
                assert batch["scale"][row].tolist() == [1, 1]
                continue
            original = (boxes - np.tile(batch["offset"][row], 2)) / np.tile(batch["scale"][row], 2)
            assert np.allclose(original, index.objects(image_id)[0], atol=1e-3)


def test_eval_batches_of_worker_processes_are_the_same(index):
    resize = ResizeSettings((48, 64))
    expected = list(eval_batches(index, resize=resize, batch_size=4))
    got = list(eval_batches(index, resize=resize, batch_size=4, num_workers=2, num_threads=1))
    for one, other in zip(expected, got, strict=True):
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[key], other[key]) for key in one)


def test_eval_batches_name_what_they_skip(index, tmp_path):
    cut = tmp_path / "cut.png"
    cut.write_bytes(pathlib.Path(index.image_paths[5]).read_bytes()[:900])  # header whole
    paths = [*index.image_paths[:5], str(cut), *index.image_paths[6:]]
    broken = dataclasses.replace(index, image_paths=tuple(paths))
    resize = ResizeSettings((48, 64))
    with pytest.raises(ValueError, match="cut.png"):
        list(eval_batches(broken, resize=resize, batch_size=4))
    skipping = list(eval_batches(broken, resize=resize, batch_size=4, on_bad_image="skip"))
    assert [batch["image_id"].tolist() for batch in skipping] == [
        [0, 1, 2, 3], [4, -1, 6, 7], [8, 9, 10, -1]
    ]  # fmt: skip
    assert [batch["unreadable"].tolist() for batch in skipping] == [
        [-1, -1, -1, -1], [-1, 5, -1, -1], [-1, -1, -1, -1]
    ]  # fmt: skip
    assert (skipping[1]["image"][1] == resize.fill).all() and not skipping[1]["mask"][1].any()


def test_eval_batches_are_dealt_to_processes(index):
    resize = ResizeSettings((48, 64))
    shares = [
        list(eval_batches(index, resize=resize, batch_size=8, process_index=i, process_count=2))
        for i in range(2)
    ]
    assert [len(share) for share in shares] == [2, 2]
    ids = sorted(i for share in shares for batch in share for i in batch["image_id"].tolist())
    assert ids == [-1] * 5 + list(range(11))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 3, "process_count": 2}, "3 images cannot be dealt evenly to 2"),
        ({"process_index": 1}, "process_index"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"start_step": -1}, "start_step"),
        ({"num_workers": -1}, "num_workers"),
    ],
)
def test_arguments_are_checked(index, options, message):
    with pytest.raises(ValueError, match=message):
        take(1, index, **options)


def test_empty_set(index):
    with pytest.raises(ValueError, match="no images"):
        take(1, index.subset([]))


def test_seed_limits(index):
    for seed in (0, 2**32 - 1):
        assert len(take(1, index, seed=seed)) == 1


def test_bccd_sample(bccd_dir):
    whole = read_csv(bccd_dir / "train.csv", bccd_dir / "classes.csv")
    settings = AugmentSettings((320, 320))
    (batch,) = take(1, whole, augment=settings, batch_size=8)
    assert batch["image"].shape == (8, 320, 320, 3) and batch["boxes"].shape == (8, 32, 4)
    assert batch["mask"].any(axis=1).all()


def test_the_default_stream_is_that_of_the_first_version(index):
    """Scores were measured with it. Written down from the version before the steps had names."""
    batches = take(6, index)
    boxes = b"".join(batch["boxes"].tobytes() + batch["mask"].tobytes() for batch in batches)
    ids = [batch["image_id"].tolist() for batch in batches]
    means = [batch["image"].mean() for batch in batches]
    assert ids == [
        [3, 9, 10, 8], [1, 0, 6, 5], [7, 2, 4, 7], [6, 10, 5, 9], [0, 4, 3, 2], [8, 1, 6, 1]
    ]  # fmt: skip
    assert zlib.crc32(boxes) == 692687559
    assert np.allclose(means, [123.168, 120.288, 111.278, 119.015, 124.484, 123.206], atol=0.02)


BUSY = dataclasses.replace(SETTINGS, pipeline=("mosaic", "affine", "crop", "paste", "mixup"))
VARIED = {"augment": BUSY, "repeat_threshold": 0.9, "sizes": ((48, 64), (64, 48), (32, 80))}


@pytest.mark.parametrize(
    "options", [{"num_threads": 0}, {"num_threads": 5}, {"num_workers": 2}, {"start_step": 4}]
)
def test_several_images_sizes_and_factors_are_a_function_of_the_step(index, options):
    start = options.get("start_step", 0)
    expected = take(8, index, **VARIED)[start:]
    assert len({batch["image"].shape for batch in expected}) > 1
    got = take(len(expected), index, **VARIED | options)
    assert all(equal(a, b) for a, b in zip(expected, got, strict=True))


def test_processes_share_a_step_and_its_size(index):
    expected = take(6, index, **VARIED)
    shares = [take(6, index, **VARIED, process_index=i, process_count=2) for i in range(2)]
    for step, batch in enumerate(expected):
        for key in KEYS:
            merged = np.stack([share[step][key] for share in shares], axis=1)
            assert np.array_equal(merged.reshape(batch[key].shape), batch[key])


def test_padding_holds_the_fullest_picture(index):
    # At most 3 objects an image: four images, 3 pasted, and the same once more.
    (batch,) = take(1, index, **VARIED)
    assert batch["boxes"].shape[1] == 32
    with pytest.raises(ValueError, match="a picture can have 30 objects, got 29"):
        take(1, index, **VARIED, max_objects=29)


def test_rare_classes_come_more_often(index):
    labels = np.where(np.arange(len(index.labels)) == 0, 0, index.labels).astype(np.int32)
    rare = dataclasses.replace(index, labels=labels)
    holder = int(np.searchsorted(rare.offsets, 1) - 1)  # the image with the only object of class 0
    threshold = 4 / 11  # r = 2 for that image, 1 for all others: 12 images an epoch
    plain = dataclasses.replace(SETTINGS, enabled=False)
    batches = take(6, rare, augment=plain, repeat_threshold=threshold)
    ids = np.concatenate([batch["image_id"] for batch in batches]).reshape(2, 12)
    for epoch in ids:
        assert sorted(epoch) == sorted([*range(11), holder])
    assert ids[0].tolist() != ids[1].tolist()


def test_one_size_takes_the_place_of_the_settings(index):
    (batch,), (same,) = (
        take(1, index, sizes=((32, 80),)),
        take(1, index, augment=dataclasses.replace(SETTINGS, image_size=(32, 80))),
    )
    assert batch["image"].shape == (4, 32, 80, 3) and equal(batch, same)


def test_images_that_join_in_are_drawn_anew_where_they_cannot_be_read(index, tmp_path):
    bad = str(tmp_path / "absent.png")
    broken = dataclasses.replace(index, image_paths=(*index.image_paths[:10], bad))
    settings = dataclasses.replace(SETTINGS, pipeline=("mosaic",), mosaic_probability=1.0)
    with pytest.raises(ValueError, match="absent.png"):
        take(5, broken, augment=settings)
    expected = [batch["image_id"] for batch in take(5, index, augment=settings)]
    batches = take(5, broken, augment=settings, on_bad_image="skip")
    for batch, ids in zip(batches, expected, strict=True):
        # Only the bad image itself gives its place to the next one; good ones keep theirs.
        assert batch["image_id"].tolist() == np.where(ids == 10, 0, ids).tolist()
        assert (batch["replaced"][ids == 10] == 10).all()
    again = take(3, broken, augment=settings, on_bad_image="skip", start_step=2)
    assert all(equal(a, b) for a, b in zip(batches[2:], again, strict=True))
