"""Linear systems have a triangular or a tridiagonal matrix, or operators given as functions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import eval_jaxpr
from jax.extend.core import JaxprEqn, primitives

from functional_bp import _jax
from functional_bp.engine import sweeps
from functional_bp.engine.higher_order import HigherOrder, Mask, Options, has_tangent
from functional_bp.engine.improvements import improvement
from functional_bp.engine.plan import make_plan, out_activity
from functional_bp.engine.rule import case, cplx, higher_order, real, rule
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
    axes=lambda *, left_side: ("... N N, ... N k -> ... N k" if left_side
                               else "... N N, ... k N -> ... k N"),
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
    axes="... N, ... N, ... N, ... N k -> ... N k",
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


# Operators given as functions.


def _solve(a: Any, b: Any, symmetric: bool = False) -> Any:
    a = a @ a.T + 3 * jnp.eye(3, dtype=a.dtype) if symmetric else a + 4 * jnp.eye(3, dtype=a.dtype)
    direct = lambda matvec, b: jnp.linalg.solve(a, b)
    transposed = lambda vecmat, b: jnp.linalg.solve(a.T, b)
    return lax.custom_linear_solve(lambda x: a @ x, b, direct, transposed, symmetric=symmetric)


def _with_a_boundary(b: Any) -> Any:
    ends = np.array([0, 3])
    product = lambda x: (2 * x).at[ends].set(3 * x[ends])
    solve = lambda _, b: (b / 2).at[ends].set(b[ends] / 3)
    return lax.custom_linear_solve(product, b, solve, symmetric=True)


@higher_order(
    primitives.linear_solve_p,
    cases=[
        case(_solve, real(3, 3), real(3), half=False, note="LAPACK has no half precision"),
        case(lambda a, b: _solve(a, b, True), real(3, 3), real(3), half=False),
        case(_with_a_boundary, real(4), note="symmetric, by operations that JAX cannot transpose"),
    ],
)
class LinearSolve(HigherOrder):
    """Implicit differentiation of A x = b gives b̄ = A⁻ᵀ x̄, and Ā = −b̄ xᵀ through A's own graph.

    Derivation: A(θ) x = b gives Ȧ x + A ẋ = ḃ, so ẋ = A⁻¹ (ḃ − Ȧ x) and

        ⟨x̄, ẋ⟩ = ⟨A⁻ᵀ x̄, ḃ⟩ − ⟨A⁻ᵀ x̄, Ȧ x⟩

    whence b̄ = A⁻ᵀ x̄, and θ̄ is the reverse sweep of θ ↦ A(θ) x at the cotangent −b̄. How the
    solver reached x does not matter.

    Residuals: x, and what the matrix-vector product's rules name.

    References:
        Naumann 2019, A note on adjoint linear algebra, arXiv:1905.00578, for a matrix; Blondel et
        al. 2021, Efficient and modular implicit differentiation, arXiv:2105.15183, for operators
        that are functions of θ.
    """

    def __init__(self, eqn: JaxprEqn, active: Mask, options: Options) -> None:
        super().__init__(eqn, active, options)
        lengths, self.jaxprs = eqn.params["const_lengths"], eqn.params["jaxprs"]
        ends = list(itertools.accumulate(lengths))  # of matvec, vecmat, solve, transpose_solve
        self.starts = [slice(end - length, end) for length, end in zip(lengths, ends)]
        self.b = slice(ends[-1], None)
        self.count = len(eqn.invars) - ends[-1]
        on = any(active[self.starts[0]]) or any(active[self.b])
        solved = tuple(on and has_tangent(v.aval) for v in eqn.outvars[: self.count])
        self.out_active = solved + (False,) * (len(eqn.outvars) - self.count)

    def seed(self, seeded: Mask, needed: Mask) -> None:
        """Plan the reverse sweep of θ ↦ A(θ) x."""
        if self.jaxprs.transpose_solve is None:
            raise TypeError(
                "custom_linear_solve was given no transpose_solve, which its gradient needs: "
                "b̄ = A⁻ᵀ x̄. Pass transpose_solve=, or symmetric=True"
            )
        constants = self.active[self.starts[0]]
        self.matvec, self.matvec_consts = _jax.open_jaxpr(self.jaxprs.matvec)
        outs = (True,) * self.count
        no_x = (False,) * self.count
        self.plan = make_plan(self.matvec, constants + no_x, outs, no_x, self.options)
        reached = list(self.plan.reached[: len(constants)])
        rest = [False] * (len(self.active) - len(constants) - self.count)
        self.wanted = (*reached, *rest, *self.active[self.b])

    def forward(self, *operands: Any) -> tuple[Sequence[Any], Any]:
        """Return the solution, and the linearization of θ ↦ A(θ) x at it."""
        outs = sweeps.evaluate(self.eqn, operands)
        inputs = [*operands[self.starts[0]], *outs[: self.count]]
        _, residuals = sweeps.forward(self.plan, self.matvec_consts, inputs)
        return outs, (list(operands[: self.b.start]), residuals)

    def reverse(self, residuals: Any, cotangents: Sequence[Any]) -> Sequence[Any]:
        """Do one transposed solve, then one reverse sweep of the product."""
        constants, kept = residuals
        x_bar = sweeps.or_zeros(cotangents[: self.count], self.eqn.outvars)
        b_bar = self._transposed_solve(constants, x_bar)
        minus = [lax.neg(bar) for bar in b_bar]
        theta_bar: Sequence[Any] = [None] * len(self.active[self.starts[0]])
        if any(self.plan.reached):
            theta_bar = sweeps.reverse(self.plan, kept, minus)[: len(theta_bar)]
        rest = [None] * (len(self.active) - len(theta_bar) - self.count)
        return [*theta_bar, *rest, *b_bar]

    def _transposed_solve(self, constants: list[Any], x_bar: list[Any]) -> Sequence[Any]:
        """Solve Aᵀ b̄ = x̄ by the same operation, with A and Aᵀ in each other's place."""
        params = self.eqn.params
        matvec, vecmat, solve, transposed = (constants[where] for where in self.starts)
        return self.eqn.primitive.bind(
            *vecmat, *matvec, *transposed, *solve, *x_bar,
            const_lengths=params["const_lengths"].transpose(), jaxprs=self.jaxprs.transpose(),
        )[: self.count]


def _weighted(w: Any, x: Any) -> Any:
    times = lambda w, x: w * x
    return jax.custom_derivatives.linear_call(times, times, w, x)


@higher_order(
    _jax.find_primitive("custom_derivatives.linear_call_p"),
    cases=[case(lambda x, w: _weighted(w, x), real(3), real(3), reference=lambda x, w: w * x,
                batchable=False, note="JAX drops the cotangent of w, and has no batching rule")],
)
class LinearCall(HigherOrder):
    """x̄ = fᵀ(r, ȳ) by the transpose that the person gave with the linear function.

    Derivation: y = f(r, x) is linear in x; ⟨f(r, ẋ), ȳ⟩ = ⟨ẋ, fᵀ(r, ȳ)⟩ defines fᵀ. With respect
    to r the function is differentiated by f's own graph.

    Residuals: r; and what f's rules name for r̄, if r̄ is wanted.

    Source: derived above.
    """

    def __init__(self, eqn: JaxprEqn, active: Mask, options: Options) -> None:
        super().__init__(eqn, active, options)
        self.callee, self.callee_consts = _jax.open_jaxpr(eqn.params["callee"])
        self.count = eqn.params["num_callee_consts"] + eqn.params["num_res"]
        self.out_active = out_activity(self.callee, active, options)

    def seed(self, seeded: Mask, needed: Mask) -> None:
        """Plan the sweep of f for r̄."""
        of_r = self.active[: self.count] + (False,) * (len(self.active) - self.count)
        self.plan = make_plan(self.callee, of_r, seeded, needed, self.options)
        self.wanted = self.plan.reached[: self.count] + self.active[self.count :]

    def forward(self, *operands: Any) -> tuple[Sequence[Any], Any]:
        """Run f's forward sweep, and keep r."""
        outs, kept = sweeps.forward(self.plan, self.callee_consts, operands)
        outs = sweeps.evaluate(self.eqn, operands)
        return outs, (list(operands[: self.count]), kept)

    def reverse(self, residuals: Any, cotangents: Sequence[Any]) -> Sequence[Any]:
        """Run the given transpose, and for r̄ f's reverse sweep."""
        r, kept = residuals
        bars = sweeps.or_zeros(cotangents, self.eqn.outvars)
        r_bar = sweeps.reverse(self.plan, kept, cotangents)[: self.count]
        transpose, constants = self.eqn.params["transpose_thunk"]()
        body, consts = _jax.open_jaxpr(transpose)
        r = r[self.eqn.params["num_callee_consts"] :]
        x_bar = eval_jaxpr(body, consts, *constants, *r, *bars)
        return [*r_bar, *x_bar]


improvement(
    "linear_call with respect to its residual arguments",
    _weighted, at=(3.0, 2.0), true=2.0, jax="0.0, silently", source="∂(w x)/∂w = x",
)
