"""The weights of the best epoch, and an end of training when nothing becomes better."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from functional_bp.errors import compose
from functional_bp.train.callbacks.callback import Callback, CallbackError, Monitor


def copied(tree: Any) -> Any:
    """The arrays of a pytree in buffers of their own, on the same devices.

    The step gives its state's buffers away to the next one, so what is to last must be copied.
    """
    return jax.tree.map(_copied, tree)


def _copied(array: Any) -> Any:
    made = jnp.copy(array)
    if getattr(array, "committed", False) and made.sharding != array.sharding:
        made = jax.device_put(made, array.sharding)
    return made


class BestWeights(Callback):
    """Ends with the parameters, and the model's state, of the epoch in which a number was best.

    Args:
        monitor: its name in the logs.
        mode: "min", "max", or "auto" to go by the name.
        min_delta: what a change has to exceed to be an improvement.
        restore_best: whether the best weights are set at the end; else the last ones stay.
        start_from_epoch: epochs, from 0, that are not looked at.

    Attributes:
        best: the best number, None before there is one.
        best_epoch: its epoch, from 0.
        best_params: its parameters, once there are any.

    Raises:
        CallbackError: the name does not tell what is better, or the logs have no such name.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        *,
        mode: str = "auto",
        min_delta: float = 0.0,
        restore_best: bool = True,
        start_from_epoch: int = 0,
    ) -> None:
        self.monitor = Monitor(monitor, mode, min_delta, type(self).__name__)
        self.restore_best, self.start_from_epoch = restore_best, start_from_epoch
        self._awaits_arrays = self._resumes = False
        self._forget()

    def _forget(self) -> None:
        """Begin anew."""
        self.monitor.best = None
        self.best_epoch: int | None = None
        self._kept: Any = None
        self._epochs = 0

    @property
    def best(self) -> float | None:
        """The best number, None before there is one."""
        return self.monitor.best

    @property
    def best_params(self) -> Any:
        """The parameters of the best epoch; None before there is one."""
        return None if self._kept is None else self._kept["params"]

    def on_fit_begin(self, run: Any) -> None:
        """Begin anew, or go on with what was remembered if the best weights came with it."""
        if not self._resumes:
            self._forget()
        elif self.restore_best and self._awaits_arrays and self._kept is None:
            raise CallbackError(
                compose(
                    f"{type(self).__name__} goes on without the weights it had kept",
                    got=f"best {self.monitor.name} {self.best}, and no arrays",
                    expected="its state_dict() and its arrays() from one checkpoint",
                    do="call load_arrays(tree) beside load_state_dict(state)",
                )
            )
        self._resumes = False

    def on_epoch_end(self, run: Any, epoch: int, logs: dict[str, Any]) -> None:
        """Look at the number, keep the weights if it is the best."""
        self._epochs += 1
        value = self.monitor.read(logs)
        if value is not None and epoch >= self.start_from_epoch:
            self._look(run, epoch, value)

    def _look(self, run: Any, epoch: int, value: float) -> bool:
        """Whether the number is the best one yet."""
        if not self.monitor.improves(value, self.monitor.best):
            return False
        self.monitor.best, self.best_epoch = value, epoch
        if self.restore_best:
            parts = {"params": run.state.params}
            if (model_state := getattr(run.state, "model_state", None)) is not None:
                parts["model_state"] = model_state
            self._kept = copied(parts)
        return True

    def on_fit_end(self, run: Any) -> None:
        """Set the weights of the best epoch."""
        self.monitor.warn_if_never_seen(self._epochs)
        if self.restore_best and self._kept is not None:
            run.state = dataclasses.replace(run.state, **copied(self._kept))

    def state_dict(self) -> dict[str, Any]:
        """The best number and its epoch; the weights are in ``arrays``."""
        return {"best": self.best, "best_epoch": self.best_epoch, "kept": self._kept is not None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.monitor.best, self.best_epoch = state["best"], state["best_epoch"]
        self._awaits_arrays, self._resumes = state["kept"], True

    def arrays(self) -> Any:
        """``params``, and ``model_state`` if there is one, of the best epoch."""
        return self._kept

    def load_arrays(self, tree: Any) -> None:
        """Keep these for the best."""
        self._kept = tree


class EarlyStopping(BestWeights):
    """Ends training when a number has not become better for some epochs; as Keras' does.

    Args:
        monitor: its name in the logs.
        min_delta: what a change has to exceed to be an improvement.
        patience: training ends with this many epochs in a row without one; 0 is as 1.
        mode: "min", "max", or "auto" to go by the name.
        baseline: a number that has to be surpassed for patience to begin anew.
        restore_best: whether the weights of the best epoch are set at the end.
        start_from_epoch: epochs, from 0, that are not looked at.

    Attributes:
        best, best_epoch, best_params: of the best epoch.
        stopped_epoch: the epoch, from 0, after which it ended training; None if it did not.

    Raises:
        CallbackError: the name does not tell what is better, the logs have no such name, or
            ``patience`` is below 0.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        *,
        min_delta: float = 0.0,
        patience: int = 0,
        mode: str = "auto",
        baseline: float | None = None,
        restore_best: bool = True,
        start_from_epoch: int = 0,
    ) -> None:
        self.patience, self.baseline = patience, baseline
        super().__init__(
            monitor,
            mode=mode,
            min_delta=min_delta,
            restore_best=restore_best,
            start_from_epoch=start_from_epoch,
        )
        if patience < 0:
            raise CallbackError(
                compose(
                    "EarlyStopping needs patience",
                    got=f"patience = {patience!r}",
                    expected="a number of epochs, 0 or more",
                )
            )

    def _forget(self) -> None:
        super()._forget()
        self.wait = 0
        self.stopped_epoch: int | None = None

    def _look(self, run: Any, epoch: int, value: float) -> bool:
        self.wait += 1
        if super()._look(run, epoch, value):
            if self.baseline is None or self.monitor.improves(value, self.baseline):
                self.wait = 0
            return True
        if self.wait >= self.patience and epoch > 0:
            self.stopped_epoch = epoch
            run.stop(self._reason())
        return False

    def _reason(self) -> str:
        name = self.monitor.name
        if self.best is None or self.best_epoch is None:
            return f"EarlyStopping: {name} was never a finite number"
        epochs = "1 epoch" if self.wait == 1 else f"{self.wait} epochs"
        return (
            f"EarlyStopping: {name} has not improved on {self.best:.4g}, "
            f"of epoch {self.best_epoch + 1}, for {epochs}"
        )

    def state_dict(self) -> dict[str, Any]:
        """The best number, its epoch, and for how many epochs there was none better."""
        return {**super().state_dict(), "wait": self.wait, "stopped_epoch": self.stopped_epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        super().load_state_dict(state)
        self.wait, self.stopped_epoch = state["wait"], state["stopped_epoch"]
