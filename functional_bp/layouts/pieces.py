"""A stretch of a program is computed in pieces along a dimension whose entries are independent.

Axes are joined as for the dimensions of a loss, but within the stretch alone, and wherever a value
from outside is read, its axes stand for themselves: in the distances between all points the rows
are one dimension and the columns another, though both are the points.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Container, Iterable, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var, primitives

from functional_bp import _jax
from functional_bp.engine import sweeps
from functional_bp.engine.axes import Axes, AxisPlace, Role, axes_of, rank, relate
from functional_bp.engine.higher_order import has_tangent
from functional_bp.engine.plan import variables
from functional_bp.engine.rule import rules
from functional_bp.graph.flops import flops_of
from functional_bp.graph.nested import CALLS, called, inner_graphs, opened_scan
from functional_bp.vjps.convolutions import convolve

# Parameters that hold a shape: of the whole, in an equation of the whole.
SHAPES = ("shape", "new_sizes", "limit_indices", "slice_sizes")

REPEATED = 0.02  # of the operations inside an equation that may run again for each of its pieces

Along = tuple[int | None, ...]  # the axis of each array that is divided, None for none


class OuterOperand(NamedTuple):
    """A value from outside of a stretch is read by an equation, as one of its operands."""

    equation: int
    operand: int


Array = Var | OuterOperand
Node = tuple[Array, int]  # an array of a stretch, and one of its axes
Place = tuple[int, AxisPlace]  # an equation, and an axis of its operands or outputs


class StretchAxes:
    """The axes of a stretch of equations are joined, one equation after the other.

    Args:
        graph: what the stretch is of.
        inputs: values from outside that are the same wherever they are read.
    """

    def __init__(self, graph: Iterable[JaxprEqn], inputs: Iterable[Var] = ()) -> None:
        self._zeros = {eqn.outvars[0] for eqn in graph if _makes_zeros(eqn)}
        self._parent: dict[Node, Node] = {}
        self._axes: dict[Array, list[Node]] = {}
        self._arrays: dict[Node, set[Array]] = {}
        self._sizes: dict[Node, int] = {}  # the greatest common divisor
        self._bytes: dict[Node, int] = {}
        self._blocked: set[Node] = set()
        self._known: set[Var] = set()
        self._after: dict[Var, frozenset[Node]] = {}  # sums along these were taken before
        self._positional: dict[int, list[Node]] = {}
        for v in inputs:
            self._known.add(v)
            self._enter(v, v)

    def find(self, node: Node) -> Node:
        """Return the one axis that stands for the class."""
        while (parent := self._parent[node]) != node:
            self._parent[node] = node = self._parent[parent]
        return node

    def operand(self, i: int, k: int, atom: Any) -> Array:
        """Return what stands for an operand of the equation ``i``."""
        return atom if isinstance(atom, Var) and atom in self._known else OuterOperand(i, k)

    def axis(self, array: Any, roots: Container[Node]) -> int | None:
        """Return the axis of an array that belongs to classes, None for none."""
        return next(
            (axis for _, axis in self._nodes(array) if self._is_in((array, axis), roots)), None
        )

    def is_after(self, v: Any, roots: Container[Node]) -> bool:
        """Say whether a value depends on a sum along classes."""
        return any(self._is_in(node, roots) for node in self._after.get(v, ()))

    @property
    def positional(self) -> set[Node]:
        """Return the classes along which an equation has to be computed whole."""
        return {self.find(node) for nodes in self._positional.values() for node in nodes}

    def is_positional(self, i: int, roots: Container[Node]) -> bool:
        """Say whether an equation has to be computed whole: it numbers what is along classes."""
        return any(self._is_in(node, roots) for node in self._positional.get(i, ()))

    def _is_in(self, node: Node, roots: Container[Node]) -> bool:
        return self.find(node) in roots

    def is_inside(self, root: Node) -> bool:
        """Say whether a value of the stretch belongs to a class."""
        return any(isinstance(array, Var) for array in self._arrays[root])

    def divisor(self, root: Node) -> int:
        """Return the greatest number of pieces of a class: 1 where it cannot be divided."""
        return 1 if root in self._blocked else self._sizes[root]

    def largest(self, number: int, least: float) -> list[tuple[Node, int]]:
        """Return the classes that can be divided, with their bytes, those with the most first."""
        sizes = self._bytes.items()
        free = [(root, n) for root, n in sizes if n > least and self.divisor(root) > 1]
        return heapq.nlargest(number, free, key=lambda item: item[1])

    def add(self, i: int, eqn: JaxprEqn, size: Callable[[Var], int], own: int = 0) -> None:
        """Join the axes of an equation.

        Args:
            i: its number.
            eqn: the equation.
            size: the bytes of a value that are to be counted.
            own: further bytes of the equation.
        """
        operands = [self.operand(i, k, a) for k, a in enumerate(eqn.invars)]
        for array, atom in zip(operands, eqn.invars):
            self._enter(array, atom)
        self._known.update(eqn.outvars)
        for v in eqn.outvars:
            self._enter(v, v)
        before = frozenset[Node]().union(*(self._after.get(a, ()) for a in variables(eqn.invars)))
        read = [node for array in dict.fromkeys(operands) for node in self._nodes(array)]
        written = [node for v in eqn.outvars for node in self._nodes(v)]
        sums = self._related(i, eqn, operands, read)
        whole = set(map(self.find, self._positional.get(i, ())))  # computed before any piece
        for k, v in enumerate(eqn.outvars):
            self._after[v] = before.union(sums.get(k, ()))
            for root in set(map(self.find, self._nodes(v))) - whole:
                self._bytes[root] = self._bytes.get(root, 0) + size(v)
        roots = set(map(self.find, (*read, *written)))
        self._blocked |= roots & set(map(self.find, before))
        for root in roots - whole if own else ():
            self._bytes[root] = self._bytes.get(root, 0) + own

    def _related(
        self, i: int, eqn: JaxprEqn, operands: Sequence[Array], read: Sequence[Node]
    ) -> dict[int, list[Node]]:
        """Join what a relation says; return along which axes each output is a sum."""
        axes = None if eqn.effects else relation_of(eqn)
        sums: dict[int, list[Node]] = {}
        labelled: set[Node] = set()
        for label, places in () if axes is None else axes.places.items():
            arrays = [(eqn.outvars if p.is_output else operands)[p.array] for p in places]
            nodes = [n for n in zip(arrays, (p.axis for p in places)) if n in self._parent]
            for node in nodes[1:]:
                self._join(nodes[0], node)
            labelled.update(nodes)
            role = Role.MIXED if axes is None else axes.role(label)
            if not nodes or role is Role.DIVISIBLE and self._in_all(eqn, places):
                continue
            if role is Role.SUMMED and axes is not None and axes.combine == "sum":
                if self._adds_to_whole(eqn, places):
                    self._blocked.add(self.find(nodes[0]))
                carrying = {p.array for p in places if p.is_output}
                for k in set(range(len(eqn.outvars))) - carrying:
                    sums.setdefault(k, []).append(nodes[0])
            elif any(not p.is_output for p in places):
                self._blocked.add(self.find(nodes[0]))
            elif role is not Role.DIVISIBLE:
                self._positional.setdefault(i, []).append(nodes[0])
        self._blocked.update(self.find(node) for node in read if node not in labelled)
        own = [n for v in eqn.outvars for n in self._nodes(v) if n not in labelled]
        self._positional.setdefault(i, []).extend(own)
        return sums

    def _adds_to_whole(self, eqn: JaxprEqn, places: Sequence[AxisPlace]) -> bool:
        """Say whether a sum begins with an operand, which every piece would add: not with zeros."""
        carrying = {p.array for p in places if not p.is_output}
        begin: list[Any] = [
            a for k, a in enumerate(eqn.invars) if k not in carrying and rank(a.aval)
        ]
        outs: list[Any] = [v.aval for v in eqn.outvars]
        shapes = {aval.shape for aval in outs}
        return any(a.aval.shape in shapes and a not in self._zeros for a in begin)

    @staticmethod
    def _in_all(eqn: JaxprEqn, places: Sequence[AxisPlace]) -> bool:
        """Say whether every output has a label, or no operand has."""
        if all(p.is_output for p in places):
            return True
        return len({p.array for p in places if p.is_output}) == len(eqn.outvars)

    def _enter(self, array: Array, atom: Any) -> None:
        for axis, n in enumerate(getattr(atom.aval, "shape", ())):
            if n != 1 and (array, axis) not in self._parent:
                node = array, axis
                self._parent[node] = node
                self._axes.setdefault(array, []).append(node)
                self._arrays[node], self._sizes[node] = {array}, n if isinstance(n, int) else 1

    def _nodes(self, array: Array) -> Sequence[Node]:
        return self._axes.get(array, ())

    def _join(self, first: Node, second: Node) -> None:
        a, b = self.find(first), self.find(second)
        if a == b:
            return
        if len(self._arrays[a]) < len(self._arrays[b]):
            a, b = b, a
        self._parent[b] = a
        others = self._arrays.pop(b)
        if not self._arrays[a].isdisjoint(others):  # an array has it along two of its axes
            self._blocked.add(a)
        self._arrays[a] |= others
        self._sizes[a] = math.gcd(self._sizes[a], self._sizes.pop(b))
        self._bytes[a] = self._bytes.get(a, 0) + self._bytes.pop(b, 0)
        if b in self._blocked:
            self._blocked.add(a)

    def along(self, i: int, eqn: JaxprEqn, roots: Container[Node]) -> tuple[Along, Along]:
        """Return the axes of an equation's operands and outputs that belong to classes."""
        ins = tuple(self.axis(self.operand(i, k, a), roots) for k, a in enumerate(eqn.invars))
        return ins, tuple(self.axis(v, roots) for v in eqn.outvars)

    def carries(self, i: int, eqn: JaxprEqn, roots: Container[Node]) -> bool:
        """Say whether an operand or output of an equation belongs to classes."""
        return any(axis is not None for along in self.along(i, eqn, roots) for axis in along)

    def tie(self, first: Any, atom: Any, second: Any, skip: int) -> None:
        """Join two arrays axis by axis, without the first axes of the first."""
        self._enter(first, atom)
        for axis in range(rank(second.aval)):
            nodes = (first, axis + skip), (second, axis)
            if all(node in self._parent for node in nodes):
                self._join(*nodes)

    def __contains__(self, node: Node) -> bool:
        return node in self._parent

    def labels(self, array: Array, atom: Any) -> list[Node | None]:
        """Return the class of each axis of an array."""
        nodes = [(array, axis) for axis in range(rank(atom.aval))]
        return [self.find(node) if node in self._parent else None for node in nodes]

    def place(self, root: Node, eqns: Iterable[tuple[int, JaxprEqn]]) -> Place:
        """Return a place of a class that holds for another trace of the same program."""
        for i, eqn in eqns:
            for k, v in enumerate(eqn.outvars):
                if (axis := self.axis(v, {root})) is not None:
                    return i, AxisPlace(True, k, axis)
            for k, a in enumerate(eqn.invars):
                if (axis := self.axis(self.operand(i, k, a), {root})) is not None:
                    return i, AxisPlace(False, k, axis)
        raise AssertionError("a class has members")


def _makes_zeros(eqn: JaxprEqn) -> bool:
    """Say whether an equation fills an array with the number zero."""
    (value, *_), name = eqn.invars or [None], eqn.primitive.name
    return name == "broadcast_in_dim" and isinstance(value, Literal) and not np.any(value.val)


class DividedStretch(NamedTuple):
    """A stretch can be computed in pieces.

    Attributes:
        most: into how many at most; any divisor will do.
        before, inside, after: the numbers of the equations that run before the pieces, for each of
            them, and on the sums over all of them.
        read: of each equation inside, the axis of each operand.
        written: the axis of each output; a sum where it is None.
    """

    most: int
    before: tuple[int, ...]
    inside: tuple[int, ...]
    after: tuple[int, ...]
    read: dict[int, Along]
    written: dict[int, Along]


def divided(
    eqns: Sequence[JaxprEqn], start: int, stop: int, place: Place, axes: StretchAxes | None = None
) -> DividedStretch | None:
    """Divide a stretch of equations along the class of an axis; None where that is not possible.

    Args:
        eqns: of the whole graph.
        start: the first of the stretch.
        stop: the first after it.
        place: an axis of the class.
        axes: the joined axes of the stretch, if they are known.
    """
    if axes is None:
        axes = StretchAxes(eqns)
        for i in range(start, stop):
            axes.add(i, eqns[i], lambda _: 0)
    i, (is_output, k, axis) = place
    array = eqns[i].outvars[k] if is_output else axes.operand(i, k, eqns[i].invars[k])
    root = axes.find((array, axis))
    most = axes.divisor(root)
    if most == 1:
        return None
    before, inside, after = list[int](), list[int](), list[int]()
    read, written = dict[int, Along](), dict[int, Along]()
    for i in range(start, stop):
        eqn = eqns[i]
        ins, outs = axes.along(i, eqn, {root})
        whole = axes.is_positional(i, {root})
        is_after = any(axes.is_after(a, {root}) for a in variables(eqn.invars))
        divides = any(axis is not None for axis in (ins if whole else (*ins, *outs)))
        if divides and (is_after or whole or not has_pieces(eqn, ins, outs, Fraction(1, most))):
            return None
        (inside if divides else after if is_after else before).append(i)
        read[i], written[i] = ins, outs
    return DividedStretch(most, tuple(before), tuple(inside), tuple(after), read, written)


# One equation.


@lru_cache(maxsize=8192)
def relation_of(eqn: JaxprEqn) -> Axes | None:
    """Return the relation of an equation's axes; of one that holds graphs, by what is inside."""
    rule = rules.get(eqn.primitive)
    inside = inner_graphs(eqn)
    if inside and (rule is None or rule.axes is None):
        return None if any(part.consts for part in inside) else _relation_inside(eqn)
    return axes_of(eqn)


class _Fed(NamedTuple):
    """A graph inside an equation: which operands and outputs its own are, without first axes.

    Attributes:
        graph: the graph.
        operands, outputs: for each of its inputs and outputs, the number of the equation's, and
            how many first axes only that has.
        carried: pairs of inputs and outputs that are one.
    """

    graph: Jaxpr
    operands: Sequence[tuple[int, int]]
    outputs: Sequence[tuple[int, int]]
    carried: Sequence[tuple[Any, Any]] = ()


def _fed(eqn: JaxprEqn) -> list[_Fed]:
    """List the graphs inside an equation; none where nothing is known of them."""
    outer = [(k, 0) for k in range(len(eqn.invars))], [(k, 0) for k in range(len(eqn.outvars))]
    if eqn.primitive is lax.scan_p:
        scan = opened_scan(eqn)
        graph, start = scan.body.jaxpr, scan.consts + scan.carries
        ins = [(k, int(k >= start)) for k, _ in outer[0]]
        outs = [(k, int(k >= scan.carries)) for k, _ in outer[1]]
        return [_Fed(graph, ins, outs, list(zip(graph.invars[scan.consts : start], graph.outvars)))]
    if eqn.primitive is lax.cond_p:
        return [_Fed(part.jaxpr, outer[0][1:], outer[1]) for part in inner_graphs(eqn)]
    if eqn.primitive is primitives.custom_jvp_call_p:
        graph = _tangents(eqn)
        return [] if graph is None else [_Fed(_without_rules(graph), 2 * outer[0], 2 * outer[1])]
    if eqn.primitive.name in CALLS:
        return [_Fed(_jax.open_jaxpr(called(eqn))[0], *outer)]
    return []


OPERAND, OUTPUT = -1, -2  # numbers of equations that are none: what is outside


def _relation_inside(eqn: JaxprEqn) -> Axes | None:
    parts = _fed(eqn)
    if not parts:
        return None
    inner = [inside for part in parts for inside in part.graph.eqns]
    axes = StretchAxes(inner, [v for part in parts for v in part.graph.invars])
    for i, inside in enumerate(inner):
        axes.add(i, inside, lambda _: 0)
    for part in parts:
        pairs = [*zip(part.graph.invars, part.operands), *zip(part.graph.outvars, part.outputs)]
        for k, (inside, (outer, skip)) in enumerate(pairs):
            is_operand = k < len(part.graph.invars)
            atom = (eqn.invars if is_operand else eqn.outvars)[outer]
            axes.tie(OuterOperand(OPERAND if is_operand else OUTPUT, outer), atom, inside, skip)
        for before, after in part.carried:
            axes.tie(before, before, after, 0)
    effort = [(i, eqn, flops_of(eqn)) for i, eqn in enumerate(inner)]
    ends = [(v, outer) for part in parts for v, (outer, _) in zip(part.graph.outvars, part.outputs)]
    operands = [axes.labels(OuterOperand(OPERAND, k), a) for k, a in enumerate(eqn.invars)]
    outputs = [axes.labels(OuterOperand(OUTPUT, k), v) for k, v in enumerate(eqn.outvars)]
    carried = {v for part in parts for _, v in part.carried}
    mixed, summed = set[Node](), set[Node]()
    for root in {
        label for labels in (*operands, *outputs) for label in labels if label is not None
    }:
        sums = {k for v, k in ends if axes.is_after(v, {root})}
        missing = {k for k, labels in enumerate(outputs) if root not in labels}
        whole = sum(n for i, inside, n in effort if not axes.carries(i, inside, {root}))
        unknown = not axes.is_inside(root) or axes.divisor(root) == 1
        unknown = unknown or whole > REPEATED * sum(n for _, _, n in effort)
        if unknown or any(axes.is_after(v, {root}) for v in carried):
            mixed.add(root)
        elif sums:
            (summed if sums == missing else mixed).add(root)
    return relate(operands, outputs, mixed=mixed | axes.positional, summed=summed)


def _tangents(eqn: JaxprEqn) -> Jaxpr | None:
    """The graph of values and tangents of an operation with a rule of the person's; real ones."""
    avals: list[Any] = [a.aval for a in (*eqn.invars, *eqn.outvars)]
    if not all(has_tangent(aval) for aval in avals):
        return None
    ins = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals[: len(eqn.invars)]]
    run = lambda *operands: tuple(sweeps.evaluate(eqn, operands))
    both = lambda *values: jax.jvp(run, values[: len(ins)], values[len(ins) :])
    graph, consts = _jax.open_jaxpr(jax.make_jaxpr(both)(*ins, *ins))
    return None if consts else graph


def _without_rules(jaxpr: Jaxpr) -> Jaxpr:
    """Put what an operation with a rule of its own computes in its place: the rule calls itself."""

    def step(eqn: JaxprEqn, operands: Sequence[Any]) -> Sequence[Any]:
        if eqn.primitive is primitives.custom_jvp_call_p:
            return sweeps.run(*_jax.open_jaxpr(called(eqn)), operands, step)
        return sweeps.evaluate(eqn, operands)

    run = lambda *args: sweeps.run(jaxpr, (), args, step)
    return _jax.open_jaxpr(jax.make_jaxpr(run)(*[v.aval for v in jaxpr.invars]))[0]


def evaluate_piece(
    eqn: JaxprEqn, operands: Sequence[Any], ins: Along, outs: Along, share: Fraction
) -> Sequence[Any]:
    """Run an equation on a piece, a share of the whole, of the operands that are divided."""
    rule, params = rules.get(eqn.primitive), piece_params(eqn, ins, outs, share)
    if eqn.primitive is lax.conv_general_dilated_p:
        with _jax.emitting(eqn), eqn.ctx.manager:
            return [convolve(*operands, **params)]
    if not inner_graphs(eqn) or (rule is not None and rule.axes is not None):
        return sweeps.evaluate(eqn.replace(params=params), operands)
    with _jax.emitting(eqn), eqn.ctx.manager:
        return _evaluate_inside(eqn, operands, ins, outs, share)


def _evaluate_inside(
    eqn: JaxprEqn, operands: Sequence[Any], ins: Along, outs: Along, share: Fraction
) -> Sequence[Any]:
    if eqn.primitive is primitives.custom_jvp_call_p:
        return _evaluate_own_rule(eqn, operands, ins, outs, share)
    parts = [_piecewise(part, ins, outs, share) for part in _fed(eqn)]
    if eqn.primitive is lax.scan_p:
        scan = opened_scan(eqn)
        fixed, start, xs = scan.divided(operands)

        def step(state: Any, slices: Any) -> Any:
            found = parts[0](*fixed, *state, *slices)
            return found[: scan.carries], found[scan.carries :]

        state, ys = lax.scan(step, start, xs, scan.length, reverse=scan.is_reversed)
        return [*state, *ys]
    if eqn.primitive is lax.cond_p:
        return lax.switch(operands[0], parts, *operands[1:])
    if eqn.primitive is primitives.remat_p:
        return jax.checkpoint(parts[0], policy=eqn.params["policy"])(*operands)
    return parts[0](*operands)


def _evaluate_own_rule(
    eqn: JaxprEqn, operands: Sequence[Any], ins: Along, outs: Along, share: Fraction
) -> Sequence[Any]:
    """Run an operation with the person's own tangents: those of the whole, of a piece."""

    def piece(graph: Jaxpr, times: int) -> Callable[..., list[Any]]:
        ends = [(k, 0) for k in range(len(ins))] * times, [(k, 0) for k in range(len(outs))] * times
        return _piecewise(_Fed(graph, *ends), ins, outs, share)

    def tangents(values: Any, dots: Any) -> tuple[list[Any], list[Any]]:
        graph = _tangents(eqn)
        assert graph is not None
        found = piece(graph, 2)(*values, *dots)
        return found[: len(outs)], found[len(outs) :]

    run = jax.custom_jvp(piece(_jax.open_jaxpr(called(eqn))[0], 1))
    run.defjvp(tangents)
    return run(*operands)


def _piecewise(part: _Fed, ins: Along, outs: Along, share: Fraction) -> Callable[..., list[Any]]:
    """The function of a graph inside an equation, of a piece."""
    graph = part.graph
    axes = StretchAxes(graph.eqns, graph.invars)
    for i, eqn in enumerate(graph.eqns):
        axes.add(i, eqn, lambda _: 0)
    ends = [
        *zip(graph.invars, part.operands, itertools.repeat(ins)),
        *zip(graph.outvars, part.outputs, itertools.repeat(outs)),
    ]
    given = [(v, along[k] - skip) for v, (k, skip), along in ends if along[k] is not None]
    roots = {axes.find(node) for node in given if node in axes}

    def run(*args: Any) -> list[Any]:
        env: dict[Any, Any] = dict(zip(graph.invars, args))
        for i, eqn in enumerate(graph.eqns):
            operands = [sweeps.value_of(a, env) for a in eqn.invars]
            along = axes.along(i, eqn, roots)
            env.update(zip(eqn.outvars, evaluate_piece(eqn, operands, *along, share)))
        return [sweeps.value_of(v, env) for v in graph.outvars]

    return run


def piece_params(eqn: JaxprEqn, ins: Along, outs: Along, share: Fraction) -> dict[str, Any]:
    """Return the parameters of an equation for a piece: with its shapes and numbers of groups."""
    changed = dict(eqn.params)
    avals: list[Any] = [a.aval for a in (*eqn.invars, *eqn.outvars)]
    for aval, axis in zip(avals, (*ins, *outs)):
        shape = () if axis is None else aval.shape
        for name in SHAPES:
            sizes = changed.get(name)
            if isinstance(sizes, tuple) and axis is not None and len(sizes) == len(shape):
                if sizes[axis] == shape[axis] == eqn.params[name][axis]:
                    changed[name] = (*sizes[:axis], int(sizes[axis] * share), *sizes[axis + 1 :])
    for name in ("feature_group_count", "batch_group_count"):
        if eqn.params.get(name, 1) > 1 and None not in (*ins, *outs):
            changed[name] = int(eqn.params[name] * share)
    return changed


@lru_cache(maxsize=8192)
def has_pieces(eqn: JaxprEqn, ins: Along, outs: Along, share: Fraction) -> bool:
    """Say whether an equation can be run on pieces: their types are those of pieces."""
    operands = [_piece_type(a.aval, axis, share) for a, axis in zip(eqn.invars, ins)]
    want = [_piece_type(v.aval, axis, share) for v, axis in zip(eqn.outvars, outs)]
    run = lambda *xs: tuple(evaluate_piece(eqn, xs, ins, outs, share))
    try:
        found = jax.eval_shape(run, *operands)
    except (TypeError, ValueError):
        return False
    return all((x.shape, x.dtype) == (y.shape, y.dtype) for x, y in zip(found, want))


def _piece_type(aval: Any, axis: int | None, share: Fraction) -> Any:
    shape = aval.shape if axis is None else (
        *aval.shape[:axis], int(aval.shape[axis] * share), *aval.shape[axis + 1 :]
    )  # fmt: skip
    return jax.ShapeDtypeStruct(shape, aval.dtype, weak_type=aval.weak_type)
