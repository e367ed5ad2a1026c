"""The linear algebra chapters share these matrix operations over batches; there are no rules here.

Matrices are the last two axes, and the letters are those of a textbook: ᵀ transpose, ᴴ adjoint.

The derivations pair complex cotangents as ⟨Ȳ, dY⟩ = Re tr(Ȳᴴ dY), which makes them read as the
real ones. JAX pairs without the conjugate, Re tr(Ȳᵀ dY); so a rule conjugates the cotangents that
come in and the one that goes out, which for real matrices is nothing.

References:
    Giles 2008, An extended collection of matrix derivative results for forward and reverse mode
    algorithmic differentiation, Oxford report 08/01 (in short: doi 10.1007/978-3-540-68942-3_4),
    for the method: differentiate what defines the
    result, then read the adjoint off a trace.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax import lax

Array = Any

# Where the true value of an improvement comes from.
DIFFERENCES = "central differences of the result, extrapolated to order 8"


def is_complex(x: Array) -> bool:
    """Say whether the dtype is complex."""
    return x.dtype.kind == "c"


def conj(x: Array) -> Array:
    """conj(x) = x*, which is x itself where it is real."""
    return lax.conj(x) if is_complex(x) else x


def real_part(x: Array) -> Array:
    """real_part(x) = Re x, which is x itself where it is real."""
    return lax.real(x) if is_complex(x) else x


def as_dtype_of(x: Array, like: Array) -> Array:
    """Convert x to ``like``'s dtype; from complex to real it is Re x, the adjoint of the inclusion
    ℝ ⊂ ℂ.
    """
    return lax.convert_element_type(x if is_complex(like) else real_part(x), like.dtype)


def transpose(x: Array) -> Array:
    """transpose(X) = Xᵀ."""
    return lax.transpose(x, (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2))


def adjoint(x: Array) -> Array:
    """adjoint(X) = Xᴴ."""
    return conj(transpose(x))


def dot(a: Array, b: Array, forms: str = "nn") -> Array:
    """Multiply A B, each as it is (n), transposed (t) or adjoint (h): ``forms="hn"`` is AᴴB."""
    a, b = (conj(x) if form == "h" else x for x, form in zip((a, b), forms))
    rows, columns = a.ndim - 2, a.ndim - 1
    contract = ([columns if forms[0] == "n" else rows], [rows if forms[1] == "n" else columns])
    batch = list(range(a.ndim - 2))
    return lax.dot_general(a, b, (contract, (batch, batch)), precision=lax.Precision.HIGHEST)


def _row_and_column(x: Array, k: int = 0) -> tuple[Array, Array]:
    """Return, for the entry in row i and column j, i + k and j."""
    m, n = x.shape[-2:]
    row = lax.add(lax.iota(np.int32, m), np.int32(k))
    return lax.broadcast_in_dim(row, (m, n), [0]), lax.broadcasted_iota(np.int32, (m, n), 1)


def _where(mask: Array, x: Array, y: Array | float = 0) -> Array:
    """Take entries of x where the mask (of one matrix) holds, of y elsewhere."""
    mask = lax.broadcast_in_dim(mask, x.shape, range(x.ndim - mask.ndim, x.ndim))
    return lax.select(mask, x, y if hasattr(y, "shape") else lax.full_like(x, y))


def lower(x: Array, k: int = 0) -> Array:
    """Keep the lower triangle: the entries with j − i ≤ k."""
    row, column = _row_and_column(x, k)
    return _where(lax.ge(row, column), x)


def upper(x: Array, k: int = 0) -> Array:
    """Keep the upper triangle: the entries with j − i ≥ k."""
    row, column = _row_and_column(x, k)
    return _where(lax.le(row, column), x)


def on_diagonal(x: Array, y: Array | float = 0) -> Array:
    """Take x on the diagonal, y elsewhere."""
    row, column = _row_and_column(x)
    return _where(lax.eq(row, column), x, y)


def with_diagonal(x: Array, value: Array | float) -> Array:
    """Take x off the diagonal, ``value`` on it."""
    fill = value if hasattr(value, "shape") else lax.full_like(x, value)
    return on_diagonal(fill, x)


def identity(like: Array) -> Array:
    """Make the identity (ones on the diagonal) in the shape and dtype of ``like``."""
    return on_diagonal(lax.full_like(like, 1))


def diagonal(x: Array) -> Array:
    """Return the diagonal as a vector, of a matrix with at least as many rows as columns."""
    return lax.reduce_sum(on_diagonal(x), [x.ndim - 2])


def by_column(d: Array, like: Array) -> Array:
    """Make the matrix whose column j is d_j throughout: X ∘ it is X diag(d)."""
    return lax.broadcast_in_dim(d, like.shape, [*range(d.ndim - 1), like.ndim - 1])


def by_row(d: Array, like: Array) -> Array:
    """Make the matrix whose row i is d_i throughout: X ∘ it is diag(d) X."""
    return lax.broadcast_in_dim(d, like.shape, range(d.ndim))


def place_diagonal(d: Array, like: Array) -> Array:
    """Make diag(d) in the shape of ``like``."""
    return on_diagonal(by_column(d, like))


def hermitian_from_upper(g: Array) -> Array:
    """sym(G) = U + Uᴴ + Re D, for G = L + D + U, is Hermitian with G's upper triangle."""
    above = upper(g, 1)
    return with_diagonal(above + adjoint(above), as_dtype_of(real_part(g), g))


def hermitian_from_lower(g: Array) -> Array:
    """Make the Hermitian matrix whose lower triangle is G's, with a real diagonal."""
    row, column = _row_and_column(g)
    both = _where(lax.ge(row, column), g, adjoint(g))
    return with_diagonal(both, as_dtype_of(real_part(g), g)) if is_complex(g) else both


def half_lower(t: Array) -> Array:
    """Φ(T) = W ∘ T, W_ij = clamp(0, i − j + ½, 1): T below the diagonal, half of it there.

    For a Hermitian T, whose diagonal is real.
    """
    m, n = t.shape[-2:]
    dtype = real_part(t).dtype
    row = lax.add(lax.iota(dtype, m), np.asarray(0.5, dtype))
    steps = lax.sub(lax.broadcast_in_dim(row, (m, n), [0]), lax.broadcasted_iota(dtype, (m, n), 1))
    weights = lax.clamp(np.asarray(0, dtype), steps, np.asarray(1, dtype))
    weights = lax.broadcast_in_dim(as_dtype_of(weights, t), t.shape, [t.ndim - 2, t.ndim - 1])
    half = lax.mul(weights, t)
    return with_diagonal(half, as_dtype_of(real_part(half), t)) if is_complex(t) else half


def fold_lower(s: Array) -> Array:
    """Turn the cotangent of a Hermitian matrix into one of its lower triangle, all that is read.

    From A = L + Lᴴ + Re D follows ⟨S, dA⟩ = ⟨stril(S + Sᴴ) + Re diag S, dL + dD⟩.
    """
    return half_lower(s + adjoint(s))


def columns(x: Array, start: int, stop: int) -> Array:
    """columns(X, start, stop) = X[:, start:stop]."""
    return lax.slice_in_dim(x, start, stop, axis=x.ndim - 1)


def rows(x: Array, start: int, stop: int) -> Array:
    """rows(X, start, stop) = X[start:stop, :]."""
    return lax.slice_in_dim(x, start, stop, axis=x.ndim - 2)


def beside(*blocks: Array) -> Array:
    """beside(A, B, …) = [A B …]."""
    return lax.concatenate(blocks, blocks[0].ndim - 1)


def stacked(*blocks: Array) -> Array:
    """stacked(A, B, …) has A above B above …"""
    return lax.concatenate(blocks, blocks[0].ndim - 2)


def padded(x: Array, shape: tuple[int, ...]) -> Array:
    """Put X in the upper left corner of a zero matrix of ``shape``."""
    if x.shape == shape:
        return x
    return lax.pad(x, lax.full((), 0, x.dtype), [(0, n - m, 0) for m, n in zip(x.shape, shape)])


def mapped(function: Any, like: Array) -> Any:
    """Map ``function``, of single matrices, over the batch axes of ``like``."""
    for _ in range(like.ndim - 2):
        function = jax.vmap(function)
    return function


def permute_rows(x: Array, order: Array, *, inverse: bool = False) -> Array:
    """Take rows of X in ``order``, Y_i = X_order[i]; ``inverse`` undoes it, Y_order[i] = X_i."""
    if inverse:
        places = lax.broadcasted_iota(order.dtype, order.shape, order.ndim - 1)
        order = lax.sort((order, places), dimension=order.ndim - 1, num_keys=1)[1]
    index = lax.broadcast_in_dim(order, (*order.shape, 1), range(order.ndim))
    gather = lambda rows, index: lax.gather(
        rows, index,
        lax.GatherDimensionNumbers(
            offset_dims=(1,), collapsed_slice_dims=(0,), start_index_map=(0,)
        ),
        slice_sizes=(1, rows.shape[1]),
        unique_indices=True,
        mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS,
    )
    return mapped(gather, x)(x, index)


def solve_triangular(a: Array, b: Array, form: str = "n", *, left: bool = True,
                     lower: bool = False, unit: bool = False) -> Array:
    """Return A⁻¹B, or B A⁻¹ with ``left=False``; A is taken as it is (n), transposed (t) or adjoint
    (h).
    """
    return lax.linalg.triangular_solve(
        a, b, left_side=left, lower=lower, transpose_a=form != "n",
        conjugate_a=form == "h" and is_complex(a), unit_diagonal=unit,
    )


def solve(a: Array, b: Array, form: str = "n") -> Array:
    """Return A⁻¹B through P A = L U, with A as it is (n) or as its adjoint (h)."""
    factors, _, order = lax.linalg.lu(a)
    if form == "n":
        y = solve_triangular(factors, permute_rows(b, order), lower=True, unit=True)
        return solve_triangular(factors, y)
    y = solve_triangular(factors, b, "h")
    y = solve_triangular(factors, y, "h", lower=True, unit=True)
    return permute_rows(y, order, inverse=True)
