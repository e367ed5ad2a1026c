"""Networks of the textbooks as plain functions: one draws the parameters, the other predicts.

Parameters are a dictionary of arrays, in the order in which Keras' layers of the same network have
theirs, and are drawn from Keras' distributions (the GPT's from GPT-2's).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.nn import sigmoid

GLOROT = jax.nn.initializers.glorot_uniform()
ORTHOGONAL = jax.nn.initializers.orthogonal()
DEVIATION = 0.02  # of the first weights of a GPT


def mlp_params(key: Any, sizes: Sequence[int]) -> dict[str, jax.Array]:
    """Weights ``W1: f32[n0,n1], ...`` are uniform in ±√(6 / (n + m)), biases ``b1, ...`` are 0."""
    params = {}
    for layer, (n, m) in enumerate(zip(sizes, sizes[1:]), start=1):
        params[f"W{layer}"] = GLOROT(jax.random.fold_in(key, layer), (n, m))
        params[f"b{layer}"] = jnp.zeros(m)
    return params


def mlp(params: dict[str, Any], x: Any) -> jax.Array:
    """A multilayer perceptron is h_l = relu(h_{l−1} W_l + b_l), its last layer without relu."""
    layers, h = len(params) // 2, x
    for layer in range(1, layers):
        h = jax.nn.relu(h @ params[f"W{layer}"] + params[f"b{layer}"])
    return h @ params[f"W{layers}"] + params[f"b{layers}"]


def lenet_params(
    key: Any, size: tuple[int, int] = (28, 28), channels: int = 1, classes: int = 10
) -> dict[str, jax.Array]:
    """Kernels K1, K2 and weights W3 to W5 are drawn by Glorot's rule; biases b1 to b5 are 0."""
    height, width = ((pixels // 2 - 4) // 2 for pixels in size)
    shapes = {
        "K1": (5, 5, channels, 6), "K2": (5, 5, 6, 16),
        "W3": (height * width * 16, 120), "W4": (120, 84), "W5": (84, classes),
    }  # fmt: skip
    params = {}
    for i, (name, shape) in enumerate(shapes.items(), start=1):
        params[name] = GLOROT(jax.random.fold_in(key, i), shape)
        params[f"b{i}"] = jnp.zeros(shape[-1])
    return params


def lenet(params: dict[str, Any], x: Any) -> jax.Array:
    """LeNet-5 is h1 = pool tanh(x ∗ K1 + b1), h2 = pool tanh(h1 ∗ K2 + b2), three dense layers.

    The first convolution keeps the size of the images ``f32[b,height,width,channels]``, the second
    takes four pixels off; pool is the mean of 2 × 2 pixels.
    """
    h = _pool(jnp.tanh(_convolve(x, params["K1"], "SAME") + params["b1"]))
    h = _pool(jnp.tanh(_convolve(h, params["K2"], "VALID") + params["b2"]))
    h = h.reshape(h.shape[0], -1)
    h = jnp.tanh(h @ params["W3"] + params["b3"])
    h = jnp.tanh(h @ params["W4"] + params["b4"])
    return h @ params["W5"] + params["b5"]


def _convolve(x: Any, kernel: Any, padding: str) -> jax.Array:
    """(x ∗ K)[i, j, o] = Σ_{u v c} x[i + u, j + v, c] K[u, v, c, o]."""
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=layout)


def _pool(x: jax.Array) -> jax.Array:
    """The mean of every 2 × 2 pixels is taken; a last odd row or column falls off."""
    zero = np.zeros((), x.dtype)  # a constant: JAX knows no gradient of a window from another start
    return lax.reduce_window(x, zero, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4


def lstm_params(key: Any, inputs: int, units: int, outputs: int) -> dict[str, jax.Array]:
    """The gates i, f, g, o stand beside each other in ``W: f32[n,4m], U: f32[m,4m], b: f32[4m]``.

    The bias of f begins at 1. ``V: f32[m,k]`` and ``d: f32[k]`` are a dense layer's.
    """
    return {
        "W": GLOROT(jax.random.fold_in(key, 0), (inputs, 4 * units)),
        "U": ORTHOGONAL(jax.random.fold_in(key, 1), (units, 4 * units)),
        "b": jnp.zeros(4 * units).at[units : 2 * units].set(1),
        "V": GLOROT(jax.random.fold_in(key, 2), (units, outputs)),
        "d": jnp.zeros(outputs),
    }


def lstm(params: dict[str, Any], x: Any) -> jax.Array:
    """An LSTM reads sequences ``f32[b,T,n]``, and a dense layer its last state: h_T V + d.

    c' = σ(f) ⊙ c + σ(i) ⊙ tanh(g),  h' = σ(o) ⊙ tanh(c'), with the gates of x W + h U + b. What
    the inputs add depends on no state, so x W + b is one product for all times.
    """
    a = jnp.swapaxes(x @ params["W"] + params["b"], 0, 1)
    zeros = jnp.zeros((x.shape[0], params["U"].shape[0]), a.dtype)

    def cell(state: Any, a: Any) -> Any:
        h, c = state
        i, f, g, o = jnp.split(a + h @ params["U"], 4, axis=-1)
        c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
        return (sigmoid(o) * jnp.tanh(c), c), None

    (h, _), _ = lax.scan(cell, (zeros, zeros), a)
    return h @ params["V"] + params["d"]


def gpt_params(
    key: Any, vocabulary: int, *, width: int = 64, layers: int = 2, heads: int = 4,
    context: int = 64,
) -> dict[str, Any]:  # fmt: skip
    """Weights are normal with deviation 0.02, WO and W2 with 0.02 / √(2 layers), as in GPT-2.

    Returns:
        ``E: f32[v,d]``, ``P: f32[T,d]``, ``g, s: f32[d]``, ``W: f32[d,v]`` and the stacked blocks:
        ``WQ, WK, WV: f32[L,d,H,k]``, ``WO: f32[L,H,k,d]``, ``W1: f32[L,d,4d]``,
        ``W2: f32[L,4d,d]``, their biases b..., and gains and shifts of the norms g1, s1, g2, s2.
    """
    d, split, by = width, (heads, width // heads), (2 * layers) ** -0.5
    keys = iter(jax.random.split(key, 9))

    def normal(*shape: int, by: float = 1.0) -> jax.Array:
        return by * DEVIATION * jax.random.normal(next(keys), shape)

    blocks = {
        **{name: normal(layers, d, *split) for name in ("WQ", "WK", "WV")},
        **{name: jnp.zeros((layers, *split)) for name in ("bQ", "bK", "bV")},
        "WO": normal(layers, *split, d, by=by), "bO": jnp.zeros((layers, d)),
        "W1": normal(layers, d, 4 * d), "b1": jnp.zeros((layers, 4 * d)),
        "W2": normal(layers, 4 * d, d, by=by), "b2": jnp.zeros((layers, d)),
        "g1": jnp.ones((layers, d)), "s1": jnp.zeros((layers, d)),
        "g2": jnp.ones((layers, d)), "s2": jnp.zeros((layers, d)),
    }  # fmt: skip
    return {"E": normal(vocabulary, d), "P": normal(context, d), "blocks": blocks,
            "g": jnp.ones(d), "s": jnp.zeros(d), "W": normal(d, vocabulary)}  # fmt: skip


def gpt(params: dict[str, Any], tokens: Any) -> jax.Array:
    """A GPT is x = E[tokens] + P,  x ← block(x) L times in a scan,  logits = norm(x) W.

    Args:
        params: of ``gpt_params``.
        tokens: ``i32[b,t]`` with t ≤ T.

    Returns:
        Logits of the token that follows each position, ``f32[b,t,v]``.
    """
    x = params["E"][tokens] + params["P"][: tokens.shape[1]]
    x, _ = lax.scan(lambda x, p: (gpt_block(p, x), None), x, params["blocks"])
    return _norm(x, params["g"], params["s"]) @ params["W"]


def gpt_block(p: dict[str, Any], x: Any) -> jax.Array:
    """A block is x ← x + attention(norm(x)),  x ← x + gelu(norm(x) W1 + b1) W2 + b2."""
    x = x + _attention(p, _norm(x, p["g1"], p["s1"]))
    return x + jax.nn.gelu(_norm(x, p["g2"], p["s2"]) @ p["W1"] + p["b1"]) @ p["W2"] + p["b2"]


def _attention(p: dict[str, Any], x: jax.Array) -> jax.Array:
    """Each head gives softmax(Q Kᵀ / √k + mask) V, the mask −∞ for later positions; WO sums."""
    q, k, v = (jnp.einsum("btd,dhk->bthk", x, p[f"W{n}"]) + p[f"b{n}"] for n in "QKV")
    scores = jnp.einsum("bthk,bshk->bhts", q, k) * q.shape[-1] ** -0.5
    past = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    weights = jax.nn.softmax(jnp.where(past, scores, -jnp.inf), axis=-1)
    heads = jnp.einsum("bhts,bshk->bthk", weights, v)
    return jnp.einsum("bthk,hkd->btd", heads, p["WO"]) + p["bO"]


def _norm(x: jax.Array, gain: Any, shift: Any) -> jax.Array:
    """g ⊙ (x − μ) / √(σ² + 1e-5) + s, with the mean μ and variance σ² of the last axis."""
    centered = x - x.mean(-1, keepdims=True)
    variance = jnp.square(centered).mean(-1, keepdims=True)
    return gain * centered * lax.rsqrt(variance + 1e-5) + shift
