"""The same network from the same weights on the same batches: Keras' loss of every epoch is ours.

Run with ``-m libraries``, the extra ``libraries`` being installed.
"""

from __future__ import annotations

import os
from typing import Any

import jax
import numpy as np
import optax
import pytest

from functional_bp import train

os.environ.setdefault("KERAS_BACKEND", "jax")

pytestmark = pytest.mark.libraries

RNG = np.random.default_rng(0)
X = RNG.uniform(-1, 1, size=(90, 2)).astype(np.float32)
Y = (np.abs(X[:, 0] - X[:, 1]) < 0.5).astype(np.float32)
WEIGHTS = [
    RNG.normal(size=(2, 3)).astype(np.float32), np.zeros(3, np.float32),
    RNG.normal(size=(3, 1)).astype(np.float32), np.zeros(1, np.float32),
]  # fmt: skip
EPOCHS, BATCH = 50, 20  # the last batch of an epoch holds 10

# float32 sums in another order, carried on through 250 steps.
TOLERANCE = 1e-5


def model(params: Any, x: Any) -> Any:
    w1, b1, w2, b2 = params
    return jax.nn.sigmoid(jax.nn.sigmoid(x @ w1 + b1) @ w2 + b2)[:, 0]


def keras_history(loss: str, optimizer: Any, metrics: list[str], **options: Any) -> Any:
    import keras

    network = keras.Sequential(
        [
            keras.layers.Input([2]),
            keras.layers.Dense(3, activation="sigmoid"),
            keras.layers.Dense(1, activation="sigmoid"),
        ]
    )
    network.set_weights(WEIGHTS)
    network.compile(optimizer=optimizer, loss=loss, metrics=metrics)
    done = network.fit(
        X, Y[:, None], epochs=EPOCHS, batch_size=BATCH, shuffle=False, verbose=0, **options
    )
    return done.history, network.get_weights()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("options", [{}, {"validation_split": 0.3}], ids=["all", "validation"])
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_every_epoch_is_that_of_keras(name: str, options: dict[str, Any]) -> None:
    import keras

    if name == "sgd":
        theirs = keras.optimizers.SGD(0.5)
        ours, loss, metrics = optax.sgd(0.5), "mean_squared_error", []
    else:
        theirs = keras.optimizers.Adam(0.01)
        ours, loss, metrics = optax.adam(0.01, eps=1e-7), "binary_crossentropy", ["accuracy"]
    expected, weights = keras_history(loss, theirs, metrics, **options)
    state, history = train.fit(
        train.supervised(model, loss, metrics), WEIGHTS, X, Y, optimizer=ours, epochs=EPOCHS,
        batch_size=BATCH, shuffle=False, verbose=0, **options,
    )  # fmt: skip
    assert set(history) == set(expected)
    for key in expected:
        np.testing.assert_allclose(history[key], expected[key], rtol=0, atol=TOLERANCE)
    for mine, other in zip(state.params, weights, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_weights_of_samples_and_classes_are_those_of_keras() -> None:
    import keras

    sample_weight = RNG.uniform(0, 2, size=len(X)).astype(np.float32)
    expected, _ = keras_history(
        "binary_crossentropy", keras.optimizers.SGD(0.5), [], sample_weight=sample_weight
    )
    _, history = train.fit(
        train.supervised(model, "binary_crossentropy"), WEIGHTS, X, Y, sample_weight,
        optimizer=optax.sgd(0.5), epochs=EPOCHS, batch_size=BATCH, shuffle=False, verbose=0,
    )  # fmt: skip
    np.testing.assert_allclose(history["loss"], expected["loss"], rtol=0, atol=TOLERANCE)

    class_weight = {0: 0.5, 1: 3.0}
    expected, _ = keras_history(
        "binary_crossentropy", keras.optimizers.SGD(0.5), [], class_weight=class_weight
    )
    task = train.supervised(model, "binary_crossentropy", class_weight=class_weight)
    _, history = train.fit(
        task, WEIGHTS, X, Y.astype(int), optimizer=optax.sgd(0.5), epochs=EPOCHS,
        batch_size=BATCH, shuffle=False, verbose=0,
    )  # fmt: skip
    np.testing.assert_allclose(history["loss"], expected["loss"], rtol=0, atol=TOLERANCE)
