"""ln(eˣ + eʸ), of which softplus and log σ are made, has a rule that keeps more digits than JAX's.

JAX has no primitive of it but a function with a tangent rule, by which it is known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.lax import mul, sub

from functional_bp import _jax
from functional_bp.engine import sweeps
from functional_bp.engine.higher_order import HigherOrder, of_jax
from functional_bp.engine.improvements import improvement
from functional_bp.vjps.elementwise import constant


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def share(base: float, x: Any, y: Any, z: Any) -> Any:
    """``share`` is bˣ/(bˣ + bʸ) = b^(x − z), with z = log_b(bˣ + bʸ) as it was computed from x and
    y.

    Kinks: x = z, where one is infinite or the other negligible: 1, and ½ where y is x too.

    Numerics: p = b^(x − z) and q = b^(y − z) add up to 1, so ṗ = p q (ẋ − ẏ) ln b. Differentiated
    as it stands, p would give p (1 − p), which is zero in rounded numbers where p is nearly 1.
    """
    tie = lax.select(lax.eq(x, y), lax.full_like(z, -np.log(2) / np.log(base)), lax.full_like(z, 0))
    d = lax.select(lax.eq(x, z), tie, sub(x, z))
    return lax.exp2(d) if base == 2 else lax.exp(d)


@share.defjvp
def _share_jvp(base: float, primals: Any, tangents: Any) -> Any:
    (x, y, z), (x_dot, y_dot, _) = primals, tangents
    p, q = share(base, x, y, z), share(base, y, x, z)
    slope = mul(p, q) if base == np.e else mul(constant(np.log(base), p), mul(p, q))
    return p, mul(slope, sub(x_dot, y_dot))


class LogAddExp(HigherOrder):
    """x̄ = z̄ p, ȳ = z̄ q, p = e^(x − z), q = e^(y − z), for z = ln(eˣ + eʸ).

    Derivation:

        ∂z/∂x = eˣ/(eˣ + eʸ) = e^(x − z) = p,  ∂z/∂y = q,  p + q = 1
        ∂p/∂x = p (1 − p) = p q = −∂p/∂y

    Residuals: p and q, those of them that are wanted.

    Kinks: x = y = ±inf: ½ and ½, the only symmetric values that add up to 1.

    Numerics: JAX differentiates p to p (1 − p), zero where x exceeds y by some sixteen; here p q.
    """

    base = float(np.e)

    def forward(self, *operands: Any) -> tuple[Sequence[Any], Any]:
        """Run the operation itself, and keep the shares."""
        (z,) = sweeps.evaluate(self.eqn, operands)
        x, y = (lax.broadcast_in_dim(v, z.shape, ()) if v.ndim < z.ndim else v for v in operands)
        pairs = zip([(x, y), (y, x)], self.wanted)
        return [z], [share(self.base, *pair, z) if on else None for pair, on in pairs]

    def reverse(self, residuals: Any, cotangents: Sequence[Any]) -> Sequence[Any]:
        """Return z̄ in shares."""
        (z_bar,) = cotangents
        return [None if p is None else mul(z_bar, p) for p in residuals]


class LogAddExp2(LogAddExp):
    """x̄ = z̄ p, ȳ = z̄ q, p = 2^(x − z), q = 2^(y − z), for z = log₂(2ˣ + 2ʸ)."""

    base = 2.0


for _name, _structure in {"logaddexp": LogAddExp, "logaddexp2": LogAddExp2}.items():
    _function: Any = _jax.find_primitive(f"lax.other.{_name}")
    if getattr(_function, "jvp", None) is not None:
        of_jax[_function.jvp] = _structure


improvement("logaddexp of two equal large numbers", jnp.logaddexp, at=(1e20, 1e20), true=0.5,
            jax="1.0: ln 2 is below rounding in z", source="1/(1 + e^0)")
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
