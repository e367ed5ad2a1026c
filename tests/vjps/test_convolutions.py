"""Convolutions in loops: XLA's fast kernels on a CPU take one order of axes."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import functional_bp as bp

ORDERS = {"channels last": ("NHWC", "HWIO", "NHWC"), "channels first": ("NCHW", "OIHW", "NCHW")}


def network(order: str) -> Any:
    def loss(windows: Any, x: Any) -> Any:
        for w in windows:
            x = jnp.tanh(
                lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=ORDERS[order])
            )
        return jnp.sum(x**2)

    shapes = [(3, 3, 2, 3), (3, 3, 3, 4)], (8, 5, 6, 2)
    if order == "channels first":
        shapes = [(3, 2, 3, 3), (4, 3, 3, 3)], (8, 2, 5, 6)
    draw = lambda shape: jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    return loss, [draw(s) for s in shapes[0]], draw(shapes[1])


def orders(compiled: Any) -> set[str]:
    return set(re.findall(r" convolution\(.*dim_labels=(\S+?)[,\s]", compiled.as_text()))


FAST = {"b01f_01io->b01f"}


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="it is about XLA's kernels on a CPU")
def test_gradients_by_microbatches_use_the_fast_kernels() -> None:
    loss, windows, x = network("channels last")

    def accumulated(windows: Any, x: Any) -> Any:
        add = lambda sums, part: (jax.tree.map(jnp.add, sums, bp.grad(loss)(windows, part)), None)
        zeros = jax.tree.map(jnp.zeros_like, windows)
        return lax.scan(add, zeros, x.reshape(4, 2, *x.shape[1:]))[0]

    compiled = jax.jit(accumulated).lower(windows, x).compile()
    assert orders(compiled) == FAST
    for found, expected in zip(compiled(windows, x), jax.grad(loss)(windows, x)):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="it is about XLA's kernels on a CPU")
@pytest.mark.parametrize("order", ORDERS)
def test_pieces_use_the_fast_kernels(order: str) -> None:
    loss, windows, x = network(order)
    lean = bp.recompute(loss, 0.6)
    assert "pieces" in str(lean.choice(windows, x))
    compiled = jax.jit(bp.grad(lean)).lower(windows, x).compile()
    assert orders(compiled) == FAST
    for found, expected in zip(compiled(windows, x), jax.grad(loss)(windows, x)):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
