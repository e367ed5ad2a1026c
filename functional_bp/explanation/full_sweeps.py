"""Both sweeps run over a flat graph, and every value and every cotangent is kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr

from functional_bp.engine import sweeps
from functional_bp.engine.higher_order import Options, has_tangent
from functional_bp.engine.plan import Plan, plan_once
from functional_bp.errors import CotangentError, NotDifferentiableError, compose, describe
from functional_bp.graph.graph import Equation, Graph, UnknownVariableError, Variable
from functional_bp.graph.inline import inlined, opened_jaxpr

MOST_COMPILED = 64  # equations of a graph that is compiled as one program
Share = tuple[Equation, int]  # one use of a variable: an equation and which of its operands


class Sweeps(NamedTuple):
    """Both sweeps have found these.

    Attributes:
        values: of every variable.
        bars: the cotangent of every variable that reaches the output; absent where it is zero
            because no path leads there, or where there is no tangent space.
        shares: what each use of a variable adds to its cotangent; they sum to it.
    """

    values: dict[Variable, Any]
    bars: dict[Variable, Any]
    shares: dict[Share, Any]


def operands_of(equation: Equation, values: Mapping[Variable, Any]) -> list[Any]:
    """Return the values of an equation's operands, literals included."""
    return [
        jnp.asarray(sweeps.value_of(atom, {}), v.dtype) if v.kind == "literal" else values[v]
        for v, atom in zip(equation.inputs, equation.eqn.invars)
    ]


def flatten_taken(graph: Graph, args: Sequence[Any], unroll: bool = False) -> Graph:
    """Return the graph without calls, each ``cond`` replaced by the branch that ``args`` takes.

    ``unroll`` writes loops of known length (``scan``) out.
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
        return sweeps.forward(plan, (), inputs)[1][0][: len(also)]

    values = dict(zip(also, _quickest(run, flat)(*flat.consts, *args)))
    return [v.value if v not in atoms else values[atoms[v]] for v in wanted]


def sweep(
    flat: Graph, args: Sequence[Any], seeds: Sequence[Any], max_steps: int | None = None
) -> Sweeps:
    """Run both sweeps at ``args``, from one cotangent per output, None for none.

    ``max_steps`` is the bound of loops without a static trip count.
    """
    seeded = [seed is not None for seed in seeds]
    # A record's constants are closed over by rules of the person's, which have no derivative there.
    closed_over = 0 if flat.staged else len(flat.consts)
    plan = plan_of(opened_jaxpr(flat), seeded, max_steps, keep_all=True, closed_over=closed_over)
    equation_of = {e.eqn: e for e in flat}

    def run(inputs: Sequence[Any], seeds: Sequence[Any]) -> Sweeps:
        record = sweeps.Record({}, {})
        _, residuals = sweeps.forward(plan, (), inputs)
        sweeps.reverse(plan, residuals, seeds, record)
        kept = {flat.of_var.get(atom): x for atom, x in zip(plan.keep, residuals[0])}
        # a pytree whose keys stay in their order
        return Sweeps(
            OrderedDict((v, kept[v]) for v in flat.variables),
            OrderedDict((flat.of_var[atom], bar) for atom, bar in record.bars.items()),
            OrderedDict(((equation_of[e], k), share) for (e, k), share in record.shares.items()),
        )

    return _quickest(run, flat)([*flat.consts, *args], list(seeds))


def plan_of(
    jaxpr: Jaxpr,
    seeded: Sequence[bool],
    max_steps: int | None = None,
    *,
    keep_all: bool = False,
    closed_over: int = 0,
) -> Plan:
    """Plan both sweeps, with the inputs active but for the first ``closed_over``."""
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


def seeds_of(graph: Graph, cotangent: Any = None, do: str = "") -> list[Any]:
    """Return one cotangent per output, None for none.

    Args:
        graph: whose outputs are meant.
        cotangent: like the function's output, with None where nothing is differentiated; by
            default 1, for which the only output must be a real scalar.
        do: what a person may do whose output is no real scalar.

    Raises:
        NotDifferentiableError: the output is no real scalar, and there is no ``cotangent``.
        CotangentError: ``cotangent`` does not fit the output.
    """
    outs = graph.outputs
    if cotangent is None:
        if len(outs) != 1 or outs[0].shape != () or not _is_real(outs[0].dtype):
            raise NotDifferentiableError(
                compose(
                    f"{graph.name} has no single gradient to explain",
                    got="the output " + (", ".join(v.type for v in outs) or "()"),
                    expected="a real scalar",
                    do="{cotangent}",
                    cotangent=do,
                )
            )
        return [jnp.ones((), outs[0].dtype)]
    bars = jax.tree.leaves(cotangent, is_leaf=lambda x: x is None)
    if len(bars) != len(outs) or not all(map(_fits, bars, outs)):
        raise CotangentError(
            compose(
                f"the cotangent does not fit the output of {graph.name}",
                got=", ".join("None" if bar is None else describe(bar) for bar in bars) or "()",
                expected=", ".join(v.type for v in outs),
            )
        )
    return [
        jnp.asarray(bar, v.dtype) if bar is not None and has_tangent(v.aval) else None
        for bar, v in zip(bars, outs)
    ]


def _is_real(dtype: Any) -> bool:
    return dtype is not None and jnp.issubdtype(dtype, np.floating)


def _fits(bar: Any, output: Any) -> bool:
    """Whether it has the output's shape, and is real where the output is."""
    if bar is None:
        return True
    return np.shape(bar) == output.shape and not (_is_real(output.dtype) and np.iscomplexobj(bar))


def lookup(graph: Graph, name: str | Variable) -> Variable:
    """Find the variable of that name.

    Raises:
        UnknownVariableError: there is none. If the name stands inside an operation that the graph
            does not open (a loop, a ``custom_vjp``), the message says so; else it lists near ones.
    """
    if isinstance(name, str) and name not in graph:
        for equation in graph:
            inside = (visit for nested in equation.nested for visit in nested.graph.walk())
            if any(v.tag == name for visit in inside for v in visit.equation.outputs):
                raise UnknownVariableError(_inside(graph, equation, name))
    return graph[name]


def _inside(graph: Graph, equation: Equation, name: str) -> str:
    zeros = f"zeros to it, {name} = {name} + zero, and ask for those of the zeros"
    loop = f"a loop of {graph.name}: it has another value at every step"
    within, do = {
        "scan": (
            loop,
            f"write the loop out: {{unroll}}; or scan over (xs, zeros), add the {zeros}",
        ),
        "while": (loop, f"make it a lax.scan of known length, and add {zeros}"),
        "cond": (
            f"a branch of {graph.name}, which runs or does not",
            f"make zeros an argument of the branch, add the {zeros}",
        ),
    }.get(equation.operation) or (
        f"an operation of {graph.name} that is differentiated as a whole",
        "name what goes into the operation, or what comes out of it",
    )
    return compose(
        f"{name} stands inside {within}",
        where=":".join(map(str, equation.source or ())),
        got=f"{equation.operation} {equation.label}".strip(),
        do=do,
        unroll="unroll=True",
    )
