"""Has an iteration converged? Implicit differentiation is right only where it has.

A loop of a fixed length that hands on a state and nothing else iterates a map: a fixed point, a
root. Where one more step changes the result, the iteration has not arrived, and a gradient by the
implicit function theorem answers another question than the one that was asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax
from jax.extend.core import Jaxpr, JaxprEqn

from functional_bp import _jax
from functional_bp.backprop import evaluate
from functional_bp.check import graphs
from functional_bp.graph.nested import inner_graphs


def holds_iteration(jaxpr: Jaxpr) -> bool:
    """Whether a loop in the graph iterates a map."""
    return any(map(_is_iteration, graphs.equations(jaxpr)))


def one_step_more(fun: Callable[..., Any]) -> Callable[..., list[Any]]:
    """``fun`` on a flat list of arrays, each of its iterations a step longer."""

    def run(*arrays: Any) -> list[Any]:
        jaxpr, consts = _jax.open_jaxpr(jax.make_jaxpr(fun)(*arrays))
        return graphs.interpret(jaxpr, consts, arrays, _step)

    return run


def _is_iteration(eqn: JaxprEqn) -> bool:
    if eqn.primitive.name != "scan":
        return False
    consts, carries = _jax.scan_counts(eqn.params)
    return len(eqn.invars) == consts + carries and len(eqn.outvars) == carries


def _step(eqn: JaxprEqn, operands: Sequence[Any]) -> Sequence[Any]:
    inners = inner_graphs(eqn)
    if _is_iteration(eqn):
        consts, _ = _jax.scan_counts(eqn.params)
        held, init = operands[:consts], list(operands[consts:])
        body = lambda carry, _: (  # noqa: E731
            graphs.interpret(inners[0].jaxpr, inners[0].consts, [*held, *carry], evaluate), None
        )  # fmt: skip
        return lax.scan(body, init, length=eqn.params["length"] + 1)[0]
    if len(inners) == 1 and holds_iteration(inners[0].jaxpr) and eqn.primitive.name != "scan":
        return graphs.interpret(inners[0].jaxpr, inners[0].consts, operands, _step)
    return evaluate(eqn, operands)
