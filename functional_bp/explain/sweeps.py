"""Both sweeps over a flat graph, with every value and every cotangent kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import JaxprEqn

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
    plan = plan_of(flat, [seed is not None for seed in seeds], max_steps, keep_all=True)
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
    flat: Graph,
    seeded: Sequence[bool],
    max_steps: int | None = None,
    *,
    keep_all: bool = False,
    constants: bool = True,
) -> Plan:
    """The plan of both sweeps, the inputs active, and constants where ``constants`` says so."""
    jaxpr = opened_jaxpr(flat)
    first = 0 if constants else len(flat.consts)
    every = (*jaxpr.invars, *(v for e in flat for v in e.eqn.outvars))
    return plan_once(
        jaxpr,
        tuple(i >= first and has_tangent(v.aval) for i, v in enumerate(jaxpr.invars)),
        tuple(seeded),
        (True,) * len(jaxpr.outvars),
        Options(max_steps=max_steps),
        also=every if keep_all else (),
    )


def kept_bytes(
    flat: Graph, seeded: Sequence[bool], max_steps: int | None = None
) -> dict[Variable, int]:
    """The bytes that the reverse sweep to the inputs needs from the forward sweep, by variable.

    What an operation keeps beside variables (a loop its steps', a ``max`` who won) counts at its
    first output.
    """
    plan = plan_of(flat, seeded, max_steps, constants=False)
    variables = {flat.of_var[v]: flat.of_var[v].bytes for v in plan.keep if v in flat.of_var}
    if all(v in flat.of_var for v in plan.keep) and not any(s.structure for s in plan.steps):
        return variables
    every = plan_of(flat, seeded, max_steps, keep_all=True, constants=False)
    held: dict[JaxprEqn, dict[int, int]] = {}  # by equation: the bytes of each array, by identity

    def run(*inputs: Any) -> None:
        kept, residuals = backprop.forward(every, (), inputs)[1]
        of_array = {id(x): flat.of_var[v] for v, x in zip(every.keep, kept) if v in flat.of_var}
        beside = [(v.eqn, x) for v, x in zip(every.keep, kept) if v not in flat.of_var]
        closed = [e for e in every.live if e in every.augmented and every.augmented[e].structure]
        for eqn, tree in [*beside, *zip(closed, residuals, strict=True)]:
            for array in jax.tree.leaves(tree):
                aval: Any = jax.typeof(array)
                if (variable := of_array.get(id(array))) is not None:
                    variables[variable] = variable.bytes
                elif hasattr(aval.dtype, "itemsize"):
                    held.setdefault(eqn, {})[id(array)] = aval.size * aval.dtype.itemsize

    given = (*flat.constants, *flat.inputs)
    jax.eval_shape(run, *(jax.ShapeDtypeStruct(v.shape, v.dtype) for v in given))
    for eqn, sizes in held.items():
        first = flat.of_var[eqn.outvars[0]]
        variables[first] = variables.get(first, 0) + sum(sizes.values())
    return variables


def _quickest(run: Callable[..., Any], flat: Graph) -> Callable[..., Any]:
    """``run`` in the way that takes the least time for a single call.

    As one program a small graph; a large one operation by operation, since the same operations come
    again and again: 4,500 equations of a transformer take 6 s in this way, and 60 s as one program,
    nearly all of it compilation.
    """
    return jax.jit(run) if len(flat) <= MOST_COMPILED else run
