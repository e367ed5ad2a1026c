"""Elementwise operations of several operands are sums, products, powers, choices and the like.

The engine sums a cotangent over the axes that a scalar operand was broadcast along.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.lax import add, div, mul, neg, square, sub

from functional_bp import _jax
from functional_bp.engine.improvements import improvement
from functional_bp.engine.rule import boolean, case, cplx, integer, pointwise, real, rule
from functional_bp.vjps.elementwise import constant


def times(z_bar: Any, factor: Any) -> Any:
    """``times`` is z̄ · factor in z̄'s dtype, which differs where ``mul`` was given an
    ``out_dtype``.
    """
    if factor.dtype != z_bar.dtype:
        factor = lax.convert_element_type(factor, z_bar.dtype)
    return mul(z_bar, factor)


def pull_divisor(z_bar: Any, x: Any, y: Any) -> Any:
    """z = x/y has x̄ = z̄/y and ȳ = −z̄ x/y².

    Derivation: z y = x gives ż y + z ẏ = ẋ, so ż = ẋ/y − x ẏ/y².

    Numerics: where y was broadcast, a compiler takes 1/y² out of the sum over the copies. In half
    precision y² over- or underflows long before the result does, so both factors are divided.
    """
    if z_bar.dtype.itemsize == 2:
        return neg(mul(div(z_bar, y), div(x, y)))
    return neg(mul(mul(z_bar, lax.integer_pow(y, -2)), x))


pointwise(lax.add_p, "x, y -> z", x=lambda z_bar: z_bar, y=lambda z_bar: z_bar,
     why="z = x + y, ż = ẋ + ẏ",
     cases=[case(lax.add, real(3), real(3)), case(lax.add, cplx(2), cplx(2)),
            case(lambda x, y: lax.add_p.bind(x, y), real(3), real(), note="a scalar operand")])
pointwise(_jax.find_primitive("ad_util.add_any_p"), "x, y -> z",
     x=lambda z_bar: z_bar, y=lambda z_bar: z_bar,
     why="z = x + y, ż = ẋ + ẏ",
     cases=[case(lambda x, y: _add_any.bind(x, y), real(3), real(3))])
pointwise(lax.sub_p, "x, y -> z", x=lambda z_bar: z_bar, y=lambda z_bar: neg(z_bar),
     why="z = x − y, ż = ẋ − ẏ",
     cases=[case(lax.sub, real(3), real(3)), case(lax.sub, cplx(2), cplx(2)),
            case(lambda x, y: lax.sub_p.bind(x, y), real(), real(3), note="a scalar operand")])
pointwise(lax.mul_p, "x, y -> z",
     x=lambda z_bar, y: times(z_bar, y), y=lambda z_bar, x: times(z_bar, x),
     why="z = x y, ż = ẋ y + x ẏ",
     cases=[case(lax.mul, real(3), real(3)), case(lax.mul, cplx(2), cplx(2)),
            case(lax.mul, real(0), real(0)),
            case(lambda x, y: lax.mul(x, y), real(3), real(), note="a scalar operand"),
            case(lambda x, y: lax.mul(x.astype(jnp.bfloat16), y.astype(jnp.bfloat16),
                                      out_dtype=jnp.float32).astype(x.dtype),
                 real(values=[1.0, 2.0]), real(values=[3.0, -0.5]), second_order=False,
                 half=False, note="out_dtype")])
pointwise(lax.div_p, "x, y -> z",
     x=lambda z_bar, y: div(z_bar, y), y=lambda z_bar, x, y: pull_divisor(z_bar, x, y),
     why=pull_divisor.__doc__ or "", kinks="y = 0: ±inf or nan",
     cases=[case(lax.div, real(3), real(3, low=0.5)), case(lax.div, cplx(2), cplx(2, low=0.5)),
            case(lax.div, real(), real(3, low=0.5), note="a scalar operand")])
improvement("division of small numbers in half precision", lax.div, at=(1e-3, 2e-3), wrt=1,
            true=-250.0, jax="-inf: −x/y² with y² below the smallest float16",
            source="−x/y² = −0.001/0.002²", dtype="float16", rtol=4e-3)
pointwise(lax.nextafter_p, "x, y -> z", x=lambda z_bar: z_bar,
     why="z is x moved by one unit in the last place towards y: a step in y, x and a step in x",
     kinks="x = y: x̄ = z̄ as elsewhere",
     cases=[case(lax.nextafter, real(3), real(3), reference=lambda x, y: x + 0 * y,
                 note="JAX 0.10 has no rule")])
improvement("nextafter", lax.nextafter, at=(1.5, 2.0), true=1.0, jax="raises in JAX 0.10",
            source="nextafter(x, y) − x is constant between powers of two")
pointwise(lax.rem_p, "x, y -> z",
     x=lambda z_bar: z_bar, y=lambda z_bar, x, y: neg(mul(z_bar, quotient(x, y))),
     why="z = x − y trunc(x/y), and trunc is piecewise constant",
     kinks="x a multiple of y: as on the side of the larger quotient",
     cases=[case(lax.rem, real(3, low=3, high=5), real(3, low=0.8, high=2)),
            case(lax.rem, real(values=[-5.3, 4.1]), real(values=[2.0, -1.3])),
            case(lax.rem, real(values=[4.0]), real(values=[2.0]), note="a multiple")])
rule(lax.complex_p, "x, y -> z", linear="x, y",
     x=lambda z_bar: lax.real(z_bar), y=lambda z_bar: neg(lax.imag(z_bar)),
     why="z = x + i y: Re(z̄ ż) = Re z̄ ẋ − Im z̄ ẏ",
     cases=[case(lax.complex, real(3), real(3), half=False, note="no half-precision complex")])

_add_any: Any = _jax.find_primitive("ad_util.add_any_p")


def quotient(x: Any, y: Any) -> Any:
    """quotient(x, y) = trunc(x/y)."""
    ratio = div(x, y)
    return mul(lax.sign(ratio), lax.floor(lax.abs(ratio)))


def pull_atan2(z_bar: Any, first: Any, second: Any) -> Any:
    """z̄ · second/(first² + second²) is x̄ with (x, y), and −ȳ with (y, x).

    Derivation:

        z = atan2(x, y) is the angle of the point (y, x) = r (cos z, sin z):
        x = r sin z, y = r cos z,  y ẋ − x ẏ = r² ż,  r² = x² + y²

    Numerics: in half precision r² is formed in float32, where it cannot over- or underflow.
    """
    if z_bar.dtype.itemsize == 2:
        wide = jnp.float32
        first, second = (lax.convert_element_type(v, wide) for v in (first, second))
        z_bar = lax.convert_element_type(z_bar, wide)
    return mul(z_bar, div(second, add(square(first), square(second))))


pointwise(lax.atan2_p, "x, y -> z",
     x=lambda z_bar, x, y: pull_atan2(z_bar, x, y),
     y=lambda z_bar, x, y: neg(pull_atan2(z_bar, y, x)),
     why=pull_atan2.__doc__ or "", kinks="(0, 0): nan",
     cases=[case(lax.atan2, real(4), real(4)), case(lax.atan2, cplx(2), cplx(2)),
            case(lax.atan2, real(3), real(), note="a scalar operand")])
improvement("atan2 of large numbers in half precision", lax.atan2, at=(300.0, 300.0),
            true=1 / 600, jax="0.0: x² + y² overflows", source="y/(x² + y²) = 300/180000",
            dtype="float16", rtol=2e-3)


def _chosen(choose: Any, precedes: Any) -> Any:
    """The forward sweep of max and min also says which operand was chosen: 1 = x, 2 = y, 3 = both.

    Numerics: x and y are compared with each other, not with z: a compiler may compute x once for z
    and once more, otherwise rounded, for the comparison, and then neither equals z.
    """

    def forward(x: Any, y: Any, **params: Any) -> tuple[Any, Any]:
        z = choose.bind(x, y, **params)
        real = z.dtype.kind != "c"  # complex numbers have an order here, but no comparison
        flags = (precedes(x, y), precedes(y, x)) if real else (lax.eq(x, z), lax.eq(y, z))
        is_x, is_y = (lax.convert_element_type(flag, jnp.int8) for flag in flags)
        return z, add(is_x, add(is_y, is_y))

    return forward


def pull_chosen(z_bar: Any, chosen: Any, operand: int) -> Any:
    """z̄ where the operand was chosen, ½ z̄ at a tie, else 0.

    Derivation:

        max(x, y) = x where x > y, else y: the derivative is that of the operand chosen. At a tie
        ½, the mean of the two one-sided derivatives, which keeps the sum of both cotangents z̄.

    Residuals: one byte an element.

    Kinks: x = y: ½ and ½; a nan in either: 0 and 0.
    """
    is_tie = lax.eq(chosen, constant(3, chosen))
    is_this = lax.eq(chosen, constant(operand, chosen))
    half = mul(z_bar, constant(0.5, z_bar))
    return lax.select(is_this, z_bar, lax.select(is_tie, half, lax.full_like(z_bar, 0)))


for _function, _primitive, _precedes in (
    (lax.max, lax.max_p, lax.ge), (lax.min, lax.min_p, lax.le),
):
    pointwise(
        _primitive,
        "x, y -> z | chosen",
        x=lambda z_bar, chosen: pull_chosen(z_bar, chosen, 1),
        y=lambda z_bar, chosen: pull_chosen(z_bar, chosen, 2),
        forward=_chosen(_primitive, _precedes),
        why=pull_chosen.__doc__ or "",
        kinks="x = y: ½ and ½; a nan in either: 0 and 0",
        cases=[
            case(_function, real(4), real(4)),
            case(_function, real(values=[1.0, 0.0, -1.0]), real(values=[1.0, -0.0, 2.0]),
                 note="ties"),
            case(lambda x, f=_function: f(x, jnp.zeros((), x.dtype)), real(values=[-1.0, 0.0, 2.0]),
                 note="a constant operand"),
            case(_function, real(3), real(), note="a scalar operand"),
        ],
    )


def _clamped(low: Any, x: Any, high: Any, **params: Any) -> tuple[Any, Any]:
    below = lax.bitwise_and(lax.gt(low, x), lax.lt(low, high))
    inside = lax.bitwise_and(lax.gt(x, low), lax.lt(x, high))
    return lax.clamp_p.bind(low, x, high, **params), (below, inside, lax.lt(high, x))


def _clamp_alike(low: Any, x: Any, high: Any) -> Any:
    """``lax.clamp`` is given bounds of x's shape here, which JAX differentiates."""
    return lax.clamp(lax.broadcast(low, x.shape), x, lax.broadcast(high, x.shape))


def where(condition: Any, y_bar: Any) -> Any:
    """ȳ where the condition holds, else 0."""
    return lax.select(condition, y_bar, lax.full_like(y_bar, 0))


pointwise(lax.clamp_p, "low, x, high -> y | below, inside, above",
     low=lambda y_bar, below: where(below, y_bar),
     x=lambda y_bar, inside: where(inside, y_bar),
     high=lambda y_bar, above: where(above, y_bar), forward=_clamped,
     why="y is whichever of low, x and high it was taken from; that choice alone is kept, one "
         "byte an element", kinks="x at a bound: 0 for all three",
     cases=[case(lax.clamp, real(), real(5), real(low=2, high=3), reference=_clamp_alike,
                 note="JAX raises for the cotangent of a scalar bound"),
            case(lax.clamp, real(4, low=-1, high=0), real(4), real(4, low=0.1, high=1)),
            case(lambda x: lax.clamp(jnp.asarray(-1, x.dtype), x, jnp.asarray(1, x.dtype)),
                 real(values=[-2.0, -1.0, 0.3, 1.0, 2.0]), note="at the bounds"),
            case(lax.clamp, real(values=1.0), real(values=[0.0, 2.0]), real(values=-1.0),
                 reference=_clamp_alike, note="crossed bounds")])


def pull_base(z_bar: Any, x: Any, y: Any) -> Any:
    """x̄ = z̄ · y x^(y − 1), and 0 where y is an integer type's 0.

    Derivation:

        z = e^(y ln x),  ∂z/∂x = z y/x = y x^(y − 1)

    Kinks: 0^0. is nan for a real y (0 · inf) and 0 for an integer type's y.
    """
    exponent = lax.convert_element_type(y, x.dtype)
    slope = mul(exponent, lax.pow(x, sub(exponent, constant(1, x))))
    if y.dtype.kind in "iu":
        is_zero = lax.broadcast_in_dim(lax.eq(y, constant(0, y)), slope.shape, range(y.ndim))
        slope = lax.select(is_zero, lax.full_like(slope, 0), slope)
    return mul(z_bar, slope)


def pull_exponent(z_bar: Any, x: Any, z: Any) -> Any:
    """ȳ = z̄ · z ln x.

    Derivation:

        z = e^(y ln x),  ∂z/∂y = z ln x

    Kinks: x = 0: 0 (ln 0 is replaced by 0, for z is 0 there); x < 0: nan.
    """
    is_zero = lax.eq(x, constant(0, x))
    safe = lax.select(is_zero, lax.full_like(x, 1), x)
    return mul(z_bar, mul(lax.log(safe), z))


def pull_power(z_bar: Any, x: Any, *, y: int) -> Any:
    """x̄ = z̄ · y x^(y − 1) with an integer y known beforehand, nothing if y = 0."""
    if y == 0:
        return None
    if y == 1:
        return z_bar
    lower = x if y == 2 else lax.integer_pow(x, y - 1)
    return mul(z_bar, mul(constant(y, x), lower))


def pull_case(y_bar: Any, which: Any, xs_t: Any, index: int) -> Any:
    """x̄ᵢ = ȳ where case i was taken, else 0."""
    if len(xs_t) == 1:
        return y_bar
    if which.dtype == bool:
        return where(which if index else lax.bitwise_not(which), y_bar)
    last = constant(len(xs_t) - 1, which)
    return where(lax.eq(lax.clamp(constant(0, which), which, last), constant(index, which)), y_bar)


_polynomial: Any = getattr(lax, "polynomial", None)  # JAX 0.12


def pull_point(y_bar: Any, x: Any, coefficients: Any, *, unroll: int | None = None) -> Any:
    """x̄ = ȳ Σₖ k aₖ xᵏ⁻¹, again by Horner's rule."""
    slopes = [mul(constant(k, a), a) for k, a in enumerate(coefficients)]
    return mul(y_bar, _polynomial(x, slopes[1:], unroll=unroll))


def pull_coefficient(y_bar: Any, x: Any, index: int) -> Any:
    """āₖ = ȳ xᵏ, as k products, which a compiler shares between the coefficients."""
    for _ in range(index):
        y_bar = mul(y_bar, x)
    return y_bar


pointwise(lax.pow_p, "x, y -> z", x=pull_base, y=pull_exponent,
     cases=[case(lax.pow, real(3, low=0.2, high=3), real(3)), case(lax.pow, cplx(2), cplx(2)),
            case(lax.pow, real(4), integer(4)),
            case(lax.pow, real(values=[0.0, 0.0, 1.3]), integer(values=[0, 3, 0]),
                 second_order=False, note="integer exponents at 0"),
            case(lax.pow, real(values=[0.0, 0.0, 2.0]), real(values=[0.0, 2.0, 0.0]),
                 second_order=False, note="the kinks"),
            case(lambda x, y: lax.pow_p.bind(x, y), real(3, low=0.2), real(), note="a scalar")])
pointwise(lax.integer_pow_p, "x -> z", x=pull_power,
     kinks="x = 0: 0 for y = 0, ±inf or nan for y < 0",
     cases=[case(lambda x, y=y: lax.integer_pow(x, y), real(3, low=0.5))
            for y in (-2, -1, 0, 1, 2, 3, 5)] + [
            case(lambda x: lax.integer_pow(x, 3), cplx(2)),
            case(lambda x: lax.integer_pow(x, 3), real(values=[0.0, -1.0]))])
rule(_jax.find_primitive("lax.lax.polynomial_p"), "x, *coefficients -> y",
     x=pull_point, coefficients=pull_coefficient, why="y = Σₖ aₖ xᵏ",
     cases=[case(lambda x, a, b, c: _polynomial(x, [a, b, c]), *4 * [real(3)]),
            case(lambda x: _polynomial(x, [1.0, -2.0, 0.0, 0.5]), real(3), note="of numbers"),
            case(lambda x, a, b: _polynomial(x, [a, b]), real(3), real(), real(3),
                 note="a straight line"),
            case(lambda x, a, b, c: _polynomial(x, [a, b, c, a], unroll=2), *4 * [cplx(2)])])
rule(lax.select_n_p, "which, *xs -> y", linear="xs", xs=pull_case,
     why="y is a copy of one of the cases", kinks="none: which has no tangent space",
     cases=[case(lax.select_n, boolean(4), real(4), real(4)),
            case(lax.select_n, boolean(), real(4), real(4), note="a scalar predicate"),
            case(lambda x, y: lax.select_n(True, x, y), real(4), real(4), note="a literal"),
            case(lax.select_n, integer(4, high=3), real(4), real(4), real(4)),
            case(lax.select_n, boolean(4), cplx(4), cplx(4)),
            case(lax.select_n, boolean(4), real(4), reference=lambda which, x: x,
                 note="a single case, at which JAX 0.10 raises")])
improvement("clamp with a scalar bound", lax.clamp, at=(1.0, [0.0, 2.0, 9.0], 3.0), wrt=0, true=1.0,
            jax="raises: its cotangent is not summed to the bound's shape",
            source="one of the three values is the lower bound")
