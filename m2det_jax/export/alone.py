"""Check of an artefact in a process of its own that cannot import this package.

`m2det export` starts this file with the path of a request (JSON) as its argument. It uses only what
a user of the artefact has: the artefact, its description, and detect.py beside them.
"""

import importlib.util
import json
import pathlib
import sys
from typing import Any

import numpy as np


class _Missing:
    """A finder that makes this package missing, also where it is installed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] == "m2det_jax":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def check(request: dict[str, Any]) -> None:
    """Detects in all pictures of a request, and writes what is found.

    For every batch i it writes batch_i.npz; for the first `request["checked"]` batches pixels and
    the outputs of the network before suppression are in it too.
    """
    folder, detect = pathlib.Path(request["folder"]), _example(request["example"])
    artefact, description = detect.open_artefact(request["artefact"])
    network = artefact
    if request["network"]:
        network, _ = detect.open_artefact(request["network"])
    for number, paths in enumerate(request["batches"]):
        seen = [detect.read_picture(path, description) for path in paths]
        pixels, scale, offset = (np.stack(column) for column in list(zip(*seen, strict=True))[:3])
        found = dict(artefact(pixels, np.float32(request["threshold"])))
        if "valid" not in found:
            found = _above(found["boxes"], found["scores"], request["threshold"])
        found |= {"scale": scale, "offset": offset}
        if number < request["checked"]:
            raw = network(pixels)
            found |= {f"raw_{name}": raw[name] for name in request["raw"]} | {"pixels": pixels}
        np.savez(folder / f"batch_{number}.npz", **found)


def _above(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> dict[str, np.ndarray]:
    """Returns the anchors with a score above a threshold: of others no suppression has need."""
    image, anchor = np.nonzero((scores > threshold).any(axis=2))
    kept = {"kept_boxes": boxes[image, anchor], "kept_scores": scores[image, anchor]}
    return kept | {"image": image, "anchor": anchor, "shape": np.array(scores.shape)}


def _example(path: str) -> Any:
    spec = importlib.util.spec_from_file_location("detect", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Answers the request that the command line names."""
    sys.meta_path.insert(0, _Missing())
    request = json.loads(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8"))
    check(request)
    versions = {"python": sys.version.split()[0], "numpy": np.__version__}
    for name in ("jax", "onnxruntime"):
        if name in sys.modules:
            versions[name] = sys.modules[name].__version__
    if "m2det_jax" in sys.modules:
        raise RuntimeError("the check has imported m2det_jax")
    print(json.dumps(versions))


if __name__ == "__main__":
    main()
