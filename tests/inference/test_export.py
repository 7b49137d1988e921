"""Exported detectors: equal to the native one in a process without this package, and `load`."""

import dataclasses
import hashlib
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support
from PIL import Image

import m2det_jax
from m2det_jax.build import build_detector
from m2det_jax.data import ResizeSettings
from m2det_jax.errors import InputError
from m2det_jax.export import __main__ as verb
from m2det_jax.export import run
from m2det_jax.export.compare import Artefact, Pictures, _within, compare
from m2det_jax.export.matching import Found, _partners
from m2det_jax.export.programs import detection_of, export_stablehlo
from m2det_jax.inference.exported import NAMES, ExportedDetector
from m2det_jax.inference.pictures import look_at
from m2det_jax.model import init_variables
from m2det_jax.trained import Restored

pytestmark = pytest.mark.exports

FILES = ["detector.stablehlo", "detector.stablehlo.json", "detector.stablehlo.comparison.json"]
LOW = 0.3


def pictures(folder: pathlib.Path, *sizes: tuple[int, int]) -> list[str]:
    """Writes pictures of (height, width); returns their paths."""
    folder.mkdir(exist_ok=True)
    paths = []
    for number, (height, width) in enumerate(sizes):
        small = np.random.default_rng(number).integers(0, 256, (4, 6, 3), np.uint8)
        paths.append(str(folder / f"{number}.png"))
        Image.fromarray(small).resize((width, height)).save(paths[-1])
    return paths


def assert_same_detections(one, other):
    """The same boxes; those with the same score in any order."""
    both = [Found(found.boxes, found.scores, found.labels) for found in (one, other)]
    assert len(_partners(*both)) == len(one) == len(other)
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)


@pytest.fixture(scope="module")
def exported(workdir, tmp_path_factory):
    """(folder of an export with soft suppression, what it has compared)."""
    folder = tmp_path_factory.mktemp("export")
    options = dict(output=str(folder), overrides=["eval.nms=soft_linear"])
    results = run.export(workdir, format="stablehlo", weights_license="CC0", **options)
    return folder, results[FILES[0]]


@pytest.fixture(scope="module")
def artefact(exported):
    return exported[0] / "detector.stablehlo"


def test_an_export_is_equal_to_the_native_detector(exported, whole, drawn_files):
    folder, result = exported
    assert result["within"] and result["pictures"] == support.NUM_VAL
    assert result["process"]["without"] == "m2det_jax" and result["process"]["jax"]
    for name in ("class_logits", "box_deltas"):
        assert result["raw"][name]["deviation"] > 0.01 and result["raw"][name]["ratio"] < 1e-4
    assert result["matched"] > 50 and result["unmatched"].get("unexplained", 0) == 0
    assert result["box_difference"] < 0.1 and result["score_difference"] < 1e-3
    assert result["AP"]["images"] == support.NUM_VAL
    assert result["AP"]["native"] == pytest.approx(result["AP"]["artefact"], abs=1e-3)
    assert json.loads((folder / FILES[2]).read_text()) == result


def test_the_description_says_what_one_needs(exported, workdir):
    description = json.loads((exported[0] / FILES[1]).read_text())
    content = (exported[0] / FILES[0]).read_bytes()
    assert description["sha256"] == hashlib.sha256(content).hexdigest()
    assert description["class_names"] == list(m2det_jax.load(workdir).class_names)
    assert description["image_size"] == [64, 96] and description["step"] == 6
    assert description["suppression"]["nms"] == "soft_linear"
    assert description["license"]["weights"] == "CC0"
    assert description["platforms"] == ["cpu", "cuda", "tpu"]
    assert description["versions"]["jax"] == jax.__version__ in description["readable_by"]
    assert description["resize"]["mode"] == "stretch" and len(description["resize"]["fill"]) == 3


def test_the_example_runs_without_this_package(exported, workdir, tmp_path):
    """Python without the folders that .pth files add: an editable installation is not found."""
    (photo,) = pictures(tmp_path, (200, 300))
    packages = [path for path in sys.path if path.endswith("site-packages")]
    program = (
        f"import sys; sys.path += {packages!r}; sys.argv[:] = sys.argv[1:]; import runpy\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\nassert 'm2det_jax' not in sys.modules\n"
        "try:\n    from m2det_jax import load\nexcept ImportError: print('missing')"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program, "detect.py", FILES[0], photo],
        cwd=exported[0], env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    line, missing = done.stdout.splitlines()
    assert missing == "missing"
    found = json.loads(line)["objects"]
    native = m2det_jax.load(workdir, overrides=["eval.nms=soft_linear"]).predict(photo)
    assert [one["class"] for one in found] == native.names.tolist() and len(found) > 0
    boxes, scores = [one["box"] for one in found], [one["score"] for one in found]
    np.testing.assert_allclose(boxes, native.boxes, atol=0.01)
    np.testing.assert_allclose(scores, native.scores, atol=1e-4)


def test_other_weights_are_found(exported, workdir, tmp_path):
    restored = m2det_jax.load(workdir, overrides=["eval.nms=soft_linear"]).restored
    other = jax.tree.map(lambda leaf: leaf * np.float32(1.01), restored.variables)
    description = json.loads((exported[0] / FILES[1]).read_text())
    network = run.write_network(tmp_path, restored, description)
    paths = Artefact(exported[0] / FILES[0], exported[0] / "detect.py", network, ("box_deltas",))
    checked = Pictures(pictures(tmp_path, (40, 60), (64, 96)), None)
    found = compare(paths, dataclasses.replace(restored, variables=other), checked, sys.executable)
    assert found["AP"] is None and found["raw"]["box_deltas"]["ratio"] > 1e-3
    assert not found["within"] and found["unmatched"]["unexplained"] > 0


def test_limits_of_a_comparison():
    small, large = {"ratio": 9e-5, "largest_difference": 9e-5}, {"ratio": 2e-4}
    result = {"raw": {"boxes": small}, "unmatched": {}, "pictures_with_other_pixels": 0}
    assert _within(result) and not _within(result | {"raw": {"boxes": large}})
    assert _within(result | {"raw": {"scores": small | large}})  # these lie in 0..1
    assert not _within(result | {"raw": {"scores": small | {"largest_difference": 2e-4}}})
    assert not _within(result | {"raw": {"boxes": {"ratio": np.inf}}})
    assert _within(result | {"unmatched": {"overlap at the threshold": 3}})
    assert not _within(result | {"unmatched": {"unexplained": 1}})
    assert not _within(result | {"pictures_with_other_pixels": 1})


def test_load_opens_an_artefact(artefact, workdir, tmp_path):
    native = m2det_jax.load(workdir, overrides=["eval.nms=soft_linear"])
    found = m2det_jax.load(artefact)
    assert isinstance(found, ExportedDetector)
    assert (found.class_names, found.image_size, found.step) == (
        native.class_names, native.image_size, 6,
    )  # fmt: skip
    assert "input 64 x 96" in repr(found)
    paths = pictures(tmp_path, (40, 60), (100, 50), (480, 640))
    for threshold in (0.0, LOW, 0.9):
        expected = native.predict(paths, threshold, batch_size=2)
        for one, other in zip(found.predict(paths, threshold, batch_size=2), expected, strict=True):
            assert isinstance(one, m2det_jax.Result)
            assert_same_detections(one, other)
    (first, *_) = found.predict(iter(paths), LOW)
    assert first.source == paths[0] and first.to_coco(1)
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 96, 3), np.uint8)
    for one, other in zip(
        found.predict_on_batch(images), native.predict_on_batch(images), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=0.01)


def test_load_refuses_what_is_no_artefact(artefact, workdir, tmp_path):
    with pytest.raises(InputError, match="backend: expected one of stablehlo, onnx"):
        m2det_jax.load(artefact, backend="torch")
    with pytest.raises(InputError, match=r"no detector\.stablehlo there or in export; write it"):
        m2det_jax.load(workdir, backend="stablehlo")
    with pytest.raises(InputError, match="export again"):
        m2det_jax.load(artefact, overrides=["eval.nms=hard"])
    with pytest.raises(InputError, match="slices"):
        m2det_jax.load(artefact).predict(np.zeros((64, 96, 3), np.uint8), slices=64)
    moved = tmp_path / "export" / artefact.name
    moved.parent.mkdir()
    shutil.copy(artefact, moved)
    with pytest.raises(InputError, match=r"detector\.stablehlo\.json: missing"):
        m2det_jax.load(moved)
    shutil.copy(f"{artefact}.json", f"{moved}.json")
    assert m2det_jax.load(tmp_path, backend="stablehlo").path == moved
    moved.write_bytes(moved.read_bytes()[:-1])
    with pytest.raises(InputError, match="not the file that"):
        m2det_jax.load(moved)
    pathlib.Path(f"{moved}.json").write_text("{}")
    with pytest.raises(InputError, match="not a description"):
        m2det_jax.load(moved)


def test_a_file_of_the_user_is_not_replaced(workdir, tmp_path):
    (tmp_path / "detect.py").write_text("mine")
    with pytest.raises(InputError, match=r"detect\.py: exists already"):
        run.export(workdir, format="stablehlo", output=str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["detect.py"]


def test_pictures_to_check_on(workdir, tmp_path):
    restored = m2det_jax.load(workdir).restored
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no pictures there"):
        run._pictures(restored, workdir, [str(tmp_path / "empty")], False)
    paths = pictures(tmp_path / "some", *[(10, 10)] * 60)
    chosen = run._pictures(restored, workdir, [str(tmp_path / "some"), paths[0]], False)
    assert chosen.checked == sorted(paths)[:50] and chosen.index.num_images == support.NUM_VAL
    batches, checked = chosen.batches()
    assert checked == 7 and sum(map(len, batches)) == 50 + support.NUM_VAL


def test_the_verb_has_the_formats():
    assert tuple(NAMES) == verb.FORMATS


# Families of backbones, with what else is not the same everywhere.
FAMILIES = {
    "vgg16": {"model.backbone_norm": True},
    "resnet18": {
        "model.dtype": "bfloat16",
        "model.remat": True,
        "model.sfam_shared": True,
        "eval.class_agnostic": True,
    },
    "resnet50": {"model.largest_scale_norm": True, "loss.kind": "softmax"},
    "densenet121": {"model.head": "retinanet", "eval.max_per_class": 3},
    "mobilenet_v1": {"eval.nms": "soft_gaussian"},
    "mobilenet_v2": {"model.upsample": "bilinear", "eval.nms": "soft_linear"},
}


# Of the heads, so that scores lie all over 0..1.
GAIN = {
    "vgg16": 1, "resnet18": 0.3, "resnet50": 0.01, "densenet121": 1.6, "mobilenet_v1": 10,
    "mobilenet_v2": 2,
}  # fmt: skip


def tiny_restored(backbone: str) -> Restored:
    keys = {"model.backbone": backbone, "data.image_size": (64, 64), "eval.max_detections": 20}
    config = support.tiny_config(overrides=keys | FAMILIES[backbone])
    detector = build_detector(config, support.SMALL_CLASSES)
    variables = init_variables(detector.model, (64, 64), 0, prior=0.3)
    rng = np.random.default_rng(1)

    def change(path, leaf):
        if path[-1].key in ("var", "scale"):
            return leaf * rng.uniform(0.6, 1.5, leaf.shape).astype(np.float32)
        if path[-1].key == "kernel" and path[1].key in ("class_head", "box_head"):
            return leaf * np.float32(GAIN[backbone])
        return leaf + rng.normal(0, 0.1, leaf.shape).astype(np.float32) * (leaf.ndim == 1)

    variables = jax.tree_util.tree_map_with_path(change, variables)
    return Restored(detector, variables, support.SMALL_CLASSES, config, 0)


@pytest.mark.parametrize("backbone", FAMILIES)
def test_every_family_of_backbones_is_exported(backbone):
    restored = tiny_restored(backbone)
    threshold = jax.ShapeDtypeStruct((), jnp.float32)
    exported = export_stablehlo(detection_of(restored), (64, 64), threshold)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    call = jax.jit(jax.export.deserialize(exported.serialize()).call)
    model = restored.detector.model.clone(dtype=jnp.float32)
    native = dataclasses.replace(restored.detector, model=model).detect_above_fn()
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    expected = native(restored.variables, images, np.float32(0.1))
    assert expected.valid.sum() > 3 and float(jnp.ptp(expected.scores[expected.valid])) > 0.01
    found = call(images, np.float32(0.1))
    for name, value in expected._asdict().items():
        tolerance = {"boxes": 0.01, "scores": 1e-4}.get(name, 0)
        np.testing.assert_allclose(found[name], value, atol=tolerance, err_msg=name)
    one = call(images[1:2], np.float32(0.1))  # another number of images
    np.testing.assert_allclose(one["boxes"][0], found["boxes"][1], atol=0.01)


def example():
    spec = importlib.util.spec_from_file_location(
        "detect", pathlib.Path(run.__file__).with_name("detect.py")
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def odd_pictures(folder: pathlib.Path) -> list[pathlib.Path]:
    """Pictures of many modes, sizes and orientations."""
    rng, paths = np.random.default_rng(0), []

    def save(picture, name, **options):
        paths.append(folder / name)
        picture.save(paths[-1], **options)

    colour = Image.fromarray(rng.integers(0, 256, (9, 7, 3), np.uint8)).resize((333, 217))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        save(colour, f"turned{orientation}.jpg", exif=exif)
        save(colour.resize((1201, 1999)), f"large{orientation}.jpg", exif=exif)
    save(colour.resize((101, 30)), "flat.png", exif=exif)
    save(colour, "turned.tif", tiffinfo={0x0112: 6})
    save(colour.resize((1, 200)), "line.png")
    save(colour.resize((2, 3)), "small.bmp")
    save(colour.convert("L"), "grey.jpg")
    save(colour.convert("CMYK"), "cmyk.jpg")
    save(colour.convert("1"), "bits.png")
    save(colour.convert("P"), "palette.png", transparency=3)
    alpha = colour.convert("RGBA")
    alpha.putalpha(colour.convert("L"))
    save(alpha, "alpha.png")
    save(colour.convert("LA"), "grey_alpha.png")
    wide = np.asarray(colour.convert("L")).astype(np.uint16) * 257 + 100
    save(Image.fromarray(wide), "wide.png")
    return paths


@pytest.mark.parametrize("mode", ["stretch", "letterbox"])
@pytest.mark.parametrize("size", [(64, 96), (160, 100)])
def test_the_example_reads_pictures_as_the_package_does(mode, size, tmp_path):
    settings = ResizeSettings(size, mode, (1, 2, 3))
    description = {"image_size": list(size), "resize": {"mode": mode, "fill": [1, 2, 3]}}
    for path in odd_pictures(tmp_path):
        picture, (view,) = look_at(path, [settings])
        pixels, scale, offset, sides = example().read_picture(str(path), description)
        assert tuple(sides) == picture.size, path.name
        np.testing.assert_array_equal(pixels, view.image, err_msg=path.name)
        np.testing.assert_allclose(scale, view.scale, rtol=1e-6)
        np.testing.assert_array_equal(offset, view.offset)
