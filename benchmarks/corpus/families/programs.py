"""Gradients that are programs: callbacks, batching rules, caches, casts, iterations."""

import jax
import jax.numpy as jnp
import numpy as np  # noqa: F401  (the faults have it)
from jax import lax

from benchmarks.corpus.declare import fault, normal, operation, uniform


@jax.custom_vjp
def log_cosh(x):
    """log cosh x, without overflow."""
    return jnp.logaddexp(x, -x) - jnp.log(2.0)


def log_cosh_fwd(x):
    """Keep x."""
    return jnp.logaddexp(x, -x) - jnp.log(2.0), x


def log_cosh_bwd(x, y_bar):
    """ȳ tanh x."""
    slope = jnp.tanh(x)
    return (y_bar * slope,)


log_cosh.defvjp(log_cosh_fwd, log_cosh_bwd)

LOG_COSH = operation(
    log_cosh,
    lambda rng: (normal(rng, 6),),
    fault(("overflow", "not finite"), "x", "jnp.tanh(x)", "jnp.sinh(x) / jnp.cosh(x)",
          elsewhere=lambda rng: (uniform(rng, 800.0, 900.0, 6),)),
    fault("jit", "x", "y_bar * slope",
          "y_bar * (slope if isinstance(x, jax.core.Tracer) else jnp.tanh(x))",
          ("slope = jnp.tanh(x)", "slope = jnp.clip(x, -1.0, 1.0)")),
    fault("hidden state", "x", "def log_cosh_bwd(x, y_bar):",
          "def log_cosh_bwd(x, y_bar, cache={}):",
          ("    slope = jnp.tanh(x)",
           "    slope = jnp.tanh(x)\n"
           "    if not isinstance(slope, jax.core.Tracer):\n"
           "        slope = cache.setdefault(slope.shape, slope)")),
    fault("wrong function", "x", "jnp.tanh(x)", "jnp.arctan(x)"),
    fault("vmap", "x", "def log_cosh_bwd(x, y_bar):\n",
          "@jax.custom_batching.custom_vmap\ndef log_cosh_slope(x):\n    return jnp.tanh(x)\n\n\n"
          "@log_cosh_slope.def_vmap\ndef log_cosh_slope_batched(size, batched, x):\n"
          "    return jnp.tanh(x[:1]) + 0.0 * x, True\n\n\n"
          "def log_cosh_bwd(x, y_bar):\n",
          ("    slope = jnp.tanh(x)", "    slope = log_cosh_slope(x)")),
    fault("precision", "x", "jnp.tanh(x)", "jnp.tanh(x.astype(jnp.float16)).astype(x.dtype)"),
)


@jax.custom_vjp
def variance(x):
    """The biased variance of each column."""
    return jnp.mean((x - jnp.mean(x, axis=0)) ** 2, axis=0)


def variance_fwd(x):
    """Keep x and its mean."""
    mean = jnp.mean(x, axis=0)
    return jnp.mean((x - mean) ** 2, axis=0), (x, mean)


def variance_bwd(residuals, y_bar):
    """2 (x − m) ȳ/N: the path through the mean cancels."""
    x, mean = residuals
    return (2.0 * (x - mean) * y_bar / x.shape[0],)


variance.defvjp(variance_fwd, variance_bwd)

VARIANCE = operation(
    variance,
    lambda rng: (normal(rng, 8, 2) + 5,),
    fault("missing term", "x", "2.0 * (x - mean)", "2.0 * x"),
    fault(("precision", "dtype"), "x", "(x, mean)\n", "(x, mean.astype(jnp.bfloat16))\n"),
    fault(("factor", "off by one", "mean or sum", "wrong constant"), "x", "y_bar / x.shape[0]",
          "y_bar / (x.shape[0] - 1)"),
    fault("vmap", "x", "(2.0 * (x - mean) * y_bar / x.shape[0],)",
          "(jax.pure_callback(  # the rows are counted inside, where vmap adds an axis\n"
          "        lambda x, mean, t: x.dtype.type(2 / len(x))\n"
          "        * (x - np.expand_dims(mean, -2)) * np.expand_dims(t, -2),\n"
          '        x, x, mean, y_bar, vmap_method="broadcast_all",\n    ),)'),
    fault("second order", "x", "x, mean = residuals",
          "x, mean = residuals\n    mean = lax.stop_gradient(mean)", order=2),
    also={"large mean": lambda rng: (normal(rng, 8, 2) + 1e3,)},
)


@jax.custom_vjp
def square_root(a):
    """√a by Newton's iteration, to rounding."""

    def going(state):
        new, old, count = state
        return jnp.any(jnp.abs(new - old) > 1e-14 * new) & (count < 60)

    def better(state):
        root, _, count = state
        return 0.5 * (root + a / root), root, count + 1

    return lax.while_loop(going, better, (jnp.maximum(a, 1.0), 0.0 * a, 0))[0]


def square_root_truth(a):
    """√a."""
    return jnp.sqrt(a)


def square_root_fwd(a):
    """Keep the root."""
    root = square_root(a)  # itself, so that it can be differentiated again
    return root, root


def square_root_bwd(root, root_bar):
    """ā = r̄/(2 r)."""
    return (root_bar / (2.0 * root),)


square_root.defvjp(square_root_fwd, square_root_bwd)

SQUARE_ROOT = operation(
    square_root,
    lambda rng: (uniform(rng, 0.5, 4.0, 6),),
    fault("factor", "a", "(2.0 * root)", "root"),
    fault(("wrong operand", "wrong function", "missing factor"), "a", "return root, root",
          "return root, a"),
    fault(("wrong function", "missing factor"), "a", "root_bar / (2.0 * root)",
          "root_bar * root / 2.0"),
    fault("factor", "a", "root_bar / (2.0", "1.000001 * root_bar / (2.0"),
    fault("region", "a", "(2.0 * root)", "(2.0 * jnp.maximum(root, 1e-1))",
          elsewhere=lambda rng: (uniform(rng, 1e-4, 9e-3, 6),)),
    hard=True,
    reference="square_root_truth",
)


@jax.custom_vjp
def fixed_point(w, b):
    """The z with z = tanh(w z + b), for a contraction w, by iteration."""
    step = lambda z, _: (jnp.tanh(w @ z + b), None)
    return lax.scan(step, jnp.zeros_like(b), length=120)[0]


def fixed_point_fwd(w, b):
    """Keep w and the solution."""
    z = fixed_point(w, b)
    return z, (w, z)


def fixed_point_bwd(residuals, z_bar):
    """Implicit function theorem: b̄ = d u with (I − wᵀ d) u = z̄, d = 1 − z²."""
    w, z = residuals
    d = 1.0 - z**2
    system = jnp.eye(z.shape[0], dtype=z.dtype) - w.T * d[None, :]
    u = jnp.linalg.solve(system, z_bar)
    b_bar = d * u
    return jnp.outer(b_bar, z), b_bar


fixed_point.defvjp(fixed_point_fwd, fixed_point_bwd)

FIXED_POINT = operation(
    fixed_point,
    lambda rng: (normal(rng, 4, 4, scale=0.2), normal(rng, 4)),
    fault("transpose", ("w", "b"), "w.T * d[None, :]", "w * d[None, :]"),
    fault(("axis", "transpose"), ("w", "b"), "w.T * d[None, :]", "w.T * d[:, None]"),
    fault(("missing term", "wrong operand"), ("w", "b"), "b_bar = d * u", "b_bar = d * z_bar"),
    fault(("missing factor", "wrong operand"), ("w", "b"), "b_bar = d * u", "b_bar = u"),
    fault("transpose", "w", "jnp.outer(b_bar, z)", "jnp.outer(z, b_bar)"),
    fault("sign", ("w", "b"), "dtype=z.dtype) - w.T", "dtype=z.dtype) + w.T"),
    fault("second order", ("w", "b"), "w, z = residuals",
          "w, z = residuals[0], lax.stop_gradient(residuals[1])", order=2),
    hard=True,
)


@jax.custom_vjp
def safe_log(x):
    """log x where x is positive, 0 elsewhere."""
    return jnp.where(x > 0.0, jnp.log(jnp.where(x > 0.0, x, 1.0)), 0.0)


def safe_log_fwd(x):
    """Keep x."""
    return safe_log(x), x


def safe_log_bwd(x, y_bar):
    """ȳ/x where x is positive, 0 elsewhere."""
    inside = x > 0.0
    return (jnp.where(inside, y_bar / jnp.where(inside, x, 1.0), 0.0),)


safe_log.defvjp(safe_log_fwd, safe_log_bwd)

SAFE_LOG = operation(
    safe_log,
    lambda rng: (uniform(rng, 0.3, 3.0, 8),),
    fault(("region", "not finite"), "x",
          "(jnp.where(inside, y_bar / jnp.where(inside, x, 1.0), 0.0),)", "(y_bar / x,)",
          elsewhere=lambda rng: (-uniform(rng, 0.3, 3.0, 8),)),
    fault("not finite", "x", "(jnp.where(inside, y_bar / jnp.where(inside, x, 1.0), 0.0),)",
          "(jnp.where(inside, y_bar, 0.0) / x,)",
          elsewhere=lambda rng: (0 * uniform(rng, 0.3, 3.0, 8),)),
    fault(("precision", "extra term", "missing factor"), "x", "y_bar / jnp.where(inside, x, 1.0)",
          "y_bar / (jnp.where(inside, x, 1.0) + 1e-6)"),
    fault(("region", "not linear"), "x", "y_bar / jnp.where(inside, x, 1.0)",
          "jnp.clip(y_bar / jnp.where(inside, x, 1.0), -1e3, 1e3)",
          elsewhere=lambda rng: (uniform(rng, 1e-6, 1e-5, 8),)),
)
