"""``while`` loops in reverse: static trip counts, bounds, checkpoints of √n, what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from sampling import sampled

import functional_bp as bp
from functional_bp.errors import MissingRuleError, StepBoundError

# A dozen multiplications in float64.
ROUNDING = 1e-12


def squared_until(x: Any, limit: Any = 100.0) -> Any:
    """x^(2ᵏ), squared until it passes the limit."""
    return lax.while_loop(lambda v: v < limit, lambda v: v * v, x)  # LOOP


LINE = next(
    number
    for number, line in enumerate(Path(__file__).read_text().splitlines(), start=1)
    if line.endswith("# LOOP")
)


def newton(a: Any) -> Any:
    """√a by Newton's iteration, until its square is as near as float64 has it."""
    near = lambda y: jnp.abs(y * y - a) > 1e-13 * a
    return lax.while_loop(near, lambda y: 0.5 * (y + a / y), a)


def powers(x: Any, n: Any) -> Any:
    """n steps of s ← sin(x s): the number of steps is an argument."""
    return lax.fori_loop(0, n, lambda _, s: jnp.sin(x * s), jnp.ones_like(x))


def powers_scanned(x: Any, n: int) -> Any:
    return lax.scan(lambda s, _: (jnp.sin(x * s), None), jnp.ones_like(x), None, length=n)[0]


@pytest.mark.parametrize("max_steps", sampled([3, 4, 10, 100], 3))
def test_a_closed_form(max_steps: int) -> None:
    value, slope = bp.value_and_grad(squared_until, max_steps=max_steps)(2.0)
    assert value == 256.0 and slope == 8 * 2.0**7  # 2 → 4 → 16 → 256


def test_a_loop_that_takes_no_step() -> None:
    assert bp.grad(squared_until, max_steps=5)(200.0) == 1.0


def test_the_square_root_by_newton() -> None:
    gradient = jax.jit(bp.grad(newton, max_steps=20))
    for a in (0.5, 2.0, 30.0):
        got = gradient(a)
        np.testing.assert_allclose(
            got, 0.5 / math.sqrt(a), rtol=1e-9
        )  # the iteration stops at 1e-13


@pytest.mark.parametrize("n", sampled([0, 1, 2, 5, 9], 2))
def test_against_a_scan(n: int) -> None:
    x = jnp.asarray([0.3, 1.2, -0.8])
    got = bp.grad(lambda x, n: jnp.sum(powers(x, n)), max_steps=9)(x, n)
    want = jax.grad(lambda x: jnp.sum(powers_scanned(x, n)))(x)
    np.testing.assert_allclose(got, want, rtol=ROUNDING, atol=ROUNDING)


def test_the_trip_count_as_an_argument_under_jit() -> None:
    gradient = jax.jit(bp.grad(lambda x, n: jnp.sum(powers(x, n)), max_steps=8))
    x = jnp.asarray([0.3, 1.2])
    for n in (0, 3, 8):
        want = jax.grad(lambda x, n=n: jnp.sum(powers_scanned(x, n)))(x)
        np.testing.assert_allclose(gradient(x, n), want, rtol=ROUNDING, atol=ROUNDING)


def test_under_vmap_each_row_takes_its_own_number_of_steps() -> None:
    starts = jnp.asarray([2.0, 5.0, 200.0, 1.5])
    got = jax.vmap(bp.grad(squared_until, max_steps=6))(starts)
    # 2⁸, 5⁴, one step less than none, 1.5¹⁶
    np.testing.assert_allclose(got, [8 * 2.0**7, 4 * 5.0**3, 1.0, 16 * 1.5**15], rtol=ROUNDING)
    inside = bp.grad(lambda x: jnp.sum(jax.vmap(squared_until)(x)), max_steps=6)
    np.testing.assert_allclose(jax.jit(inside)(starts), got, rtol=ROUNDING)
    mapped = lambda x: jax.vmap(squared_until)(x)
    ones = jnp.ones(4)
    np.testing.assert_allclose(bp.jvp(mapped, (starts,), (ones,))[1], got, rtol=ROUNDING)
    with pytest.raises(Exception, match="max_steps=3"):  # the last row takes four
        jax.block_until_ready(bp.grad(lambda x: jnp.sum(mapped(x)), max_steps=3)(starts))
        jax.effects_barrier()


def test_second_order() -> None:
    twice = bp.grad(bp.grad(squared_until, max_steps=4), max_steps=4)
    np.testing.assert_allclose(twice(2.0), 56 * 2.0**6, rtol=ROUNDING)  # (x⁸)″
    np.testing.assert_allclose(jax.jit(twice)(2.0), 56 * 2.0**6, rtol=ROUNDING)
    outer = jax.jit(jax.grad(bp.grad(squared_until, max_steps=4)))  # what it made is scan and cond
    np.testing.assert_allclose(outer(2.0), 56 * 2.0**6, rtol=ROUNDING)


def test_inside_a_scan() -> None:
    def total(x: Any, loop: Any) -> Any:
        return jnp.sum(lax.scan(lambda c, k: (c, loop(k * x)), 0.0, jnp.asarray([1.0, 3.0]))[1])

    got = bp.grad(lambda x: total(x, squared_until), max_steps=5)(2.0)
    np.testing.assert_allclose(got, 8 * 2.0**7 + 3 * 4 * 6.0**3, rtol=ROUNDING)  # x⁸, (3x)⁴


def test_a_closed_over_value_gets_its_cotangent() -> None:
    scaled = lambda x: lax.while_loop(lambda v: v < 50.0, lambda v: v * x, 1.0)
    assert bp.grad(scaled, max_steps=10)(3.0) == 4 * 3.0**3  # 1, 3, 9, 27, 81


# --- the bound ----------------------------------------------------------------------------------


def test_a_passed_bound_is_an_error() -> None:
    with pytest.raises(Exception) as caught:
        jax.block_until_ready(bp.grad(squared_until, max_steps=2)(2.0))
        jax.effects_barrier()
    assert_says_bound(caught.value)


def test_a_passed_bound_is_an_error_under_jit() -> None:
    with pytest.raises(Exception) as caught:
        jax.block_until_ready(jax.jit(bp.grad(squared_until, max_steps=2))(2.0))
        jax.effects_barrier()
    assert_says_bound(caught.value)


def assert_says_bound(error: BaseException) -> None:
    """Outside ``jit`` it is our exception; a compiled program gives its text in JAX's own."""
    assert isinstance(error, StepBoundError) or "StepBoundError" in str(error), repr(error)
    for part in ("max_steps=2", "larger max_steps"):
        assert part in str(error)


def test_no_bound_names_the_line() -> None:
    with pytest.raises(MissingRuleError) as caught:
        bp.grad(squared_until)(2.0)
    for part in (f"test_loops.py:{LINE}", "lax.while_loop", "max_steps="):
        assert part in str(caught.value)


def test_forward_mode_needs_no_bound() -> None:
    out, dot = bp.jvp(squared_until, (2.0,), (1.5,))
    want = jax.jvp(squared_until, (2.0,), (1.5,))
    np.testing.assert_allclose((out, dot), want, rtol=ROUNDING)
    np.testing.assert_allclose(bp.jacfwd(squared_until)(2.0), 8 * 2.0**7, rtol=ROUNDING)


def test_the_value_alone_needs_no_bound() -> None:
    loss = lambda x: x * squared_until(lax.stop_gradient(x))
    assert bp.grad(loss)(2.0) == 256.0


# --- static trip counts ---------------------------------------------------------------------------

X = jnp.asarray([0.3, -0.7])


def counted(x: Any) -> Any:
    """Five steps: the counter starts from a literal, whatever else the state holds."""
    return lax.while_loop(lambda s: s[0] < 5, lambda s: (s[0] + 1, jnp.sin(s[1])), (0, x))[1]


def by_twos(x: Any) -> Any:
    return lax.while_loop(lambda s: s[0] < 40, lambda s: (2 * s[0], jnp.sin(s[1])), (2, x))[1]


def two_counters(x: Any) -> Any:
    def step(s: Any) -> Any:
        i, limit, v = s
        return i + limit, limit - 1, jnp.sin(v)

    return lax.while_loop(lambda s: s[0] < 13, step, (0, 5, x))[2]


def dead_code_in_the_condition(x: Any) -> Any:
    return lax.while_loop(
        lambda s: (s[1] * 2, s[0] < 5)[1], lambda s: (s[0] + 1, jnp.sin(s[1])), (0, x)
    )[1]


def static_fori(x: Any) -> Any:
    return lax.fori_loop(1, 5, lambda i, v: jnp.sin(v) * i, x)


STATIC = {
    "counter": (counted, 5),
    "doubling": (by_twos, 5),
    "two counters": (two_counters, 4),
    "dead code": (dead_code_in_the_condition, 5),
}


@pytest.mark.parametrize("name", STATIC)
def test_a_static_trip_count_needs_no_bound(name: str) -> None:
    function, n = STATIC[name]
    scanned = lambda x: lax.scan(lambda v, _: (jnp.sin(v), None), x, None, length=n)[0]
    got = bp.grad(lambda x: jnp.sum(function(x)))(X)
    want = jax.grad(lambda x: jnp.sum(scanned(x)))(X)
    np.testing.assert_allclose(got, want, rtol=ROUNDING)


def test_fori_loop_with_numbers_as_limits() -> None:
    got = bp.grad(lambda x: jnp.sum(static_fori(x)))(X)
    np.testing.assert_allclose(got, jax.grad(lambda x: jnp.sum(static_fori(x)))(X), rtol=ROUNDING)


def test_a_static_while_inside_jit_and_vmap() -> None:
    gradient = bp.grad(lambda x: counted(x))
    want = jax.grad(lambda x: lax.fori_loop(0, 5, lambda _, v: jnp.sin(v), x))
    np.testing.assert_allclose(jax.jit(jax.vmap(gradient))(X), [want(x) for x in X], rtol=ROUNDING)


# --- memory -------------------------------------------------------------------------------------


def residual_bytes(n: int, bounded: bool) -> int:
    """What the pullback of n steps on a state of a thousand numbers holds."""

    def loop(x: Any, steps: Any) -> Any:
        return lax.fori_loop(0, steps, lambda _, v: jnp.sin(v), x)

    x = jnp.linspace(0.1, 1.0, 1000)
    if bounded:  # an argument: the loop cannot know how many steps it will take
        pullback = bp.vjp(loop, x, 3, max_steps=n, staged=True)[1]
    else:
        pullback = bp.vjp(lambda x: loop(x, n), x, staged=True)[1]
    leaves = {id(leaf): leaf.nbytes for leaf in jax.tree.leaves(pullback)}
    return sum(leaves.values())


def test_a_bounded_loop_keeps_its_square_root() -> None:
    state = 8 * 1000
    small, large = residual_bytes(100, True), residual_bytes(10_000, True)
    # One state per segment of √n steps, and a little bookkeeping: 10 and 100 states.
    assert 10 * state <= small <= 14 * state
    assert 8 * small <= large <= 12 * small


def test_a_static_loop_keeps_every_step() -> None:
    """So the comparison above can fail."""
    assert residual_bytes(200, False) >= 15 * residual_bytes(10, False)
