"""Learning rates that are set from outside: by a schedule of the epoch, or on a plateau."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functional_bp.errors import compose
from functional_bp.train.callbacks.callback import Callback, CallbackError, Monitor

NAME = "learning_rate"


def _is_injected(part: Any) -> bool:
    return hasattr(part, "_replace") and NAME in (getattr(part, "hyperparams", None) or ())


def get_learning_rate(opt_state: Any) -> float:
    """The learning rate that an optimizer's state holds.

    Raises:
        CallbackError: it holds none, or takes it from a schedule of its own.
    """
    parts = [
        part for part in jax.tree.leaves(opt_state, is_leaf=_is_injected) if _is_injected(part)
    ]
    if not parts:
        raise CallbackError(
            compose(
                "the learning rate of this optimizer cannot be set",
                got="an optimizer that has it built in",
                expected="one that keeps it in its state",
                do="optax.inject_hyperparams(optax.adam)(learning_rate=1e-3)",
            )
        )
    if any(NAME in (getattr(part, "hyperparams_states", None) or ()) for part in parts):
        raise CallbackError(
            compose(
                "the learning rate of this optimizer cannot be set",
                got="one that comes from a schedule, which would set it again at every step",
                expected="a number",
                do="optax.inject_hyperparams(optax.adam)(learning_rate=1e-3),\n"
                "            or leave the learning rate to that schedule alone",
            )
        )
    return float(parts[0].hyperparams[NAME])


def set_learning_rate(opt_state: Any, value: float) -> Any:
    """The optimizer's state with another learning rate, of the same dtype and on the same device.

    Raises:
        CallbackError: it holds none, takes it from a schedule, or the value is not finite.
    """
    get_learning_rate(opt_state)
    if not np.isfinite(value):
        raise CallbackError(
            compose(
                "a learning rate must be a finite number",
                got=f"learning_rate = {value!r}",
                do="look at the schedule",
            )
        )

    def replaced(part: Any) -> Any:
        if not _is_injected(part):
            return part
        rate = jnp.full_like(part.hyperparams[NAME], value)
        return part._replace(hyperparams={**part.hyperparams, NAME: rate})

    return jax.tree.map(replaced, opt_state, is_leaf=_is_injected)


def _set(run: Any, value: float) -> None:
    opt_state = set_learning_rate(run.state.opt_state, value)
    run.state = dataclasses.replace(run.state, opt_state=opt_state)


class LearningRate(Callback):
    """Sets the learning rate before every epoch, as Keras' ``LearningRateScheduler`` does.

    The optimizer must keep it in its state: ``optax.inject_hyperparams(optax.sgd)(...)``. For a
    rate by step give optax a schedule instead; it needs no callback. The logs have the rate as
    ``learning_rate``.

    Args:
        schedule: a function of the epoch, from 0, or of the epoch and the rate as it is; an optax
            schedule is one.

    Raises:
        CallbackError: the optimizer does not keep its learning rate, or the schedule returns no
            finite number.

    Example:
        >>> halved = LearningRate(lambda epoch, rate: rate / 2 if epoch % 10 == 9 else rate)
    """

    def __init__(self, schedule: Callable[..., Any]) -> None:
        if not callable(schedule):
            raise CallbackError(
                compose(
                    "LearningRate needs a function of the epoch",
                    got=repr(schedule),
                    do="LearningRate(lambda epoch: 0.1 * 0.5 ** epoch)",
                )
            )
        self.schedule = schedule
        self._with_rate = _takes_two(schedule)

    def on_fit_begin(self, run: Any) -> None:
        """Whether it can be set, before anything is computed."""
        get_learning_rate(run.state.opt_state)

    def on_epoch_begin(self, run: Any, epoch: int) -> None:
        """Set it."""
        rate = get_learning_rate(run.state.opt_state) if self._with_rate else None
        value = self.schedule(epoch) if rate is None else self.schedule(epoch, rate)
        try:
            value = float(value)
        except (TypeError, ValueError):
            raise CallbackError(
                compose(
                    "the schedule of LearningRate returned no number",
                    got=f"{value!r} for epoch {epoch}",
                    expected="the learning rate of that epoch",
                )
            ) from None
        _set(run, value)

    def on_epoch_end(self, run: Any, epoch: int, logs: dict[str, Any]) -> None:
        """Note it in the logs."""
        logs[NAME] = get_learning_rate(run.state.opt_state)


def _takes_two(function: Callable[..., Any]) -> bool:
    """Whether a function has two parameters that must be given."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in by_position and p.default is p.empty for p in parameters) >= 2


class ReduceLROnPlateau(Callback):
    """Multiplies the learning rate by a factor when a number no longer improves; as Keras' does.

    The optimizer must keep its rate in its state: ``optax.inject_hyperparams(optax.adam)(...)``.

    Args:
        monitor: the number's name in the logs.
        factor: what the rate is multiplied by, between 0 and 1.
        patience: epochs in a row without an improvement before that.
        mode: "min", "max", or "auto" to go by the name.
        min_delta: what a change has to exceed to be an improvement.
        cooldown: epochs after a reduction that are not counted.
        min_lr: the rate never gets lower.

    Raises:
        CallbackError: ``factor`` is not between 0 and 1, the name does not tell what is better or
            is not in the logs, or the optimizer does not keep its learning rate.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        *,
        factor: float = 0.1,
        patience: int = 10,
        mode: str = "auto",
        min_delta: float = 1e-4,
        cooldown: int = 0,
        min_lr: float = 0.0,
    ) -> None:
        if not 0 < factor < 1:
            raise CallbackError(
                compose(
                    "ReduceLROnPlateau reduces the learning rate",
                    got=f"factor = {factor!r}",
                    expected="a number between 0 and 1",
                )
            )
        self.monitor = Monitor(monitor, mode, min_delta, type(self).__name__)
        self.factor, self.patience = factor, patience
        self.cooldown, self.min_lr = cooldown, min_lr
        self.wait = self.cooldown_counter = self._epochs = 0
        self._resumes = False

    def on_fit_begin(self, run: Any) -> None:
        """Begin anew or go on; and whether the rate can be set, before anything is computed."""
        get_learning_rate(run.state.opt_state)
        if not self._resumes:
            self.monitor.best = None
            self.wait = self.cooldown_counter = self._epochs = 0
        self._resumes = False

    def on_epoch_end(self, run: Any, epoch: int, logs: dict[str, Any]) -> None:
        """Look at the number, reduce the rate if it is time."""
        logs[NAME] = rate = get_learning_rate(run.state.opt_state)
        self._epochs += 1
        value = self.monitor.read(logs)
        if value is None:
            return
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.wait = 0
        if self.monitor.improves(value, self.monitor.best):
            self.monitor.best, self.wait = value, 0
        elif not self.cooldown_counter:
            self.wait += 1
            if self.wait >= self.patience and rate > np.float32(self.min_lr):
                _set(run, max(rate * self.factor, self.min_lr))
                self.cooldown_counter, self.wait = self.cooldown, 0

    def on_fit_end(self, run: Any) -> None:
        """Say so if the number never came."""
        self.monitor.warn_if_never_seen(self._epochs)

    def state_dict(self) -> dict[str, Any]:
        """The best number and both counts; the rate itself is in the optimizer's state."""
        best = self.monitor.best
        return {"best": best, "wait": self.wait, "cooldown_counter": self.cooldown_counter}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.monitor.best = state["best"]
        self.wait, self.cooldown_counter = state["wait"], state["cooldown_counter"]
        self._resumes = True
