"""What a layout costs is estimated from the graph and its dimensions, before it is compiled.

A value is divided by every mesh axis that one of its dimensions lies on. An operation works over
the dimensions of all its operands and outputs; where it works along a divided one that its output
does not have, the outputs of the devices are added (an all-reduce), and where it works along one
that an operand does not have, the cotangents of that operand are. So the gradients of parameters
are added over the batch's devices, and Megatron's four sums a layer are found.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import jax.numpy as jnp

from functional_bp.engine.axes import Role, axes_of
from functional_bp.engine.rule import rules
from functional_bp.graph.graph import Equation, Graph, Nested, Variable
from functional_bp.graph.nested import opened_scan
from functional_bp.layouts.dimensions import Dimensions
from functional_bp.memory.allocation import CompiledProgram

Names = frozenset[str]


class Lies(NamedTuple):
    """A mesh axis divides these dimensions.

    Attributes:
        devices: along the axis.
        dimensions: that lie on it.
    """

    devices: int
    dimensions: Names


class Crossing(NamedTuple):
    """Devices send each other something about a value.

    Attributes:
        names: the value's dimensions.
        over: is divided, and so the value's parts are added, or all are needed, along these.
        gathers: it is needed whole, rather than added up.
    """

    names: Names
    over: Names
    gathers: bool


@dataclass
class Work:
    """What a loss computes and moves, by dimension.

    Attributes:
        flops: of operations, by all the dimensions that they work over; forward and reverse sweep.
        crossings: the bytes of values whole, by what devices have to send each other of them.
        halos: the bytes of what lies along one edge of a part, in all other dimensions whole, by
            the value's dimensions and the one that is cut.
        shapes: how often values of a shape are computed, by their dimensions.
        beside: dimensions of which one is a part of the other: gates in a product's columns.
    """

    flops: Counter[Names] = field(default_factory=Counter)
    crossings: Counter[Crossing] = field(default_factory=Counter)
    halos: Counter[tuple[Names, str]] = field(default_factory=Counter)
    shapes: dict[tuple[int, ...], Counter[Names]] = field(
        default_factory=lambda: defaultdict(Counter)
    )
    beside: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def flops_of(self, mesh: Sequence[Lies]) -> float:
        """Estimate what a device computes."""
        return sum(n / share(names, mesh) for names, n in self.flops.items())

    def sent_bytes(self, mesh: Sequence[Lies]) -> float:
        """Estimate the bytes that a device sends: no less can be, if these sums are taken."""
        return sum(sent(crossing, size, mesh) for crossing, size in self.crossings.items())

    def edge_bytes(self, mesh: Sequence[Lies]) -> float:
        """Estimate the bytes that neighbours send each other of their parts' edges."""
        return sum(
            size * axis.devices / share(names, mesh)
            for (names, name), size in self.halos.items()
            for axis in mesh
            if name in axis.dimensions
        )

    def with_parts(self, axis: Lies) -> Lies:
        """Return a mesh axis with what the compiler divides too, once what it is a part of is."""
        reached, found = [*axis.dimensions], set(axis.dimensions)
        for name in reached:
            new = self.beside.get(name, set()) - found
            reached += sorted(new)
            found |= new
        return Lies(axis.devices, frozenset(found))

    def share_of(self, shape: tuple[int, ...], mesh: Sequence[Lies]) -> float:
        """Estimate what part of an array of a shape a device has.

        The compiler merges axes: what it calls by an unknown shape is one of as many entries.
        """
        known = self.shapes.get(shape) or self.shapes.get(shape[1:])
        known = known or self._of_size.get(math.prod(shape))
        if not known:
            return 1.0
        return sum(n / share(names, mesh) for names, n in known.items()) / known.total()

    @cached_property
    def _of_size(self) -> dict[int, Counter[Names]]:
        """How often values of so many entries are computed, by their dimensions."""
        found: dict[int, Counter[Names]] = defaultdict(Counter)
        for shape, names in self.shapes.items():
            found[math.prod(shape)].update(names)
        return dict(found)


def share(names: Names, mesh: Sequence[Lies]) -> int:
    """Return by how many a value of these dimensions is divided."""
    return math.prod(axis.devices for axis in mesh if names & axis.dimensions)


def sent(crossing: Crossing, size: int, mesh: Sequence[Lies]) -> float:
    """Return the bytes that a device sends for one of the crossings."""
    own, total = size / share(crossing.names, mesh), 0.0
    for devices, dimensions in mesh:
        if crossing.gathers and crossing.over & dimensions:
            total += own * (devices - 1)
        elif crossing.over & dimensions and not crossing.names & dimensions:
            total += 2 * own * (devices - 1) / devices
    return total


def temporary_bytes(program: CompiledProgram, work: Work, mesh: Sequence[Lies]) -> float:
    """Estimate what temporaries a device needs, from those of the program for one.

    What is live at its peak is divided, buffer by buffer; the peak itself may move.
    """
    live = [b for b in program.temporaries if b.is_live(program.peak)]
    total = sum(b.bytes for b in live)
    if not total:
        return float(program.temporary_bytes)
    parts = sum(b.bytes * work.share_of(_shape(b.type), mesh) for b in live)
    return program.temporary_bytes * parts / total


def _shape(type: str) -> tuple[int, ...]:
    inside = type.partition("[")[2].rstrip("]")
    return tuple(map(int, filter(None, inside.split(","))))


def work_of(found: Dimensions) -> Work:
    """Go through the graph of a loss, whose first argument is trained."""
    return _Walk(found).work


class _Walk:
    """Collects the work of a graph, nested ones included."""

    def __init__(self, found: Dimensions) -> None:
        self.found, self.work = found, Work()
        self._same: dict[Variable, Variable] = {}  # a value inside that is one outside
        self._runs: dict[Variable, int] = {}
        self._over: dict[tuple[Variable, bool], Names] = defaultdict(frozenset)
        graph = found.graph
        trained = [leaf.variable for leaf in found.leaves if not leaf.argument]
        self._active = {v for v in trained if v is not None and _is_real(v)}
        self._spread(graph)
        self._note((*graph.inputs, *graph.constants), 1)
        self._graph(graph, 1)
        for (variable, gathers), over in self._over.items():
            crossing = Crossing(self._names(variable), over, gathers)
            self.work.crossings[crossing] += variable.bytes * self._runs.get(variable, 1)

    def _names(self, variable: Variable) -> Names:
        return frozenset(name for name in self.found.names_of(variable) if name)

    def _outside(self, variable: Variable) -> Variable:
        while variable in self._same:
            variable = self._same[variable]
        return variable

    def _note(self, variables: Iterable[Variable], runs: int) -> None:
        for variable in variables:
            self._runs.setdefault(variable, runs)
            self.work.shapes[variable.shape][self._names(variable)] += runs

    # What depends on the parameters.

    def _spread(self, graph: Graph) -> None:
        for equation in graph:
            if _is_looked_into(equation):
                self._spread_inside(equation)
            elif any(v in self._active for v in equation.inputs):
                self._active.update(filter(_is_real, equation.outputs))

    def _spread_inside(self, equation: Equation) -> None:
        for nested in equation.nested:
            graph, before = nested.graph, -1
            self._activate(nested.operands, graph.inputs)
            while before < (before := len(self._active)):  # a carry may become active
                self._spread(graph)
                self._activate(graph.outputs, equation.outputs)
                for start, end in _carried(equation, nested):
                    self._activate([end], [start])

    def _activate(self, sources: Sequence[Variable | None], targets: Sequence[Variable]) -> None:
        pairs = zip(sources, targets)
        self._active.update(t for s, t in pairs if s in self._active and _is_real(t))

    # What is computed, and sent.

    def _graph(self, graph: Graph, runs: int) -> None:
        for equation in graph:
            if _is_looked_into(equation):
                self._inside(equation, runs)
            else:
                self._note(equation.outputs, runs)
                self._operation(equation, runs)

    def _inside(self, equation: Equation, runs: int) -> None:
        for nested in equation.nested:
            if nested.runs == 0:
                continue
            graph, inner = nested.graph, runs * (nested.runs or 1)
            is_loop = equation.operation in ("scan", "while")
            fixed = opened_scan(equation.eqn).consts if equation.operation == "scan" else 0
            whole = len(graph.inputs) if not is_loop else fixed
            for inside, outside in zip(graph.inputs[:whole], nested.operands):
                if outside is not None and outside.kind != "literal":
                    self._same[inside] = outside
            if not is_loop and equation.operation != "cond":
                self._same.update(zip(equation.outputs, graph.outputs))
            self._note([v for v in graph.inputs if v not in self._same], inner)
            self._graph(graph, inner)
        if equation.operation in ("scan", "while", "cond"):
            self._note(equation.outputs, runs)

    def _operation(self, equation: Equation, runs: int) -> None:
        values = (*equation.inputs, *equation.outputs)
        space = frozenset[str]().union(*map(self._names, values))
        is_active = any(v in self._active for v in equation.outputs)
        self.work.flops[space] += equation.flops * runs * (3 if is_active else 1)
        for v, name, part in _edges(equation, self.found):
            sweeps = 2 if is_active else 1
            self.work.halos[self._names(v), name] += round(v.bytes * part * runs * sweeps)
        if equation.operation in ("split", "concatenate"):
            axis = equation.eqn.params["axis" if equation.operation == "split" else "dimension"]
            along = {name for v in values if (name := self.found.names_of(v)[axis])}
            for name in along:
                self.work.beside[name] |= along - {name}
        whole, moved = self._needed_whole(equation), self._needed_elsewhere(equation)
        for v, names in moved:
            self._cross(v, names, True)
        for v in (*filter(self._active.__contains__, equation.inputs), *equation.outputs):
            self._cross(v, space - self._names(v) - whole, False)
        for v in equation.inputs:
            self._cross(v, self._names(v) & whole, True)

    def _cross(self, variable: Variable, over: Names, gathers: bool) -> None:
        if over and variable.kind != "literal":
            self._over[self._outside(variable), gathers] |= over

    def _needed_elsewhere(self, equation: Equation) -> Iterator[tuple[Variable, Names]]:
        """Operands of all with all: where one dimension is two axes, the second is needed whole."""
        axes = axes_of(equation.eqn)
        first: dict[str, set[int]] = {}  # the operands with the first of the axes
        for places in () if axes is None else axes.places.values():
            arrays = equation.outputs if places[0].is_output else equation.inputs
            name = self.found.names_of(arrays[places[0].array])[places[0].axis]
            operands = {place.array for place in places if not place.is_output}
            if name and (known := first.setdefault(name, operands)) is not operands:
                for number in operands - known:
                    yield equation.inputs[number], frozenset([name])

    def _needed_whole(self, equation: Equation) -> Names:
        """The dimensions along which an entry depends on all others."""
        axes = axes_of(equation.eqn)
        if axes is None:
            return frozenset[str]().union(*map(self._names, equation.inputs))
        places = [places[0] for label, places in axes.places.items()
                  if axes.role(label) is Role.MIXED]  # fmt: skip
        arrays = [(equation.outputs if p.is_output else equation.inputs)[p.array] for p in places]
        names = (self.found.names_of(v)[p.axis] for v, p in zip(arrays, places))
        return frozenset(name for name in names if name)


def _edges(equation: Equation, found: Dimensions) -> Iterator[tuple[Variable, str, float]]:
    """Operands of which a part needs what lies along its neighbours' edges: what share of them."""
    axes = axes_of(equation.eqn)
    for label, places in () if axes is None else axes.places.items():
        if axes is None or axes.role(label) is not Role.HALO:
            continue
        for _, array, axis in (place for place in places if not place.is_output):
            variable = equation.inputs[array]
            if name := found.names_of(variable)[axis]:
                yield variable, name, min(_overlap(equation, array, axis) / variable.shape[axis], 1)


def _overlap(equation: Equation, array: int, axis: int) -> int:
    """How many entries along an axis neighbouring windows share; of a shift 1."""
    params = equation.eqn.params
    if (numbers := params.get("dimension_numbers")) and "rhs_dilation" in params:
        space = numbers[0][2:].index(axis)
        return (equation.inputs[1].shape[numbers[1][2:][space]] - 1) * params["rhs_dilation"][space]
    sizes = params.get("window_dimensions")
    return max(sizes[axis] - 1, 1) if sizes else 1


def _is_real(variable: Variable) -> bool:
    return variable.dtype is not None and jnp.issubdtype(variable.dtype, jnp.inexact)


def _is_looked_into(equation: Equation) -> bool:
    rule = rules.get(equation.eqn.primitive)
    return bool(equation.nested) and (rule is None or rule.axes is None)


def _carried(equation: Equation, nested: Nested) -> Iterator[tuple[Variable, Variable]]:
    """The values at the beginning and the end of a loop's body that are handed on."""
    graph = nested.graph
    if equation.operation == "scan":
        scan = opened_scan(equation.eqn)
        yield from zip(graph.inputs[scan.consts : scan.consts + scan.carries], graph.outputs)
    elif equation.operation == "while" and len(graph.outputs) == len(equation.outputs):
        yield from zip(graph.inputs[-len(graph.outputs) :], graph.outputs)
