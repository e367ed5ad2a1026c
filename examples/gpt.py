"""A GPT in forty lines: blocks of causal attention and a perceptron, and how it writes.

The blocks' parameters are stacked along a first axis and a scan runs over it, so that one block is
compiled, whatever their number. ``small_gpt.py`` trains it.

Run: python examples/gpt.py
"""

from functools import partial

import jax
import jax.numpy as jnp


def init(key, vocabulary, width=64, layers=2, heads=4, context=64):
    """Normal weights of deviation 0.02, as in GPT-2; logits are read with the embedding E."""
    d, k = width, width // heads
    shapes = {
        "Q": (d, heads, k), "K": (d, heads, k), "V": (d, heads, k), "O": (heads, k, d),
        "up": (d, 4 * d), "down": (4 * d, d), "g1": (d,), "g2": (d,),
    }  # fmt: skip
    keys = iter(jax.random.split(key, len(shapes) + 2))
    normal = lambda *shape: 0.02 * jax.random.normal(next(keys), shape)
    blocks = {name: normal(layers, *shape) for name, shape in shapes.items()}
    return {"E": normal(vocabulary, d), "P": normal(context, d), "blocks": blocks}


def norm(x):
    """(x − μ) / √(σ² + 1e-5), over the last axis."""
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5)


def block(x, p):
    """x ← x + attention(norm(x)),  x ← x + gelu(norm(x) up) down."""
    h = norm(x) * (1 + p["g1"])
    q, k, v = (jnp.einsum("btd,dhk->bthk", h, p[name]) for name in "QKV")
    scores = jnp.einsum("bthk,bshk->bhts", q, k) * q.shape[-1] ** -0.5
    past = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    weights = jax.nn.softmax(jnp.where(past, scores, -jnp.inf))
    x = x + jnp.einsum("bhts,bshk,hkd->btd", weights, v, p["O"])
    return x + jax.nn.gelu(norm(x) * (1 + p["g2"]) @ p["up"]) @ p["down"]


def apply(params, tokens):
    """Logits of the token that follows each position, f32[b,t,v]."""
    x = params["E"][tokens] + params["P"][: tokens.shape[1]]
    x, _ = jax.lax.scan(lambda x, p: (block(x, p), None), x, params["blocks"])
    return norm(x) @ params["E"].T


@partial(jax.jit, static_argnames="count")
def generate(params, tokens, count, key, temperature=1.0):
    """Draw each next token from softmax(logits / temperature): argmax(logits + temperature · G)."""
    begun = tokens.shape[1]
    seen = min(len(params["P"]), begun + count)

    def add(at, text):
        first = jnp.maximum(at - seen, 0)
        logits = apply(params, jax.lax.dynamic_slice_in_dim(text, first, seen, axis=1))
        logits = jax.lax.dynamic_index_in_dim(logits, at - 1 - first, axis=1)
        noise = jax.random.gumbel(jax.random.fold_in(key, at), logits.shape)
        drawn = jnp.argmax(logits + temperature * noise, axis=-1).astype(text.dtype)
        return jax.lax.dynamic_update_slice_in_dim(text, drawn, at, axis=1)

    text = jnp.pad(tokens, ((0, 0), (0, count)))
    return jax.lax.fori_loop(begun, begun + count, add, text)


tokens = jnp.arange(12).reshape(2, 6) % 5
params = jax.tree.map(lambda leaf: 20 * leaf, init(jax.random.key(0), 5, width=16, context=6))
before, after = apply(params, tokens), apply(params, tokens.at[:, 3].add(-1) % 5)
change = jnp.max(jnp.abs(before - after), axis=(0, 2))
written = generate(params, tokens, 3, jax.random.key(1), temperature=0.0)
assert jnp.all(change[:3] < 1e-5) and jnp.all(change[3:] > 1e-3)  # no position sees a later one
assert jnp.all(written[:, 6] == jnp.argmax(before[:, -1], axis=-1))  # the likeliest token follows
