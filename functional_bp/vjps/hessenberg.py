"""Unitary reductions bring a matrix to a band: to Hessenberg or to tridiagonal form."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from functional_bp import _jax
from functional_bp.engine.improvements import improvement
from functional_bp.engine.rule import case, cplx, real, rule
from functional_bp.vjps.householder import bar_of_columns, reflected, reflector, unpack
from functional_bp.vjps.matrices import (
    Array,
    adjoint,
    as_dtype_of,
    columns,
    conj,
    diagonal,
    dot,
    fold_lower,
    is_complex,
    mapped,
    padded,
    place_diagonal,
    real_part,
    rows,
    transpose,
    upper,
)
from functional_bp.vjps.matrices import lower as triangle

linalg = lax.linalg


def _bordered(x: Array, shape: tuple[int, ...]) -> Array:
    """Make diag(0, X), of ``shape``."""
    return lax.pad(x, lax.full((), 0, x.dtype), [(n - m, 0, 0) for m, n in zip(x.shape, shape)])


def _multiplier(h: Array, g: Array, h_bar: Array) -> Array:
    """Solve for Y = H̄ + X of one matrix, column by column from the last, as derived in
    ``hessenberg``.
    """
    n = h.shape[-1]
    place = lax.iota(np.int32, n)
    times = lambda matrix, x: lax.dot(matrix, x, precision=lax.Precision.HIGHEST)

    def step(carry: Any, row: Any) -> Any:
        y, y_next = carry
        j, g_column, g_row, h_column, h_row, pivot = row
        y_row = lax.dynamic_index_in_dim(y, j + 1, 0, keepdims=False)
        down = g_column + times(adjoint(h), y_next) - times(y, conj(h_row))
        across = g_row + times(transpose(y), conj(h_column)) - times(conj(h), y_row)
        x = lax.select(place > j + 1, (down - conj(across)) / conj(pivot), lax.full_like(down, 0))
        if is_complex(h):
            zero = lax.full_like(real_part(down), 0)
            on_pivot = lax.select(place == j + 1, lax.imag(down) / lax.real(pivot), zero)
            x = x + lax.complex(zero, on_pivot)
        y_j = lax.dynamic_index_in_dim(y, j, 1, keepdims=False) + x
        return (lax.dynamic_update_index_in_dim(y, y_j, j, 1), y_j), None

    pivots = diagonal(columns(rows(h, 1, n), 0, n - 1))
    below = lambda x: rows(x, 1, n)
    along = (place[: n - 1], below(transpose(g)), below(g), below(transpose(h)), below(upper(h)))
    last = lax.squeeze(columns(h_bar, n - 1, n), [1])
    return lax.scan(step, (h_bar, last), (*along, pivots), reverse=True)[0][0]


def _reduction(h: Array, h_bar: Array, v: Array, v_bar: Array, taus: Array, taus_bar: Any) -> Array:
    """Ā = Q Y Qᴴ for A = Q H Qᴴ, Q = diag(1, I − V T Vᴴ)."""
    n = h.shape[-1]
    if n == 1:
        return h_bar
    q, q_bar = bar_of_columns(v, taus, v_bar, taus_bar)
    q_bar = _bordered(dot(q, q_bar, "hn"), h.shape)
    q = _bordered(q, h.shape)
    first = lax.full((*h.shape[:-2], 1, 1), 1, h.dtype)
    q = q + padded(first, h.shape)
    y = mapped(_multiplier, h)(h, q_bar, h_bar)
    return dot(dot(q, y), q, "nh")


def hessenberg(packed, taus, packed_bar=None, taus_bar=None):
    """Ā = Q Y Qᴴ,  Y = H̄ + X, where X below the band makes skew(QᴴQ̄ + HᴴY − Y Hᴴ) vanish.

    Derivation:
        A = Q H Qᴴ, H upper Hessenberg, Q e₁ = e₁. With F = Qᴴ dA Q and Ω = Qᴴ dQ skew-Hermitian,

            dH = F − Ω H + H Ω,   Ω e₁ = 0,   dH = 0 below the subdiagonal

        A phase of each further column of Q is free; LAPACK fixes it by a real subdiagonal of H, so
        Im dH = 0 there too. As many conditions as there are entries of Ω. Let X be their
        multipliers: any matrix below the subdiagonal, imaginary on it. With Y = H̄ + X, G = QᴴQ̄

            ⟨Q̄, dQ⟩ + ⟨H̄, dH⟩ = ⟨Y, F⟩ + ⟨K, Ω⟩,   K = G + HᴴY − Y Hᴴ

        X is chosen so that K gives nothing against any Ω: K_ij = K_ji* for i > j > 1, and
        Im K_jj = 0. Column j + 1 of Y Hᴴ is Y_j h*_{j+1,j} + Σ_{k>j} Y_k h*_{j+1,k}, so

            X_ij h*_{j+1,j} = [G + Hᴴ Y]_{i,j+1} − Σ_{k>j} Y_ik h*_{j+1,k} − K*_{j+1,i},   i > j + 1

        where the right side needs the columns of Y after j alone: n − 1 steps from the last column
        to the first, four matrix-vector products each. Imaginary parts give X_{j+1,j}. Then Ā
        is Q Y Qᴴ. Q̄ follows from V̄ and τ̄ (``householder.bar_of_columns``).

    Residuals: the packed result and τ.
    Kinks: a subdiagonal entry 0, where H decouples, or a column that needs no reflection (τ = 0).

    References:
        Krämer, Moreno-Muñoz, Roy and Hauberg 2024, Gradients of functions of large matrices,
        arXiv:2405.17277, for the adjoint of the Arnoldi iteration, which builds the same A Q = Q H
        column by column; that of the dense reduction is derived above.
    """
    n = packed.shape[-1]
    if packed_bar is None:
        packed_bar = lax.full_like(packed, 0)
    packed_bar, taus_bar = conj(packed_bar), None if taus_bar is None else conj(taus_bar)
    h_bar = upper(packed_bar)
    h_bar = h_bar + as_dtype_of(real_part(upper(packed_bar, -1) - h_bar), packed)
    within = lambda x: columns(rows(x, 1, n), 0, n - 1)
    v = unpack(within(packed), n - 1)
    h = upper(packed, -1)
    return conj(_reduction(h, h_bar, v, within(packed_bar), taus, taus_bar))


def tridiagonal(packed, taus, packed_bar=None, d_bar=None, e_bar=None, taus_bar=None, *, lower):
    """Ā = that of ``hessenberg`` with a Hermitian H, folded on the triangle that is read.

    Derivation:
        A Hermitian matrix's Hessenberg form is Hermitian, thus tridiagonal, and it is reached by
        the same reflections: Ā is that of ``hessenberg`` at H̄ = diag d̄ + subdiag ē (and
        what the packed result's cotangent adds there). Only A's lower triangle is read, so Ā is
        folded on it. Above the diagonal LAPACK leaves the input as it was: the cotangent
        there is passed on.

        ``lower=False`` is the same with the order of rows and columns reversed.

    Residuals: the packed result, which holds d and e, and τ.
    Kinks: as ``hessenberg``.

    References:
        as ``hessenberg``, with the Lanczos iteration in the Arnoldi iteration's place.
    """
    if not lower:
        packed, taus = _reversed(packed, 2), _reversed(taus, 1)
        packed_bar, d_bar = _reversed(packed_bar, 2), _reversed(d_bar, 1)
        e_bar, taus_bar = _reversed(e_bar, 1), _reversed(taus_bar, 1)
    n = packed.shape[-1]
    taus_bar = None if taus_bar is None else conj(taus_bar)
    packed_bar = lax.full_like(packed, 0) if packed_bar is None else conj(packed_bar)
    band = triangle(upper(packed_bar, -1))
    if d_bar is not None:
        band = band + place_diagonal(as_dtype_of(d_bar, packed), packed)
    if e_bar is not None:
        below = place_diagonal(as_dtype_of(e_bar, packed), columns(rows(packed, 1, n), 0, n - 1))
        band = band + lax.pad(
            below, lax.full((), 0, packed.dtype),
            [(0, 0, 0)] * (packed.ndim - 2) + [(1, 0, 0), (0, 1, 0)],
        )
    band = as_dtype_of(real_part(band), packed)
    subdiagonal = triangle(upper(packed, -1), -1)
    h = upper(triangle(packed), -1) + adjoint(subdiagonal)
    within = lambda x: columns(rows(x, 1, n), 0, n - 1)
    v = unpack(within(packed), n - 1)
    a_bar = fold_lower(_reduction(h, band, v, within(packed_bar), taus, taus_bar))
    a_bar = conj(a_bar + upper(packed_bar, 1))
    return a_bar if lower else _reversed(a_bar, 2)


def _reversed(x: Any, count: int) -> Any:
    """Turn the last ``count`` axes backwards."""
    return None if x is None else lax.rev(x, range(x.ndim - count, x.ndim))


def _hessenberg_by_columns(a: Any) -> Any:
    """Do the packed reduction column by column, in operations that JAX differentiates."""
    n, taus, packed = a.shape[0], [], jnp.zeros_like(a)
    for i in range(n - 1):
        v, tau, beta = reflector(a[i + 1 :, i])
        a = a.at[i + 1 :, :].set(reflected(v, tau.conj(), a[i + 1 :, :]))
        a = a.at[:, i + 1 :].set(reflected(v, tau.conj(), a[:, i + 1 :].conj().T).conj().T)
        packed = packed.at[i + 2 :, i].set(v[1:])
        a = a.at[i + 1, i].set(beta)
        taus.append(tau)
    return jnp.triu(a, -1) + packed, jnp.stack(taus)


def _tridiagonal_by_columns(lower: bool) -> Any:
    def reference(a: Any) -> Any:
        a = a if lower else a[::-1, ::-1]
        whole = jnp.tril(a, -1) + jnp.tril(a, -1).conj().T + jnp.diag(jnp.diag(a).real)
        packed, taus = _hessenberg_by_columns(whole.astype(a.dtype))
        d, e = jnp.diag(packed).real, jnp.diag(packed, -1).real
        packed = jnp.tril(packed, -1) + jnp.diag(d) + jnp.triu(a, 1)
        return (packed, d, e, taus) if lower else (packed[::-1, ::-1], d[::-1], e[::-1], taus[::-1])

    return reference


def _by_pairs(a: np.ndarray) -> np.ndarray:
    """Move a matrix away from those with columns that need no reflection."""
    return a + 3 * np.eye(a.shape[-1], k=-1) + 3 * np.eye(a.shape[-1], k=1)


NOTE = "JAX has no gradient of it; the reference reflects column by column"
rule(
    linalg.hessenberg_p, "a -> packed, taus", a=hessenberg,
    cases=[
        case(linalg.hessenberg, real(4, 4, make=_by_pairs), reference=_hessenberg_by_columns,
             half=False, note=NOTE),
        case(linalg.hessenberg, real(2, 3, 3, make=_by_pairs),
             reference=jax.vmap(_hessenberg_by_columns), half=False, note=NOTE),
        case(linalg.hessenberg, cplx(4, 4, make=_by_pairs), reference=_hessenberg_by_columns,
             half=False, note=NOTE),
        case(linalg.hessenberg, real(1, 1), reference=lambda a: (a, a[0, :0]), half=False,
             note=NOTE),
    ],
)

rule(
    _jax.find_primitive("lax.linalg.tridiagonal_p"), "a -> packed, d, e, taus", a=tridiagonal,
    cases=[
        case(lambda a: tuple(linalg.tridiagonal(a)), real(4, 4, make=_by_pairs),
             reference=_tridiagonal_by_columns(True), half=False, note=NOTE),
        case(lambda a: tuple(linalg.tridiagonal(a, lower=False)), real(4, 4, make=_by_pairs),
             reference=_tridiagonal_by_columns(False), half=False, note=NOTE),
        case(lambda a: tuple(linalg.tridiagonal(a)), cplx(2, 3, 3, make=_by_pairs),
             reference=jax.vmap(_tridiagonal_by_columns(True)), half=False, note=NOTE),
        case(lambda a: tuple(linalg.tridiagonal(a, lower=False)), cplx(4, 4, make=_by_pairs),
             reference=_tridiagonal_by_columns(False), half=False, note=NOTE),
        case(lambda a: linalg.tridiagonal(a)[1:3], real(3, 3, make=_by_pairs),
             reference=lambda a: _tridiagonal_by_columns(True)(a)[1:3], half=False, note=NOTE),
    ],
)
_at = ([[2.0, 0.3, -0.2], [0.4, 1.0, 0.5], [-0.3, 0.6, 3.0]],)
improvement(
    "hessenberg", lambda a: jnp.sin(linalg.hessenberg(a)[0]), at=_at,
    true=[[-0.4161468365, -0.1488374549, 1.3613780995],
          [-5.7515857443, -0.7673441735, -0.7886095305],
          [-6.2061433892, -0.8607318101, 0.1922744994]],
    jax="raises NotImplementedError",
    source="central differences of the result, extrapolated to order 8",
)
improvement(
    "tridiagonal", lambda a: jnp.sin(linalg.tridiagonal(a)[2]), at=_at,
    true=[[0.0, 0.0, 0.0], [-2.1451242764, -0.3371631371, 0.0],
          [-1.3975280988, -0.1966784967, 0.3371631371]],
    jax="raises NotImplementedError",
    source="central differences of the result, extrapolated to order 8",
)
