"""The forward-mode sweep: tangents by transposing each rule's pullback once more.

A pullback ȳ ↦ x̄ = Jᵀ ȳ is linear; its transpose is ẋ ↦ ẏ = J ẋ, since ⟨J ẋ, ȳ⟩ = ⟨ẋ, Jᵀ ȳ⟩.
So the hand-written reverse rules give forward mode too, one equation at a time, and nothing is
kept from one equation to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from functional_bp import _jax, backprop
from functional_bp.plan import plan_once
from functional_bp.structure import Options, has_tangent, structure_of

Tangents = list[Any]  # None where zero


def forward_mode(
    jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any], dots: Sequence[Any], options: Options
) -> tuple[list[Any], Tangents]:
    """Outputs y = f(x), and their tangents ẏ = J ẋ (None where zero)."""
    env: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args)))
    tangent = {v: dot for v, dot in zip(jaxpr.invars, dots) if dot is not None}
    for eqn in jaxpr.eqns:
        operands = [backprop.value_of(a, env) for a in eqn.invars]
        in_dots = [None if isinstance(a, Literal) else tangent.get(a) for a in eqn.invars]
        if all(dot is None for dot in in_dots):
            outs, out_dots = backprop.evaluate(eqn, operands), [None] * len(eqn.outvars)
        else:
            outs, out_dots = _push(eqn, operands, in_dots, options)
        env.update(zip(eqn.outvars, outs))
        tangent.update((v, dot) for v, dot in zip(eqn.outvars, out_dots) if dot is not None)
    outs = [v.val if isinstance(v, Literal) else env[v] for v in jaxpr.outvars]
    return outs, [None if isinstance(v, Literal) else tangent.get(v) for v in jaxpr.outvars]


def _push(
    eqn: JaxprEqn, operands: Sequence[Any], dots: Sequence[Any], options: Options
) -> tuple[Sequence[Any], Tangents]:
    """One equation: outputs and tangents."""
    active = tuple(dot is not None for dot in dots)
    structure = structure_of(eqn, active, options)
    if structure is not None and (own := getattr(structure, "tangents", None)) is not None:
        with _jax.emitting(eqn), eqn.ctx.manager:
            return own(forward_mode, operands, dots)
    alone = jax.make_jaxpr(lambda *values: backprop.evaluate(eqn, values))(
        *[a.aval for a in eqn.invars]
    )
    body, consts = _jax.open_jaxpr(alone)
    out_float = tuple(has_tangent(v.aval) for v in eqn.outvars)
    plan = plan_once(body, active, out_float, (True,) * len(out_float), options)
    outs, residuals = backprop.forward(plan, consts, operands)
    if not plan.steps:
        return outs, [None] * len(outs)

    def pullback(bars: Sequence[Any]) -> Sequence[Any]:
        remaining = iter(bars)
        full = [next(remaining) if on else None for on in out_float]
        return backprop.reverse(plan, residuals, full)

    avals = [v.aval for v in eqn.outvars if has_tangent(v.aval)]
    found = iter(transpose(pullback, avals, options)(dots))
    return outs, [next(found) if on else None for on in out_float]


def transpose(
    linear: Callable[[Sequence[Any]], Sequence[Any]], avals: Sequence[Any], options: Options
) -> Callable[[Sequence[Any]], Tangents]:
    """The transpose of a linear function, by our reverse sweep over its graph.

    Args:
        linear: takes values of types ``avals``, returns a list; None stands for zero.
        avals: the types of its inputs.
        options: for the sweep.

    Returns:
        A function from one value per output of ``linear`` (None for zero) to one per input.
    """
    present: list[bool] = []

    def run(*values: Any) -> list[Any]:
        outs = linear(values)
        present[:] = [out is not None for out in outs]
        return [out for out in outs if out is not None]

    jaxpr, consts = _jax.open_jaxpr(jax.make_jaxpr(run)(*avals))
    outs = (True,) * len(jaxpr.outvars)
    linearly = options._replace(linear=True)
    plan = plan_once(jaxpr, (True,) * len(avals), outs, (False,) * len(outs), linearly)
    read = {a for eqn in plan.live for a in eqn.invars if not isinstance(a, Literal)}
    points = [backprop.zeros(v.aval) if v in read else None for v in jaxpr.invars]
    _, residuals = backprop.forward(plan, consts, points)

    def transposed(values: Sequence[Any]) -> Tangents:
        given = [value for value, on in zip(values, present, strict=True) if on]
        return backprop.reverse(plan, residuals, given)

    return transposed
