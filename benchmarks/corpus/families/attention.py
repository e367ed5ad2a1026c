"""Attention and its parts."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax  # noqa: F401  (the faults have it)

from benchmarks.corpus.declare import fault, normal, operation, uniform


@jax.custom_vjp
def softmax(x):
    """exp(x) / Σ exp(x) along the last axis."""
    exponentials = jnp.exp(x - jnp.max(x, axis=-1, keepdims=True))
    return exponentials / jnp.sum(exponentials, axis=-1, keepdims=True)


def softmax_fwd(x):
    """Keep the output."""
    p = jax.nn.softmax(x, axis=-1)
    return p, p


def softmax_bwd(p, p_bar):
    """p (p̄ − Σ p p̄)."""
    weighted = jnp.sum(p * p_bar, axis=-1, keepdims=True)
    return (p * (p_bar - weighted),)


softmax.defvjp(softmax_fwd, softmax_bwd)

SOFTMAX = operation(
    softmax,
    lambda rng: (normal(rng, 5, 5),),
    fault(("axis", "transpose"), "x", "axis=-1, keepdims=True)\n    return",
          "axis=-1)\n    return"),
    fault("missing term", "x", "p * (p_bar - weighted)", "p * p_bar"),
    fault("missing factor", "x", "(p * (p_bar - weighted),)", "(p_bar - weighted,)"),
    fault("sign", "x", "p_bar - weighted", "p_bar + weighted"),
    fault("mean or sum", "x", "weighted = jnp.sum", "weighted = jnp.mean"),
    fault(("missing factor", "wrong operand"), "x", "jnp.sum(p * p_bar,", "jnp.sum(p_bar,"),
    fault(("wrong function", "missing term"), "x", "(p * (p_bar - weighted),)",
          "(p * (1.0 - p) * p_bar,)"),
    fault(("wrong operand", "missing factor"), "x", "return p, p", "return p, x"),
    fault("second order", "x", "weighted = jnp.sum(p *",
          "weighted = jnp.sum(lax.stop_gradient(p) *", order=2),
    fault("vmap", "x", "weighted = jnp.sum(p * p_bar, axis=-1, keepdims=True)",
          "total = jax.ShapeDtypeStruct((*p.shape[:-1], 1), p.dtype)\n"
          "    weighted = jax.pure_callback(  # one call for the whole batch, axes counted from 0\n"
          "        lambda p, p_bar: np.sum(p * p_bar, axis=1, keepdims=True)[..., :1],\n"
          "        total, p, p_bar, vmap_method=\"broadcast_all\",\n"
          "    )"),
    also={
        "huge": lambda rng: (normal(rng, 5, 5, scale=1e6),),
        "wide": lambda rng: (normal(rng, 2, 60000),),
        "one class wins": lambda rng: (normal(rng, 5, 5) + np.eye(5, dtype=np.float32) * 50,),
    },
)


@jax.custom_vjp
def log_softmax(x):
    """x − log Σ exp(x) along the last axis."""
    return x - jax.nn.logsumexp(x, axis=-1, keepdims=True)


def log_softmax_fwd(x):
    """Keep the output."""
    y = x - jax.nn.logsumexp(x, axis=-1, keepdims=True)
    return y, y


def log_softmax_bwd(y, y_bar):
    """ȳ − exp(y) Σ ȳ."""
    total = jnp.sum(y_bar, axis=-1, keepdims=True)
    return (y_bar - jnp.exp(y) * total,)


log_softmax.defvjp(log_softmax_fwd, log_softmax_bwd)

LOG_SOFTMAX = operation(
    log_softmax,
    lambda rng: (normal(rng, 6, 4),),
    fault(("missing factor", "missing sum"), "x", "jnp.exp(y) * total", "jnp.exp(y) * y_bar"),
    fault(("wrong operand", "overflow"), "x", "return y, y", "return y, x"),
    fault("wrong function", "x", "jnp.exp(y) * total", "y * total"),
    fault("axis", "x", "y_bar, axis=-1", "y_bar, axis=0"),
    fault("missing term", "x", "y_bar - jnp.exp(y) * total", "y_bar"),
    fault("factor", "x", "total = jnp.sum(y_bar", "total = 1.00001 * jnp.sum(y_bar"),
    also={"huge": lambda rng: (normal(rng, 6, 4, scale=1e6),)},
)


@jax.custom_vjp
def attention(q, k, v):
    """softmax(q kᵀ/√d) v, heads first."""
    scores = jnp.einsum("hid,hjd->hij", q, k) / jnp.sqrt(q.shape[-1])
    return jnp.einsum("hij,hjd->hid", jax.nn.softmax(scores, axis=-1), v)


def attention_fwd(q, k, v):
    """Keep the operands and the weights."""
    scores = jnp.einsum("hid,hjd->hij", q, k) / jnp.sqrt(q.shape[-1])
    weights = jax.nn.softmax(scores, axis=-1)
    return jnp.einsum("hij,hjd->hid", weights, v), (q, k, v, weights)


def attention_bwd(residuals, y_bar):
    """v̄ = Pᵀ ȳ; P̄ = ȳ vᵀ; S̄ = P (P̄ − Σ P P̄); q̄ = S̄ k/√d; k̄ = S̄ᵀ q/√d."""
    q, k, v, weights = residuals
    scale = 1.0 / q.shape[-1] ** 0.5
    v_bar = jnp.einsum("hij,hid->hjd", weights, y_bar)
    weights_bar = jnp.einsum("hid,hjd->hij", y_bar, v)
    correction = jnp.sum(weights * weights_bar, axis=-1, keepdims=True)
    scores_bar = weights * (weights_bar - correction)
    q_bar = scale * jnp.einsum("hij,hjd->hid", scores_bar, k)
    k_bar = scale * jnp.einsum("hij,hid->hjd", scores_bar, q)
    return q_bar, k_bar, v_bar


attention.defvjp(attention_fwd, attention_bwd)

ATTENTION = operation(
    attention,
    lambda rng: (normal(rng, 2, 4, 4), normal(rng, 2, 4, 4), normal(rng, 2, 4, 4)),
    fault(("factor", "missing factor"), "q", "q_bar = scale * jnp", "q_bar = jnp"),
    fault(("factor", "missing factor", "wrong constant"), ("q", "k"), "1.0 / q.shape[-1] ** 0.5",
          "1.0 / q.shape[-1]"),
    fault("transpose", "k", '"hij,hid->hjd", scores_bar', '"hji,hid->hjd", scores_bar'),
    fault("transpose", "v", '"hij,hid->hjd", weights', '"hji,hid->hjd", weights'),
    fault("missing term", ("q", "k"), "(weights_bar - correction)", "weights_bar"),
    fault("axis", ("q", "k"), "weights * weights_bar, axis=-1", "weights * weights_bar, axis=-2"),
    fault("wrong operand", "k", "scores_bar, q)", "scores_bar, k)"),
    fault(("wrong operand", "not linear", "cotangent ignored"), "v", "weights, y_bar)",
          "weights, v)"),
    fault("missing factor", ("q", "k"), "scores_bar = weights * (", "scores_bar = ("),
    fault(("factor", "sign"), ("q", "v"), "q_bar = scale * jnp", "q_bar = 2.0 * scale * jnp",
          ("v_bar = jnp.einsum", "v_bar = -jnp.einsum")),
    also={
        "long": lambda rng: tuple(normal(rng, 1, 300, 8) for _ in range(3)),
        "sharp": lambda rng: (normal(rng, 2, 4, 4, scale=30), normal(rng, 2, 4, 4, scale=30),
                              normal(rng, 2, 4, 4)),
    },
)


@jax.custom_vjp
def causal_attention(q, k, v):
    """Attention in which position i sees the positions j ≤ i."""
    scores = q @ k.T / q.shape[-1] ** 0.5
    seen = jnp.tril(jnp.ones(scores.shape, bool))
    return jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1) @ v


def causal_attention_fwd(q, k, v):
    """Keep the operands, the output and the logarithm of the normalizer."""
    scores = q @ k.T / q.shape[-1] ** 0.5
    seen = jnp.tril(jnp.ones(scores.shape, bool))
    log_normalizer = jax.nn.logsumexp(jnp.where(seen, scores, -jnp.inf), axis=-1, keepdims=True)
    y = jnp.where(seen, jnp.exp(scores - log_normalizer), 0.0) @ v
    return y, (q, k, v, y, log_normalizer)


def causal_attention_bwd(residuals, y_bar):
    """The weights anew; their row sums P P̄ are y · ȳ."""
    q, k, v, y, log_normalizer = residuals
    scale = q.shape[-1] ** -0.5
    scores = scale * q @ k.T
    seen = jnp.tril(jnp.ones(scores.shape, bool))
    weights = jnp.where(seen, jnp.exp(jnp.where(seen, scores - log_normalizer, 0.0)), 0.0)
    delta = jnp.sum(y * y_bar, axis=-1, keepdims=True)
    scores_bar = weights * (y_bar @ v.T - delta)
    return scale * scores_bar @ k, scale * scores_bar.T @ q, weights.T @ y_bar


causal_attention.defvjp(causal_attention_fwd, causal_attention_bwd)

CAUSAL_ATTENTION = operation(
    causal_attention,
    lambda rng: (normal(rng, 5, 5), normal(rng, 5, 5), normal(rng, 5, 5)),
    fault(("entries", "wrong operand", "off by one"), ("q", "k", "v"),
          "weights = jnp.where(seen, jnp.exp", "weights = jnp.where(seen.T, jnp.exp"),
    fault(("entries", "off by one"), ("q", "k", "v"), "    weights = jnp.where(seen,",
          "    weights = jnp.where(seen & jnp.tril(seen, -1),"),
    fault("wrong operand", ("q", "k"), "jnp.sum(y * y_bar,", "jnp.sum(v * y_bar,"),
    fault("missing term", ("q", "k"), "(y_bar @ v.T - delta)", "(y_bar @ v.T)"),
    fault("transpose", "v", "weights.T @ y_bar", "weights @ y_bar"),
    fault(("factor", "missing factor"), "k", "scale * scores_bar.T @ q", "scores_bar.T @ q"),
    fault("transpose", ("q", "k"), "(y_bar @ v.T - delta)", "(y_bar @ v - delta)"),
    fault(("sign", "missing term"), ("q", "k"), "y_bar @ v.T - delta", "y_bar @ v.T + delta"),
    fault("second order", ("q", "k"), "delta = jnp.sum(y * y_bar",
          "delta = jnp.sum(lax.stop_gradient(y) * y_bar", order=2),
)


@jax.custom_vjp
def rotary(x, angles):
    """Pairs of features turned by an angle per position."""
    first, second = jnp.split(x, 2, axis=-1)
    c, s = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([first * c - second * s, first * s + second * c], axis=-1)


def rotary_fwd(x, angles):
    """Keep both operands."""
    first, second = jnp.split(x, 2, axis=-1)
    c, s = jnp.cos(angles), jnp.sin(angles)
    y = jnp.concatenate([first * c - second * s, first * s + second * c], axis=-1)
    return y, (x, angles)


def rotary_bwd(residuals, y_bar):
    """Turn the cotangent back; an angle's cotangent is the moment, summed over the batch."""
    x, angles = residuals
    c, s = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x, 2, axis=-1)
    first_bar, second_bar = jnp.split(y_bar, 2, axis=-1)
    x_bar = jnp.concatenate(
        [first_bar * c + second_bar * s, second_bar * c - first_bar * s], axis=-1
    )
    moment = first_bar * (-first * s - second * c) + second_bar * (first * c - second * s)
    return x_bar, jnp.sum(moment, axis=0)


rotary.defvjp(rotary_fwd, rotary_bwd)

ROTARY = operation(
    rotary,
    lambda rng: (normal(rng, 3, 4, 6), uniform(rng, -3.0, 3.0, 4, 3)),
    fault("sign", "x", "first_bar * c + second_bar * s", "first_bar * c - second_bar * s"),
    fault(("sign", "wrong operand"), "x",
          "first_bar * c + second_bar * s, second_bar * c - first_bar * s",
          "first_bar * c - second_bar * s, second_bar * c + first_bar * s"),
    fault("permutation", "x", "[first_bar * c + second_bar * s, second_bar * c - first_bar * s]",
          "[second_bar * c - first_bar * s, first_bar * c + second_bar * s]"),
    fault(("structure", "missing sum"), "angles", "jnp.sum(moment, axis=0)", "moment"),
    fault("mean or sum", "angles", "jnp.sum(moment, axis=0)", "jnp.mean(moment, axis=0)"),
    fault(("missing sum", "entries"), "angles", "jnp.sum(moment, axis=0)", "moment[0]"),
    fault("missing term", "angles", " + second_bar * (first * c - second * s)", ""),
    fault("wrong function", "x",
          "c, s = jnp.cos(angles), jnp.sin(angles)\n    first, second = jnp.split(x, 2, axis=-1)"
          "\n    first_bar",
          "c, s = jnp.sin(angles), jnp.cos(angles)\n    first, second = jnp.split(x, 2, axis=-1)"
          "\n    first_bar"),
    also={"large angles": lambda rng: (normal(rng, 3, 4, 6), uniform(rng, -1e4, 1e4, 4, 3))},
)
