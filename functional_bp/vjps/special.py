"""The special functions are differentiated in their argument, and in their parameters too.

Of one operand there are the error function, log-gamma and digamma, and Bessel functions; of several
the incomplete beta and gamma functions, the Hurwitz zeta function and the polygamma functions.
"""

from __future__ import annotations

import inspect
import math
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.lax import div, exp, mul, neg, square, sub

from functional_bp import _jax
from functional_bp.engine import sweeps
from functional_bp.engine.higher_order import HigherOrder, of_jax
from functional_bp.engine.improvements import improvement
from functional_bp.engine.rule import case, pointwise, real
from functional_bp.vjps.elementwise import constant
from functional_bp.vjps.truncated import beta_slope, gamma_curvature, widen


def trigamma(x: Any) -> Any:
    """``trigamma`` is ψ′(x), right for negative x too.

    Derivation:

        Γ(x) Γ(1 − x) = π/sin πx;  twice the logarithmic derivative, and once more:
        ψ(1 − x) − ψ(x) = π cot πx,  ψ′(x) + ψ′(1 − x) = π²/sin² πx

        so ψ′ at x < 0 follows from ψ′ at 1 − x > 1. The sine is taken of π(x − round x).

    Numerics: JAX's polygamma sums the series of ζ(2, x) from x on, which fails below x = −8.

    References:
        DLMF 5.15.6, dlmf.nist.gov/5.15, has the reflection; derived above.
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


def _digamma_left(x: Any) -> Any:
    return lax.digamma(1 - x) - np.pi / jnp.tan(np.pi * x)


def _lgamma_left(x: Any) -> Any:
    return jnp.log(np.pi / jnp.abs(jnp.sin(np.pi * x))) - lax.lgamma(1 - x)


improvement("digamma at negative x", lax.digamma, at=(-10.3,), true=14.986887065722686726,
            jax="1.0e18: the series of ζ(2, x) starts left of its poles",
            source="mpmath: psi(1, -10.3)")
improvement("digamma at negative x, just beyond the series' start", lax.digamma, at=(-9.5,),
            true=9.769687445030231886, jax="-2.9e12", source="mpmath: psi(1, -9.5)")
class BesselI0(HigherOrder):
    """x̄ = ȳ I₁(x) = ȳ e^|x| · e^(−|x|) I₁(x), for y = I₀(x) as JAX's ``i0`` computes it.

    Derivation:

        I₀(x) = Σ (x²/4)ᵏ/(k!)²,  I₀′(x) = Σ (x/2)²ᵏ⁻¹/(k! (k − 1)!) = I₁(x)

    Residuals: x.

    Numerics: JAX 0.10 forms e^|x| (sign x − sign x + e^(−|x|) I₁), where a small I₁ is lost.
    """

    def forward(self, *operands: Any) -> tuple[Any, Any]:
        """The function itself, and its operand."""
        return sweeps.evaluate(self.eqn, operands), operands[0]

    def reverse(self, residuals: Any, cotangents: Any) -> Any:
        """ȳ times the slope."""
        x, (y_bar,) = residuals, cotangents
        return [mul(y_bar, mul(exp(lax.abs(x)), lax.bessel_i1e(x)))]


_i0: Any = _jax.find_primitive("numpy.lax_numpy._i0")  # JAX 0.10; in 0.12 its own rule is this one
if getattr(_i0, "jvp", None) is not None:
    of_jax[_i0.jvp] = BesselI0

improvement("I₀ at a small number", jnp.i0, at=(1e-300,), true=5e-301, rtol=1e-12,
            jax="0.0: a small I₁ is added to 1, and 1 is taken away",
            source="I₁(x) = x/2 + x³/16 + …")
improvement("I₀ at 0", jax.scipy.special.i0, at=(0.0,), true=0.0,
            jax="1.0: the kinks of e^|x| and of e^(−|x|) I₀ do not cancel",
            source="I₀′ = I₁, I₁(0) = 0")


# Functions of several operands.


def power_log(exponent: Any, x: Any) -> Any:
    """power_log(exponent, x) = exponent · ln x, and 0 where both are 0 (0⁰ = 1)."""
    is_one = (exponent == 0) & (x == 0)
    return exponent * jnp.log(jnp.where(is_one, 1, x))


def beta_density(a: Any, b: Any, x: Any) -> Any:
    """∂I_x(a, b)/∂x = x^(a − 1) (1 − x)^(b − 1)/B(a, b)."""
    a, b, x = widen(a, b, x)
    log_beta = lax.lgamma(a) + lax.lgamma(b) - lax.lgamma(a + b)
    is_one = (b == 1) & (x == 1)
    log_rest = (b - 1) * jnp.log1p(-jnp.where(is_one, 0, x))
    return jnp.exp(log_rest + power_log(a - 1, x) - log_beta)


def gamma_density(a: Any, x: Any) -> Any:
    """∂P(a, x)/∂x = x^(a − 1) e⁻ˣ/Γ(a)."""
    a, x = widen(a, x)
    return jnp.exp(power_log(a - 1, x) - x - lax.lgamma(a))


def gamma_cross(a: Any, x: Any) -> Any:
    """∂²P(a, x)/∂a ∂x = p(x) (ln x − ψ(a)), the density's derivative in a."""
    a, x = widen(a, x)
    density = gamma_density(a, x)
    return density * jnp.where(density == 0, 0, jnp.log(x) - lax.digamma(a))


def gamma_second(a: Any, x: Any) -> Any:
    """``gamma_second`` is ∂²P(a, x)/∂a² (``truncated.gamma_curvature``), 0 at x = 0."""
    a, x = widen(a, x)
    is_inner = (x > 0) & (a > 0)
    safe_a, safe_x = jnp.where(is_inner, a, 1), jnp.where(is_inner, x, 1)
    found = gamma_density(safe_a, safe_x) * gamma_curvature(safe_a, safe_x)
    return jnp.where(is_inner, found, jnp.where((x == 0) & (a > 0), 0, jnp.nan))


def bernoulli(count: int) -> list[Fraction]:
    """Compute the Bernoulli numbers B₀ … from Σ_{k≤n} C(n + 1, k) B_k = 0."""
    numbers = [Fraction(1)]
    for n in range(1, count):
        numbers.append(-sum(math.comb(n + 1, k) * numbers[k] for k in range(n)) / Fraction(n + 1))
    return numbers


# The Euler–Maclaurin formula: terms summed one by one, and B₂ⱼ/(2j)! of the tail's expansion.
FIRST_TERMS = 12
TAIL = [float(b / math.factorial(n)) for n, b in enumerate(bernoulli(25)) if n >= 2 and not n % 2]


def zeta_slope(s: Any, q: Any) -> Any:
    """``zeta_slope`` is ∂ζ(s, q)/∂s for s > 1 and q > 0, nan elsewhere.

    Derivation:

        ζ(s, q) = Σ_{k≥0} (q + k)⁻ˢ, and by the Euler–Maclaurin formula from w = q + N on

            Σ_{k<N} (q + k)⁻ˢ + w^(1−s)/(s − 1) + ½ w⁻ˢ
              + Σ_j B₂ⱼ/(2j)! (s)_{2j−1} w^(−s−2j+1),   (s)_n = s (s + 1) … (s + n − 1)

        Term by term, d w⁻ˢ/ds = −ln w · w⁻ˢ and d(s)_n/ds = (s)_n Σ_{i<n} 1/(s + i); here the
        latter is carried along the product: (uv)′ = u′v + uv′.

    Numerics: N = 12 terms and 12 corrections, the last below 1e-15 of the sum.

    References:
        Johansson 2013, Rigorous high-precision computation of the Hurwitz zeta function and its
        derivatives, arXiv:1309.2877.
    """
    s, q = widen(s, q)
    invalid = ~((s > 1) & (q > 0))
    s, q = jnp.where(invalid, 2, s), jnp.where(invalid, 1, q)
    log_terms = jnp.log(q[..., None] + jnp.arange(FIRST_TERMS, dtype=q.dtype))
    total = -jnp.sum(log_terms * jnp.exp(-s[..., None] * log_terms), -1)
    w = q + FIRST_TERMS
    log_w = jnp.log(w)
    power = jnp.exp(-s * log_w)
    inverse = 1 / (s - 1)
    total -= power * (w * inverse * (log_w + inverse) + 0.5 * log_w)
    value, slope = s / w, 1 / w  # (s)_{2j−1} w^(−2j+1) and its derivative in s
    for j, coefficient in enumerate(TAIL, 1):
        total += coefficient * power * (slope - log_w * value)
        for i in (2 * j - 1, 2 * j):
            value, slope = value * (s + i) / w, (slope * (s + i) + value) / w
    return jnp.where(invalid, jnp.nan, total)


def polygamma(m: Any, x: Any) -> Any:
    """``polygamma`` is ψ⁽ᵐ⁾(x), right for negative x too.

    Derivation:

        ψ⁽ᵐ⁾(x) − (−1)ᵐ ψ⁽ᵐ⁾(1 − x) is −π times the m-th derivative of cot πx, of period 1;
        with f = x − ⌊x⌋ it is the same at f, where both arguments are positive:

        ψ⁽ᵐ⁾(x) = ψ⁽ᵐ⁾(f) + (−1)ᵐ (ψ⁽ᵐ⁾(1 − x) − ψ⁽ᵐ⁾(1 − f))

    References:
        DLMF 5.15.6, dlmf.nist.gov/5.15, has the reflection; the way past the poles is derived
        above.
    """
    is_negative = x < 0
    f = jnp.where(is_negative, x - lax.stop_gradient(jnp.floor(x)), x)
    mirrored = lax.polygamma(m, jnp.where(is_negative, 1 - x, 1.5))
    there = lax.polygamma(m, jnp.where(is_negative, 1 - f, 1.5))
    sign = jnp.where(jnp.mod(m, 2) == 0, 1, -1).astype(x.dtype)
    change = jnp.where(is_negative, sign * (mirrored - there), 0)
    return lax.polygamma(m, f) + change


def pull_polygamma_order(y_bar: Any, m: Any, x: Any) -> Any:
    """m̄ = ȳ (−1)^(m+1) ∂(Γ(m + 1) ζ(m + 1, x))/∂m, for x > 0.

    Derivation:

        ψ⁽ᵐ⁾(x) = (−1)^(m+1) m! ζ(m + 1, x) for the integers m ≥ 1, at which alone the function
        has a value. Between them Γ(m + 1) stands for m! and the sign is that of the integer:
        ∂ = (−1)^(m+1) Γ(m + 1) (ψ(m + 1) ζ(m + 1, x) + ∂ζ(m + 1, x)/∂s)

    Kinks: m = 0: nan (ζ has its pole at 1); x ≤ 0: nan.
    """
    m, x = widen(m, x)
    sign = jnp.where(jnp.mod(m, 2) == 0, -1, 1).astype(x.dtype)
    inner = lax.digamma(m + 1) * lax.zeta(m + 1, x) + zeta_slope(m + 1, x)
    return y_bar * (sign * jnp.exp(lax.lgamma(m + 1)) * inner).astype(y_bar.dtype)


pointwise(lax.regularized_incomplete_beta_p, "a, b, x -> y",
     a=lambda y_bar, a, b, x: y_bar * beta_slope(a, b, x, "a").astype(y_bar.dtype),
     b=lambda y_bar, a, b, x: y_bar * beta_slope(a, b, x, "b").astype(y_bar.dtype),
     x=lambda y_bar, a, b, x: y_bar * beta_density(a, b, x).astype(y_bar.dtype),
     why="I_x(a, b) = ∫₀ˣ p(t) dt:  ∂/∂x is the density at x; in a and b:\n\n"
         + inspect.cleandoc(beta_slope.__doc__ or ""),
     kinks="x = 0, a = 1 and x = 1, b = 1: the density's limit",
     cases=[case(lambda x: lax.betainc(jnp.full_like(x, 2.5), jnp.full_like(x, 1.5), x),
                 real(3, low=0.1, high=0.9)),
            case(lax.betainc, real(3, low=0.7, high=4), real(3, low=0.7, high=4),
                 real(3, low=0.1, high=0.9), reference=lambda a, b, x: _betainc_by_series(a, b, x),
                 note="JAX raises for a and b"),
            case(lambda x: lax.betainc(jnp.ones_like(x), 2 * jnp.ones_like(x), x),
                 real(values=[0.0]), reference=lambda x: 1 - (1 - x) ** 2, note="x = 0, a = 1")])
pointwise(lax.igamma_p, "a, x -> y",
     a=lambda y_bar, a, x: lax.mul(y_bar, lax.igamma_grad_a(a, x)),
     x=lambda y_bar, a, x: y_bar * gamma_density(a, x).astype(y_bar.dtype),
     why="P(a, x) = ∫₀ˣ t^(a−1) e⁻ᵗ dt / Γ(a):  ∂P/∂x is the integrand at x; ∂P/∂a is the "
         "primitive igamma_grad_a, whose own rule gives the second derivatives",
     kinks="x = 0, a = 1: the limit 1",
     cases=[case(lax.igamma, real(3, low=0.5, high=4), real(3, low=0.3, high=5),
                 reference=lambda a, x: igamma_by_series(a, x), note="second order in a too"),
            case(lambda x: lax.igamma(jnp.full_like(x, 2.5), x), real(3, low=0.1, high=5)),
            case(lambda x: lax.igamma(jnp.ones_like(x), x), real(values=[0.0]),
                 reference=lambda x: -jnp.expm1(-x), note="x = 0, a = 1")])
pointwise(lax.igammac_p, "a, x -> y",
     a=lambda y_bar, a, x: lax.neg(lax.mul(y_bar, lax.igamma_grad_a(a, x))),
     x=lambda y_bar, a, x: -y_bar * gamma_density(a, x).astype(y_bar.dtype),
     why="Q = 1 − P", kinks="x = 0, a = 1: the limit −1",
     cases=[case(lax.igammac, real(3, low=0.5, high=4), real(3, low=0.3, high=5),
                 reference=lambda a, x: 1 - igamma_by_series(a, x), note="second order in a too")])
pointwise(lax.igamma_grad_a_p, "a, x -> y",
     a=lambda y_bar, a, x: y_bar * gamma_second(a, x).astype(y_bar.dtype),
     x=lambda y_bar, a, x: y_bar * gamma_cross(a, x).astype(y_bar.dtype),
     why=inspect.cleandoc(gamma_cross.__doc__ or "") + "\n\n"
         + inspect.cleandoc(gamma_curvature.__doc__ or ""),
     cases=[case(lax.igamma_grad_a, real(3, low=0.5, high=4), real(3, low=0.3, high=5),
                 reference=lambda a, x: _igamma_slope_by_series(a, x), note="JAX has no rule")])
pointwise(lax.zeta_p, "s, q -> y",
     s=lambda y_bar, s, q: y_bar * zeta_slope(s, q).astype(y_bar.dtype),
     q=lambda y_bar, s, q: lax.neg(lax.mul(y_bar, lax.mul(s, lax.zeta(
         lax.add(s, np.asarray(1, s.dtype)), q)))),
     why="ζ(s, q) = Σ (q + k)⁻ˢ,  ∂/∂q = −s Σ (q + k)^(−s−1) = −s ζ(s + 1, q);  in s:\n\n"
         + inspect.cleandoc(zeta_slope.__doc__ or ""),
     cases=[case(lax.zeta, real(3, low=1.5, high=4), real(3, low=0.3, high=4),
                 reference=lambda s, q: _zeta_by_sum(s, q), note="JAX has no rule")])
pointwise(lax.polygamma_p, "m, x -> y",
     m=pull_polygamma_order,
     x=lambda y_bar, m, x: lax.mul(y_bar, polygamma(lax.add(m, np.asarray(1, m.dtype)), x)),
     why="ψ⁽ᵐ⁾ is by definition the derivative of ψ⁽ᵐ⁻¹⁾;  at negative x:\n\n"
         + inspect.cleandoc(polygamma.__doc__ or "") + "\n\nin the order:\n\n"
         + inspect.cleandoc(pull_polygamma_order.__doc__ or ""),
     cases=[case(lambda x: lax.polygamma(jnp.full_like(x, 2), x), real(3, low=0.4, high=4),
                 reference=lambda x: polygamma(jnp.full_like(x, 2), x)),
            case(lambda x: lax.polygamma(jnp.ones_like(x), x), real(values=[-0.6, -2.4]),
                 reference=lambda x: (np.pi / jnp.sin(np.pi * x)) ** 2 - lax.polygamma(
                     jnp.ones_like(x), 1 - x), note="negative x"),
            case(lambda m, x: lax.polygamma(m, x), real(values=[1.0, 2.0, 3.0]),
                 real(3, low=0.5, high=4), reference=lambda m, x: _polygamma_by_sum(m, x),
                 note="in the order: the sign is that of the integer")])


def igamma_by_series(a: Any, x: Any) -> Any:
    """P(a, x) = Σ_{n≥0} x^(a+n) e⁻ˣ/Γ(a + n + 1), which JAX differentiates in both."""
    n = jnp.arange(80, dtype=a.dtype)
    a, x = a[..., None], x[..., None]
    return jnp.sum(jnp.exp((a + n) * jnp.log(x) - x - lax.lgamma(a + n + 1)), -1)


def _igamma_slope_by_series(a: Any, x: Any) -> Any:
    return jax.jvp(lambda a: igamma_by_series(a, x), (a,), (jnp.ones_like(a),))[1]


def _betainc_by_series(a: Any, b: Any, x: Any) -> Any:
    """I_x(a, b) = x^a (1 − x)^b/Γ(b) Σ_{n≥0} x^n Γ(a + b + n)/Γ(a + 1 + n)."""
    n = jnp.arange(500, dtype=a.dtype)
    a, b, x = a[..., None], b[..., None], x[..., None]
    log_terms = lax.lgamma(a + b + n) - lax.lgamma(a + 1 + n) + n * jnp.log(x)
    front = a * jnp.log(x) + b * jnp.log1p(-x) - lax.lgamma(b)
    return jnp.sum(jnp.exp(front + log_terms), -1)


def _zeta_by_sum(s: Any, q: Any) -> Any:
    """Compute Σ_{k<200} (q + k)⁻ˢ, and the rest by three terms of the Euler–Maclaurin formula."""
    k = jnp.arange(200, dtype=s.dtype)
    head = jnp.sum((q[..., None] + k) ** -s[..., None], -1)
    w = q + 200
    return head + w ** (1 - s) / (s - 1) + w**-s / 2 + s * w ** (-s - 1) / 12 \
        - s * (s + 1) * (s + 2) * w ** (-s - 3) / 720


def _polygamma_by_sum(m: Any, x: Any) -> Any:
    sign = jnp.where(m % 2 == 0, -1, 1)
    return sign * jnp.exp(lax.lgamma(m + 1)) * _zeta_by_sum(m + 1, x)


def _second(function: Any, argument: int) -> Any:
    """Differentiate ``function`` in one argument, by our own rules."""

    def derivative(*args: Any) -> Any:
        from functional_bp.engine.transforms import grad

        return grad(function, argument)(*args)

    return derivative


_BETA = "mpmath: numerical derivative of betainc(a, b, 0, x, regularized=True), 60 digits"
for _a, _b, _x, _wrt, _true in (
    (2.5, 1.5, 0.3, 0, -0.0948427191535115944), (2.5, 1.5, 0.3, 1, 0.0870273186224221607),
    (0.01, 0.5, 0.2, 0, -2.77634690438932109), (0.01, 0.5, 0.2, 1, 0.0450045334134445359),
    (300.0, 200.0, 0.61, 0, -0.0130192687123326751),
    (300.0, 200.0, 0.61, 1, 0.0199469172361222568),
    (5.0, 0.5, 0.99, 0, -0.0246892063855488), (5.0, 0.5, 0.99, 1, 0.740276614124457322),
):
    improvement(f"betainc({_a}, {_b}, {_x}) in {'ab'[_wrt]}", lax.betainc, at=(_a, _b, _x),
                wrt=_wrt, true=_true, jax="raises ValueError", source=_BETA, rtol=1e-8)
improvement("second derivative of betainc in a", _second(lax.betainc, 0), at=(2.5, 1.5, 0.3),
            true=0.0977326155011342, jax="raises ValueError", source=_BETA, rtol=1e-8)
improvement("betainc at x = 0 with a = 1", lax.betainc, at=(1.0, 2.0, 0.0), wrt=2, true=2.0,
            jax="nan: 0 · ln 0", source="I_x(1, b) = 1 − (1 − x)^b, so b")
improvement("igamma at x = 0 with a = 1", lax.igamma, at=(1.0, 0.0), wrt=1, true=1.0,
            jax="nan: 0 · ln 0", source="P(1, x) = 1 − e⁻ˣ")
_GAMMA = "mpmath: numerical derivatives of gammainc(a, 0, x, regularized=True), 60 digits"
for _a, _x, _true in ((2.5, 1.5, 0.136554033455009492), (0.5, 3.0, -0.085989868973685684),
                      (100.0, 110.0, -0.0022709019620905545)):
    improvement(f"second derivative of igamma({_a}, {_x}) in a", lax.igamma_grad_a, at=(_a, _x),
                true=_true, jax="raises", source=_GAMMA, rtol=1e-8)
improvement("third derivative of igamma in a", _second(lax.igamma_grad_a, 0), at=(2.5, 1.5),
            true=0.025812179386, jax="raises", source=_GAMMA, rtol=1e-8)
improvement("zeta in q", lax.zeta, at=(3.0, 0.7), wrt=1, true=-12.93957483921386578,
            jax="raises", source="mpmath: -3 zeta(4, 0.7)", rtol=1e-10)
for _s, _q, _true in ((3.0, 0.7, 0.801156829335331589), (1.25, 40.0, -12.2478916776114568),
                      (1.01, 0.7, -9999.49137874428074)):
    improvement(f"zeta({_s}, {_q}) in s", lax.zeta, at=(_s, _q), wrt=0, true=_true,
                jax="raises", source="mpmath: diff(lambda s: zeta(s, q), s)", rtol=1e-10)
improvement("polygamma at negative x", lax.polygamma, at=(2.0, -9.3), wrt=1,
            true=769.018800332169992244362095506, jax="-8.3e11", source="mpmath: psi(3, -9.3)")
improvement("polygamma in its order", lax.polygamma, at=(3.0, 1.7), wrt=0,
            true=0.535315594495012360907, jax="raises ValueError",
            source="mpmath: derivative of gamma(m + 1) zeta(m + 1, 1.7) at m = 3")
