"""Files of named tensors, read and written: `.safetensors`, and `.pth` with PyTorch."""

import logging
import os
import pathlib
import pickle
import re
import warnings
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from m2det_jax.errors import InputError

log = logging.getLogger("m2det_jax")

TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".tar", ".ckpt")
# Where training programs keep the weights in a larger dict; the first that is found is used.
STATE_DICT_KEYS = ("state_dict", "model", "model_state", "model_state_dict", "net", "weights")
# nn.DataParallel puts it before every name.
PREFIX = "module."


def read_tensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Returns the tensors of a weights file by name; a `module.` before all names is removed.

    A `.pth` holds a state dict, or a dict with one in it. PyTorch reads it with
    `weights_only=True`, which refuses code. Its tensors of half precision become float32.

    Raises:
        FileNotFoundError: if there is no such file.
        InputError: if the file cannot be read as tensors, or needs PyTorch and it is not installed.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise InputError(f"{path}: a folder; give the weights file in it")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"{path}: not a readable .safetensors file ({error}); get it anew"
            ) from error
        except AttributeError as error:  # safetensors raises it for a dtype that numpy lacks
            raise InputError(f"{path}: a dtype that numpy does not have ({error})") from error
    elif path.suffix in TORCH_SUFFIXES:
        tensors = _read_torch(path)
    else:
        raise InputError(
            f"{path}: unknown kind of weights file; give a .safetensors, or PyTorch's "
            f"{', '.join(TORCH_SUFFIXES)} (Keras .h5 files are not supported)"
        )
    while tensors and all(name.startswith(PREFIX) for name in tensors):
        tensors = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    return tensors


def write_tensors(
    path: str | os.PathLike, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes a `.safetensors`, or a state dict as `.pth`; the file appears whole or not at all.

    Args:
        path: of the file; the suffix chooses the kind.
        tensors: by name.
        metadata: written to a `.safetensors` only.

    Raises:
        InputError: if the suffix is another, or PyTorch is needed and not installed.
    """
    path = pathlib.Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        if path.suffix == ".safetensors":
            save_file(dict(tensors), partial, dict(metadata))
        elif path.suffix in (".pth", ".pt"):
            torch = _torch(path)
            # Copies: PyTorch warns of numpy's read-only arrays.
            torch.save({n: torch.from_numpy(np.array(t)) for n, t in tensors.items()}, partial)
        else:
            raise InputError(f"{path}: give a file name that ends in .safetensors or .pth")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _torch(path: pathlib.Path) -> ModuleType:
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"{path}: {path.suffix} files need PyTorch, which is not installed: "
            "pip install '.[torch]' (or give a .safetensors file, which needs nothing)"
        ) from error
    return torch


def _read_torch(path: pathlib.Path) -> dict[str, np.ndarray]:
    torch = _torch(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old pickle protocols; errors are raised below
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: refused, it {_asked_for(error)}; code in a weights file is never run"
        ) from error
    except Exception as error:  # a damaged file raises anything between EOFError and RuntimeError
        raise InputError(
            f"{path}: damaged or cut off, or not a PyTorch file at all "
            f"({type(error).__name__}: {' '.join(str(error).split())[:80]})"
        ) from error
    state_dict = _state_dict(torch, loaded, path)
    _raise_if_no_plain_numbers(torch, state_dict, path)
    return {name: _to_numpy(tensor) for name, tensor in state_dict.items()}


def _state_dict(torch: ModuleType, loaded: Any, path: pathlib.Path) -> dict:
    def holds_tensors(value: Any) -> bool:
        return isinstance(value, Mapping) and any(torch.is_tensor(v) for v in value.values())

    chosen = loaded
    if isinstance(loaded, Mapping) and not holds_tensors(loaded):
        inner = [key for key in STATE_DICT_KEYS if holds_tensors(loaded.get(key))]
        if not inner:
            raise InputError(
                f"{path}: no state dict in it, under none of {', '.join(STATE_DICT_KEYS)}; "
                f"its entries are {', '.join(map(str, list(loaded)[:20])) or 'none'}"
            )
        chosen = loaded[inner[0]]
        rest = [str(key) for key in loaded if key != inner[0]]
        log.info("%s: the weights are under %r; not used: %s", path, inner[0], ", ".join(rest))
    if not holds_tensors(chosen):
        raise InputError(f"{path}: no state dict in it, but a {type(loaded).__name__}")
    strange = [str(name) for name, value in chosen.items() if not torch.is_tensor(value)]
    if strange:
        raise InputError(f"{path}: not tensors: {', '.join(strange[:20])}")
    unnamed = [repr(name) for name in chosen if not isinstance(name, str)]
    if unnamed:
        raise InputError(
            f"{path}: not a state dict, its keys are not names: {', '.join(unnamed[:20])}"
        )
    return chosen


def _raise_if_no_plain_numbers(torch: ModuleType, tensors: Mapping, path: pathlib.Path) -> None:
    """Refuses tensors that numpy has no array for: sparse, quantised, complex, or no values."""
    strange = [
        f"{name} ({'no values' if tensor.is_meta else tensor.dtype}, {tensor.layout})"
        for name, tensor in tensors.items()
        if tensor.is_meta
        or tensor.layout != torch.strided
        or tensor.is_quantized
        or tensor.is_complex()
    ]
    if strange:
        raise InputError(f"{path}: not tensors of plain numbers: {', '.join(strange[:20])}")


def _to_numpy(tensor: Any) -> np.ndarray:
    tensor = tensor.detach()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _asked_for(error: pickle.UnpicklingError) -> str:
    """Returns what a refused file asks for. PyTorch's own text advises to load it anyway."""
    found = re.search(r"GLOBAL (\S+)", str(error))
    return f"calls {found[1]}" if found else "is damaged or holds more than tensors"
