"""Orders: sorting, ranks, maxima, quantiles."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.corpus.declare import fault, normal, operation


def with_ties(rng, *shape):
    """Few distinct values, so that some repeat."""
    return np.round(normal(rng, *shape)).astype(np.float32)


@jax.custom_vjp
def ordered(x):
    """x sorted along the last axis."""
    return jnp.sort(x, axis=-1)


def ordered_fwd(x):
    """Keep the order."""
    order = jnp.argsort(x, axis=-1)
    return jnp.take_along_axis(x, order, axis=-1), order


def ordered_bwd(order, y_bar):
    """The inverse permutation puts the cotangents back."""
    inverse = jnp.argsort(order, axis=-1)
    return (jnp.take_along_axis(y_bar, inverse, axis=-1),)


ordered.defvjp(ordered_fwd, ordered_bwd)

ORDERED = operation(
    ordered,
    lambda rng: (normal(rng, 4, 6),),
    fault("permutation", "x", "(y_bar, inverse,", "(y_bar, order,"),
    fault("permutation", "x", "(jnp.take_along_axis(y_bar, inverse, axis=-1),)", "(y_bar,)"),
    fault(("reversal", "permutation"), "x", "(y_bar, inverse,", "(y_bar[:, ::-1], inverse,"),
    fault(("off by one", "permutation"), "x", "jnp.argsort(order, axis=-1)",
          "jnp.argsort(order, axis=-1) - 1"),
    also={"ties": lambda rng: (with_ties(rng, 4, 6),)},
)


@jax.custom_vjp
def row_maximum(x):
    """max along the last axis; ties share equally."""
    return jnp.max(x, axis=-1)


def row_maximum_fwd(x):
    """Keep x and the maximum."""
    y = jnp.max(x, axis=-1)
    return y, (x, y)


def row_maximum_bwd(residuals, y_bar):
    """ȳ, shared out among the entries that are the maximum."""
    x, y = residuals
    winners = (x == y[:, None]).astype(x.dtype)
    shares = winners / jnp.sum(winners, axis=-1, keepdims=True)
    return (shares * y_bar[:, None],)


row_maximum.defvjp(row_maximum_fwd, row_maximum_bwd)

ROW_MAXIMUM = operation(
    row_maximum,
    lambda rng: (normal(rng, 5, 5),),
    fault("repeats", "x", "winners / jnp.sum(winners, axis=-1, keepdims=True)", "winners",
          elsewhere=lambda rng: (np.ones((5, 5), np.float32),)),
    fault(("transpose", "axis"), "x", "shares * y_bar[:, None]", "shares * y_bar[None, :]"),
    fault("axis", "x", "jnp.sum(winners, axis=-1", "jnp.sum(winners, axis=0"),
    fault(("missing factor", "wrong function"), "x", "shares * y_bar[:, None]",
          "x * shares * y_bar[:, None]"),
    fault(("repeats", "region"), "x", "(x == y[:, None])", "(x > y[:, None] - 1e-3)",
          elsewhere=lambda rng: (1 + normal(rng, 5, 5, scale=1e-4),)),
    also={"ties": lambda rng: (with_ties(rng, 5, 5),)},
)


@jax.custom_vjp
def lower_median(x):
    """The entry of rank (n − 1)//2 of a vector."""
    return jnp.sort(x)[(x.shape[0] - 1) // 2]


def lower_median_fwd(x):
    """Keep its place, and x for its shape."""
    place = jnp.argsort(x)[(x.shape[0] - 1) // 2]
    return x[place], (place, x)


def lower_median_bwd(residuals, y_bar):
    """All of ȳ goes to that entry."""
    place, x = residuals
    return (jnp.zeros_like(x).at[place].set(y_bar),)


lower_median.defvjp(lower_median_fwd, lower_median_bwd)

LOWER_MEDIAN = operation(
    lower_median,
    lambda rng: (normal(rng, 8),),
    fault(("off by one", "permutation"), "x", "at[place].set(y_bar)", "at[place + 1].set(y_bar)"),
    fault(("off by one", "wrong constant", "permutation"), "x",
          "jnp.argsort(x)[(x.shape[0] - 1) // 2]\n    return x[place], (place, x)",
          "jnp.argsort(x)[(x.shape[0] - 1) // 2]\n    return x[place], (jnp.argsort(x)[x.shape[0]"
          " // 2], x)"),
    fault(("entries", "other", "mean or sum"), "x", "jnp.zeros_like(x).at[place].set(y_bar)",
          "jnp.zeros_like(x) + y_bar / x.shape[0]"),
    fault("not deterministic", "x", "at[place].set(y_bar)",
          "at[np.random.randint(x.shape[0])].set(y_bar)"),
)


@jax.custom_vjp
def clipped_norm(x):
    """x scaled down to norm 1 if it is longer."""
    norm = jnp.sqrt(jnp.sum(x**2))
    return jnp.where(norm > 1.0, x / norm, x)


def clipped_norm_fwd(x):
    """Keep x and its norm."""
    norm = jnp.sqrt(jnp.sum(x**2))
    return jnp.where(norm > 1.0, x / norm, x), (x, norm)


def clipped_norm_bwd(residuals, y_bar):
    """Within the ball ȳ; outside (ȳ − u ⟨u, ȳ⟩)/‖x‖."""
    x, norm = residuals
    unit = x / jnp.maximum(norm, 1.0)
    outside = (y_bar - unit * jnp.sum(unit * y_bar)) / jnp.maximum(norm, 1.0)
    return (jnp.where(norm > 1.0, outside, y_bar),)


clipped_norm.defvjp(clipped_norm_fwd, clipped_norm_bwd)

CLIPPED_NORM = operation(
    clipped_norm,
    lambda rng: (normal(rng, 6, scale=2.0),),
    fault(("region", "missing term"), "x", "y_bar - unit * jnp.sum(unit * y_bar)", "y_bar"),
    fault(("region", "missing factor"), "x", " / jnp.maximum(norm, 1.0)\n    return",
          "\n    return"),
    fault("region", "x", "(jnp.where(norm > 1.0, outside, y_bar),)", "(outside,)",
          elsewhere=lambda rng: (normal(rng, 6, scale=0.1),)),
    fault(("missing factor", "wrong operand"), "x", "jnp.sum(unit * y_bar)", "jnp.sum(x * y_bar)"),
    also={"within": lambda rng: (normal(rng, 6, scale=1e-12),)},
)
