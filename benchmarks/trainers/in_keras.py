"""Keras 3 on JAX: the same models of its layers, by ``train_on_batch`` and by ``fit``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.trainers import RATE, LeftOutError, Trainer, cycle
from benchmarks.trainers.tasks import Task


def train_on_batch(task: Task) -> Trainer:
    """One call of ``Model.train_on_batch`` a step, which waits for each step's loss."""
    model, batch = compiled(task), cycle(task.batches())

    def take(count: int) -> float:
        value: Any = None
        for i in range(count):
            if i == count - 1:
                model.reset_metrics()  # what it returns is a mean over steps
            value = model.train_on_batch(*batch())
        return float(value)

    return take


def fit_epochs(task: Task, steps: int, epochs: int, after_epoch: Callable[[], None]) -> list[float]:
    """Seconds of every epoch of ``Model.fit`` on arrays, each of so many steps."""
    model, found, started = compiled(task), [], 0.0
    import keras  # pyright: ignore[reportMissingImports]

    class Between(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            nonlocal started
            started = time.perf_counter()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            found.append(time.perf_counter() - started)
            after_epoch()

    x, y = task.tiled(steps)
    model.fit(x, y, batch_size=task.batch_size, epochs=epochs, verbose=0, callbacks=[Between()])
    return found


def compiled(task: Task) -> Any:
    """The model with the task's parameters, Adam and cross entropy."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras  # pyright: ignore[reportMissingImports]

    if keras.backend.backend() != "jax":
        raise LeftOutError(f"Keras runs on {keras.backend.backend()}; set KERAS_BACKEND=jax")
    model = MODELS[task.name](keras, task)
    model.compile(
        optimizer=keras.optimizers.Adam(RATE, epsilon=1e-8),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def _sequential(keras: Any, task: Task, layers: list[Any]) -> Any:
    """Layers one after the other, whose weights stand in the order of ours."""
    model = keras.Sequential([keras.layers.Input(task.x.shape[1:]), *layers])
    model.set_weights([np.asarray(leaf) for leaf in task.params.values()])
    return model


def _mlp(keras: Any, task: Task) -> Any:
    count, dense = len(task.params) // 2, keras.layers.Dense
    widths = [task.params[f"b{i + 1}"].shape[0] for i in range(count)]
    hidden = [dense(width, "relu") for width in widths[:-1]]
    return _sequential(keras, task, [*hidden, dense(widths[-1])])


def _lenet(keras: Any, task: Task) -> Any:
    layers = keras.layers
    return _sequential(keras, task, [
        layers.Conv2D(6, 5, padding="same", activation="tanh"), layers.AveragePooling2D(2),
        layers.Conv2D(16, 5, activation="tanh"), layers.AveragePooling2D(2), layers.Flatten(),
        layers.Dense(120, "tanh"), layers.Dense(84, "tanh"), layers.Dense(10),
    ])  # fmt: skip


def _lstm(keras: Any, task: Task) -> Any:
    units, classes = task.params["V"].shape
    return _sequential(keras, task, [keras.layers.LSTM(units), keras.layers.Dense(classes)])


def _gpt(keras: Any, task: Task) -> Any:
    layers, p, blocks = keras.layers, task.params, task.params["blocks"]
    (count, d, heads, k), (v, t) = blocks["WQ"].shape, (p["E"].shape[0], task.x.shape[1])
    given: list[tuple[Any, list[Any]]] = []  # layers and their weights

    def made(layer: Any, *weights: Any) -> Any:
        given.append((layer, [np.asarray(weight) for weight in weights]))
        return layer

    def norm(gain: Any, shift: Any) -> Any:
        return made(layers.LayerNormalization(epsilon=1e-5), gain, shift)

    def gelu(x: Any) -> Any:
        return keras.activations.gelu(x, approximate=True)

    class Positions(layers.Layer):
        def build(self, input_shape: Any) -> None:
            self.table = self.add_weight(shape=(t, d))

        def call(self, x: Any) -> Any:
            return x + self.table

    tokens = layers.Input((t,), dtype="int32")
    x = made(Positions(), p["P"])(made(layers.Embedding(v, d), p["E"])(tokens))
    for i in range(count):
        b = {name: leaf[i] for name, leaf in blocks.items()}
        h = norm(b["g1"], b["s1"])(x)
        attention = made(layers.MultiHeadAttention(heads, k),
                         *(b[f"{kind}{n}"] for n in "QKVO" for kind in "Wb"))  # fmt: skip
        x = x + attention(h, h, use_causal_mask=True)
        h = made(layers.Dense(4 * d, gelu), b["W1"], b["b1"])(norm(b["g2"], b["s2"])(x))
        x = x + made(layers.Dense(d), b["W2"], b["b2"])(h)
    x = norm(p["g"], p["s"])(x)
    model = keras.Model(tokens, made(layers.Dense(v, use_bias=False), p["W"])(x))
    for layer, weights in given:
        layer.set_weights(weights)
    return model


MODELS = {"mlp": _mlp, "lenet": _lenet, "lstm": _lstm, "gpt": _gpt}
