"""Operations whose authors gave JAX a rule are asked for that rule, which our sweeps run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.extend.core import JaxprEqn
from jax.interpreters import ad
from jax.interpreters.ad import Zero

from functional_bp import _jax
from functional_bp.engine import sweeps
from functional_bp.engine.higher_order import (
    HigherOrder,
    Mask,
    Options,
    Sweep,
    has_tangent,
    only,
    spread_over,
)
from functional_bp.engine.rule import rules


class Registered(HigherOrder):
    """x̄ = (∂f/∂x)ᵀ ȳ by the rule that the operation's author gave to JAX.

    Residuals: those that the author's rule keeps.
    """

    def forward(self, *operands: Any) -> tuple[Sequence[Any], Any]:
        """Run the author's forward rule with respect to the wanted operands alone."""
        run = lambda full: sweeps.evaluate(self.eqn, full)
        call = sweeps.of_chosen(run, operands, self.wanted)
        return _jax.vjp(call, *only(operands, self.wanted))

    def reverse(self, residuals: Any, cotangents: Sequence[Any]) -> Sequence[Any]:
        """Run the author's backward rule; it is told which cotangents are zero, if it asks."""
        pairs = zip(self.eqn.outvars, cotangents)
        bars = [Zero(v.aval.to_tangent_aval()) if bar is None else bar for v, bar in pairs]
        return spread_over(residuals(bars), self.wanted)


class Foreign(Registered):
    """A third party's primitive has its author's rule for tangents, which JAX transposes.

    Forward mode asks for the tangents alone, so that a rule serves which cannot be transposed, as
    that of a Pallas kernel.
    """

    def __new__(cls, eqn: JaxprEqn, active: Mask, options: Options) -> Any:
        """Make it ``Transposable`` where its author gave a transpose alone."""
        if eqn.primitive not in ad.primitive_jvps:
            return Transposable(eqn, active, options)
        return super().__new__(cls)

    def tangents(self, sweep: Sweep, operands: Any, dots: Any) -> tuple[Any, Any]:
        """Run the author's tangent rule itself."""
        del sweep
        on = [dot is not None for dot in dots]
        run = lambda full: sweeps.evaluate(self.eqn, full)
        call = sweeps.of_chosen(run, operands, on)
        outs, out_dots = _jax.jvp(call, only(operands, on), only(dots, on))
        floats = [has_tangent(v.aval) for v in self.eqn.outvars]
        return outs, [dot if on else None for dot, on in zip(out_dots, floats)]


class Transposable(Registered):
    """A third party's primitive whose author gave the transpose is met in tangents alone.

    Residuals: the operands in which it is not linear here.
    """

    def forward(self, *operands: Any) -> tuple[Sequence[Any], Any]:
        """Run it, and keep the other operands."""
        fixed = [None if on else x for x, on in zip(operands, self.wanted)]
        return sweeps.evaluate(self.eqn, operands), fixed

    def reverse(self, residuals: Any, cotangents: Sequence[Any]) -> Sequence[Any]:
        """Ask for the author's transpose."""
        run = lambda full: sweeps.evaluate(self.eqn, full)
        avals = [a.aval for a in only(self.eqn.invars, self.wanted)]
        pull = jax.linear_transpose(sweeps.of_chosen(run, residuals, self.wanted), *avals)
        return spread_over(pull(sweeps.or_zeros(cotangents, self.eqn.outvars)), self.wanted)


rules.foreign = Foreign
