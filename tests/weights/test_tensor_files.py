"""Reading and writing `.safetensors` and `.pth`, and what a damaged or wicked file comes to."""

import json
import os
import pickle
import sys

import numpy as np
import pytest
import support
from safetensors.numpy import save_file

from m2det_jax.weights.files import read_tensors, write_tensors

TENSORS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.num_batches_tracked": np.asarray(7, np.int64),
}


def same(found, expected=TENSORS):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        np.testing.assert_array_equal(found[name], tensor)
    return True


@pytest.fixture
def torch():
    return support.import_or_skip("torch")


@pytest.mark.parametrize("prefix", ["", "module.", "module.module."])
def test_safetensors_come_back_without_the_prefix_of_parallel_training(tmp_path, prefix):
    path = tmp_path / "x.safetensors"
    save_file({prefix + name: tensor for name, tensor in TENSORS.items()}, path)
    assert same(read_tensors(path))
    write_tensors(path, TENSORS, {"classes": "cat"})
    assert same(read_tensors(path)) and os.listdir(tmp_path) == ["x.safetensors"]


def test_a_prefix_before_some_names_alone_stays(tmp_path):
    save_file({"module.a": np.zeros(1), "b": np.zeros(1)}, tmp_path / "x.safetensors")
    assert read_tensors(tmp_path / "x.safetensors").keys() == {"module.a", "b"}


@pytest.mark.parametrize("content", [b"", b"no safetensors here"])
def test_unreadable_safetensors_name_the_file(tmp_path, content):
    path = tmp_path / "vgg.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"vgg\.safetensors: not a readable"):
        read_tensors(path)


def safetensors_bytes(dtype, shape, size):
    entry = {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}
    header = json.dumps({"w": entry}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(size)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (safetensors_bytes("F32", [2], 8)[:-4], "not a readable"),
        (safetensors_bytes("F32", [1 << 40], 8), "not a readable"),
        (safetensors_bytes("F33", [2], 8), "not a readable"),
        ((1 << 60).to_bytes(8, "little") + b"{}", "not a readable"),
        (safetensors_bytes("F8_E4M3", [8], 8), "dtype that numpy does not have"),
    ],
    ids=["cut off", "shape", "dtype", "length", "float8"],
)
def test_a_wrong_header_is_one_line(tmp_path, content, reason):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"x\.safetensors: .*{reason}") as error:
        read_tensors(path)
    assert "\n" not in str(error.value)
    path.write_bytes(safetensors_bytes("F32", [2], 8))
    assert same(read_tensors(path), {"w": np.zeros(2, np.float32)})


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_folder_is_no_file(tmp_path, suffix):
    (tmp_path / f"x{suffix}").mkdir()
    with pytest.raises(ValueError, match=rf"x\{suffix}: a folder; give the weights file in it"):
        read_tensors(tmp_path / f"x{suffix}")


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.pth: no such file"):
        read_tensors(tmp_path / "gone.pth")
    (tmp_path / "keras.h5").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"\.h5 files are not supported"):
        read_tensors(tmp_path / "keras.h5")
    with pytest.raises(ValueError, match=r"ends in \.safetensors or \.pth"):
        write_tensors(tmp_path / "out.npz", TENSORS, {})


def test_without_pytorch_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "x.pth").write_bytes(b"x")
    for use in (lambda p: read_tensors(p), lambda p: write_tensors(p, TENSORS, {})):
        with pytest.raises(ValueError, match=r"pip install '\.\[torch\]'"):
            use(tmp_path / "x.pth")


@pytest.mark.parametrize("wrap", [dict, lambda t: {"epoch": 3, "state_dict": t, "optimizer": {}}])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("legacy", [False, True])
def test_state_dicts_come_back_however_they_were_saved(tmp_path, torch, wrap, prefix, legacy):
    tensors = {prefix + n: torch.from_numpy(t.copy()) for n, t in TENSORS.items()}
    path = tmp_path / "x.pth"
    torch.save(wrap(tensors), path, _use_new_zipfile_serialization=not legacy)
    assert same(read_tensors(path))


def test_pth_files_are_written_and_half_precision_is_widened(tmp_path, torch):
    write_tensors(tmp_path / "x.pth", TENSORS, {})
    assert same(read_tensors(tmp_path / "x.pth")) and os.listdir(tmp_path) == ["x.pth"]
    torch.save({"w": torch.ones(2, dtype=torch.bfloat16)}, tmp_path / "half.pth")
    assert same(read_tensors(tmp_path / "half.pth"), {"w": np.ones(2, np.float32)})


class Wicked:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, torch, zipped):
    path = tmp_path / "wicked.pth"
    contents = {"a.weight": torch.ones(2), "more": Wicked(tmp_path / "owned")}
    if zipped:
        torch.save(contents, path)
    else:
        path.write_bytes(pickle.dumps(Wicked(tmp_path / "owned")))
    with pytest.raises(ValueError, match=r"wicked\.pth: refused, it (calls|is)") as error:
        read_tensors(path)
    assert "\n" not in str(error.value) and not (tmp_path / "owned").exists()
    assert "weights_only" not in str(error.value)  # PyTorch's advice to load it all the same
    assert ("it calls posix.mkdir;" in str(error.value)) == zipped


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_cut_off_file_is_one_line(tmp_path, torch, share, legacy):
    path = tmp_path / "cut.pth"
    torch.save({"w": torch.ones(1000)}, path, _use_new_zipfile_serialization=not legacy)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"cut\.pth: (damaged|refused)") as error:
        read_tensors(path)
    assert "\n" not in str(error.value)


def test_a_file_without_weights_names_its_entries(tmp_path, torch):
    torch.save({"epoch": 3, "loss": 1.0}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="no state dict in it.*epoch, loss"):
        read_tensors(tmp_path / "x.pth")
    torch.save({"w": torch.ones(1), "epoch": 3}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="not tensors: epoch"):
        read_tensors(tmp_path / "x.pth")


@pytest.mark.parametrize("kind", ["sparse", "complex", "meta", "keys"])
def test_tensors_that_are_no_plain_numbers_are_named(tmp_path, torch, kind):
    strange = {
        "sparse": lambda: torch.eye(3).to_sparse(),
        "complex": lambda: torch.ones(3, dtype=torch.complex64),
        "meta": lambda: torch.ones(3, device="meta"),
        "keys": lambda: torch.ones(3),
    }[kind]()
    torch.save({"fine": torch.ones(2), (7 if kind == "keys" else "w"): strange}, tmp_path / "x.pth")
    reason = "keys are not names: 7" if kind == "keys" else r"not tensors of plain numbers: w \("
    with pytest.raises(ValueError, match=rf"x\.pth: .*{reason}") as error:
        read_tensors(tmp_path / "x.pth")
    assert "fine" not in str(error.value) and "\n" not in str(error.value)
