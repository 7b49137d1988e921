"""Export to ONNX: equal to the native detector in ONNX Runtime. `make test-exports` runs this."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import support
from test_export import FAMILIES, LOW, assert_same_detections, pictures, tiny_restored

import m2det_jax
from m2det_jax.config.dotted import to_dict
from m2det_jax.errors import InputError
from m2det_jax.export import onnx_files, run
from m2det_jax.inference.exported import ONNX_NMS
from m2det_jax.run.checkpoint import make_meta, open_manager

pytestmark = pytest.mark.exports

SOFT = ["eval.nms=soft_linear"]


@pytest.fixture(autouse=True)
def runtime_of_onnx():
    support.import_or_skip("jax2onnx", "test-exports")
    return support.import_or_skip("onnxruntime", "test-exports")


@pytest.fixture(scope="module")
def exported(workdir, tmp_path_factory):
    """(folder of an export with soft suppression, what it has compared)."""
    support.import_or_skip("jax2onnx", "test-exports")
    folder = tmp_path_factory.mktemp("export")
    return folder, run.export(workdir, format="onnx", output=str(folder), overrides=SOFT)


@pytest.mark.parametrize("name", ["detector.onnx", ONNX_NMS])
def test_an_export_is_equal_to_the_native_detector(exported, name):
    folder, results = exported
    result = results[name]
    assert result["within"] and result["pictures"] == support.NUM_VAL
    assert "onnxruntime" in result["process"] and "jax" not in result["process"]
    for output in ("boxes", "scores"):
        assert result["raw"][output]["deviation"] > 0.01 and result["raw"][output]["ratio"] < 1e-4
    assert result["matched"] > 50 and "unexplained" not in result["unmatched"]
    assert result["AP"]["native"] == pytest.approx(result["AP"]["artefact"], abs=0.01)
    description = json.loads((folder / f"{name}.json").read_text())
    inside = name == ONNX_NMS
    assert description["suppression_inside"] == inside == ("selected" in description["output"])
    assert description["suppression"]["nms"] == ("hard" if inside else "soft_linear")


def test_load_suppresses_as_the_run_does(exported, workdir, tmp_path):
    native = m2det_jax.load(workdir, overrides=SOFT)
    found = m2det_jax.load(exported[0], backend="onnx")
    paths = pictures(tmp_path, (40, 60), (100, 50), (480, 640))
    for threshold in (0.0, LOW):
        expected = native.predict(paths, threshold, batch_size=2)
        for one, other in zip(found.predict(paths, threshold, batch_size=2), expected, strict=True):
            assert len(one) > 0
            assert_same_detections(one, other)
    with pytest.raises(InputError, match=r"load detector\.onnx beside it"):
        m2det_jax.load(exported[0] / ONNX_NMS)


def test_the_example_runs_without_jax_and_this_package(exported, workdir, tmp_path):
    (photo,) = pictures(tmp_path, (200, 300))
    program = (
        "import sys, runpy\nsys.modules['jax'] = sys.modules['m2det_jax'] = None\n"
        "sys.argv[:] = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", program, "detect.py"]
    options = dict(cwd=exported[0], env=os.environ, capture_output=True, text=True)
    done = subprocess.run([*command, ONNX_NMS, photo], **options)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["objects"]
    native = m2det_jax.load(workdir, overrides=["eval.nms=hard"]).predict(photo)
    assert [one["class"] for one in found] == native.names.tolist() and len(found) > 0
    np.testing.assert_allclose([one["box"] for one in found], native.boxes, atol=0.01)
    done = subprocess.run([*command, "detector.onnx", photo], **options)
    assert done.returncode == 1 and "use detector_nms.onnx" in done.stderr


def test_a_missing_package_is_named(workdir, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_files, "_is_installed", lambda name: name != "jax2onnx")
    with pytest.raises(InputError, match="needs jax2onnx: pip install 'm2det_jax"):
        onnx_files.convert(workdir, 6)


@pytest.mark.parametrize("backbone", FAMILIES)
def test_every_family_of_backbones_is_converted(backbone, runtime_of_onnx, tmp_path):
    restored = tiny_restored(backbone)
    meta = make_meta(to_dict(restored.config), restored.class_names, {})
    with open_manager(tmp_path) as manager:
        model, meta = ocp.args.StandardSave(restored.variables), ocp.args.JsonSave(meta)
        manager.save(1, args=ocp.args.Composite(model=model, meta=meta))
    session = runtime_of_onnx.InferenceSession(
        onnx_files.convert(tmp_path, 1).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    detector = restored.detector
    network = detector.model.clone(dtype=np.float32)

    @jax.jit
    def native(images):
        outputs = network.apply(restored.variables, detector.normalize(images), train=False)
        return outputs["box_deltas"], detector.class_scores(outputs["class_logits"])

    for count in (1, 3):
        images = np.random.default_rng(count).integers(0, 256, (count, 64, 64, 3), np.uint8)
        boxes, scores = session.run(["boxes", "scores"], {"images": images})
        deltas, expected = native(images)
        decoded = m2det_jax.ops.decode(deltas, detector.anchors[None], detector.variances)
        decoded = m2det_jax.ops.clip(decoded, (64, 64))
        np.testing.assert_allclose(boxes, decoded, atol=0.01)
        np.testing.assert_allclose(scores, expected, atol=1e-4)
        assert float(np.std(scores)) > 0.01
