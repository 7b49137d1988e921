"""Hooks of a run: what a program of the user's is told while it trains."""

import pathlib
from collections.abc import Mapping
from typing import Any


class Hooks:
    """Four methods that a run calls; change those that you need in a class of your own.

    They are called in the thread that trains, which waits for them. An error in one ends the run
    like any other error, with the steps up to the last checkpoint kept; `on_exception` is then told
    of it.
    """

    def on_run_start(
        self, config: Mapping[str, Any], workdir: pathlib.Path, step: int, steps: int
    ) -> None:
        """The run is ready for its first step, or goes on.

        Args:
            config: every key, such as "optimizer.learning_rate", with its value.
            workdir: folder of the run.
            step: the last step done; 0: it begins.
            steps: of the whole run.
        """

    def on_evaluation_end(self, step: int, metrics: Mapping[str, Any]) -> None:
        """A step is saved and evaluated.

        Args:
            metrics: AP, AP50 and the others of the validation set, its losses, and per_class.
        """

    def on_run_end(self, run: Any) -> None:
        """The run is over, and all is written.

        Args:
            run: what `m2det_jax.fit` returns next: workdir, metrics, history and detector.
        """

    def on_exception(self, error: BaseException) -> None:
        """The run ends with an error, which is raised when this returns.

        Args:
            error: also KeyboardInterrupt for Ctrl-C, and SystemExit for SIGTERM and SIGHUP, once
                the state is saved.
        """


NO_HOOKS = Hooks()
