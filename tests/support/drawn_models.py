"""Small models whose pictures are looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import functional_bp as bp


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), jnp.float32)


def neuron(w0: Any, x0: Any, w1: Any, x1: Any, w2: Any) -> Any:
    return 1 / (1 + jnp.exp(-(w0 * x0 + w1 * x1 + w2)))


def lstm(params: Any, x: Any, h: Any, c: Any) -> Any:
    i, f, g, o = jnp.split(params["W"] @ jnp.concatenate([x, h]) + params["b"], 4)
    c = bp.name(jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g), "c_1")
    return jnp.sum(bp.name(jax.nn.sigmoid(o) * jnp.tanh(c), "h_1"))


def layernorm(x: Any, gamma: Any, beta: Any) -> Any:
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * gamma + beta


def residual(params: Any, x: Any) -> Any:
    h = jax.jit(layernorm)(x, params["gamma"], params["beta"])
    h = jax.nn.gelu(h @ params["W1"] + params["b1"]) @ params["W2"]
    return jnp.sum(bp.name(x + h, "y") ** 2)


def softmax(W: Any, b: Any, x: Any, label: Any) -> Any:
    o = bp.name(x @ W + b, "o")
    return -jnp.mean(jnp.sum(jax.nn.log_softmax(o) * label, -1))


def rnn(W: Any, xs: Any) -> Any:
    def step(h: Any, x: Any) -> Any:
        return bp.name(jnp.tanh(W * h + x), "h"), None

    return jax.lax.scan(step, 0.5, xs)[0]


def branches(x: Any, y: Any) -> Any:
    return x * x * y + x


BLOCK = {"W1": normal(4, 8), "b1": normal(8), "W2": normal(8, 4), "gamma": jnp.ones(4)}
MODELS: dict[str, Callable[[], bp.Explanation]] = {
    "neuron": lambda: bp.explain(neuron, 2.0, -1.0, -3.0, -2.0, -3.0),
    "lstm": lambda: bp.explain(
        lstm, {"W": normal(16, 7), "b": normal(16)}, normal(3), normal(4), normal(4) + 1
    ),
    "residual": lambda: bp.explain(residual, {**BLOCK, "beta": jnp.zeros(4)}, normal(2, 4)),
    "softmax": lambda: bp.explain(
        softmax, normal(5, 3), normal(3), normal(4, 5), jax.nn.one_hot(jnp.arange(4) % 3, 3)
    ),
    "rnn": lambda: bp.explain(rnn, 0.5, jnp.arange(3.0), unroll=True),
    "folded": lambda: bp.explain(rnn, 0.5, jnp.arange(3.0)),
    "branches": lambda: bp.explain(branches, 2.0, 3.0),
}
