"""Second derivatives and Jacobians, and graphs whose time is the time to trace them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.model import Model, drawing


def _energy(layers: Any, x: Any) -> Any:
    for w in layers:
        x = jnp.tanh(x @ w)
    return jnp.mean(x**2)


def hessian_vector_product() -> Model:
    """H v of three dense layers."""
    draw = drawing()
    layers, v = ([draw(64, 64) for _ in range(3)] for _ in range(2))
    return Model(_energy, layers, (v, draw(32, 64, scale=1.0)), "hvp")


def jacobian() -> Model:
    """The Jacobian of three dense layers in their input, by forward mode."""
    draw = drawing()
    layers = [draw(32, 32) for _ in range(3)]

    def outputs(x: Any) -> Any:
        for w in layers:
            x = jax.nn.gelu(x @ w)
        return jax.nn.softmax(x)

    return Model(outputs, draw(32), (), "jacfwd")


def hessian() -> Model:
    """The Hessian of a logistic regression."""
    draw = drawing()
    x = draw(200, 20, scale=1.0)
    y = (x[:, 0] > 0).astype(jnp.float32)

    def loss(w: Any, x: Any, y: Any) -> Any:
        z = x @ w
        return jnp.mean(jax.nn.softplus(z) - y * z) + 0.01 * w @ w

    return Model(loss, draw(20), (x, y), "hessian")


def additions() -> Model:
    """Sixty times v + v."""

    def loss(v: Any) -> Any:
        for _ in range(60):
            v = v + v
        return jnp.sum(v)

    return Model(loss, jnp.ones(4) * 2.0**-60)


def shared_jit() -> Model:
    """One jitted function called sixty times."""
    draw = drawing()
    layer = jax.jit(lambda x, w: x + 0.1 * jax.nn.gelu(x @ w))

    def loss(w: Any, x: Any) -> Any:
        for _ in range(60):
            x = layer(x, w)
        return jnp.mean(x**2)

    return Model(loss, draw(16, 16), (draw(8, 16, scale=1.0),))
