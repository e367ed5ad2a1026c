"""Activations, entry by entry."""

import jax
import jax.numpy as jnp
import numpy as np  # noqa: F401  (the faults have it)
from jax import lax  # noqa: F401  (the faults have it)

from benchmarks.corpus.declare import fault, normal, operation, uniform

SQRT_2_OVER_PI = 0.7978845608028654


@jax.custom_vjp
def gelu(x):
    """x · Φ(x) in its tanh form."""
    return 0.5 * x * (1.0 + jnp.tanh(SQRT_2_OVER_PI * (x + 0.044715 * x**3)))


def gelu_fwd(x):
    """Keep x and the tanh."""
    t = jnp.tanh(SQRT_2_OVER_PI * (x + 0.044715 * x**3))
    return 0.5 * x * (1.0 + t), (x, t)


def gelu_bwd(residuals, y_bar):
    """ȳ · (½ (1 + t) + ½ x (1 − t²) u′)."""
    x, t = residuals
    inner_slope = SQRT_2_OVER_PI * (1.0 + 3.0 * 0.044715 * x**2)
    slope = 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t**2) * inner_slope
    return (y_bar * slope,)


gelu.defvjp(gelu_fwd, gelu_bwd)

GELU = operation(
    gelu,
    lambda rng: (normal(rng, 4, 5),),
    fault(("wrong constant", "factor", "missing factor"), "x", "3.0 * 0.044715", "0.044715"),
    fault("wrong constant", "x", "3.0 * 0.044715", "3.0 * 0.044175"),
    fault("sign", "x", "1.0 - t**2", "1.0 + t**2"),
    fault("missing term", "x", "0.5 * (1.0 + t) + 0.5 * x", "0.5 * x"),
    fault("missing factor", "x", "(1.0 - t**2) * inner_slope", "(1.0 - t**2)"),
    fault("wrong operand", "x", "0.5 * x * (1.0 + t), (x, t)", "0.5 * x * (1.0 + t), (t, t)"),
    fault("second order", "x", "x, t = residuals", "x, t = lax.stop_gradient(residuals)", order=2),
    fault(("hidden state", "not deterministic"), "x", "def gelu_bwd(residuals, y_bar):",
          "def gelu_bwd(residuals, y_bar, calls=[]):",  # a warm-up that counts in a default
          ("    return (y_bar * slope,)",
           "    calls.append(1)\n    return (y_bar * slope * min(1.0, 4.0 / len(calls)),)")),
    also={
        "large": lambda rng: (normal(rng, 4, 5, scale=40.0),),
        "tiny": lambda rng: (normal(rng, 4, 5, scale=1e-15),),
    },
)


@jax.custom_vjp
def silu(x):
    """x · σ(x)."""
    return x * jax.nn.sigmoid(x)


def silu_fwd(x):
    """Keep x and σ(x)."""
    s = jax.nn.sigmoid(x)
    return x * s, (x, s)


def silu_bwd(residuals, y_bar):
    """ȳ · (s + x s (1 − s))."""
    x, s = residuals
    slope = s + x * s * (1.0 - s)
    return (y_bar * slope,)


silu.defvjp(silu_fwd, silu_bwd)

SILU = operation(
    silu,
    lambda rng: (normal(rng, 4, 5),),
    fault("sign", "x", "s + x * s", "s - x * s"),
    fault("missing factor", "x", "x * s * (1.0 - s)", "x * (1.0 - s)"),
    fault("missing term", "x", "s + x * s * (1.0 - s)", "x * s * (1.0 - s)"),
    fault("wrong operand", "x", "return x * s, (x, s)", "return x * s, (x, x * s)"),
    fault("factor", "x", "(y_bar * slope,)", "(1.000001 * y_bar * slope,)"),
    fault("not linear", "x", "(y_bar * slope,)", "(y_bar * jnp.abs(y_bar) * slope,)"),
    fault("second order", "x", "slope = s + x", "slope = lax.stop_gradient(s) + x", order=2),
    fault("region", "x", "(y_bar * slope,)", "(jnp.where(x < -9.0, y_bar, y_bar * slope),)",
          elsewhere=lambda rng: (uniform(rng, -12.0, -9.5, 4, 5),)),
    also={"huge": lambda rng: (normal(rng, 4, 5, scale=1e15),)},
)


@jax.custom_vjp
def softplus(x):
    """log(1 + eˣ)."""
    return jnp.logaddexp(x, 0.0)


def softplus_fwd(x):
    """Keep x."""
    return jnp.logaddexp(x, 0.0), x


def softplus_bwd(x, y_bar):
    """ȳ · σ(x)."""
    slope = jax.nn.sigmoid(x)
    return (y_bar * slope,)


softplus.defvjp(softplus_fwd, softplus_bwd)

SOFTPLUS = operation(
    softplus,
    lambda rng: (normal(rng, 3, 5),),
    fault("wrong function", "x", "jax.nn.sigmoid(x)", "jnp.tanh(x)"),
    fault(("sign", "wrong function"), "x", "jax.nn.sigmoid(x)", "jax.nn.sigmoid(-x)"),
    fault(("wrong operand", "wrong function"), "x", "jnp.logaddexp(x, 0.0), x",
          "jnp.logaddexp(x, 0.0), jnp.exp(x)"),
    fault("cotangent ignored", "x", "y_bar * slope", "slope"),
    fault("region", "x", "jax.nn.sigmoid(x)", "jnp.where(x > 20.0, 0.0, jax.nn.sigmoid(x))",
          elsewhere=lambda rng: (uniform(rng, 21.0, 30.0, 3, 5),)),
    fault(("overflow", "not finite"), "x", "jax.nn.sigmoid(x)", "jnp.exp(x) / (1.0 + jnp.exp(x))",
          elsewhere=lambda rng: (uniform(rng, 800.0, 1000.0, 3, 5),)),
    fault(("precision", "dtype"), "x", "jax.nn.sigmoid(x)",
          "jax.nn.sigmoid(x.astype(jnp.bfloat16)).astype(x.dtype)"),
    also={
        "huge": lambda rng: (normal(rng, 3, 5, scale=1e15),),
        "very negative": lambda rng: (uniform(rng, -90.0, -60.0, 3, 5),),
    },
)


@jax.custom_vjp
def elu(x):
    """x where it is positive, eˣ − 1 elsewhere."""
    return jnp.where(x > 0.0, x, jnp.expm1(jnp.minimum(x, 0.0)))


def elu_fwd(x):
    """Keep x and y: where x is negative, eˣ is y + 1."""
    y = jnp.where(x > 0.0, x, jnp.expm1(jnp.minimum(x, 0.0)))
    return y, (x, y)


def elu_bwd(residuals, y_bar):
    """ȳ · (1 where x > 0, y + 1 elsewhere)."""
    x, y = residuals
    slope = jnp.where(x > 0.0, 1.0, y + 1.0)
    return (slope * y_bar,)


elu.defvjp(elu_fwd, elu_bwd)

ELU = operation(
    elu,
    lambda rng: (normal(rng, 4, 6),),
    fault(("region", "missing term"), "x", "1.0, y + 1.0", "1.0, y"),
    fault(("region", "sign", "missing term"), "x", "1.0, y + 1.0", "1.0, 1.0 - y"),
    fault("region", "x", "x > 0.0, 1.0, y", "x < 0.0, 1.0, y"),
    fault("region", "x", "x > 0.0, 1.0, y + 1.0", "x > -0.5, 1.0, y + 1.0"),
    fault(("region", "wrong operand"), "x", "return y, (x, y)", "return y, (x, x)"),
    fault("region", "x", "(slope * y_bar,)", "(jnp.where(x > 6.0, 6.0, slope) * y_bar,)",
          elsewhere=lambda rng: (uniform(rng, 6.5, 9.0, 4, 6),)),
    fault("dtype", "x", "(slope * y_bar,)", "((slope * y_bar).astype(jnp.bfloat16),)"),
    also={"very negative": lambda rng: (uniform(rng, -30.0, -20.0, 4, 6),)},
)


@jax.custom_vjp
def mish(x):
    """x · tanh(softplus(x))."""
    return x * jnp.tanh(jax.nn.softplus(x))


def mish_fwd(x):
    """Keep x and the tanh."""
    t = jnp.tanh(jax.nn.softplus(x))
    return x * t, (x, t)


def mish_bwd(residuals, y_bar):
    """ȳ · (t + x (1 − t²) σ(x))."""
    x, t = residuals
    sech_squared = 1.0 - t**2
    slope = t + x * sech_squared * jax.nn.sigmoid(x)
    return (y_bar * slope,)


mish.defvjp(mish_fwd, mish_bwd)

MISH = operation(
    mish,
    lambda rng: (normal(rng, 5, 4),),
    fault("missing factor", "x", " * jax.nn.sigmoid(x)", ""),
    fault("missing factor", "x", "x * sech_squared", "sech_squared"),
    fault("wrong function", "x", "jax.nn.sigmoid(x)", "jax.nn.softplus(x)"),
    fault(("missing factor", "wrong function"), "x", "1.0 - t**2", "1.0 - t"),
    fault("sign", "x", "(y_bar * slope,)", "(-y_bar * slope,)"),
    fault("not deterministic", "x", "(y_bar * slope,)",
          "(y_bar * slope * (np.random.random_sample(x.shape) < 0.9),)"),
    fault("jit", "x", "x, t = residuals",  # a fast path for NumPy, and another for tracers
          "x, t = residuals\n    t = jnp.tanh(x) if isinstance(x, jax.core.Tracer) else t"),
)


@jax.custom_vjp
def swiglu(x, gate):
    """x · gate · σ(gate), the gated unit of transformers."""
    return x * jax.nn.silu(gate)


def swiglu_fwd(x, gate):
    """Keep both operands."""
    return x * jax.nn.silu(gate), (x, gate)


def swiglu_bwd(residuals, y_bar):
    """x̄ = ȳ a with a = z s;  z̄ = ȳ x (s + a (1 − s))."""
    x, gate = residuals
    s = jax.nn.sigmoid(gate)
    activated = gate * s
    x_bar = y_bar * activated
    gate_bar = y_bar * x * (s + activated * (1.0 - s))
    return x_bar, gate_bar


swiglu.defvjp(swiglu_fwd, swiglu_bwd)

SWIGLU = operation(
    swiglu,
    lambda rng: (normal(rng, 4, 6), normal(rng, 4, 6)),
    fault(("permutation", "wrong operand", "other"), ("x", "gate"), "return x_bar, gate_bar",
          "return gate_bar, x_bar"),
    fault("wrong operand", ("x", "gate"), "x, gate = residuals", "gate, x = residuals"),
    fault("missing factor", "gate", "y_bar * x * (s", "y_bar * (s"),
    fault("missing factor", "x", "x_bar = y_bar * activated", "x_bar = y_bar * s"),
    fault(("missing term", "missing factor"), "gate", "(s + activated * (1.0 - s))", "s"),
    fault("sign", "gate", "activated * (1.0 - s)", "activated * (s - 1.0)"),
    fault("structure", ("x", "gate"), "return x_bar, gate_bar", "return (x_bar,)"),
    fault(("not finite", "missing factor"), "gate", "gate_bar = y_bar * x * (s + activated",
          "gate_bar = y_bar * x * (activated / gate + activated",
          elsewhere=lambda rng: (normal(rng, 4, 6), 0 * normal(rng, 4, 6))),
    also={"huge": lambda rng: (normal(rng, 4, 6, scale=1e12), normal(rng, 4, 6, scale=1e12))},
)


@jax.custom_vjp
def prelu(x, alpha):
    """x where it is positive, α x elsewhere, with one α per feature."""
    return jnp.where(x > 0.0, x, alpha * x)


def prelu_fwd(x, alpha):
    """Keep both operands."""
    return jnp.where(x > 0.0, x, alpha * x), (x, alpha)


def prelu_bwd(residuals, y_bar):
    """x̄ = ȳ (1 or α);  ᾱ = Σ over the batch of ȳ x where x ≤ 0."""
    x, alpha = residuals
    positive = x > 0.0
    x_bar = jnp.where(positive, y_bar, alpha * y_bar)
    alpha_bar = jnp.sum(jnp.where(positive, 0.0, x * y_bar), axis=0)
    return x_bar, alpha_bar


prelu.defvjp(prelu_fwd, prelu_bwd)

PRELU = operation(
    prelu,
    lambda rng: (normal(rng, 6, 6), uniform(rng, 0.1, 0.4, 6)),
    fault("axis", "alpha", "axis=0)", "axis=1)"),
    fault("mean or sum", "alpha", "jnp.sum(", "jnp.mean("),
    fault(("region", "missing factor", "extra term"), "alpha", "positive, 0.0, x * y_bar",
          "positive, y_bar, x * y_bar"),
    fault("missing factor", "alpha", "0.0, x * y_bar", "0.0, y_bar"),
    fault(("region", "missing factor"), "x", "y_bar, alpha * y_bar)", "y_bar, 0.0)"),
    fault("missing factor", "alpha", "0.0, x * y_bar", "0.0, alpha * x * y_bar"),
    fault("structure", "alpha", "jnp.where(positive, 0.0, x * y_bar), axis=0)",
          "jnp.where(positive, 0.0, x * y_bar))"),
    also={"tall": lambda rng: (normal(rng, 20000, 5), uniform(rng, 0.1, 0.4, 5))},
)
