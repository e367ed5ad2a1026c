"""A scene as SVG: one file without references to others, its text as text."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from functional_bp.explain.pictures.boxes import Point
from functional_bp.explain.pictures.scene import Curve, Scene, Shape, Text, arrowhead, shortened
from functional_bp.explain.pictures.theme import DARK, LIGHT, THEMES, Theme, ThemeName
from functional_bp.explain.pictures.typeset import SCRIPT_SIZE, Line

FONTS = "'STIX Two Text','Times New Roman','Liberation Serif','Nimbus Roman',Times,serif"
BASELINE = 0.33  # of a text's size: how far below its middle letters stand
RAISE = {-1: 0.22, 1: -0.4}  # of a text's size: how far a sub- or superscript is moved down
FACES = {"italic": ' font-style="italic"', "bold": ' font-weight="bold"', "roman": ""}


def write(scene: Scene, theme: ThemeName = "light") -> str:
    """The picture as the text of an SVG file.

    Args:
        scene: what is drawn.
        theme: "light", "dark", or "auto": as the viewer's own preference is.
    """
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
    rules = [f".{kind} .{role}{{fill:{color}}}" for role, color in fills.items()]
    for role, color in (("variable", theme.variable), ("operator", theme.operator),
                        ("closed", theme.closed)):  # fmt: skip
        rules.append(f".{kind} .{role}{{fill:{color};stroke:{theme.ink};stroke-width:1.1}}")
    rules.append(f".{kind} .wire{{fill:none;stroke:{theme.wire};stroke-width:1.1}}")
    return "\n".join(["", *rules, ""])


def _titled(element: str, attributes: str, title: str, content: str = "") -> str:
    inside = (f"<title>{escape(title)}</title>" if title else "") + content
    return (
        f"<{element} {attributes}>{inside}</{element}>" if inside else f"<{element} {attributes}/>"
    )


def _shape(shape: Shape) -> str:
    if shape.form == "ellipse":
        size = f'rx="{_number(shape.width / 2)}" ry="{_number(shape.height / 2)}"'
        place = f'cx="{_number(shape.x)}" cy="{_number(shape.y)}" {size}'
        return _titled("ellipse", f'class="{shape.role}" {place}', shape.title)
    left, top = shape.x - shape.width / 2, shape.y - shape.height / 2
    place = (
        f'x="{_number(left)}" y="{_number(top)}" width="{_number(shape.width)}" '
        f'height="{_number(shape.height)}" rx="{_number(shape.radius)}"'
    )
    return _titled("rect", f'class="{shape.role}" {place}', shape.title)


def _curve(curve: Curve) -> str:
    points = shortened(curve.points) if curve.arrow else list(curve.points)
    path = _titled("path", f'class="{curve.role}" d="{path_data(points)}"', curve.title)
    if not curve.arrow:
        return path
    corners = " ".join(map(_pair, arrowhead(curve.points)))
    return f'{path}\n<polygon class="tip" points="{corners}"/>'


def path_data(points: Sequence[Point]) -> str:
    """A Bézier chain as the ``d`` of an SVG path."""
    curves = [" ".join(map(_pair, points[i : i + 3])) for i in range(1, len(points), 3)]
    return f"M{_pair(points[0])}" + "".join(f"C{curve}" for curve in curves)


def _text(text: Text) -> str:
    place = (
        f'class="{text.role}" x="{_number(text.x)}" '
        f'y="{_number(text.y + BASELINE * text.size)}" font-size="{_number(text.size)}" '
        'text-anchor="middle"'
    )
    return _titled("text", place, text.title, spans(text.line, text.size))


def spans(line: Line, size: float) -> str:
    """A line as the content of an SVG text."""
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
