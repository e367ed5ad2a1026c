"""What both styles draw alike: operators and closed scopes, and what hovering over a mark tells."""

from __future__ import annotations

import os
from typing import Any

from functional_bp.explain.explanation import Explanation
from functional_bp.explain.numbers import format_value
from functional_bp.explain.pictures.boxes import Box
from functional_bp.explain.pictures.bundles import Bundle, norm_of
from functional_bp.explain.pictures.contents import Node
from functional_bp.explain.pictures.scene import Shape
from functional_bp.explain.pictures.typeset import Line, Run, measure, plain
from functional_bp.graph.parts import Equation, Variable
from functional_bp.graph.text import format_bytes

NAME_SIZE, SIGN_SIZE, VALUE_SIZE = 14.0, 13.0, 10.5
CIRCLE = 34.0
PILL_HEIGHT = 28.0


def value_line(explanation: Explanation, variable: Variable) -> Line:
    """The forward value in green."""
    if isinstance(variable, Bundle):
        norm = norm_of([explanation.values[v] for v in variable.members])
        return (Run(norm),) if norm else ()
    held = variable.value if variable.kind == "literal" else explanation.values.get(variable)
    return () if held is None else (Run(format_value(held)),)


def gradient_line(cotangent: Any) -> Line:
    """The cotangent in red; nothing where there is none."""
    return () if cotangent is None else (Run(format_value(cotangent)),)


def total_line(explanation: Explanation, variable: Variable) -> Line:
    """The cotangent of a variable, all uses together, in red."""
    if isinstance(variable, Bundle):
        bars = [explanation.bars[v] for v in variable.members if v in explanation.bars]
        norm = norm_of(bars)
        return (Run(norm),) if norm else ()
    return gradient_line(explanation.bars.get(variable))


def operator_box(node: Node) -> Box:
    """The space of an operator or a closed scope."""
    shape = operator_shape(node, 0.0, 0.0, "")
    return Box(node, shape.width, shape.height)


def operator_shape(node: Node, x: float, y: float, title: str) -> Shape:
    """A circle, longer where the sign is long; a rectangle for a closed scope."""
    width = measure(node.label, SIGN_SIZE)
    if node.kind == "closed":
        return Shape("rectangle", x, y, round(width + 24), 40.0, 6.0, "closed", title)
    if width <= CIRCLE - 4:
        return Shape("ellipse", x, y, CIRCLE, CIRCLE, CIRCLE / 2, "operator", title)
    return Shape(
        "rectangle", x, y, round(width + 18), PILL_HEIGHT, PILL_HEIGHT / 2, "operator", title
    )


def describe_node(node: Node) -> str:
    """What hovering over an operator tells: its equation and where it was written."""
    if node.kind == "closed" or len(node.equations) != 1:
        return f"{plain(node.label)}: {len(node.equations)} equations"
    equation = node.equations[0]
    return "\n".join([_equation(equation), *_place(equation)])


def describe_variable(explanation: Explanation, variable: Variable, name: Line) -> str:
    """What hovering over a variable tells: type, value, gradient, bytes kept."""
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


def _place(equation: Equation) -> list[str]:
    if equation.source is None:
        return []
    return [f"{os.path.basename(equation.source[0])}:{equation.source[1]}"]
