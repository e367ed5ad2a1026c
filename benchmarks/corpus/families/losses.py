"""Losses: a number, whose cotangent is a number too."""

import jax
import jax.numpy as jnp
from jax import lax  # noqa: F401  (the faults have it)

from benchmarks.corpus.declare import fault, integers, normal, operation, uniform


@jax.custom_vjp
def cross_entropy(logits, labels):
    """Mean over the batch of log Σ exp(z) − z[label]."""
    rows = jnp.arange(labels.shape[0])
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - logits[rows, labels])


def cross_entropy_fwd(logits, labels):
    """Keep the logits, the normalizer and the labels."""
    normalizer = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    rows = jnp.arange(labels.shape[0])
    loss = jnp.mean(normalizer[:, 0] - logits[rows, labels])
    return loss, (logits, normalizer, labels)


def cross_entropy_bwd(residuals, loss_bar):
    """z̄ = (softmax − one-hot) / batch · L̄."""
    logits, normalizer, labels = residuals
    probabilities = jnp.exp(logits - normalizer)
    one_hot = jax.nn.one_hot(labels, logits.shape[1], dtype=logits.dtype)
    logits_bar = (probabilities - one_hot) / logits.shape[0]
    return loss_bar * logits_bar, None


cross_entropy.defvjp(cross_entropy_fwd, cross_entropy_bwd)

CROSS_ENTROPY = operation(
    cross_entropy,
    lambda rng: (normal(rng, 8, 5), integers(rng, 5, 8)),
    fault(("mean or sum", "factor"), "logits", " / logits.shape[0]", ""),
    fault(("factor", "mean or sum", "wrong constant"), "logits", "/ logits.shape[0]",
          "/ logits.shape[1]"),
    fault("sign", "logits", "probabilities - one_hot", "one_hot - probabilities"),
    fault("missing term", "logits", "(probabilities - one_hot)", "probabilities"),
    fault("cotangent ignored", "logits", "loss_bar * logits_bar", "logits_bar"),
    fault("not linear", "logits", "loss_bar * logits_bar", "loss_bar**2 * logits_bar"),
    fault("off by one", "logits", "one_hot(labels,", "one_hot(labels + 1,"),
    fault("overflow", "logits", "jnp.exp(logits - normalizer)",
          "jnp.exp(logits) / jnp.sum(jnp.exp(logits), axis=1, keepdims=True)",
          elsewhere=lambda rng: (normal(rng, 8, 5, scale=2000.0), integers(rng, 5, 8))),
    fault("axis", "logits", "jnp.exp(logits - normalizer)", "jax.nn.softmax(logits, axis=0)"),
    also={
        "huge": lambda rng: (normal(rng, 8, 5, scale=1e6), integers(rng, 5, 8)),
        "many classes": lambda rng: (normal(rng, 4, 40000), integers(rng, 40000, 4)),
        "certain": lambda rng: (normal(rng, 8, 5) + 40 * (integers(rng, 5, 8)[:, None] == 2),
                                integers(rng, 1, 8) + 2),
    },
)


@jax.custom_vjp
def logistic_loss(logits, targets):
    """Sum of softplus(z) − t z: binary cross entropy from logits."""
    return jnp.sum(jax.nn.softplus(logits) - targets * logits)


def logistic_loss_fwd(logits, targets):
    """Keep both operands."""
    return jnp.sum(jax.nn.softplus(logits) - targets * logits), (logits, targets)


def logistic_loss_bwd(residuals, loss_bar):
    """z̄ = L̄ (σ(z) − t);  t̄ = −L̄ z."""
    logits, targets = residuals
    logits_bar = loss_bar * (jax.nn.sigmoid(logits) - targets)
    targets_bar = -loss_bar * logits
    return logits_bar, targets_bar


logistic_loss.defvjp(logistic_loss_fwd, logistic_loss_bwd)

LOGISTIC_LOSS = operation(
    logistic_loss,
    lambda rng: (normal(rng, 3, 6), uniform(rng, 0.0, 1.0, 3, 6)),
    fault(("mean or sum", "factor"), "logits", "return logits_bar, targets_bar",
          "return logits_bar / logits.size, targets_bar"),
    fault("sign", "targets", "targets_bar = -loss_bar", "targets_bar = loss_bar"),
    fault(("missing term", "missing factor", "wrong function", "cotangent ignored"), "targets",
          "-loss_bar * logits", "jnp.zeros_like(targets)"),
    fault(("extra term", "wrong constant"), "logits", "(jax.nn.sigmoid(logits) - targets)",
          "(jax.nn.sigmoid(logits) - targets + 1e-3 * logits)"),
    fault("wrong function", "logits", "jax.nn.sigmoid(logits)", "jax.nn.softplus(logits)"),
    fault(("region", "wrong operand"), "logits", "jax.nn.sigmoid(logits)",
          "jax.nn.sigmoid(jnp.clip(logits, -7.0, 7.0))",
          elsewhere=lambda rng: (uniform(rng, 8.0, 9.0, 3, 6), uniform(rng, 0.0, 1.0, 3, 6))),
    also={"certain": lambda rng: (normal(rng, 3, 6, scale=300.0), uniform(rng, 0.0, 1.0, 3, 6))},
)


@jax.custom_vjp
def huber(prediction, target):
    """Mean of r²/2 where |r| < 1, |r| − ½ beyond."""
    r = prediction - target
    size = jnp.abs(r)
    return jnp.mean(jnp.where(size < 1.0, 0.5 * r * r, size - 0.5))


def huber_fwd(prediction, target):
    """Keep the difference."""
    r = prediction - target
    size = jnp.abs(r)
    return jnp.mean(jnp.where(size < 1.0, 0.5 * r * r, size - 0.5)), r


def huber_bwd(r, loss_bar):
    """r̄ = L̄/N · (r where |r| < 1, sign r beyond)."""
    slope = jnp.where(jnp.abs(r) < 1.0, r, jnp.sign(r))
    r_bar = loss_bar / r.size * slope
    return r_bar, -r_bar


huber.defvjp(huber_fwd, huber_bwd)

HUBER = operation(
    huber,
    lambda rng: (normal(rng, 4, 6), normal(rng, 4, 6)),
    fault("sign", "target", "return r_bar, -r_bar", "return r_bar, r_bar"),
    fault(("mean or sum", "factor"), ("prediction", "target"), "loss_bar / r.size", "loss_bar"),
    fault(("mean or sum", "factor"), ("prediction", "target"), "loss_bar / r.size",
          "loss_bar / r.shape[0]"),
    fault("region", ("prediction", "target"), "r, jnp.sign(r)", "r, 1.0"),
    fault(("region", "factor"), ("prediction", "target"), "< 1.0, r, jnp", "< 1.0, 2.0 * r, jnp"),
    fault(("region", "wrong constant"), ("prediction", "target"), "jnp.abs(r) < 1.0",
          "jnp.abs(r) < 0.5"),
    also={"outliers": lambda rng: (normal(rng, 4, 6, scale=1e15), normal(rng, 4, 6))},
)


@jax.custom_vjp
def kl_divergence(p, q):
    """Σ p (log p − log q), over rows that are distributions, summed."""
    return jnp.sum(p * (jnp.log(p) - jnp.log(q)))


def kl_divergence_fwd(p, q):
    """Keep both and the log ratio."""
    log_ratio = jnp.log(p) - jnp.log(q)
    return jnp.sum(p * log_ratio), (p, q, log_ratio)


def kl_divergence_bwd(residuals, loss_bar):
    """p̄ = L̄ (log p − log q + 1);  q̄ = −L̄ p/q."""
    p, q, log_ratio = residuals
    p_bar = loss_bar * (log_ratio + 1.0)
    q_bar = -loss_bar * p / q
    return p_bar, q_bar


kl_divergence.defvjp(kl_divergence_fwd, kl_divergence_bwd)

KL_DIVERGENCE = operation(
    kl_divergence,
    lambda rng: (uniform(rng, 0.1, 1.0, 4, 4), uniform(rng, 0.1, 1.0, 4, 4)),
    fault(("missing term", "wrong function"), "p", "(log_ratio + 1.0)", "log_ratio"),
    fault("missing factor", "q", "-loss_bar * p / q", "-loss_bar / q"),
    fault(("wrong operand", "wrong function", "missing factor"), "q", "-loss_bar * p / q",
          "-loss_bar * q / p"),
    fault("sign", "q", "q_bar = -loss_bar", "q_bar = loss_bar"),
    fault("wrong constant", "p", "log_ratio + 1.0", "log_ratio + 0.1"),
    fault(("precision", "extra term", "wrong constant", "missing factor"), "q", "p / q",
          "p / (q + 1e-6)"),
    fault("region", "q", "p / q", "p / jnp.maximum(q, 1e-2)",
          elsewhere=lambda rng: (uniform(rng, 0.1, 1.0, 4, 4), uniform(rng, 1e-4, 9e-3, 4, 4))),
)


@jax.custom_vjp
def hinge(scores, labels):
    """Mean over the batch of Σ_k max(0, 1 + s_k − s_label), k ≠ label."""
    true = jnp.take_along_axis(scores, labels[:, None], axis=1)
    others = jnp.arange(scores.shape[1]) != labels[:, None]
    return jnp.mean(jnp.sum(jnp.where(others, jnp.maximum(0.0, 1.0 + scores - true), 0.0), axis=1))


def hinge_fwd(scores, labels):
    """Keep which margins are violated, and the labels."""
    true = jnp.take_along_axis(scores, labels[:, None], axis=1)
    others = jnp.arange(scores.shape[1]) != labels[:, None]
    margins = jnp.where(others, jnp.maximum(0.0, 1.0 + scores - true), 0.0)
    return jnp.mean(jnp.sum(margins, axis=1)), ((margins > 0.0).astype(scores.dtype), labels)


def hinge_bwd(residuals, loss_bar):
    """+1 for each violated margin, minus their number at the label."""
    violated, labels = residuals
    rows = jnp.arange(labels.shape[0])
    scores_bar = violated.at[rows, labels].set(-jnp.sum(violated, axis=1))
    return loss_bar * scores_bar / labels.shape[0], None


hinge.defvjp(hinge_fwd, hinge_bwd)

HINGE = operation(
    hinge,
    lambda rng: (normal(rng, 5, 5), integers(rng, 5, 5)),
    fault(("sign", "entries"), "scores", "set(-jnp.sum", "set(jnp.sum"),
    fault(("entries", "missing factor"), "scores", "set(-jnp.sum(violated, axis=1))", "set(-1.0)"),
    fault(("axis", "entries"), "scores", "jnp.sum(violated, axis=1)", "jnp.sum(violated, axis=0)"),
    fault(("transpose", "entries", "permutation"), "scores", "at[rows, labels]",
          "at[labels, rows]"),
    fault(("mean or sum", "factor"), "scores", " / labels.shape[0], None", ", None"),
    fault(("missing term", "entries"), "scores",
          "violated.at[rows, labels].set(-jnp.sum(violated, axis=1))", "violated"),
)


@jax.custom_vjp
def contrastive(a, b):
    """InfoNCE: mean of log Σ_j exp(a_i·b_j/τ) − a_i·b_i/τ, τ = 0.5."""
    similarity = a @ b.T / 0.5
    return jnp.mean(jax.nn.logsumexp(similarity, axis=1) - jnp.diag(similarity))


def contrastive_fwd(a, b):
    """Keep the operands and the row softmax."""
    similarity = a @ b.T / 0.5
    loss = jnp.mean(jax.nn.logsumexp(similarity, axis=1) - jnp.diag(similarity))
    return loss, (a, b, jax.nn.softmax(similarity, axis=1))


def contrastive_bwd(residuals, loss_bar):
    """S̄ = L̄ (P − I)/N;  ā = S̄ b/τ;  b̄ = S̄ᵀ a/τ."""
    a, b, probabilities = residuals
    identity = jnp.eye(a.shape[0], dtype=a.dtype)
    similarity_bar = loss_bar * (probabilities - identity) / a.shape[0]
    a_bar = similarity_bar @ b / 0.5
    b_bar = similarity_bar.T @ a / 0.5
    return a_bar, b_bar


contrastive.defvjp(contrastive_fwd, contrastive_bwd)

CONTRASTIVE = operation(
    contrastive,
    lambda rng: (normal(rng, 5, 4), normal(rng, 5, 4)),
    fault("transpose", "b", "similarity_bar.T @ a", "similarity_bar @ a"),
    fault("transpose", "a", "similarity_bar @ b", "similarity_bar.T @ b"),
    fault("factor", "a", "similarity_bar @ b / 0.5", "similarity_bar @ b * 0.5"),
    fault(("factor", "wrong constant"), "b", "@ a / 0.5", "@ a"),
    fault("missing term", ("a", "b"), "(probabilities - identity)", "probabilities"),
    fault("axis", ("a", "b"), "softmax(similarity, axis=1)", "softmax(similarity, axis=0)"),
    fault("wrong operand", "b", "similarity_bar.T @ a", "similarity_bar.T @ b"),
    fault("second order", ("a", "b"), "a, b, probabilities = residuals",
          "a, b, probabilities = residuals\n    probabilities = lax.stop_gradient(probabilities)",
          order=2),
)
