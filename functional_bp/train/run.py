"""A run of training calls callbacks as it goes on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from functional_bp.errors import TrainingError, describe
from functional_bp.train.history import History


class CallbackError(TrainingError):
    """A callback was asked for what this training cannot give it."""


class TrainingRun:
    """A run of training is what callbacks are given.

    Attributes:
        state: the present state; a callback may replace it between epochs.
        history: the numbers of every finished epoch.
        epoch: which epoch runs, from 0.
        step: how many steps were taken in all.
        stopped: why the run ends early, or None.
    """

    def __init__(self, state: Any, history: History, step: int) -> None:
        self.state, self.history, self.step = state, history, step
        self.epoch = 0
        self.stopped: str | None = None

    def stop(self, reason: str) -> None:
        """The run ends after this step, or this epoch at its end; the first reason is kept."""
        self.stopped = self.stopped or reason


class Callback:
    """A callback is called as training goes on: override what you need, the rest does nothing.

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
        """It is called before the first epoch of this call of ``fit``, a later one in a resume."""

    def on_epoch_begin(self, run: Any, epoch: int) -> None:
        """It is called before the first step of an epoch."""

    def on_step_end(self, run: Any, step: int) -> None:
        """It is called after a step, only where it is overridden, so that others cost nothing.

        The device may still be at work on the step: to read a value of ``run.state`` waits for it.
        """

    def on_epoch_end(self, run: Any, epoch: int, logs: dict[str, Any]) -> None:
        """It is called after validation; what it adds to ``logs`` is recorded with them."""

    def on_fit_end(self, run: Any) -> None:
        """It is called after the last epoch, however training ended."""

    def state_dict(self) -> dict[str, Any]:
        """It returns what it remembers, for JSON."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """It remembers what ``state_dict`` returned; called before ``on_fit_begin``."""

    def arrays(self) -> Any:
        """It returns the arrays that it keeps, a pytree; None where it keeps none."""
        return None

    def load_arrays(self, tree: Any) -> None:
        """It keeps what ``arrays`` returned."""


def _each(name: str) -> Callable[..., None]:
    """The method that calls all callbacks' method of this name."""

    def call(self: Callbacks, *arguments: Any) -> None:
        for callback in self:
            getattr(callback, name)(*arguments)

    return call


class Callbacks:
    """Several callbacks are called as one, in their order.

    What they remember is known by class and place: ``EarlyStopping``, ``EarlyStopping 2``.

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
                raise _no_callback(callback)
        nothing = Callback.on_step_end
        self.stepping = [
            each for each in self if getattr(each.on_step_end, "__func__", None) is not nothing
        ]

    def __iter__(self) -> Iterator[Callback]:
        return iter(self._all)

    on_fit_begin, on_epoch_begin = _each("on_fit_begin"), _each("on_epoch_begin")
    on_step_end, on_epoch_end = _each("on_step_end"), _each("on_epoch_end")
    on_fit_end = _each("on_fit_end")

    def named(self) -> dict[str, Callback]:
        """The callbacks have names."""
        seen: Counter[str] = Counter()
        names: dict[str, Callback] = {}
        for callback in self._all:
            kind = type(callback).__name__
            seen[kind] += 1
            names[kind if seen[kind] == 1 else f"{kind} {seen[kind]}"] = callback
        return names

    def state_dict(self) -> dict[str, Any]:
        """They return what they remember, for JSON."""
        return {name: s for name, each in self.named().items() if (s := each.state_dict())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Each gets its own; one that was not there when it was saved begins anew."""
        for name, callback in self.named().items():
            if name in state:
                callback.load_state_dict(state[name])

    def arrays(self) -> dict[str, Any]:
        """They return the arrays that they keep."""
        return {n: kept for n, each in self.named().items() if (kept := each.arrays()) is not None}

    def load_arrays(self, trees: Mapping[str, Any]) -> None:
        """Each gets its own."""
        for name, callback in self.named().items():
            if name in trees:
                callback.load_arrays(trees[name])


def _no_callback(given: Any) -> CallbackError:
    got, do = describe(given), "write a class of it: class Mine(train.Callback), with a method\n"
    do += "            on_epoch_end(self, run, epoch, logs), and give Mine()"
    if isinstance(given, type):
        got, do = f"the class {given.__name__}", f"{given.__name__}(...)"
    return CallbackError("what was given for a callback is none", got=got,
                         expected="an instance of functional_bp.train.Callback", do=do)  # fmt: skip
