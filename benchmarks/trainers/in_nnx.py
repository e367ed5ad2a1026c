"""Flax NNX: the same models of its layers, with ``nnx.jit`` and ``nnx.Optimizer``."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.trainers import RATE, Trainer, cycle
from benchmarks.trainers.tasks import Task


def trainer(task: Task) -> Trainer:
    """One call of a function under ``nnx.jit`` a step."""
    from flax import nnx  # pyright: ignore[reportMissingImports]

    model = MODELS[task.name](nnx, task)
    optimizer = nnx.Optimizer(model, optax.adam(RATE), wrt=nnx.Param)

    def loss(model: Any, x: Any, y: Any) -> Any:
        return jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(model(x), y))

    @nnx.jit
    def step(model: Any, optimizer: Any, x: Any, y: Any) -> Any:
        value, params_bar = nnx.value_and_grad(loss)(model, x, y)
        optimizer.update(model, params_bar)
        return value

    batch = cycle(jax.device_put(task.batches()))

    def take(count: int) -> float:
        value: Any = None
        for _ in range(count):
            value = step(model, optimizer, *batch())
        jax.block_until_ready(nnx.state(model))
        return float(value)

    return take


def _with(layer: Any, **weights: Any) -> Any:
    """The layer with these arrays in its parameters of these names."""
    for path, weight in weights.items():
        at = layer
        *parts, last = path.split("__")
        for part in parts:
            at = getattr(at, part)
        variable = getattr(at, last)
        assert variable[...].shape == weight.shape, (path, variable[...].shape, weight.shape)
        variable[...] = jnp.copy(weight)
    return layer


def _dense(nnx: Any, kernel: Any, bias: Any = None) -> Any:
    layer = nnx.Linear(*kernel.shape, use_bias=bias is not None, rngs=nnx.Rngs(0))
    return _with(layer, kernel=kernel, **({} if bias is None else {"bias": bias}))


def _mlp(nnx: Any, task: Task) -> Any:
    p, layers = task.params, []
    for i in range(1, len(p) // 2 + 1):
        layers += [_dense(nnx, p[f"W{i}"], p[f"b{i}"]), nnx.relu]
    return nnx.Sequential(*layers[:-1])


def _lenet(nnx: Any, task: Task) -> Any:
    p = task.params

    def convolution(i: int, padding: str) -> Any:
        kernel = p[f"K{i}"]
        layer = nnx.Conv(*kernel.shape[2:], (5, 5), padding=padding, rngs=nnx.Rngs(0))
        return _with(layer, kernel=kernel, bias=p[f"b{i}"])

    def pool(x: Any) -> Any:
        return nnx.avg_pool(x, (2, 2), (2, 2))

    return nnx.Sequential(
        convolution(1, "SAME"), nnx.tanh, pool, convolution(2, "VALID"), nnx.tanh, pool,
        lambda x: x.reshape(len(x), -1), _dense(nnx, p["W3"], p["b3"]), nnx.tanh,
        _dense(nnx, p["W4"], p["b4"]), nnx.tanh, _dense(nnx, p["W5"], p["b5"]),
    )  # fmt: skip


def _lstm(nnx: Any, task: Task) -> Any:
    p, rngs = task.params, nnx.Rngs(0)
    cell = nnx.OptimizedLSTMCell(p["W"].shape[0], p["U"].shape[0], rngs=rngs)
    _with(cell, dense_i__kernel=p["W"], dense_h__kernel=p["U"], dense_h__bias=p["b"])
    last = lambda x: x[:, -1]
    return nnx.Sequential(nnx.RNN(cell, rngs=rngs), last, _dense(nnx, p["V"], p["d"]))


def _gpt(nnx: Any, task: Task) -> Any:
    p, rngs = task.params, nnx.Rngs(0)
    layers, d, heads, _ = p["blocks"]["WQ"].shape

    def norm(gain: Any, shift: Any) -> Any:
        return _with(nnx.LayerNorm(d, epsilon=1e-5, rngs=rngs), scale=gain, bias=shift)

    class Block(nnx.Module):
        def __init__(self, b: Any) -> None:
            self.norm1, self.norm2 = norm(b["g1"], b["s1"]), norm(b["g2"], b["s2"])
            self.attention = _with(
                nnx.MultiHeadAttention(heads, d, decode=False, rngs=rngs),
                query__kernel=b["WQ"], query__bias=b["bQ"], key__kernel=b["WK"],
                key__bias=b["bK"], value__kernel=b["WV"], value__bias=b["bV"],
                out__kernel=b["WO"], out__bias=b["bO"],
            )  # fmt: skip
            self.up, self.down = _dense(nnx, b["W1"], b["b1"]), _dense(nnx, b["W2"], b["b2"])

        def __call__(self, x: Any) -> Any:
            mask = nnx.make_causal_mask(x[..., 0])
            x = x + self.attention(self.norm1(x), mask=mask)
            return x + self.down(nnx.gelu(self.up(self.norm2(x))))

    class GPT(nnx.Module):
        def __init__(self) -> None:
            self.tokens = _with(nnx.Embed(*p["E"].shape, rngs=rngs), embedding=p["E"])
            self.positions = nnx.Param(jnp.copy(p["P"]))
            each = [{k: leaf[i] for k, leaf in p["blocks"].items()} for i in range(layers)]
            self.blocks = nnx.List([Block(b) for b in each])
            self.norm, self.head = norm(p["g"], p["s"]), _dense(nnx, p["W"])

        def __call__(self, tokens: Any) -> Any:
            x = self.tokens(tokens) + self.positions[...][: tokens.shape[1]]
            for block in self.blocks:
                x = block(x)
            return self.head(self.norm(x))

    return GPT()


MODELS = {"mlp": _mlp, "lenet": _lenet, "lstm": _lstm, "gpt": _gpt}
