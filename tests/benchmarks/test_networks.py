"""The networks that benchmarks train, against loops over their equations in NumPy."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy import tanh
from sampling import sampled

import functional_bp as bp
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
from functional_bp import train

# Everything here is in float64: a few hundred roundings of 1e-16 of numbers near 1.
TOLERANCE = {"rtol": 1e-10, "atol": 1e-11}
KEY = jax.random.key(3)
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 11, (2, 6))


def drawn(make: Any) -> Any:
    """Other numbers of the same shapes, so that no bias is zero and no gain one."""
    rng = np.random.default_rng(1)
    params = jax.eval_shape(lambda: make(KEY))
    return jax.tree.map(lambda leaf: jnp.asarray(0.4 * rng.normal(size=leaf.shape)), params)


def arrays(params: Any) -> Any:
    return jax.tree.map(np.asarray, params)


def test_mlp_is_matrix_products_and_activations() -> None:
    params, x = drawn(partial(mlp_params, sizes=[3, 5, 4, 2])), RNG.normal(size=(6, 3))
    p = arrays(params)
    h1 = np.maximum(x @ p["W1"] + p["b1"], 0)
    h2 = np.maximum(h1 @ p["W2"] + p["b2"], 0)
    np.testing.assert_allclose(mlp(params, x), h2 @ p["W3"] + p["b3"], **TOLERANCE)


def convolved(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Σ_{u v} x[i + u, j + v] K[u, v] wherever the kernel fits."""
    height, width = (x.shape[i + 1] - kernel.shape[i] + 1 for i in (0, 1))
    out = np.zeros((len(x), height, width, kernel.shape[-1]))
    for i in range(height):
        for j in range(width):
            patch = x[:, i : i + kernel.shape[0], j : j + kernel.shape[1]]
            out[:, i, j] = np.tensordot(patch, kernel, 3)
    return out


def pooled(x: np.ndarray) -> np.ndarray:
    out = np.zeros((len(x), x.shape[1] // 2, x.shape[2] // 2, x.shape[3]))
    for i in range(out.shape[1]):
        for j in range(out.shape[2]):
            out[:, i, j] = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((1, 2))
    return out


@pytest.mark.parametrize("size", [pytest.param((12, 12), marks=pytest.mark.long), (15, 18)])
def test_lenet_is_two_convolutions_and_three_layers(size: tuple[int, int]) -> None:
    params = drawn(partial(lenet_params, size=size, classes=4))
    p, x = arrays(params), RNG.normal(size=(2, *size, 1))
    h = pooled(tanh(convolved(np.pad(x, [(0, 0), (2, 2), (2, 2), (0, 0)]), p["K1"]) + p["b1"]))
    h = pooled(tanh(convolved(h, p["K2"]) + p["b2"])).reshape(2, -1)
    h = tanh(tanh(h @ p["W3"] + p["b3"]) @ p["W4"] + p["b4"])
    np.testing.assert_allclose(lenet(params, x), h @ p["W5"] + p["b5"], **TOLERANCE)


def last_state(p: Any, xs: np.ndarray) -> np.ndarray:
    """h_T of one sequence, gate by gate."""
    m = p["U"].shape[0]
    h, c, sigmoid = np.zeros(m), np.zeros(m), lambda x: 1 / (1 + np.exp(-x))
    for x in xs:
        i, f, g, o = np.split(x @ p["W"] + h @ p["U"] + p["b"], 4)
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h = sigmoid(o) * tanh(c)
    return h


def test_lstm_reads_its_last_state() -> None:
    params = drawn(partial(lstm_params, inputs=3, units=4, outputs=2))
    p, xs = arrays(params), RNG.normal(size=(2, 6, 3))
    last = np.stack([last_state(p, x) for x in xs])
    np.testing.assert_allclose(lstm(params, xs), last @ p["V"] + p["d"], **TOLERANCE)


SMALL_GPT = partial(gpt_params, vocabulary=11, width=8, layers=2, heads=2, context=6)


def norm(x: Any, gain: Any, shift: Any) -> Any:
    return gain * (x - x.mean()) / np.sqrt(x.var() + 1e-5) + shift


def attended(p: Any, xs: np.ndarray) -> np.ndarray:
    """One sequence, one head and one position after the other."""
    out = np.zeros_like(xs) + p["bO"]
    for h in range(p["WQ"].shape[1]):
        q, k, v = (xs @ p[f"W{n}"][:, h] + p[f"b{n}"][h] for n in "QKV")
        for t in range(len(xs)):
            scores = np.array([q[t] @ k[s] for s in range(t + 1)]) / np.sqrt(q.shape[1])
            weights = np.exp(scores) / np.exp(scores).sum()
            out[t] += (weights @ v[: t + 1]) @ p["WO"][h]
    return out


def looped(params: Any, tokens: np.ndarray) -> np.ndarray:
    params = arrays(params)
    xs = params["E"][tokens] + params["P"][: len(tokens)]
    for layer in range(len(params["blocks"]["WQ"])):
        p = {name: leaf[layer] for name, leaf in params["blocks"].items()}
        xs = xs + attended(p, np.stack([norm(x, p["g1"], p["s1"]) for x in xs]))
        for t, x in enumerate(xs):
            a = norm(x, p["g2"], p["s2"]) @ p["W1"] + p["b1"]
            gelu = a / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (a + 0.044715 * a**3)))
            xs[t] = x + gelu @ p["W2"] + p["b2"]
    return np.stack([norm(x, params["g"], params["s"]) @ params["W"] for x in xs])


@pytest.mark.parametrize("length", [4, pytest.param(6, marks=pytest.mark.long)])
def test_gpt_attends_head_by_head(length: int) -> None:
    params, tokens = drawn(SMALL_GPT), TOKENS[:, :length]
    expected = np.stack([looped(params, sequence) for sequence in tokens])
    np.testing.assert_allclose(jax.jit(gpt)(params, tokens), expected, **TOLERANCE)


MODELS = {
    "mlp": (partial(mlp_params, sizes=[6, 8, 3]), mlp, RNG.normal(size=(12, 6))),
    "lenet": (partial(lenet_params, size=(12, 12), classes=3), lenet,
              RNG.normal(size=(12, 12, 12, 1))),
    "lstm": (partial(lstm_params, inputs=4, units=8, outputs=3), lstm, RNG.normal(size=(12, 5, 4))),
    "gpt": (SMALL_GPT, gpt, TOKENS),
}  # fmt: skip


@pytest.mark.parametrize("name", sampled(MODELS, 2))
def test_gradients_are_jax_s(name: str) -> None:
    make, model, x = MODELS[name]
    params = drawn(make)
    loss = lambda params: jnp.mean(jnp.square(model(params, x)))
    ours, theirs = jax.jit(bp.grad(loss))(params), jax.jit(jax.grad(loss))(params)
    # Relative to a leaf's largest entry, since entries cancel.
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        scale = float(jnp.max(jnp.abs(other))) + 1e-5  # the gradient of bK is zero
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-11 * scale)


@pytest.mark.parametrize("name", ["mlp", "lenet", "lstm"])
@pytest.mark.long
def test_networks_learn_twelve_labels(name: str) -> None:
    make, model, x = MODELS[name]
    y = np.arange(12) % 3
    step = train.step(train.supervised(model, "cross_entropy", ["accuracy"]), optax.adam(0.02))
    state = train.init(jax.jit(make)(KEY), step.optimizer)
    for _ in range(100):
        state, logs = step(state, (x, y))
    assert float(logs["loss"]) < 0.1 < np.log(3) and float(logs["accuracy"]) == 1


def test_first_weights_are_within_glorots_bound_and_fill_it() -> None:
    for params in (arrays(mlp_params(KEY, [300, 200])), arrays(lenet_params(KEY))):
        for leaf in (leaf for key, leaf in params.items() if key[0] in "WK"):
            places = np.prod(leaf.shape[:-2])  # of a kernel
            bound = np.sqrt(6 / (places * (leaf.shape[-2] + leaf.shape[-1])))
            # The largest of 150 numbers or more is within a tenth of the bound, but for 1 in 10^6.
            assert 0.9 * bound < np.max(np.abs(leaf)) <= bound * (1 + 1e-6)
        assert all(not leaf.any() for key, leaf in params.items() if key[0] == "b")


def test_first_weights_of_the_others() -> None:
    params = arrays(lstm_params(KEY, 3, 4, 2))
    np.testing.assert_allclose(params["U"] @ params["U"].T, np.eye(4), atol=1e-12)
    np.testing.assert_array_equal(params["b"], np.repeat([0, 1, 0, 0], 4))
    deviation = jax.tree.map(np.std, gpt_params(KEY, 100, layers=8, context=32))
    # 2000 numbers or more: their deviation is within 5 % of the distribution's (three sigmas).
    for name, by in {"WQ": 1, "WK": 1, "WV": 1, "W1": 1, "WO": 4, "W2": 4}.items():
        assert deviation["blocks"][name] == pytest.approx(0.02 / by, rel=0.05)
