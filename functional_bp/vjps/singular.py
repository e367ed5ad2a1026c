"""Singular values and vectors have one rule; complex cotangents pair as in ``matrices.py``."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from functional_bp.engine.improvements import improvement
from functional_bp.engine.rule import case, cplx, real, rule
from functional_bp.vjps.matrices import (
    DIFFERENCES,
    Array,
    adjoint,
    as_dtype_of,
    by_column,
    by_row,
    columns,
    conj,
    dot,
    identity,
    is_complex,
    on_diagonal,
    place_diagonal,
    real_part,
    rows,
    transpose,
)
from functional_bp.vjps.spectral import refuse_subset

linalg = lax.linalg


def svd_keeping_vectors(a, *, full_matrices, compute_uv, **parameters):
    """Return the decomposition, and beside the outputs U and Vᴴ, empty if they are among the
    outputs.
    """
    s, *vectors = linalg.svd_p.bind(
        a, full_matrices=full_matrices and compute_uv, compute_uv=True, **parameters
    )
    if compute_uv:
        empty = lax.full((0,), 0, a.dtype)
        return [s, *vectors], (empty, empty)
    return [s], tuple(vectors)


def svd(s, vectors, kept_u, kept_vh, vectors_bar, s_bar=None, *, subset_by_index=None):
    """Ā = U₁ [(F ∘ K_U) S + S (F ∘ K_V) + diag s̄] V₁ᴴ + U₂ K₂ S⁻¹ V₁ᴴ + U₁ S⁻¹ K₂ᴴ V₂ᴴ.

    F_ij = 1/(s_j² − s_i²), K_U = Uᴴ Ū − Ūᴴ U, K_V likewise; for a tall A the U₂ term, for a wide
    one the V₂ term.

    Derivation:
        A = U₁ S V₁ᴴ. With P = U₁ᴴ dA V₁, Ω = U₁ᴴ dU₁ and Ψ = V₁ᴴ dV₁, both skew-Hermitian,

            P = Ω S + dS − S Ψ

        On the diagonal ds = Re diag P, and i Im P_jj = s_j (Ω − Ψ)_jj: one phase is free, JAX gives
        it all to U, Ω_jj = i Im P_jj / s_j, Ψ_jj = 0. Off it, P and Pᴴ together give

            Ω = F ∘ (P S + S Pᴴ),   Ψ = F ∘ (S P + Pᴴ S)

        With X = U₁ᴴ Ū₁, F real and antisymmetric,

            ⟨X, F ∘ (P S + S Pᴴ)⟩ = ⟨(F ∘ (X − Xᴴ)) S, P⟩

        and the same for Ψ: ⟨S (F ∘ (Y − Yᴴ)), P⟩, Y = V₁ᴴ V̄₁. The phase adds diag(i Im X_jj / s_j).

        What leaves the range (tall A): (I − U₁ U₁ᴴ) dU₁ = (I − U₁ U₁ᴴ) dA V₁ S⁻¹.

        Full matrices: U = [U₁ U₂], U₂ fixed up to a rotation of its columns; the one is taken that
        turns least, U₂ᴴ dU₂ = 0. With B = U₂ᴴ dU₁ = U₂ᴴ dA V₁ S⁻¹, UᴴU = I gives dU₂ = −U₁ Bᴴ, and

            ⟨Ū₁, U₂ B⟩ − ⟨Ū₂, U₁ Bᴴ⟩ = ⟨U₂ᴴ Ū₁ − Ū₂ᴴ U₁, B⟩

        the lower left block K₂ of UᴴŪ − ŪᴴU. A function of the space that U₂ spans has this
        gradient whatever rotation is taken.

    Residuals: s, U and Vᴴ, not A; the last two beside the outputs if only s is computed.
    Kinks: equal singular values, or a zero one where the range is left, have no derivative of the
        vectors: inf or nan.

    References:
        Giles 2008, An extended collection of matrix derivative results, Oxford report 08/01 (in
        short: doi 10.1007/978-3-540-68942-3_4), for the singular values; Wan and Zhang 2019,
        Automatic differentiation for complex valued SVD, arXiv:1909.02659, for the phase. The full
        matrices are derived above.
    """
    u, vh = vectors or (kept_u, kept_vh)
    u_bar, vh_bar = vectors_bar or (None, None)
    k = s.shape[-1]
    u1, vh1 = columns(u, 0, k), rows(vh, 0, k)
    if u_bar is None and vh_bar is None:
        return conj(dot(lax.mul(u1, as_dtype_of(by_column(s_bar, u1), u1)), vh1))
    whole = min(u.shape[-2], vh.shape[-1])
    refuse_subset(subset_by_index, whole, "singular value decomposition", u)
    p_bar, left, right = [], [], None
    per_s = lambda x: lax.div(x, as_dtype_of(by_column(s, x), x))
    if u_bar is not None:
        inside, outside = _turn(u, conj(u_bar), k)
        p_bar.append(_times_gaps(s, inside, by_column))
        if is_complex(u):
            zero = lax.convert_element_type(lax.eq(s, lax.full_like(s, 0)), s.dtype)
            half_inverse = lax.mul(lax.reciprocal(s + zero) - zero, lax.full_like(s, 0.5))
            phase = lax.mul(inside, as_dtype_of(by_column(half_inverse, inside), inside))
            p_bar.append(on_diagonal(phase))
        left += [] if outside is None else [per_s(outside)]
    if vh_bar is not None:
        inside, right = _turn(adjoint(vh), transpose(vh_bar), k)
        p_bar.append(_times_gaps(s, inside, by_row))
    if s_bar is not None:
        p_bar.append(place_diagonal(as_dtype_of(s_bar, u), p_bar[0]))
    a_bar = dot(functools.reduce(lax.add, [dot(u1, functools.reduce(lax.add, p_bar)), *left]), vh1)
    if right is not None:
        a_bar = a_bar + dot(per_s(u1), right, "nh")
    return conj(a_bar)


def _turn(u: Array, u_bar: Array, k: int) -> tuple[Array, Array | None]:
    """K = UᴴŪ − ŪᴴU on the first k columns: in their range, and outside as a matrix U₂ K₂."""
    m, count = u.shape[-2:]
    if count == k:
        x = dot(u, u_bar, "hn")
        return x - adjoint(x), u_bar - dot(u, x) if m > k else None
    turned = dot(u, columns(u_bar, 0, k), "hn") - dot(u_bar, columns(u, 0, k), "hn")
    return rows(turned, 0, k), dot(columns(u, k, count), rows(turned, k, count))


def _times_gaps(s: Array, k: Array, side: Any) -> Array:
    """Return (F ∘ K) S where ``side`` is by column, S (F ∘ K) by row; F_ij = 1/(s_j² − s_i²)."""
    like = real_part(k)
    s_j, s_i, unit = by_column(s, like), by_row(s, like), identity(like)
    gaps = lax.mul(s_j + s_i, s_j - s_i)
    return lax.mul(k, as_dtype_of(lax.mul(lax.reciprocal(gaps + unit) - unit, side(s, like)), k))


def _svd(**parameters: Any) -> Any:
    return lambda a: linalg.svd(a, **parameters)


def _spread_values(a: np.ndarray) -> np.ndarray:
    """Move the singular values well apart and away from 0."""
    m, n = a.shape[-2:]
    return a / 4 + np.eye(m, n) * (2 + 2.0 * np.arange(n))


def _spaces_of_full(a: Any) -> Any:
    """Return what no choice of further vectors changes: s, the thin ones, projections."""
    u, s, vh = linalg.svd(a, full_matrices=True)
    k = s.shape[-1]
    u2, vh2 = u[..., :, k:], vh[..., k:, :]
    return u[..., :, :k], s, vh[..., :k, :], u2 @ adjoint(u2), adjoint(vh2) @ vh2


def _spaces_of_thin(a: Any) -> Any:
    u, s, vh = linalg.svd(a, full_matrices=False)
    eye = lambda x: jnp.eye(x.shape[-1], dtype=x.dtype)
    uu, vv = u @ adjoint(u), adjoint(vh) @ vh
    return u, s, vh, eye(uu) - uu, eye(vv) - vv


rule(
    linalg.svd_p, "a -> s, *vectors | kept_u, kept_vh", a=svd, forward=svd_keeping_vectors,
    kinks="equal singular values: inf or nan for the vectors",
    cases=[
        case(_svd(compute_uv=False), real(2, 4, 3, make=_spread_values), half=False),
        case(_svd(compute_uv=False), cplx(3, 4, make=_spread_values), half=False),
        case(_svd(full_matrices=False), real(2, 4, 3, make=_spread_values), half=False),
        case(_svd(full_matrices=False), real(2, 4, make=_spread_values), half=False),
        case(_svd(full_matrices=True), real(3, 3, make=_spread_values), half=False),
        case(_svd(full_matrices=False), cplx(2, 4, 3, make=_spread_values), half=False),
        case(_svd(full_matrices=False), cplx(2, 4, make=_spread_values), half=False),
        case(_svd(full_matrices=False, algorithm=linalg.SvdAlgorithm.QR),
             real(3, 2, make=_spread_values), half=False),
        case(lambda a: linalg.svd(a, full_matrices=False)[0], cplx(3, 2, make=_spread_values),
             half=False),
        case(lambda a: linalg.svd(a, full_matrices=False)[2], cplx(3, 2, make=_spread_values),
             half=False),
        case(_spaces_of_full, real(2, 4, 2, make=_spread_values), reference=_spaces_of_thin,
             half=False, note="JAX has no gradient of full matrices that are not square"),
        case(_spaces_of_full, real(2, 4, make=_spread_values), reference=_spaces_of_thin,
             half=False, note="as above"),
        case(_spaces_of_full, cplx(4, 3, make=_spread_values), reference=_spaces_of_thin,
             half=False, note="as above"),
        case(_spaces_of_full, cplx(2, 3, make=_spread_values), reference=_spaces_of_thin,
             half=False, note="as above"),
        case(_svd(compute_uv=False), real(0, 3, 2), half=False),
    ],
)
improvement(
    "svd with full matrices",
    lambda a: (lambda u: jnp.sin(u[:, 2:] @ u[:, 2:].T))(linalg.svd(a, full_matrices=True)[0]),
    at=([[2.0, 0.3], [-0.5, 1.0], [0.7, 0.4]],),
    true=[[0.040567194, 0.1889272296], [0.0265940494, 0.123852295],
          [-0.0969105189, -0.4513261597]],
    jax="raises NotImplementedError", source=DIFFERENCES,
)
