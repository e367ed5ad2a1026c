"""``logaddexp``, ``softplus`` and ``log_sigmoid``: known by JAX's tangent function, and right."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxpr_as_fun, primitives
from measuring import compiled

import functional_bp as bp
from functional_bp import _jax
from functional_bp.vjps.custom_rules import of_jax

ARRAYS = [-3.0, -0.4, 0.0, 1.7, 30.0]


def second(grad: Any, function: Any) -> Any:
    slope = lambda x: jnp.sum(jnp.sin(grad(lambda x: jnp.sum(function(x)))(x)))
    return grad(slope)


@pytest.mark.parametrize(
    "function",
    [
        jax.nn.softplus, jax.nn.log_sigmoid, lambda x: jnp.logaddexp(x, x[::-1]),
        lambda x: jnp.logaddexp2(x[:, None], x), lambda x: jnp.logaddexp(1.5, x),
        lambda x: jax.checkpoint(jax.nn.softplus)(x), jax.vmap(jax.nn.softplus),
        lambda x: jax.lax.scan(lambda c, x: (jnp.logaddexp(c, x), c), x[0], x)[1],
        lambda x: jnp.real(jnp.logaddexp(x + 1j, x * 1j)),
    ],
)  # fmt: skip
def test_near_jax_where_jax_is_right(function: Any) -> None:
    loss = lambda x: jnp.sum(jnp.sin(function(x)))

    def derivatives(x: Any) -> Any:
        of = lambda p: (p.grad(loss)(x), *p.jvp(function, (x,), (jnp.cos(x),)))
        return of(bp), of(jax), second(bp.grad, function)(x), second(jax.grad, function)(x)

    ours, theirs, got, want = compiled(derivatives)(jnp.asarray(ARRAYS))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)  # JAX's 1 − σ: 1e-16 of 1


def test_is_known_after_any_number_of_traces() -> None:
    closed = jax.make_jaxpr(jnp.logaddexp)(1.0, 2.0)
    for _ in range(3):
        (eqn,) = [e for e in closed.jaxpr.eqns if e.primitive is primitives.custom_jvp_call_p]
        assert _jax.custom_tangent(eqn.params["jvp_jaxpr_fun"], of_jax) in of_jax
        closed = jax.make_jaxpr(jaxpr_as_fun(closed))(1.0, 2.0)


def test_another_function_is_not_taken_for_it() -> None:
    (eqn,) = jax.make_jaxpr(jax.nn.relu)(1.0).jaxpr.eqns
    assert _jax.custom_tangent(eqn, of_jax) is None
