"""The incomplete beta and gamma functions are differentiated in their parameters by quadrature.

Both are distribution functions F(x; θ) = ∫_{t<x} p(t; θ) dt. Their derivatives in a parameter are
truncated means of the score, and the same integral to the right of x, with the sign turned:

    ∂F/∂θ = ∫_{t<x} p ∂ln p/∂θ dt = −∫_{t>x} p ∂ln p/∂θ dt,   for ∫ p ∂ln p/∂θ dt = ∂1/∂θ = 0

On the side of x away from the mean the integrand falls from x on. A variable s ≥ 0 measures the
distance from x such that the tail is exponential; ∫₀^∞ f(s) ds is then taken by the trapezoidal
rule in w, where s = σ exp(w − e⁻ʷ) and σ is the width of f. The integrand's singularities in s are
negative reals, a distance π away from the real line of ln s, so the rule converges exponentially
whatever the scale at which they lie: ``STEPS`` nodes are good for nine digits or more. The nodes
are fixed, so the derivatives of the sum are the same rule's for the derivatives of the integrand.

References:
    Mori 1998, RIMS Kôkyûroku 1040, 143–153, has s = exp(w − e⁻ʷ); Mori 2005, Discovery of the
    double exponential transformation and its developments, doi 10.2977/prims/1145474600, why such
    a rule converges. What is integrated is derived below.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

_W = np.arange(-3.45, 4.3, 0.0775)
NODES = np.exp(_W - np.exp(-_W))
WEIGHTS = NODES * (1 + np.exp(-_W)) * 0.0775
STEPS = len(_W)


def widen(*arrays: Any) -> list[Any]:
    """Broadcast the arrays together, half precision as float32."""
    shape = jnp.broadcast_shapes(*(array.shape for array in arrays))
    half = arrays[0].dtype.itemsize == 2
    return [
        jnp.broadcast_to(array.astype(jnp.float32) if half else array, shape) for array in arrays
    ]


def integrate(log_weight: Any, score: Any, width: Any) -> Any:
    """Compute ∫₀^∞ exp(log_weight(s)) score(s) ds, for arrays of parameters, on a new last axis."""
    width = lax.stop_gradient(width)[..., None]
    nodes, weights = (jnp.asarray(v, width.dtype) for v in (NODES, WEIGHTS))
    s = width * nodes
    return jnp.sum(width * weights * jnp.exp(log_weight(s)) * score(s), -1)


def digamma_difference(a: Any, b: Any) -> Any:
    """digamma_difference(a, b) = ψ(a) − ψ(a + b)."""
    return lax.digamma(a) - lax.digamma(a + b)


def beta_slope(a: Any, b: Any, x: Any, operand: str) -> Any:
    """``beta_slope`` is ∂I_x(a, b)/∂a or ∂I_x(a, b)/∂b.

    Derivation:

        I_x(a, b) = ∫₀ˣ p dt,  ln p = (a − 1) ln t + (b − 1) ln(1 − t) − ln B(a, b)
        ∂ln p/∂a = ln t − ψ(a) + ψ(a + b),  ∂ln p/∂b = ln(1 − t) − ψ(b) + ψ(a + b)

        Left of the mean a/(a + b): t = x e⁻ˢ, dt = −t ds,
        ln(t p) = a (ln x − s) + (b − 1) ln(1 − t) − ln B,  1 − t = (1 − x) + x (1 − e⁻ˢ).
        Right of it I_x(a, b) = 1 − I_{1−x}(b, a): the same with a, b and x, 1 − x exchanged.

        Width: the slope of ln(t p) in s is −r at s = 0 and −a at ∞, its curvature −κ:
        r = a − (b − 1) x/(1 − x),  κ = (b − 1) x/(1 − x)²,  σ = 1/min(a, r + √κ)

    References:
        Mori 2005, doi 10.2977/prims/1145474600, for the quadrature (``truncated.py``); the
        integrand is derived above.
    """
    a, b, x = widen(a, b, x)
    outside = (x <= 0) | (x >= 1)
    invalid = (x < 0) | (x > 1) | (a <= 0) | (b <= 0) | jnp.isnan(a + b + x)
    a, b = jnp.where(invalid, 1, a), jnp.where(invalid, 1, b)
    x = jnp.where(outside | invalid, 0.5, x)
    is_left = x * (a + b) <= a
    near, far = jnp.where(is_left, a, b), jnp.where(is_left, b, a)
    x, y = jnp.where(is_left, x, 1 - x), jnp.where(is_left, 1 - x, x)
    log_beta = lax.lgamma(a) + lax.lgamma(b) - lax.lgamma(a + b)
    curvature = jnp.maximum(far - 1, 0) * x / y**2
    width = 1 / jnp.minimum(near, near - (far - 1) * x / y + jnp.sqrt(curvature))
    axis = lambda v: v[..., None]
    log_rest = lambda s: jnp.log(axis(y) - axis(x) * jnp.expm1(-s))
    log_t = lambda s: axis(jnp.log(x)) - s
    centre_near, centre_far = digamma_difference(near, far), digamma_difference(far, near)
    this_is_near = is_left if operand == "a" else ~is_left

    def log_weight(s: Any) -> Any:
        return axis(near) * log_t(s) + axis(far - 1) * log_rest(s) - axis(log_beta)

    def score(s: Any) -> Any:
        return jnp.where(
            axis(this_is_near), log_t(s) - axis(centre_near), log_rest(s) - axis(centre_far)
        )

    slope = integrate(log_weight, score, width)
    slope = jnp.where(outside, 0, jnp.where(is_left, slope, -slope))
    return jnp.where(invalid, jnp.nan, slope)


def gamma_curvature(a: Any, x: Any) -> Any:
    """``gamma_curvature`` is ∂²P(a, x)/∂a² over the density p(x) = ∂P/∂x; P is ``lax.igamma``.

    Derivation:

        P(a, x) = ∫₀ˣ p dt,  ln p = (a − 1) ln t − t − ln Γ(a)
        ∂p/∂a = p (ln t − ψ(a)),  ∂²p/∂a² = p ((ln t − ψ(a))² − ψ′(a))

        x ≤ a: t = x e⁻ˢ,  ln(t p) = a (ln x − s) − t − ln Γ(a);
        slope −r at 0 and −a at ∞, curvature −κ: r = a − x, κ = x, σ = 1/min(a, r + √κ)
        x > a: t = x + s, with the sign turned;
        slope −r at 0 and −1 at ∞: r = (x − a + 1)/x, κ = max(a − 1, 0)/x²,
        σ = 1/min(1, r + √κ)

    Numerics: relative to the density, so that nothing underflows in the tails.

    References:
        Mori 2005, doi 10.2977/prims/1145474600, for the quadrature (``truncated.py``); the
        integrand is derived above.
    """
    is_left = x <= a
    right = (x - a + 1 + jnp.sqrt(jnp.maximum(a - 1, 0))) / x
    slope = jnp.where(is_left, a - x + jnp.sqrt(x), right)
    width = 1 / jnp.minimum(jnp.where(is_left, a, 1), slope)
    axis = lambda v: v[..., None]
    # ln(t/x), and t − x
    ratio = lambda s: jnp.where(axis(is_left), -s, jnp.log1p(s / axis(x)))
    ahead = lambda s: jnp.where(axis(is_left), axis(x) * jnp.expm1(-s), s)
    power = jnp.where(is_left, a, a - 1)
    middle, spread = jnp.log(x) - lax.digamma(a), lax.polygamma(jnp.ones_like(a), a)
    total = integrate(
        lambda s: axis(power) * ratio(s) - ahead(s),
        lambda s: (axis(middle) + ratio(s)) ** 2 - axis(spread),
        width,
    )
    return jnp.where(is_left, x * total, -total)
