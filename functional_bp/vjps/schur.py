"""The Schur decomposition, complex or real, leads to a triangular Sylvester equation."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from functional_bp.engine.improvements import improvement
from functional_bp.engine.rule import case, cplx, real, rule
from functional_bp.vjps.matrices import (
    Array,
    adjoint,
    columns,
    conj,
    diagonal,
    dot,
    identity,
    is_complex,
    lower,
    mapped,
    on_diagonal,
    place_diagonal,
    rows,
    transpose,
    upper,
)

linalg = lax.linalg


def _multiplier(u: Array, k: Array) -> Array:
    """Solve stril(X Uᴴ − Uᴴ X) = K for a strictly lower X, with U upper triangular (one matrix).

    Column j, rows i > j: (u*_jj − Uᴴ) X_j = K_j − Σ_{k>j} X_k u*_jk, lower triangular systems,
    from the last column to the first.
    """
    n = u.shape[-1]
    place = lax.iota(np.int32, n)
    u_h = adjoint(u)

    def step(x: Array, row: Any) -> Any:
        j, k_column, u_row, eigenvalue = row
        inside = place > j
        known = lax.dot(x, conj(u_row), precision=lax.Precision.HIGHEST)
        right = lax.select(inside, k_column - known, lax.full_like(known, 0))
        shifted = on_diagonal(lax.broadcast(conj(eigenvalue), (n, n)), lax.full_like(u_h, 0)) - u_h
        both = inside[:, None] & inside[None, :]
        system = lax.select(both, shifted, identity(shifted))
        x_j = linalg.triangular_solve(
            system, right[:, None], left_side=True, lower=True, transpose_a=False
        )[:, 0]
        return lax.dynamic_update_index_in_dim(x, x_j, j, 1), None

    along = (place, transpose(k), upper(u, 1), diagonal(u))
    return lax.scan(step, lax.full_like(u, 0), along, reverse=True)[0]


def _pairs(u: Array) -> tuple[Array, Array, Array]:
    """Return b = U_{j,j+1}, c = U_{j+1,j} and whether j starts a 2×2 block, that is c ≠ 0."""
    n = u.shape[-1]
    b = diagonal(columns(rows(u, 0, n - 1), 1, n))
    c = diagonal(columns(rows(u, 1, n), 0, n - 1))
    return b, c, lax.ne(c, lax.full_like(c, 0))


def _beside_diagonal(x: Array, like: Array, *, below: bool, above: bool) -> Array:
    """Put x_j at (j + 1, j), at (j, j + 1), or at both, in the shape of ``like``."""
    n, zero = like.shape[-1], lax.full((), 0, x.dtype)
    square = place_diagonal(x, columns(rows(like, 1, n), 0, n - 1).astype(x.dtype))
    batch = [(0, 0, 0)] * (like.ndim - 2)
    down = lax.pad(square, zero, [*batch, (1, 0, 0), (0, 1, 0)])
    up = lax.pad(square, zero, [*batch, (0, 1, 0), (1, 0, 0)])
    return down + up if below and above else down if below else up


def _around(x: Array, fill: float) -> tuple[Array, Array]:
    """Return a vector over the pairs (j, j + 1) as seen from j and as seen from j + 1."""
    batch, value = [(0, 0, 0)] * (x.ndim - 1), lax.full((), fill, x.dtype)
    return lax.pad(x, value, [*batch, (0, 1, 0)]), lax.pad(x, value, [*batch, (1, 0, 0)])


def _triangularize(u: Array) -> Array:
    """Return W, unitary and block diagonal, with Wᴴ U W triangular for a real quasi-triangular U.

    LAPACK's blocks are [a b; c a], b c < 0. With s = √(−b c) the eigenvector of a + i s is
    (b, i s)/√(b² + s²), and (i s, b)/√(b² + s²) is orthogonal to it.
    """
    b, c, pair = _pairs(u)
    s = lax.sqrt(lax.select(pair, lax.neg(lax.mul(b, c)), lax.full_like(b, 1)))
    norm = lax.sqrt(lax.mul(b, b) + lax.mul(s, s))
    cosine = lax.select(pair, lax.div(b, norm), lax.full_like(b, 1))
    sine = lax.select(pair, lax.div(s, norm), lax.full_like(b, 0))
    from_start, from_end = _around(cosine, 1)
    on = place_diagonal(lax.mul(from_start, from_end), u)
    return lax.complex(on, _beside_diagonal(sine, u, below=True, above=True))


def _free_rotations(u: Array, k: Array) -> Array:
    """Return D, diagonal: the multipliers of "equal diagonal entries" in each 2×2 block."""
    b, c, pair = _pairs(u)
    asked = diagonal(columns(rows(k, 1, k.shape[-1]), 0, k.shape[-1] - 1))
    tiny = 10 * float(np.finfo(u.dtype).eps)
    normal = lax.le(lax.abs(b + c), lax.mul(lax.abs(b) + lax.abs(c), lax.full_like(b, tiny)))
    fixed = lax.bitwise_and(pair, lax.bitwise_not(normal))
    slope = lax.select(fixed, lax.mul(b + c, lax.full_like(b, 2)), lax.full_like(b, 1))
    mu = lax.select(fixed, lax.div(asked, slope), lax.full_like(b, 0))
    from_start, from_end = _around(mu, 0)
    return place_diagonal(from_end - from_start, u)


def schur_keeping_vectors(a, *, compute_schur_vectors, **parameters):
    """Return the decomposition, and beside the outputs Q, empty if it is among the outputs."""
    u, q = linalg.schur_p.bind(a, compute_schur_vectors=True, **parameters)
    return ([u, q], lax.full((0,), 0, a.dtype)) if compute_schur_vectors else ([u], q)


def schur(u, vectors, kept_q, vectors_bar, u_bar=None):
    """Ā = Q (Ū + X) Qᴴ with X strictly lower, stril(X Uᴴ − Uᴴ X) = stril(K).

    K = G − Gᴴ,  G = QᴴQ̄ + UᴴŪ − Ū Uᴴ,  Ū: its upper triangle.

    Derivation:
        A = Q U Qᴴ. With F = Qᴴ dA Q and Ω = Qᴴ dQ skew-Hermitian

            dU = F − Ω U + U Ω,   dU = 0 below the diagonal

        Only the strictly lower part L of Ω = L − Lᴴ enters there: stril(L U − U L) = stril(F), a
        triangular Sylvester equation S(L) = stril(F). Then

            ⟨Ū, dU⟩ + ⟨Q̄, QΩ⟩ = ⟨Ū, F⟩ + ⟨G, L − Lᴴ⟩ = ⟨Ū, F⟩ + ⟨stril(K), L⟩

        and X = S⁻ᴴ(stril K), with Sᴴ(X) = stril(X Uᴴ − Uᴴ X).

        The gauge. For complex matrices Ω's diagonal, a phase of each column of Q, is free; it is
        left at 0. For functions of A that do not depend on these phases the gradient is exact.
        For real matrices with real eigenvalues nothing is free.

        Real matrices with complex eigenvalues: U has 2×2 blocks [a b; c a]. Only what is below the
        blocks vanishes, and in each block a rotation θ is fixed by the equal diagonal entries:

            (dU)_jj = (dU)_{j+1,j+1}   gives   2 (b + c) θ = F'_{j+1,j+1} − F'_jj

        with F' = F − Ω'U + UΩ', Ω' the part outside the blocks. Its adjoint adds to Ū the diagonal
        D with ∓K_{j+1,j} / (2 (b + c)) at j and j + 1, before G is formed again. Equations
        below the blocks do not involve Ω inside them, so they are solved where U is triangular:
        W block diagonal and unitary, WᴴUW triangular.

    Residuals: U and Q; Q beside the outputs if only U is computed.
    Kinks: equal eigenvalues: inf or nan. A block with b + c = 0 is a rotation times a scale, its
        own rotation free: it is left at 0, right for what does not depend on it.

    References:
        Konstantinov and Petkov 2024, On Schur forms for matrices with simple eigenvalues,
        doi 10.3390/axioms13120839, for the freedom of Q and perturbations of the form; the adjoint
        and the real form with its blocks are derived above.
    """
    q, q_bar = vectors[0] if vectors else kept_q, vectors_bar[0] if vectors else None
    if u.shape[-1] == 0:
        return u
    real_matrix = not is_complex(u)
    f_bar = lax.full_like(u, 0) if u_bar is None else conj(u_bar)
    below = lower(upper(f_bar, -1), -1)
    f_bar = upper(f_bar)
    paired = None
    if real_matrix and u.shape[-1] > 1:
        paired = _beside_diagonal(_pairs(u)[2].astype(u.dtype), u, below=True, above=False)
        f_bar = f_bar + lax.mul(below, paired)
    turned = None if q_bar is None else dot(q, conj(q_bar), "hn")

    def skew(f_bar: Array) -> Array:
        g = dot(u, f_bar, "hn") - dot(f_bar, u, "nh")
        g = g if turned is None else g + turned
        return lower(g - adjoint(g), -1)

    k = skew(f_bar)
    if paired is None:
        x = mapped(_multiplier, u)(u, k)
    else:
        f_bar = f_bar + _free_rotations(u, lax.mul(k, paired))
        k = lax.mul(skew(f_bar), lax.full_like(paired, 1) - paired)
        w = _triangularize(u)
        into = lambda x: dot(dot(w, lax.complex(x, lax.full_like(x, 0)), "hn"), w)
        x = mapped(_multiplier, u)(upper(into(u)), lower(into(k), -1))
        x = lax.real(dot(dot(w, x), w, "nh"))
    return conj(dot(dot(q, f_bar + x), q, "nh"))


def _distinct(a: np.ndarray) -> np.ndarray:
    """Make the eigenvalues real or complex, well apart, far from those of a normal matrix."""
    return a / 4 + np.diag(3.0 * np.arange(a.shape[-1]))


def _with_pair(a: np.ndarray) -> np.ndarray:
    """Make them as ``_distinct`` does, with a pair of complex eigenvalues."""
    turned = np.zeros(a.shape[-2:])
    turned[1, 2], turned[2, 1] = 6, -2
    return _distinct(a) + turned


def _values_of_schur(a: Any) -> Any:
    """Return |U|² and |Q|², which do not depend on the phases."""
    u, q = linalg.schur(a)
    return (u * u.conj()).real, (q * q.conj()).real


def _values_from_eigenvectors(a: Any) -> Any:
    """Return the same from eigenvectors in U's order, made orthonormal one after another."""
    order = jnp.diagonal(linalg.schur(lax.stop_gradient(a))[0])
    w, v = linalg.eig(a, compute_left_eigenvectors=False, enable_eigvec_derivs=True)
    v = v[:, jnp.argmin(jnp.abs(w[None, :] - order[:, None]), axis=1)]
    q = linalg.qr(v, full_matrices=False)[0]
    u = q.conj().T @ a @ q
    return (u * u.conj()).real, (q * q.conj()).real


def _cube(a: Any) -> Any:
    """Compute A³ by its Schur form."""
    u, q = linalg.schur(a)
    return q @ u @ u @ u @ adjoint(q)


rule(
    linalg.schur_p, "a -> u, *vectors | kept_q", a=schur, forward=schur_keeping_vectors,
    axes="... N N -> ... E E, ... N E",
    kinks="equal eigenvalues: inf or nan",
    cases=[
        case(_values_of_schur, real(3, 3, make=_distinct), reference=_values_from_eigenvectors,
             half=False, note="JAX has no gradient of it; the reference goes by eigenvectors"),
        case(_values_of_schur, cplx(3, 3, make=_distinct), reference=_values_from_eigenvectors,
             half=False, note="as above"),
        case(_cube, real(2, 4, 4, make=_with_pair), reference=lambda a: a @ a @ a, half=False,
             note="as above; a pair among real eigenvalues"),
        case(_cube, cplx(3, 3, make=_distinct), reference=lambda a: a @ a @ a, half=False,
             note="as above"),
    ],
)
improvement(
    "schur, two real eigenvalues and a pair", lambda a: sum(map(jnp.sin, linalg.schur(a))),
    at=([[1.0, 0.3, -0.2, 0.5], [0.4, 3.0, 6.0, 0.1],
         [0.2, -2.0, 3.5, 0.6], [-0.3, 0.7, 0.2, 7.0]],),
    true=[[0.7675637986, -0.7882752149, 0.9067965925, 0.7406925433],
          [-1.2879189278, -0.8244767546, -0.9993506507, -0.4772374075],
          [1.7595761972, 0.4948637313, -1.6204649091, 1.33618535],
          [-0.8596165648, -1.0730634118, -1.0940570042, 0.8629782082]],
    jax="raises NotImplementedError",
    source="central differences of LAPACK's result, extrapolated to order 8",
)
