"""Callbacks of a person's own, of functions, several as one, and an end after a time."""

from __future__ import annotations

import json
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from test_train_callbacks import Run, State

from functional_bp.train.callbacks import (
    BestWeights,
    Callback,
    CallbackError,
    Callbacks,
    EarlyStopping,
    TerminateAfter,
)


class Counting(Callback):
    """Remembers what it was called with."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def on_fit_begin(self, run: Any) -> None:
        self.calls.append("fit")

    def on_epoch_begin(self, run: Any, epoch: int) -> None:
        self.calls.append(("epoch", epoch))

    def on_step_end(self, run: Any, step: int) -> None:
        self.calls.append(("step", step))

    def on_epoch_end(self, run: Any, epoch: int, logs: dict[str, Any]) -> None:
        self.calls.append(("end", epoch, logs["loss"]))

    def on_fit_end(self, run: Any) -> None:
        self.calls.append("done")

    def state_dict(self) -> dict[str, Any]:
        return {"calls": len(self.calls)}


def drive(callbacks: Any) -> None:
    run = Run()
    callbacks.on_fit_begin(run)
    callbacks.on_epoch_begin(run, 3)
    callbacks.on_step_end(run, 12)
    callbacks.on_epoch_end(run, 3, {"loss": 0.5})
    callbacks.on_fit_end(run)


def test_all_are_called_in_order_and_steps_only_where_wanted() -> None:
    counting, plain = Counting(), BestWeights("loss")
    callbacks = Callbacks([plain, counting])
    assert callbacks.stepping == [counting] and list(callbacks) == [plain, counting]
    drive(Callbacks(counting))
    assert counting.calls == ["fit", ("epoch", 3), ("step", 12), ("end", 3, 0.5), "done"]


def test_a_method_of_the_instance_is_called_after_steps_too() -> None:
    steps: list[int] = []
    callback = Callback()
    callback.on_step_end = lambda run, step: steps.append(step)  # type: ignore[method-assign]
    assert Callbacks([callback]).stepping == [callback]
    drive(Callbacks([callback]))
    assert steps == [12]


def test_each_of_several_gets_back_what_it_remembered() -> None:
    made = [EarlyStopping("loss"), Counting(), EarlyStopping("val_loss"), Callback()]
    callbacks = Callbacks(made)
    run = Run(State({"w": jnp.ones(2)}))
    callbacks.on_epoch_end(run, 0, {"loss": 1.0, "val_loss": 2.0})
    state = json.loads(json.dumps(callbacks.state_dict()))
    assert sorted(state) == ["Counting", "EarlyStopping", "EarlyStopping 2"]
    others = [Counting(), EarlyStopping("loss"), BestWeights("loss"), EarlyStopping("val_loss")]
    fresh = Callbacks(others)
    fresh.load_state_dict(state)
    fresh.load_arrays(callbacks.arrays())
    assert (others[1].best, others[2].best, others[3].best) == (1.0, None, 2.0)
    np.testing.assert_array_equal(others[3].best_params["w"], [1, 1])


def test_an_end_after_a_time(monkeypatch: Any) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    callback, run = TerminateAfter(seconds=30), Run()
    callback.on_fit_begin(run)
    for step, seconds in enumerate((101.0, 129.9, 130.0, 131.0)):
        now[0] = seconds
        callback.on_step_end(run, step)
        assert bool(run.stopped) == (seconds >= 130)
    assert run.stopped == ["TerminateAfter: 30 s are over"]


def test_what_is_no_callback_is_refused() -> None:
    with pytest.raises(
        CallbackError, match=r"the class EarlyStopping(.|\n)*EarlyStopping\(\.\.\.\)"
    ):
        Callbacks([EarlyStopping])  # type: ignore[list-item]
    with pytest.raises(CallbackError, match=r"got: +function(.|\n)*train\.Callback\)"):
        Callbacks([lambda: None])  # type: ignore[list-item]
    with pytest.raises(CallbackError, match=r"needs a time\n.*seconds = 0"):
        TerminateAfter(0)
