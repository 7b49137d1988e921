"""Training state: what a step reads and changes."""

from typing import Any

import flax.struct
import jax
import numpy as np
import optax


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes; saved completely, so that a resumed run is the same run.

    Attributes:
        step: int32 scalar, number of optimiser steps done; also the position in the data.
        params, batch_stats: variables of the model, float32.
        ema_params, ema_batch_stats: their moving averages (EMA), used for evaluation.
        opt_state: optax state.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    ema_params: Any
    ema_batch_stats: Any
    opt_state: optax.OptState

    @property
    def eval_variables(self) -> dict[str, Any]:
        """The variables for evaluation: the moving averages (EMA)."""
        return {"params": self.ema_params, "batch_stats": self.ema_batch_stats}


def create_train_state(
    variables: dict[str, Any], optimizer: optax.GradientTransformation
) -> TrainState:
    """Returns the state before the first step: numpy arrays, or arrays of jax's default device.

    Args:
        variables: initial "params" and "batch_stats" of the model.
        optimizer: the optimiser.
    """
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    return TrainState(
        step=np.zeros((), np.int32),  # type: ignore[arg-type]  # becomes one when it is placed
        params=params,
        batch_stats=batch_stats,
        ema_params=params,
        ema_batch_stats=batch_stats,
        # As one program; otherwise jax compiles one for each parameter shape.
        opt_state=jax.jit(optimizer.init)(params),
    )
