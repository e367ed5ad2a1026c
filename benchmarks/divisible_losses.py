"""Losses that one device may be too small for, by shapes alone, each as ``loss(params, batch)``.

Those of ``benchmarks.losses``, and some that only several devices help: a table, experts,
waves, a Gaussian process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.losses import LOSSES as WITH_PLACEMENT
from benchmarks.losses import Placement, _shape

Made = tuple[Callable[[Any, Any], Any], Any, Any]  # the loss, its parameters, a batch


def batch_norm() -> Made:
    """Convolutions with batch normalisation, and a dense layer."""

    def layer(p: Any, x: Any) -> Any:
        x = lax.conv_general_dilated(x, p["kernel"], (1, 1), "SAME",
                                     dimension_numbers=("NHWC", "HWIO", "NHWC"))  # fmt: skip
        x = (x - x.mean((0, 1, 2))) * lax.rsqrt(x.var((0, 1, 2)) + 1e-5)
        return jax.nn.relu(x * p["scale"] + p["shift"])

    def loss(params: Any, batch: Any) -> Any:
        x, labels = batch
        for p in params["layers"]:
            x = layer(p, x)
        scores = jax.nn.log_softmax(x.mean((1, 2)) @ params["head"])
        return -jnp.mean(jnp.take_along_axis(scores, labels[:, None], -1))

    layers = [{"kernel": _shape(3, 3, m, n), "scale": _shape(n), "shift": _shape(n)}
              for m, n in ((3, 16), (16, 16), (16, 32))]  # fmt: skip
    params = {"layers": layers, "head": _shape(32, 16)}
    return loss, params, (_shape(32, 32, 32, 3), _shape(32, dtype=jnp.int32))


def experts() -> Made:
    """A mixture of eight experts, each of which computes every token."""

    def loss(params: Any, x: Any) -> Any:
        gates = jax.nn.softmax(x @ params["router"])
        hidden = jax.nn.gelu(jnp.einsum("td,edh->eth", x, params["up"]))
        out = jnp.einsum("eth,ehd,te->td", hidden, params["down"], gates)
        return jnp.mean((x + out) ** 2)

    params = {"router": _shape(64, 8), "up": _shape(8, 64, 256), "down": _shape(8, 256, 64)}
    return loss, params, _shape(1024, 64)


def table() -> Made:
    """An embedding table that is larger than all else."""

    def loss(params: Any, batch: Any) -> Any:
        ids, y = batch
        found = params["table"][ids].mean(1)
        return jnp.mean((found @ params["head"] - y) ** 2)

    params = {"table": _shape(32768, 64), "head": _shape(64, 8)}
    return loss, params, (_shape(256, 16, dtype=jnp.int32), _shape(256, 8))


def wave() -> Made:
    """A wave equation on a grid over two hundred steps: its medium is fitted."""

    def loss(speed: Any, start: Any) -> Any:
        def advance(state: Any, _: Any) -> Any:
            u, before = state
            laplacian = sum(jnp.roll(u, s, a) for a in (0, 1) for s in (-1, 1)) - 4 * u
            return (2 * u - before + speed * laplacian, u), None

        (u, _), _ = lax.scan(advance, (start, start), None, length=200)
        return jnp.mean(u**2)

    return loss, _shape(64, 64), _shape(64, 64)


def gaussian_process() -> Made:
    """The likelihood of a Gaussian process: a factorisation that nothing divides."""

    def loss(params: Any, batch: Any) -> Any:
        x, y = batch
        scaled = x / params["length"]
        squares = ((scaled[:, None] - scaled[None]) ** 2).sum(-1)
        kernel = params["variance"] * jnp.exp(-0.5 * squares) + 0.1 * jnp.eye(len(x))
        factor = jnp.linalg.cholesky(kernel)
        white = lax.linalg.triangular_solve(factor, y[:, None], left_side=True, lower=True)
        return 0.5 * jnp.sum(white**2) + jnp.sum(jnp.log(jnp.diagonal(factor)))

    return loss, {"length": _shape(4), "variance": _shape()}, (_shape(256, 4), _shape(256))


def _from(name: str) -> Callable[[], Made]:
    """One of those with a placement, its further arguments as the batch."""

    def made() -> Made:
        fun, (params, *rest) = WITH_PLACEMENT[name](Placement())

        def loss(params: Any, batch: Any) -> Any:
            return fun(params, *batch)

        return loss, params, tuple(rest)

    return made


SHARED = (
    "mlp", "gpt", "gpt_scanned", "u_net", "graph_network", "simulation", "vocabulary", "lstm",
)  # fmt: skip
LOSSES: dict[str, Callable[[], Made]] = {
    **{name: _from(name) for name in SHARED},
    **{made.__name__: made for made in (batch_norm, experts, table, wave, gaussian_process)},
}
