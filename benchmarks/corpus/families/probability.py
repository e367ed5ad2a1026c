"""Densities, special functions and reparametrized samples."""

import jax
import jax.numpy as jnp
import numpy as np  # noqa: F401  (the faults have it)
from jax.scipy.special import digamma, gammaln, ndtr  # noqa: F401  (the faults have it)

from benchmarks.corpus.declare import fault, integers, normal, operation, uniform


@jax.custom_vjp
def gaussian_log_density(x, mean, log_scale):
    """Σ −½ ((x − μ)/σ)² − log σ − ½ log 2π, one μ and log σ per feature."""
    z = (x - mean) * jnp.exp(-log_scale)
    return jnp.sum(-0.5 * z**2 - log_scale - 0.5 * jnp.log(2.0 * jnp.pi))


def gaussian_log_density_fwd(x, mean, log_scale):
    """Keep z and 1/σ."""
    precision = jnp.exp(-log_scale)
    z = (x - mean) * precision
    return jnp.sum(-0.5 * z**2 - log_scale - 0.5 * jnp.log(2.0 * jnp.pi)), (z, precision)


def gaussian_log_density_bwd(residuals, y_bar):
    """x̄ = −ȳ z/σ;  μ̄ = −Σ x̄;  log σ bar = ȳ Σ (z² − 1)."""
    z, precision = residuals
    x_bar = -y_bar * z * precision
    mean_bar = -jnp.sum(x_bar, axis=0)
    log_scale_bar = y_bar * jnp.sum(z**2 - 1.0, axis=0)
    return x_bar, mean_bar, log_scale_bar


gaussian_log_density.defvjp(gaussian_log_density_fwd, gaussian_log_density_bwd)

GAUSSIAN_LOG_DENSITY = operation(
    gaussian_log_density,
    lambda rng: (normal(rng, 4, 4), normal(rng, 4), normal(rng, 4, scale=0.3)),
    fault(("missing term", "wrong function"), "log_scale", "z**2 - 1.0", "z**2"),
    fault(("sign", "reversal"), "log_scale", "z**2 - 1.0", "1.0 - z**2"),
    fault("missing factor", ("x", "mean"), "-y_bar * z * precision", "-y_bar * z"),
    fault("missing factor", ("x", "mean"), "-y_bar * z * precision", "-y_bar * z * precision**2"),
    fault("axis", "mean", "-jnp.sum(x_bar, axis=0)", "-jnp.sum(x_bar, axis=1)"),
    fault(("missing sum", "mean or sum", "factor", "wrong constant"), "log_scale",
          "y_bar * jnp.sum(z**2 - 1.0, axis=0)", "y_bar * (jnp.sum(z**2, axis=0) - 1.0)"),
    fault(("cotangent ignored", "missing factor"), "log_scale", "y_bar * jnp.sum(z**2",
          "jnp.sum(z**2"),
    also={"far out": lambda rng: (normal(rng, 4, 4, scale=1e6), normal(rng, 4), normal(rng, 4))},
)


@jax.custom_vjp
def normal_log_cdf(x):
    """log Φ(x)."""
    return jax.scipy.special.log_ndtr(x)


def normal_log_cdf_fwd(x):
    """Keep x and the output."""
    y = jax.scipy.special.log_ndtr(x)
    return y, (x, y)


def normal_log_cdf_bwd(residuals, y_bar):
    """ȳ φ(x)/Φ(x), as one exponential."""
    x, y = residuals
    log_density = -0.5 * x**2 - 0.5 * jnp.log(2.0 * jnp.pi)
    return (y_bar * jnp.exp(log_density - y),)


normal_log_cdf.defvjp(normal_log_cdf_fwd, normal_log_cdf_bwd)

NORMAL_LOG_CDF = operation(
    normal_log_cdf,
    lambda rng: (normal(rng, 7),),
    fault(("not finite", "overflow"), "x",
          "jnp.exp(log_density - y)", "jnp.exp(log_density) / ndtr(x)",
          elsewhere=lambda rng: (uniform(rng, -60.0, -50.0, 7),)),
    fault("missing factor", "x", "jnp.exp(log_density - y)", "jnp.exp(log_density)"),
    fault(("missing factor", "factor", "wrong constant"), "x", "jnp.log(2.0 * jnp.pi)",
          "jnp.log(jnp.pi)"),
    fault("sign", "x", "log_density = -0.5 * x**2", "log_density = 0.5 * x**2"),
    fault("sign", "x", "log_density - y", "log_density + y"),
    fault("region", "x", "jnp.exp(log_density - y)",
          "jnp.where(x < -5.0, -x, jnp.exp(log_density - y))",
          elsewhere=lambda rng: (uniform(rng, -9.0, -6.0, 7),)),
    also={"left tail": lambda rng: (uniform(rng, -30.0, -10.0, 7),)},
)


@jax.custom_vjp
def log_beta(a, b):
    """log B(a, b) = log Γ(a) + log Γ(b) − log Γ(a + b), with b broadcast over rows."""
    return gammaln(a) + gammaln(b) - gammaln(a + b)


def log_beta_fwd(a, b):
    """Keep both."""
    return gammaln(a) + gammaln(b) - gammaln(a + b), (a, b)


def log_beta_bwd(residuals, y_bar):
    """ā = ȳ (ψ(a) − ψ(a + b)); b̄ likewise, summed over the rows."""
    a, b = residuals
    both = digamma(a + b)
    a_bar = y_bar * (digamma(a) - both)
    b_bar = jnp.sum(y_bar * (digamma(b) - both), axis=0)
    return a_bar, b_bar


log_beta.defvjp(log_beta_fwd, log_beta_bwd)

LOG_BETA = operation(
    log_beta,
    lambda rng: (uniform(rng, 0.5, 3.0, 4, 4), uniform(rng, 0.5, 3.0, 4)),
    fault("missing term", "a", "y_bar * (digamma(a) - both)", "y_bar * digamma(a)"),
    fault("sign", ("a", "b"), "digamma(a) - both", "digamma(a) + both",
          ("digamma(b) - both", "digamma(b) + both")),
    fault("wrong function", "a", "(digamma(a) - both)", "(gammaln(a) - both)"),
    fault("wrong operand", "b", "digamma(b) - both", "digamma(a) - both"),
    fault("axis", "b", "(digamma(b) - both), axis=0", "(digamma(b) - both), axis=1"),
    fault("region", "a", "digamma(a)", "jnp.where(a > 10.0, jnp.log(a), digamma(a))",
          elsewhere=lambda rng: (uniform(rng, 11.0, 20.0, 4, 4), uniform(rng, 0.5, 3.0, 4))),
)


@jax.custom_vjp
def gumbel_softmax(logits, noise):
    """softmax((z + gumbel)/τ), τ = 0.7, the noise given as uniforms."""
    return jax.nn.softmax((logits - jnp.log(-jnp.log(noise))) / 0.7, axis=-1)


def gumbel_softmax_fwd(logits, noise):
    """Keep the sample and the noise."""
    y = jax.nn.softmax((logits - jnp.log(-jnp.log(noise))) / 0.7, axis=-1)
    return y, (y, noise)


def gumbel_softmax_bwd(residuals, y_bar):
    """z̄ = y (ȳ − Σ y ȳ)/τ;  ū = −z̄ /(u log u)."""
    y, noise = residuals
    logits_bar = y * (y_bar - jnp.sum(y * y_bar, axis=-1, keepdims=True)) / 0.7
    noise_bar = -logits_bar / (noise * jnp.log(noise))
    return logits_bar, noise_bar


gumbel_softmax.defvjp(gumbel_softmax_fwd, gumbel_softmax_bwd)

GUMBEL_SOFTMAX = operation(
    gumbel_softmax,
    lambda rng: (normal(rng, 4, 4), uniform(rng, 0.05, 0.95, 4, 4)),
    fault(("factor", "missing factor"), ("logits", "noise"), "keepdims=True)) / 0.7",
          "keepdims=True))"),
    fault("sign", "noise", "noise_bar = -logits_bar", "noise_bar = logits_bar"),
    fault("missing factor", "noise", "(noise * jnp.log(noise))", "jnp.log(noise)"),
    fault("missing factor", "noise", "(noise * jnp.log(noise))", "noise"),
    fault(("missing term", "cotangent ignored"), "noise", "return logits_bar, noise_bar",
          "return logits_bar, jnp.zeros_like(noise)"),
    fault("not deterministic", "logits", "y, noise = residuals",
          "y, noise = residuals\n    y = y + np.random.default_rng().normal(0.0, 1e-3, "
          "y.shape).astype(y.dtype)"),
)


@jax.custom_vjp
def dropout(x, kept):
    """x/(1 − 0.25) where it is kept."""
    return jnp.where(kept, x / 0.75, 0.0)


def dropout_fwd(x, kept):
    """Keep the mask."""
    return jnp.where(kept, x / 0.75, 0.0), kept


def dropout_bwd(kept, y_bar):
    """The same mask and scale."""
    x_bar = jnp.where(kept, y_bar / 0.75, 0.0)
    return x_bar, None


dropout.defvjp(dropout_fwd, dropout_bwd)

DROPOUT = operation(
    dropout,
    lambda rng: (normal(rng, 5, 5), rng.random((5, 5)) < 0.75),
    fault(("factor", "missing factor"), "x", "y_bar / 0.75", "y_bar"),
    fault(("factor", "wrong constant"), "x", "y_bar / 0.75", "y_bar * 0.75"),
    fault("not deterministic", "x", "jnp.where(kept, y_bar / 0.75",
          "jnp.where(np.random.random_sample(y_bar.shape) < 0.75, y_bar / 0.75"),
    fault("hidden state", "x", "def dropout_bwd(kept, y_bar):",
          "def dropout_bwd(kept, y_bar, masks={}):",
          ("    x_bar = jnp.where(kept, y_bar",
           "    if not isinstance(kept, jax.core.Tracer):  # the first mask is kept for good\n"
           "        kept = masks.setdefault(kept.shape, kept)\n"
           "    x_bar = jnp.where(kept, y_bar")),
    fault(("entries", "transpose", "wrong operand"), "x", "jnp.where(kept, y_bar / 0.75",
          "jnp.where(kept.T, y_bar / 0.75"),
)


@jax.custom_vjp
def poisson_loss(log_rate, counts):
    """Σ exp(η) − k η, for counted k."""
    return jnp.sum(jnp.exp(log_rate) - counts * log_rate)


def poisson_loss_fwd(log_rate, counts):
    """Keep both."""
    return jnp.sum(jnp.exp(log_rate) - counts * log_rate), (log_rate, counts)


def poisson_loss_bwd(residuals, loss_bar):
    """η̄ = L̄ (exp(η) − k)."""
    log_rate, counts = residuals
    log_rate_bar = loss_bar * (jnp.exp(log_rate) - counts)
    return log_rate_bar, None


poisson_loss.defvjp(poisson_loss_fwd, poisson_loss_bwd)

POISSON_LOSS = operation(
    poisson_loss,
    lambda rng: (normal(rng, 9), integers(rng, 5, 9)),
    fault("wrong function", "log_rate", "jnp.exp(log_rate) - counts)",
          "jnp.expm1(log_rate) - counts)"),
    fault("missing term", "log_rate", "(jnp.exp(log_rate) - counts)", "jnp.exp(log_rate)"),
    fault(("region", "overflow"), "log_rate", "jnp.exp(log_rate) - counts)",
          "jnp.exp(jnp.minimum(log_rate, 10.0)) - counts)",
          elsewhere=lambda rng: (uniform(rng, 11.0, 12.0, 9), integers(rng, 5, 9))),
    fault(("hidden state", "not deterministic"), "log_rate",
          "def poisson_loss_bwd(residuals, loss_bar):",
          "def poisson_loss_bwd(residuals, loss_bar, last=[0.0]):",
          ("    return log_rate_bar, None",
           "    last[0] = 0.9 * last[0] + 0.1  # a momentum that never was asked for\n"
           "    return log_rate_bar * (1.0 + last[0] - 0.1), None")),
    fault("region", "log_rate", "- counts)\n", "- jnp.minimum(counts, 5))\n",
          elsewhere=lambda rng: (normal(rng, 9), 6 + integers(rng, 5, 9))),
)
