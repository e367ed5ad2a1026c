"""The style of the CS231n lectures: operators are circles, leaves names at the margin.

The forward value stands above each edge, the gradient below it. Where a value has several uses the
edge branches: before the branch stands the gradient, behind it what each use contributes to it.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from functional_bp.explain.explanation import Explanation
from functional_bp.explain.pictures.boxes import Box, Placed, Wire
from functional_bp.explain.pictures.contents import Contents, Node, Output
from functional_bp.explain.pictures.layout import Direction, Engine, layout
from functional_bp.explain.pictures.marks import (
    NAME_SIZE,
    SIGN_SIZE,
    VALUE_SIZE,
    describe_node,
    describe_variable,
    gradient_line,
    operator_box,
    operator_shape,
    total_line,
    value_line,
)
from functional_bp.explain.pictures.scene import Curve, Scene, Shape, Text, attached, on_page
from functional_bp.explain.pictures.typeset import Line, Run, measure
from functional_bp.graph.parts import Variable

Branches = Literal["shares", "total"]
DOT = 6.0
ROW = 14.0  # of a value above an edge
PAD = 4.0  # text from the ends of its edge, or from the edge beside it


class _Edge:
    """One edge: what it joins, what stands above and below it, its place among all edges."""

    def __init__(
        self, tail: Any, head: Any, above: Line, below: Line, title: str, place: float
    ) -> None:
        self.tail, self.head, self.title, self.place = tail, head, title, place
        self.above, self.below = above, below

    def wire(self, direction: Direction) -> Wire:
        """Its wire, with the space of its label."""
        texts = [measure(line, VALUE_SIZE) for line in (self.above, self.below)]
        if not max(texts):
            return Wire(self, self.tail, self.head)
        if direction == "right":
            return Wire(self, self.tail, self.head, max(texts) + 2 * PAD, 2 * ROW)
        return Wire(self, self.tail, self.head, 2 * (max(texts) + PAD + 1), ROW + 2 * PAD)


def draw(
    explanation: Explanation,
    shown: Contents,
    direction: Direction,
    engine: Engine | None,
    branches: Branches = "shares",
) -> Scene:
    """Lay out and draw."""
    edges = _edges(explanation, shown, branches)
    boxes: dict[Any, Box] = {}
    for node in shown.nodes:
        boxes[node] = _name_box(node, node.label) if node.kind == "leaf" else operator_box(node)
    for output in shown.outputs:
        boxes[output] = _name_box(output, output.label)
    used = {end for edge in edges for end in (edge.tail, edge.head)}
    for end in used - set(boxes):
        boxes[end] = Box(end, DOT, DOT)
    ordered = [boxes[end] for end in _in_order(edges, boxes)]
    wires = [edge.wire(direction) for edge in edges]
    placed = layout(ordered, wires, direction, engine)
    scene = Scene(explanation.graph.name, 0, 0)
    shapes = {box.key: _add_box(scene, explanation, box, placed) for box in ordered}
    for edge in edges:
        points = attached(placed.routes[edge], shapes[edge.tail], shapes[edge.head])
        is_branch = isinstance(edge.head, _Branch)
        scene.curves.append(Curve(points, "wire", not is_branch, edge.title))
        if edge in placed.labels:
            _add_label(scene, edge, placed, direction)
    return on_page(scene)


class _Branch:
    """The point where the edge of a value with several uses divides."""

    def __init__(self, variable: Variable) -> None:
        self.variable = variable


def _edges(explanation: Explanation, shown: Contents, branches: Branches) -> list[_Edge]:
    edges: list[_Edge] = []
    for variable in shown.variables:
        maker, name = shown.maker[variable], shown.names.get(variable, ())
        value = value_line(explanation, variable)
        if name and maker.kind != "leaf" and value:
            value = (*name, Run(" = "), *value)
        total = total_line(explanation, variable)
        title = describe_variable(explanation, variable, name)
        ends: list[tuple[float, Any, Line]] = [
            (use.place, use.head, gradient_line(use.share)) for use in shown.uses.get(variable, ())
        ]
        for output in shown.outputs:
            if output.variable is variable:
                ends.append((math.inf, output, gradient_line(output.seed)))
        if len(ends) == 1 or branches == "total":
            edges += [_Edge(maker, head, value, total, title, place) for place, head, _ in ends]
            continue
        branch = _Branch(variable)
        edges.append(_Edge(maker, branch, value, total, title, ends[0][0]))
        edges += [_Edge(branch, head, (), share, title, place) for place, head, share in ends]
    return sorted(edges, key=lambda edge: edge.place)


def _in_order(edges: list[_Edge], boxes: dict[Any, Box]) -> list[Any]:
    """The ends of the edges as they come, then boxes without an edge."""
    ends = dict.fromkeys(end for edge in edges for end in (edge.tail, edge.head))
    return list(dict.fromkeys((*ends, *boxes)))


def _name_box(key: Any, name: Line) -> Box:
    return Box(key, max(10.0, measure(name, NAME_SIZE) + 8), 24.0)


def _add_box(scene: Scene, explanation: Explanation, box: Box, placed: Placed) -> Shape:
    x, y = placed.centers[box.key]
    if isinstance(box.key, _Branch):
        shape = Shape("ellipse", x, y, DOT, DOT, DOT / 2, "branch")
        scene.shapes.append(shape)
        return shape
    if isinstance(box.key, Node) and box.key.kind != "leaf":
        shape = operator_shape(box.key, x, y, describe_node(box.key))
        scene.shapes.append(shape)
        scene.texts.append(Text(x, y, box.key.label, SIGN_SIZE, "ink", shape.title))
        return shape
    assert isinstance(box.key, Node | Output)
    label, variable = box.key.label, box.key.variable
    title = describe_variable(explanation, variable, label) if variable else ""
    if label:
        scene.texts.append(Text(x, y, label, NAME_SIZE, "ink", title))
    return Shape("rectangle", x, y, box.width, box.height, 0.0, "name", title)


def _add_label(scene: Scene, edge: _Edge, placed: Placed, direction: Direction) -> None:
    x, y = placed.labels[edge]
    for line, role, side in ((edge.above, "value", -1), (edge.below, "gradient", 1)):
        if not line:
            continue
        away = (ROW / 2 + 1) if direction == "right" else PAD + measure(line, VALUE_SIZE) / 2
        at = (x, y + side * away) if direction == "right" else (x + side * away, y)
        scene.texts.append(Text(*at, line, VALUE_SIZE, role, edge.title))
