"""``explanation.signals()``: planted faults are found, and healthy networks have none."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from sampling import sampled

import functional_bp as bp
from functional_bp.explanation.signals import Signals

Activation = Callable[[Any], Any]
ACTIVATIONS: dict[str, Activation] = {
    "relu": jax.nn.relu,
    "maximum": lambda z: jnp.maximum(z, 0),
    "where": lambda z: jnp.where(z > 0, z, 0.0),
    "tanh": jnp.tanh,
    "gelu": jax.nn.gelu,
}


def draw(seed: int, *shape: int) -> Any:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), "float32")


def layers(*sizes: int, seed: int = 0) -> list[dict[str, Any]]:
    """Weights as He initialises them, biases of 0."""
    return [
        {"W": draw(seed + i, a, b) * float(np.sqrt(2 / a)), "b": jnp.zeros(b, "float32")}
        for i, (a, b) in enumerate(zip(sizes, sizes[1:]))
    ]


def mlp(activation: Activation) -> Callable[..., Any]:
    def loss(params: Any, x: Any, y: Any) -> Any:
        h = x
        for layer in params[:-1]:
            h = activation(h @ layer["W"] + layer["b"])
        return jnp.mean((h @ params[-1]["W"] + params[-1]["b"] - y) ** 2)

    return loss


def signals(fun: Callable[..., Any], *args: Any, **options: Any) -> Signals:
    found = bp.explain(fun, *args, **options).signals()
    json.dumps(found.as_data(), allow_nan=False)
    for signal in found:
        assert " ".join(signal.message.split()) in " ".join(str(found).split())
    return found


def kinds(found: Signals) -> dict[str, str]:
    return {signal.name: signal.kind for signal in found}


@pytest.mark.parametrize(
    ("activation", "examples"), sampled(itertools.product(ACTIVATIONS, [1, 3, 16, 128]), 3)
)
def test_a_healthy_network_has_none(activation: str, examples: int) -> None:
    loss = mlp(ACTIVATIONS[activation])
    for seed in (0, 100):
        x, y = draw(seed + 50, examples, 8), draw(seed + 51, examples, 4)
        found = signals(loss, layers(8, 32, 32, 32, 4, seed=seed), x, y)
        assert not found, str(found)
        assert "nothing notable" in str(found)


def test_nor_has_one_that_has_converged_or_a_loss_of_another_scale() -> None:
    params, x = layers(8, 32, 4), draw(9, 64, 8)
    y = jax.nn.relu(x @ params[0]["W"]) @ params[1]["W"]
    near = jax.tree.map(lambda a: a + 1e-5, params)
    loss = mlp(jax.nn.relu)
    assert not signals(loss, near, x, y)
    for scale in (1e-12, 1e8):
        assert not signals(lambda *args, s=scale: loss(*args) * s, params, x, draw(3, 64, 4))


def attention(params: Any, tokens: Any) -> Any:
    """A causal language model, whose key biases have a gradient of 0 but for rounding."""
    x = params["E"][tokens]
    causal = jnp.tril(jnp.ones((x.shape[1],) * 2, bool))
    for p in params["blocks"]:
        q, k, v = x @ p["Q"], x @ p["K"] + p["k"], x @ p["V"]
        scores = jnp.where(causal, q @ k.mT / 4, -jnp.inf)
        x = x + bp.name(jax.nn.softmax(scores) @ v, "attended")
        x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
        x = x + jax.nn.relu(x @ p["W1"]) @ p["W2"]
    scores = jax.nn.log_softmax(x @ params["E"].T)
    return -jnp.mean(jnp.take_along_axis(scores, tokens[..., None], -1))


@pytest.mark.long
def test_nor_has_a_transformer_or_a_recurrent_network() -> None:
    block = {"Q": draw(1, 16, 16) / 4, "K": draw(2, 16, 16) / 4, "V": draw(3, 16, 16) / 4,
             "W1": draw(4, 16, 64) / 4, "W2": draw(5, 64, 16) / 8,
             "k": jnp.zeros(16, "float32")}  # fmt: skip
    tokens = jnp.asarray(np.random.default_rng(6).integers(0, 50, (4, 12)))
    found = signals(attention, {"E": draw(7, 50, 16), "blocks": [block] * 2}, tokens)
    assert not found, str(found)
    assert not signals(rnn(jnp.tanh), *rnn_args(1.0))


def test_a_bias_of_minus_100_kills() -> None:
    params = layers(8, 32, 32, 4)
    params[1]["b"] = params[1]["b"] - 100
    loss = mlp(jax.nn.relu)
    found = signals(loss, params, draw(50, 64, 8), draw(51, 64, 4))
    gradient = jax.grad(loss)(params, draw(50, 64, 8), draw(51, 64, 4))
    dead = [f"params[{i}]['{k}']" for i in range(3) for k in "Wb" if not np.any(gradient[i][k])]
    assert dead == [s.name for s in sorted(found, key=lambda s: s.name) if s.name != "x"]
    assert set(kinds(found).values()) == {"dead"}
    (bias,) = found.of("params[1]['b']")
    assert "relu(" in bias.message
    assert bias.source is not None
    assert bias.source[1] == mlp.__code__.co_firstlineno + 4
    (last,) = found.of("params[2]['W']")
    assert "is all zero" in last.message


@pytest.mark.parametrize("activation", ["relu", "maximum", "where", "sigmoid"])
def test_dead_units_are_named(activation: str) -> None:
    params = layers(8, 32, 32, 4)
    params[1]["b"] = params[1]["b"].at[jnp.array([3, 7])].set(-150.0)
    loss = mlp(ACTIVATIONS.get(activation, jax.nn.sigmoid))
    found = signals(loss, params, draw(50, 64, 8), draw(51, 64, 4))
    assert kinds(found) == dict.fromkeys(("params[1]['W']", "params[1]['b']"), "partly dead")
    for signal in found:
        assert signal.numbers["units"] == [3, 7]
        assert signal.numbers["share"] == 2 / 32
        assert "2 of 32 units (6%)" in signal.message
    by_output = lambda p, x, y: loss([{**q, "W": q["W"].T} for q in p], x, y)
    turned = [{**p, "W": p["W"].T} for p in params]
    found = signals(by_output, turned, draw(50, 64, 8), draw(51, 64, 4))
    assert found.of("p[1]['W']")[0].numbers["units"] == [3, 7]


def test_what_a_mask_shuts_is_not_dead() -> None:
    def loss(params: Any, x: Any, on: Any) -> Any:
        h = (x @ params["W"]) * on
        return jnp.mean(jnp.where(on > 0, h, 0.0) ** 2)

    on = jnp.ones(16, "float32").at[3].set(0.0)
    assert not [s for s in signals(loss, {"W": draw(0, 8, 16)}, draw(1, 64, 8), on)
                if s.name != "on"]  # fmt: skip


def test_forty_sigmoid_layers_vanish() -> None:
    found = signals(mlp(jax.nn.sigmoid), layers(8, *[16] * 40, 4), draw(50, 16, 8), draw(51, 16, 4))
    assert set(kinds(found).values()) == {"vanishing"}
    assert kinds(found)["params[0]['W']"] == "vanishing"
    assert "params[40]['W']" not in kinds(found)
    assert "params[39]['W']" not in kinds(found)
    gradient = jax.grad(mlp(jax.nn.sigmoid))(
        layers(8, *[16] * 40, 4), draw(50, 16, 8), draw(51, 16, 4)
    )
    (first,) = found.of("params[0]['W']")
    np.testing.assert_allclose(
        first.numbers["norm"], np.linalg.norm(gradient[0]["W"]), rtol=1e-3  # of float32, jitted
    )  # fmt: skip


def rnn(activation: Activation) -> Callable[..., Any]:
    def loss(params: Any, xs: Any, h: Any) -> Any:
        step = lambda h, x: (activation(params["W"] @ h + params["U"] @ x), None)
        return jnp.mean(lax.scan(step, h, xs)[0] ** 2)

    return loss


def rnn_args(scale: float, steps: int = 60, width: int = 32) -> tuple[Any, Any, Any]:
    """Recurrent weights that stretch by ``scale`` in all directions."""
    weights = jnp.asarray(scale * np.linalg.qr(draw(0, width, width))[0], "float32")
    return {"W": weights, "U": draw(1, width, 3) / 10}, draw(2, steps, 3), jnp.zeros(width, "f4")


@pytest.mark.parametrize("unroll", [False, True])
def test_a_recurrent_network_explodes_and_vanishes(unroll: bool) -> None:
    linear = rnn(lambda z: z)
    found = signals(linear, *rnn_args(1.5), unroll=unroll)
    assert kinds(found)["h"] == kinds(found)["params['W']"] == "exploding"
    found = signals(linear, *rnn_args(0.5), unroll=unroll)
    assert kinds(found)["h"] == "vanishing"
    assert "params['W']" not in kinds(found)
    found = signals(linear, *rnn_args(0.1), unroll=unroll)  # 0.1⁶⁰ is no float32
    assert kinds(found)["h"] == "vanishing"
    assert "below the smallest float32" in found.of("h")[0].message


def test_through_time() -> None:
    (found,) = signals(rnn(lambda z: z), *rnn_args(0.5)).of("xs")
    assert (found.kind, found.numbers["last"] > found.numbers["first"] > 0) == ("vanishing", True)
    assert "through the loop" in found.message
    np.testing.assert_allclose(found.numbers["ratio"], 0.5**59, rtol=1)  # within a factor of 2


def test_float16_overflows_and_underflows() -> None:
    over = signals(
        lambda w, x: jnp.sum((x @ w) ** 2),
        jnp.full((64, 8), 30, "float16"), jnp.full((4, 64), 30, "float16"),
    )  # fmt: skip
    assert set(kinds(over).values()) <= {"nan", "infinite"}
    assert "the first is" in over.of("w")[0].message

    def under(w: Any, x: Any) -> Any:
        return jnp.sum(1e-4 * (x @ w) * 1e-3).astype(w.dtype)

    w, x = draw(0, 64, 8), draw(1, 4, 64) / 10
    found = signals(under, w.astype("float16"), x.astype("float16"))
    assert kinds(found)["w"] == "underflow"
    half = jax.grad(under)(w.astype("float16"), x.astype("float16"))
    assert found.of("w")[0].numbers["zeros"] == int(np.sum(np.asarray(half) == 0))
    assert np.all(np.asarray(jax.grad(under)(w, x)) != 0)
    for dtype in ("float32", "bfloat16"):
        assert "underflow" not in kinds(signals(under, w.astype(dtype), x.astype(dtype))).values()


def test_nan_and_infinity_name_the_first_equation() -> None:
    def loss(w: Any) -> Any:
        h = bp.name(jnp.log(w), "h")
        return jnp.sum(jnp.where(w > 0, h, 0.0))

    found = signals(loss, jnp.array([1.0, 0.0, 2.0]))
    assert kinds(found) == {"w": "nan", "h": "infinite"}
    assert [s.kind for s in found] == ["nan", "infinite"]
    assert found[0].source == (__file__, loss.__code__.co_firstlineno + 1)
    assert "in h = ln w" in found[0].message
    assert found[0].numbers["nans"] == 1


def test_the_order_and_what_has_no_gradient() -> None:
    def loss(a: Any, b: Any, c: Any, unused: Any, i: Any) -> Any:
        shut = jnp.sum(jax.nn.relu(a - 100))
        return shut + jnp.sum(jnp.sqrt(b)) + jnp.sum(c[i]) + 0 * jnp.sum(lax.stop_gradient(unused))

    x = jnp.array([0.0, 1.0])
    found = signals(loss, x, x, x, x, jnp.array([0, 1]))
    assert [(s.kind, s.name) for s in found] == [("infinite", "b"), ("dead", "a")]
    assert len(found) == 2
    assert "2 findings" in str(found)
