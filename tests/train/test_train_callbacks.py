"""Callbacks: when training ends, with which weights, what is written, and where it goes on."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from functional_bp.train.callbacks import (
    BestWeights,
    Callback,
    CallbackError,
    EarlyStopping,
    LearningRate,
    ReduceLROnPlateau,
    get_learning_rate,
    set_learning_rate,
)


@dataclass(frozen=True)
class State:
    params: Any
    opt_state: Any = None
    model_state: Any = None


@dataclass
class Run:
    """A training run without training: the epoch's number is its parameter."""

    state: Any = None
    epoch: int = 0
    step: int = 0
    history: Any = None
    stopped: list[str] = field(default_factory=list)

    def stop(self, reason: str) -> None:
        self.stopped.append(reason)


def run_epochs(
    callback: Callback, values: list[float | None], run: Run | None = None, first: int = 0
) -> Run:
    """Epochs with these values of val_loss, until the callback ends them."""
    run = run or Run()
    callback.on_fit_begin(run)
    for epoch, value in enumerate(values, first):
        run.epoch = epoch
        callback.on_epoch_begin(run, epoch)
        opt_state = None if run.state is None else run.state.opt_state
        run.state = State({"w": jnp.full(2, float(epoch))}, opt_state)
        logs = {"loss": 1.0} | ({} if value is None else {"val_loss": value})
        callback.on_epoch_end(run, epoch, logs)
        if run.stopped:
            break
    return run


def through_json(saved: Callback, fresh: Any) -> Any:
    fresh.load_state_dict(json.loads(json.dumps(saved.state_dict())))
    if saved.arrays() is not None:
        fresh.load_arrays(saved.arrays())
    return fresh


# Stopping. The last epochs are what Keras 3.15's EarlyStopping gives on the same values;
# test_train_keras.py compares with Keras itself on drawn ones.


@pytest.mark.parametrize(
    ("options", "values", "last"),
    [
        ({}, [5, 4, 4, 3], 2),
        ({"patience": 1}, [5, 4, 4, 3], 2),
        ({"patience": 2}, [5, 4, 4, 4, 3], 3),
        ({"patience": 2}, [5, 4, 4.5, 3, 3, 3, 2], 5),
        ({"patience": 2, "min_delta": 0.5}, [5, 4.6, 4.3, 4.1, 4.0, 1], 3 + 1),
        ({"patience": 2, "mode": "max"}, [1, 2, 2, 3, 3, 2, 9], 5),
        ({"patience": 2, "baseline": 2.0}, [5, 4, 3, 2.5, 1], None),
        ({"patience": 2, "baseline": 2.0}, [5, 5, 5], 1),
        ({"start_from_epoch": 3}, [1, 2, 3, 9, 8, 8, 7], 5),
        ({"patience": 2}, [None, 5, None, 6, None, 6, 6], 5),  # validated every other epoch
        ({"patience": 2}, [np.nan, np.nan, 1], 1),
    ],
)
def test_early_stopping(options: dict[str, Any], values: list[Any], last: int | None) -> None:
    run = run_epochs(EarlyStopping("val_loss", **options), values)
    assert (run.epoch if run.stopped else None) == last


def test_the_reason_says_what_did_not_improve() -> None:
    run = run_epochs(EarlyStopping(patience=2), [5, 4, 4.25, 4])
    assert run.stopped == [
        "EarlyStopping: val_loss has not improved on 4, of epoch 2, for 2 epochs"
    ]
    assert run_epochs(EarlyStopping(), [1, 2]).stopped[0].endswith("of epoch 1, for 1 epoch")
    assert "never a finite number" in run_epochs(EarlyStopping(), [np.nan, np.inf]).stopped[0]


@pytest.mark.parametrize("kind", [BestWeights, EarlyStopping])
def test_best_weights_are_set_at_the_end(kind: Any) -> None:
    callback = kind(**({"patience": 9} if kind is EarlyStopping else {}))
    run = run_epochs(callback, [5, 3, 4, np.nan])
    np.testing.assert_array_equal(run.state.params["w"], [3, 3])
    callback.on_fit_end(run)
    np.testing.assert_array_equal(run.state.params["w"], [1, 1])
    assert (callback.best, callback.best_epoch) == (3, 1)
    run.state.params["w"].delete()  # as a step of a second fit does
    np.testing.assert_array_equal(callback.best_params["w"], [1, 1])


def test_last_weights_stay_on_request() -> None:
    callback = BestWeights(restore_best=False)
    run = run_epochs(callback, [5, 3, 4])
    callback.on_fit_end(run)
    assert callback.arrays() is None and run.state.params["w"][0] == 2


@pytest.mark.parametrize("spread", [False, True])
def test_best_weights_survive_donation_where_they_were(spread: bool) -> None:
    w = jnp.arange(8.0)
    if spread:
        mesh = Mesh(np.array(jax.devices()), ("data",))
        w = jax.device_put(w, NamedSharding(mesh, PartitionSpec("data")))
    sharding, committed = w.sharding, w.committed
    run = Run(State({"w": w}, model_state={"mean": jnp.ones(2)}))
    callback = BestWeights()
    callback.on_epoch_end(run, 0, {"val_loss": 1.0})
    after = jax.jit(lambda w: w + 1, donate_argnums=0)(w)
    assert w.is_deleted()
    run.state = State({"w": after}, model_state={"mean": jnp.zeros(2)})
    callback.on_fit_end(run)
    np.testing.assert_array_equal(run.state.params["w"], np.arange(8.0))
    np.testing.assert_array_equal(run.state.model_state["mean"], [1, 1])
    assert run.state.params["w"].sharding == sharding
    assert run.state.params["w"].committed == committed


@pytest.mark.parametrize("cut", [1, 3, 4])
def test_early_stopping_goes_on_where_it_was(cut: int) -> None:
    values = [5, 4, 4.5, 3, 3.5, 3.2, 1]
    whole = EarlyStopping(patience=2)
    run = run_epochs(whole, values)
    before = EarlyStopping(patience=2)
    run_epochs(before, values[:cut])
    resumed = through_json(before, EarlyStopping(patience=2))
    again = run_epochs(resumed, values[cut:], first=cut)
    assert (again.epoch, again.stopped) == (run.epoch, run.stopped) and run.stopped
    assert resumed.state_dict() == whole.state_dict()
    np.testing.assert_array_equal(resumed.best_params["w"], whole.best_params["w"])


@pytest.mark.parametrize("kind", [EarlyStopping, ReduceLROnPlateau])
def test_a_second_fit_begins_anew(kind: Any) -> None:
    callback = kind(patience=2)
    _, first = injected(1.0)
    run_epochs(callback, [1, 1], first)
    _, second = injected(1.0)
    run_epochs(callback, [5, 4, 4.5], second)  # all worse than in the first
    assert not second.stopped and get_learning_rate(second.state.opt_state) == 1.0
    assert callback.best == 4
    resumed = through_json(callback, kind(patience=2))
    for _ in range(2):  # the one that goes on, and one after it
        resumed.on_fit_begin(second)
    assert resumed.best is None


def test_best_weights_do_not_go_on_without_their_arrays() -> None:
    before, resumed = BestWeights(), BestWeights()
    run_epochs(before, [5, 4])
    resumed.load_state_dict(before.state_dict())
    with pytest.raises(CallbackError, match=r"without the weights it had kept\n.*val_loss 4"):
        resumed.on_fit_begin(Run())


@pytest.mark.parametrize(
    ("monitor", "mode", "higher"),
    [
        ("val_accuracy", "auto", True),
        ("loss", "auto", False),
        ("val_mean_absolute_error", "auto", False),
        ("f1", "auto", True),
        ("loss", "max", True),
    ],
)
def test_what_is_better_goes_by_the_name(monitor: str, mode: str, higher: bool) -> None:
    callback = BestWeights(monitor, mode=mode)
    run = Run(State({"w": jnp.ones(1)}))
    for epoch, value in enumerate([1.0, 3.0, 2.0, 0.5]):
        callback.on_epoch_end(run, epoch, {monitor: value})
    assert callback.best == (3.0 if higher else 0.5)


def test_monitors_that_cannot_work_are_refused() -> None:
    with pytest.raises(CallbackError, match=r"higher or a lower 'val_reward'(.|\n)*mode=\"min\""):
        EarlyStopping("val_reward")
    with pytest.raises(CallbackError, match=r"BestWeights does not know the mode\n.*'least'"):
        BestWeights(mode="least")
    with pytest.raises(CallbackError, match=r"needs patience\n.*-1"):
        EarlyStopping(patience=-1)
    with pytest.raises(CallbackError, match=r"watches 'accuracy'(.|\n)*got: +loss\n(.|\n)*these"):
        EarlyStopping("accuracy").on_epoch_end(Run(), 0, {"loss": 1.0})
    with pytest.raises(CallbackError, match=r"watches 'val_mae'(.|\n)*loss, val_loss"):
        EarlyStopping("val_mae").on_epoch_end(Run(), 0, {"loss": 1.0, "val_loss": 1.0})
    callback = EarlyStopping()
    run = run_epochs(callback, [None, None])
    with pytest.warns(UserWarning, match=r"2 epochs without validation(.|\n)*validation_split"):
        callback.on_fit_end(run)


# Learning rates


def injected(rate: Any = 0.5) -> Any:
    made = optax.chain(optax.clip(1.0), optax.inject_hyperparams(optax.sgd)(learning_rate=rate))
    return made, Run(State({"w": jnp.ones(2)}, made.init({"w": jnp.ones(2)})))


def test_learning_rate_by_epoch_is_what_the_optimizer_uses() -> None:
    optimizer, run = injected()
    callback = LearningRate(lambda epoch: 0.5**epoch)
    callback.on_fit_begin(run)
    for epoch in range(3):
        callback.on_epoch_begin(run, epoch)
        updates, _ = optimizer.update({"w": jnp.ones(2)}, run.state.opt_state, run.state.params)
        np.testing.assert_allclose(updates["w"], -(0.5**epoch))
        logs: dict[str, Any] = {}
        callback.on_epoch_end(run, epoch, logs)
        assert logs == {"learning_rate": 0.5**epoch}


def test_schedules_of_optax_and_of_the_rate_itself() -> None:
    _, run = injected()
    LearningRate(optax.linear_schedule(1.0, 0.0, 4)).on_epoch_begin(run, 1)
    assert get_learning_rate(run.state.opt_state) == 0.75
    LearningRate(lambda epoch, rate: rate / 2).on_epoch_begin(run, 2)
    assert get_learning_rate(run.state.opt_state) == 0.375


@pytest.mark.parametrize("spread", [False, True])
def test_another_learning_rate_compiles_nothing_again(spread: bool) -> None:
    optimizer, run = injected()
    opt_state = run.state.opt_state
    if spread:
        mesh = Mesh(np.array(jax.devices()), ("data",))
        opt_state = jax.device_put(opt_state, NamedSharding(mesh, PartitionSpec()))
    step = jax.jit(lambda s: optimizer.update({"w": jnp.ones(2)}, s)[1])
    opt_state = step(step(opt_state))
    compiled = step._cache_size()
    step(set_learning_rate(opt_state, 0.125))
    assert step._cache_size() == compiled


@pytest.mark.parametrize(
    ("values", "options", "rates"),
    [
        ([5, 5, 5, 5, 5], {"patience": 2}, [1, 1, 1, 0.1, 0.1, 0.01]),
        ([5, 5, 5, 5, 5], {"patience": 1, "cooldown": 2}, [1, 1, 0.1, 0.1, 0.01, 0.01]),
        ([5, 5, 5, 5], {"patience": 1, "min_lr": 0.05}, [1, 1, 0.1, 0.05, 0.05]),
        ([5, 4.9999, 4.9, 4.9], {"patience": 1}, [1, 1, 0.1, 0.1, 0.01]),
        ([5, 6, 6, 7], {"patience": 1, "mode": "max", "factor": 0.5}, [1, 1, 1, 0.5, 0.5]),
    ],
)
@pytest.mark.parametrize("cut", [None, 2, 3])
def test_reduction_on_a_plateau(
    values: list[Any], options: dict[str, Any], rates: list[float], cut: int | None
) -> None:
    _, run = injected(1.0)
    callback, seen = ReduceLROnPlateau(**options), []
    callback.on_fit_begin(run)
    for epoch, value in enumerate(values):
        if epoch == cut:
            callback = through_json(callback, ReduceLROnPlateau(**options))
            callback.on_fit_begin(run)
        seen.append(get_learning_rate(run.state.opt_state))
        callback.on_epoch_end(run, epoch, {"val_loss": value})
    seen.append(get_learning_rate(run.state.opt_state))
    np.testing.assert_allclose(seen, rates, rtol=1e-6)  # rates are float32


def test_learning_rates_that_cannot_be_set_are_refused() -> None:
    plain = Run(State(None, optax.adam(0.1).init({"w": jnp.ones(2)})))
    for callback in (LearningRate(lambda epoch: 0.1), ReduceLROnPlateau()):
        with pytest.raises(CallbackError, match=r"has it built in(.|\n)*inject_hyperparams"):
            callback.on_fit_begin(plain)
    _, scheduled = injected(optax.constant_schedule(0.1))
    with pytest.raises(CallbackError, match="comes from a schedule"):
        LearningRate(lambda epoch: 0.1).on_fit_begin(scheduled)
    _, run = injected()
    with pytest.raises(CallbackError, match=r"returned no number\n.*None for epoch 3"):
        LearningRate(lambda epoch: None).on_epoch_begin(run, 3)
    with pytest.raises(CallbackError, match=r"finite number\n.*nan"):
        LearningRate(lambda epoch: np.nan).on_epoch_begin(run, 0)
    with pytest.raises(CallbackError, match=r"needs a function of the epoch\n.*0.1"):
        LearningRate(0.1)  # type: ignore[arg-type]
    with pytest.raises(CallbackError, match=r"reduces the learning rate\n.*10"):
        ReduceLROnPlateau(factor=10)
