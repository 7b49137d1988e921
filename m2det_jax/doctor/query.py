"""Device query: a separate program that asks jax for its devices and computes on the first one.

Each stage prints one line of JSON, so that the caller knows the last stage if the program hangs.
"""

import json
import time
from typing import Any


def main() -> None:
    """Prints {"stage": NAME, ...} for "import", "devices" and "convolution"."""
    import jax

    _tell("import", jax=jax.__version__)
    devices = jax.devices()
    found = [
        {
            "platform": device.platform,
            "kind": device.device_kind,
            "memory": (_stats(device) or {}).get("bytes_limit"),
        }
        for device in devices
    ]
    _tell("devices", devices=found)
    begin = time.perf_counter()
    # The first convolution loads cuDNN, which fails if its version does not fit.
    images, kernels = jax.numpy.ones((1, 32, 32, 8)), jax.numpy.ones((3, 3, 8, 8))
    convolve = jax.jit(
        lambda x, w: jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    )
    total = float(convolve(images, kernels)[0, 1, 1, 0])
    if total != 72:  # 3 * 3 * 8 ones
        raise ArithmeticError(f"a convolution of ones gives {total}, not 72")
    _tell("convolution", seconds=round(time.perf_counter() - begin, 3))


def _stats(device: Any) -> dict | None:
    try:
        return device.memory_stats()
    except RuntimeError:  # some plugins do not support it
        return None


def _tell(stage: str, **values: object) -> None:
    print(json.dumps({"stage": stage, **values}), flush=True)


if __name__ == "__main__":
    main()
