"""Normalizations: every entry's cotangent feels its whole group."""

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.corpus.declare import fault, normal, operation, uniform

EPSILON = 1e-5


@jax.custom_vjp
def layer_norm(x, gamma, beta):
    """γ (x − μ) r + β over the features, r = 1/√(σ² + ε)."""
    mean = jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean((x - mean) ** 2, axis=-1, keepdims=True)
    return gamma * (x - mean) * lax.rsqrt(variance + EPSILON) + beta


def layer_norm_fwd(x, gamma, beta):
    """Keep x̂, r and γ."""
    mean = jnp.mean(x, axis=-1, keepdims=True)
    centred = x - mean
    r = lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + EPSILON)
    x_hat = centred * r
    return gamma * x_hat + beta, (x_hat, r, gamma)


def layer_norm_bwd(residuals, y_bar):
    """x̄ = r (x̂̄ − mean(x̂̄) − x̂ mean(x̂ x̂̄)), x̂̄ = γ ȳ."""
    x_hat, r, gamma = residuals
    x_hat_bar = gamma * y_bar
    mean_bar = jnp.mean(x_hat_bar, axis=-1, keepdims=True)
    projection = jnp.mean(x_hat * x_hat_bar, axis=-1, keepdims=True)
    x_bar = r * (x_hat_bar - mean_bar - x_hat * projection)
    gamma_bar = jnp.sum(x_hat * y_bar, axis=0)
    beta_bar = jnp.sum(y_bar, axis=0)
    return x_bar, gamma_bar, beta_bar


layer_norm.defvjp(layer_norm_fwd, layer_norm_bwd)

LAYER_NORM = operation(
    layer_norm,
    lambda rng: (normal(rng, 6, 6), uniform(rng, 0.5, 1.5, 6), normal(rng, 6)),
    fault("sign", "x", "x_hat_bar - mean_bar - x_hat", "x_hat_bar - mean_bar + x_hat"),
    fault("missing term", "x", " - x_hat * projection", ""),
    fault("missing term", "x", "x_hat_bar - mean_bar - x_hat", "x_hat_bar - x_hat"),
    fault(("missing factor", "wrong operand"), "x", "x_hat_bar = gamma * y_bar",
          "x_hat_bar = y_bar"),
    fault("missing factor", "x", "x_bar = r * (x_hat_bar", "x_bar = (x_hat_bar"),
    fault("axis", "x", "mean_bar = jnp.mean(x_hat_bar, axis=-1",
          "mean_bar = jnp.mean(x_hat_bar, axis=0"),
    fault("axis", "gamma", "jnp.sum(x_hat * y_bar, axis=0)", "jnp.sum(x_hat * y_bar, axis=1)"),
    fault("mean or sum", "beta", "jnp.sum(y_bar, axis=0)", "jnp.mean(y_bar, axis=0)"),
    fault("mean or sum", "x", "projection = jnp.mean", "projection = jnp.sum"),
    fault("wrong operand", "gamma", "jnp.sum(x_hat * y_bar, axis=0)",
          "jnp.sum(x_hat * x_hat_bar, axis=0)"),
    fault(("wrong operand", "missing factor"), "x",
          "x_hat = centred * r\n    return gamma * x_hat + beta, (x_hat,",
          "x_hat = centred * r\n    return gamma * x_hat + beta, (centred,"),
    fault("second order", "x", "x_hat, r, gamma = residuals",
          "x_hat, r, gamma = residuals\n    r = lax.stop_gradient(r)", order=2),
    fault(("sign", "missing term"), ("x", "beta"), "x_hat_bar - mean_bar - x_hat",
          "x_hat_bar + mean_bar - x_hat", ("beta_bar = jnp.sum", "beta_bar = -jnp.sum")),
    also={
        "large mean": lambda rng: (1e4 + normal(rng, 6, 6), normal(rng, 6), normal(rng, 6)),
        "tiny": lambda rng: (normal(rng, 6, 6, scale=1e-12), normal(rng, 6), normal(rng, 6)),
        "wide": lambda rng: (normal(rng, 2, 50000), normal(rng, 50000), normal(rng, 50000)),
    },
)


@jax.custom_vjp
def rms_norm(x, gamma):
    """γ x r, r = 1/√(mean x² + ε)."""
    return gamma * x * lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + EPSILON)


def rms_norm_fwd(x, gamma):
    """Keep x, r and γ."""
    r = lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + EPSILON)
    return gamma * x * r, (x, r, gamma)


def rms_norm_bwd(residuals, y_bar):
    """x̄ = r (γ ȳ − x r² mean(x γ ȳ));  γ̄ = Σ ȳ x r."""
    x, r, gamma = residuals
    scaled = gamma * y_bar
    projection = jnp.mean(x * scaled, axis=-1, keepdims=True)
    x_bar = r * (scaled - x * r**2 * projection)
    gamma_bar = jnp.sum(y_bar * x * r, axis=(0, 1))
    return x_bar, gamma_bar


rms_norm.defvjp(rms_norm_fwd, rms_norm_bwd)

RMS_NORM = operation(
    rms_norm,
    lambda rng: (normal(rng, 2, 4, 6), uniform(rng, 0.5, 1.5, 6)),
    fault("missing factor", "x", "x * r**2 * projection", "x * r * projection"),
    fault(("factor", "mean or sum", "missing factor"), "x",
          "jnp.mean(x * scaled, axis=-1, keepdims=True)",
          "jnp.mean(x * scaled, axis=-1, keepdims=True) / x.shape[-1]"),
    fault("missing factor", "gamma", "y_bar * x * r, axis", "y_bar * x, axis"),
    fault("sign", "x", "scaled - x * r**2", "scaled + x * r**2"),
    fault("factor", "gamma", "return x_bar, gamma_bar", "return x_bar, 2.0 * gamma_bar"),
    fault("factor", "x", "x_bar = r * (", "x_bar = 1.000001 * r * ("),
    fault(("structure", "missing sum"), "gamma", "axis=(0, 1))", "axis=0)"),
    fault("axis", "x", "x * scaled, axis=-1", "x * scaled, axis=-2"),
    fault(("precision", "dtype"), "x", "x, r, gamma = residuals",
          "x, r, gamma = residuals\n    r = r.astype(jnp.bfloat16).astype(x.dtype)"),
    also={
        "huge": lambda rng: (normal(rng, 2, 4, 6, scale=1e15), normal(rng, 6)),
        "tiny": lambda rng: (normal(rng, 2, 4, 6, scale=1e-15), normal(rng, 6)),
    },
)


@jax.custom_vjp
def batch_norm(x, gamma, beta):
    """γ (x − μ)/σ + β with the batch's own mean and variance, one per channel."""
    mean = jnp.mean(x, axis=(0, 1))
    variance = jnp.mean((x - mean) ** 2, axis=(0, 1))
    return gamma * (x - mean) / jnp.sqrt(variance + EPSILON) + beta


def batch_norm_fwd(x, gamma, beta):
    """Keep the centred x, σ and γ."""
    centred = x - jnp.mean(x, axis=(0, 1))
    deviation = jnp.sqrt(jnp.mean(centred**2, axis=(0, 1)) + EPSILON)
    return gamma * centred / deviation + beta, (centred, deviation, gamma)


def batch_norm_bwd(residuals, y_bar):
    """By way of the variance and the mean, as the paper has it."""
    centred, deviation, gamma = residuals
    count = centred.shape[0] * centred.shape[1]
    x_hat_bar = y_bar * gamma
    variance_bar = jnp.sum(x_hat_bar * centred, axis=(0, 1)) * -0.5 * deviation**-3
    mean_bar = -jnp.sum(x_hat_bar, axis=(0, 1)) / deviation
    x_bar = x_hat_bar / deviation + variance_bar * 2.0 * centred / count + mean_bar / count
    gamma_bar = jnp.sum(y_bar * centred / deviation, axis=(0, 1))
    beta_bar = jnp.sum(y_bar, axis=(0, 1))
    return x_bar, gamma_bar, beta_bar


batch_norm.defvjp(batch_norm_fwd, batch_norm_bwd)

BATCH_NORM = operation(
    batch_norm,
    lambda rng: (normal(rng, 4, 3, 5), uniform(rng, 0.5, 1.5, 5), normal(rng, 5)),
    fault(("missing term", "factor", "wrong constant"), "x", "variance_bar * 2.0 * centred",
          "variance_bar * centred"),
    fault(("mean or sum", "missing term", "factor"), "x", "centred.shape[0] * centred.shape[1]",
          "centred.shape[0]"),
    fault("missing term", "x", " + mean_bar / count", ""),
    fault("missing term", "x", " + variance_bar * 2.0 * centred / count", ""),
    fault(("missing factor", "wrong constant"), "x", "deviation**-3", "deviation**-2"),
    fault("sign", "x", "* -0.5 * deviation", "* 0.5 * deviation"),
    fault("sign", "x", "mean_bar = -jnp.sum", "mean_bar = jnp.sum"),
    fault("missing factor", "gamma", "y_bar * centred / deviation, axis", "y_bar * centred, axis"),
    fault(("factor", "mean or sum"), "x", "return x_bar, gamma_bar",
          "return x_bar / count, gamma_bar"),
    fault("second order", "x", "centred, deviation, gamma = residuals",
          "centred, deviation, gamma = residuals\n    deviation = lax.stop_gradient(deviation)",
          order=2),
    also={"large mean": lambda rng: (1e3 + normal(rng, 4, 3, 5), normal(rng, 5), normal(rng, 5))},
)


@jax.custom_vjp
def l2_normalize(x):
    """x / ‖x‖ along the last axis."""
    return x / jnp.sqrt(jnp.sum(x**2, axis=-1, keepdims=True))


def l2_normalize_fwd(x):
    """Keep the unit vector and the norm."""
    norm = jnp.sqrt(jnp.sum(x**2, axis=-1, keepdims=True))
    unit = x / norm
    return unit, (unit, norm)


def l2_normalize_bwd(residuals, y_bar):
    """x̄ = (ȳ − u ⟨u, ȳ⟩) / ‖x‖."""
    unit, norm = residuals
    along = jnp.sum(unit * y_bar, axis=-1, keepdims=True)
    return ((y_bar - unit * along) / norm,)


l2_normalize.defvjp(l2_normalize_fwd, l2_normalize_bwd)

L2_NORMALIZE = operation(
    l2_normalize,
    lambda rng: (normal(rng, 5, 5),),
    fault("missing term", "x", "(y_bar - unit * along) / norm", "y_bar / norm"),
    fault("missing factor", "x", "(y_bar - unit * along) / norm",
          "(y_bar - unit * along) / norm**2"),
    fault("axis", "x", "y_bar, axis=-1", "y_bar, axis=0"),
    fault("sign", "x", "y_bar - unit * along", "y_bar + unit * along"),
    fault(("wrong operand", "missing factor"), "x", "return unit, (unit, norm)",
          "return unit, (x, norm)"),
    fault("mean or sum", "x", "along = jnp.sum(", "along = jnp.mean("),
    fault("not linear", "x", "y_bar - unit * along", "y_bar - unit * jnp.abs(along)"),
    also={
        "tiny": lambda rng: (normal(rng, 5, 5, scale=1e-15),),
        "huge": lambda rng: (normal(rng, 5, 5, scale=1e15),),
    },
)


@jax.custom_vjp
def weight_norm(v, scale):
    """w = s v / ‖v‖, a norm per column."""
    return scale * v / jnp.linalg.norm(v, axis=0)


def weight_norm_fwd(v, scale):
    """Keep the operands and the norms."""
    norm = jnp.sqrt(jnp.sum(v * v, axis=0))
    return scale * v / norm, (v, scale, norm)


def weight_norm_bwd(residuals, w_bar):
    """s̄ = ⟨v, w̄⟩/‖v‖;  v̄ = s/‖v‖ (w̄ − s̄ v/‖v‖)."""
    v, scale, norm = residuals
    scale_bar = jnp.sum(w_bar * v, axis=0) / norm
    v_bar = scale / norm * (w_bar - scale_bar * v / norm)
    return v_bar, scale_bar


weight_norm.defvjp(weight_norm_fwd, weight_norm_bwd)

WEIGHT_NORM = operation(
    weight_norm,
    lambda rng: (normal(rng, 4, 4), uniform(rng, 0.5, 2.0, 4)),
    fault("missing factor", "v", "scale_bar * v / norm)", "scale_bar * v)"),
    fault("missing factor", "v", "scale / norm * (", "1.0 / norm * ("),
    fault("missing factor", ("v", "scale"), "jnp.sum(w_bar * v, axis=0) / norm",
          "jnp.sum(w_bar * v, axis=0)"),
    fault("axis", ("v", "scale"), "w_bar * v, axis=0", "w_bar * v, axis=1"),
    fault(("extra term", "not linear"), "v", "w_bar - scale_bar * v / norm)",
          "w_bar - scale_bar * v / norm) + 0.01 * v"),
    fault("second order", "v", "v, scale, norm = residuals",
          "v, scale, norm = residuals\n    norm = lax.stop_gradient(norm)", order=2),
)


@jax.custom_vjp
def group_norm(x):
    """Channels in two groups, each brought to mean 0 and variance 1."""
    groups = x.reshape(x.shape[0], 2, -1)
    mean = jnp.mean(groups, axis=2, keepdims=True)
    variance = jnp.var(groups, axis=2, keepdims=True)
    return ((groups - mean) / jnp.sqrt(variance + EPSILON)).reshape(x.shape)


def group_norm_fwd(x):
    """Keep the normalized groups and 1/σ."""
    groups = x.reshape(x.shape[0], 2, -1)
    mean = jnp.mean(groups, axis=2, keepdims=True)
    r = lax.rsqrt(jnp.var(groups, axis=2, keepdims=True) + EPSILON)
    x_hat = (groups - mean) * r
    return x_hat.reshape(x.shape), (x_hat, r)


def group_norm_bwd(residuals, y_bar):
    """r (ȳ − mean ȳ − x̂ mean(x̂ ȳ)) by group."""
    x_hat, r = residuals
    groups_bar = y_bar.reshape(x_hat.shape)
    centred_bar = groups_bar - jnp.mean(groups_bar, axis=2, keepdims=True)
    projection = jnp.mean(x_hat * groups_bar, axis=2, keepdims=True)
    x_bar = r * (centred_bar - x_hat * projection)
    return (x_bar.reshape(y_bar.shape),)


group_norm.defvjp(group_norm_fwd, group_norm_bwd)

GROUP_NORM = operation(
    group_norm,
    lambda rng: (normal(rng, 3, 4, 4),),
    fault("axis", "x", "jnp.mean(groups_bar, axis=2", "jnp.mean(groups_bar, axis=1"),
    fault(("axis", "missing sum"), "x", "x_hat * groups_bar, axis=2",
          "x_hat * groups_bar, axis=(1, 2)"),
    fault(("transpose", "permutation"), "x", "(x_bar.reshape(y_bar.shape),)",
          "(x_bar.reshape(y_bar.shape).swapaxes(1, 2),)"),
    fault("missing factor", "x", "x_bar = r * (", "x_bar = r**2 * ("),
    fault(("factor", "missing factor"), "x", "(x_hat, r)\n",  # Bessel's correction, in one place
          "(x_hat, r * jnp.sqrt(1.0 - 1.0 / x_hat.shape[2]))\n"),
)
