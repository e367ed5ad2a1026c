"""Losses whose gradients fill memory, by shapes alone: nothing is allocated to measure them.

Each is made for a placement, so that a person's ``jax.checkpoint`` stands where an expert would put
it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]
Made = tuple[Callable[..., Any], tuple[Any, ...]]


class Placement(NamedTuple):
    """What is put around the blocks of a loss, and around how many of them at once.

    Attributes:
        wrap: takes a block and returns the same function.
        by_segments: of n blocks in a row, or steps of a loop, about √n stand under one ``wrap``.
    """

    wrap: Wrap = lambda block: block
    by_segments: bool = False

    def chain(self, block: Callable[[Any, Any], Any], params: Sequence[Any], x: Any) -> Any:
        """Apply a block to x with each of the parameters in turn, written one by one."""

        def segment(params: Sequence[Any], x: Any) -> Any:
            for p in params:
                x = block(p, x)
            return x

        segment, size = self.wrap(segment), self._size(len(params))
        for k in range(0, len(params), size):
            x = segment(params[k : k + size], x)
        return x

    def scan(self, step: Callable[[Any, Any], Any], state: Any, xs: Any) -> Any:
        """Return the last state of a loop: ``state = step(state, x)`` for each x."""

        def run(step: Any, state: Any, xs: Any) -> Any:
            return lax.scan(lambda state, x: (step(state, x), None), state, xs)[0]

        length = len(jax.tree.leaves(xs)[0])
        size = next(k for k in range(self._size(length), 0, -1) if length % k == 0)
        if size == 1:
            return run(self.wrap(step), state, xs)
        divided = jax.tree.map(lambda x: x.reshape(length // size, size, *x.shape[1:]), xs)
        return run(self.wrap(partial(run, step)), state, divided)

    def _size(self, count: int) -> int:
        return round(math.sqrt(count)) if self.by_segments else 1


def _shape(*sizes: int, dtype: Any = jnp.float32) -> Any:
    return jax.ShapeDtypeStruct(sizes, dtype)


def mlp(place: Placement) -> Made:
    """Twelve tanh layers of one width."""
    layer = lambda w, x: jnp.tanh(x @ w)

    def loss(ws: Any, x: Any) -> Any:
        return jnp.mean(place.chain(layer, ws, x) ** 2)

    return loss, ([_shape(256, 256)] * 12, _shape(2048, 256))


def gelu_stack(place: Placement) -> Made:
    """Eight residual gelu layers, written one by one."""
    layer = lambda p, x: x + jax.nn.gelu(x @ p[0]) @ p[1]

    def loss(params: Any, x: Any) -> Any:
        return jnp.mean(place.chain(layer, params, x) ** 2)

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


def gpt(place: Placement) -> Made:
    """Six blocks of a transformer, written one by one."""

    def loss(params: Any, ids: Any) -> Any:
        x = place.chain(_block, params["blocks"], params["table"][ids])
        return _cross_entropy(x, params["table"], ids)

    blocks = [{name: _shape(*sizes) for name, sizes in _BLOCK.items()}] * 6
    return loss, ({"table": _shape(512, 128), "blocks": blocks}, _shape(8, 128, dtype=jnp.int32))


def gpt_scanned(place: Placement) -> Made:
    """The same blocks, stacked and scanned."""

    def loss(params: Any, ids: Any) -> Any:
        x = place.scan(lambda x, p: _block(p, x), params["table"][ids], params["blocks"])
        return _cross_entropy(x, params["table"], ids)

    blocks = {name: _shape(6, *sizes) for name, sizes in _BLOCK.items()}
    return loss, ({"table": _shape(512, 128), "blocks": blocks}, _shape(8, 128, dtype=jnp.int32))


def lstm(place: Placement) -> Made:
    """A recurrent network over four thousand steps."""

    def cell(params: Any, state: Any, x: Any) -> Any:
        h, s = state
        i, f, o, u = jnp.split(jnp.concatenate([x, h], -1) @ params["w"] + params["b"], 4, -1)
        s = jax.nn.sigmoid(f) * s + jax.nn.sigmoid(i) * jnp.tanh(u)
        return jax.nn.sigmoid(o) * jnp.tanh(s), s

    def loss(params: Any, xs: Any) -> Any:
        start = (jnp.zeros(xs.shape[1:], xs.dtype),) * 2
        h, _ = place.scan(lambda state, x: cell(params, state, x), start, xs)
        return jnp.mean(h**2)

    return loss, ({"w": _shape(128, 256), "b": _shape(256)}, _shape(4000, 16, 64))


def u_net(place: Placement) -> Made:
    """Convolutions down and up again, with skips."""

    def convolve(kernel: Any, x: Any, stride: int = 1) -> Any:
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=numbers
        )

    first = place.wrap(lambda k, x: jax.nn.gelu(convolve(k, x)))
    down = place.wrap(lambda k, x: jax.nn.gelu(convolve(k, x, 2)))

    def rise(k: Any, x: Any, skip: Any) -> Any:
        x = jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)
        return jax.nn.gelu(convolve(k, jnp.concatenate([x, skip], -1)))

    up = place.wrap(rise)

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


def dense_connections(place: Placement) -> Made:
    """Ten layers, each of which reads all before it."""
    layer = place.wrap(lambda w, *xs: jnp.tanh(jnp.concatenate(xs, -1) @ w))

    def loss(ws: Any, x: Any) -> Any:
        xs = [x]
        for w in ws:
            xs.append(layer(w, *xs))
        return jnp.mean(xs[-1] ** 2)

    return loss, ([_shape(64 * k, 64) for k in range(1, 11)], _shape(2048, 64))


def attention(place: Placement) -> Made:
    """Three layers of attention over a long sequence."""
    layer = lambda w, x: x + jax.nn.softmax((x @ w) @ x.T / 8) @ x

    def loss(ws: Any, x: Any) -> Any:
        return jnp.mean(place.chain(layer, ws, x) ** 2)

    return loss, ([_shape(64, 64)] * 3, _shape(1024, 64))


def graph_network(place: Placement) -> Made:
    """Messages along twenty thousand edges, five times."""

    def loss(params: Any, x: Any, senders: Any, receivers: Any) -> Any:
        def exchange(p: Any, x: Any) -> Any:
            message, update = p
            sent = jax.nn.relu(jnp.concatenate([x[senders], x[receivers]], -1) @ message)
            return x + jnp.tanh(jax.ops.segment_sum(sent, receivers, x.shape[0]) @ update)

        return jnp.mean(place.chain(exchange, params, x) ** 2)

    edges = _shape(20_000, dtype=jnp.int32)
    return loss, ([(_shape(64, 32), _shape(32, 32))] * 5, _shape(2000, 32), edges, edges)


def simulation(place: Placement) -> Made:
    """A chain of pendulums over two thousand steps."""

    def advance(params: Any, state: Any, push: Any) -> Any:
        x, v = state
        force = jnp.roll(x, 1) - 2 * x + jnp.roll(x, -1) - params["k"] * jnp.sin(x) + push
        v = v + 0.01 * (force - params["friction"] * v)
        return x + 0.01 * v, v

    def loss(params: Any, x: Any, pushes: Any) -> Any:
        step = lambda state, push: advance(params, state, push)
        x, _ = place.scan(step, (x, jnp.zeros_like(x)), pushes)
        return jnp.mean(x**2)

    return loss, ({"k": _shape(2048), "friction": _shape()}, _shape(2048), _shape(2000))


def inner_loop(place: Placement) -> Made:
    """Three gradient steps inside the loss, differentiated through."""

    def inner(ws: Any, x: Any) -> Any:
        for w in ws:
            x = jnp.tanh(x @ w)
        return jnp.mean(x**2)

    def descend(x: Any, ws: Any) -> Any:
        return jax.tree.map(lambda w, w_bar: w - 0.1 * w_bar, ws, jax.grad(inner)(ws, x))

    def loss(ws: Any, x: Any) -> Any:
        return inner(place.chain(descend, [x] * 3, ws), x)

    return loss, ([_shape(64, 64)] * 3, _shape(1024, 64))


def jacobians(place: Placement) -> Made:
    """The Jacobian of each example, whose size is a penalty."""
    layer = lambda w, x: jnp.tanh(x @ w)

    def loss(ws: Any, x: Any) -> Any:
        network = lambda x: place.chain(layer, ws, x)
        return jnp.mean(network(x) ** 2) + jnp.mean(jax.vmap(jax.jacrev(network))(x) ** 2)

    return loss, ([_shape(64, 64)] * 4, _shape(64, 64))


def vocabulary(place: Placement) -> Made:
    """A cross entropy over many classes."""
    head = place.wrap(lambda p, x, ids: _cross_entropy(x, p, ids))

    def loss(params: Any, ids: Any) -> Any:
        return head(params["table"], jnp.tanh(params["table"][ids] @ params["w"]), ids)

    params = {"table": _shape(4096, 64), "w": _shape(64, 64)}
    return loss, (params, _shape(16, 64, dtype=jnp.int32))


LOSSES: dict[str, Callable[[Placement], Made]] = {
    made.__name__: made
    for made in (mlp, gelu_stack, gpt, gpt_scanned, lstm, u_net, dense_connections, attention,
                 graph_network, simulation, inner_loop, jacobians, vocabulary)
}  # fmt: skip
