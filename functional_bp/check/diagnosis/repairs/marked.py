"""The true backward pass with a mark on every edge of the forward graph.

An edge is one operand of one equation. In the backward pass its cotangent goes through an equation
of its own, which can be edited: dropped, negated, scaled, transposed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Jaxpr, Literal

from functional_bp._jax import as_checkpoint, open_jaxpr, scan_counts, source_spans
from functional_bp.check.diagnosis.repairs.program import INLINED, Equation, Program, Span, trace

PREFIX = "edge "
OPAQUE = ("custom_vjp_call", "custom_vjp_call_jaxpr")  # their rules are to be kept


@dataclass(frozen=True)
class Edge:
    """An operand of an equation of the forward pass."""

    primitive: str
    position: int
    spans: tuple[Span, ...]


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _mark(x: Any, number: int) -> Any:
    return x


def _mark_fwd(x: Any, number: int) -> tuple[Any, None]:
    return x, None


def _mark_bwd(number: int, _: None, x_bar: Any) -> tuple[Any]:
    return (checkpoint_name(x_bar, f"{PREFIX}{number}"),)


_mark.defvjp(_mark_fwd, _mark_bwd)


def marked_backward(
    forward: Callable[..., Sequence[Any]], actives: Sequence[Any], fixed: Any, bars: Sequence[Any]
) -> tuple[Program, list[Edge]]:
    """The program ``(actives, fixed, bars) -> active cotangents``, and the edges by number."""
    edges: list[Edge] = []

    def backward(actives: Any, fixed: Any, bars: Any) -> Sequence[Any]:
        edges.clear()
        closed = jax.make_jaxpr(lambda *a: tuple(forward(a, fixed)))(*actives)
        jaxpr, consts = open_jaxpr(closed)
        run = partial(_interpret, jaxpr, consts, edges=edges, outer=())
        return jax.vjp(lambda *a: tuple(run(a)), *actives)[1](tuple(bars))

    program = trace(backward, tuple(actives), fixed, tuple(bars))
    return program, edges


def edge_of(equation: Equation, edges: Sequence[Edge]) -> Edge | None:
    """The edge whose cotangent goes through an equation of the backward pass."""
    name = str(equation.params.get("name", ""))
    if equation.name != "name" or not name.startswith(PREFIX):
        return None
    return edges[int(name.removeprefix(PREFIX))]


def _interpret(
    jaxpr: Jaxpr,
    consts: Sequence[Any],
    inputs: Sequence[Any],
    *,
    edges: list[Edge],
    outer: tuple[Span, ...],
) -> list[Any]:
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, consts))
    values.update(zip(jaxpr.invars, inputs))
    again = partial(_interpret, edges=edges)

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for raw in jaxpr.eqns:
        eqn = as_checkpoint(raw)
        name = eqn.primitive.name
        spans = tuple(Span(*frame) for frame in source_spans(eqn)) or outer
        operands = [read(atom) for atom in eqn.invars]
        inner = eqn.params.get(INLINED.get(name, "")) if name not in OPAQUE else None
        if inner is not None:
            body, constants = open_jaxpr(inner)
            outs: Sequence[Any] = again(body, constants, operands, outer=spans)
        else:
            for position, atom in enumerate(eqn.invars):
                x = operands[position]
                if not isinstance(atom, Literal) and jnp.issubdtype(x.dtype, jnp.inexact):
                    edges.append(Edge(name, position, spans))
                    operands[position] = _mark(x, len(edges) - 1)
            outs = _STRUCTURES.get(name, _bind)(eqn, operands, partial(again, outer=spans))
        values.update(zip(eqn.outvars, outs))
    return [read(atom) for atom in jaxpr.outvars]


def _bind(eqn: Any, operands: Sequence[Any], again: Callable[..., list[Any]]) -> Sequence[Any]:
    outs = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
    return outs if eqn.primitive.multiple_results else [outs]


def _scan(eqn: Any, operands: Sequence[Any], again: Callable[..., list[Any]]) -> Sequence[Any]:
    params = eqn.params
    consts, carried = scan_counts(params)
    body, constants = open_jaxpr(params["jaxpr"])

    def step(carry: Any, slices: Any) -> tuple[Any, Any]:
        outs = again(body, constants, [*operands[:consts], *carry, *slices])
        return tuple(outs[:carried]), tuple(outs[carried:])

    start, over = operands[consts : consts + carried], operands[consts + carried :]
    carry, stacked = lax.scan(
        step, tuple(start), tuple(over), length=params["length"], reverse=params["reverse"]
    )
    return [*carry, *stacked]


def _cond(eqn: Any, operands: Sequence[Any], again: Callable[..., list[Any]]) -> Sequence[Any]:
    graphs = [open_jaxpr(branch) for branch in eqn.params["branches"]]
    branches = [
        lambda *inputs, body=body, constants=constants: tuple(again(body, constants, inputs))
        for body, constants in graphs
    ]
    return lax.switch(operands[0], branches, *operands[1:])


_STRUCTURES: dict[str, Callable[..., Sequence[Any]]] = {"scan": _scan, "cond": _cond}
