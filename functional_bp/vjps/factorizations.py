"""The triangular and orthogonal factorizations are Cholesky, LU and QR.

All of them follow one path: differentiate the factorization, multiply by the inverse factors from
both sides, and split the matrix that remains into the parts that the factors may move in. The
pairing of complex cotangents is that of ``matrices.py``. Each rule names its sources.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from functional_bp.engine.improvements import improvement
from functional_bp.engine.rule import case, cplx, real, rule
from functional_bp.vjps.matrices import (
    DIFFERENCES,
    adjoint,
    beside,
    columns,
    conj,
    dot,
    half_lower,
    hermitian_from_lower,
    hermitian_from_upper,
    identity,
    lower,
    padded,
    permute_rows,
    rows,
    solve,
    solve_triangular,
    stacked,
    transpose,
    upper,
    with_diagonal,
)

linalg = lax.linalg


def cholesky(l_bar, l):  # noqa: E741
    """Ā = Φ(T), T = L⁻ᴴ sym(Lᴴ L̄) L⁻¹; Φ: the lower triangle with half the diagonal.

    Derivation:
        A = L Lᴴ, so dA = dL Lᴴ + L dLᴴ; with C = L⁻¹ dA L⁻ᴴ this is

            C = L⁻¹ dL + (L⁻¹ dL)ᴴ

        L⁻¹ dL is lower triangular with a real diagonal, so it is Φ(C), and dL = L Φ(C). Then

            ⟨L̄, L Φ(C)⟩ = ⟨Φ(Lᴴ L̄), C⟩ = ⟨S, dA⟩,   S = L⁻ᴴ Φ(Lᴴ L̄) L⁻¹

        dA is Hermitian, and only its lower triangle is read, dA = dE + dEᴴ with dE = Φ(dA); so

            ⟨S, dA⟩ = ⟨S + Sᴴ, dE⟩ = ⟨Φ(T), dA's lower triangle⟩,   T = S + Sᴴ

        and T = L⁻ᴴ (P + Pᴴ) L⁻¹ with P = Φ(Lᴴ L̄): the Hermitian matrix sym(Lᴴ L̄) that has the
        lower triangle of Lᴴ L̄. ``symmetrize_input=True`` makes Ā the Hermitian ½ T.

    Residuals: L alone.

    References:
        Murray 2016, Differentiation of the Cholesky decomposition, arXiv:1602.07527, for real
        matrices; derived above for complex ones.
    """
    factor = lower(l)
    t = hermitian_from_lower(dot(factor, conj(l_bar), "hn"))
    t = solve_triangular(factor, t, "h", lower=True)
    t = solve_triangular(factor, t, left=False, lower=True)
    return conj(half_lower(t))


def _positive(a: np.ndarray) -> np.ndarray:
    return a @ np.swapaxes(a.conj(), -1, -2) + 2 * np.eye(a.shape[-1])


rule(
    linalg.cholesky_p, "a -> l", a=cholesky, axes="... N N -> ... N N",
    cases=[
        case(linalg.cholesky, real(3, 3, make=_positive), half=False),
        case(linalg.cholesky, real(2, 3, 3, make=_positive), half=False),
        case(linalg.cholesky, cplx(2, 3, 3, make=_positive), half=False),
        case(linalg.cholesky, real(0, 0), half=False),
        case(
            lambda a: linalg.cholesky(a, symmetrize_input=False), real(3, 3, make=_positive),
            reference=lambda a: linalg.cholesky(
                jnp.tril(a) + jnp.tril(a, -1).T, symmetrize_input=False
            ),
            half=False, note="JAX 0.10 gives the entries above the diagonal, not read, a cotangent",
        ),
        case(
            lambda a: linalg.cholesky(a, symmetrize_input=False), cplx(3, 3, make=_positive),
            reference=lambda a: linalg.cholesky(
                jnp.tril(a, -1) + jnp.tril(a, -1).conj().T + jnp.diag(jnp.diag(a).real),
                symmetrize_input=False,
            ),
            half=False, note="as above; nor is the diagonal's imaginary part read",
        ),
    ],
)


def lu(factors_bar, factors, order):
    """Ā = Pᵀ L⁻ᵀ [stril(Lᵀ L̄) + triu(Ū Uᵀ)] U⁻ᵀ for a square matrix, P A = L U.

    Derivation:
        P is locally constant. Square: P dA = dL U + L dU, and with C = L⁻¹ P dA U⁻¹

            C = L⁻¹ dL + dU U⁻¹

        The first is strictly lower triangular (L's diagonal is 1), the second upper triangular:
        dL = L stril(C), dU = triu(C) U. So

            ⟨L̄, dL⟩ + ⟨Ū, dU⟩ = ⟨C̄, C⟩,   C̄ = stril(Lᵀ L̄) + triu(Ū Uᵀ),   P Ā = L⁻ᵀ C̄ U⁻ᵀ

        Tall, A = [A₁; A₂], L = [L₁; L₂]: dL₂ = dA₂ U⁻¹ − L₂ dU U⁻¹ = dA₂ U⁻¹ − L₂ triu(C), which
        adds −triu(L₂ᵀ L̄₂) to C̄ and gives Ā₂ = L̄₂ U⁻ᵀ.

        Wide, A = [A₁ A₂], U = [U₁ U₂]: dU₂ = L⁻¹ dA₂ − stril(C) U₂ adds −stril(Ū₂ U₂ᵀ) to C̄
        and gives Ā₂ = L⁻ᵀ Ū₂.

        Nothing is conjugated in L U, so transposes serve complex matrices as well.

    Residuals: the packed L and U, and the permutation.
    Kinks: where two pivots tie, the branch that was taken.

    References:
        de Hoog, Anderssen and Lukas 2011, Differentiation of matrix functionals using triangular
        factorization, doi 10.1090/S0025-5718-2011-02451-8, for square matrices; Axen 2021,
        Differentiating the LU decomposition,
        sethaxen.com/blog/2021/02/differentiating-the-lu-decomposition, for wide and tall ones.
    """
    m, n = factors.shape[-2:]
    k = min(m, n)
    square = rows(columns(factors, 0, k), 0, k)
    l1, u1 = with_diagonal(lower(square, -1), 1), upper(square)
    bar = rows(columns(factors_bar, 0, k), 0, k)
    below, above = dot(l1, lower(bar, -1), "tn"), dot(upper(bar), u1, "nt")
    if m > n:
        above = above - dot(rows(factors, k, m), rows(factors_bar, k, m), "tn")
    if n > m:
        below = below - dot(columns(factors_bar, k, n), columns(factors, k, n), "nt")
    c_bar = lower(below, -1) + upper(above)
    c_bar = solve_triangular(l1, c_bar, "t", lower=True, unit=True)
    a_bar = solve_triangular(u1, c_bar, "t", left=False)
    if m > n:
        rest = solve_triangular(u1, rows(factors_bar, k, m), "t", left=False)
        a_bar = stacked(a_bar, rest)
    elif n > m:
        rest = solve_triangular(l1, columns(factors_bar, k, n), "t", lower=True, unit=True)
        a_bar = beside(a_bar, rest)
    return permute_rows(a_bar, order, inverse=True)


_lu = lambda a: linalg.lu(a)[0]
rule(
    linalg.lu_p, "a -> factors, pivots, order", a=lu, axes="... M N -> ... M N, ... K, ... M",
    cases=[
        case(linalg.lu, real(3, 3), half=False),
        case(_lu, real(2, 4, 3), half=False),
        case(_lu, real(2, 3, 5), half=False),
        case(_lu, cplx(2, 3, 3), half=False),
        case(_lu, cplx(4, 2), half=False),
        case(_lu, cplx(2, 4), half=False),
        case(_lu, real(0, 3, 3), half=False),
        case(_lu, real(2, 1, 1), half=False),
    ],
)


def thin_qr(q, r, q_bar=None, r_bar=None):
    """Ā = [Q̄ − Q sym(G)] R⁻ᴴ,  G = Qᴴ Q̄ − R̄ Rᴴ,  for A = Q R with R square.

    sym(G) is the Hermitian matrix with G's upper triangle; ``qr`` has the derivation.
    """
    g = dot(q, q_bar, "hn") if q_bar is not None else None
    if r_bar is not None:
        moved = dot(r_bar, r, "nh")
        g = lax.neg(moved) if g is None else g - moved
    inner = dot(q, hermitian_from_upper(g))
    inner = lax.neg(inner) if q_bar is None else q_bar - inner
    return solve_triangular(r, inner, "h", left=False)


def qr(q, r, p, q_bar=None, r_bar=None, *, full_matrices):
    """Ā = [Q̄ − Q sym(G)] R⁻ᴴ,  G = Qᴴ Q̄ − R̄ Rᴴ.

    Derivation:
        Thin, A = Q R with R square. dA = dQ R + Q dR; with C = Qᴴ dA R⁻¹ and Ω = Qᴴ dQ

            C = Ω + dR R⁻¹,   Ω + Ωᴴ = 0 because Qᴴ Q = I

        dR R⁻¹ is upper triangular with a real diagonal (R's diagonal stays real), so
        Ω = stril(C) − stril(C)ᴴ + i Im diag C, and what leaves the range of Q is

            dQ = Q Ω + (I − Q Qᴴ) dA R⁻¹

        With G = Qᴴ Q̄ − R̄ Rᴴ the adjoint is

            ⟨Q̄, dQ⟩ + ⟨R̄, dR⟩ = ⟨G, Ω⟩ + ⟨R̄ Rᴴ, C⟩ + ⟨(I − Q Qᴴ) Q̄ R⁻ᴴ, dA⟩
            C̄ = R̄ Rᴴ + stril(G − Gᴴ) + i Im diag G
            Ā Rᴴ = Q C̄ + Q̄ − Q Qᴴ Q̄ = Q̄ − Q [G − stril(G − Gᴴ) − i Im diag G]

        The bracket is sym(G): G's upper triangle, mirrored, with a real diagonal.

        Wide, A = [A₁ A₂], R = [R₁ R₂]: R₂ = Qᴴ A₂ gives Ā₂ = Q R̄₂ and adds A₂ R̄₂ᴴ = Q R₂ R̄₂ᴴ to
        Q̄; then A₁ = Q R₁ is thin.

        Full, Q = [Q₁ Q₂] with more rows than columns. Q is a product of n reflections, that is
        Q = I − V T Vᴴ with V = [V₁; V₂] unit lower trapezoidal. So V (T V₁ᴴ) = E₁ − Q₁ where
        E = [E₁ E₂] = I, and the columns Q₂ follow from Q₁ = [X; Y]:

            Q₂ = E₂ − V T V₂ᴴ = E₂ − (E₁ − Q₁) Zᴴ,   Z = V₂ V₁⁻¹ = Y (X − I)⁻¹
            dZ = (dY − Z dX)(X − I)⁻¹
            dQ₂ = dQ₁ Zᴴ − (E₁ − Q₁) dZᴴ = dQ₁ Zᴴ + (Q₁ − E₁)(X − I)⁻ᴴ (dY − Z dX)ᴴ

        Qᴴ Q = I means T⁻¹ + T⁻ᴴ = Vᴴ V, so Q V = −V T T⁻ᴴ, and the factor before the last is

            (Q₁ − E₁)(X − I)⁻ᴴ = V T T⁻ᴴ V₁⁻¹ = −Q V V₁⁻¹ = −(Q₁ + Q₂ Z) = −W

        Hence with B = Q̄₂ᴴ W

            Q̄₁ += Q̄₂ Z + [Zᴴ B; −B]

        Pivoted, A[:, p] = Q R: p is locally constant, so the columns of Ā are put back.

    Residuals: Q and R, not A.
    Kinks: where R is singular, and for the full Q where X − I is, there is no derivative.

    References:
        Walter and Lehmann 2010, Algorithmic differentiation of linear algebra functions with
        application in optimum experimental design, arXiv:1001.1654, for the thin form; Roberts and
        Roberts 2020, QR and LQ decomposition matrix backpropagation algorithms, arXiv:2009.10071,
        for the wide and the pivoted one; Papanicolopulos 2024, Derivatives of the full QR
        factorisation, arXiv:2409.13374, for the full Q. The last adjoint is derived above.
    """
    m, n = q.shape[-2], r.shape[-1]
    q_bar, r_bar = (None if bar is None else conj(bar) for bar in (q_bar, r_bar))
    if m < n:
        a_bar = wide_qr(q, r, q_bar, r_bar)
    else:
        if full_matrices and m > n:
            q_bar = None if q_bar is None else _bar_of_thin_columns(q, q_bar, n)
            q, r = columns(q, 0, n), rows(r, 0, n)
            r_bar = None if r_bar is None else rows(r_bar, 0, n)
        a_bar = thin_qr(q, r, q_bar, r_bar)
    if p:
        a_bar = transpose(permute_rows(transpose(a_bar), p[0], inverse=True))
    return conj(a_bar)


def wide_qr(q: Any, r: Any, q_bar: Any, r_bar: Any) -> Any:
    """A wide A, with fewer rows than columns, fixes Q by its first columns; the others are
    projected on it.
    """
    m, n = r.shape[-2:]
    first = columns(r, 0, m)
    if r_bar is None:
        a1_bar = thin_qr(q, first, q_bar)
        return padded(a1_bar, (*a1_bar.shape[:-1], n))
    rest_bar = columns(r_bar, m, n)
    through_q = dot(q, dot(columns(r, m, n), rest_bar, "nh"))
    q_bar = through_q if q_bar is None else q_bar + through_q
    return beside(thin_qr(q, first, q_bar, columns(r_bar, 0, m)), dot(q, rest_bar))


def _bar_of_thin_columns(q: Any, q_bar: Any, n: int) -> Any:
    """Move the cotangent of a full Q's further columns to the first n, which determine them."""
    m = q.shape[-2]
    q1, q2, q2_bar = columns(q, 0, n), columns(q, n, m), columns(q_bar, n, m)
    x, y = rows(q1, 0, n), rows(q1, n, m)
    z = adjoint(solve(x - identity(x), adjoint(y), "h"))
    b = dot(q2_bar, q1 + dot(q2, z), "hn")
    return columns(q_bar, 0, n) + dot(q2_bar, z) + stacked(dot(z, b, "hn"), lax.neg(b))


def _qr(**parameters: Any) -> Any:
    return lambda a: linalg.qr(a, **parameters)


def _qr_of_permuted(full_matrices: bool) -> Any:
    """Write pivoted QR as plain QR of the permuted columns, which JAX differentiates rightly."""

    def reference(a: Any) -> Any:
        p = linalg.qr(lax.stop_gradient(a), pivoting=True)[2]
        permuted = jnp.take_along_axis(a, p[..., None, :], axis=-1)
        return (*linalg.qr(permuted, full_matrices=full_matrices), p)

    return reference


rule(
    linalg.qr_p, "a -> q, r, *p", a=qr, axes="... M N -> ... M K, ... K N, ... N",
    kinks="a singular R has no derivative: inf or nan, as in JAX",
    cases=[
        case(_qr(full_matrices=False), real(2, 4, 3), half=False),
        case(_qr(full_matrices=False), real(3, 3), half=False),
        case(_qr(full_matrices=False), real(2, 3, 5), half=False),
        case(_qr(full_matrices=False), cplx(2, 4, 2), half=False),
        case(_qr(full_matrices=True), real(2, 4, 2), half=False),
        case(_qr(full_matrices=True), cplx(4, 3), half=False),
        case(_qr(full_matrices=True), cplx(2, 4), half=False),
        case(lambda a: linalg.qr(a)[1], real(4, 2), half=False),
        case(lambda a: linalg.qr(a, full_matrices=False)[1], real(2, 4), half=False),
        case(lambda a: linalg.qr(a, full_matrices=False)[0], real(2, 4), half=False),
        case(_qr(pivoting=True, full_matrices=False), real(4, 3), half=False),
        case(_qr(pivoting=True), real(4, 2), half=False),
        case(_qr(pivoting=True), real(2, 3, 2), reference=_qr_of_permuted(True), half=False,
             note="JAX cannot differentiate a batched pivoted QR"),
        case(_qr(pivoting=True, full_matrices=False), real(2, 4),
             reference=_qr_of_permuted(False), half=False, note="JAX's R̄ is wrong here"),
        case(_qr(pivoting=True, full_matrices=False), cplx(2, 2, 4),
             reference=_qr_of_permuted(False), half=False, note="JAX's R̄ is wrong here"),
        case(_qr(full_matrices=False), real(0, 3, 2), half=False),
    ],
)
improvement(
    "pivoted QR of a wide matrix", lambda a: jnp.sin(linalg.qr(a, pivoting=True)[1]),
    at=([[0.5, 2.0, 1.0], [0.3, -0.4, 1.5]],),
    true=[[-0.7094956356, 0.2528103278, -0.7773425386],
          [1.0842571561, -1.0398195723, 0.0575239369]],
    jax="another matrix: it multiplies by columns that are not permuted", source=DIFFERENCES,
)
improvement(
    "batched pivoted QR", lambda a: jnp.sin(linalg.qr(a, pivoting=True)[1]),
    at=([[[0.5, 2.0], [1.5, 0.3]], [[1.0, -0.5], [0.2, 0.8]]],),
    true=[[[-0.7693167339, 0.5179353184], [0.0472621837, -0.5111127986]],
          [[-0.3937218226, -1.0511598739], [-0.7008960601, 0.4375524071]]],
    jax="raises TypeError", source=DIFFERENCES,
)
improvement(
    "cholesky of a lower triangle",
    lambda a: jnp.sin(linalg.cholesky(a, symmetrize_input=False)),
    at=([[2.0, 0.5], [0.5, 1.0]],),
    true=[[-0.0079600171, 0.0], [0.5047555133, 0.3172310723]],
    jax="a cotangent for the entries above the diagonal, not read (JAX 0.10; right in 0.12)",
    source=DIFFERENCES,
)
