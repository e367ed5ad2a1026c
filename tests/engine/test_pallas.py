"""Pallas kernels in forward mode: JAX has a tangent rule for them, which cannot be transposed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas as pl

import functional_bp as bp

BLOCK = pl.BlockSpec((2, 4), lambda i: (i, 0))


def waves(x: Any, y: Any) -> Any:
    def kernel(x_ref: Any, y_ref: Any, out_ref: Any) -> None:
        out_ref[...] = jnp.sin(x_ref[...]) * y_ref[...]

    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return pl.pallas_call(kernel, out_shape=shape, interpret=True)(x, y)


def waves_on_a_grid(x: Any, y: Any) -> Any:
    def kernel(x_ref: Any, y_ref: Any, out_ref: Any) -> None:
        out_ref[...] = jnp.sin(x_ref[...]) * y_ref[...]

    return pl.pallas_call(
        kernel, grid=(2,), in_specs=[BLOCK, BLOCK], out_specs=BLOCK,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype), interpret=True,
    )(x, y)  # fmt: skip


def recurrence(x: Any, y: Any) -> Any:
    def kernel(x_ref: Any, y_ref: Any, last_ref: Any, square_ref: Any) -> None:
        step = lambda i, c: c * jnp.cos(x_ref[i, :]) + y_ref[i, :]
        last_ref[...] = lax.fori_loop(0, 4, step, jnp.ones(4, x_ref.dtype))
        square_ref[...] = x_ref[...] ** 2

    shapes = [jax.ShapeDtypeStruct(shape, x.dtype) for shape in ((4,), (4, 4))]
    return pl.pallas_call(kernel, out_shape=shapes, interpret=True)(x, y)


def product(x: Any, y: Any) -> Any:
    def kernel(x_ref: Any, y_ref: Any, out_ref: Any) -> None:
        out_ref[...] = x_ref[...] @ y_ref[...]

    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return pl.pallas_call(kernel, out_shape=shape, interpret=True)(x, jnp.tanh(y).T)


def in_a_scan(x: Any, y: Any) -> Any:
    step = lambda c, _: ((waves(*c), c[1]), jnp.sum(c[0]))
    return lax.scan(step, (x, y), None, length=3)


def points() -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(4, 4))), jnp.asarray(rng.normal(size=(4, 4)))


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize(
    "function", [waves, waves_on_a_grid, recurrence, product, in_a_scan],
    ids=lambda f: f.__name__,
)  # fmt: skip
def test_tangents_equal_jaxs(function: Any, wrap: Any) -> None:
    x, y = points()
    own = wrap(lambda *args: bp.jvp(function, args, (y, x)))(x, y)
    theirs = jax.jvp(function, (x, y), (y, x))
    for got, want in zip(jax.tree.leaves(own), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12)


def test_tangents_are_the_kernels_own_derivative() -> None:
    """Against the formula, since JAX's rule is behind both sides above."""
    x, y = points()
    _, got = bp.jvp(waves, (x, y), (y, x))
    np.testing.assert_allclose(got, jnp.cos(x) * y * y + jnp.sin(x) * x, rtol=1e-12)
