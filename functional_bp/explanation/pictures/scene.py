"""A scene is a picture as marks on a page, which is then written as SVG, PNG or PDF."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, BinaryIO, Literal, NamedTuple

from functional_bp.errors import BackpropError, compose
from functional_bp.explanation.pictures.layered import Point
from functional_bp.explanation.pictures.symbols import SCRIPT_SIZE, Line, TextRun, measure
from functional_bp.tables.colours import COLOURS

MARGIN = 14.0
ARROW_LENGTH, ARROW_WIDTH = 7.0, 5.2
SHORT_GAP = 3.0  # between the space of a shape and the shape itself
LINE_HEIGHT = 1.2  # of the size of a text

Form = Literal["rectangle", "ellipse"]


class Shape(NamedTuple):
    """A shape is a rectangle with rounded corners, or an ellipse, around (x, y)."""

    form: Form
    x: float
    y: float
    width: float
    height: float
    radius: float
    role: str
    title: str = ""


class Curve(NamedTuple):
    """A curve is a Bézier chain of 1 + 3n points, with an arrowhead at its end or without."""

    points: tuple[Point, ...]
    role: str
    arrow: bool = True
    title: str = ""
    width: float = 1.1


class Text(NamedTuple):
    """A line of text has its middle at (x, y)."""

    x: float
    y: float
    line: Line
    size: float
    role: str
    title: str = ""

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Return left, top, right and bottom of the space that it needs at most."""
        width, height = measure(self.line, self.size), self.size * LINE_HEIGHT
        return (self.x - width / 2, self.y - height / 2, self.x + width / 2, self.y + height / 2)


@dataclass
class Scene:
    """A scene has all marks of a picture, from back to front, and the page's size in points."""

    title: str
    width: float
    height: float
    curves: list[Curve] = field(default_factory=list)
    shapes: list[Shape] = field(default_factory=list)
    texts: list[Text] = field(default_factory=list)


def contains(shape: Shape, point: Point) -> bool:
    """Tell whether a point is inside a shape."""
    x, y = abs(point[0] - shape.x), abs(point[1] - shape.y)
    half_width, half_height = shape.width / 2, shape.height / 2
    if shape.form == "ellipse":
        return (x / half_width) ** 2 + (y / half_height) ** 2 <= 1
    if x > half_width or y > half_height:
        return False
    corner_x, corner_y = x - (half_width - shape.radius), y - (half_height - shape.radius)
    return corner_x <= 0 or corner_y <= 0 or math.hypot(corner_x, corner_y) <= shape.radius


def attached(route: Sequence[Point], tail: Shape, head: Shape) -> tuple[Point, ...]:
    """Prolong a route from the space reserved for its ends to what is drawn there."""
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
    """Return the tip of the arrow at the end of a curve and its two other corners."""
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
    """Return the curve without the last piece, which its arrowhead covers."""
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
    """Move a scene so that a margin is around all of its marks, and set the page's size."""
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


# Colours, by what a mark means.

ThemeName = Literal["light", "dark", "auto"]


class Theme(NamedTuple):
    """A theme has a colour for each role; shapes have a filling and the border ``ink``."""

    background: str
    ink: str
    wire: str
    muted: str
    value: str
    gradient: str
    variable: str
    operator: str
    closed: str


LIGHT = Theme(
    background="#ffffff", ink="#1f2328", wire="#4a5159", muted="#656d76", value="#1a7f37",
    gradient="#cf222e", variable="#e8f1fb", operator="#fff4e0", closed="#eeeafc",
)  # fmt: skip
DARK = Theme(
    background="#0d1117", ink="#e6edf3", wire="#9aa4af", muted="#8b949e", value="#56d364",
    gradient="#ff7b72", variable="#13304f", operator="#3d3016", closed="#2c2454",
)  # fmt: skip
THEMES = {"light": LIGHT, "dark": DARK}


# A scene as SVG: one file without references to others, its text as text.

FONTS = "'STIX Two Text','Times New Roman','Liberation Serif','Nimbus Roman',Times,serif"
BASELINE = 0.33  # of a text's size: how far below its middle letters stand
RAISE = {-1: 0.22, 1: -0.4}  # of a text's size: how far a sub- or superscript is moved down
FACES = {"italic": ' font-style="italic"', "bold": ' font-weight="bold"', "roman": ""}


def svg_text(scene: Scene, theme: ThemeName = "light") -> str:
    """Write the picture as the text of an SVG file; "auto" is as the viewer's own preference is."""
    width, height = _number(scene.width), _number(scene.height)
    kind = f"bp-{theme}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="{kind}" width="{width}" '
        f'height="{height}" viewBox="0 0 {width} {height}" font-family="{FONTS}" '
        f'role="img">',
        f"<title>{escape(scene.title)}</title>",
        f"<style>{_style(kind, theme)}</style>",
        f'<rect class="page" width="{width}" height="{height}"/>',
        *map(_curve, scene.curves),
        *map(_shape, scene.shapes),
        *map(_text, scene.texts),
        "</svg>\n",
    ]
    return "\n".join(parts)


def _style(kind: str, theme: ThemeName) -> str:
    if theme != "auto":
        return _rules(kind, THEMES[theme])
    dark = _rules(kind, DARK)
    return f"{_rules(kind, LIGHT)}\n@media (prefers-color-scheme: dark) {{{dark}}}"


def _rules(kind: str, theme: Theme) -> str:
    fills = {
        "page": theme.background, "ink": theme.ink, "value": theme.value,
        "gradient": theme.gradient, "muted": theme.muted, "tip": theme.wire,
        "branch": theme.wire,
    }  # fmt: skip
    drawn = {
        "variable": (theme.variable, theme.ink), "operator": (theme.operator, theme.ink),
        "closed": (theme.closed, theme.ink), "wire": ("none", theme.wire),
    }  # fmt: skip
    rules = [f".{kind} .{role}{{fill:{color}}}" for role, color in fills.items()]
    rules += [f".{kind} .{role}{{fill:{fill};stroke:{stroke};stroke-width:1.1}}"
              for role, (fill, stroke) in drawn.items()]  # fmt: skip
    return "\n".join(["", *rules, ""])


def _element(name: str, role: str, title: str, content: str = "", **attributes: float | str) -> str:
    written = f'{name} class="{role}"'
    for key, value in attributes.items():
        text = value if isinstance(value, str) else _number(value)
        written += f' {key.replace("_", "-")}="{text}"'
    inside = (f"<title>{escape(title)}</title>" if title else "") + content
    return f"<{written}>{inside}</{name}>" if inside else f"<{written}/>"


def _shape(shape: Shape) -> str:
    _, x, y, width, height, radius, role, title = shape
    if shape.form == "ellipse":
        return _element("ellipse", role, title, cx=x, cy=y, rx=width / 2, ry=height / 2)
    colour = {"fill": color} if (color := _own_colour(role)) else {}
    return _element("rect", role, title, x=x - width / 2, y=y - height / 2,
                    width=width, height=height, rx=radius, **colour)  # fmt: skip


def _curve(curve: Curve) -> str:
    points = shortened(curve.points) if curve.arrow else list(curve.points)
    look: dict[str, float | str] = {}
    if color := _own_colour(curve.role):
        look = {"fill": "none", "stroke": color, "stroke_width": curve.width}
    path = _element("path", curve.role, curve.title, "", d=path_data(points), **look)
    if not curve.arrow:
        return path
    corners = " ".join(map(_pair, arrowhead(curve.points)))
    return f'{path}\n<polygon class="tip" points="{corners}"/>'


def path_data(points: Sequence[Point]) -> str:
    """Write a Bézier chain as the ``d`` of an SVG path."""
    curves = [" ".join(map(_pair, points[i : i + 3])) for i in range(1, len(points), 3)]
    return f"M{_pair(points[0])}" + "".join(f"C{curve}" for curve in curves)


def _text(text: Text) -> str:
    return _element("text", text.role, text.title, spans(text.line, text.size), x=text.x,
                    y=text.y + BASELINE * text.size, font_size=text.size,
                    text_anchor="middle")  # fmt: skip


def spans(line: Line, size: float) -> str:
    """Write a line as the content of an SVG text."""
    parts, raised = [], 0.0
    for run in line:
        to = RAISE.get(run.script, 0.0) * size
        attributes = FACES[run.face]
        if run.script:
            attributes += f' font-size="{_number(size * SCRIPT_SIZE)}"'
        if to != raised:
            attributes += f' dy="{_number(to - raised)}"'
        raised = to
        text = escape(run.text, quote=False)
        parts.append(f"<tspan{attributes}>{text}</tspan>" if attributes else text)
    return "".join(parts)


def _pair(point: Point) -> str:
    return f"{_number(point[0])},{_number(point[1])}"


def _number(value: float) -> str:
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


# A scene as PNG or PDF, by matplotlib with the fonts that it brings along.

INCH = 72.0  # points
DPI = 144
FAMILIES = ["STIXGeneral", "DejaVu Serif", "DejaVu Sans"]
_FACES = {"italic": r"\mathit", "bold": r"\mathbf", "roman": r"\mathrm"}
_ESCAPES = {letter: "\\" + letter for letter in "$%#&_{}"} | {" ": r"\ "}
_ESCAPES |= {sign: f"{{{sign}}}" for sign in "=+−×∗<>"}  # without the space of a formula
_ACCENTS = {"\u0302": r"\hat", "\u0304": r"\bar", "\u0303": r"\tilde", "\u0307": r"\dot"}


class PicturesExtraError(BackpropError, ImportError):
    """A format needs a package that is not installed."""


def write_raster(
    scene: Scene, target: str | os.PathLike[str] | BinaryIO, kind: str, theme: ThemeName = "light"
) -> None:
    """Write the picture to a file, as "png" or "pdf"; the theme "auto" is "light" here.

    Raises:
        PicturesExtraError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise PicturesExtraError(
            compose(
                f"a {kind.upper()} file cannot be written",
                got="no package matplotlib",
                expected="matplotlib, which draws it",
                do="pip install 'functional-bp[pictures]', or save an .svg or .html file",
            )
        )
    figure = _figure(scene, theme)
    figure.savefig(target, format=kind, dpi=DPI, facecolor=figure.get_facecolor())


def _figure(scene: Scene, theme: ThemeName) -> Any:
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties
    from matplotlib.patches import Ellipse, FancyBboxPatch, PathPatch, Polygon
    from matplotlib.path import Path

    colors = THEMES["light" if theme == "auto" else theme]
    figure = Figure((scene.width / INCH, scene.height / INCH), facecolor=colors.background)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_xlim(0, scene.width)
    axes.set_ylim(scene.height, 0)
    axes.axis("off")
    for curve in scene.curves:
        points = shortened(curve.points) if curve.arrow else list(curve.points)
        codes = [Path.MOVETO] + [Path.CURVE4] * (len(points) - 1)
        color = _colour_of(curve.role, colors)
        patch = PathPatch(Path(points, codes), fill=False, edgecolor=color, lw=curve.width)
        patch.set_capstyle("butt")
        axes.add_patch(patch)
        if curve.arrow:
            axes.add_patch(Polygon(arrowhead(curve.points), color=colors.wire, lw=0))
    for shape in scene.shapes:
        is_plain = shape.role == "branch" or shape.role.startswith("swatch")
        color = _colour_of(shape.role, colors)
        look: dict[str, Any] = {
            "facecolor": color,
            "edgecolor": color if is_plain else colors.ink,
            "linewidth": 0 if is_plain else 1.1,
        }
        if shape.form == "ellipse":
            axes.add_patch(Ellipse((shape.x, shape.y), shape.width, shape.height, **look))
        else:
            corner = (shape.x - shape.width / 2, shape.y - shape.height / 2)
            style = f"round,pad=0,rounding_size={min(shape.radius, shape.height / 2 - 0.01)}"
            axes.add_patch(
                FancyBboxPatch(corner, shape.width, shape.height, boxstyle=style, **look)
            )
    for text in scene.texts:
        font = FontProperties(family=FAMILIES, size=text.size, math_fontfamily="stix")
        axes.text(
            text.x, text.y + 0.33 * text.size, mathtext(text.line),
            color=getattr(colors, text.role), ha="center", va="baseline", fontproperties=font,
        )  # fmt: skip
    return figure


def _own_colour(role: str) -> str:
    """Return the colour of what has the same one in each theme, "" for what has not."""
    number = role.removeprefix("stripe").removeprefix("swatch")
    return "" if number == role else COLOURS[int(number)]


def _colour_of(role: str, theme: Theme) -> str:
    return _own_colour(role) or (theme.wire if role == "branch" else getattr(theme, role))


def mathtext(line: Line) -> str:
    """Write a line in matplotlib's TeX."""
    if all(run.face == "roman" and not run.script for run in line):
        return "".join(run.text for run in line).replace("$", r"\$")
    return "$" + "".join(map(_run, line)) + "$"


def _run(run: TextRun) -> str:
    script = {0: "", -1: "_", 1: "^"}[run.script]
    accent = _ACCENTS.get(run.text[-1:])
    body = run.text[:-1] if accent else run.text
    tex = _FACES[run.face] + "{" + "".join(_ESCAPES.get(c, c) for c in body) + "}"
    return f"{script}{{{accent or ''}{tex if not accent else '{' + tex + '}'}}}"
