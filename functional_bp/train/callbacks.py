"""A run of training calls callbacks as it goes on; these come with the package.

They stop it, set learning rates, keep the best weights, and write logs into files. One of your own
is a class with the methods of ``Callback`` that it needs.
"""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functional_bp import processes
from functional_bp.errors import BackpropError, TrainingError, compose, describe, warn
from functional_bp.train.data import by_position
from functional_bp.train.history import History


class CallbackError(TrainingError):
    """A callback was asked for what this training cannot give it."""


@dataclasses.dataclass(eq=False, repr=False)
class TrainingRun:
    """A run of training is what callbacks are given.

    Attributes:
        state: the present state; a callback may replace it between epochs.
        history: the numbers of every finished epoch.
        epoch: which epoch runs, from 0.
        step: how many steps were taken in all.
        stopped: why the run ends early, or None.
    """

    state: Any
    history: History
    step: int
    epoch: int = 0
    stopped: str | None = None

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

    Attributes:
        speaks: whether it prints, draws or writes files, and changes nothing of the run: of several
            processes only the first one calls it then.
    """

    speaks = False

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
            if not callback.speaks or processes.speaks():
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
        self._named: dict[str, Callback] = {}
        seen: Counter[str] = Counter()
        for callback in [callbacks] if isinstance(callbacks, Callback) else callbacks:
            if not isinstance(callback, Callback):
                raise _no_callback(callback)
            kind = type(callback).__name__
            seen[kind] += 1
            self._named[kind if seen[kind] == 1 else f"{kind} {seen[kind]}"] = callback
        nothing = Callback.on_step_end
        self.stepping = [
            each for each in self if getattr(each.on_step_end, "__func__", None) is not nothing
        ]

    def __iter__(self) -> Iterator[Callback]:
        return iter(self._named.values())

    on_fit_begin, on_epoch_begin = _each("on_fit_begin"), _each("on_epoch_begin")
    on_step_end, on_epoch_end = _each("on_step_end"), _each("on_epoch_end")
    on_fit_end = _each("on_fit_end")

    def state_dict(self) -> dict[str, Any]:
        """They return what they remember, for JSON."""
        return {name: s for name, each in self._named.items() if (s := each.state_dict())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Each gets its own; one that was not there when it was saved begins anew."""
        for name, callback in self._named.items():
            if name in state:
                callback.load_state_dict(state[name])

    def arrays(self) -> dict[str, Any]:
        """They return the arrays that they keep."""
        return {n: kept for n, each in self._named.items() if (kept := each.arrays()) is not None}

    def load_arrays(self, trees: Mapping[str, Any]) -> None:
        """Each gets its own."""
        for name, callback in self._named.items():
            if name in trees:
                callback.load_arrays(trees[name])


def _no_callback(given: Any) -> CallbackError:
    got, do = describe(given), "write a class of it: class Mine(train.Callback), with a method\n"
    do += "            on_epoch_end(self, run, epoch, logs), and give Mine()"
    if isinstance(given, type):
        got, do = f"the class {given.__name__}", f"{given.__name__}(...)"
    return CallbackError("what was given for a callback is none", got=got,
                         expected="an instance of functional_bp.train.Callback", do=do)  # fmt: skip


class TerminateAfter(Callback):
    """Training ends after a time, for a machine that is lent for hours: the last step is whole.

    A resumed run has the whole time again.

    Args:
        seconds: from the beginning of ``fit``.
    """

    def __init__(self, seconds: float) -> None:
        if not seconds > 0:
            raise CallbackError("TerminateAfter needs a time", got=f"seconds = {seconds!r}",
                                expected="a number of seconds above 0")  # fmt: skip
        self.seconds = seconds
        self._end = math.inf

    def on_fit_begin(self, run: Any) -> None:
        """The clock starts."""
        self._end = time.monotonic() + self.seconds

    def on_step_end(self, run: Any, step: int) -> None:
        """The run is stopped if the time is over."""
        if time.monotonic() >= self._end:
            run.stop(f"TerminateAfter: {self.seconds:g} s are over")
            self._end = math.inf


# What begins anew or goes on; a number of the logs that is watched.


class _Continuing(Callback):
    """Each fit begins anew, unless the state of a checkpoint was loaded before it.

    ``REMEMBERED`` are the attributes that go into a checkpoint, ``_forget`` sets them anew.
    """

    REMEMBERED: tuple[str, ...] = ()
    _resumes = False

    def _forget(self) -> None: ...

    def on_fit_begin(self, run: Any) -> None:
        if not self._resumes:
            self._forget()
        self._resumes = False

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.REMEMBERED}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in self.REMEMBERED:
            setattr(self, name, state[name])
        self._resumes = True


NAMES = {  # of numbers, by what is better; the last part of a name counts
    "max": ("accuracy", "acc", "auc", "precision", "recall", "f1", "r2", "iou", "score"),
    "min": ("loss", "error", "mae", "mse", "rmse", "mape", "entropy", "crossentropy", "perplexity"),
}


class _Monitoring(_Continuing):
    """A number of the logs is watched, the best one kept: ``_look`` is given it after an epoch.

    An improvement is by more than ``min_delta``; NaN and infinity never are one.
    """

    best: float | None
    start_from_epoch = 0
    _seen = False

    def __init__(self, monitor: str, mode: str, min_delta: float) -> None:
        self.monitor, self.min_delta = monitor, abs(min_delta)
        self._sign = 1.0 if _mode(monitor, mode, type(self).__name__) == "min" else -1.0
        self._forget()

    def _forget(self) -> None:
        self.best, self._epochs = None, 0

    def on_epoch_end(self, run: Any, epoch: int, logs: dict[str, Any]) -> None:
        self._epochs += 1
        if self.monitor in logs:
            self._seen = True
            if epoch >= self.start_from_epoch:
                self._look(run, epoch, float(np.asarray(logs[self.monitor])))
        elif not self.monitor.startswith("val_") or any(name.startswith("val_") for name in logs):
            raise CallbackError(self._absent(", ".join(logs)))  # else it was not validated

    def _look(self, run: Any, epoch: int, value: float) -> Any:
        raise NotImplementedError

    def _improves(self, value: float, reference: float | None) -> bool:
        if not math.isfinite(value):
            return False
        return reference is None or self._sign * (reference - value) > self.min_delta

    def on_fit_end(self, run: Any) -> None:
        if self._epochs and not self._seen and self.best is None:
            warn(self._absent(f"{self._epochs} epochs without validation"))

    def _absent(self, got: str) -> str:
        do = "take one of these names"
        if self.monitor.startswith("val_"):
            do = "pass validation_data= or validation_split=, or watch a name without val_"
        what = f"{type(self).__name__} watches {self.monitor!r}, which the logs do not have"
        return compose(what, got=got or "no logs", expected=self.monitor, do=do)


def _mode(monitor: str, mode: str, owner: str) -> str:
    if mode not in ("auto", "min", "max"):
        raise CallbackError(f"{owner} does not know the mode", got=f"mode = {mode!r}",
                            expected='"min", "max" or "auto"')  # fmt: skip
    if mode != "auto":
        return mode
    last = monitor.lower().replace("-", "_").split("_")[-1]
    for side, names in NAMES.items():
        if last in names:
            return side
    raise CallbackError(f"{owner} cannot tell whether a higher or a lower {monitor!r} is better",
                        got='mode = "auto"', expected="a name that ends like accuracy or loss",
                        do='pass mode="min" or mode="max"')  # fmt: skip


# The weights of the best epoch, and an end of training when nothing becomes better.


def copied(tree: Any) -> Any:
    """The arrays of a pytree are copied to buffers of their own, on the same devices.

    The step gives its state's buffers away to the next one, so what is to last must be copied.
    """

    def copy(array: Any) -> Any:
        made = jnp.copy(array)
        if getattr(array, "committed", False) and made.sharding != array.sharding:
            made = jax.device_put(made, array.sharding)
        return made

    return jax.tree.map(copy, tree)


class BestWeights(_Monitoring):
    """Training ends with the parameters and model state of the epoch in which a number was best.

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
        kept: whether the weights of that epoch are kept.

    Raises:
        CallbackError: the name does not tell what is better, or the logs have no such name.
    """

    REMEMBERED = ("best", "best_epoch", "kept")

    def __init__(
        self,
        monitor: str = "val_loss",
        *,
        mode: str = "auto",
        min_delta: float = 0.0,
        restore_best: bool = True,
        start_from_epoch: int = 0,
    ) -> None:
        self.restore_best, self.start_from_epoch = restore_best, start_from_epoch
        super().__init__(monitor, mode, min_delta)

    def _forget(self) -> None:
        super()._forget()
        self.best_epoch: int | None = None
        self.kept, self._weights = False, None

    @property
    def best_params(self) -> Any:
        """The parameters of the best epoch are None before there is one."""
        return None if self._weights is None else self._weights["params"]

    def on_fit_begin(self, run: Any) -> None:
        """It begins anew, or goes on with what was remembered if the best weights came with it."""
        super().on_fit_begin(run)
        if self.restore_best and self.kept and self._weights is None:
            raise CallbackError(
                f"{type(self).__name__} goes on without the weights it had kept",
                got=f"best {self.monitor} {self.best}, and no arrays",
                expected="its state_dict() and its arrays() from one checkpoint",
                do="call load_arrays(tree) beside load_state_dict(state)"
            )  # fmt: skip

    def _look(self, run: Any, epoch: int, value: float) -> bool:
        """Whether the number is the best one yet, whose weights are kept then."""
        if not self._improves(value, self.best):
            return False
        self.best, self.best_epoch, self.kept = value, epoch, self.restore_best
        if self.restore_best:
            parts = {"params": run.state.params}
            if (model_state := getattr(run.state, "model_state", None)) is not None:
                parts["model_state"] = model_state
            self._weights = copied(parts)
        return True

    def on_fit_end(self, run: Any) -> None:
        """The weights of the best epoch are set."""
        super().on_fit_end(run)
        if self.restore_best and self._weights is not None:
            run.state = dataclasses.replace(run.state, **copied(self._weights))

    def arrays(self) -> Any:
        """It keeps ``params``, and ``model_state`` if there is one, of the best epoch."""
        return self._weights

    def load_arrays(self, tree: Any) -> None:
        """These are kept for the best."""
        self._weights = tree


class EarlyStopping(BestWeights):
    """Training ends when a number has not become better for some epochs; as Keras' does.

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

    REMEMBERED = (*BestWeights.REMEMBERED, "wait", "stopped_epoch")

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
            monitor, mode=mode, min_delta=min_delta, restore_best=restore_best,
            start_from_epoch=start_from_epoch,
        )  # fmt: skip
        if patience < 0:
            raise CallbackError("EarlyStopping needs patience", got=f"patience = {patience!r}",
                                expected="a number of epochs, 0 or more")  # fmt: skip

    def _forget(self) -> None:
        super()._forget()
        self.wait = 0
        self.stopped_epoch: int | None = None

    def _look(self, run: Any, epoch: int, value: float) -> bool:
        self.wait += 1
        if super()._look(run, epoch, value):
            if self.baseline is None or self._improves(value, self.baseline):
                self.wait = 0
            return True
        if self.wait >= self.patience and epoch > 0:
            self.stopped_epoch = epoch
            run.stop(self._reason())
        return False

    def _reason(self) -> str:
        if self.best is None or self.best_epoch is None:
            return f"EarlyStopping: {self.monitor} was never a finite number"
        epochs = "1 epoch" if self.wait == 1 else f"{self.wait} epochs"
        return (
            f"EarlyStopping: {self.monitor} has not improved on {self.best:.4g}, "
            f"of epoch {self.best_epoch + 1}, for {epochs}"
        )


# Learning rates that are set from outside, in the state of ``optax.inject_hyperparams``.

RATE = "learning_rate"


def _is_injected(part: Any) -> bool:
    return hasattr(part, "_replace") and RATE in (getattr(part, "hyperparams", None) or ())


def get_learning_rate(opt_state: Any) -> float:
    """The learning rate is read from an optimizer's state.

    Raises:
        CallbackError: it holds none, or takes it from a schedule of its own.
    """
    leaves = jax.tree.leaves(opt_state, is_leaf=_is_injected)
    parts = [part for part in leaves if _is_injected(part)]
    what = "the learning rate of this optimizer cannot be set"
    do = "optax.inject_hyperparams(optax.adam)(learning_rate=1e-3)"
    if not parts:
        raise CallbackError(what, got="an optimizer that has it built in",
                            expected="one that keeps it in its state", do=do)  # fmt: skip
    if any(RATE in (getattr(part, "hyperparams_states", None) or ()) for part in parts):
        raise CallbackError(
            what, got="one that comes from a schedule, which would set it again at every " "step",
            expected="a number",
            do=f"{do},\n            or leave the learning rate to that schedule alone"
        )  # fmt: skip
    return float(parts[0].hyperparams[RATE])


def set_learning_rate(opt_state: Any, value: float) -> Any:
    """The optimizer's state gets another learning rate, of the same dtype on the same device.

    Raises:
        CallbackError: it holds none, takes it from a schedule, or the value is not finite.
    """
    get_learning_rate(opt_state)
    if not np.isfinite(value):
        raise CallbackError("a learning rate must be a finite number",
                            got=f"learning_rate = {value!r}",
                            do="look at the schedule")  # fmt: skip

    def replaced(part: Any) -> Any:
        if not _is_injected(part):
            return part
        rate = jnp.full_like(part.hyperparams[RATE], value)
        return part._replace(hyperparams={**part.hyperparams, RATE: rate})

    return jax.tree.map(replaced, opt_state, is_leaf=_is_injected)


def _set(run: Any, value: float) -> None:
    opt_state = set_learning_rate(run.state.opt_state, value)
    run.state = dataclasses.replace(run.state, opt_state=opt_state)


class LearningRate(Callback):
    """The learning rate is set before every epoch, as Keras' ``LearningRateScheduler`` does.

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
            raise CallbackError("LearningRate needs a function of the epoch", got=repr(schedule),
                                do="LearningRate(lambda epoch: 0.1 * 0.5 ** epoch)")  # fmt: skip
        self.schedule = schedule
        self._with_rate = sum(p.default is p.empty for p in by_position(schedule)) >= 2

    def on_fit_begin(self, run: Any) -> None:
        """Whether it can be set is known before anything is computed."""
        get_learning_rate(run.state.opt_state)

    def on_epoch_begin(self, run: Any, epoch: int) -> None:
        """The rate is set."""
        known = [get_learning_rate(run.state.opt_state)] if self._with_rate else []
        value = self.schedule(epoch, *known)
        try:
            value = float(value)
        except (TypeError, ValueError):
            raise CallbackError("the schedule of LearningRate returned no number",
                                got=f"{value!r} for epoch {epoch}",
                                expected="the learning rate of that epoch") from None  # fmt: skip
        _set(run, value)

    def on_epoch_end(self, run: Any, epoch: int, logs: dict[str, Any]) -> None:
        """The rate is noted in the logs."""
        logs[RATE] = get_learning_rate(run.state.opt_state)


class ReduceLROnPlateau(_Monitoring):
    """The learning rate is multiplied by a factor when a number no longer improves; as in Keras.

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

    REMEMBERED = ("best", "wait", "cooldown_counter")

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
            raise CallbackError("ReduceLROnPlateau reduces the learning rate",
                                got=f"factor = {factor!r}",
                                expected="a number between 0 and 1")  # fmt: skip
        self.factor, self.patience = factor, patience
        self.cooldown, self.min_lr = cooldown, min_lr
        super().__init__(monitor, mode, min_delta)

    def _forget(self) -> None:
        super()._forget()
        self.wait = self.cooldown_counter = 0

    def on_fit_begin(self, run: Any) -> None:
        """It begins anew or goes on; whether the rate can be set is known before any computing."""
        get_learning_rate(run.state.opt_state)
        super().on_fit_begin(run)

    def on_epoch_end(self, run: Any, epoch: int, logs: dict[str, Any]) -> None:
        """The rate is noted, the number looked at, and the rate reduced if it is time."""
        logs[RATE] = get_learning_rate(run.state.opt_state)
        super().on_epoch_end(run, epoch, logs)

    def _look(self, run: Any, epoch: int, value: float) -> None:
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.wait = 0
        if self._improves(value, self.best):
            self.best, self.wait = value, 0
        elif not self.cooldown_counter:
            self.wait += 1
            rate = get_learning_rate(run.state.opt_state)
            if self.wait >= self.patience and rate > np.float32(self.min_lr):
                _set(run, max(rate * self.factor, self.min_lr))
                self.cooldown_counter, self.wait = self.cooldown, 0


# The logs of every epoch in a file.


class TrainExtraError(BackpropError, ImportError):
    """A package is missing that the extra ``train`` brings."""


class CSVLogger(_Continuing):
    """A row of comma-separated values is written for every epoch, on the disk before the next one.

    The first column is ``epoch``, from 0. A name that comes later, as ``val_loss`` where validation
    is not in every epoch, gets a column of its own, empty in the rows before. After a resume the
    rows go on behind those of the checkpoint.

    Args:
        path: the file.
        append: whether rows are added to a file that is there already; else it is begun anew.
        separator: between the values.
    """

    speaks = True
    REMEMBERED = ("rows",)  # how many of the file are kept when training goes on

    def __init__(
        self, path: str | os.PathLike[str], *, append: bool = False, separator: str = ","
    ) -> None:
        self.path, self.append, self.separator = Path(path), append, separator
        self._columns: list[str] = []
        self._rows: list[dict[str, str]] = []
        self._forget()

    def _forget(self) -> None:
        self.rows: int | None = None  # all that the file has

    def on_fit_begin(self, run: Any) -> None:
        """What stays of the file is read, or the file begun."""
        goes_on = self.append or self._resumes
        super().on_fit_begin(run)
        self._columns, self._rows = [], []
        if goes_on and self.path.exists():
            with self.path.open(newline="") as file:
                reader = csv.DictReader(file, delimiter=self.separator)
                self._rows = list(reader)[: self.rows]
                self._columns = list(reader.fieldnames or [])
        self.rows = len(self._rows)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._write_all()

    def on_epoch_end(self, run: Any, epoch: int, logs: dict[str, Any]) -> None:
        """The row is written."""
        row = {"epoch": str(epoch), **{name: _written(value) for name, value in logs.items()}}
        self._rows.append(row)
        self.rows = len(self._rows)
        if new := [name for name in row if name not in self._columns]:
            self._columns += new
            self._write_all()
        else:
            with self.path.open("a", newline="") as file:
                self._writer(file).writerow(row)

    def _write_all(self) -> None:
        """The whole file, put into its place at once."""
        beside = self.path.with_name(self.path.name + ".part")
        with beside.open("w", newline="") as file:
            if self._columns:
                writer = self._writer(file)
                writer.writeheader()
                writer.writerows(self._rows)
        os.replace(beside, self.path)

    def _writer(self, file: Any) -> csv.DictWriter[str]:
        return csv.DictWriter(
            file, self._columns, restval="", delimiter=self.separator, lineterminator="\n"
        )


def _written(value: Any) -> str:
    """A number so that reading it gives the same one."""
    array = np.asarray(value)
    return repr(array.item()) if array.ndim == 0 else str(array.tolist())


class TensorBoard(_Continuing):
    """The logs of every epoch are written for TensorBoard, as Keras' callback does.

    Training is in the folder ``train``, validation in ``validation``, both under the tag
    ``epoch_loss``, so that TensorBoard draws the two into one picture.

    Args:
        directory: for the event files; one for each run.

    Raises:
        TrainExtraError: tensorboardX, which writes them, is not installed.
    """

    speaks = True
    REMEMBERED = ("next",)  # epoch: TensorBoard forgets what was written from there on

    def __init__(self, directory: str | os.PathLike[str] = "logs") -> None:
        if importlib.util.find_spec("tensorboardX") is None:
            raise TrainExtraError(
                "logs for TensorBoard cannot be written", got="no package tensorboardX",
                expected="tensorboardX, which writes them",
                do="pip install 'functional-bp[train]', or use CSVLogger"
            )  # fmt: skip
        self.directory = Path(directory)
        self._writers: dict[str, Any] = {}
        self._forget()

    def _forget(self) -> None:
        self.next: int | None = None

    def on_epoch_end(self, run: Any, epoch: int, logs: dict[str, Any]) -> None:
        """Every number is written."""
        for name, value in logs.items():
            part = "validation" if name.startswith("val_") else "train"
            tag = f"epoch_{name.removeprefix('val_')}"
            self._writer(part).add_scalar(tag, float(np.asarray(value)), epoch)
        for writer in self._writers.values():
            writer.flush()
        self.next = epoch + 1

    def _writer(self, part: str) -> Any:
        """The writer of a folder; what an interrupted run wrote behind a checkpoint is purged."""
        if part not in self._writers:
            from tensorboardX import SummaryWriter

            # The name has a time in seconds: a second file in that second would replace the first.
            self._writers[part] = SummaryWriter(
                str(self.directory / part), purge_step=self.next,
                filename_suffix=f".{time.time_ns()}",
            )  # fmt: skip
        return self._writers[part]

    def on_fit_end(self, run: Any) -> None:
        """The files are closed."""
        for writer in self._writers.values():
            writer.close()
        self._writers = {}
