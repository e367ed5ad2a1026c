"""The style of *Dive into Deep Learning*, Fig. 5.3.1: squares are variables, circles operators.

The forward value stands above each variable, the gradient below it.
"""

from __future__ import annotations

from typing import Any

from functional_bp.explain.explanation import Explanation
from functional_bp.explain.pictures.boxes import Box, Placed, Wire
from functional_bp.explain.pictures.contents import Contents, Node
from functional_bp.explain.pictures.layout import Direction, Engine, layout
from functional_bp.explain.pictures.marks import (
    NAME_SIZE,
    SIGN_SIZE,
    VALUE_SIZE,
    describe_node,
    describe_variable,
    operator_box,
    operator_shape,
    total_line,
    value_line,
)
from functional_bp.explain.pictures.scene import Curve, Scene, Shape, Text, attached, on_page
from functional_bp.explain.pictures.typeset import Line, measure
from functional_bp.graph.parts import Variable

SQUARE, SMALL_SQUARE = 32.0, 16.0  # the sides, with a name in it and without
ROW = 15.0  # of a value above or a gradient below
APART = 5.0  # text from a border, beside it


def draw(
    explanation: Explanation, shown: Contents, direction: Direction, engine: Engine | None
) -> Scene:
    """Lay out and draw."""
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
    placed = layout(boxes, wires, direction, engine)
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
) -> Box:
    width, height = _side(name)
    text = max(measure(line, VALUE_SIZE) for line in lines)
    core = 0.8 * min(width, height)
    if direction == "right":
        return Box(variable, max(width, text + 4), height + 2 * ROW, core)
    return Box(variable, width + 2 * (text + APART + 2), height, core)


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
            at = (x, y + side * (height / 2 + ROW / 2))
        else:
            away = width / 2 + APART + measure(line, VALUE_SIZE) / 2
            at = (x + side * away, y)
        scene.texts.append(Text(*at, line, VALUE_SIZE, role, title))
    return shape
