"""What is trained: a network of ``benchmarks.networks``, its first parameters, and data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.networks import (
    gpt,
    gpt_params,
    lenet,
    lenet_params,
    lstm,
    lstm_params,
    mlp,
    mlp_params,
)  # fmt: skip

BATCHES = 4  # of different data


class Task(NamedTuple):
    """A classification by cross entropy.

    Attributes:
        name: of the model, by which other libraries know what to build.
        model: ``model(params, x) -> logits``.
        params: a dictionary of arrays.
        x: inputs of all batches, one after the other.
        y: labels ``i32[...]``.
        batch_size: examples a step.
    """

    name: str
    model: Callable[[Any, Any], Any]
    params: Any
    x: np.ndarray
    y: np.ndarray
    batch_size: int

    def batches(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The batches in order."""
        cuts = range(0, len(self.x), self.batch_size)
        return [(self.x[c : c + self.batch_size], self.y[c : c + self.batch_size]) for c in cuts]

    def tiled(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Data of ``count`` batches: these again and again."""
        places = np.arange(count * self.batch_size) % len(self.x)
        return self.x[places], self.y[places]


def _task(name: str, model: Any, params: Any, shape: tuple[int, ...], batch_size: int) -> Task:
    rng, count = np.random.default_rng(0), BATCHES * batch_size
    x = rng.standard_normal((count, *shape), np.float32)
    return Task(name, model, params, x, rng.integers(0, 10, count, np.int32), batch_size)


def mlp_task(inputs: int = 784, hidden: int = 256, batch_size: int = 64) -> Task:
    """Two hidden layers with relu."""
    params = mlp_params(jax.random.key(0), [inputs, hidden, hidden, 10])
    return _task("mlp", mlp, params, (inputs,), batch_size)


def lenet_task(pixels: int = 28, batch_size: int = 32) -> Task:
    """LeNet-5 on grey images, with tanh."""
    params = lenet_params(jax.random.key(0), (pixels, pixels))
    return _task("lenet", lenet, params, (pixels, pixels, 1), batch_size)


def lstm_task(length: int = 28, inputs: int = 28, units: int = 64, batch_size: int = 32) -> Task:
    """An LSTM over the rows of an image."""
    params = lstm_params(jax.random.key(0), inputs, units, 10)
    return _task("lstm", lstm, params, (length, inputs), batch_size)


def gpt_task(
    length: int = 32, width: int = 64, layers: int = 2, vocabulary: int = 65, batch_size: int = 8
) -> Task:
    """A GPT with four heads on characters, the head not tied to the embedding."""
    params = gpt_params(jax.random.key(0), vocabulary, width=width, layers=layers, context=length)
    text = np.random.default_rng(0).integers(
        0, vocabulary, (BATCHES * batch_size, length + 1), np.int32
    )
    x, y = np.ascontiguousarray(text[:, :-1]), np.ascontiguousarray(text[:, 1:])
    return Task("gpt", gpt, params, x, y, batch_size)


tasks: dict[str, Callable[[], Task]] = {
    "mlp": mlp_task, "lenet": lenet_task, "lstm": lstm_task, "gpt": gpt_task,
}  # fmt: skip
