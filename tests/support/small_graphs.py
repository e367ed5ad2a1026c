"""Functions whose graphs are known by hand, and what tests ask of a graph."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import functional_bp as bp
from functional_bp.graph import Graph

F32 = np.float32


def f32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, F32)


def names(variables: Any) -> list[str]:
    return [v.name for v in variables]


def operations(graph: Graph) -> list[str]:
    return [equation.operation for equation in graph]


def mlp(params: Any, x: Any) -> Any:
    z = bp.name(x @ params["W1"] + params["b1"], "z")
    h = bp.name(jnp.tanh(z), "h")
    return jnp.sum(h @ params["W2"])


PARAMS = {"W1": f32(3, 4), "W2": f32(4, 2), "b1": f32(4)}


def rnn(W: Any, h0: Any, xs: Any) -> Any:
    def step(h: Any, x: Any) -> Any:
        h = bp.name(jnp.tanh(W @ h + x), "h")
        return h, h

    return lax.scan(step, h0, xs)[1]
