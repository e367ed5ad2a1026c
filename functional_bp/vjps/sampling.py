"""A random draw is a function of its distribution's parameters, with the randomness held fixed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from functional_bp import _jax
from functional_bp.engine.axes import rank, relate
from functional_bp.engine.improvements import improvement
from functional_bp.engine.rule import case, real, rule
from functional_bp.vjps.special import igamma_by_series
from functional_bp.vjps.truncated import gamma_curvature, widen


@jax.custom_jvp
def sample_slope(a: Any, z: Any) -> Any:
    """``sample_slope`` is ∂z/∂a of a draw z from Gamma(a, 1) at a fixed quantile.

    Derivation:

        P(a, z) = u is fixed:  P_a + p z′ = 0,  z′ = −P_a/p,  p = ∂P/∂z

    References:
        Figurnov, Mohamed and Mnih 2018, Implicit reparameterization gradients, arXiv:1805.08498.
    """
    # JAX's stub shows the undecorated function: the decorator passes the dtype.
    return lax.random_gamma_grad(a, z)  # pyright: ignore[reportCallIssue]


@sample_slope.defjvp
def _sample_slope_jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    """The tangent of z′ = −P_a/p follows from the second derivative P_aa.

    Derivation:

        ∂p/∂a = p l,  l = ln z − ψ(a);   ∂p/∂z = p ((a − 1)/z − 1)
        ∂z′/∂a = −P_aa/p + P_a l/p = −P_aa/p − z′ l
        ∂z′/∂z = −l + P_a ∂p/∂z/p² = −l − z′ ((a − 1)/z − 1)
    """
    a, z = primals
    a_dot, z_dot = tangents
    slope = sample_slope(a, z)
    middle = jnp.log(z) - lax.digamma(a)
    in_a = -gamma_curvature(a, z) - slope * middle
    in_z = -middle - slope * ((a - 1) / z - 1)
    return slope, in_a * a_dot + in_z * z_dot


def pull_random_gamma(z_bar: Any, a: Any, z: Any, *, log_space: bool) -> Any:
    """ā = z̄ ∂z/∂a at a fixed quantile; divided by the draw where z is its logarithm.

    Derivation:

        the draw is a function of a and of the uniform u that the key stands for, P(a, z) = u
        (``sample_slope``);  d ln z = dz/z

    Kinks: a draw too small for its dtype counts as the smallest normal number.

    References:
        Figurnov, Mohamed and Mnih 2018, Implicit reparameterization gradients, arXiv:1805.08498.
    """
    wide_a, wide_z = widen(a, z)
    if not log_space:
        return z_bar * sample_slope(wide_a, wide_z).astype(z_bar.dtype)
    tiny = jnp.finfo(wide_z.dtype).tiny
    draw = jnp.exp(wide_z)
    draw = jnp.where(draw == 0, tiny, draw)
    return z_bar * (sample_slope(wide_a, draw) / draw).astype(z_bar.dtype)


def _by_quantile(log_space: bool) -> Any:
    """Make a draw with the right derivatives, by Newton steps on P(a, z) = u from the draw."""

    def draw(a: Any) -> Any:
        drawn = lax.stop_gradient(_draws(log_space)(a))
        z = jnp.exp(drawn) if log_space else drawn
        fixed = lax.stop_gradient(a)
        for _ in range(2):
            density = jnp.exp((a - 1) * jnp.log(z) - z - lax.lgamma(a))
            moved = igamma_by_series(a, z) - igamma_by_series(fixed, lax.stop_gradient(z))
            z = z - moved / density
        return jnp.log(z) if log_space else z

    return draw


def _placed(key_t: Any, a_t: Any) -> Any:
    """What is drawn depends on its place behind the axes of the keys."""
    keys, axes = rank(key_t), range(rank(a_t))
    return relate([axes[:keys], axes], [axes], positional=axes[keys:])


def _draws(log_space: bool) -> Any:
    sample = jax.random.loggamma if log_space else jax.random.gamma
    return lambda a: sample(jax.random.key(0), a)


rule(_jax.find_primitive("random.core.random_gamma_p"), "key, a -> z", a=pull_random_gamma,
     axes=_placed,
     cases=[case(_draws(log_space), real(3, low=0.6, high=4), reference=_by_quantile(log_space),
                 half=False, note="JAX has no second derivative")
            for log_space in (False, True)]
         + [case(_draws(False), real(2, 2, low=0.6, high=4), second_order=False, half=False,
                 note="a draw depends on its dtype, so half precision has another value")])
rule(lax.rng_uniform_p, "a, b -> z",
     axes=lambda *, shape: relate([(), ()], [range(len(shape))], positional=range(len(shape))),
     a=lambda z_bar, a, b, z: z_bar * ((b - z) / (b - a)),
     b=lambda z_bar, a, b, z: z_bar * ((z - a) / (b - a)),
     why="z = a + (b − a) u with u held fixed: ∂z/∂a = 1 − u, ∂z/∂b = u, u = (z − a)/(b − a)",
     cases=[case(lambda x: _centred(lax.rng_uniform(x[0], x[0] + 1, (3,)), x), real(1),
                 reference=lambda x: _centred(jnp.broadcast_to(x[0], (3,)), x),
                 batchable=False, note="∂z/∂a + ∂z/∂b = 1 whatever was drawn; JAX has no rule")])
improvement("rng_uniform in its bounds", lambda a: lax.rng_uniform(a, a + 1, (4,)), at=(2.0,),
            true=4.0, jax="raises", source="∂z/∂a + ∂z/∂b = 1, four times")


def _centred(z: Any, x: Any) -> Any:
    """Subtract from z its own value: nothing of the draw remains but its derivative."""
    return z - lax.stop_gradient(z) + x
