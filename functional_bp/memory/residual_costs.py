"""What a graph keeps for its reverse sweep, and what each value would cost to make again.

The plan says which values the rules name. A value that is not kept is made again, from values that
are: choosing is a trade of bytes for operations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Var
from scipy import sparse
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from functional_bp import _jax
from functional_bp.engine.higher_order import Options, has_tangent
from functional_bp.engine.plan import (
    Auxiliary,
    SweepStep,
    named,
    plan_once,
    size_in_bytes,
    variables,
)
from functional_bp.graph.flops import flops_of
from functional_bp.graph.nested import inner_graphs

STEPS = 2**22  # into which the bytes of a graph are divided: capacities of a cut are integers
MOST = 2**28  # of these capacities


@dataclass(frozen=True)
class Costs:
    """The costs of a flat graph, by equation.

    Attributes:
        jaxpr: the graph.
        named: for each equation, the variables that its reverse step names.
        own_bytes: what each keeps beside variables: a loop's states, who won a maximum.
        flops: of running each again.
        reversed: whether each has a reverse step.
        seeded: whether each output of the graph is differentiated.
    """

    jaxpr: Jaxpr
    named: tuple[tuple[Var, ...], ...]
    own_bytes: tuple[int, ...]
    flops: tuple[int, ...]
    reversed: tuple[bool, ...]
    seeded: tuple[bool, ...]

    def flops_again(self, kept: Set[Var], start: int = 0, stop: int | None = None) -> int:
        """Count the operations that make again what a stretch's rules name and is not kept."""
        stretch = range(start, len(self.jaxpr.eqns) if stop is None else stop)
        needed = {v for i in stretch for v in self.named[i]} - kept
        total = 0
        for i in reversed(stretch):
            eqn = self.jaxpr.eqns[i]
            if self.own_bytes[i] or not needed.isdisjoint(eqn.outvars):
                total += self.flops[i]
                needed.update(v for v in variables(eqn.invars) if v not in kept)
        return total

    @cached_property
    def run_again(self) -> Costs:
        """Return the costs where no equation keeps anything beside variables: it runs again."""
        groups = zip(self.jaxpr.eqns, self.named, self.own_bytes)
        named = ((*group, *variables(eqn.invars)) if own else group for eqn, group, own in groups)
        return replace(self, named=tuple(named))


def costs_of(jaxpr: Jaxpr, active: Sequence[bool], seeded: Sequence[bool] = ()) -> Costs:
    """Count, for each equation of a graph, what it keeps.

    Args:
        jaxpr: a graph without calls.
        active: which inputs are differentiated.
        seeded: which outputs are; all, if left out.
    """
    seeded = seeded or [has_tangent(v.aval) for v in jaxpr.outvars]
    of_eqn = {step.eqn: step for step in steps_of(jaxpr, active, seeded)}
    groups: list[tuple[Var, ...]] = []
    own: list[int] = []
    same: dict[Var, Var] = {}  # what bp.name named is the same array
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "name" and isinstance(eqn.invars[0], Var):
            same[eqn.outvars[0]] = same.get(eqn.invars[0], eqn.invars[0])
    for eqn in jaxpr.eqns:
        step = of_eqn.get(eqn)
        variables, count = ((), 0) if step is None else _kept_by(step)
        groups.append(tuple(dict.fromkeys(same.get(v, v) for v in variables)))
        own.append(count)
    effort = tuple(map(operations, jaxpr.eqns))
    is_reversed = tuple(eqn in of_eqn for eqn in jaxpr.eqns)
    return Costs(jaxpr, tuple(groups), tuple(own), effort, is_reversed, tuple(seeded))


def steps_of(jaxpr: Jaxpr, active: Sequence[bool], seeded: Sequence[bool]) -> tuple[SweepStep, ...]:
    """Plan the reverse sweep of a graph whose ``seeded`` outputs get a cotangent."""
    every = (True,) * len(jaxpr.outvars)
    return tuple(plan_once(jaxpr, tuple(active), tuple(seeded), every, Options()).steps)


def _kept_by(step: SweepStep) -> tuple[Sequence[Var], int]:
    """Return the variables that a step needs, and the bytes of what else it does."""
    if step.higher_order is None:
        values = named(step)
        beside = sum(isinstance(v, Auxiliary) for v in values)
        count = beside and sum(size_in_bytes(v.aval) for v in step.eqn.outvars[:1])
        return [v for v in values if not isinstance(v, Auxiliary)], count
    eqn, higher_order = step.eqn, step.higher_order
    variables: list[Var] = []
    sizes: dict[int, int] = {}

    def run(*operands: Any) -> None:
        outs, residuals = higher_order.forward(*operands)
        known = {id(x): a for x, a in zip((*operands, *outs), (*eqn.invars, *eqn.outvars))}
        for array in jax.tree.leaves(residuals):
            atom = known.get(id(array))
            if isinstance(atom, Var):
                variables.append(atom)
            elif atom is None:
                aval: Any = jax.typeof(array)
                sizes[id(array)] = size_in_bytes(aval)

    jax.make_jaxpr(run)(*(a.aval for a in eqn.invars))  # types, as on a mesh
    return variables, sum(sizes.values())


def shape_of(atom: Any) -> jax.ShapeDtypeStruct:
    """Return the shape and dtype of a variable or literal."""
    return jax.ShapeDtypeStruct(atom.aval.shape, atom.aval.dtype)


def operations(eqn: JaxprEqn) -> int:
    """Count the floating-point operations of an equation, what is inside × its runs; at least 1."""
    inner = inner_graphs(eqn)
    if not inner:
        return max(flops_of(eqn), 1)
    each = [
        (part.runs or 1) * sum(map(operations, _jax.open_jaxpr(part.jaxpr)[0].eqns))
        for part in inner
    ]
    return max(each) if eqn.primitive.name == "cond" else sum(each)


# What XLA runs again by itself, inside of what reads it, before it would keep the result.
FUSED = frozenset(
    """add sub mul neg max min abs sign select_n convert_element_type broadcast_in_dim integer_pow
    square reshape squeeze transpose slice iota eq ne lt le gt ge and or not xor copy real
    imag conj name is_finite clamp floor ceil round stop_gradient add_any rev
    reduce_precision"""
    .split()
)  # fmt: skip


def materialized(costs: Costs) -> set[Var]:
    """Estimate what a compiled program keeps of what the rules name, if nothing is made again."""
    free = tuple(0 if e.primitive.name in FUSED else MOST for e in costs.jaxpr.eqns)
    return cheapest(replace(costs, flops=free), 1.0, {})


def cheapest(costs: Costs, weight: float, prices: Mapping[Var, float]) -> set[Var]:
    """Choose what to keep: the least bytes + weight · operations made again, by a minimum cut.

    Derivation: let m(v) say that v is made again. What is needed (named, or an operand of what is
    made again) and not made again is kept. With a(u) = 1 if u is needed, the sum

        Σ weight · flops(v) m(v) + Σ bytes(u) a(u) (1 − m(u)),   a(u) ≥ m(v) for operands u of v

    is that of the edges which a cut severs between the values on the side of the source (m = 1,
    a = 1) and the others: an edge m(v) → sink of weight · flops(v), an edge a(u) → m(u) of
    bytes(u), and edges without limit m(v) → a(u), and source → a(u) of what is named.

    Args:
        costs: of the graph.
        weight: bytes that one floating-point operation is worth.
        prices: what it costs to keep an input; those that are not in it are there anyway.

    Returns:
        The variables to keep, inputs with a price included.
    """
    jaxpr = costs.jaxpr
    defined = {v: i for i, eqn in enumerate(jaxpr.eqns) for v in eqn.outvars}
    values = [*prices, *defined]
    number = {v: k for k, v in enumerate(values)}
    source, sink = 2 * len(values) + len(jaxpr.eqns), 2 * len(values) + len(jaxpr.eqns) + 1
    again = lambda i: 2 * len(values) + i  # the node of an equation; a(u) is 2u, m(u) is 2u + 1
    edges: list[tuple[int, int, int]] = []
    price = {v: prices.get(v, size_in_bytes(v.aval)) for v in values}
    unit = max(sum(price.values()) / STEPS, 1.0)
    for v, k in number.items():
        edges.append((2 * k, 2 * k + 1, int(price[v] / unit) + 1))
        edges.append((2 * k + 1, again(defined[v]) if v in defined else sink, MOST))
    for i, eqn in enumerate(jaxpr.eqns):
        effort = MOST if eqn.effects else min(int(weight * costs.flops[i] / unit) + 1, MOST)
        edges.append((again(i), sink, effort))
        operands = (a for a in eqn.invars if isinstance(a, Var) and a in number)
        edges += [(again(i), 2 * number[a], MOST) for a in operands]
    needed = dict.fromkeys(v for group in costs.named for v in group if v in number)
    edges += [(source, 2 * number[v], MOST) for v in needed]
    if not edges:
        return set()
    kept = _source_side(edges, source, sink)
    return {v for v, k in number.items() if kept[2 * k] and not kept[2 * k + 1]}


def _source_side(edges: Sequence[tuple[int, int, int]], source: int, sink: int) -> Any:
    """Return which nodes stand on the source's side of a minimum cut."""
    rows, columns, capacities = np.asarray(edges, np.int64).T
    shape = (sink + 1, sink + 1)
    graph = sparse.csr_matrix((capacities, (rows, columns)), shape=shape)
    graph.data = np.minimum(graph.data, MOST).astype(np.int32)
    graph = graph.astype(np.int32)
    flow = maximum_flow(graph, source, sink).flow
    left = sparse.csr_matrix(graph - flow)
    left.data = (left.data > 0).astype(np.int32)
    left.eliminate_zeros()
    reached, _ = breadth_first_order(left, source, return_predecessors=True)
    side = np.zeros(sink + 1, bool)
    side[reached] = True
    return side
