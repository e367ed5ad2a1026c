"""A picture as marks on a page: shapes, curves and lines of text, whatever writes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from functional_bp.explain.pictures.boxes import Point
from functional_bp.explain.pictures.typeset import Line, measure

MARGIN = 14.0
ARROW_LENGTH, ARROW_WIDTH = 7.0, 5.2
SHORT_GAP = 3.0  # between the space of a shape and the shape itself
LINE_HEIGHT = 1.2  # of the size of a text

Form = Literal["rectangle", "ellipse"]


class Shape(NamedTuple):
    """A rectangle with rounded corners, or an ellipse, around (x, y)."""

    form: Form
    x: float
    y: float
    width: float
    height: float
    radius: float
    role: str
    title: str = ""


class Curve(NamedTuple):
    """A Bézier chain of 1 + 3n points, with an arrowhead at its end or without."""

    points: tuple[Point, ...]
    role: str
    arrow: bool = True
    title: str = ""


class Text(NamedTuple):
    """A line of text with its middle at (x, y)."""

    x: float
    y: float
    line: Line
    size: float
    role: str
    title: str = ""

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the space that it needs at most."""
        width, height = measure(self.line, self.size), self.size * LINE_HEIGHT
        return (self.x - width / 2, self.y - height / 2, self.x + width / 2, self.y + height / 2)


@dataclass
class Scene:
    """All marks of a picture, from back to front, and the size of the page in points."""

    title: str
    width: float
    height: float
    curves: list[Curve] = field(default_factory=list)
    shapes: list[Shape] = field(default_factory=list)
    texts: list[Text] = field(default_factory=list)


def contains(shape: Shape, point: Point) -> bool:
    """Whether a point is inside a shape."""
    x, y = abs(point[0] - shape.x), abs(point[1] - shape.y)
    half_width, half_height = shape.width / 2, shape.height / 2
    if shape.form == "ellipse":
        return (x / half_width) ** 2 + (y / half_height) ** 2 <= 1
    if x > half_width or y > half_height:
        return False
    corner_x, corner_y = x - (half_width - shape.radius), y - (half_height - shape.radius)
    return corner_x <= 0 or corner_y <= 0 or math.hypot(corner_x, corner_y) <= shape.radius


def attached(route: Sequence[Point], tail: Shape, head: Shape) -> tuple[Point, ...]:
    """The route, prolonged from the space that was reserved for its ends to what is drawn there."""
    points = [*route]
    for inner, outer, shape in ((1, 0, tail), (-2, -1, head)):
        before, at = points[inner], points[outer]
        end = _prolonged(before, at, shape)
        gap = math.dist(end, at)
        if gap < SHORT_GAP:  # the last curve is moved
            points[inner] = (before[0] + end[0] - at[0], before[1] + end[1] - at[1])
            points[outer] = end
            continue
        piece = [end, _between(end, at, 1 / 3), _between(end, at, 2 / 3)]
        points = [*piece, *points] if outer == 0 else [*points, *piece[::-1]]
    return tuple(points)


def _prolonged(before: Point, at: Point, shape: Shape) -> Point:
    """Where the way on from ``at`` meets the shape; straight towards its middle if it does not."""
    away = math.dist(at, (shape.x, shape.y))
    length = math.dist(before, at)
    ways = [((at[0] - before[0]) / length, (at[1] - before[1]) / length)] if length > 1e-6 else []
    if away > 1e-6:
        ways.append(((shape.x - at[0]) / away, (shape.y - at[1]) / away))
    for dx, dy in ways:
        steps = [i * 0.5 for i in range(int(away / 0.5) + 2)]
        inside = next((s for s in steps if contains(shape, (at[0] + dx * s, at[1] + dy * s))), None)
        if inside is not None:
            outside = max(0.0, inside - 0.5)
            while inside - outside > 0.005:
                middle = (outside + inside) / 2
                if contains(shape, (at[0] + dx * middle, at[1] + dy * middle)):
                    inside = middle
                else:
                    outside = middle
            return (at[0] + dx * outside, at[1] + dy * outside)
    return at


def arrowhead(points: Sequence[Point]) -> tuple[Point, Point, Point]:
    """The tip of the arrow at the end of a curve and its two other corners."""
    tip = points[-1]
    before = next((p for p in reversed(points[:-1]) if math.dist(p, tip) > 0.5), points[0])
    length = math.dist(before, tip) or 1.0
    dx, dy = (tip[0] - before[0]) / length, (tip[1] - before[1]) / length
    base = (tip[0] - dx * ARROW_LENGTH, tip[1] - dy * ARROW_LENGTH)
    half = ARROW_WIDTH / 2
    return (
        tip,
        (base[0] - dy * half, base[1] + dx * half),
        (base[0] + dy * half, base[1] - dx * half),
    )


def shortened(points: Sequence[Point]) -> list[Point]:
    """The curve without the last piece, which its arrowhead covers."""
    tip, left, right = arrowhead(points)
    base = ((left[0] + right[0]) / 2, (left[1] + right[1]) / 2)
    end = _between(base, tip, 0.2)
    result = list(points)
    control = result[-2]
    if math.dist(control, tip) < ARROW_LENGTH:
        result[-2] = _between(end, result[-3], 0.1)
    result[-1] = end
    return result


def _between(start: Point, end: Point, part: float) -> Point:
    return (start[0] + (end[0] - start[0]) * part, start[1] + (end[1] - start[1]) * part)


def on_page(scene: Scene) -> Scene:
    """The scene moved so that a margin is around all of its marks; sets the page's size."""
    corners: list[Point] = [p for curve in scene.curves for p in curve.points]
    for shape in scene.shapes:
        corners.append((shape.x - shape.width / 2, shape.y - shape.height / 2))
        corners.append((shape.x + shape.width / 2, shape.y + shape.height / 2))
    for text in scene.texts:
        left, top, right, bottom = text.extent
        corners += [(left, top), (right, bottom)]
    xs, ys = [x for x, _ in corners] or [0.0], [y for _, y in corners] or [0.0]
    dx, dy = MARGIN - min(xs), MARGIN - min(ys)
    return Scene(
        scene.title,
        math.ceil(max(xs) + dx + MARGIN),
        math.ceil(max(ys) + dy + MARGIN),
        [c._replace(points=tuple((x + dx, y + dy) for x, y in c.points)) for c in scene.curves],
        [s._replace(x=s.x + dx, y=s.y + dy) for s in scene.shapes],
        [t._replace(x=t.x + dx, y=t.y + dy) for t in scene.texts],
    )
