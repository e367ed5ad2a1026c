"""The networks of the benchmarks beside Keras' layers with the same weights; ``-m libraries``."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from benchmarks.networks import (
    gpt_block,
    gpt_params,
    lenet,
    lenet_params,
    lstm,
    lstm_params,
    mlp,
    mlp_params,
)  # fmt: skip

pytestmark = [pytest.mark.libraries, pytest.mark.usefixtures("keras")]

# Single precision on both sides, sums of up to some hundred products in another order.
TOLERANCE = {"rtol": 2e-5, "atol": 2e-6}
KEY = jax.random.key(5)
RNG = np.random.default_rng(5)


@pytest.fixture(autouse=True)
def single() -> Any:
    with jax.enable_x64(False):
        yield


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def compare(model: Any, params: Any, predictions: Any, x: np.ndarray) -> None:
    """Keras' predictions with our weights are ours, and ours are those of Keras' own weights."""
    model(x)
    order = list(params)
    assert [w.shape for w in model.weights] == [params[name].shape for name in order]
    own = {name: w.value for name, w in zip(order, model.weights)}
    np.testing.assert_allclose(model(x), predictions(own, x), **TOLERANCE)
    model.set_weights([np.asarray(params[name]) for name in order])
    np.testing.assert_allclose(model(x), predictions(params, x), **TOLERANCE)


def test_mlp(keras: Any) -> None:
    dense = keras.layers.Dense
    model = keras.Sequential([dense(16, "relu"), dense(8, "relu"), dense(3)])
    compare(model, mlp_params(KEY, [6, 16, 8, 3]), mlp, normal(5, 6))


def test_lenet(keras: Any) -> None:
    layers = keras.layers
    model = keras.Sequential([
        layers.Conv2D(6, 5, padding="same", activation="tanh"), layers.AveragePooling2D(2),
        layers.Conv2D(16, 5, activation="tanh"), layers.AveragePooling2D(2), layers.Flatten(),
        layers.Dense(120, "tanh"), layers.Dense(84, "tanh"), layers.Dense(10),
    ])  # fmt: skip
    compare(model, lenet_params(KEY, (28, 21), channels=2), lenet, normal(3, 28, 21, 2))


def test_lstm(keras: Any) -> None:
    model = keras.Sequential([keras.layers.LSTM(7), keras.layers.Dense(3)])
    compare(model, lstm_params(KEY, 4, 7, 3), lstm, normal(3, 6, 4))


def test_first_weights_are_of_keras_distributions(keras: Any) -> None:
    layer = keras.layers.LSTM(64)
    layer(np.ones((1, 2, 300), np.float32))
    kernel, recurrent_kernel, bias = (np.asarray(w.value) for w in layer.weights)
    params = jax.tree.map(np.asarray, lstm_params(KEY, 300, 64, 3))
    # The deviation of 76800 uniform numbers: within 1 % for both, four of its own deviations.
    assert params["W"].std() == pytest.approx(kernel.std(), rel=0.02)
    assert np.max(np.abs(params["W"])) == pytest.approx(np.max(np.abs(kernel)), rel=1e-3)
    np.testing.assert_allclose(params["U"] @ params["U"].T, np.eye(64), atol=1e-5)
    np.testing.assert_allclose(recurrent_kernel @ recurrent_kernel.T, np.eye(64), atol=1e-5)
    np.testing.assert_array_equal(params["b"], bias)


def test_a_block_of_gpt(keras: Any) -> None:
    layers, params = keras.layers, gpt_params(KEY, 5, width=16, layers=1, heads=4)
    p = {name: 5 * np.asarray(leaf[0]) for name, leaf in params["blocks"].items()}
    x = normal(2, 6, 16)
    norms = [layers.LayerNormalization(epsilon=1e-5) for _ in range(2)]
    attention = layers.MultiHeadAttention(4, 4)
    up, down = layers.Dense(64), layers.Dense(16)

    def block(x: Any) -> Any:
        h = norms[0](x)
        x = x + attention(h, h, use_causal_mask=True)
        return x + down(keras.activations.gelu(up(norms[1](x)), approximate=True))

    block(x)
    given = {norms[0]: "g1 s1", norms[1]: "g2 s2", up: "W1 b1", down: "W2 b2",
             attention: "WQ bQ WK bK WV bV WO bO"}  # fmt: skip
    for layer, names in given.items():
        layer.set_weights([p[name] for name in names.split()])
    # Normed, weighted by five: numbers of some tens.
    np.testing.assert_allclose(block(x), gpt_block(p, x), rtol=1e-4, atol=1e-4)
