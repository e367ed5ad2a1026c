"""Special functions of one operand: error function, log-gamma and digamma, Bessel functions."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.lax import div, exp, mul, neg, square, sub

from functional_bp.cases import case, real
from functional_bp.rule import pointwise
from functional_bp.rules.elementwise import constant
from functional_bp.rules.improvements import improvement


def trigamma(x: Any) -> Any:
    """ψ′(x), right for negative x too.

    Derivation:

        Γ(x) Γ(1 − x) = π/sin πx;  twice the logarithmic derivative, and once more:
        ψ(1 − x) − ψ(x) = π cot πx,  ψ′(x) + ψ′(1 − x) = π²/sin² πx

        so ψ′ at x < 0 follows from ψ′ at 1 − x > 1. The sine is taken of π(x − round x).

    Numerics: JAX's polygamma sums the series of ζ(2, x) from x on, which fails below x = −8.
    """
    is_negative = lax.lt(x, constant(0, x))
    mirrored = lax.select(is_negative, sub(constant(1, x), x), x)
    right = lax.polygamma(lax.full_like(x, 1), mirrored)
    off = sub(x, lax.stop_gradient(lax.round(x)))
    off = lax.select(is_negative, off, lax.full_like(x, 0.5))
    csc = div(constant(np.pi, x), lax.sin(mul(constant(np.pi, x), off)))
    return lax.select(is_negative, sub(square(csc), right), right)


def pull_bessel_i0e(y_bar: Any, x: Any, y: Any) -> Any:
    """x̄ = ȳ (e^(−|x|) I₁(x) − sign(x) y).

    Derivation:

        y = e^(−|x|) I₀(x),  I₀′ = I₁,  (e^(−|x|))′ = −sign(x) e^(−|x|)

    Kinks: at x = 0 the derivative from the right, −1, as that of |x| is 1: the smooth functions
    of which it is a factor, e^|x| y = I₀(x) and ln y + x, have their derivative at 0.
    """
    is_right = lax.ge(x, constant(0, x))
    return mul(y_bar, sub(lax.bessel_i1e(x), lax.select(is_right, y, neg(y))))


def pull_bessel_i1e(y_bar: Any, x: Any, y: Any) -> Any:
    """x̄ = ȳ (e^(−|x|) I₀(x) − y (sign x + 1/x)).

    Derivation:

        I₁′ = I₀ − I₁/x,  (e^(−|x|))′ = −sign(x) e^(−|x|)

    Kinks: at x = 0 the limit ½, since I₁(x) = x/2 + O(x³).
    """
    tiny = constant(float(jnp.finfo(x.dtype).eps), x)
    is_tiny = lax.le(lax.abs(x), tiny)
    safe = lax.select(is_tiny, lax.full_like(x, tiny), x)
    inverse = lax.add(lax.sign(safe), div(constant(1, x), safe))
    slope = sub(lax.bessel_i0e(safe), mul(y, inverse))
    return mul(y_bar, lax.select(is_tiny, lax.full_like(x, 0.5), slope))


# fmt: off
pointwise(lax.erf_p, "x -> y",
     x=lambda y_bar, x: mul(constant(2 / np.sqrt(np.pi), x), mul(y_bar, exp(neg(square(x))))),
     why="erf x = 2/√π ∫₀ˣ e^(−t²) dt",
     cases=[case(lax.erf, real(3))])
pointwise(lax.erfc_p, "x -> y",
     x=lambda y_bar, x: mul(constant(-2 / np.sqrt(np.pi), x), mul(y_bar, exp(neg(square(x))))),
     why="erfc x = 1 − erf x",
     cases=[case(lambda x: lax.erfc(x), real(3))])
pointwise(lax.erf_inv_p, "x -> y",
     x=lambda y_bar, y: mul(constant(np.sqrt(np.pi) / 2, y), mul(y_bar, exp(square(y)))),
     why="x = erf y, ẋ = 2/√π e^(−y²) ẏ", kinks="x = ±1: inf",
     cases=[case(lax.erf_inv, real(3, low=-0.9, high=0.9))])
pointwise(lax.lgamma_p, "x -> y", x=lambda y_bar, x: mul(y_bar, lax.digamma(x)),
     why="ψ = (ln |Γ|)′ by definition", kinks="x = 0, −1, −2, …: nan, as digamma",
     cases=[case(lax.lgamma, real(3, low=0.2, high=4)),
            case(lax.lgamma, real(values=[-0.4, -2.3, -4.7]), reference=lambda x: _lgamma_left(x),
                 note="negative; JAX's second derivative is imprecise")])
pointwise(lax.digamma_p, "x -> y", x=lambda y_bar, x: mul(y_bar, trigamma(x)),
     why=trigamma.__doc__ or "", kinks="x = 0: inf; x = −1, −2, …: inf",
     cases=[case(lax.digamma, real(3, low=0.2, high=4)),
            case(lax.digamma, real(values=[-0.4, -2.3, -10.3]), note="negative",
                 reference=lambda x: _digamma_left(x))])
pointwise(lax.bessel_i0e_p, "x -> y", x=pull_bessel_i0e, kinks="x = 0: −1, from the right",
     cases=[case(lax.bessel_i0e, real(3)), case(lax.bessel_i0e, real(2, low=-20, high=-9))])
pointwise(lax.bessel_i1e_p, "x -> y", x=pull_bessel_i1e,
     cases=[case(lax.bessel_i1e, real(3)), case(lax.bessel_i1e, real(2, low=9, high=20)),
            case(lax.bessel_i1e, real(values=[0.0]), second_order=False, note="at 0")])
# fmt: on


def _digamma_left(x: Any) -> Any:
    return lax.digamma(1 - x) - np.pi / jnp.tan(np.pi * x)


def _lgamma_left(x: Any) -> Any:
    return jnp.log(np.pi / jnp.abs(jnp.sin(np.pi * x))) - lax.lgamma(1 - x)


improvement("digamma at negative x", lax.digamma, at=(-10.3,), true=14.986887065722686726,
            jax="1.0e18: the series of ζ(2, x) starts left of its poles",
            source="mpmath: psi(1, -10.3)")  # fmt: skip
improvement("digamma at negative x, just beyond the series' start", lax.digamma, at=(-9.5,),
            true=9.769687445030231886, jax="-2.9e12", source="mpmath: psi(1, -9.5)")  # fmt: skip
improvement("I₀ at 0", jax.scipy.special.i0, at=(0.0,), true=0.0,
            jax="1.0: the kinks of e^|x| and of e^(−|x|) I₀ do not cancel",
            source="I₀′ = I₁, I₁(0) = 0")  # fmt: skip
