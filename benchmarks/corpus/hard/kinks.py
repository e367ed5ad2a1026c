"""Kinks, where another valid convention than JAX's is no fault, and points of singularity."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.corpus.declare import normal, operation, uniform

WITH_ZEROS = lambda rng: (normal(rng, 4, 5) * (rng.random((4, 5)) < 0.6),)


def halves(rng, *shape):
    """Multiples of ½, so that some are equal and some are zero."""
    return (np.round(normal(rng, *shape) * 2) / 2 + 0.0).astype(np.float32)


@jax.custom_vjp
def relu_one_at_zero(x):
    """max(x, 0), with slope 1 at 0."""
    return jnp.maximum(x, 0.0)


relu_one_at_zero.defvjp(
    lambda x: (jnp.maximum(x, 0.0), x >= 0.0),
    lambda positive, y_bar: (jnp.where(positive, y_bar, 0.0),),
)


@jax.custom_vjp
def relu_half_at_zero(x):
    """max(x, 0), with slope ½ at 0."""
    return jnp.maximum(x, 0.0)


relu_half_at_zero.defvjp(
    lambda x: (jnp.maximum(x, 0.0), x),
    lambda x, y_bar: (y_bar * jnp.heaviside(x, jnp.asarray(0.5, x.dtype)),),
)


@jax.custom_vjp
def absolute_zero_at_zero(x):
    """|x|, with slope 0 at 0."""
    return jnp.abs(x)


absolute_zero_at_zero.defvjp(lambda x: (jnp.abs(x), x), lambda x, y_bar: (y_bar * jnp.sign(x),))


@jax.custom_vjp
def absolute_minus_at_zero(x):
    """|x|, with slope −1 at 0."""
    return jnp.abs(x)


absolute_minus_at_zero.defvjp(
    lambda x: (jnp.abs(x), x), lambda x, y_bar: (jnp.where(x > 0.0, y_bar, -y_bar),)
)


@jax.custom_vjp
def maximum_first(x):
    """The maximum of each row; of equal entries the first counts."""
    return jnp.max(x, axis=1)


maximum_first.defvjp(
    lambda x: (jnp.max(x, axis=1), (x, jnp.argmax(x, axis=1))),
    lambda kept, y_bar: (
        jnp.zeros_like(kept[0]).at[jnp.arange(kept[0].shape[0]), kept[1]].set(y_bar),
    ),
)


@jax.custom_vjp
def minimum_of_two(x, y):
    """min(x, y) by entry; of equal ones the second counts."""
    return jnp.minimum(x, y)


minimum_of_two.defvjp(
    lambda x, y: (jnp.minimum(x, y), x < y),
    lambda first, z_bar: (jnp.where(first, z_bar, 0.0), jnp.where(first, 0.0, z_bar)),
)


@jax.custom_vjp
def clip_open(x):
    """x within [−1, 1], with slope 0 at the ends."""
    return jnp.clip(x, -1.0, 1.0)


clip_open.defvjp(
    lambda x: (jnp.clip(x, -1.0, 1.0), x),
    lambda x, y_bar: (jnp.where(jnp.abs(x) < 1.0, y_bar, 0.0),),
)


@jax.custom_vjp
def l1_norm(x):
    """Σ |x|, with slope 0 at 0."""
    return jnp.sum(jnp.abs(x))


l1_norm.defvjp(lambda x: (jnp.sum(jnp.abs(x)), jnp.sign(x)), lambda signs, y_bar: (y_bar * signs,))


@jax.custom_vjp
def norm_zero_at_zero(x):
    """‖x‖ of each row, with gradient 0 at 0."""
    return jnp.sqrt(jnp.sum(x**2, axis=1))


def norm_zero_at_zero_fwd(x):
    """Keep x and the norms."""
    norm = jnp.sqrt(jnp.sum(x**2, axis=1))
    return norm, (x, norm)


def norm_zero_at_zero_bwd(residuals, norm_bar):
    """x/‖x‖, 0 at 0."""
    x, norm = residuals
    scale = jnp.where(norm > 0.0, norm_bar / jnp.where(norm > 0.0, norm, 1.0), 0.0)
    return (scale[:, None] * x,)


norm_zero_at_zero.defvjp(norm_zero_at_zero_fwd, norm_zero_at_zero_bwd)


@jax.custom_vjp
def square_root_near_zero(x):
    """√x, whose slope is large near 0."""
    return jnp.sqrt(x)


square_root_near_zero.defvjp(
    lambda x: (jnp.sqrt(x), jnp.sqrt(x)), lambda y, y_bar: (0.5 * y_bar / y,)
)


@jax.custom_vjp
def sinc(x):
    """sin x / x, and 1 at 0."""
    small = jnp.abs(x) < 1e-3
    safe = jnp.where(small, 1.0, x)
    return jnp.where(small, 1.0 - x**2 / 6.0, jnp.sin(safe) / safe)


def sinc_bwd(x, y_bar):
    """(x cos x − sin x)/x², by its series near 0, where the difference would cancel."""
    small = jnp.abs(x) < 0.1
    safe = jnp.where(small, 1.0, x)
    series = -x / 3.0 + x**3 / 30.0 - x**5 / 840.0 + x**7 / 45360.0
    direct = (safe * jnp.cos(safe) - jnp.sin(safe)) / safe**2
    return (y_bar * jnp.where(small, series, direct),)


sinc.defvjp(lambda x: (sinc(x), x), sinc_bwd)


@jax.custom_vjp
def x_log_x(x):
    """x log x, and 0 at 0, where the slope is −∞."""
    return jnp.where(x > 0.0, x * jnp.log(jnp.where(x > 0.0, x, 1.0)), 0.0)


x_log_x.defvjp(lambda x: (x_log_x(x), x), lambda x, y_bar: (y_bar * (jnp.log(x) + 1.0),))


@jax.custom_vjp
def leaky_relu(x):
    """x where it is positive, 0.1 x elsewhere; slope 1 at 0."""
    return jnp.where(x > 0.0, x, 0.1 * x)


leaky_relu.defvjp(
    lambda x: (jnp.where(x > 0.0, x, 0.1 * x), x),
    lambda x, y_bar: (jnp.where(x >= 0.0, 1.0, 0.1) * y_bar,),
)


OPERATIONS = (
    operation(relu_one_at_zero, WITH_ZEROS, hard=True, kink=True),
    operation(relu_half_at_zero, WITH_ZEROS, hard=True, kink=True),
    operation(absolute_zero_at_zero, WITH_ZEROS, hard=True, kink=True),
    operation(absolute_minus_at_zero, WITH_ZEROS, hard=True, kink=True),
    operation(maximum_first, lambda rng: (halves(rng, 5, 6),), hard=True, kink=True),
    operation(minimum_of_two, lambda rng: (halves(rng, 12), halves(rng, 12)), hard=True, kink=True),
    operation(clip_open, lambda rng: (halves(rng, 4, 5),), hard=True, kink=True),
    operation(l1_norm, WITH_ZEROS, hard=True, kink=True),
    operation(
        norm_zero_at_zero,
        lambda rng: (normal(rng, 4, 3) * np.array([[0], [1], [1], [0]], np.float32),),
        hard=True,
        kink=True,
    ),
    operation(square_root_near_zero, lambda rng: (uniform(rng, 1e-12, 1e-9, 6),), hard=True),
    operation(
        sinc, lambda rng: (np.array([0.0, 1e-8, 0.05, 0.2, -3.0, 40.0], np.float32),), hard=True
    ),
    operation(x_log_x, lambda rng: (uniform(rng, 1e-8, 1.0, 6),), hard=True),
    operation(leaky_relu, WITH_ZEROS, hard=True, kink=True),
)
