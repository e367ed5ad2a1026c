"""The true backward pass is edited until it equals the claim: the edit names the path that is lost.

The derivation that a person forgot half of leaves nothing to repair in the code; but the true
gradient without that half is the claim, and that half belongs to a line of the forward pass. An
edge is one operand of one equation there. In the backward pass its cotangent goes through an
equation of its own, which can be edited: dropped, negated, scaled, transposed.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import JaxprEqn, Literal

from functional_bp._jax import as_checkpoint, open_jaxpr, source_spans
from functional_bp.definitions import file_of
from functional_bp.engine.sweeps import evaluate
from functional_bp.gradcheck.clock import TimeLimit
from functional_bp.gradcheck.diagnosis import costs
from functional_bp.gradcheck.diagnosis.expressions import NamedNumber
from functional_bp.gradcheck.diagnosis.repair.locations import Edit, bodies, sizes_of, solved
from functional_bp.gradcheck.diagnosis.repair.mutations.arrangement import shifted
from functional_bp.gradcheck.diagnosis.repair.program import (
    Instruction,
    Program,
    Span,
    Values,
    in_scope,
    trace,
)
from functional_bp.gradcheck.diagnosis.repair.search import agrees, sums
from functional_bp.gradcheck.diagnosis.repair.source import expression
from functional_bp.gradcheck.diagnosis.repair.validate import Validator
from functional_bp.gradcheck.findings import Finding, Kind
from functional_bp.gradcheck.guard import Guard
from functional_bp.gradcheck.subject import Disagreement
from functional_bp.graph.interpret import interpret, rebuild
from functional_bp.graph.nested import called

# A mark on every edge of the forward graph.

PREFIX = "edge "
OPAQUE = ("custom_vjp_call",)  # its rule is to be kept
ENTERED = ("scan", "cond")  # whose bodies have edges


@dataclass(frozen=True)
class Edge:
    """An edge is one operand of an equation of the forward pass."""

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
    """The program computes ``(actives, fixed, bars) -> active cotangents``; edges have numbers."""
    edges: list[Edge] = []

    def backward(actives: Any, fixed: Any, bars: Any) -> Sequence[Any]:
        edges.clear()
        closed = jax.make_jaxpr(lambda *a: tuple(forward(a, fixed)))(*actives)
        jaxpr, consts = open_jaxpr(closed)
        run = lambda *arrays: tuple(interpret(jaxpr, consts, arrays, _marking(edges, ())))
        return jax.vjp(run, *actives)[1](tuple(bars))

    program = trace(backward, tuple(actives), fixed, tuple(bars))
    return program, edges


def edge_of(equation: Instruction, edges: Sequence[Edge]) -> Edge | None:
    """The cotangent of this edge goes through an equation of the backward pass."""
    name = str(equation.params.get("name", ""))
    if equation.name != "name" or not name.startswith(PREFIX):
        return None
    return edges[int(name.removeprefix(PREFIX))]


def _marking(edges: list[Edge], outer: tuple[Span, ...]) -> Callable[..., Sequence[Any]]:
    """Runs an equation of the forward graph, each of its operands marked as an edge."""

    def run(raw: JaxprEqn, operands: Sequence[Any]) -> Sequence[Any]:
        eqn = as_checkpoint(raw)
        name = eqn.primitive.name
        spans = tuple(Span(*frame) for frame in source_spans(eqn)) or outer
        if name not in OPAQUE and called(eqn) is not None:
            return rebuild(eqn, operands, _marking(edges, spans))
        marked = list(operands)
        for position, (atom, x) in enumerate(zip(eqn.invars, operands)):
            if not isinstance(atom, Literal) and jnp.issubdtype(x.dtype, jnp.inexact):
                edges.append(Edge(name, position, spans))
                marked[position] = _mark(x, len(edges) - 1)
        if name in ENTERED:
            return rebuild(eqn, marked, _marking(edges, spans))
        return evaluate(eqn, marked)

    return run


SHOWN = 2
DROPPED = Kind.MISSING_TERM


def drops(disagreement: Disagreement, limit: TimeLimit) -> list[Finding]:
    """At most two edits of the true backward pass make it the claim, the likeliest first.

    Places are lines of the forward pass.
    """
    claimed = disagreement.given.claimed[disagreement.argument]
    if disagreement.subject.reference is None or not np.all(np.isfinite(claimed)):
        return []
    with jax.enable_x64(True), np.errstate(all="ignore"):
        prepared = None
        if not limit.is_reached:
            with Guard("a trace of the reference"):  # without one there is no backward pass to edit
                prepared = _prepare(disagreement, limit)
        return [] if prepared is None else _search(*prepared)


def _prepare(
    disagreement: Disagreement, limit: TimeLimit
) -> tuple[Validator, Sequence[Edge], str | None] | None:
    subject, given = disagreement.subject, disagreement.given
    assert subject.reference is not None
    program, edges = marked_backward(subject.reference, given.actives, given.fixed, given.bars)

    def draw(number: int) -> tuple[list[Any], Sequence[np.ndarray]]:
        sample = given if number == 0 else disagreement.fresh()
        arrays = [*sample.actives, *sample.fixed, *sample.bars]
        inputs = [x for x in arrays if isinstance(x, np.ndarray | np.generic)]
        return inputs, [np.asarray(x) for x in sample.claimed]

    validation = Validator(program, draw, disagreement.argument, limit)
    if not agrees(program.outs(validation.point(0).values), given.true):
        return None
    return validation, edges, file_of(subject.source)


def _search(validation: Validator, edges: Sequence[Edge], home: str | None) -> list[Finding]:
    values = validation.point(0).values
    sizes = sizes_of(values)
    passed: list[tuple[float, Edit, Edge]] = []
    of_slot: dict[int, Edge] = {}
    for order, (slot, value, edge) in enumerate(_marks(validation.program, values, edges)):
        of_slot[slot] = edge
        for edit in _edits(slot, value, sizes):
            if validation.late:
                break
            found = validation.attempt(edit, {}, keep=edit.kind == DROPPED)
            if found is not None:
                passed.append((found.rank + costs.PER_STEP * order, found, edge))
    if not passed and not validation.late:
        return [_both(pair, of_slot, home) for pair in sums(validation)[:1]]
    said: list[Finding] = []
    for _, edit, edge in sorted(passed, key=lambda one: one[0]):
        if len(said) < SHOWN and validation.holds(validation.changes(edit)):
            one = _described(edit, edge, home)
            if all(one.message != other.message for other in said):
                said.append(one)
    return said


def _both(pair: Sequence[Edit], of_slot: Mapping[int, Edge], home: str | None) -> Finding:
    first, other = (_described(edit, of_slot[edit.site], home) for edit in pair)
    message = f"two paths at once: {first.message}, and {other.message}"
    return Finding(first.kind, message, where=first.where)


def _marks(
    program: Program, values: Values, edges: Sequence[Edge]
) -> Iterator[tuple[int, Any, Edge]]:
    """The equations that carry an edge's cotangent, those nearest the forward's outputs first."""
    for equation in program.equations:
        edge = edge_of(equation, edges)
        if edge is not None and in_scope(values[equation.key]):
            yield equation.key, values[equation.key], edge
        for body, inner in bodies(equation, values):
            yield from _marks(body, inner, edges)


def _edits(slot: int, x_bar: Any, sizes: Sequence[int]) -> Iterator[Edit]:
    def edit(kind: Kind, message: str, function: Any, rank: float) -> Edit:
        return Edit(slot, kind, message, lambda a, v, c: function(a[0]), rank)

    yield edit(DROPPED, "is dropped", np.zeros_like, costs.PATH_DROPPED)
    yield edit(Kind.SIGN, "has the wrong sign", np.negative, costs.PATH_NEGATED)

    def told(constant: NamedNumber) -> dict[str, Any] | None:
        message, rank = f"is multiplied by {constant.text}", 1 + constant.oddity
        return None if constant.value in (0.0, -1.0) else dict(message=message, rank=rank)

    yield solved(slot, sizes, Kind.FACTOR, lambda a, v, c: c * a[0], 1.0, costs.PATH_SCALED, told)
    for axis in range(np.ndim(x_bar)):
        if x_bar.shape[axis] < 2:
            continue
        yield edit(
            Kind.REVERSAL, f"is reversed along axis {axis}",
            lambda x, axis=axis: np.flip(x, axis), costs.PATH_REVERSED,
        )  # fmt: skip
        for name, function in (("mean", np.mean), ("sum", np.sum)):
            yield edit(
                Kind.MEAN_OR_SUM, f"is replaced by its {name} along axis {axis}",
                lambda x, f=function, axis=axis: np.broadcast_to(
                    f(x, axis=axis, keepdims=True), x.shape
                ), costs.PATH_REDUCED,
            )  # fmt: skip
        for shift in (1, -1):
            yield edit(
                Kind.OFF_BY_ONE, f"is shifted by {shift} along axis {axis}",
                lambda x, axis=axis, shift=shift: shifted(x, shift, axis), costs.PATH_SHIFTED,
            )  # fmt: skip
            yield edit(
                Kind.OFF_BY_ONE, f"is rolled by {shift} along axis {axis}",
                lambda x, axis=axis, shift=shift: np.roll(x, shift, axis), costs.PATH_SHIFTED,
            )  # fmt: skip
    if np.ndim(x_bar) >= 2 and x_bar.shape[-1] == x_bar.shape[-2]:
        yield edit(
            Kind.TRANSPOSE, "is transposed", lambda x: np.swapaxes(x, -1, -2), costs.PATH_TRANSPOSED
        )


def _described(edit: Edit, edge: Edge, home: str | None) -> Finding:
    at = expression(edge.spans, home)
    if at is None:
        return Finding(
            edit.kind, f"the gradient through an operand of `{edge.primitive}` {edit.message}"
        )
    node = at.operand(edge.position) if at.stands_for(edge.primitive) else None
    whole = at.text
    through = f"`{ast.unparse(node)}` in `{whole}`" if node is not None else f"`{whole}`"
    said = f"the gradient through {through} (line {at.place.line}) {edit.message}"
    return Finding(edit.kind, said, where=at.place)
