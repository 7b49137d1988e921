"""Parity with the authors' PyTorch code at full size; weights drawn by the reference's rule."""

import json

import jax
import numpy as np
import pytest

from benchmarks.gpu.agreement import reference_tensor
from m2det_jax.model import M2Det, official_form
from m2det_jax.weights.official import official_fields, official_to_variables, variables_to_official

CASES = ["vgg16_320_sfam_c21", "vgg16_320_nosfam_c21", "resnet50_320_sfam_c21"]


@pytest.mark.parametrize("name", CASES)
def test_forward_pass_equals_the_official_one(reference_dir, name):
    """Also: the fields are read off the tensors, and all tensors come back out, bit for bit."""
    case = json.loads((reference_dir / "official_state_dicts.json").read_text())[name]
    reference = np.load(reference_dir / "official_forward.npz")
    weights = {key: reference_tensor(key, shape) for key, shape in case["state_dict"].items()}
    fields = official_fields(weights, name)
    assert (fields["backbone"], fields["sfam"]) == (case["backbone"], case["sfam"])
    stride = case["backbone"].startswith("resnet")
    model = M2Det(**official_form() | fields | {"backbone_official_stride": stride})
    variables = official_to_variables(weights, model)
    back = variables_to_official(variables, model, {k: weights[k] for k in weights if "fc." in k})
    assert back.keys() == weights.keys()
    for key, tensor in weights.items():
        assert (back[key].shape, back[key].dtype) == (tensor.shape, tensor.dtype), key
        np.testing.assert_array_equal(back[key], tensor, err_msg=key)

    rng = np.random.default_rng(case["image_seed"])
    image = rng.standard_normal((1, 3, 320, 320), np.float32).transpose(0, 2, 3, 1)
    out = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, image)
    summary = []
    for ours, theirs in (("box_deltas", "loc"), ("class_logits", "conf")):
        value = np.asarray(out[ours][0])
        expected = reference[f"{name}/{theirs}"]
        error = np.abs(value[reference[f"{name}/index"]] - expected).max()
        print(f"{name} {theirs}: largest error {error / value.std():.2g} standard deviations")
        assert error < 2e-5 * value.std()
        summary += [value.mean(), value.std()]
    np.testing.assert_allclose(summary, reference[f"{name}/summary"], rtol=1e-4)
