"""A small GPT: blocks of causal attention and a two-layer perceptron, on tokens.

The blocks' parameters are stacked along a first axis and ``lax.scan`` runs over it: one block is
compiled, whatever their number. Heads are an axis of the weights, so that shapes say it all.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from functional_bp.errors import TrainingError, compose, describe

DEVIATION = 0.02  # of the first weights, as GPT-2 has it


def init(
    key: Any,
    vocabulary: int,
    *,
    width: int = 64,
    layers: int = 2,
    heads: int = 4,
    context: int = 64,
    tied: bool = True,
    dtype: Any = jnp.float32,
) -> dict[str, Any]:
    """Weights normal with deviation 0.02, that of WO and W2 divided by √(2 layers), as in GPT-2.

    Args:
        key: a random key.
        vocabulary: v, how many tokens there are.
        width: d, the entries of a position.
        layers: L, how many blocks.
        heads: H, of the attention; they divide d into H times k.
        context: T, the longest sequence.
        tied: read the logits with the embedding, Eᵀ, in place of a matrix W of their own.
        dtype: of the parameters.

    Returns:
        ``E: f32[v,d]``, ``P: f32[T,d]``, ``g, s: f32[d]``, ``W: f32[d,v]`` if not tied, and the
        blocks: ``WQ, WK, WV: f32[L,d,H,k]``, ``WO: f32[L,H,k,d]``, ``W1: f32[L,d,4d]``,
        ``W2: f32[L,4d,d]``, their biases b..., and gains and shifts of the norms g1, s1, g2, s2.

    Raises:
        TrainingError: the heads do not divide the width.

    Example:
        >>> import jax
        >>> params = init(jax.random.key(0), 65, width=32)
        >>> apply(params, jax.numpy.zeros((2, 10), "int32")).shape
        (2, 10, 65)
    """
    if width % heads:
        raise TrainingError(
            compose("the heads do not divide the width", got=f"width {width}, {heads} heads",
                    expected="a width that is a multiple of the heads")
        )  # fmt: skip
    d, split = width, (heads, width // heads)
    keys = iter(jax.random.split(key, 9))

    def normal(*shape: int, by: float = 1.0) -> jax.Array:
        return by * DEVIATION * jax.random.normal(next(keys), shape, dtype)

    zeros, ones = partial(jnp.zeros, dtype=dtype), partial(jnp.ones, dtype=dtype)
    by = (2 * layers) ** -0.5
    blocks = {
        **{name: normal(layers, d, *split) for name in ("WQ", "WK", "WV")},
        **{name: zeros((layers, *split)) for name in ("bQ", "bK", "bV")},
        "WO": normal(layers, *split, d, by=by), "bO": zeros((layers, d)),
        "W1": normal(layers, d, 4 * d), "b1": zeros((layers, 4 * d)),
        "W2": normal(layers, 4 * d, d, by=by), "b2": zeros((layers, d)),
        "g1": ones((layers, d)), "s1": zeros((layers, d)),
        "g2": ones((layers, d)), "s2": zeros((layers, d)),
    }  # fmt: skip
    params = {"E": normal(vocabulary, d), "P": normal(context, d), "blocks": blocks,
              "g": ones(d), "s": zeros(d)}  # fmt: skip
    return params if tied else {**params, "W": normal(d, vocabulary)}


def apply(params: dict[str, Any], tokens: Any) -> jax.Array:
    """x = E[tokens] + P, x ← block(x) L times, logits = norm(x) Eᵀ (or norm(x) W).

    Args:
        params: of ``init``.
        tokens: ``i32[b,t]`` in [0, v), with t ≤ T.

    Returns:
        Logits of the token that follows each position, ``f32[b,t,v]``.

    Raises:
        TrainingError: the sequence is longer than the context.
    """
    tokens, longest = jnp.asarray(tokens), params["P"].shape[0]
    if tokens.ndim != 2 or tokens.shape[1] > longest:
        raise TrainingError(
            compose("these tokens are no batch of sequences within the context",
                    got=describe(tokens), expected=f"i32[b,t] with t of at most {longest}",
                    do="cut them, or init with a longer context")
        )  # fmt: skip
    x = params["E"][tokens] + params["P"][: tokens.shape[1]]
    x, _ = lax.scan(lambda x, p: (block(p, x), None), x, params["blocks"])
    x = norm(x, params["g"], params["s"])
    return x @ params["W"] if "W" in params else x @ params["E"].T


def block(p: dict[str, Any], x: jax.Array) -> jax.Array:
    """x ← x + attention(norm(x)),  x ← x + gelu(norm(x) W1 + b1) W2 + b2."""
    x = x + attention(p, norm(x, p["g1"], p["s1"]))
    return x + jax.nn.gelu(norm(x, p["g2"], p["s2"]) @ p["W1"] + p["b1"]) @ p["W2"] + p["b2"]


def attention(p: dict[str, Any], x: jax.Array) -> jax.Array:
    """softmax(Q Kᵀ / √k + mask) V of every head, their outputs through WO and summed.

    The mask is −∞ where a position would see a later one.
    """
    q, k, v = (jnp.einsum("btd,dhk->bthk", x, p[f"W{n}"]) + p[f"b{n}"] for n in "QKV")
    scores = jnp.einsum("bthk,bshk->bhts", q, k) * q.shape[-1] ** -0.5
    past = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    weights = jax.nn.softmax(jnp.where(past, scores, -jnp.inf), axis=-1)
    heads = jnp.einsum("bhts,bshk->bthk", weights, v)
    return jnp.einsum("bthk,hkd->btd", heads, p["WO"]) + p["bO"]


def norm(x: jax.Array, gain: Any, shift: Any) -> jax.Array:
    """g ⊙ (x − μ) / √(σ² + 1e-5) + s, with the mean μ and variance σ² of the last axis."""
    centered = x - x.mean(-1, keepdims=True)
    variance = jnp.square(centered).mean(-1, keepdims=True)
    return gain * centered * lax.rsqrt(variance + 1e-5) + shift


@partial(jax.jit, static_argnames="count")
def generate(
    params: dict[str, Any], tokens: Any, count: int, key: Any, temperature: Any = 1.0
) -> jax.Array:
    """Continue sequences: each next token drawn from softmax(logits / temperature).

    The drawn token is argmax(logits + temperature · G), G of Gumbel's distribution: the same
    thing, and the likeliest token at temperature 0. Each sees the ``T`` tokens before it.

    Args:
        params: of ``init``.
        tokens: ``i32[b,t]``, the beginnings, with t ≥ 1.
        count: how many tokens to add.
        key: a random key.
        temperature: 0 or more.

    Returns:
        ``i32[b,t+count]``, the beginnings and what follows.

    Raises:
        TrainingError: a beginning without a token.
    """
    tokens = jnp.asarray(tokens)
    if tokens.ndim != 2 or not tokens.shape[1]:
        raise TrainingError(
            compose("there is nothing to continue", got=describe(tokens),
                    expected="i32[b,t] of at least one token each")
        )  # fmt: skip
    begun, seen = tokens.shape[1], min(params["P"].shape[0], tokens.shape[1] + count)

    def add(at: Any, text: jax.Array) -> jax.Array:
        first = jnp.maximum(at - seen, 0)
        logits = apply(params, lax.dynamic_slice_in_dim(text, first, seen, axis=1))
        logits = lax.dynamic_index_in_dim(logits, at - 1 - first, axis=1, keepdims=False)
        noise = jax.random.gumbel(jax.random.fold_in(key, at), logits.shape, logits.dtype)
        drawn = jnp.argmax(logits + temperature * noise, axis=-1).astype(text.dtype)
        return lax.dynamic_update_index_in_dim(text, drawn, at, axis=1)

    text = jnp.pad(tokens, ((0, 0), (0, count)))
    return lax.fori_loop(begun, begun + count, add, text)
