"""Early stopping, plateaus, splits and rows of CSV beside Keras' own, on values that are drawn."""

from __future__ import annotations

import csv
import importlib
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_train_callbacks import Run, State

from functional_bp.train.callbacks import (
    CSVLogger,
    EarlyStopping,
    ReduceLROnPlateau,
    get_learning_rate,
)
from functional_bp.train.data import split

pytestmark = pytest.mark.libraries

EPOCHS = 30


@pytest.fixture(scope="module")
def keras() -> Any:
    os.environ["KERAS_BACKEND"] = "jax"
    return importlib.import_module("keras")


class Model:
    """What Keras' callbacks want of a model: the weights are the number of the epoch."""

    def __init__(self) -> None:
        self.stop_training, self.weights, self.metrics = False, 0, []
        self.optimizer = SimpleNamespace(learning_rate=np.float32(1.0))

    def get_weights(self) -> int:
        return self.weights

    def set_weights(self, weights: int) -> None:
        self.weights = weights


def drawn(seed: int) -> tuple[np.random.Generator, list[float]]:
    """A falling, noisy series on a coarse grid, so that values repeat."""
    rng = np.random.default_rng(seed)
    values = 2 * 0.9 ** np.arange(EPOCHS) + rng.normal(size=EPOCHS) * 0.15
    return rng, [float(v) for v in np.round(values * 16) / 16]


@pytest.mark.parametrize("seed", range(60))
def test_early_stopping(keras: Any, seed: int) -> None:
    rng, values = drawn(seed)
    options = dict(
        patience=int(rng.integers(0, 5)),
        min_delta=float(rng.choice([0, 0.125])),
        mode=str(rng.choice(["min", "max"], p=[0.8, 0.2])),
        baseline=float(rng.choice([0.5, 1.5])) if rng.random() < 0.3 else None,
        start_from_epoch=int(rng.choice([0, 0, 4])),
    )
    theirs, model = keras.callbacks.EarlyStopping(restore_best_weights=True, **options), Model()
    theirs.set_model(model)
    theirs.on_train_begin()
    ours, run = EarlyStopping(**options), Run()
    for epoch, value in enumerate(values):
        model.weights = epoch
        run.state = State({"w": jnp.int32(epoch)})
        theirs.on_epoch_end(epoch, {"val_loss": value})
        ours.on_epoch_end(run, epoch, {"val_loss": value})
        assert model.stop_training == bool(run.stopped)
        if run.stopped:
            break
    theirs.on_train_end()
    ours.on_fit_end(run)
    assert int(run.state.params["w"]) == model.weights


@pytest.mark.parametrize("seed", range(60))
def test_reduction_on_a_plateau(keras: Any, seed: int) -> None:
    rng, values = drawn(seed)
    options = dict(
        factor=float(rng.choice([0.5, 0.1])),
        patience=int(rng.integers(1, 4)),
        min_delta=float(rng.choice([1e-4, 0.125])),
        cooldown=int(rng.integers(0, 4)),
        min_lr=float(rng.choice([0.0, 0.05])),
        mode=str(rng.choice(["min", "max"], p=[0.8, 0.2])),
    )
    theirs, model = keras.callbacks.ReduceLROnPlateau(**options), Model()
    theirs.set_model(model)
    theirs.on_train_begin()
    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=1.0)
    run = Run(State({}, optimizer.init({"w": jnp.ones(1, jnp.float32)})))
    ours = ReduceLROnPlateau(**options)
    for epoch, value in enumerate(values):
        logs, same = {"val_loss": value}, {"val_loss": value}
        theirs.on_epoch_end(epoch, logs)
        ours.on_epoch_end(run, epoch, same)
        np.testing.assert_allclose(same["learning_rate"], logs["learning_rate"], rtol=1e-5)
    rate = get_learning_rate(run.state.opt_state)
    np.testing.assert_allclose(rate, float(model.optimizer.learning_rate), rtol=1e-5)


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.25, 0.3, 1 / 3, 0.5, 0.8])
def test_split(keras: Any, fraction: float) -> None:
    from keras.src.trainers.data_adapters.array_slicing import train_validation_split

    for count in (10, 11, 97, 1000):
        x = np.arange(count)
        (training,), (validation,) = train_validation_split((x,), fraction)
        ours = split(x, fraction)
        np.testing.assert_array_equal(ours[0], training)
        np.testing.assert_array_equal(ours[1], validation)


def test_rows_of_csv(keras: Any, tmp_path: Path) -> None:
    theirs = keras.callbacks.CSVLogger(str(tmp_path / "theirs.csv"))
    theirs.set_model(Model())
    theirs.on_train_begin()
    ours = CSVLogger(tmp_path / "ours.csv")
    ours.on_fit_begin(Run())
    for epoch in range(3):
        logs = {"accuracy": 0.1 * epoch, "loss": 1 / (epoch + 1), "val_loss": 0.5}
        theirs.on_epoch_end(epoch, dict(logs))
        ours.on_epoch_end(Run(), epoch, dict(logs))
    theirs.on_train_end()
    texts = [(tmp_path / f"{name}.csv").read_text() for name in ("theirs", "ours")]
    theirs_rows, our_rows = (list(csv.reader(text.splitlines())) for text in texts)
    assert our_rows == theirs_rows
