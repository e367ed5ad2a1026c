"""Gathers, scatters and segments: repeated indices add up."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.corpus.declare import fault, integers, normal, operation


def distinct(rng, high, *shape):
    """Indices in 0 … high − 1 without repeats, in int32."""
    return rng.permutation(high)[: int(np.prod(shape))].reshape(shape).astype(np.int32)


@jax.custom_vjp
def embedding(table, tokens):
    """table[tokens]."""
    return table[tokens]


def embedding_fwd(table, tokens):
    """Keep the tokens, and the table for its shape."""
    return table[tokens], (table, tokens)


def embedding_bwd(residuals, y_bar):
    """Add each row of ȳ to the row of its token."""
    table, tokens = residuals
    table_bar = jnp.zeros_like(table).at[tokens].add(y_bar)
    return table_bar, None


embedding.defvjp(embedding_fwd, embedding_bwd)

EMBEDDING = operation(
    embedding,
    lambda rng: (normal(rng, 9, 4), 1 + distinct(rng, 8, 2, 3)),
    fault("repeats", "table", ".at[tokens].add(y_bar)", ".at[tokens].set(y_bar)",
          elsewhere=lambda rng: (normal(rng, 9, 4), integers(rng, 3, 2, 3))),
    fault("repeats", "table", ".at[tokens].add(y_bar)",
          ".at[tokens].add(y_bar) / jnp.maximum(1.0, jnp.bincount(tokens.ravel(), "
          "length=table.shape[0]))[:, None]",
          elsewhere=lambda rng: (normal(rng, 9, 4), integers(rng, 3, 2, 3))),
    fault("off by one", "table", ".at[tokens].add(y_bar)", ".at[tokens - 1].add(y_bar)"),
    fault("permutation", "table", ".at[tokens].add(y_bar)", ".at[tokens].add(y_bar[::-1])"),
    fault(("entries", "region", "border"), "table", "return table_bar, None",
          "return table_bar.at[0].set(0.0), None",
          elsewhere=lambda rng: (normal(rng, 9, 4), 0 * integers(rng, 9, 2, 3))),
    fault("not finite", "table", ".at[tokens].add(y_bar)",
          ".at[tokens].add(y_bar) * (table / table)",
          elsewhere=lambda rng: (0 * normal(rng, 9, 4), distinct(rng, 9, 2, 3))),
    also={"all the same": lambda rng: (normal(rng, 9, 4), 0 * integers(rng, 9, 50))},
)


@jax.custom_vjp
def segment_mean(x, segments):
    """The mean of the rows in each of 4 segments, 0 for an empty one."""
    counts = jnp.zeros(4, x.dtype).at[segments].add(1.0)
    return (
        jnp.zeros((4, x.shape[1]), x.dtype).at[segments].add(x) / jnp.maximum(counts, 1.0)[:, None]
    )


def segment_mean_fwd(x, segments):
    """Keep the segments and their sizes."""
    counts = jnp.maximum(jnp.zeros(4, x.dtype).at[segments].add(1.0), 1.0)
    sums = jnp.zeros((4, x.shape[1]), x.dtype).at[segments].add(x)
    return sums / counts[:, None], (segments, counts)


def segment_mean_bwd(residuals, y_bar):
    """A row gets its segment's cotangent over the segment's size."""
    segments, counts = residuals
    shares = y_bar / counts[:, None]
    return shares[segments], None


segment_mean.defvjp(segment_mean_fwd, segment_mean_bwd)

SEGMENT_MEAN = operation(
    segment_mean,
    lambda rng: (normal(rng, 7, 3), np.array([0, 2, 2, 1, 0, 2, 3], np.int32)),
    fault(("mean or sum", "entries", "missing factor"), "x", "shares = y_bar / counts[:, None]",
          "shares = y_bar"),
    fault(("factor", "mean or sum", "missing factor"), "x", "y_bar / counts[:, None]",
          "y_bar / segments.shape[0]"),
    fault(("reversal", "permutation"), "x", "return shares[segments], None",
          "return shares[segments][::-1], None"),
    fault("permutation", "x", "return shares[segments], None",
          "return shares[jnp.sort(segments)], None"),
    fault(("region", "wrong operand", "not finite"), "x", "y_bar / counts[:, None]",
          "y_bar / jnp.minimum(counts, 3.0)[:, None]",
          elsewhere=lambda rng: (normal(rng, 7, 3), np.zeros(7, np.int32))),
)


@jax.custom_vjp
def scatter_update(base, index, rows):
    """base with its rows at the (distinct) indices replaced."""
    return base.at[index].set(rows)


def scatter_update_fwd(base, index, rows):
    """Keep the indices."""
    return base.at[index].set(rows), index


def scatter_update_bwd(index, y_bar):
    """The replaced rows' cotangents go to the new rows, none of them to the base."""
    base_bar = y_bar.at[index].set(0.0)
    rows_bar = y_bar[index]
    return base_bar, None, rows_bar


scatter_update.defvjp(scatter_update_fwd, scatter_update_bwd)

SCATTER_UPDATE = operation(
    scatter_update,
    lambda rng: (normal(rng, 6, 3), distinct(rng, 6, 3), normal(rng, 3, 3)),
    fault(("entries", "extra term"), "base", "base_bar = y_bar.at[index].set(0.0)",
          "base_bar = y_bar"),
    fault(("permutation", "reversal"), "rows", "rows_bar = y_bar[index]",
          "rows_bar = y_bar[index[::-1]]"),
    fault(("permutation", "wrong operand"), "rows", "rows_bar = y_bar[index]",
          "rows_bar = y_bar[:3]"),
    fault(("missing term", "cotangent ignored"), "base", "return base_bar, None, rows_bar",
          "return jnp.zeros_like(base_bar), None, rows_bar"),
    fault(("off by one", "entries"), "base", "at[index].set(0.0)", "at[index + 1].set(0.0)"),
)


@jax.custom_vjp
def masked_fill(x, mask):
    """x where the mask holds, −1e9 elsewhere."""
    return jnp.where(mask, x, -1e9)


def masked_fill_fwd(x, mask):
    """Keep the mask."""
    return jnp.where(mask, x, -1e9), mask


def masked_fill_bwd(mask, y_bar):
    """ȳ where the mask holds."""
    return jnp.where(mask, y_bar, 0.0), None


masked_fill.defvjp(masked_fill_fwd, masked_fill_bwd)

MASKED_FILL = operation(
    masked_fill,
    lambda rng: (normal(rng, 4, 4), rng.random((4, 4)) < 0.7),
    fault(("entries", "region"), "x", "return jnp.where(mask, y_bar, 0.0), None",
          "return y_bar, None"),
    fault(("entries", "wrong operand", "region"), "x", "(mask, y_bar, 0.0)", "(~mask, y_bar, 0.0)"),
    fault(("entries", "transpose", "wrong operand"), "x", "(mask, y_bar, 0.0)",
          "(mask.T, y_bar, 0.0)"),
    fault(("entries", "wrong constant", "not linear"), "x", "y_bar, 0.0)", "y_bar, -1e-3)"),
)


@jax.custom_vjp
def top_two(x):
    """The two largest entries of every row, in descending order."""
    return lax.top_k(x, 2)[0]


def top_two_fwd(x):
    """Keep where they stood, and x for its shape."""
    values, indices = lax.top_k(x, 2)
    return values, (indices, x)


def top_two_bwd(residuals, values_bar):
    """Put the cotangents back where the values came from."""
    indices, x = residuals
    rows = jnp.arange(x.shape[0])[:, None]
    return (jnp.zeros_like(x).at[rows, indices].add(values_bar),)


top_two.defvjp(top_two_fwd, top_two_bwd)

TOP_TWO = operation(
    top_two,
    lambda rng: (normal(rng, 5, 5) + 2,),
    fault(("transpose", "permutation"), "x", "at[rows, indices]", "at[indices, rows]"),
    fault(("reversal", "permutation"), "x", ".add(values_bar)", ".add(values_bar[:, ::-1])"),
    fault("off by one", "x", "at[rows, indices]", "at[rows, indices + 1]"),
    fault(("entries", "missing term"), "x", "at[rows, indices].add(values_bar)",
          "at[rows[:, 0], indices[:, 0]].add(values_bar[:, 0])"),
    fault("region", "x", ".add(values_bar),)", ".add(values_bar) * (x > 0.0),)",
          elsewhere=lambda rng: (-1.0 - np.abs(normal(rng, 5, 5)),)),
    also={"ties": lambda rng: (np.round(normal(rng, 5, 5) * 2) / 2 + 0,)},
)
