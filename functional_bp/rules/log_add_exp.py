"""ln(eˣ + eʸ), of which softplus and log σ are made, and for which JAX has a tangent function.

Known by that tangent function, it has a pullback that keeps its digits where JAX's loses them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.lax import add, div, mul, neg, sub

from functional_bp import _jax, backprop
from functional_bp.rules.custom_jvp import of_jax
from functional_bp.rules.elementwise import constant
from functional_bp.rules.improvements import improvement
from functional_bp.structure import Structure


def shares(d: Any, exp: Any) -> tuple[Any, Any]:
    """σ(d) and σ(−d), with e = e^(−|d|): the larger is 1/(1 + e), the smaller e/(1 + e).

    Neither they nor their derivatives of any order subtract numbers that are nearly equal.
    """
    is_first = lax.ge(d, constant(0, d))
    e = exp(neg(lax.abs(d)))
    larger = div(constant(1, d), add(constant(1, d), e))
    smaller = mul(e, larger)
    return lax.select(is_first, larger, smaller), lax.select(is_first, smaller, larger)


class LogAddExp(Structure):
    """x̄ = z̄ σ(d), ȳ = z̄ σ(−d), d = x − y, for z = ln(eˣ + eʸ) and for z = log₂(2ˣ + 2ʸ).

    Derivation:

        ∂z/∂x = eˣ/(eˣ + eʸ) = 1/(1 + e^(y − x)) = σ(x − y),  and the two add up to 1

    In base two e^(y − x) is 2^(y − x).

    Residuals: d, one array for both.

    Kinks: x = y = ±inf: ½ and ½, the only symmetric values that add up to 1.

    Numerics: JAX forms e^(x − z), whose derivative e^(x − z) (1 − e^(x − z)) is zero in rounded
    numbers where x exceeds y by some sixteen.
    """

    exp: Any = staticmethod(lax.exp)

    def forward(self, *operands: Any) -> tuple[Sequence[Any], Any]:
        """The operation itself, and d."""
        x, y = operands
        d = sub(x, y)
        is_lost = lax.bitwise_and(lax.eq(x, y), lax.ne(d, d))  # inf − inf
        d = lax.select(is_lost, lax.full_like(d, 0), d)
        return backprop.evaluate(self.eqn, operands), d

    def reverse(self, residuals: Any, cotangents: Sequence[Any]) -> Sequence[Any]:
        """z̄ in shares."""
        (z_bar,) = cotangents
        found = shares(residuals, self.exp)
        return [mul(z_bar, share) if on else None for share, on in zip(found, self.wanted)]


class LogAddExp2(LogAddExp):
    """The same in base two."""

    exp: Any = staticmethod(lax.exp2)


for _name, _structure in {"logaddexp": LogAddExp, "logaddexp2": LogAddExp2}.items():
    _function: Any = _jax.find_primitive(f"lax.other.{_name}")
    if getattr(_function, "jvp", None) is not None:
        of_jax[_function.jvp] = _structure


# fmt: off
_SIGMA = "mpmath: sigma(x) sigma(-x)"
improvement("second derivative of softplus at a large x", jax.nn.softplus, order=2, at=(18.0,),
            true=1.5229979280808073e-8, jax="0.0: e^(x − z) is 1, and 1 − 1 is formed",
            source=_SIGMA, dtype="float32", rtol=2e-6)
improvement("second derivative of softplus at x = 80", jax.nn.softplus, order=2, at=(80.0,),
            true=1.80485138784541517e-35, jax="0.0, in double precision too", source=_SIGMA)
improvement("second derivative of log_sigmoid at a small x", jax.nn.log_sigmoid, order=2,
            at=(-20.0,), true=-2.06115361394184934e-9, jax="0.0",
            source="mpmath: -sigma(x) sigma(-x)", dtype="float32", rtol=2e-6)
improvement("third derivative of softplus at a large x", jax.nn.softplus, order=3,
            at=(18.0,), true=-1.52299788169035281e-8, jax="0.0",
            source="mpmath: sigma' (sigma(-x) - sigma(x))", dtype="float32", rtol=2e-6)
improvement("logaddexp of a large and a small number, second derivative",
            jnp.logaddexp, order=2, at=(3.0, -17.0), true=2.06115361394184934e-9, jax="0.0",
            source="mpmath: sigma(d) sigma(-d), d = x - y", dtype="float32", rtol=2e-6)
_HALF = "symmetric, and the two derivatives add up to 1: z(x + t, y + t) = z(x, y) + t"
for _base, _function in {"": jnp.logaddexp, "2": jnp.logaddexp2}.items():
    improvement(f"logaddexp{_base} of -inf and -inf", _function, at=(-jnp.inf, -jnp.inf), true=0.5,
                jax="nan: e^(−inf + inf)", source=_HALF)
    improvement(f"logaddexp{_base} of inf and a number", _function, at=(jnp.inf, 1.0), wrt=1,
                true=0.0, jax="e: inf is replaced by 0 in e^(y − z)", source="e^(1 - inf)")
# fmt: on
