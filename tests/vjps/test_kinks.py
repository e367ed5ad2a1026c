"""The frozen table of gradients at points without a derivative: literal numbers, as jax.grad's."""

# ruff: noqa: E501  (the table is aligned)

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from measuring import compiled
from sampling import sampled

import functional_bp as bp

inf, nan = np.inf, np.nan

# jnp.hypot was a formula of max and min, and has a derivative of its own since.
HYPOT = (0.5, 0.5) if jax.__version_info__ < (0, 11) else (nan, nan)


class Point(NamedTuple):
    """A function whose outputs are summed, a point, and the gradient of every float argument."""

    name: str
    function: Any
    at: tuple[Any, ...]
    gradient: tuple[Any, ...]


# fmt: off
TABLE = [
    Point("max, tie",                 lax.max,                          (1.0, 1.0),           (0.5, 0.5)),
    Point("min, tie",                 lax.min,                          (1.0, 1.0),           (0.5, 0.5)),
    Point("maximum(x, 0) at 0",       lambda x: jnp.maximum(x, 0.0),    (0.0,),               (0.5,)),
    Point("minimum(x, 0) at 0",       lambda x: jnp.minimum(x, 0.0),    (0.0,),               (0.5,)),
    Point("relu at 0",                jax.nn.relu,                      (0.0,),               (0.0,)),
    Point("relu6 at 0",               jax.nn.relu6,                     (0.0,),               (0.0,)),
    Point("leaky_relu at 0",          jax.nn.leaky_relu,                (0.0,),               (1.0,)),
    Point("elu at 0",                 jax.nn.elu,                       (0.0,),               (1.0,)),
    Point("abs at 0",                 lax.abs,                          (0.0,),               (1.0,)),
    Point("sign at 0",                lax.sign,                         (0.0,),               (0.0,)),
    Point("sqrt at 0",                lax.sqrt,                         (0.0,),               (inf,)),
    Point("cbrt at 0",                lax.cbrt,                         (0.0,),               (inf,)),
    Point("log at 0",                 lax.log,                          (0.0,),               (inf,)),
    Point("norm at 0",                jnp.linalg.norm,                  ([0.0, 0.0],),        ([nan, nan],)),
    Point("hypot at 0, 0",            jnp.hypot,                        (0.0, 0.0),           HYPOT),
    Point("x**0. at 0",               lambda x: x ** jnp.float64(0.0),  (0.0,),               (nan,)),
    Point("x**0 at 0",                lambda x: x ** 0,                 (0.0,),               (0.0,)),
    Point("x**1 at 0",                lambda x: x ** 1,                 (0.0,),               (1.0,)),
    Point("x**y at 0, 2",             lax.pow,                          (0.0, 2.0),           (0.0, 0.0)),
    Point("atan2 at 0, 0",            lax.atan2,                        (0.0, 0.0),           (nan, nan)),
    Point("clamp at its lower bound", lambda x: lax.clamp(0.0, x, 1.0), (0.0,),               (0.0,)),
    Point("clamp at its upper bound", lambda x: lax.clamp(0.0, x, 1.0), (1.0,),               (0.0,)),
    Point("clip at its lower bound",  lambda x: jnp.clip(x, 0.0, 1.0),  (0.0,),               (0.5,)),
    Point("clip at its upper bound",  lambda x: jnp.clip(x, 0.0, 1.0),  (1.0,),               (0.5,)),
    Point("reduce_max, tie of two",   jnp.max,                          ([1.0, 3.0, 3.0],),   ([0.0, 0.5, 0.5],)),
    Point("reduce_min, tie of three", jnp.min,                          ([2.0, 2.0, 2.0],),   ([1/3, 1/3, 1/3],)),
    Point("sort, tie",                lambda x: jnp.sort(x)[:1],        ([1.0, 1.0, 2.0],),   ([1.0, 0.0, 0.0],)),
    Point("top_k, tie",               lambda x: lax.top_k(x, 1)[0],     ([2.0, 2.0, 1.0],),   ([1.0, 0.0, 0.0],)),
    Point("cummax, tie",              lambda x: lax.cummax(x)[1:],      ([1.0, 1.0],),        ([0.5, 0.5],)),
    Point("max pool, tie",            lambda x: lax.reduce_window(
        x, -np.inf, lax.max, (2,), (2,), "VALID"),                      ([4.0, 4.0],),        ([1.0, 0.0],)),
    Point("prod with one zero",       jnp.prod,                         ([2.0, 0.0, 3.0],),   ([0.0, 6.0, 0.0],)),
    Point("prod with two zeros",      jnp.prod,                         ([2.0, 0.0, 0.0],),   ([0.0, 0.0, 0.0],)),
    Point("cumprod with a zero",      jnp.cumprod,                      ([2.0, 0.0, 3.0],),   ([1.0, 8.0, 0.0],)),
    Point("logsumexp of all -inf",    jax.nn.logsumexp,                 ([-inf, -inf],),      ([nan, nan],)),
    Point("floor at an integer",      lax.floor,                        (2.0,),               (0.0,)),
    Point("round at a half",          lax.round,                        (2.5,),               (0.0,)),
    Point("where(x > 0) at 0",        lambda x: jnp.where(x > 0, x, 2 * x), (0.0,),           (2.0,)),
    Point("rem at a multiple",        lax.rem,                          (4.0, 2.0),           (1.0, -2.0)),
    Point("scatter-max, tie",         lambda x, u: x.at[0].max(u),      ([1.0, 5.0], 1.0),    ([0.5, 1.0], 0.5)),
    Point("scatter, duplicates",      lambda u: jnp.zeros(2).at[
        jnp.array([1, 1])].set(u),                                      ([7.0, 8.0],),        ([0.0, 1.0],)),
    Point("erf_inv at 1",             lax.erf_inv,                      (1.0,),               (inf,)),
    Point("acos at 1",                lax.acos,                         (1.0,),               (-inf,)),
    Point("complex abs at 0",         lambda x: jnp.abs(lax.complex(x, 0 * x)), (0.0,),       (0.0,)),
    Point("eigenvectors, degenerate", lambda x: jnp.linalg.eigh(x)[1][0, 0],
                                      ([[1.0, 0.0], [0.0, 1.0]],),      ([[nan, nan], [nan, nan]],)),
    Point("eigenvalues, degenerate",  lambda x: jnp.linalg.eigvalsh(x), ([[1.0, 0.0], [0.0, 1.0]],),
                                                                        ([[1.0, 0.0], [0.0, 1.0]],)),
    Point("cholesky is symmetrised",  lambda x: jnp.linalg.cholesky(x)[1, 0], ([[1.0, 0.5], [0.5, 1.0]],),
                                                                        ([[-0.25, 0.5], [0.5, 0.0]],)),
]
# fmt: on

IDS = [point.name for point in TABLE]


def gradient_at(grad: Any, point: Point, at: Any) -> tuple[Any, ...]:
    args = [jnp.asarray(x, jnp.float64) for x in at]
    summed = lambda *args: jnp.sum(point.function(*args))
    return grad(summed, tuple(range(len(args))))(*args)


@cache
def gradients(grad: Any) -> dict[str, Any]:
    """At every point, in one compilation."""
    ats = [[jnp.asarray(x, jnp.float64) for x in point.at] for point in TABLE]
    every = lambda ats: [gradient_at(grad, point, at) for point, at in zip(TABLE, ats)]
    return dict(zip(IDS, compiled(every)(ats)))


def near(found: Any, point: Point) -> None:
    for got, want in zip(found, point.gradient, strict=True):
        # One or two roundings at most: these numbers are halves, thirds and integers.
        np.testing.assert_allclose(got, want, rtol=4e-16, atol=1e-300)


@pytest.mark.parametrize("point", TABLE, ids=IDS)
def test_gradient_at_the_kink(point: Point) -> None:
    near(gradients(bp.grad)[point.name], point)


@pytest.mark.parametrize("point", TABLE, ids=IDS)
def test_the_table_is_what_jax_does(point: Point) -> None:
    near(gradients(jax.grad)[point.name], point)


@pytest.mark.parametrize("point", sampled(TABLE, 8), ids=IDS)
def test_gradient_at_the_kink_without_jit(point: Point) -> None:
    near(gradient_at(bp.grad, point, point.at), point)


def test_integers_have_float0_cotangents() -> None:
    _, pullback = bp.vjp(lambda n, x: n * x, 3, 2.0)
    n_bar, x_bar = pullback(1.0)
    assert n_bar.dtype == jax.dtypes.float0 and x_bar == 3.0


def test_complex_gradient_is_the_conjugate_of_the_steepest_ascent() -> None:
    square = lambda z: jnp.real(z) ** 2 + jnp.imag(z) ** 2
    assert bp.grad(square)(1.0 + 2.0j) == 2.0 - 4.0j


def test_cotangent_dtype_is_the_arguments_even_through_a_wider_product() -> None:
    x = jnp.ones((2, 2), jnp.bfloat16)
    wide = lambda x: lax.dot(x, x, preferred_element_type=jnp.float32).sum()
    assert bp.grad(wide)(x).dtype == jnp.bfloat16


def test_an_operand_of_max_that_the_compiler_rounds_otherwise_when_it_computes_it_again() -> None:
    """Compared with the maximum, neither operand would be equal to it."""
    low = -jnp.exp(0.4 * jnp.asarray(np.random.default_rng(3).normal(size=3)))

    def sample_and_slope(low: Any) -> Any:
        draw = lambda low: jax.random.truncated_normal(jax.random.key(0), low, high)
        sample, pullback = bp.vjp(draw, low)
        return sample, pullback(jnp.array([0.13, -0.13, 0.64]))[0]

    high = -low
    quick = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    compiled = jax.jit(sample_and_slope, compiler_options=quick)
    for got, want in zip(compiled(low), sample_and_slope(low)):
        np.testing.assert_allclose(got, want, rtol=1e-12)  # the same operations, but rounding


def test_a_changed_convention_would_be_noticed() -> None:
    other = TABLE[IDS.index("relu at 0")]._replace(function=lambda x: jnp.maximum(x, 0.0))
    with pytest.raises(AssertionError):
        near(gradient_at(jax.grad, other, other.at), other)
