"""Functions that write into references of their own; their pure twin, or JAX, is the witness."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import functional_bp as bp
from functional_bp.errors import NotDifferentiableError


def in_place(x: Any) -> Any:
    ref = jax.new_ref(x)
    ref[0] = jnp.sin(ref[1]) * x[2]
    jax.ref.addupdate(ref, slice(1, 3), ref[:2] ** 2)
    return jnp.sum(jax.ref.freeze(ref) ** 2)


def in_place_pure(x: Any) -> Any:
    r = x.at[0].set(jnp.sin(x[1]) * x[2])
    return jnp.sum(r.at[1:3].add(r[:2] ** 2) ** 2)


def over_scan(x: Any) -> Any:
    total = jax.new_ref(x[0])

    def step(_: None, row: Any) -> tuple[None, Any]:
        jax.ref.addupdate(total, ..., jnp.sin(row) * total[...])
        return None, total[...] * row

    return jnp.sum(lax.scan(step, None, x)[1]) + jnp.sum(total[...])


def over_scan_pure(x: Any) -> Any:
    def step(total: Any, row: Any) -> tuple[Any, Any]:
        total = total + jnp.sin(row) * total
        return total, total * row

    total, ys = lax.scan(step, x[0], x)
    return jnp.sum(ys) + jnp.sum(total)


def inside_scan(x: Any) -> Any:
    def step(h: Any, row: Any) -> tuple[Any, Any]:
        ref = jax.new_ref(h)
        ref[...] = ref[...] * jnp.sin(row)
        return ref[...], ref[0]

    h, ys = lax.scan(step, jnp.ones(2), x)
    return jnp.sum(h) + jnp.sum(ys)


def inside_scan_pure(x: Any) -> Any:
    def step(h: Any, row: Any) -> tuple[Any, Any]:
        h = h * jnp.sin(row)
        return h, h[0]

    h, ys = lax.scan(step, jnp.ones(2), x)
    return jnp.sum(h) + jnp.sum(ys)


def over_fori(x: Any) -> Any:
    ref = jax.new_ref(x)

    def body(i: Any, _: None) -> None:
        ref[i % 3] = jnp.sin(ref[(i + 1) % 3]) * x[0]

    lax.fori_loop(0, 4, body, None)
    return jnp.sum(ref[...])


def over_fori_pure(x: Any) -> Any:
    body = lambda i, r: r.at[i % 3].set(jnp.sin(r[(i + 1) % 3]) * x[0])
    return jnp.sum(lax.fori_loop(0, 4, body, x))


def over_cond(x: Any) -> Any:
    ref = jax.new_ref(x)

    def yes() -> None:
        ref[0] = x[1] * ref[2]

    def no() -> None:
        ref[1] = x[0]

    lax.cond(x[0] > 0, yes, no)
    return jnp.sum(ref[...] ** 2)


def over_jit(x: Any) -> Any:
    ref = jax.new_ref(x)

    @jax.jit
    def go(y: Any) -> Any:
        ref[0] = y[1] * ref[2]
        own = jax.new_ref(y)
        own[1] = ref[1] * y[0]
        return own[...]

    return jnp.sum(go(x * x) * ref[...])


def over_jit_pure(x: Any) -> Any:
    y = x * x
    return jnp.sum(y.at[1].set(x[1] * y[0]) * x.at[0].set(y[1] * x[2]))


def over_remat(x: Any) -> Any:
    ref = jax.new_ref(x * x)
    return jnp.sum(jax.checkpoint(lambda y: jnp.sin(ref[...] * y))(x))


def under_vmap(x: Any) -> Any:
    def row_of(row: Any) -> Any:
        ref = jax.new_ref(row)
        ref[0] = jnp.sin(ref[1])
        return ref[...]

    return jnp.sum(jax.vmap(row_of)(x) ** 2)


VECTOR = jnp.asarray(np.array([0.3, 0.7, -0.2]))
ROWS = jnp.asarray(np.arange(6.0).reshape(3, 2) / 5 + 0.1)
PAIRS: dict[str, tuple[Callable[..., Any], Callable[..., Any], Any]] = {
    "in place": (in_place, in_place_pure, VECTOR),
    "over a scan": (over_scan, over_scan_pure, ROWS),
    "inside a scan": (inside_scan, inside_scan_pure, ROWS),
    "over fori_loop": (over_fori, over_fori_pure, VECTOR),
    "over cond": (over_cond, lambda x: jnp.sum(x.at[0].set(x[1] * x[2]) ** 2), VECTOR),
    "over jit": (over_jit, over_jit_pure, VECTOR),
    "over checkpoint": (over_remat, lambda x: jnp.sum(jnp.sin(x**3)), VECTOR),
    "under vmap": (under_vmap, lambda x: jnp.sum(x.at[:, 0].set(jnp.sin(x[:, 1])) ** 2), ROWS),
}


@pytest.mark.parametrize(("f", "pure", "x"), PAIRS.values(), ids=PAIRS)
def test_value_first_and_second_derivative_are_those_of_the_pure_twin(
    f: Any, pure: Any, x: Any
) -> None:
    def all_of(f: Any, grad: Any) -> Any:
        return f(x), grad(f)(x), grad(lambda x: jnp.sum(jnp.sin(grad(f)(x))))(x)

    got = jax.jit(lambda: all_of(f, bp.grad))()
    expected = jax.jit(lambda: all_of(pure, jax.grad))()
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("f", [in_place, over_scan], ids=["in place", "over a scan"])
def test_first_derivative_is_that_of_jax_without_jit(f: Any) -> None:
    x = ROWS if f is over_scan else VECTOR
    np.testing.assert_allclose(bp.grad(f)(x), jax.grad(f)(x), rtol=1e-12)


def test_a_rule_of_its_own_keeps_a_function_with_references() -> None:
    @jax.custom_vjp
    def f(x: Any) -> Any:
        ref = jax.new_ref(x)
        ref[0] = x[1] ** 2
        return ref[...]

    f.defvjp(lambda x: (f(x), x), lambda x, y_bar: (y_bar * x * 7,))
    loss = lambda x: jnp.sum(f(x) ** 2)
    np.testing.assert_allclose(bp.grad(loss)(VECTOR), jax.grad(loss)(VECTOR), rtol=1e-12)


def test_a_reference_from_outside_takes_what_has_no_gradient() -> None:
    log = jax.new_ref(jnp.zeros(3))

    def loss(x: Any) -> Any:
        log[...] = lax.stop_gradient(x) * 2
        return jnp.sum(x * log[...])

    np.testing.assert_allclose(bp.grad(loss)(VECTOR), 2 * VECTOR)
    np.testing.assert_allclose(log[...], 2 * VECTOR)


def test_a_reference_from_outside_refuses_what_has_one() -> None:
    log = jax.new_ref(jnp.zeros(3))

    def loss(x: Any) -> Any:
        log[...] = x * 2
        return jnp.sum(x * log[...])

    with pytest.raises(NotDifferentiableError, match=r"(?s)test_references.*stop_gradient"):
        bp.grad(loss)(VECTOR)
    with pytest.raises(Exception, match="differentiated value on a non-differentiated"):
        jax.grad(loss)(VECTOR)


def test_a_reference_as_the_argument_is_refused() -> None:
    with pytest.raises(NotDifferentiableError, match=r"(?s)mutable reference.*ref\[\.\.\.\]"):
        bp.grad(lambda ref: jnp.sum(ref[...]))(jax.new_ref(VECTOR))
    ref = jax.new_ref(VECTOR)
    gradient = bp.grad(lambda x, ref: jnp.sum(x * ref[...]))(VECTOR, ref)  # not differentiated
    np.testing.assert_allclose(gradient, VECTOR)
