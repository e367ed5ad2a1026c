"""Householder reflections have a product, and bring a matrix to a triangle or to a band.

A packed matrix holds unit lower trapezoidal vectors V below its diagonal; with the scalars τ it
stands for Q = H₁ H₂ … H_k, H_i = I − τ_i v_i v_iᴴ. Everything here uses the product's compact form

    Q = I − V T Vᴴ,   T = (I + D N)⁻¹ D,   D = diag τ,   N = striu(VᴴV)

by induction: with Q' = I − V' T' V'ᴴ the product Q' (I − τ v vᴴ) has V = [V' v] and
T = [T', −τ T' V'ᴴ v; 0, τ], and that is what (I + D N) T = D says column by column. It needs no
loop over the reflections, no division by τ (a τ may be 0), and no orthogonality. A QR
factorization may be packed as reflections; those from both sides lead to Hessenberg form, and a
Hermitian matrix to tridiagonal form.

References:
    Schreiber and Van Loan 1989, A storage-efficient WY representation for products of Householder
    transformations, doi 10.1137/0910005, for the compact form; Papanicolopulos 2024, Derivatives of
    the full QR factorisation and of the factored-form and compact WY representations,
    arXiv:2409.13374, for its derivative. The adjoints are derived below.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from functional_bp import _jax
from functional_bp.engine.improvements import improvement
from functional_bp.engine.rule import case, cplx, real, rule
from functional_bp.vjps.factorizations import thin_qr, wide_qr
from functional_bp.vjps.matrices import (
    DIFFERENCES,
    Array,
    adjoint,
    as_dtype_of,
    by_row,
    columns,
    conj,
    diagonal,
    dot,
    fold_lower,
    identity,
    is_complex,
    lower,
    mapped,
    padded,
    place_diagonal,
    real_part,
    rows,
    solve_triangular,
    stacked,
    transpose,
    upper,
    with_diagonal,
)
from functional_bp.vjps.matrices import lower as triangle

linalg = lax.linalg


def unpack(a: Array, k: int) -> Array:
    """V holds the unit lower trapezoidal vectors in the first k columns of a packed matrix."""
    return with_diagonal(lower(columns(a, 0, k), -1), 1)


def compact(v: Array, taus: Array) -> tuple[Array, Array, Array]:
    """Return T, N and I + D N of Q = I − V T Vᴴ."""
    n = upper(dot(v, v, "hn"), 1)
    d = place_diagonal(taus, n)
    scaled = lax.mul(by_row(taus, n), n) + identity(n)
    return solve_triangular(scaled, d, unit=True), n, scaled


def _bars_of_compact(v: Array, t: Array, n: Array, scaled: Array, t_bar: Array) -> Any:
    """Return what T̄ adds to V̄, V (N̄ + N̄ᴴ), and τ̄; ``product_a`` has the derivation."""
    n_bar = lax.neg(upper(dot(dot(t, t_bar, "hn"), t, "nh"), 1))
    z = identity(n) - dot(n, t)
    solved = solve_triangular(scaled, t_bar, "h", unit=True)
    taus_bar = lax.reduce_sum(lax.mul(solved, conj(z)), [z.ndim - 1])
    return dot(v, n_bar + adjoint(n_bar)), taus_bar


def _pack(v_bar: Array, shape: tuple[int, ...]) -> Array:
    """Make V̄ the cotangent of a packed matrix: strictly below the diagonal, 0 elsewhere."""
    return padded(conj(lower(v_bar, -1)), shape)


def _product_bars(y_bar: Array, a: Array, taus: Array) -> tuple[Array, Array]:
    """Return V̄ and τ̄ of Y = Q E, where E is the first columns of the identity."""
    y_bar, k = conj(y_bar), taus.shape[-1]
    v = unpack(a, k)
    t, n, scaled = compact(v, taus)
    first = rows(v, 0, a.shape[-1])
    p = dot(v, y_bar, "hn")
    through_t, taus_bar = _bars_of_compact(v, t, n, scaled, lax.neg(dot(p, first)))
    v_bar = through_t - dot(dot(y_bar, first), t, "nh")
    return v_bar - padded(dot(p, t, "hn"), v.shape), conj(taus_bar)


def product_a(y_bar, a, taus):
    """Ā = stril(V̄),  V̄ = −Ȳ V₁ Tᴴ − E Pᴴ T + V (N̄ + N̄ᴴ),  P = Vᴴ Ȳ.

    Derivation:
        Y = Q E, the first columns of Q = I − V T Vᴴ; V₁ = EᴴV is V's upper part:

            dY = −dV T V₁ᴴ − V dT V₁ᴴ − V T dVᴴ E
            ⟨Ȳ, dY⟩ = −⟨Ȳ V₁ Tᴴ + E Pᴴ T, dV⟩ − ⟨P V₁, dT⟩

        T depends on V through N = striu(VᴴV). From (I + D N) T = D, with Z = I − N T,

            dT = (I + D N)⁻¹ dD Z − T dN T

        so T̄ = −P V₁ gives N̄ = −striu(Tᴴ T̄ Tᴴ), and dN = striu(dVᴴ V + Vᴴ dV) the last term.

    Residuals: a and τ; the result is not kept.

    References:
        Schreiber and Van Loan 1989, doi 10.1137/0910005, for the compact form; the adjoint is
        derived above.
    """
    return _pack(_product_bars(y_bar, a, taus)[0], a.shape)


def product_taus(y_bar, a, taus):
    """τ̄ = diag((I + D N)⁻ᴴ T̄ Zᴴ),  T̄ = −VᴴȲ V₁,  Z = I − N T; derived with ``product_a``."""
    return _product_bars(y_bar, a, taus)[1]


def _multiply_bars(y_bar: Array, a: Array, taus: Array, c: Array, left: bool, transpose: bool):
    """Return V̄ and τ̄ of Y = Q C, Qᴴ C, C Q or C Qᴴ; from the right it is the adjoint's from the
    left.
    """
    y_bar = conj(y_bar)
    if not left:
        y_bar, c, transpose = adjoint(y_bar), adjoint(c), not transpose
    v = unpack(a, taus.shape[-1])
    t, n, scaled = compact(v, taus)
    p, b = dot(v, y_bar, "hn"), dot(v, c, "hn")
    t_bar = lax.neg(dot(b, p, "nh") if transpose else dot(p, b, "nh"))
    through_t, taus_bar = _bars_of_compact(v, t, n, scaled, t_bar)
    v_bar = through_t - dot(dot(y_bar, b, "nh"), t, "nn" if transpose else "nh")
    return v_bar - dot(dot(c, p, "nh"), t, "nh" if transpose else "nn"), conj(taus_bar)


def multiply_a(y_bar, a, taus, c, *, left, transpose):
    """Ā = stril(V̄),  V̄ = −Ȳ Bᴴ Tᴴ − C Pᴴ T + V (N̄ + N̄ᴴ),  P = Vᴴ Ȳ, B = Vᴴ C, for Y = Q C.

    Derivation:
        Y = C − V T Vᴴ C gives dY = −dV T B − V dT B − V T dVᴴ C, so

            ⟨Ȳ, dY⟩ = −⟨Ȳ Bᴴ Tᴴ + C Pᴴ T, dV⟩ − ⟨P Bᴴ, dT⟩

        and T̄ = −P Bᴴ goes on to N and τ as in ``product_a``. Qᴴ has Tᴴ in place of T, and
        T̄ = −B Pᴴ. Y = C Q is Yᴴ = Qᴴ Cᴴ.

    References:
        Schreiber and Van Loan 1989, doi 10.1137/0910005, for the compact form; derived above.
    """
    return _pack(_multiply_bars(y_bar, a, taus, c, left, transpose)[0], a.shape)


def multiply_taus(y_bar, a, taus, c, *, left, transpose):
    """τ̄ = diag((I + D N)⁻ᴴ T̄ Zᴴ),  T̄ = −VᴴȲ (VᴴC)ᴴ,  Z = I − N T; see ``multiply_a``."""
    return _multiply_bars(y_bar, a, taus, c, left, transpose)[1]


def multiply_c(y_bar, a, taus, *, left, transpose):
    """C̄ = Qᴴ Ȳ = Ȳ − V Tᴴ Vᴴ Ȳ for Y = Q C; C̄ = Ȳ Qᴴ for Y = C Q. Q is not formed.

    The compact form rather than ``ormqr`` with the adjoint: LAPACK's unblocked ``ormqr`` writes 1
    on the diagonal of ``a`` while it runs (Reference-LAPACK issue 1011), so that on a CPU two of
    them on one ``a`` in one program can spoil each other's result.
    """
    y_bar = conj(y_bar)
    if not left:
        y_bar, transpose = adjoint(y_bar), not transpose
    v = unpack(a, taus.shape[-1])
    t, _, _ = compact(v, taus)
    c_bar = y_bar - dot(dot(v, t, "nn" if transpose else "nh"), dot(v, y_bar, "hn"))
    return conj(c_bar if left else adjoint(c_bar))


def bar_of_columns(v: Array, taus: Array, v_bar: Array, taus_bar: Array | None) -> Any:
    """Return Q₁, the first columns of Q, and its cotangent, given that of V and τ, which come from
    Q₁.

    Derivation:
        Q = I − V T Vᴴ gives E − Q₁ = V U, U = T V₁ᴴ: as V is unit lower trapezoidal and U upper
        triangular it is the LU factorization of E − Q₁, and U's diagonal is τ. As in ``lu``, with
        V = [V₁; V₂] and C = V₁⁻¹ d(E − Q₁)₁ U⁻¹,

            C̄ = stril(V₁ᴴ V̄₁) + diag(τ̄ τ*) − triu(V₂ᴴ V̄₂)
            Q̄₁ = −[V₁⁻ᴴ C̄ U⁻ᴴ; V̄₂ U⁻ᴴ]

        For a square Q the last τ may be 0 (it is, for real matrices). Then nothing of V is below
        it, and U_kk is needed only as the scale of dτ_k = C_kk U_kk: any number, say 1, serves.
    """
    m, k = v.shape[-2:]
    v1, v2 = rows(v, 0, k), rows(v, k, m)
    t, _, _ = compact(v, taus)
    u = dot(t, v1, "nh")
    q1 = lax.neg(dot(v, u))
    q1 = q1 + identity(q1)
    c_bar = lower(dot(v1, lower(rows(v_bar, 0, k), -1), "hn"), -1)
    if m == k:
        last = lax.broadcasted_iota("int32", taus.shape, taus.ndim - 1)
        taus = lax.select(lax.eq(last, lax.full_like(last, k - 1)), lax.full_like(taus, 1), taus)
        u = with_diagonal(upper(u, 1), place_diagonal(taus, u))
    if taus_bar is not None:
        c_bar = c_bar + place_diagonal(lax.mul(taus_bar, conj(taus)), c_bar)
    if m > k:
        c_bar = c_bar - upper(dot(v2, rows(v_bar, k, m), "hn"))
    x_bar = solve_triangular(v1, c_bar, "h", lower=True, unit=True)
    if m > k:
        x_bar = stacked(x_bar, rows(v_bar, k, m))
    return q1, lax.neg(solve_triangular(u, x_bar, "h", left=False))


def geqrf(packed, taus, packed_bar=None, taus_bar=None):
    """Ā = [Q̄ − Q sym(QᴴQ̄ − R̄Rᴴ)] R⁻ᴴ with the Q̄ that V̄ and τ̄ give Q.

    Derivation:
        A = Q R. R is the upper triangle of the packed result, and V and τ follow from Q alone: they
        are the LU factors of E − Q (``bar_of_columns``). With Q̄ and R̄ it is the cotangent of a
        QR factorization (``qr``). LAPACK's reflections make R's diagonal real, as there.

    Residuals: the packed result and τ.
    Kinks: a column that is 0 below the diagonal already is not reflected (τ = 0): no derivative.

    References:
        Papanicolopulos 2024, arXiv:2409.13374, differentiates the factored form; the adjoint is
        derived above.
    """
    m, n = packed.shape[-2:]
    k = min(m, n)
    r, v = rows(upper(packed), 0, k), unpack(packed, k)
    packed_bar = lax.full_like(packed, 0) if packed_bar is None else conj(packed_bar)
    taus_bar = None if taus_bar is None else conj(taus_bar)
    q, q_bar = bar_of_columns(v, taus, columns(packed_bar, 0, k), taus_bar)
    r_bar = rows(upper(packed_bar), 0, k)
    return conj(thin_qr(q, r, q_bar, r_bar) if m >= n else wide_qr(q, r, q_bar, r_bar))


def reflected(v: Any, tau: Any, x: Any) -> Any:
    """reflected(v, τ, x) = (I − τ v vᴴ) x."""
    return x - tau * jnp.outer(v, v.conj() @ x)


def _reflections(a: Any, taus: Any, count: int) -> Any:
    """Multiply the reflections one by one, in operations that JAX differentiates."""
    q = jnp.eye(a.shape[0], dtype=a.dtype)
    for i in reversed(range(taus.shape[0])):
        v = jnp.concatenate([jnp.zeros(i, a.dtype), jnp.ones(1, a.dtype), a[i + 1 :, i]])
        q = reflected(v, taus[i], q)
    return q[:, :count]


def reflector(x: Any) -> tuple[Any, Any, Any]:
    """Return v, τ and the real β with (I − τ* v vᴴ) x = β e₁, as LAPACK has them."""
    beta = -jnp.where(x[0].real < 0, -1.0, 1.0) * jnp.sqrt(jnp.sum((x * x.conj()).real))
    if x.shape[0] == 1 and x.dtype.kind != "c":
        return jnp.ones_like(x), jnp.zeros_like(x[0]), x[0]
    v = jnp.concatenate([jnp.ones(1, x.dtype), x[1:] / (x[0] - beta)])
    return v, (beta - x[0]) / beta, beta


def _geqrf_by_columns(a: Any) -> Any:
    """Do the packed QR factorization column by column, in operations that JAX differentiates."""
    taus = []
    for i in range(min(a.shape)):
        v, tau, beta = reflector(a[i:, i])
        rest = reflected(v, tau.conj(), a[i:, i + 1 :])
        column = jnp.concatenate([jnp.full(1, beta, a.dtype), v[1:]])
        a = a.at[i:, i].set(column).at[i:, i + 1 :].set(rest)
        taus.append(tau)
    return a, jnp.stack(taus)


_product_of = lambda a, taus: _reflections(a, taus, a.shape[1])
_whole = lambda a, taus: _reflections(a, taus, a.shape[0])


def _ormqr(left: bool, transpose: bool) -> Any:
    return lambda a, taus, c: linalg.ormqr(a, taus, c, left=left, transpose=transpose)


def _ormqr_by_reflections(left: bool, transpose: bool) -> Any:
    def reference(a: Any, taus: Any, c: Any) -> Any:
        q = _whole(a, taus)
        q = q.conj().T if transpose else q
        return q @ c if left else c @ q

    return reference


def _packed_qr(a: Any) -> Any:
    return tuple(_jax.find_helper("lax.linalg.geqrf")(a))


NOTE = "JAX has no gradient of it; the reference multiplies the reflections one by one"
rule(
    linalg.householder_product_p, "a, taus -> y", a=product_a, taus=product_taus,
    axes="... M N, ... K -> ... M N",
    cases=[
        case(linalg.householder_product, real(4, 3), real(3), reference=_product_of,
             half=False, note=NOTE),
        case(linalg.householder_product, real(4, 4), real(2), reference=_product_of,
             half=False, note=NOTE),
        case(linalg.householder_product, cplx(2, 4, 2), cplx(2, 2),
             reference=jax.vmap(_product_of), half=False, note=NOTE),
        case(linalg.householder_product, real(3, 2), real(values=(0.0, 0.7)),
             reference=_product_of, half=False, note=NOTE + "; τ = 0 is nothing special"),
    ],
)

rule(
    _jax.find_primitive("lax.linalg.ormqr_p"), "a, taus, c -> y",
    axes=lambda *, left: ("... M N, ... K, ... M p -> ... M p" if left
                          else "... M N, ... K, ... p M -> ... p M"),
    a=multiply_a, taus=multiply_taus, c=multiply_c,
    cases=[
        *(
            case(_ormqr(left, transpose), real(4, 3), real(3), real(*shape),
                 reference=_ormqr_by_reflections(left, transpose), half=False, note=NOTE)
            for left, shape in ((True, (4, 2)), (False, (2, 4)))
            for transpose in (False, True)
        ),
        *(
            case(_ormqr(left, transpose), cplx(2, 3, 2), cplx(2, 2), cplx(2, 3, 3),
                 reference=jax.vmap(_ormqr_by_reflections(left, transpose)), half=False, note=NOTE)
            for left, transpose in ((True, False), (True, True), (False, True))
        ),
    ],
)

rule(
    _jax.find_primitive("lax.linalg.geqrf_p"), "a -> packed, taus", a=geqrf,
    axes="... M N -> ... M N, ... K",
    cases=[
        case(_packed_qr, *spec, reference=reference,
             half=False, note="JAX has no gradient of the packed form")
        for spec, reference in (
            ((real(4, 3),), _geqrf_by_columns),
            ((real(3, 3),), _geqrf_by_columns),
            ((real(2, 4),), _geqrf_by_columns),
            ((cplx(2, 4, 2),), jax.vmap(_geqrf_by_columns)),
            ((cplx(3, 3),), _geqrf_by_columns),
            ((cplx(2, 3),), _geqrf_by_columns),
        )
    ],
)
_at = ([[2.0, 0.3], [-0.5, 1.0], [0.7, 0.4]],)
improvement(
    "householder_product",
    lambda a: jnp.sin(linalg.householder_product(a, jnp.array([1.2, 0.7], a.dtype))),
    at=_at, true=[[0.0, 0.0], [-0.9791403429, 0.0], [-0.0104235615, -0.0430885467]],
    jax="raises NotImplementedError", source=DIFFERENCES,
)
improvement(
    "ormqr",
    lambda a: jnp.sin(
        linalg.ormqr(a, jnp.array([1.2, 0.7], a.dtype), jnp.array([[1], [2], [-1]], a.dtype))
    ),
    at=_at, true=[[0.0, 0.0], [0.495427012, 0.0], [0.1828087269, 0.1172805822]],
    jax="raises NotImplementedError", source=DIFFERENCES,
)
improvement(
    "packed QR factorization", lambda a: jnp.sin(_packed_qr(a)[0]), at=_at,
    true=[[0.457319715, -1.1328608225], [-0.3570499004, -0.309709106],
          [0.2107836581, -0.0474407987]],
    jax="raises NotImplementedError", source=DIFFERENCES,
)


# Reductions to a band.


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


REDUCED = "JAX has no gradient of it; the reference reflects column by column"
rule(
    linalg.hessenberg_p, "a -> packed, taus", a=hessenberg, axes="... N N -> ... N N, ... K",
    cases=[
        case(linalg.hessenberg, real(4, 4, make=_by_pairs), reference=_hessenberg_by_columns,
             half=False, note=REDUCED),
        case(linalg.hessenberg, real(2, 3, 3, make=_by_pairs),
             reference=jax.vmap(_hessenberg_by_columns), half=False, note=REDUCED),
        case(linalg.hessenberg, cplx(4, 4, make=_by_pairs), reference=_hessenberg_by_columns,
             half=False, note=REDUCED),
        case(linalg.hessenberg, real(1, 1), reference=lambda a: (a, a[0, :0]), half=False,
             note=REDUCED),
    ],
)

rule(
    _jax.find_primitive("lax.linalg.tridiagonal_p"), "a -> packed, d, e, taus", a=tridiagonal,
    axes="... N N -> ... N N, ... N, ... K, ... K",
    cases=[
        case(lambda a: tuple(linalg.tridiagonal(a)), real(4, 4, make=_by_pairs),
             reference=_tridiagonal_by_columns(True), half=False, note=REDUCED),
        case(lambda a: tuple(linalg.tridiagonal(a, lower=False)), real(4, 4, make=_by_pairs),
             reference=_tridiagonal_by_columns(False), half=False, note=REDUCED),
        case(lambda a: tuple(linalg.tridiagonal(a)), cplx(2, 3, 3, make=_by_pairs),
             reference=jax.vmap(_tridiagonal_by_columns(True)), half=False, note=REDUCED),
        case(lambda a: tuple(linalg.tridiagonal(a, lower=False)), cplx(4, 4, make=_by_pairs),
             reference=_tridiagonal_by_columns(False), half=False, note=REDUCED),
        case(lambda a: linalg.tridiagonal(a)[1:3], real(3, 3, make=_by_pairs),
             reference=lambda a: _tridiagonal_by_columns(True)(a)[1:3], half=False, note=REDUCED),
    ],
)
_square = ([[2.0, 0.3, -0.2], [0.4, 1.0, 0.5], [-0.3, 0.6, 3.0]],)
improvement(
    "hessenberg", lambda a: jnp.sin(linalg.hessenberg(a)[0]), at=_square,
    true=[[-0.4161468365, -0.1488374549, 1.3613780995],
          [-5.7515857443, -0.7673441735, -0.7886095305],
          [-6.2061433892, -0.8607318101, 0.1922744994]],
    jax="raises NotImplementedError", source=DIFFERENCES,
)
improvement(
    "tridiagonal", lambda a: jnp.sin(linalg.tridiagonal(a)[2]), at=_square,
    true=[[0.0, 0.0, 0.0], [-2.1451242764, -0.3371631371, 0.0],
          [-1.3975280988, -0.1966784967, 0.3371631371]],
    jax="raises NotImplementedError", source=DIFFERENCES,
)
