"""``custom_linear_solve`` and ``linear_call`` are given their operators as functions."""

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
from functional_bp.engine.rule import case, higher_order, real


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
