"""Speed of our training and detection over that of PyTorch, on the same device, in one run.

Both in bfloat16; PyTorch in channels_last with its autotuned convolutions. Its step has losses on
given targets, SGD, no moving average; its detection is the network alone, as is ours here.
"""

import importlib.util
import statistics
import time
from collections.abc import Callable

import jax

from benchmarks import experiment
from benchmarks.gpu.report import Report, Skip
from benchmarks.gpu.setup import Setup
from benchmarks.train_step import build_step, endless

BATCH, CLASSES = 16, 80


def torch_works(model, size: tuple[int, int], anchors: int, batch: int) -> dict[str, Callable]:
    """Returns PyTorch's training step and network, each to be called and waited for."""
    import torch

    from benchmarks.gpu.torch_layers import TorchM2Det, focal_and_box_loss

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    network = TorchM2Det(model).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), 1e-4, momentum=0.9, weight_decay=5e-4)
    images = torch.randn(batch, 3, *size, device=device).to(memory_format=torch.channels_last)
    labels = torch.full((batch, anchors), -1, device=device)
    labels[:, ::100] = 1
    targets = torch.zeros(batch, anchors, 4, device=device)

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def train() -> None:
        network.train()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16):
            outputs = network(images)
        focal_and_box_loss(*outputs, labels, targets).backward()
        optimizer.step()
        wait()

    def detect() -> None:
        network.eval()
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16):
            network(images)
        wait()

    return {"train": train, "network": detect}


def our_works(config, batch: int, classes: int) -> tuple[dict[str, Callable], object]:
    """Returns our training step and network, and the detector."""
    detector, variables = experiment.detector_with_variables(config, classes)
    images = jax.device_put(experiment.random_images(detector, batch))
    size = detector.resize.image_size
    objects = experiment.random_objects(size, classes, batch, 16)
    forward = jax.jit(experiment.forward_pass(detector))
    step, state = build_step(config, detector, jax.device_get(variables))
    train = endless(step, state, jax.device_put({"image": images} | objects))
    works = {"train": train, "network": lambda: forward(variables, images)}
    return works, detector


def median_ms(work: Callable, rounds: int) -> float:
    """Returns the median time of a call, waited for, after two untimed ones."""
    samples = []
    for number in range(rounds + 2):
        start = time.perf_counter()
        jax.block_until_ready(work())
        if number > 1:
            samples.append(1e3 * (time.perf_counter() - start))
    return statistics.median(samples)


def run(setup: Setup, report: Report) -> None:
    """Measures ours, lets its memory go, then PyTorch's."""
    if importlib.util.find_spec("torch") is None:
        raise Skip("PyTorch is not installed")
    batch, classes, rounds = (2, 4, 1) if setup.reduced else (BATCH, CLASSES, 10)
    config = setup.config("vgg512", "model.dtype=bfloat16", f"batch_size={batch}")
    works, detector = our_works(config, batch, classes)
    ours = {name: median_ms(work, rounds) for name, work in works.items()}
    size, anchors = detector.resize.image_size, len(detector.anchors)
    del works
    theirs = {
        name: median_ms(work, rounds)
        for name, work in torch_works(detector.model, size, anchors, batch).items()
    }
    for name, milliseconds in ours.items():
        report.add(f"{name}, batch {batch}", ours_ms=milliseconds, torch_ms=theirs[name],
                   torch_over_ours=theirs[name] / milliseconds)  # fmt: skip
