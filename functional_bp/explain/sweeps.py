"""Both sweeps over a flat graph, with every value and every cotangent kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import Jaxpr

from functional_bp import backprop
from functional_bp.graph.inline import inlined, opened_jaxpr
from functional_bp.graph.parts import Equation, Variable
from functional_bp.graph.view import Graph
from functional_bp.plan import Plan, plan_once
from functional_bp.structure import Options, has_tangent

MOST_COMPILED = 64  # equations of a graph that is compiled as one program
Share = tuple[Equation, int]  # one use of a variable: an equation and which of its operands


class Sweeps(NamedTuple):
    """What the two sweeps found.

    Attributes:
        values: of every variable.
        bars: the cotangent of every variable that reaches the output; absent where it is zero
            because no path leads there, or where there is no tangent space.
        shares: what each use of a variable adds to its cotangent; they sum to it.
    """

    values: dict[Variable, Any]
    bars: dict[Variable, Any]
    shares: dict[Share, Any]


def flatten_taken(graph: Graph, args: Sequence[Any], unroll: bool = False) -> Graph:
    """The graph without calls, each ``cond`` replaced by the branch that runs at ``args``.

    Args:
        graph: the graph.
        args: one array per input.
        unroll: write loops of known length (``scan``) out.
    """
    flat = inlined(graph, unroll=unroll)
    while True:
        conds = [e for e in flat if e.operation == "cond"]
        if not conds:
            return flat
        found = _run_forward(flat, args, [e.inputs[0] for e in conds])
        taken = {
            e.index: min(max(int(index), 0), len(e.nested) - 1) for e, index in zip(conds, found)
        }
        flat = inlined(flat, branches=taken, unroll=unroll)


def _run_forward(flat: Graph, args: Sequence[Any], wanted: Sequence[Variable]) -> list[Any]:
    atoms = {v: var for var, v in flat.of_var.items()}
    jaxpr = opened_jaxpr(flat)
    also = tuple(dict.fromkeys(atoms[v] for v in wanted if v in atoms))
    none = (False,) * len(jaxpr.invars)
    plan = plan_once(jaxpr, none, (False,) * len(jaxpr.outvars), (False,) * len(jaxpr.outvars),
                     also=also)  # fmt: skip

    def run(*inputs: Any) -> list[Any]:
        return backprop.forward(plan, (), inputs)[1][0][: len(also)]

    values = dict(zip(also, _quickest(run, flat)(*flat.consts, *args)))
    return [v.value if v not in atoms else values[atoms[v]] for v in wanted]


def sweep(
    flat: Graph, args: Sequence[Any], seeds: Sequence[Any], max_steps: int | None = None
) -> Sweeps:
    """Run both sweeps at ``args``.

    Args:
        flat: the graph.
        args: one array per input.
        seeds: one cotangent per output, None for none.
        max_steps: the bound of loops without a static trip count.
    """
    seeded = [seed is not None for seed in seeds]
    # A record's constants are closed over by rules of the person's, which have no derivative there.
    closed_over = 0 if flat.staged else len(flat.consts)
    plan = plan_of(opened_jaxpr(flat), seeded, max_steps, keep_all=True, closed_over=closed_over)
    uses: list[tuple[int, int]] = []
    with_bars: list[int] = []
    variables = flat.variables
    position = {v: i for i, v in enumerate(variables)}
    index = {e.eqn: e.index for e in flat}
    given = [seed for seed in seeds if seed is not None]

    def run(inputs: Sequence[Any], given: Sequence[Any]) -> tuple[Any, Any, Any]:
        rest = iter(given)
        record = backprop.Record({}, {})
        _, residuals = backprop.forward(plan, (), inputs)
        kept = dict(zip(plan.keep, residuals[0]))
        bars = [None if seed is None else next(rest) for seed in seeds]
        backprop.reverse(plan, residuals, bars, record)
        uses[:] = [(index[eqn], operand) for eqn, operand in record.shares]
        found = {position[flat.of_var[var]]: bar for var, bar in record.bars.items()}
        with_bars[:] = found
        atoms = [*plan.jaxpr.invars, *(v for e in flat for v in e.eqn.outvars)]
        order = {flat.of_var[var]: kept[var] for var in atoms}
        return [order[v] for v in variables], list(found.values()), list(record.shares.values())

    values, bars, shares = _quickest(run, flat)([*flat.consts, *args], given)
    return Sweeps(
        dict(zip(variables, values)),
        {variables[i]: bar for i, bar in zip(with_bars, bars)},
        {(flat.equations[i], operand): share for (i, operand), share in zip(uses, shares)},
    )


def plan_of(
    jaxpr: Jaxpr,
    seeded: Sequence[bool],
    max_steps: int | None = None,
    *,
    keep_all: bool = False,
    closed_over: int = 0,
) -> Plan:
    """The plan of both sweeps, the inputs active but for the first ``closed_over``."""
    every = (*jaxpr.invars, *(v for eqn in jaxpr.eqns for v in eqn.outvars))
    return plan_once(
        jaxpr,
        tuple(i >= closed_over and has_tangent(v.aval) for i, v in enumerate(jaxpr.invars)),
        tuple(seeded),
        (True,) * len(jaxpr.outvars),
        Options(max_steps=max_steps),
        also=every if keep_all else (),
        held=(True,) * len(jaxpr.invars),
    )


def _quickest(run: Callable[..., Any], flat: Graph) -> Callable[..., Any]:
    """``run`` in the way that takes the least time for a single call.

    As one program a small graph; a large one operation by operation, since the same operations come
    again and again: 4,500 equations of a transformer take 6 s in this way, and 60 s as one program,
    nearly all of it compilation.
    """
    return jax.jit(run) if len(flat) <= MOST_COMPILED else run
