"""Operations whose authors gave JAX a rule, which is asked for and run by our sweeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.interpreters.ad import Zero

from functional_bp.engine import sweeps
from functional_bp.engine.higher_order import Structure, Sweep, has_tangent
from functional_bp.engine.rule import rules


class Registered(Structure):
    """x̄ = (∂f/∂x)ᵀ ȳ by the rule that the operation's author gave to JAX.

    Residuals: those that the author's rule keeps.
    """

    def forward(self, *operands: Any) -> tuple[Sequence[Any], Any]:
        """Run the author's forward rule with respect to the wanted operands alone."""
        run = lambda full: sweeps.evaluate(self.eqn, full)
        chosen = [x for x, on in zip(operands, self.wanted) if on]
        return jax.vjp(sweeps.of_chosen(run, operands, self.wanted), *chosen)

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
        run = lambda full: sweeps.evaluate(self.eqn, full)
        primals = [x for x, o in zip(operands, on) if o]
        chosen_dots = [dot for dot in dots if dot is not None]
        outs, out_dots = jax.jvp(sweeps.of_chosen(run, operands, on), primals, chosen_dots)
        floats = [has_tangent(v.aval) for v in self.eqn.outvars]
        return outs, [dot if on else None for dot, on in zip(out_dots, floats)]


rules.foreign = Foreign
