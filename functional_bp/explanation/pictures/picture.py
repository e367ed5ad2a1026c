"""A still picture of an explanation: drawn in the style of a textbook, saved in a file's format.

In the style of the CS231n lectures operators are circles and leaves names at the margin. The
forward value stands above each edge, the gradient below it; where a value has several uses the edge
branches: before the branch stands the gradient, behind it what each use contributes to it.

In the style of *Dive into Deep Learning* (Fig. 5.3.1) squares are variables and circles operators.
The forward value stands above each variable, the gradient below it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

from functional_bp.errors import BackpropError, compose
from functional_bp.explanation.numbers import format_value
from functional_bp.explanation.pictures.contents import (
    Bundle,
    Contents,
    Node,
    Returned,
    bundled,
    contents,
    norm_line,
)
from functional_bp.explanation.pictures.dimension_colours import DimensionColours
from functional_bp.explanation.pictures.layered import (
    Direction,
    Point,
    Vertex,
    Wire,
    layout,
)
from functional_bp.explanation.pictures.scene import (
    Curve,
    Scene,
    Shape,
    Text,
    ThemeName,
    attached,
    on_page,
    svg_text,
    write_raster,
)
from functional_bp.explanation.pictures.symbols import Line, TextRun, measure, plain
from functional_bp.explanation.record import EvaluatedGraph
from functional_bp.graph.graph import Equation, Variable, format_bytes, short_place
from functional_bp.layouts.dimensions import Dimensions

Style = Literal["cs231n", "d2l"]
Branches = Literal["shares", "total"]
MOST_DRAWN = 400  # operators and closed scopes; more is no picture that anybody reads
MOST_AT_A_GLANCE = 60  # of these, in a notebook


class PictureOptions(TypedDict, total=False):
    """These say how a picture is drawn; see ``Explanation.svg``."""

    direction: Direction
    depth: int | None
    gates: Collection[str]
    branches: Branches
    dimensions: Dimensions | None


class PictureError(BackpropError, ValueError):
    """A picture cannot be drawn as it was asked for."""


def scene_of(
    explanation: EvaluatedGraph,
    style: Style = "cs231n",
    *,
    direction: Direction = "right",
    depth: int | None = None,
    gates: Collection[str] = (),
    branches: Branches = "shares",
    dimensions: Dimensions | None = None,
) -> Scene:
    """Draw all marks of the picture; see ``Explanation.svg``."""
    check_word("style", style, ("cs231n", "d2l"))
    check_word("direction", direction, ("right", "down"))
    check_word("branches", branches, ("shares", "total"))
    shown = bundled(contents(explanation, depth, gates))
    _check_size(explanation, shown)
    colours = None
    if dimensions is not None:
        colours = DimensionColours(dimensions, shown.variables)
        if not colours and any(size > 1 for v in shown.variables for size in v.shape):
            raise PictureError(
                f"these are not the dimensions of this graph of {explanation.graph.name}",
                got=repr(dimensions)[:100],
                do="take explanation.dimensions, renamed as you like: .rename({'W1.1': 'hidden'})",
            )
    if style == "d2l":
        return draw_d2l(explanation, shown, direction, colours)
    return draw_cs231n(explanation, shown, direction, branches, colours)


def svg_of(
    explanation: EvaluatedGraph, style: Style, theme: ThemeName, **options: Unpack[PictureOptions]
) -> str:
    """Write the picture as SVG; see ``Explanation.svg``."""
    check_word("theme", theme, ("light", "dark", "auto"))
    return svg_text(scene_of(explanation, style, **options), theme)


def glance(explanation: EvaluatedGraph) -> str | None:
    """Draw for a notebook, as deep as it can be taken in; None where it is too large."""
    deepest = max((e.scope.count("/") + 1 for e in explanation.graph if e.scope), default=0)
    for depth in (None, *range(deepest - 1, -1, -1)):
        if _size(contents(explanation, depth)) <= MOST_AT_A_GLANCE:
            return svg_of(explanation, "cs231n", "auto", depth=depth)
    return None


def _size(shown: Contents) -> int:
    return sum(node.kind != "leaf" for node in shown.nodes)


def _check_size(explanation: EvaluatedGraph, shown: Contents) -> None:
    if _size(shown) > MOST_DRAWN:
        raise PictureError(
            compose(
                f"{explanation.graph.name} is too large for a still picture",
                got=f"{_size(shown)} operations to draw",
                expected=f"at most {MOST_DRAWN}",
                do="close scopes ({depth}, 1, …; jax.named_scope and jit make them), or save an "
                ".html file, in which they open",
                depth="depth=0",
            )
        )


def check_word(what: str, got: object, expected: tuple[str, ...]) -> None:
    """Refuse a word that is none of the expected ones."""
    if got not in expected:
        raise PictureError(
            compose(
                f"there is no {what} {got!r} of a picture",
                got=repr(got),
                expected=" or ".join(map(repr, expected)),
            )
        )


STILL = (".svg", ".png", ".pdf")


def save(
    explanation: EvaluatedGraph,
    path: str | os.PathLike[str],
    written: Mapping[str, Callable[[], str]],
    style: Style = "cs231n",
    theme: ThemeName = "light",
    **options: Unpack[PictureOptions],
) -> None:
    """Write an explanation; see ``Explanation.save``. ``written`` has the texts, by suffix."""
    path = Path(path)
    suffix = path.suffix.lower()
    check_word("theme", theme, ("light", "dark", "auto"))
    if suffix in written:
        path.write_text(written[suffix](), encoding="utf-8")
        return
    if suffix not in STILL:
        raise PictureError(
            compose(
                f"{path.name} names no format that an explanation can be saved in",
                got=f"the suffix {suffix!r}",
                expected=", ".join((*STILL, *written)),
            )
        )
    scene = scene_of(explanation, style, **options)
    if suffix == ".svg":
        path.write_text(svg_text(scene, theme), encoding="utf-8")
    else:
        write_raster(scene, path, suffix[1:], theme)


# What both styles draw alike.

NAME_SIZE, SIGN_SIZE, VALUE_SIZE = 14.0, 13.0, 10.5
CS231N_ROW = 14.0  # of a value above an edge
PAD = 4.0  # text from the ends of its edge, or from the edge beside it
CIRCLE = 34.0
PILL_HEIGHT = 28.0


def value_line(explanation: EvaluatedGraph, variable: Variable) -> Line:
    """Return the forward value in green."""
    if isinstance(variable, Bundle):
        return norm_line([explanation.values[v] for v in variable.members])
    held = variable.value if variable.kind == "literal" else explanation.values.get(variable)
    return () if held is None else (TextRun(format_value(held)),)


def gradient_line(cotangent: Any) -> Line:
    """Return the cotangent in red; nothing where there is none."""
    return () if cotangent is None else (TextRun(format_value(cotangent)),)


def total_line(explanation: EvaluatedGraph, variable: Variable) -> Line:
    """Return the cotangent of a variable, all uses together, in red."""
    if isinstance(variable, Bundle):
        return norm_line([explanation.bars[v] for v in variable.members if v in explanation.bars])
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


@dataclass(frozen=True, eq=False)
class _Branch:
    """The point where the edge of a value with several uses divides."""

    variable: Variable


@dataclass(frozen=True, eq=False)
class _Edge:
    """One edge: what it joins, what stands above and below it, its place among all edges."""

    carried: Variable
    tail: Node | Variable | _Branch
    head: Node | Variable | _Branch | Returned
    lines: tuple[Line, Line] = ((), ())
    title: str = ""
    place: float = 0

    def wire(self, direction: Direction, beside: float) -> Wire:
        """Its wire, with the space of its label, away from what is beside the wire."""
        text = max(measure(line, VALUE_SIZE) for line in self.lines)
        size = (
            (0, 0) if not text
            else (text + 2 * PAD, 2 * (CS231N_ROW + beside)) if direction == "right"
            else (2 * (text + PAD + beside + 1), CS231N_ROW + 2 * PAD)
        )  # fmt: skip
        return Wire(self, self.tail, self.head, *size)


def _drawn(
    explanation: EvaluatedGraph,
    boxes: Mapping[Any, Vertex],
    edges: Sequence[_Edge],
    add: Callable[[Scene, Any, Point], Shape],
    direction: Direction,
    colours: DimensionColours | None,
) -> Scene:
    """The scene of boxes, each of which ``add`` draws at its place, and of edges between them."""
    beside = {edge: colours.beside(edge.carried) if colours else 0.0 for edge in edges}
    wires = [edge.wire(direction, beside[edge]) for edge in edges]
    placed = layout(boxes.values(), wires, direction)
    scene = Scene(explanation.graph.name, 0, 0)
    shapes = {end: add(scene, end, placed.centers[end]) for end in boxes}
    for edge in edges:
        points = attached(placed.routes[edge], shapes[edge.tail], shapes[edge.head])
        is_arrow = not isinstance(edge.head, _Branch)
        if colours:
            scene.curves += colours.stripes(points, edge.carried, is_arrow)
        scene.curves.append(Curve(points, "wire", is_arrow, edge.title))
        if edge in placed.labels:
            at, above, aside = placed.labels[edge], CS231N_ROW / 2 + 1, beside[edge]
            _add_numbers(scene, at, edge.lines, above + aside, PAD + aside, direction, edge.title)
    if colours:
        colours.add_legend(scene)
    return on_page(scene)


def _add_numbers(
    scene: Scene,
    at: Point,
    lines: tuple[Line, Line],
    above: float,
    aside: float,
    direction: Direction,
    title: str,
) -> None:
    """A value above a place and a gradient below it; where wires run down, at its two sides.

    ``above`` is how far from it the middle of a line is, ``aside`` how far the end of a line.
    """
    x, y = at
    for line, role, side in zip(lines, ("value", "gradient"), (-1, 1)):
        if line:
            away = aside + measure(line, VALUE_SIZE) / 2
            where = (x, y + side * above) if direction == "right" else (x + side * away, y)
            scene.texts.append(Text(*where, line, VALUE_SIZE, role, title))


def _add_operator(scene: Scene, node: Node, at: Point) -> Shape:
    shape = operator_shape(node, *at, describe_node(node))
    scene.shapes.append(shape)
    scene.texts.append(Text(*at, node.label, SIGN_SIZE, "ink", shape.title))
    return shape


# The style of the CS231n lectures.

DOT = 6.0


def draw_cs231n(
    explanation: EvaluatedGraph,
    shown: Contents,
    direction: Direction,
    branches: Branches,
    colours: DimensionColours | None = None,
) -> Scene:
    """Lay out and draw in the style of the CS231n lectures."""
    edges = _edges(explanation, shown, branches)
    used = (end for edge in edges for end in (edge.tail, edge.head))
    ends = dict.fromkeys((*used, *shown.nodes, *shown.outputs))  # as they come, the rest behind
    boxes = {end: _box(end) for end in ends}

    def add(scene: Scene, end: Any, at: Point) -> Shape:
        if isinstance(end, _Branch):
            scene.shapes.append(Shape("ellipse", *at, DOT, DOT, DOT / 2, "branch"))
            return scene.shapes[-1]
        if isinstance(end, Node) and end.kind != "leaf":
            return _add_operator(scene, end, at)
        title = describe_variable(explanation, end.variable, end.label) if end.variable else ""
        if end.label:
            scene.texts.append(Text(*at, end.label, NAME_SIZE, "ink", title))
        return Shape("rectangle", *at, boxes[end].width, boxes[end].height, 0.0, "name", title)

    return _drawn(explanation, boxes, edges, add, direction, colours)


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
            edges += [
                _Edge(variable, maker, head, (value, total), title, place)
                for place, head, _ in ends
            ]
            continue
        branch = _Branch(variable)
        edges.append(_Edge(variable, maker, branch, (value, total), title, ends[0][0]))
        edges += [
            _Edge(variable, branch, head, ((), share), title, place) for place, head, share in ends
        ]
    return sorted(edges, key=lambda edge: edge.place)


def _box(end: Any) -> Vertex:
    """The space of an end of edges."""
    if isinstance(end, _Branch):
        return Vertex(end, DOT, DOT)
    if isinstance(end, Node) and end.kind != "leaf":
        return operator_box(end)
    return Vertex(end, max(10.0, measure(end.label, NAME_SIZE) + 8), 24.0)


# The style of Dive into Deep Learning.

SQUARE, SMALL_SQUARE = 32.0, 16.0  # the sides, with a name in it and without
D2L_ROW = 15.0  # of a value above or a gradient below
APART = 5.0  # text from a border, beside it


def draw_d2l(
    explanation: EvaluatedGraph,
    shown: Contents,
    direction: Direction,
    colours: DimensionColours | None = None,
) -> Scene:
    """Lay out and draw in the style of Dive into Deep Learning."""
    lines = {v: (value_line(explanation, v), total_line(explanation, v)) for v in shown.variables}
    names = {v: node.label for v, node in shown.maker.items() if node.kind == "leaf"} | shown.names
    for output in shown.outputs:
        names.setdefault(output.variable, output.label)
    boxes: dict[Any, Vertex] = {n: operator_box(n) for n in shown.nodes if n.kind != "leaf"}
    boxes |= {v: _variable_box(v, names.get(v, ()), lines[v], direction) for v in lines}
    made = [_Edge(v, shown.maker[v], v) for v in lines if shown.maker[v].kind != "leaf"]
    used = [_Edge(use.variable, use.variable, use.head) for use in shown.uses_in_order]

    def add(scene: Scene, end: Any, at: Point) -> Shape:
        if isinstance(end, Node):
            return _add_operator(scene, end, at)
        name = names.get(end, ())
        width, height = _side(name)
        title = describe_variable(explanation, end, name)
        shape = Shape("rectangle", *at, width, height, 2.0, "variable", title)
        scene.shapes.append(shape)
        if name:
            scene.texts.append(Text(*at, name, NAME_SIZE, "ink", title))
        above, aside = height / 2 + D2L_ROW / 2, width / 2 + APART
        _add_numbers(scene, at, lines[end], above, aside, direction, title)
        return shape

    return _drawn(explanation, boxes, [*made, *used], add, direction, colours)


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
