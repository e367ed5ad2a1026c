"""The models of ``bench engine``, in plain JAX: networks here, more in ``science``, ``tracing``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks import networks, science, tracing
from benchmarks.model import Model, drawing


def _cross_entropy(logits: Any, labels: Any) -> Any:
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1))


def mlp() -> Model:
    """Three dense layers with relu, cross entropy."""
    draw, params = drawing(), {}
    for layer, (n, m) in enumerate([(256, 512), (512, 512), (512, 10)], start=1):
        params |= {f"W{layer}": draw(n, m), f"b{layer}": jnp.zeros(m)}
    x, y = draw(128, 256, scale=1.0), jnp.arange(128) % 10
    return Model(lambda p, x, y: _cross_entropy(networks.mlp(p, x), y), params, (x, y))


def cnn() -> Model:
    """Two convolutions with batch normalisation and max pooling, a dense head."""
    draw = drawing()
    params = {
        "c1": draw(3, 3, 3, 16, scale=0.2), "s1": jnp.ones(16), "t1": jnp.zeros(16),
        "c2": draw(3, 3, 16, 32, scale=0.1), "s2": jnp.ones(32), "t2": jnp.zeros(32),
        "w": draw(4 * 4 * 32, 10),
    }  # fmt: skip
    x, y = draw(16, 16, 16, 3, scale=1.0), jnp.arange(16) % 10

    def block(x: Any, kernel: Any, scale: Any, shift: Any) -> Any:
        x = lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = (x - x.mean((0, 1, 2))) * lax.rsqrt(x.var((0, 1, 2)) + 1e-5) * scale + shift
        return lax.reduce_window(
            jax.nn.relu(x), -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
        )

    def loss(p: Any, x: Any, y: Any) -> Any:
        x = block(block(x, p["c1"], p["s1"], p["t1"]), p["c2"], p["s2"], p["t2"])
        return _cross_entropy(x.reshape(x.shape[0], -1) @ p["w"], y)

    return Model(loss, params, (x, y))


def _layer_norm(x: Any, scale: Any) -> Any:
    mean = x.mean(-1, keepdims=True)
    return (x - mean) * lax.rsqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-5) * scale


def _attention(x: Any, p: Any, heads: int) -> Any:
    b, t, d = x.shape
    split = lambda w: (x @ w).reshape(b, t, heads, d // heads)
    q, k, v = split(p["q"]), split(p["k"]), split(p["v"])
    scores = jnp.einsum("bthk,bshk->bhts", q, k) * (d // heads) ** -0.5
    scores = jnp.where(jnp.tril(jnp.ones((t, t), bool)), scores, -1e30)
    return jnp.einsum("bhts,bshk->bthk", jax.nn.softmax(scores), v).reshape(b, t, d) @ p["o"]


def _block(x: Any, p: Any) -> Any:
    x = x + _attention(_layer_norm(x, p["s1"]), p, 4)
    return x + jax.nn.gelu(_layer_norm(x, p["s2"]) @ p["up"]) @ p["down"]


def _block_params(draw: Callable[..., Any], d: int) -> dict[str, Any]:
    square = {name: draw(d, d) for name in "qkvo"}
    return {**square, "up": draw(d, 4 * d), "down": draw(4 * d, d),
            "s1": jnp.ones(d), "s2": jnp.ones(d)}  # fmt: skip


def gpt_unrolled() -> Model:
    """Four transformer blocks, written out."""
    draw, d = drawing(), 64
    params = {
        "embed": draw(128, d, scale=0.1),
        "blocks": [_block_params(draw, d) for _ in range(4)],
    }
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, 128, (4, 33)))

    def loss(p: Any, tokens: Any) -> Any:
        x = p["embed"][tokens[:, :-1]]
        for block in p["blocks"]:
            x = _block(x, block)
        return _cross_entropy(x @ p["embed"].T, tokens[:, 1:])

    return Model(loss, params, (tokens,))


def gpt_scanned() -> Model:
    """The same blocks, stacked, in a scan."""
    unrolled = gpt_unrolled()
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *unrolled.params["blocks"])

    def loss(p: Any, tokens: Any) -> Any:
        x = p["embed"][tokens[:, :-1]]
        x, _ = lax.scan(lambda x, block: (_block(x, block), None), x, p["blocks"])
        return _cross_entropy(x @ p["embed"].T, tokens[:, 1:])

    return Model(loss, {"embed": unrolled.params["embed"], "blocks": stacked}, unrolled.data)


def lstm() -> Model:
    """A long short-term memory by scan over 40 steps."""
    draw, d = drawing(), 64
    params = {"w": draw(32, 4 * d), "u": draw(d, 4 * d), "b": jnp.zeros(4 * d), "v": draw(d, 10)}
    xs, y = draw(40, 16, 32, scale=1.0), jnp.arange(16) % 10

    def loss(p: Any, xs: Any, y: Any) -> Any:
        def cell(state: Any, x: Any) -> Any:
            h, c = state
            i, f, g, o = jnp.split(x @ p["w"] + h @ p["u"] + p["b"], 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

        start = (jnp.zeros((xs.shape[1], d)), jnp.zeros((xs.shape[1], d)))
        (h, _), _ = lax.scan(cell, start, xs)
        return _cross_entropy(h @ p["v"], y)

    return Model(loss, params, (xs, y))


def attention() -> Model:
    """One causal self-attention layer of 128 positions."""
    draw, d = drawing(), 64
    params, x = _block_params(draw, d), draw(4, 128, d, scale=1.0)
    return Model(lambda p, x: jnp.mean(_attention(x, p, 4) ** 2), params, (x,))


def graph_network() -> Model:
    """Message passing with gather and scatter-add."""
    draw, rng = drawing(), np.random.default_rng(2)
    params = [{"m": draw(64, 64), "u": draw(64, 64)} for _ in range(3)]
    nodes, senders, receivers = (
        draw(200, 64, scale=1.0),
        rng.integers(0, 200, 800),
        rng.integers(0, 200, 800),
    )

    def loss(params: Any, nodes: Any, senders: Any, receivers: Any) -> Any:
        for p in params:
            messages = jax.nn.silu(nodes[senders] @ p["m"])
            pooled = jnp.zeros_like(nodes).at[receivers].add(messages)
            nodes = nodes + jnp.tanh(pooled @ p["u"])
        return jnp.mean(nodes**2)

    return Model(loss, params, (nodes, jnp.asarray(senders), jnp.asarray(receivers)))


def mixture_of_experts() -> Model:
    """Top-2 routing over 8 experts with softmax gates."""
    draw = drawing()
    params = {
        "gate": draw(64, 8),
        "up": draw(8, 64, 128, scale=0.1),
        "down": draw(8, 128, 64, scale=0.1),
    }
    x = draw(128, 64, scale=1.0)

    def loss(p: Any, x: Any) -> Any:
        weights, chosen = lax.top_k(jax.nn.softmax(x @ p["gate"]), 2)
        gates = jnp.zeros((x.shape[0], 8)).at[jnp.arange(x.shape[0])[:, None], chosen].set(weights)
        hidden = jax.nn.gelu(jnp.einsum("bd,edf->ebf", x, p["up"]))
        out = jnp.einsum("ebf,efd,be->bd", hidden, p["down"], gates)
        return jnp.mean((x + out) ** 2)

    return Model(loss, params, (x,))


def fft_convolution() -> Model:
    """Long convolutions through the Fourier transform, with gating."""
    draw = drawing()
    params = [{"k": draw(16, 256, scale=0.05), "w": draw(16, 16)} for _ in range(2)]
    x = draw(8, 16, 256, scale=1.0)

    def loss(params: Any, x: Any) -> Any:
        for p in params:
            y = jnp.fft.irfft(jnp.fft.rfft(x, 512) * jnp.fft.rfft(p["k"], 512))[..., :256]
            x = x + jnp.einsum("bct,cd->bdt", jax.nn.silu(y), p["w"])
        return jnp.mean(x**2)

    return Model(loss, params, (x,))


models: dict[str, Callable[[], Model]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        mlp, cnn, gpt_unrolled, gpt_scanned, lstm, attention, graph_network, science.neural_ode,
        mixture_of_experts, science.gaussian_process, fft_convolution, science.bouncing_balls,
        science.kalman_filter, science.path_signature, science.rigid_bodies,
        tracing.hessian_vector_product, tracing.jacobian, tracing.hessian, tracing.additions,
        tracing.shared_jit,
    )
}  # fmt: skip
