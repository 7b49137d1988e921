"""What a training run carries from step to step."""

from typing import Any

import flax.struct
import jax
import numpy as np
import optax


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes; saved whole, so that a resumed run is the same run.

    Attributes:
      step: int32 scalar, optimiser steps done; also the position in the data.
      params, batch_stats: the model's variables that learn, float32.
      ema_params, ema_batch_stats: their moving averages, used for evaluation.
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
        """The variables to evaluate with: the moving averages."""
        return {"params": self.ema_params, "batch_stats": self.ema_batch_stats}


def create_train_state(
    variables: dict[str, Any], optimizer: optax.GradientTransformation
) -> TrainState:
    """Returns the state before the first step, as numpy arrays or ones of jax's default device."""
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    return TrainState(
        step=np.zeros((), np.int32),  # type: ignore[arg-type]  # becomes one when it is placed
        params=params,
        batch_stats=batch_stats,
        ema_params=params,
        ema_batch_stats=batch_stats,
        # As one program; else jax compiles one for each shape of a parameter.
        opt_state=jax.jit(optimizer.init)(params),
    )
