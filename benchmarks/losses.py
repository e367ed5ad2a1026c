"""Losses whose gradients fill memory, by shapes alone: nothing is allocated to measure them.

Each is made for a ``wrap`` that is put around its blocks, so that a person's ``jax.checkpoint``
stands where an expert would place it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

import functional_bp as bp

Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]
Made = tuple[Callable[..., Any], tuple[Any, ...]]


def _shape(*sizes: int, dtype: Any = jnp.float32) -> Any:
    return jax.ShapeDtypeStruct(sizes, dtype)


def mlp(wrap: Wrap) -> Made:
    """Twelve tanh layers of one width."""
    layer = wrap(lambda w, x: jnp.tanh(x @ w))

    def loss(ws: Any, x: Any) -> Any:
        for w in ws:
            x = layer(w, x)
        return jnp.mean(x**2)

    return loss, ([_shape(256, 256)] * 12, _shape(2048, 256))


def gelu_stack(wrap: Wrap) -> Made:
    """Eight residual gelu layers, written one by one."""
    layer = wrap(lambda w, v, x: x + jax.nn.gelu(x @ w) @ v)

    def loss(params: Any, x: Any) -> Any:
        for w, v in params:
            x = layer(w, v, x)
        return jnp.mean(x**2)

    return loss, ([(_shape(128, 512), _shape(512, 128))] * 8, _shape(2048, 128))


def _norm(x: Any) -> Any:
    return (x - x.mean(-1, keepdims=True)) * lax.rsqrt(x.var(-1, keepdims=True) + 1e-5)


def _block(p: Any, x: Any) -> Any:
    batch, time, width = x.shape
    heads = (batch, time, 4, width // 4)
    q, k, v = (t.reshape(heads) for t in jnp.split(_norm(x) @ p["qkv"], 3, -1))
    scores = jnp.einsum("bthd,bshd->bhts", q, k) / heads[-1] ** 0.5
    past = jnp.tril(jnp.ones((time, time), bool))
    weights = jax.nn.softmax(jnp.where(past, scores, -1e30))
    x = x + jnp.einsum("bhts,bshd->bthd", weights, v).reshape(x.shape) @ p["out"]
    return x + jax.nn.gelu(_norm(x) @ p["up"]) @ p["down"]


def _cross_entropy(x: Any, table: Any, ids: Any) -> Any:
    scores = jax.nn.log_softmax(x @ table.T)
    return -jnp.mean(jnp.take_along_axis(scores, ids[..., None], -1))


_BLOCK = {"qkv": (128, 384), "out": (128, 128), "up": (128, 512), "down": (512, 128)}


def gpt(wrap: Wrap) -> Made:
    """Six blocks of a transformer, written one by one."""
    block = wrap(_block)

    def loss(params: Any, ids: Any) -> Any:
        x = params["table"][ids]
        for p in params["blocks"]:
            x = block(p, x)
        return _cross_entropy(x, params["table"], ids)

    blocks = [{name: _shape(*sizes) for name, sizes in _BLOCK.items()}] * 6
    return loss, ({"table": _shape(512, 128), "blocks": blocks}, _shape(8, 128, dtype=jnp.int32))


def gpt_scanned(wrap: Wrap) -> Made:
    """The same blocks, stacked and scanned."""
    block = wrap(_block)

    def loss(params: Any, ids: Any) -> Any:
        step = lambda x, p: (block(p, x), None)
        x, _ = lax.scan(step, params["table"][ids], params["blocks"])
        return _cross_entropy(x, params["table"], ids)

    blocks = {name: _shape(6, *sizes) for name, sizes in _BLOCK.items()}
    return loss, ({"table": _shape(512, 128), "blocks": blocks}, _shape(8, 128, dtype=jnp.int32))


def lstm(wrap: Wrap) -> Made:
    """A recurrent network over a thousand steps."""

    def cell(params: Any, state: Any, x: Any) -> Any:
        h, s = state
        i, f, o, u = jnp.split(jnp.concatenate([x, h], -1) @ params["w"] + params["b"], 4, -1)
        s = jax.nn.sigmoid(f) * s + jax.nn.sigmoid(i) * jnp.tanh(u)
        return jax.nn.sigmoid(o) * jnp.tanh(s), s

    step = wrap(cell)

    def loss(params: Any, xs: Any) -> Any:
        start = (jnp.zeros(xs.shape[1:], xs.dtype),) * 2
        (h, _), _ = lax.scan(lambda s, x: (step(params, s, x), None), start, xs)
        return jnp.mean(h**2)

    return loss, ({"w": _shape(128, 256), "b": _shape(256)}, _shape(1000, 16, 64))


def u_net(wrap: Wrap) -> Made:
    """Convolutions down and up again, with skips."""

    def convolve(kernel: Any, x: Any, stride: int = 1) -> Any:
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=numbers
        )

    first = wrap(lambda k, x: jax.nn.gelu(convolve(k, x)))
    down = wrap(lambda k, x: jax.nn.gelu(convolve(k, x, 2)))

    def rise(k: Any, x: Any, skip: Any) -> Any:
        x = jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)
        return jax.nn.gelu(convolve(k, jnp.concatenate([x, skip], -1)))

    up = wrap(rise)

    def loss(params: Any, x: Any) -> Any:
        skips = [first(params["first"], x)]
        for k in params["down"]:
            skips.append(down(k, skips[-1]))
        x = skips.pop()
        for k in params["up"]:
            x = up(k, x, skips.pop())
        return jnp.mean(convolve(params["last"], x) ** 2)

    params = {
        "first": _shape(3, 3, 3, 8), "down": [_shape(3, 3, 8, 16), _shape(3, 3, 16, 32)],
        "up": [_shape(3, 3, 48, 16), _shape(3, 3, 24, 8)], "last": _shape(3, 3, 8, 1),
    }  # fmt: skip
    return loss, (params, _shape(4, 64, 64, 3))


def dense_connections(wrap: Wrap) -> Made:
    """Ten layers, each of which reads all before it."""
    layer = wrap(lambda w, *xs: jnp.tanh(jnp.concatenate(xs, -1) @ w))

    def loss(ws: Any, x: Any) -> Any:
        xs = [x]
        for w in ws:
            xs.append(layer(w, *xs))
        return jnp.mean(xs[-1] ** 2)

    return loss, ([_shape(64 * k, 64) for k in range(1, 11)], _shape(2048, 64))


def attention(wrap: Wrap) -> Made:
    """Three layers of attention over a long sequence."""
    layer = wrap(lambda w, x: x + jax.nn.softmax((x @ w) @ x.T / 8) @ x)

    def loss(ws: Any, x: Any) -> Any:
        for w in ws:
            x = layer(w, x)
        return jnp.mean(x**2)

    return loss, ([_shape(64, 64)] * 3, _shape(1024, 64))


def graph_network(wrap: Wrap) -> Made:
    """Messages along twenty thousand edges, five times."""

    def exchange(params: Any, x: Any, senders: Any, receivers: Any) -> Any:
        message, update = params
        sent = jax.nn.relu(jnp.concatenate([x[senders], x[receivers]], -1) @ message)
        return x + jnp.tanh(jax.ops.segment_sum(sent, receivers, x.shape[0]) @ update)

    step = wrap(exchange)

    def loss(params: Any, x: Any, senders: Any, receivers: Any) -> Any:
        for p in params:
            x = step(p, x, senders, receivers)
        return jnp.mean(x**2)

    edges = _shape(20_000, dtype=jnp.int32)
    return loss, ([(_shape(64, 32), _shape(32, 32))] * 5, _shape(2000, 32), edges, edges)


def simulation(wrap: Wrap) -> Made:
    """A chain of pendulums over five hundred steps."""

    def advance(params: Any, state: Any) -> Any:
        x, v = state
        force = jnp.roll(x, 1) - 2 * x + jnp.roll(x, -1) - params["k"] * jnp.sin(x)
        v = v + 0.01 * (force - params["friction"] * v)
        return x + 0.01 * v, v

    step = wrap(advance)

    def loss(params: Any, x: Any) -> Any:
        run = lambda state, _: (step(params, state), None)
        (x, _), _ = lax.scan(run, (x, jnp.zeros_like(x)), None, length=500)
        return jnp.mean(x**2)

    return loss, ({"k": _shape(4096), "friction": _shape()}, _shape(4096))


def inner_loop(wrap: Wrap) -> Made:
    """Three gradient steps inside the loss, differentiated through."""
    layer = wrap(lambda w, x: jnp.tanh(x @ w))

    def inner(ws: Any, x: Any) -> Any:
        for w in ws:
            x = layer(w, x)
        return jnp.mean(x**2)

    def loss(ws: Any, x: Any) -> Any:
        for _ in range(3):
            ws = jax.tree.map(lambda w, g: w - 0.1 * g, ws, bp.grad(inner)(ws, x))
        return inner(ws, x)

    return loss, ([_shape(64, 64)] * 3, _shape(1024, 64))


def vocabulary(wrap: Wrap) -> Made:
    """A cross entropy over many classes."""
    head = wrap(lambda p, x, ids: _cross_entropy(x, p, ids))

    def loss(params: Any, ids: Any) -> Any:
        return head(params["table"], jnp.tanh(params["table"][ids] @ params["w"]), ids)

    params = {"table": _shape(4096, 64), "w": _shape(64, 64)}
    return loss, (params, _shape(16, 64, dtype=jnp.int32))


LOSSES: dict[str, Callable[[Wrap], Made]] = {
    made.__name__: made
    for made in (mlp, gelu_stack, gpt, gpt_scanned, lstm, u_net, dense_connections, attention,
                 graph_network, simulation, inner_loop, vocabulary)
}  # fmt: skip
