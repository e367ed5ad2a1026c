"""Operations that bring a rule of their own: a person's ``custom_vjp``, a third party's primitive.

The rule is asked of JAX for this one operation, and is otherwise run by our sweeps like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.extend.core import JaxprEqn, primitives
from jax.interpreters.ad import Zero

from functional_bp import _jax, backprop
from functional_bp.cases import case, real
from functional_bp.rule import structure
from functional_bp.rules.remat import Remat
from functional_bp.structure import Mask, Options, Structure, Sweep, has_tangent


class Registered(Structure):
    """x̄ = (∂f/∂x)ᵀ ȳ by the rule that the operation's author gave to JAX.

    Residuals: those that the author's rule keeps.
    """

    def forward(self, *operands: Any) -> tuple[Sequence[Any], Any]:
        """Run the author's forward rule with respect to the wanted operands alone."""
        run = lambda full: backprop.evaluate(self.eqn, full)  # noqa: E731
        chosen = [x for x, on in zip(operands, self.wanted) if on]
        return jax.vjp(backprop.of_chosen(run, operands, self.wanted), *chosen)

    def reverse(self, residuals: Any, cotangents: Sequence[Any]) -> Sequence[Any]:
        """Run the author's backward rule; it is told which cotangents are zero, if it asks."""
        pairs = zip(self.eqn.outvars, cotangents)
        bars = [Zero(v.aval.to_tangent_aval()) if bar is None else bar for v, bar in pairs]
        found = iter(residuals(bars))
        return [next(found) if on else None for on in self.wanted]


class Foreign(Registered):
    """A third party's primitive: its author's rule is one for tangents, which JAX transposes.

    Forward mode asks for the tangents alone, so that a rule serves which cannot be transposed, as
    that of a Pallas kernel.
    """

    def tangents(self, sweep: Sweep, operands: Any, dots: Any) -> tuple[Any, Any]:
        """The author's tangent rule itself."""
        del sweep
        on = [dot is not None for dot in dots]
        run = lambda full: backprop.evaluate(self.eqn, full)  # noqa: E731
        primals = [x for x, o in zip(operands, on) if o]
        chosen_dots = [dot for dot in dots if dot is not None]
        outs, out_dots = jax.jvp(backprop.of_chosen(run, operands, on), primals, chosen_dots)
        floats = [has_tangent(v.aval) for v in self.eqn.outvars]
        return outs, [dot if on else None for dot, on in zip(out_dots, floats)]


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


@structure(
    primitives.custom_vjp_call_p,
    why="The person's own forward and backward functions (jax.custom_vjp) are honoured as given.",
    cases=[case(_scaled, real(3), real(3)), case(_straight_through, real(4))],
)
class CustomVJP(Registered):
    """x̄ = bwd(residuals, ȳ), as the person wrote it."""


@structure(
    _jax.find_primitive("hijax.call_hi_primitive_p"),
    why="A hijax primitive carries its author's VJP; it is asked for this one operation.",
)
class HiPrimitive(Registered):
    """x̄ = vjp_bwd(residuals, ȳ), as its author wrote it; of a checkpoint, our own sweeps."""

    def __new__(cls, eqn: JaxprEqn, active: Mask, options: Options) -> Any:
        """With the flag ``jax_remat3``, ``jax.checkpoint`` is such a primitive as well."""
        checkpoint = _jax.as_checkpoint(eqn)
        if checkpoint.primitive is primitives.remat_p:
            return Remat(checkpoint, active, options)
        return super().__new__(cls)
