"""What a callback is, and several of them as one."""

from __future__ import annotations

import math
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from functional_bp.errors import TrainingError, compose, describe


class CallbackError(TrainingError):
    """A callback was asked for what this training cannot give it."""


class Run(Protocol):
    """A training run as a callback sees it.

    Attributes:
        state: the training state; a callback may set another.
        epoch: the number of the epoch, from 0.
        step: how many steps were done in all.
        history: what was recorded of the epochs before.
    """

    state: Any
    epoch: int
    step: int
    history: Any

    def stop(self, reason: str) -> None:
        """End training after this step, or after this epoch where it is called at its end."""
        ...


class Callback:
    """Base of every callback: override what you need, the others do nothing.

    For an exact resume, what a callback remembers goes through ``state_dict`` (into JSON) and
    ``arrays`` (into the arrays of a checkpoint).

    Example:
        >>> class Announce(Callback):
        ...     def on_epoch_end(self, run, epoch, logs):
        ...         print(epoch, logs["loss"])
        >>> Announce().on_epoch_end(None, 0, {"loss": 0.5})
        0 0.5
    """

    def on_fit_begin(self, run: Any) -> None:
        """Before the first epoch of this call of ``fit``, which may be a later one of a resume."""

    def on_epoch_begin(self, run: Any, epoch: int) -> None:
        """Before the first step of an epoch."""

    def on_step_end(self, run: Any, step: int) -> None:
        """After a step; only called where it is overridden, so that others cost nothing.

        The device may still be at work on the step: to read a value of ``run.state`` waits for it.
        """

    def on_epoch_end(self, run: Any, epoch: int, logs: dict[str, Any]) -> None:
        """After validation; what is added to ``logs`` is recorded with them."""

    def on_fit_end(self, run: Any) -> None:
        """After the last epoch, however training ended."""

    def state_dict(self) -> dict[str, Any]:
        """What it remembers, for JSON."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Remember what ``state_dict`` returned; called before ``on_fit_begin``."""

    def arrays(self) -> Any:
        """The arrays that it keeps, a pytree; None where it keeps none."""
        return None

    def load_arrays(self, tree: Any) -> None:
        """Keep what ``arrays`` returned."""

    def wants_steps(self) -> bool:
        """Whether ``on_step_end`` is overridden, by its class or by an attribute."""
        return "on_step_end" in vars(self) or type(self).on_step_end is not Callback.on_step_end


class Lambda(Callback):
    """A callback made of functions, each with the arguments of the method of its name.

    Example:
        >>> Lambda(on_epoch_end=lambda run, epoch, logs: print(logs["loss"])).on_epoch_end(
        ...     None, 0, {"loss": 0.25}
        ... )
        0.25
    """

    def __init__(
        self,
        *,
        on_fit_begin: Callable[[Any], Any] | None = None,
        on_epoch_begin: Callable[[Any, int], Any] | None = None,
        on_step_end: Callable[[Any, int], Any] | None = None,
        on_epoch_end: Callable[[Any, int, dict[str, Any]], Any] | None = None,
        on_fit_end: Callable[[Any], Any] | None = None,
    ) -> None:
        given = {
            "on_fit_begin": on_fit_begin,
            "on_epoch_begin": on_epoch_begin,
            "on_step_end": on_step_end,
            "on_epoch_end": on_epoch_end,
            "on_fit_end": on_fit_end,
        }
        for name, function in given.items():
            if function is not None and not callable(function):
                raise CallbackError(
                    compose(f"{name} is no function", got=describe(function), expected="a function")
                )
            if function is not None:
                setattr(self, name, function)


class TerminateAfter(Callback):
    """Ends training after a time, for a machine that is lent for hours: the last step is whole.

    A resumed run has the whole time again.

    Args:
        seconds: from the beginning of ``fit``.
    """

    def __init__(self, seconds: float) -> None:
        if not seconds > 0:
            raise CallbackError(
                compose(
                    "TerminateAfter needs a time",
                    got=f"seconds = {seconds!r}",
                    expected="a number of seconds above 0",
                )
            )
        self.seconds = seconds
        self._end = float("inf")

    def on_fit_begin(self, run: Any) -> None:
        """The clock starts."""
        self._end = time.monotonic() + self.seconds

    def on_step_end(self, run: Any, step: int) -> None:
        """Whether the time is over."""
        if time.monotonic() >= self._end:
            run.stop(f"TerminateAfter: {self.seconds:g} s are over")
            self._end = float("inf")


class Callbacks:
    """Several callbacks as one, in their order; what they remember, by class and place.

    Args:
        callbacks: instances of ``Callback``.

    Attributes:
        stepping: those that want to be called after every step.

    Raises:
        CallbackError: one of them is no callback.
    """

    def __init__(self, callbacks: Sequence[Callback] | Callback = ()) -> None:
        self._all = [callbacks] if isinstance(callbacks, Callback) else list(callbacks)
        for callback in self._all:
            if not isinstance(callback, Callback):
                name = callback.__name__ if isinstance(callback, type) else describe(callback)
                raise CallbackError(
                    compose(
                        "what was given for a callback is none",
                        got=f"the class {name}" if isinstance(callback, type) else name,
                        expected="an instance of functional_bp.train.Callback",
                        do=f"{name}(...)"
                        if isinstance(callback, type)
                        else "for a function: Lambda(on_epoch_end=lambda run, epoch, logs: ...)",
                    )
                )
        self.stepping = [callback for callback in self._all if callback.wants_steps()]

    def __iter__(self) -> Iterator[Callback]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def on_fit_begin(self, run: Any) -> None:
        """Call all."""
        for callback in self._all:
            callback.on_fit_begin(run)

    def on_epoch_begin(self, run: Any, epoch: int) -> None:
        """Call all."""
        for callback in self._all:
            callback.on_epoch_begin(run, epoch)

    def on_step_end(self, run: Any, step: int) -> None:
        """Call those that want it."""
        for callback in self.stepping:
            callback.on_step_end(run, step)

    def on_epoch_end(self, run: Any, epoch: int, logs: dict[str, Any]) -> None:
        """Call all."""
        for callback in self._all:
            callback.on_epoch_end(run, epoch, logs)

    def on_fit_end(self, run: Any) -> None:
        """Call all."""
        for callback in self._all:
            callback.on_fit_end(run)

    def named(self) -> dict[str, Callback]:
        """The callbacks by name: ``EarlyStopping``, and ``EarlyStopping 2`` for a second one."""
        seen: Counter[str] = Counter()
        names: dict[str, Callback] = {}
        for callback in self._all:
            kind = type(callback).__name__
            seen[kind] += 1
            names[kind if seen[kind] == 1 else f"{kind} {seen[kind]}"] = callback
        return names

    def state_dict(self) -> dict[str, Any]:
        """What they remember, for JSON."""
        states = {name: callback.state_dict() for name, callback in self.named().items()}
        return {name: state for name, state in states.items() if state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Each gets its own; one that was not there when it was saved begins anew."""
        for name, callback in self.named().items():
            if name in state:
                callback.load_state_dict(state[name])

    def arrays(self) -> dict[str, Any]:
        """The arrays that they keep."""
        kept = {name: callback.arrays() for name, callback in self.named().items()}
        return {name: tree for name, tree in kept.items() if tree is not None}

    def load_arrays(self, trees: Mapping[str, Any]) -> None:
        """Each gets its own."""
        for name, callback in self.named().items():
            if name in trees:
                callback.load_arrays(trees[name])


# A number of the logs that is watched: what is better, and whether it became so.

HIGHER = ("accuracy", "acc", "auc", "precision", "recall", "f1", "r2", "iou", "score")
LOWER = ("loss", "error", "mae", "mse", "rmse", "mape", "entropy", "crossentropy", "perplexity")


class Monitor:
    """A number of the logs, and the best one seen.

    An improvement is by more than ``min_delta``; NaN and infinity never are one.

    Args:
        monitor: its name in the logs: "loss", "val_accuracy".
        mode: "min", "max", or "auto": by the last part of the name.
        min_delta: what a change has to exceed.
        owner: the callback's name, for messages.

    Raises:
        CallbackError: ``mode`` is none of these, or the name does not tell.
    """

    def __init__(self, monitor: str, mode: str, min_delta: float, owner: str) -> None:
        self.name, self.owner, self.min_delta = monitor, owner, abs(min_delta)
        self.sign = 1.0 if _mode(monitor, mode, owner) == "min" else -1.0
        self.best: float | None = None
        self._seen = False

    def read(self, logs: Mapping[str, Any]) -> float | None:
        """The number; None in an epoch without validation.

        Raises:
            CallbackError: the logs have none of that name.
        """
        if self.name in logs:
            self._seen = True
            return float(np.asarray(logs[self.name]))
        validated = any(name.startswith("val_") for name in logs)
        if not self.name.startswith("val_") or validated:
            raise CallbackError(self._absent(", ".join(logs)))
        return None

    def _absent(self, got: str) -> str:
        do = "take one of these names"
        if self.name.startswith("val_"):
            do = "pass validation_data= or validation_split=, or watch a name without val_"
        what = f"{self.owner} watches {self.name!r}, which the logs do not have"
        return compose(what, got=got or "no logs", expected=self.name, do=do)

    def warn_if_never_seen(self, epochs: int) -> None:
        """Say so when training ends and the number never came."""
        if epochs and not self._seen and self.best is None:
            warnings.warn(self._absent(f"{epochs} epochs without validation"), stacklevel=3)

    def improves(self, value: float, reference: float | None) -> bool:
        """Whether a value is better than another one by more than ``min_delta``."""
        if not math.isfinite(value):
            return False
        return reference is None or self.sign * (reference - value) > self.min_delta


def _mode(monitor: str, mode: str, owner: str) -> str:
    if mode not in ("auto", "min", "max"):
        raise CallbackError(
            compose(
                f"{owner} does not know the mode",
                got=f"mode = {mode!r}",
                expected='"min", "max" or "auto"',
            )
        )
    if mode != "auto":
        return mode
    last = monitor.lower().replace("-", "_").split("_")[-1]
    for mode, words in (("max", HIGHER), ("min", LOWER)):
        if last in words:
            return mode
    raise CallbackError(
        compose(
            f"{owner} cannot tell whether a higher or a lower {monitor!r} is better",
            got='mode = "auto"',
            expected="a name that ends like accuracy or loss",
            do='pass mode="min" or mode="max"',
        )
    )
