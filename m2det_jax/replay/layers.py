"""Layers of a training step, looked into: the largest value of each, forward and backward.

The network is the one that trains, with a probe at the input and at the output of every module. A
probe changes no value. B images of the batch, E probes, in the order in which the forward pass
meets them.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax.traverse_util import flatten_dict
from jax.sharding import NamedSharding

from m2det_jax.detector.detector import Detector
from m2det_jax.detector.objective import StepSettings, losses_of, make_targets

Batch = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Probe:
    """A place in the network.

    Attributes:
        module: path of the module, such as "backbone/conv1_1/conv".
        kind: its class.
        place: "input" or "output".
    """

    module: str
    kind: str
    place: str


@dataclasses.dataclass(frozen=True)
class Values:
    """What is inside a step. Largest means the largest absolute value, or NaN or infinity.

    Attributes:
        probes: E of them.
        forward: float32 [E, B], largest of each image.
        backward: float32 [E, B], the same of the gradient of the loss there.
        boxes, targets: bool [B], finite in each image: the boxes of the batch, and what the anchors
            are to predict.
        losses: float32 [B], the part of each image in the loss.
        gradients: largest of the gradient of every parameter, by its path.
        norm: of all gradients together.
    """

    probes: list[Probe]
    forward: np.ndarray
    backward: np.ndarray
    boxes: np.ndarray
    targets: np.ndarray
    losses: np.ndarray
    gradients: dict[str, float]
    norm: float


def look_into(
    detector: Detector,
    settings: StepSettings,
    variables: Mapping[str, Any],
    batch: Batch,
    by_batch: NamedSharding,
) -> Values:
    """Returns what is inside a step, on the devices of the step.

    The images go through in the groups over which BatchNorm takes its statistics in training: the
    parts of an accumulated batch, and those of each device with norm_over "device".

    Args:
        detector: for the size of the batch's pictures.
        variables: "params" and "batch_stats" before the step.
        batch: host arrays, all images.
    """
    size, devices = len(batch["image"]), by_batch.mesh.size
    targets = jax.jit(functools.partial(make_targets, detector, settings))(
        {name: jnp.asarray(batch[name]) for name in ("boxes", "labels", "mask")}
    )
    targets = jax.device_get(targets)
    number = np.float32(targets.positive.sum())
    probes, program = _program(detector, settings, variables, batch["image"].shape, targets)
    forward, backward = (np.zeros((len(probes), size), np.float32) for _ in range(2))
    losses, gradients = np.zeros(size, np.float32), None
    for group in _groups(size, settings.accumulation, devices, settings.norm_over == "device"):
        inputs = jax.tree.map(lambda x, group=group: x[group], (batch["image"], targets))
        if len(group) % devices == 0 and settings.norm_over != "device":
            inputs = jax.device_put(inputs, by_batch)
        found, more = program(variables["params"], variables.get("batch_stats", {}), inputs, number)
        forward[:, group], backward[:, group], losses[group] = jax.device_get(found)
        gradients = more if gradients is None else jax.tree.map(jnp.add, gradients, more)
    largest = jax.device_get(jax.jit(functools.partial(jax.tree.map, _largest))(gradients))
    return Values(
        probes=probes,
        forward=forward,
        backward=backward,
        boxes=np.asarray(np.isfinite(batch["boxes"]).all((1, 2))),
        targets=np.asarray(np.isfinite(targets.deltas).all((1, 2))),
        losses=losses,
        gradients={"/".join(path): float(x) for path, x in flatten_dict(largest).items()},
        norm=float(jax.jit(optax.tree.norm)(gradients)),
    )


def _groups(size: int, parts: int, devices: int, per_device: bool) -> list[np.ndarray]:
    """Returns the images, as numbers in the batch, that BatchNorm takes together."""
    numbers = np.arange(size)
    groups = [numbers[part::parts] for part in range(parts)]
    if per_device:
        share = size // devices
        groups = [g[g // share == device] for g in groups for device in range(devices)]
    return groups


def _program(
    detector: Detector,
    settings: StepSettings,
    variables: Mapping[str, Any],
    image_shape: tuple[int, ...],
    targets: Any,
) -> tuple[list[Probe], Callable]:
    """Returns the probes, and the jitted function (params, stats, inputs, positives) of a group.

    It returns ((forward [E, B], backward [E, B], losses [B]), gradients).
    """
    # What is computed again in the backward pass cannot be looked into.
    model = detector.model.clone(remat=False)

    def forward(params: Any, tokens: Any, stats: Any, inputs: Any, positives: Any) -> Any:
        (images, targets), seen = inputs, _Seen(tokens)
        with nn.intercept_methods(seen.watch):
            outputs, _ = model.apply(
                {"params": params, "batch_stats": stats},
                detector.normalize(images),
                train=True,
                mutable=["batch_stats"],
            )

        def of_image(outputs: Any, targets: Any) -> jax.Array:
            outputs, targets = jax.tree.map(lambda x: x[None], (outputs, targets))
            return losses_of(outputs, targets, settings, positives)["loss"]

        losses = jax.vmap(of_image)(outputs, targets)
        loss = losses_of(outputs, targets, settings, positives)["loss"]
        found[:] = seen.probes
        return loss, (jnp.stack(seen.values), losses)

    found: list[Probe] = []
    group = jax.ShapeDtypeStruct(image_shape, np.uint8), targets
    stats = variables.get("batch_stats", {})
    jax.eval_shape(forward, variables["params"], None, stats, group, np.float32(1))
    number = len(found)

    def program(params: Any, stats: Any, inputs: Any, positives: jax.Array) -> Any:
        tokens = jnp.zeros((number, len(inputs[0])), jnp.float32)
        gradient = jax.value_and_grad(forward, argnums=(0, 1), has_aux=True)
        (_, (values, losses)), (more, backward) = gradient(params, tokens, stats, inputs, positives)
        return (values, backward, losses), more

    return list(found), jax.jit(program)


class _Seen:
    """Takes note of what goes into the modules of a network and what comes out, as it is traced.

    Args:
        tokens: float32 zeros [E, B], whose gradient becomes the largest gradient at each probe;
            None: only count the probes.
    """

    def __init__(self, tokens: jax.Array | None) -> None:
        self.probes: list[Probe] = []
        self.values: list[jax.Array] = []
        self._tokens = tokens
        self._last: jax.Array | None = None

    def watch(self, call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        """The interceptor for flax."""
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        module = context.module
        where = "/".join(module.path) or "model", type(module).__name__
        if args:
            args = (self._see(args[0], Probe(*where, "input")), *args[1:])
        return self._see(call(*args, **kwargs), Probe(*where, "output"))

    def _see(self, value: Any, probe: Probe) -> Any:
        # Lists of feature maps go through modules of their own, which are seen. An output is often
        # the input of the next module, and that of the module around it.
        if not isinstance(value, jax.Array) or value is self._last:
            return value
        self.probes.append(probe)
        self.values.append(_largest(value, value.shape[0]))
        if self._tokens is not None:
            value = _with_probe(value, self._tokens[len(self.probes) - 1])
        self._last = value
        return value


def _largest(x: jax.Array, rows: int = 0) -> jax.Array:
    """Returns the largest absolute value, NaN or infinity; of each row [B, ...] if rows is B."""
    x = x.astype(jnp.float32).reshape((rows, -1) if rows else (-1,))
    return jnp.abs(x).max(axis=-1)  # NaN, if there is one


@jax.custom_vjp
def _with_probe(x: jax.Array, token: jax.Array) -> jax.Array:
    """Returns x; the gradient of the token [B] becomes the largest gradient of each image's x."""
    return x


def _probe_forward(x: jax.Array, token: jax.Array) -> tuple[jax.Array, None]:
    return x, None


def _probe_backward(_: None, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    return gradient, _largest(gradient, gradient.shape[0])


_with_probe.defvjp(_probe_forward, _probe_backward)
