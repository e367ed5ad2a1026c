"""A picture is drawn in the style of the CS231n lectures, or of *Dive into Deep Learning*.

In the lectures' style operators are circles and leaves names at the margin. The forward value
stands above each edge, the gradient below it; where a value has several uses the edge branches:
before the branch stands the gradient, behind it what each use contributes to it.

In the book's style (Fig. 5.3.1) squares are variables and circles operators. The forward value
stands above each variable, the gradient below it.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from functional_bp.explanation.numbers import format_value
from functional_bp.explanation.pictures.contents import Bundle, Contents, Node, Returned, norm_of
from functional_bp.explanation.pictures.layered import Direction, Placed, Vertex, Wire, layout
from functional_bp.explanation.pictures.scene import Curve, Scene, Shape, Text, attached, on_page
from functional_bp.explanation.pictures.symbols import Line, TextRun, measure, plain
from functional_bp.explanation.record import EvaluatedGraph
from functional_bp.graph.graph import Equation, Variable, format_bytes, short_place

# What both styles draw alike.

NAME_SIZE, SIGN_SIZE, VALUE_SIZE = 14.0, 13.0, 10.5
CIRCLE = 34.0
PILL_HEIGHT = 28.0


def value_line(explanation: EvaluatedGraph, variable: Variable) -> Line:
    """Return the forward value in green."""
    if isinstance(variable, Bundle):
        norm = norm_of([explanation.values[v] for v in variable.members])
        return (TextRun(norm),) if norm else ()
    held = variable.value if variable.kind == "literal" else explanation.values.get(variable)
    return () if held is None else (TextRun(format_value(held)),)


def gradient_line(cotangent: Any) -> Line:
    """Return the cotangent in red; nothing where there is none."""
    return () if cotangent is None else (TextRun(format_value(cotangent)),)


def total_line(explanation: EvaluatedGraph, variable: Variable) -> Line:
    """Return the cotangent of a variable, all uses together, in red."""
    if isinstance(variable, Bundle):
        bars = [explanation.bars[v] for v in variable.members if v in explanation.bars]
        norm = norm_of(bars)
        return (TextRun(norm),) if norm else ()
    return gradient_line(explanation.bars.get(variable))


def operator_box(node: Node) -> Vertex:
    """Return the space of an operator or a closed scope."""
    shape = operator_shape(node, 0.0, 0.0, "")
    return Vertex(node, shape.width, shape.height)


def operator_shape(node: Node, x: float, y: float, title: str) -> Shape:
    """Return a circle, longer where the sign is long; a rectangle for a closed scope."""
    width = measure(node.label, SIGN_SIZE)
    if node.kind == "closed":
        return Shape("rectangle", x, y, round(width + 24), 40.0, 6.0, "closed", title)
    if width <= CIRCLE - 4:
        return Shape("ellipse", x, y, CIRCLE, CIRCLE, CIRCLE / 2, "operator", title)
    return Shape(
        "rectangle", x, y, round(width + 18), PILL_HEIGHT, PILL_HEIGHT / 2, "operator", title
    )


def describe_node(node: Node) -> str:
    """Say what hovering over an operator tells: its equation and where it was written."""
    if node.kind == "closed" or len(node.equations) != 1:
        return f"{plain(node.label)}: {len(node.equations)} equations"
    equation = node.equations[0]
    return "\n".join(filter(None, (_equation(equation), short_place(equation.source))))


def describe_variable(explanation: EvaluatedGraph, variable: Variable, name: Line) -> str:
    """Say what hovering over a variable tells: type, value, gradient, bytes kept."""
    if isinstance(variable, Bundle):
        return "\n".join(f"{v.name}: {v.type}" for v in variable.members)
    lines = [f"{plain(name) or variable.name}: {variable.type}"]
    value = value_line(explanation, variable)
    if value:
        lines.append(f"value {value[0].text}")
    if variable in explanation.bars:
        lines.append(f"gradient {format_value(explanation.bars[variable])}")
    kept = explanation.kept_bytes.get(variable)
    if kept:
        lines.append(f"kept for the reverse sweep: {format_bytes(kept)}")
    return "\n".join(lines)


def _equation(equation: Equation) -> str:
    outs = ", ".join(f"{v.name}: {v.type}" for v in equation.outputs)
    label = f"[{equation.label}]" if equation.label else ""
    return f"{outs} = {equation.operation}{label}({', '.join(v.name for v in equation.inputs)})"


# The style of the CS231n lectures.

Branches = Literal["shares", "total"]
DOT = 6.0
CS231N_ROW = 14.0  # of a value above an edge
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
            return Wire(self, self.tail, self.head, max(texts) + 2 * PAD, 2 * CS231N_ROW)
        return Wire(self, self.tail, self.head, 2 * (max(texts) + PAD + 1), CS231N_ROW + 2 * PAD)


def draw_cs231n(
    explanation: EvaluatedGraph,
    shown: Contents,
    direction: Direction,
    branches: Branches = "shares",
) -> Scene:
    """Lay out and draw in the style of the CS231n lectures."""
    edges = _edges(explanation, shown, branches)
    boxes: dict[Any, Vertex] = {}
    for node in shown.nodes:
        boxes[node] = _name_box(node, node.label) if node.kind == "leaf" else operator_box(node)
    for output in shown.outputs:
        boxes[output] = _name_box(output, output.label)
    used = {end for edge in edges for end in (edge.tail, edge.head)}
    for end in used - set(boxes):
        boxes[end] = Vertex(end, DOT, DOT)
    ordered = [boxes[end] for end in _in_order(edges, boxes)]
    wires = [edge.wire(direction) for edge in edges]
    placed = layout(ordered, wires, direction)
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


def _edges(explanation: EvaluatedGraph, shown: Contents, branches: Branches) -> list[_Edge]:
    edges: list[_Edge] = []
    for variable in shown.variables:
        maker, name = shown.maker[variable], shown.names.get(variable, ())
        value = value_line(explanation, variable)
        if name and maker.kind != "leaf" and value:
            value = (*name, TextRun(" = "), *value)
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


def _in_order(edges: list[_Edge], boxes: dict[Any, Vertex]) -> list[Any]:
    """The ends of the edges as they come, then boxes without an edge."""
    ends = dict.fromkeys(end for edge in edges for end in (edge.tail, edge.head))
    return list(dict.fromkeys((*ends, *boxes)))


def _name_box(key: Any, name: Line) -> Vertex:
    return Vertex(key, max(10.0, measure(name, NAME_SIZE) + 8), 24.0)


def _add_box(scene: Scene, explanation: EvaluatedGraph, box: Vertex, placed: Placed) -> Shape:
    x, y = placed.centers[box.key]
    if isinstance(box.key, _Branch):
        shape = Shape("ellipse", x, y, DOT, DOT, DOT / 2, "branch")
        scene.shapes.append(shape)
        return shape
    if isinstance(box.key, Node) and box.key.kind != "leaf":
        return _add_operator(scene, box.key, placed)
    assert isinstance(box.key, Node | Returned)
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
        away = (CS231N_ROW / 2 + 1) if direction == "right" else PAD + measure(line, VALUE_SIZE) / 2
        at = (x, y + side * away) if direction == "right" else (x + side * away, y)
        scene.texts.append(Text(*at, line, VALUE_SIZE, role, edge.title))


# The style of Dive into Deep Learning.

SQUARE, SMALL_SQUARE = 32.0, 16.0  # the sides, with a name in it and without
D2L_ROW = 15.0  # of a value above or a gradient below
APART = 5.0  # text from a border, beside it


def draw_d2l(explanation: EvaluatedGraph, shown: Contents, direction: Direction) -> Scene:
    """Lay out and draw in the style of Dive into Deep Learning."""
    lines = {v: (value_line(explanation, v), total_line(explanation, v)) for v in shown.variables}
    names = {v: node.label for v, node in shown.maker.items() if node.kind == "leaf"} | shown.names
    for output in shown.outputs:
        names.setdefault(output.variable, output.label)
    boxes = [operator_box(n) for n in shown.nodes if n.kind != "leaf"]
    wires: list[Wire] = []
    for variable in shown.variables:
        maker = shown.maker[variable]
        boxes.append(_variable_box(variable, names.get(variable, ()), lines[variable],
                                   direction))  # fmt: skip
        if maker.kind != "leaf":
            wires.append(Wire((variable, "made"), maker, variable))
    wires += [Wire(use, use.variable, use.head) for use in shown.uses_in_order]
    placed = layout(boxes, wires, direction)
    scene = Scene(explanation.graph.name, 0, 0)
    shapes: dict[Any, Shape] = {}
    for node in shown.nodes:
        if node.kind != "leaf":
            shapes[node] = _add_operator(scene, node, placed)
    for variable in shown.variables:
        name = names.get(variable, ())
        title = describe_variable(explanation, variable, name)
        shapes[variable] = _add_variable(scene, variable, name, lines[variable], placed,
                                         direction, title)  # fmt: skip
    for wire in wires:
        points = attached(placed.routes[wire.key], shapes[wire.tail], shapes[wire.head])
        scene.curves.append(Curve(points, "wire"))
    return on_page(scene)


def _side(name: Line) -> tuple[float, float]:
    """Width and height of the square of a variable."""
    if not name:
        return SMALL_SQUARE, SMALL_SQUARE
    return max(SQUARE, round(measure(name, NAME_SIZE) + 14)), SQUARE


def _variable_box(
    variable: Variable, name: Line, lines: tuple[Line, Line], direction: Direction
) -> Vertex:
    width, height = _side(name)
    text = max(measure(line, VALUE_SIZE) for line in lines)
    core = 0.8 * min(width, height)
    if direction == "right":
        return Vertex(variable, max(width, text + 4), height + 2 * D2L_ROW, core)
    return Vertex(variable, width + 2 * (text + APART + 2), height, core)


def _add_operator(scene: Scene, node: Node, placed: Placed) -> Shape:
    x, y = placed.centers[node]
    shape = operator_shape(node, x, y, describe_node(node))
    scene.shapes.append(shape)
    scene.texts.append(Text(x, y, node.label, SIGN_SIZE, "ink", shape.title))
    return shape


def _add_variable(
    scene: Scene,
    variable: Variable,
    name: Line,
    lines: tuple[Line, Line],
    placed: Placed,
    direction: Direction,
    title: str,
) -> Shape:
    x, y = placed.centers[variable]
    width, height = _side(name)
    shape = Shape("rectangle", x, y, width, height, 2.0, "variable", title)
    scene.shapes.append(shape)
    if name:
        scene.texts.append(Text(x, y, name, NAME_SIZE, "ink", title))
    for line, role, side in zip(lines, ("value", "gradient"), (-1, 1)):
        if not line:
            continue
        if direction == "right":
            at = (x, y + side * (height / 2 + D2L_ROW / 2))
        else:
            away = width / 2 + APART + measure(line, VALUE_SIZE) / 2
            at = (x + side * away, y)
        scene.texts.append(Text(*at, line, VALUE_SIZE, role, title))
    return shape
