"""The axes of all values of a graph, nested ones included, are joined where they belong together.

Union-find over pairs of variable and axis. What is joined comes from the relation that stands
beside each rule; operations that hold graphs join what they feed in and what comes out.
"""

from __future__ import annotations

from typing import NamedTuple

from functional_bp.engine.axes import Axes, Role, axes_of
from functional_bp.engine.rule import rules
from functional_bp.graph.graph import Equation, Graph, Nested, Variable
from functional_bp.graph.nested import opened_scan

Axis = tuple[Variable, int]


class AxisUse(NamedTuple):
    """An operation works along an axis in a way.

    Attributes:
        role: what it supports along the axis.
        equation: the operation.
        axis: one of the axes that it takes for the same.
    """

    role: Role
    equation: Equation
    axis: Axis


class JoinedAxes:
    """Axes of a graph's variables are joined to classes.

    Attributes:
        uses: what operations do along axes, apart from dividing them.
        computed: the equation that computes a variable, and how often it runs in one call; of
            equations that hold no graph.
    """

    def __init__(self, graph: Graph) -> None:
        self._parent: dict[Axis, Axis] = {}
        self.uses: list[AxisUse] = []
        self.computed: dict[Variable, tuple[Equation, int]] = {}
        for variable in (*graph.inputs, *graph.constants):
            self._add(variable)
        self._graph(graph, 1)

    def find(self, axis: Axis) -> Axis:
        """Return the one axis that stands for the class."""
        while (parent := self._parent[axis]) != axis:
            self._parent[axis] = axis = self._parent[parent]
        return axis

    @property
    def classes(self) -> dict[Axis, list[Axis]]:
        """Return the members of each class, in the order in which the graph has them."""
        found: dict[Axis, list[Axis]] = {}
        for axis in self._parent:
            found.setdefault(self.find(axis), []).append(axis)
        return found

    def _add(self, variable: Variable) -> None:
        for i in range(len(variable.shape)):
            self._parent.setdefault((variable, i), (variable, i))

    def _join(self, first: Axis, second: Axis) -> None:
        """Join two axes; those of size 1 belong to none."""
        if any(variable.shape[i] == 1 for variable, i in (first, second)):
            return
        a, b = self.find(first), self.find(second)
        if a != b:
            self._parent[b] = a

    def _join_all(self, first: Variable, second: Variable, skip: tuple[int, int] = (0, 0)) -> None:
        """Join two variables axis by axis, without their first ``skip`` axes."""
        self._add(first)
        self._add(second)
        axes = range(skip[0], len(first.shape)), range(skip[1], len(second.shape))
        for i, j in zip(*axes):
            self._join((first, i), (second, j))

    def _graph(self, graph: Graph, runs: int) -> None:
        for equation in graph:
            for variable in (*equation.inputs, *equation.outputs):
                self._add(variable)
            rule = rules.get(equation.eqn.primitive)
            if equation.nested and (rule is None or rule.axes is None):
                self._nested(equation, runs)
            else:
                self.computed.update({v: (equation, runs) for v in equation.outputs})
                if (axes := axes_of(equation.eqn)) is not None:
                    self._related(equation, axes)

    def _related(self, equation: Equation, axes: Axes) -> None:
        for label, places in axes.places.items():
            group = [
                ((equation.outputs if p.is_output else equation.inputs)[p.array], p.axis)
                for p in places
            ]
            for axis in group[1:]:
                self._join(group[0], axis)
            if (role := axes.role(label)) is not Role.DIVISIBLE:
                self.uses.append(AxisUse(role, equation, group[0]))

    def _nested(self, equation: Equation, runs: int) -> None:
        for nested in equation.nested:
            for variable in (*nested.graph.inputs, *nested.graph.constants):
                self._add(variable)
            if equation.operation == "scan":
                self._scan(equation, nested)
            else:
                self._call(equation, nested)
            if nested.runs != 0:
                self._graph(nested.graph, runs * (nested.runs or 1))

    def _call(self, equation: Equation, nested: Nested) -> None:
        """A graph's inputs are its operands, its outputs the operation's; a loop's both."""
        for inside, outside in zip(nested.graph.inputs, nested.operands):
            if outside is not None:
                self._join_all(inside, outside)
        ends = nested.graph.outputs
        if len(ends) == len(equation.outputs) and nested.label != "condition":
            for inside, outside in zip(ends, equation.outputs):
                self._join_all(inside, outside)
            if equation.operation == "while":
                for before, after in zip(nested.graph.inputs[-len(ends) :], ends):
                    self._join_all(before, after)

    def _scan(self, equation: Equation, nested: Nested) -> None:
        """What is carried goes on; what is scanned has the loop as its first axis."""
        scan, body = opened_scan(equation.eqn), nested.graph
        start = scan.consts + scan.carries
        for k, (inside, outside) in enumerate(zip(body.inputs, equation.inputs)):
            self._join_all(inside, outside, (0, int(k >= start)))
        for k, (inside, outside) in enumerate(zip(body.outputs, equation.outputs)):
            self._join_all(inside, outside, (0, int(k >= scan.carries)))
        for before, after in zip(body.inputs[scan.consts : start], body.outputs):
            self._join_all(before, after)
        scanned = [*equation.inputs[start:], *equation.outputs[scan.carries :]]
        for variable in scanned[1:]:
            self._join((scanned[0], 0), (variable, 0))
        if scanned and scan.carries:
            self.uses.append(AxisUse(Role.MIXED, equation, (scanned[0], 0)))
