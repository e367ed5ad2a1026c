"""Operations of two operands, one of them stretched along axes of length 1."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from measuring import compiled
from sampling import sampled

import functional_bp as bp

OPERATIONS = [
    "add", "sub", "mul", "div", "max", "min", "pow", "rem", "atan2", "igamma", "igammac",
]  # fmt: skip
COLUMN, ROW = np.array([[1.3], [2.2], [0.7], [3.1]]), np.array([[1.1, 2.7, 1.4]])


def transforms(package: Any, name: str) -> Any:
    """Cotangents, and a column of the Jacobian."""

    def total(x: Any, y: Any) -> Any:
        return jnp.sum(jnp.sin(getattr(lax, name)(x, y)))

    def call(x: Any, y: Any) -> Any:
        return package.grad(total, (0, 1))(x, y), package.jvp(lambda y: total(x, y), (y,), (y,))

    return call


@pytest.mark.parametrize("name", sampled(OPERATIONS, 3))
def test_axes_of_length_one_are_stretched(name: str) -> None:
    got, want = compiled(lambda x, y: [transforms(p, name)(x, y) for p in (bp, jax)])(COLUMN, ROW)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-7), got, want)


@pytest.mark.parametrize("exponent", [np.arange(3), jnp.arange(3), [[1, 2]]])
def test_an_integer_exponent_is_stretched(exponent: Any) -> None:
    power = lambda x: jnp.sum(x[:, None] ** jnp.asarray(exponent))
    x = jnp.arange(1.0, 5.0)
    of = lambda package: [getattr(package, t)(power)(x) for t in ("grad", "jacfwd", "hessian")]
    for got, want in zip(*compiled(lambda: (of(bp), of(jax)))(), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12)
