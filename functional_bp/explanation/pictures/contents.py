"""A picture of an explanation shows leaves, operators, closed scopes, and what joins them.

Constants are part of an operator's sign. Reshapes, broadcasts and casts that only carry one value
to one use are part of the wire. What no output depends on is left out.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from functional_bp.explanation.numbers import format_number, numbers_of, summarize
from functional_bp.explanation.pictures.symbols import (
    Line,
    TextRun,
    constant,
    function_sign,
    roman,
    symbol,
    typeset_name,
    typeset_paths,
)
from functional_bp.explanation.record import EvaluatedGraph
from functional_bp.graph.graph import Equation, Variable

# Operations that may be part of a wire: they bring one value on in another form.
CARRIERS = {"broadcast_in_dim", "reshape", "convert_element_type", "squeeze", "copy"}
_LETTERS = re.compile(r"[a-z]{1,2}")


@dataclass(frozen=True, eq=False)
class Node:
    """A node is drawn with a border, or at the margin.

    Attributes:
        kind: "leaf" (an argument or constant), "operator", or "closed" (a scope).
        label: what stands in it.
        equations: of an operator one, of a closed scope all.
        variable: of a leaf.
    """

    kind: Literal["leaf", "operator", "closed"]
    label: Line
    equations: tuple[Equation, ...] = ()
    variable: Variable | None = None


@dataclass(frozen=True, eq=False)
class Use:
    """A variable is used once.

    Attributes:
        variable: what is used.
        head: by which node.
        share: what the use adds to the variable's cotangent; None for nothing.
        place: its number among all uses, in the order of execution.
    """

    variable: Variable
    head: Node
    share: Any
    place: int


@dataclass(frozen=True, eq=False)
class Returned:
    """The function returns a variable, under a label, with the cotangent that it was given."""

    variable: Variable
    label: Line
    seed: Any


@dataclass(frozen=True)
class Contents:
    """A picture shows these.

    Attributes:
        nodes: in the order of execution.
        maker: the node that a variable comes from.
        uses: of each variable, in the order of execution.
        outputs: what the function returns.
        names: of the variables that have one.
    """

    nodes: list[Node]
    maker: dict[Variable, Node]
    uses: dict[Variable, list[Use]]
    outputs: list[Returned]
    names: dict[Variable, Line]

    @property
    def variables(self) -> list[Variable]:
        """Return those that are drawn: used by a node, or returned."""
        ends = {output.variable for output in self.outputs}
        return [v for v in self.maker if self.uses.get(v) or v in ends]

    @cached_property
    def made(self) -> Mapping[Node, list[Variable]]:
        """Return the variables that come from each node."""
        made: dict[Node, list[Variable]] = defaultdict(list)
        for variable, node in self.maker.items():
            made[node].append(variable)
        return made

    @property
    def uses_in_order(self) -> list[Use]:
        """Return all uses, in the order of execution and of an operator's operands."""
        return sorted((u for uses in self.uses.values() for u in uses), key=lambda u: u.place)


def contents(
    explanation: EvaluatedGraph, depth: int | None = None, gates: Collection[str] = ()
) -> Contents:
    """Collect what a picture of an explanation shows.

    Args:
        explanation: the graph with its values.
        depth: scopes (calls of functions, ``jax.named_scope``) deeper than that are closed; 0
            closes all, None none.
        gates: functions and scopes to be drawn as one operator, by name.
    """
    return _Collector(explanation, depth, tuple(gates)).result()


class _Collector:
    def __init__(
        self, explanation: EvaluatedGraph, depth: int | None, gates: tuple[str, ...]
    ) -> None:
        self.explanation, self.graph = explanation, explanation.graph
        self.depth, self.gates = depth, gates
        self.maker_equation = {v: e for e in self.graph for v in e.outputs}
        self.live = self._live()
        self.number_of_uses = Counter(
            v for e in self.graph if e in self.live for v in e.inputs
        ) + Counter(self.graph.outputs)
        self.fixed = self._fixed()
        self.names = self._names()
        self.squeezed = self._squeezed()
        shown = (e for e in self.graph if e in self.live and not self.fixed.issuperset(e.outputs))
        groups = {e: self._group(e) for e in shown}
        size = Counter(groups.values())
        # a scope with one equation is drawn as that equation, unless it was asked for by name
        self.group = {
            e: path if path and (size[path] > 1 or self._gate(path)) else None
            for e, path in groups.items()
        }

    def result(self) -> Contents:
        nodes: list[Node] = []
        maker: dict[Variable, Node] = {}
        found: dict[Any, Use] = {}  # all uses of a value by a closed scope are one
        closed: dict[str, Node] = {}
        for equation, path in self.group.items():
            if path and path not in closed:
                closed[path] = self._closed(path)
                nodes.append(closed[path])
            elif not path:
                if self._is_carrier(equation) or self._is_joined(equation):
                    continue
                nodes.append(Node("operator", self._symbol(equation), (equation,)))
            node = closed[path] if path else nodes[-1]
            for variable in equation.outputs:
                maker[self.squeezed.get(variable, variable)] = node
            for operand, variable in enumerate(equation.inputs):
                if variable in self.fixed:
                    continue
                share = self.explanation.share(equation, operand)
                source, share = self._origin(variable, share)
                if maker.get(source) is node:
                    continue  # inside a closed scope
                if source not in maker:
                    nodes.insert(len(nodes) - 1, leaf := self._leaf(source))
                    maker[source] = leaf
                key = (source, node, None if path else operand)
                if key in found:
                    found[key] = replace(found[key], share=_sum(found[key].share, share))
                else:
                    found[key] = Use(source, node, share, len(found))
        uses: dict[Variable, list[Use]] = defaultdict(list)
        for use in found.values():
            uses[use.variable].append(use)
        outputs = []
        for variable, label, seed in zip(
            self.graph.outputs, self._output_labels(), self.explanation.seeds
        ):
            source, seed = self._origin(variable, seed)
            if source not in maker:
                nodes.append(leaf := self._leaf(source))
                maker[source] = leaf
            outputs.append(Returned(source, label, seed))
        return Contents(nodes, maker, dict(uses), outputs, self.names)

    def _live(self) -> set[Equation]:
        """The equations that an output or a named value depends on."""
        wanted = {*self.graph.outputs, *(v for v in self.graph.variables if v.tag)}
        live: set[Equation] = set()
        for equation in reversed(self.graph.equations):
            if wanted.intersection(equation.outputs):
                live.add(equation)
                wanted.update(equation.inputs)
        return live

    def _fixed(self) -> set[Variable]:
        """Literals, constants without a name, and what is computed from these alone."""
        fixed = {v for v in self.graph.constants if v.size == 1 and _LETTERS.fullmatch(v.name)}
        for equation in self.graph:
            fixed |= {v for v in equation.inputs if v.kind == "literal"}
            is_named = any(v.tag for v in equation.outputs)
            if fixed.issuperset(equation.inputs) and not is_named:
                fixed.update(equation.outputs)
        return fixed

    def _names(self) -> dict[Variable, Line]:
        own = [v for v in (*self.graph.inputs, *self.graph.constants) if v not in self.fixed]
        own = [v for v in own if v.kind == "input" or not _LETTERS.fullmatch(v.name)]
        lines = typeset_paths({v.name: bool(v.shape) for v in own})
        names = {v: lines[v.name] for v in own}
        for variable in self.maker_equation:
            if variable.tag:
                names[variable] = typeset_name(variable.name, bool(variable.shape))
        return names

    def _output_labels(self) -> list[Line]:
        """A tag, the function's name for its only result, or the place in what is returned."""
        outs, paths = self.graph.outputs, self.graph.output_paths
        is_function = self.graph.name.isidentifier()
        called = self.graph.name if len(outs) == 1 and is_function else ""
        shown = {path: bool(v.shape) for path, v in zip(paths, outs)}
        lines = typeset_paths(shown)
        return [
            self.names.get(v) or (typeset_name(called, bool(v.shape)) if called else lines[path])
            for v, path in zip(outs, paths)
        ]

    def _group(self, equation: Equation) -> str | None:
        """The scope that is closed and holds the equation, None if it is drawn by itself."""
        parts = [part for part in equation.scope.split("/") if part]
        for end in range(1, len(parts) + 1):
            if self._gate(parts[end - 1]):
                return "/".join(parts[:end])
        if self.depth is not None and len(parts) > self.depth:
            return "/".join(parts[: self.depth + 1])
        return None

    def _gate(self, path: str) -> str | None:
        """The gate that the last part of a scope is; a second call has a number behind."""
        last = path.rpartition("/")[2]
        return next((g for g in self.gates if re.fullmatch(re.escape(g) + r"(_\d+)?", last)), None)

    def _closed(self, path: str) -> Node:
        equations = tuple(e for e, group in self.group.items() if group == path)
        gate = self._gate(path)
        if gate:
            return Node("operator", function_sign(gate), equations)
        return Node("closed", roman(f"{path.rpartition('/')[2]} ({len(equations)})"), equations)

    def _leaf(self, variable: Variable) -> Node:
        label = self.names.get(variable)
        if label is None and variable in self.fixed:
            label = roman(constant(self._value(variable)))
        return Node("leaf", label or (), (), variable)

    def _value(self, variable: Variable) -> Any:
        return variable.value if variable.kind == "literal" else self.explanation.values[variable]

    def _symbol(self, equation: Equation) -> Line:
        fixed = {
            i: constant(self._value(v)) for i, v in enumerate(equation.inputs) if v in self.fixed
        }
        return symbol(equation, fixed)

    def _is_carrier(self, equation: Equation) -> bool:
        """Whether the equation only brings one value, in another form, to one use."""
        if equation.operation == "max":  # with −∞, as in a reduction that may be empty
            first = equation.inputs[0]
            carries = first.kind == "literal" and bool(np.all(np.asarray(first.value) == -np.inf))
        else:
            carries = equation.operation in CARRIERS
        if not carries or self.group.get(equation) or self._is_joined(equation):
            return False
        out = equation.outputs[0]
        return self.number_of_uses[out] == 1 and out not in self.names

    def _is_joined(self, equation: Equation) -> bool:
        return equation.operation == "squeeze" and equation.inputs[0] in self.squeezed

    def _squeezed(self) -> dict[Variable, Variable]:
        """What ``x[0]`` makes and what is left of it without the axis: one operator makes both."""
        found: dict[Variable, Variable] = {}
        for equation in self.graph:
            if equation.operation != "squeeze" or equation.inputs[0] in self.names:
                continue
            source = equation.inputs[0]
            made_by = self.maker_equation.get(source)
            if made_by is None or made_by.operation not in ("slice", "dynamic_slice"):
                continue
            if self.number_of_uses[source] == 1 and made_by.scope == equation.scope:
                found[source] = equation.outputs[0]
        return found

    def _origin(self, variable: Variable, share: Any) -> tuple[Variable, Any]:
        """The variable that carriers bring, and what the use adds to its cotangent."""
        while (equation := self.maker_equation.get(variable)) and self._is_carrier(equation):
            operand = len(equation.inputs) - 1
            variable = equation.inputs[operand]
            share = self.explanation.share(equation, operand)
        return variable, share


def _sum(first: Any, second: Any) -> Any:
    if first is None or second is None:
        return second if first is None else first
    return np.asarray(first) + np.asarray(second)


# Many arguments of one closed scope are drawn as one: a block's parameters beside the block.

MOST_APART = 3  # arguments that a closed scope has for itself and that are drawn one by one
_STEP = re.compile(r"\[[^\]]*\]|\.\w+|^\w+")


@dataclass(frozen=True, eq=False)
class Bundle(Variable):
    """A bundle stands for several arguments that are drawn as one."""

    members: tuple[Variable, ...] = ()


def bundled(shown: Contents) -> Contents:
    """Draw many parts of one argument as one, where only one closed scope uses them."""
    own: dict[tuple[Node, str], list[Variable]] = defaultdict(list)
    ends = {output.variable for output in shown.outputs}
    for variable, uses in shown.uses.items():
        leaf = shown.maker[variable].kind == "leaf"
        if leaf and variable not in ends and len(uses) == 1 and uses[0].head.kind == "closed":
            own[uses[0].head, re.split(r"\W", variable.name)[0]].append(variable)
    nodes, maker, uses = [*shown.nodes], {**shown.maker}, {**shown.uses}
    for (head, _), members in own.items():
        if len(members) <= MOST_APART:
            continue
        prefix = _common(members)
        bundle = Bundle(prefix, None, "input", members=tuple(members))
        (line,) = typeset_paths({prefix: True}).values()
        leaf = Node("leaf", (*line, TextRun(f" ({len(members)})")), (), bundle)
        first = min(uses[member][0].place for member in members)
        nodes[nodes.index(maker[members[0]])] = leaf
        for member in members:
            nodes = [node for node in nodes if node is not maker[member]]
            del maker[member], uses[member]
        maker[bundle] = leaf
        uses[bundle] = [Use(bundle, head, None, first)]
    return replace(shown, nodes=nodes, maker=maker, uses=uses)


def norm_line(arrays: list[Any]) -> Line:
    """Write the norm of several arrays together, as it is shown of one; empty where none has it."""
    norms = [summarize(array).norm for array in arrays if numbers_of(array) is not None]
    return roman(f"‖·‖ = {format_number(np.hypot.reduce(norms))}") if norms else ()


def _common(members: list[Variable]) -> str:
    """The path that all of them begin with: ``params['blocks'][0]``."""
    steps = [_STEP.findall(member.name) for member in members]
    return "".join(os.path.commonprefix(steps))
