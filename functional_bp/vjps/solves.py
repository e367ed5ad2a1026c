"""Linear systems with a triangular or a tridiagonal matrix have a rule each."""

from __future__ import annotations

from typing import Any

import numpy as np
from jax import lax

from functional_bp.engine.rule import case, cplx, real, rule
from functional_bp.vjps.matrices import Array, conj, dot, transpose, upper
from functional_bp.vjps.matrices import lower as lower_triangle

linalg = lax.linalg


def triangular_b(x_bar, a, **how):
    """B̄ = op(A)⁻ᵀ X̄ for op(A) X = B, B̄ = X̄ op(A)⁻ᵀ for X op(A) = B: linear in B.

    Residuals: A alone.
    """
    return linalg.triangular_solve(a, x_bar, **{**how, "transpose_a": not how["transpose_a"]})


def triangular_a(x_bar, a, x, *, left_side, lower, transpose_a, conjugate_a, unit_diagonal):
    """Ā = −tril(B̄ Xᵀ) for A X = B with a lower triangular A, B̄ = A⁻ᵀ X̄.

    Derivation:
        A X = B gives dA X + A dX = 0 at a fixed B, so dX = −A⁻¹ dA X and

            ⟨X̄, dX⟩ = −⟨A⁻ᵀ X̄, dA X⟩ = −⟨B̄ Xᵀ, dA⟩

        of which the triangle that is read counts, without the diagonal if it is taken as 1. For
        X A = B it is −Xᵀ B̄ with B̄ = X̄ A⁻ᵀ. op(A) = Aᵀ transposes the result, a conjugate
        conjugates it.

    Residuals: A and X, not B.
    Numerics: A⁻ᵀ is applied to X̄ or to X̄ Xᵀ, whichever has fewer columns.

    References:
        Giles 2008, An extended collection of matrix derivative results, Oxford report 08/01 (in
        short: doi 10.1007/978-3-540-68942-3_4); Naumann 2019, A note on adjoint linear algebra,
        arXiv:1905.00578. The triangle that is read is derived above.
    """
    back = lambda y: triangular_b(
        y, a, left_side=left_side, lower=lower, transpose_a=transpose_a, conjugate_a=conjugate_a,
        unit_diagonal=unit_diagonal,
    )
    n, others = a.shape[-1], x.shape[-1] if left_side else x.shape[-2]
    x_bar = lax.neg(x_bar)
    if n > others:
        b_bar = back(x_bar)
        product = dot(b_bar, x, "nt") if left_side else dot(x, b_bar, "tn")
    else:
        product = back(dot(x_bar, x, "nt") if left_side else dot(x, x_bar, "tn"))
    product = transpose(product) if transpose_a else product
    product = conj(product) if conjugate_a else product
    k = 1 if unit_diagonal else 0
    return lower_triangle(product, -k) if lower else upper(product, k)


def _triangular(**parameters: Any) -> Any:
    return lambda a, b: linalg.triangular_solve(a, b, **parameters)


def _dominant(a: np.ndarray) -> np.ndarray:
    return a / 2 + 3 * np.eye(a.shape[-1])


rule(
    linalg.triangular_solve_p, "a, b -> x", linear="b", a=triangular_a, b=triangular_b,
    cases=[
        case(_triangular(left_side=True, lower=True), real(2, 3, 3, make=_dominant),
             real(2, 3, 2), half=False, note="half precision: JAX 0.10 has no triangular solve"),
        case(_triangular(left_side=True, transpose_a=True), real(3, 3, make=_dominant),
             real(3, 4), half=False),
        case(_triangular(lower=True, transpose_a=True), real(3, 3, make=_dominant),
             real(2, 3), half=False),
        case(_triangular(unit_diagonal=True), real(3, 3), real(4, 3), half=False),
        case(_triangular(left_side=True, transpose_a=True, conjugate_a=True, lower=True),
             cplx(3, 3, make=_dominant), cplx(3, 2), half=False),
        case(_triangular(conjugate_a=True), cplx(2, 3, 3, make=_dominant), cplx(2, 2, 3),
             half=False),
        case(_triangular(left_side=True), real(0, 0), real(0, 2), half=False),
    ],
)


def _shifted(x: Array, by: int) -> Array:
    """Shift to x_{i+by} along the next to last axis, 0 where there is none."""
    pads = [(0, 0, 0)] * x.ndim
    pads[-2] = (-by, by, 0)
    return lax.pad(x, lax.full((), 0, x.dtype), pads)


def tridiagonal_b(x_bar, dl, d, du, *, perturb_singular=False):
    """B̄ = T⁻ᵀ X̄, a tridiagonal system with the two outer diagonals exchanged.

    T has dl_i at (i, i − 1) and du_i at (i, i + 1), so Tᵀ has du_{i−1} and dl_{i+1} there.

    Residuals: the three diagonals.
    """
    moved = lambda x, by: lax.squeeze(_shifted(lax.expand_dims(x, [x.ndim]), by), [x.ndim])
    return linalg.tridiagonal_solve(
        moved(du, -1), d, moved(dl, 1), x_bar, perturb_singular=perturb_singular
    )


def _along(by: int, name: str) -> Any:
    """Make the pullback of the diagonal with entries at (i, i + by)."""

    def pullback(x_bar, dl, d, du, x, *, perturb_singular=False):
        b_bar = tridiagonal_b(x_bar, dl, d, du, perturb_singular=perturb_singular)
        product = lax.mul(b_bar, _shifted(x, by) if by else x)
        return lax.neg(lax.reduce_sum(product, [x.ndim - 1]))

    pullback.__name__ = f"tridiagonal_{name}"
    pullback.__doc__ = f"""t̄_i = −Σ_k B̄_ik X_{{i+s,k}} for {name}: t_i at (i, i + s), s = {by}.

    Derivation:
        T X = B gives dX = −T⁻¹ dT X, so ⟨X̄, dX⟩ = −⟨B̄, dT X⟩ with B̄ = T⁻ᵀ X̄, and
        (dT X)_ik = Σ_s dt_i X_{{i+s,k}} over the three diagonals, s = −1, 0, 1.

    Residuals: the diagonals and X, not B.

    References:
        Giles 2008, doi 10.1007/978-3-540-68942-3_4, for any A X = B; derived above.
    """
    return pullback


_dominant_diagonal = lambda x: x + 5
_tridiagonal = lambda dl, d, du, b: linalg.tridiagonal_solve(dl, d, du, b)
rule(
    linalg.tridiagonal_solve_p, "dl, d, du, b -> x",
    dl=_along(-1, "dl"), d=_along(0, "d"), du=_along(1, "du"), b=tridiagonal_b,
    cases=[
        case(_tridiagonal, real(4), real(4, make=_dominant_diagonal), real(4), real(4, 2),
             half=False, note="half precision: JAX has no tridiagonal solve of it"),
        case(_tridiagonal, real(2, 3), real(2, 3, make=_dominant_diagonal), real(2, 3),
             real(2, 3, 2), half=False),
        case(_tridiagonal, cplx(3), cplx(3, make=_dominant_diagonal), cplx(3), cplx(3, 2),
             half=False),
    ],
)
