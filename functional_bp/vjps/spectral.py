"""Eigenvalues and singular values are differentiated in the basis of their vectors.

The pairing of complex cotangents is that of ``matrices.py``. In the derivations P = V⁻¹ dA V is the
perturbation in the basis of the eigenvectors; all that follows is how eigenvalues and eigenvectors
read it. Degenerate eigenvalues leave the eigenvectors without a derivative: inf or nan, as in JAX.
"""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from functional_bp.engine.improvements import improvement
from functional_bp.engine.rule import case, cplx, real, rule
from functional_bp.errors import NotDifferentiableError, compose, describe
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
    fold_lower,
    identity,
    is_complex,
    on_diagonal,
    place_diagonal,
    real_part,
    rows,
    solve,
    transpose,
)

linalg = lax.linalg


class EigenvectorError(NotDifferentiableError, NotImplementedError):
    """Derivatives of the eigenvectors of a general matrix hold only where they are asked for."""


def _reciprocal_gaps(w: Array, like: Array) -> Array:
    """F_ij = 1/(w_j − w_i), 0 on the diagonal."""
    unit = identity(like)
    gaps = by_column(w, like) - by_row(w, like)
    return lax.reciprocal(gaps + unit) - unit


def refuse_subset(subset: tuple[int, int] | None, whole: int, what: str, got: Array) -> None:
    """Raise NotDifferentiableError for the vectors of a partial decomposition."""
    if subset is not None and tuple(subset) != (0, whole):
        raise NotDifferentiableError(
            compose(
                f"the vectors of a partial {what} have no derivative here",
                got=f"{describe(got)} with subset_by_index={tuple(subset)}",
                expected=f"all {whole}: the derivative of a vector needs the other ones",
                do=f"compute the whole {what} and slice it, or use the values alone",
            )
        )


def eigh(v, w, v_bar=None, w_bar=None, *, lower, subset_by_index):
    """Ā = Φ(S + Sᴴ),  S = V [F ∘ (Vᴴ V̄) + diag w̄] Vᴴ,  F_ij = 1/(w_j − w_i) off the diagonal.

    Derivation:
        A V = V W with Vᴴ V = I. Differentiate and multiply by Vᴴ; with P = Vᴴ dA V and Ω = Vᴴ dV

            P + W Ω = Ω W + dW,   Ω + Ωᴴ = 0

        Entry ij is P_ij = Ω_ij (w_j − w_i) + dW_ij. On the diagonal dw = Re diag P, and off it
        Ω = F ∘ P; the diagonal of Ω is a phase of each vector, left at 0. So

            ⟨V̄, V (F ∘ P)⟩ + ⟨w̄, diag P⟩ = ⟨F ∘ (Vᴴ V̄) + diag w̄, Vᴴ dA V⟩ = ⟨S, dA⟩

        dA is Hermitian, and only one of its triangles is read. Let it be the lower one (for the
        upper one, transpose): dA = dE + dEᴴ with dE = Φ(dA), Φ the lower triangle with half the
        diagonal, so

            ⟨S, dA⟩ = ⟨S + Sᴴ, dE⟩ = ⟨Φ(S + Sᴴ), dA's lower triangle⟩

        ``symmetrize_input=True`` makes Ā the Hermitian ½ (S + Sᴴ).

    Residuals: V and w, not A. Without V̄ S is V diag(w̄) Vᴴ, one product.

    References:
        Giles 2008, An extended collection of matrix derivative results, Oxford report 08/01 (in
        short: doi 10.1007/978-3-540-68942-3_4); Walter and Lehmann 2010, arXiv:1001.1654. The
        triangle that is read is derived above.
    """
    if v_bar is None:
        s = dot(lax.mul(v, as_dtype_of(by_column(w_bar, v), v)), v, "nh")
        return _of_triangle(s, lower)
    refuse_subset(subset_by_index, v.shape[-2], "symmetric eigendecomposition", v)
    p_bar = lax.mul(as_dtype_of(_reciprocal_gaps(w, real_part(v)), v), dot(v, conj(v_bar), "hn"))
    if w_bar is not None:
        p_bar = p_bar + place_diagonal(as_dtype_of(w_bar, v), v)
    return _of_triangle(dot(dot(v, p_bar), v, "nh"), lower)


def _of_triangle(s: Array, is_lower: bool) -> Array:
    """Return Φ(S + Sᴴ) for the triangle that is read, as the cotangent that goes out."""
    folded = fold_lower(s)
    return conj(folded if is_lower else adjoint(folded))


def _symmetric(a: np.ndarray) -> np.ndarray:
    """Make the matrix Hermitian, its eigenvalues well apart."""
    n = a.shape[-1]
    return (a + np.swapaxes(a.conj(), -1, -2)) / 4 + np.diag(4.0 * np.arange(n))


def _phase_free(a: Any) -> Any:
    v, w = linalg.eigh(a)
    return v * v[..., :1, :].conj(), w


def _from_lower(a: Any) -> Any:
    """Make the Hermitian matrix with the lower triangle of A."""
    below = jnp.tril(a, -1)
    diagonal = jnp.real(jnp.diagonal(a, axis1=-2, axis2=-1)).astype(a.dtype)
    return below + jnp.swapaxes(below.conj(), -1, -2) + jnp.eye(a.shape[-1]) * diagonal[..., None]


def _of_upper(a: Any) -> Any:
    return linalg.eigh(_from_lower(jnp.swapaxes(a.conj(), -1, -2)))[1]


rule(
    linalg.eigh_p, "a -> v, w", a=eigh, axes="... N N -> ... N E, ... E",
    kinks="equal eigenvalues: the vectors have no derivative (inf or nan), the values' is fine",
    cases=[
        case(linalg.eigh, real(3, 3, make=_symmetric), half=False),
        case(linalg.eigh, real(2, 3, 3, make=_symmetric), half=False),
        case(linalg.eigh, cplx(2, 3, 3, make=_symmetric), half=False),
        case(lambda a: linalg.eigh(a)[1], cplx(2, 3, 3, make=_symmetric), half=False),
        case(lambda a: linalg.eigh(a)[0], real(3, 3, make=_symmetric), half=False),
        case(lambda a: linalg.eigh(a, symmetrize_input=False, lower=False)[1],
             real(3, 3, make=_symmetric), reference=_of_upper, half=False,
             note="JAX gives the entries below the diagonal, not read, a cotangent"),
        case(lambda a: linalg.eigh(a, symmetrize_input=False), real(2, 3, 3, make=_symmetric),
             reference=lambda a: linalg.eigh(_from_lower(a)), half=False, note="above it"),
        case(lambda a: linalg.eigh(a, symmetrize_input=False)[1], cplx(3, 3, make=_symmetric),
             reference=lambda a: linalg.eigh(_from_lower(a))[1], half=False,
             note="nor is the diagonal's imaginary part read"),
        case(lambda a: linalg.eigh(a, subset_by_index=(0, 3)), real(3, 3, make=_symmetric),
             half=False),
        case(_phase_free, cplx(3, 3, make=_symmetric), half=False),
        case(linalg.eigh, real(0, 2, 2), half=False),
    ],
)


improvement(
    "eigenvalues of a lower triangle",
    lambda a: jnp.sin(linalg.eigh(a, symmetrize_input=False)[1]),
    at=([[2.0, 0.5], [0.5, 1.0]],),
    true=[[-0.404434399873309679, 0.0], [-0.91642395050686014, 0.511989550633550463]],
    jax="a cotangent for the entries above the diagonal, not read",
    source="mpmath: derivatives of sin(m - r) + sin(m + r), m and r of a 2x2 matrix's eigenvalues",
)


def eig_keeping_vectors(a, *, compute_left_eigenvectors, compute_right_eigenvectors,
                        enable_eigvec_derivs, **parameters):
    """Return the decomposition, and beside the outputs V, empty if eigenvectors are among the
    outputs.

    A second derivative of the values alone goes through V, whatever its scale: always allowed.
    """
    either = compute_left_eigenvectors or compute_right_eigenvectors
    w, *vectors = linalg.eig_p.bind(
        a, compute_left_eigenvectors=compute_left_eigenvectors,
        compute_right_eigenvectors=compute_right_eigenvectors or not either,
        enable_eigvec_derivs=enable_eigvec_derivs or not either, **parameters,
    )
    return ([w, *vectors], lax.full((0,), 0, w.dtype)) if either else ([w], *vectors)


def eig(w, vectors, v, a_t, vectors_bar, w_bar=None, *, compute_left_eigenvectors,
        enable_eigvec_derivs):
    """Ā = V⁻ᴴ [F* ∘ (Vᴴ Ū) + diag w̄] Vᴴ,  F_ij = 1/(w_j − w_i),  Ū: V̄ without the norm's share.

    Derivation:
        A V = V W. With P = V⁻¹ dA V and B = V⁻¹ dV it is P + W B = B W + dW: dw = diag P, and off
        the diagonal B = F ∘ P. The diagonal of B is a scale c_j of each vector,

            dv_j = u_j + c_j v_j,   dU = V (F ∘ P)

        fixed by what LAPACK returns: ‖v_j‖ = 1 and a real entry k_j, the largest one:

            Re c_j = −Re v_jᴴ u_j,   Im c_j = −Im u_kj / v_kj

        With t_j = v_jᴴ v̄_j the adjoint of c_j's part goes to ū_j,

            Ū = V̄ − V diag(Re t) − i E diag(Im t / v_k),   E: ones at the entries k_j

        and ⟨Ū, V (F ∘ P)⟩ + ⟨w̄, diag P⟩ = ⟨F* ∘ (Vᴴ Ū) + diag w̄, V⁻¹ dA V⟩.

        The left eigenvectors are the right ones of Aᴴ, whose eigenvalues are w*. For a real A the
        cotangent is the real part, the adjoint of ℝ ⊂ ℂ.

    Residuals: w and the eigenvectors that are outputs; V beside them if none is.
    Kinks: equal eigenvalues; for the vectors also two entries tied for the largest.

    References:
        Giles 2008, Oxford report 08/01 (in short: doi 10.1007/978-3-540-68942-3_4), for the values
        and F ∘ P; Magnus 1985, On differentiating eigenvalues and eigenvectors, Econometric Theory
        1, 179–191, and Liounis, Christian and Robinson 2019, Observations on the computation of
        eigenvalue and eigenvector Jacobians, doi 10.3390/a12120245, for complex matrices. LAPACK's
        scale of the vectors is derived above.

    Raises:
        EigenvectorError: eigenvectors without ``enable_eigvec_derivs=True``.
    """
    w_bar = None if w_bar is None else conj(w_bar)
    bars = [None if bar is None else conj(bar) for bar in vectors_bar]
    if any(bar is not None for bar in bars) and not enable_eigvec_derivs:
        raise EigenvectorError(
            compose(
                "the derivative of eigenvectors of a general matrix was not asked for",
                got=f"eig of {describe(a_t)} with a gradient through its eigenvectors",
                expected="distinct eigenvalues, and no vector with two largest entries, which "
                "cannot be checked here",
                do="pass enable_eigvec_derivs=True to jax.lax.linalg.eig if that holds",
            )
        )
    if not vectors:
        a_bar = _eig_pullback(w, v, w_bar, None)
    else:
        right = vectors[-1] if not compute_left_eigenvectors or len(vectors) == 2 else None
        a_bar = None
        if right is not None and not (w_bar is None and bars[-1] is None):
            a_bar = _eig_pullback(w, right, w_bar, bars[-1])
            w_bar = None
        if compute_left_eigenvectors and not (w_bar is None and bars[0] is None):
            w_bar = None if w_bar is None else conj(w_bar)
            left_bar = adjoint(_eig_pullback(conj(w), vectors[0], w_bar, bars[0]))
            a_bar = left_bar if a_bar is None else a_bar + left_bar
    return as_dtype_of(conj(a_bar), a_t)


def _eig_pullback(w: Array, v: Array, w_bar: Array | None, v_bar: Array | None) -> Array:
    """Return V⁻ᴴ P̄ Vᴴ, the cotangent of the matrix whose right eigenvectors are V."""
    if v_bar is None:
        return solve(v, lax.mul(by_row(w_bar, v), adjoint(v)), "h")
    size = lax.abs(v)
    k = lax.argmax(size, v.ndim - 2, np.int32)
    place = lax.broadcasted_iota(np.int32, v.shape, v.ndim - 2)
    largest = lax.eq(place, by_column(k, v))
    zero = lax.full_like(size, 0)
    t = lax.reduce_sum(lax.mul(conj(v), v_bar), [v.ndim - 2])
    at_largest = lax.reduce_sum(lax.select(largest, lax.real(v), zero), [v.ndim - 2])
    share = by_column(lax.div(lax.imag(t), at_largest), v)
    u_bar = v_bar - lax.mul(v, as_dtype_of(by_column(lax.real(t), v), v))
    u_bar = u_bar - lax.complex(zero, lax.select(largest, share, zero))
    p_bar = lax.mul(conj(_reciprocal_gaps(w, v)), dot(v, u_bar, "hn"))
    if w_bar is not None:
        p_bar = p_bar + place_diagonal(w_bar, v)
    return solve(v, dot(p_bar, v, "nh"), "h")


def _eig(left: bool, right: bool, derivs: bool = True) -> Any:
    return lambda a: linalg.eig(
        a, compute_left_eigenvectors=left, compute_right_eigenvectors=right,
        enable_eigvec_derivs=derivs,
    )


def _distinct(a: np.ndarray) -> np.ndarray:
    """Move the eigenvalues well apart, a conjugate pair among the real matrices' ones."""
    n = a.shape[-1]
    turned = np.zeros((n, n))
    turned[0, 1:2], turned[1:2, 0] = 4, -4
    return a / 4 + np.diag(3.0 * np.arange(n)) + turned


rule(
    linalg.eig_p, "a -> w, *vectors | v", a=eig, forward=eig_keeping_vectors,
    axes="... N N -> ... E, ... N E, ... N E",
    kinks="equal eigenvalues: inf or nan",
    cases=[
        case(_eig(False, False, False), real(2, 3, 3, make=_distinct),
             reference=_eig(False, False), half=False,
             note="without the permission JAX refuses the values' second derivative"),
        case(_eig(False, False, False), cplx(2, 3, 3, make=_distinct),
             reference=_eig(False, False), half=False, note="as above"),
        case(_eig(False, True), real(3, 3, make=_distinct), half=False),
        case(_eig(False, True), cplx(2, 3, 3, make=_distinct), half=False),
        case(_eig(True, False), real(2, 3, 3, make=_distinct), half=False),
        case(_eig(True, True), cplx(3, 3, make=_distinct), half=False),
        case(lambda a: _eig(True, True)(a)[0], real(3, 3, make=_distinct), half=False),
        case(lambda a: _eig(True, True)(a)[1], real(3, 3, make=_distinct), half=False),
        case(lambda a: _eig(True, False)(a)[0], cplx(3, 3, make=_distinct), half=False),
    ],
)


# Singular values and vectors.


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
    axes="... M N -> ... K, ... M U, ... V N",
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
