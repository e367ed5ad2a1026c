"""Why values are kept: which rule names each, which operation made it, and what it costs again.

The compiler keeps no more than the rules name, and often less: what takes little to compute, it
computes again inside of what reads it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from functional_bp import _jax
from functional_bp.engine.higher_order import HigherOrder
from functional_bp.engine.plan import size_in_bytes
from functional_bp.engine.rule import rules
from functional_bp.errors import describe
from functional_bp.graph.graph import format_bytes, format_count, short_place
from functional_bp.graph.names import operation_name
from functional_bp.graph.nested import inner_graphs
from functional_bp.memory.attribution import provenance
from functional_bp.memory.residual_costs import costs_of, operations, shape_of, steps_of
from functional_bp.tables.table import Cell, Column, Line, Table, between, drops, ending, natural
from functional_bp.vjps.remat import without_calls

MOST_LINES = 12


@dataclass(frozen=True)
class KeptValue:
    """A value is kept from the forward sweep for the reverse one.

    Attributes:
        bytes: of it; of ``count`` alike together.
        type: dtype and shape; "" for what an operation keeps beside its operands and outputs.
        operation: that made it: the primitive, or the function that it calls.
        scope: the name scopes that it stands in, ``encoder/layer0``.
        source: the person's file and line, None where unknown.
        named_by: the operations whose rules name it, and where these rules stand.
        flops: of making it again from the operands of that operation.
        count: how many values of that kind, made on that line.
    """

    bytes: int
    type: str
    operation: str
    scope: str
    source: tuple[str, int] | None
    named_by: tuple[tuple[str, str], ...]
    flops: int
    count: int = 1


def kept_values(
    fun: Callable[..., Any], args: tuple[Any, ...], trained: int
) -> tuple[KeptValue, ...]:
    """List what ``bp.grad`` keeps of a function, the most bytes first; inputs are there anyway.

    Args:
        fun: the function.
        args: shapes of its arguments.
        trained: the position of the argument that is differentiated.
    """
    leaves, tree = jax.tree.flatten(args)
    flat = lambda *leaves: jax.tree.leaves(fun(*jax.tree.unflatten(tree, leaves)))
    traced, consts = _jax.open_jaxpr(jax.make_jaxpr(flat)(*leaves))
    inputs = [*traced.constvars, *traced.invars]  # what is closed over is there like arguments
    unnamed = traced.debug_info.with_unknown_names()
    jaxpr, _ = without_calls(traced.replace(constvars=[], invars=inputs, debug_info=unnamed))
    marked = [False] * len(consts)
    marked += [k == trained for k, arg in enumerate(args) for _ in jax.tree.leaves(arg)]
    costs = costs_of(jaxpr, marked)
    readers: dict[Any, list[JaxprEqn]] = {}
    for eqn, group in zip(jaxpr.eqns, costs.named):
        for variable in group:
            readers.setdefault(variable, []).append(eqn)
    inner = {step.eqn: step.higher_order for step in steps_of(jaxpr, marked, costs.seeded)}
    found: list[KeptValue] = []
    for eqn, own, flops in zip(jaxpr.eqns, costs.own_bytes, costs.flops):
        operation, scope, source = operation_name(eqn), _scope(eqn), _jax.source_line(eqn)
        for v in eqn.outvars:
            if v in readers:
                named_by = tuple(dict.fromkeys(map(_rule, readers[v])))
                size, kind = size_in_bytes(v.aval), describe(v.aval)
                found.append(KeptValue(size, kind, operation, scope, source, named_by, flops))
        if own and (higher_order := inner.get(eqn)) is not None:
            found += _kept_inside(eqn, higher_order)
        elif own:
            found.append(KeptValue(own, "", operation, scope, source, (_rule(eqn),), flops))
    return _joined(found)


def _kept_inside(eqn: JaxprEqn, higher_order: HigherOrder) -> list[KeptValue]:
    """List what an operation that holds a graph keeps of what it makes inside: a loop's stacks."""

    def run(*operands: Any) -> list[Any]:
        outs, residuals = higher_order.forward(*operands)
        outside = {id(x) for x in (*operands, *outs)}
        own = {id(x): x for x in jax.tree.leaves(residuals) if id(x) not in outside}
        return list(own.values())

    jaxpr, _ = _jax.open_jaxpr(jax.make_jaxpr(run)(*map(shape_of, eqn.invars)))
    found = []
    for atom in jaxpr.outvars:
        size, kind, named_by = size_in_bytes(atom.aval), describe(atom.aval), (_rule(eqn),)
        place = _jax.source_line(eqn)
        made = _maker(jaxpr, atom, place) or _Maker(eqn, 1, _scope(eqn), place)
        flops = made.runs * operations(made.eqn)
        operation = operation_name(made.eqn)
        found.append(KeptValue(size, kind, operation, made.scope, made.source, named_by, flops))
    return found


class _Maker(NamedTuple):
    """An equation makes a value, so often, in these scopes and on this line."""

    eqn: JaxprEqn
    runs: int
    scope: str
    source: tuple[str, int] | None


def _maker(jaxpr: Jaxpr, atom: Any, call: tuple[str, int] | None) -> _Maker | None:
    """Find the equation that makes a value, inside of loops and calls; None of an input."""
    for eqn in jaxpr.eqns:
        if atom not in eqn.outvars or isinstance(atom, Literal):
            continue
        place, source = eqn.outvars.index(atom), _jax.source_line(eqn, call)
        for graph in inner_graphs(eqn):
            inside, _ = _jax.open_jaxpr(graph.jaxpr)
            if len(inside.outvars) == len(eqn.outvars):
                found = _maker(inside, inside.outvars[place], source)
                if found is not None:
                    scope = "/".join(filter(None, (_scope(eqn), found.scope)))
                    return found._replace(runs=found.runs * (graph.runs or 1), scope=scope)
        return _Maker(eqn, 1, _scope(eqn), source)
    return None


def _scope(eqn: JaxprEqn) -> str:
    return provenance(f"{_jax.name_scope(eqn)}/{eqn.primitive.name}", None).scope


def _rule(eqn: JaxprEqn) -> tuple[str, str]:
    rule = rules.get(eqn.primitive)
    where = "" if rule is None else f"{os.path.basename(rule.file)}:{rule.line}"
    return operation_name(eqn), where


def _joined(values: Sequence[KeptValue]) -> tuple[KeptValue, ...]:
    groups: dict[object, list[KeptValue]] = {}
    for value in values:
        key = value.type, value.operation, value.source, value.named_by
        groups.setdefault(key, []).append(value)
    joined = (
        replace(group[0], count=len(group), bytes=sum(v.bytes for v in group),
                flops=sum(v.flops for v in group),
                scope=between(sorted({v.scope for v in group}, key=natural)))
        for group in groups.values()
    )  # fmt: skip
    return tuple(sorted(joined, key=lambda value: -value.bytes))


def kept_table(values: Sequence[KeptValue]) -> Table:
    """Return the values as a table."""
    lines: list[Line] = []
    for value in values[:MOST_LINES]:
        many = f"{value.count} × " if value.count > 1 else ""
        rules_of = ", ".join(f"{name} {where}".rstrip() for name, where in value.named_by)
        names = ", ".join(name for name, _ in value.named_by)
        cells = (
            Cell(format_bytes(value.bytes)), Cell(many + (value.type or "of its own")),
            Cell(value.operation), Cell(rules_of, short=names), Cell(format_count(value.flops)),
            Cell(value.scope, short=ending(value.scope)), Cell(short_place(value.source)),
        )  # fmt: skip
        lines.append(Line("", cells))
    if len(values) > MOST_LINES:
        rest = sum(value.bytes for value in values[MOST_LINES:])
        count = Cell(f"{len(values) - MOST_LINES} more")
        lines.append(Line("", (Cell(format_bytes(rest)), Cell(), count, *[Cell()] * 4)))
    total = format_bytes(sum(value.bytes for value in values))
    scope, source = drops(lines, 5, 6)
    columns = (
        Column("bytes", "right"), Column("value", drop=4), Column("made by"),
        Column("named by rule of"), Column("flops again", "right", drop=2),
        Column("scope", drop=scope), Column("source", drop=source),
    )  # fmt: skip
    return Table(f"Why: the rules name {total}, before anything is fused", columns, tuple(lines))
