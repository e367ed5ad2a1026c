"""Some operations bring a rule of their own: a person's ``custom_vjp``, a third party's primitive.

The rule is asked of JAX for this one operation, and is otherwise run by our sweeps like any other.
The tangent function of a ``jax.custom_jvp`` is transposed by our reverse sweep.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn, primitives

from functional_bp import _jax
from functional_bp.engine import sweeps
from functional_bp.engine.higher_order import (
    HigherOrder,
    Mask,
    Options,
    Sweep,
    has_tangent,
    of_jax,
    only,
    spread_over,
)
from functional_bp.engine.plan import plan_once
from functional_bp.engine.registered import Registered
from functional_bp.engine.rule import case, higher_order, real
from functional_bp.vjps.calls import Call
from functional_bp.vjps.remat import Remat


@jax.custom_vjp
def _straight_through(x: Any) -> Any:
    return jax.numpy.round(x)


_straight_through.defvjp(lambda x: (jax.numpy.round(x), None), lambda _, y_bar: (y_bar,))


@jax.custom_vjp
def _scaled(x: Any, y: Any) -> Any:
    return x * jax.numpy.sin(y)


_scaled.defvjp(
    lambda x, y: (x * jax.numpy.sin(y), (x, y)),
    lambda kept, z_bar: (z_bar * jax.numpy.sin(kept[1]), z_bar * kept[0] * jax.numpy.cos(kept[1])),
)


@higher_order(
    primitives.custom_vjp_call_p,
    why="The person's own forward and backward functions (jax.custom_vjp) are honoured as given.",
    cases=[case(_scaled, real(3), real(3)), case(_straight_through, real(4))],
)
class CustomVJP(Registered):
    """x̄ = bwd(residuals, ȳ), as the person wrote it."""


@higher_order(
    _jax.find_primitive("hijax.call_hi_primitive_p"),
    why="A hijax primitive carries its author's VJP; it is asked for this one operation.",
)
class HiPrimitive(Registered):
    """x̄ = vjp_bwd(residuals, ȳ), as its author wrote it; of a checkpoint, our own sweeps."""

    def __new__(cls, eqn: JaxprEqn, active: Mask, options: Options) -> Any:
        """Treat ``jax.checkpoint``, which is such a primitive with the flag ``jax_remat3``, as a
        checkpoint.
        """
        checkpoint = _jax.as_checkpoint(eqn)
        if checkpoint.primitive is primitives.remat_p:
            return Remat(checkpoint, active, options)
        return super().__new__(cls)


@jax.custom_jvp
def _softplus(x: Any, y: Any) -> Any:
    return jnp.logaddexp(x, y)


@_softplus.defjvp
def _softplus_jvp(primals: Any, tangents: Any) -> Any:
    (x, y), (x_dot, y_dot) = primals, tangents
    z = _softplus(x, y)
    return z, jnp.exp(x - z) * x_dot + jnp.exp(y - z) * y_dot


@higher_order(
    primitives.custom_jvp_call_p,
    kinks="as the person's rule has it; jax.nn.relu: 0 at 0",
    cases=[case(_softplus, real(3), real(3)), case(jax.nn.relu, real(5))],
)
class CustomJVP(HigherOrder):
    """x̄ = Jᵀ ȳ, where ẏ = J ẋ is the tangent function that the person wrote.

    Derivation: ẏ = J(x) ẋ is linear in ẋ. Its graph, with x held constant and ẋ as the only
    active input, is swept in reverse; that is its transpose, ⟨J ẋ, ȳ⟩ = ⟨ẋ, Jᵀ ȳ⟩.

    Residuals: the coefficients of the tangent function, functions of x alone.
    """

    def __new__(cls, eqn: JaxprEqn, active: Mask, options: Options) -> Any:
        """Make it a plain call in a graph that is linear in its active inputs: f is its own
        tangent.
        """
        if options.linear:
            return Call(eqn, active, options)
        known = of_jax.get(_jax.custom_tangent(eqn.params.get("jvp_jaxpr_fun"), of_jax))
        avals: list[Any] = [a.aval for a in eqn.invars]
        if known is not None and all(jnp.issubdtype(a.dtype, jnp.floating) for a in avals):
            return known(eqn, active, options)
        return super().__new__(cls)

    def seed(self, seeded: Mask, needed: Mask) -> None:
        """Trace the tangent function and plan its transpose."""
        avals = [a.aval for a in self.eqn.invars]
        chosen = only(avals, self.wanted)
        outs = len(self.eqn.outvars)
        self.out_float = [i for i, v in enumerate(self.eqn.outvars) if has_tangent(v.aval)]

        def values_and_tangents(*inputs: Any) -> list[Any]:
            values, dots = self._push(inputs[: len(avals)], inputs[len(avals) :])
            return [*values, *(dots[i] for i in self.out_float)]

        traced = jax.make_jaxpr(values_and_tangents)(*avals, *chosen)
        self.jaxpr, self.consts = _jax.open_jaxpr(traced)
        self.tangent_avals = chosen
        self.plan = plan_once(
            self.jaxpr,
            (False,) * len(avals) + (True,) * len(chosen),
            (False,) * outs + tuple(seeded[i] for i in self.out_float),
            needed + (False,) * len(self.out_float),
            self.options._replace(linear=True),
        )
        read = self.plan.reads
        self.tangents_read = [v in read for v in self.jaxpr.invars[len(avals) :]]

    def forward(self, *operands: Any) -> tuple[Sequence[Any], Any]:
        """Compute the values, and the coefficients that the transpose keeps; no tangent is
        computed.
        """
        tangents = [
            sweeps.zeros(aval) if read else None  # a rule that is not ours wants a point
            for aval, read in zip(self.tangent_avals, self.tangents_read)
        ]
        inputs = [*operands, *tangents]
        outs, residuals = sweeps.forward(self.plan, self.consts, inputs)
        return outs[: len(self.eqn.outvars)], residuals

    def reverse(self, residuals: Any, cotangents: Sequence[Any]) -> Sequence[Any]:
        """Run the transposed tangent function."""
        bars = [None] * len(self.eqn.outvars) + [cotangents[i] for i in self.out_float]
        found = sweeps.reverse(self.plan, residuals, bars)
        return spread_over(found[len(self.eqn.invars) :], self.wanted)

    def tangents(self, sweep: Sweep, operands: Any, dots: Any) -> tuple[Any, Any]:
        """Run the person's tangent function itself."""
        del sweep
        return self._push(operands, [dot for dot in dots if dot is not None])

    def _push(self, operands: Sequence[Any], dots: Sequence[Any]) -> tuple[Any, Any]:
        """Return values and tangents (of the outputs that have any) by JAX's call of the person's
        rule.
        """
        run = lambda full: sweeps.evaluate(self.eqn, full)
        call = sweeps.of_chosen(run, operands, self.wanted)
        values, out_dots = _jax.jvp(call, only(operands, self.wanted), list(dots))
        floats = [has_tangent(v.aval) for v in self.eqn.outvars]
        return values, [dot if on else None for dot, on in zip(out_dots, floats)]
