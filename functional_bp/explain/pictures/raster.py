"""A scene as PNG or PDF, by matplotlib with the fonts that it brings along."""

from __future__ import annotations

import importlib.util
import os
from typing import Any, BinaryIO

from functional_bp.errors import BackpropError, compose
from functional_bp.explain.pictures.scene import Scene, arrowhead, shortened
from functional_bp.explain.pictures.theme import THEMES, ThemeName
from functional_bp.explain.pictures.typeset import Line, Run

INCH = 72.0  # points
DPI = 144
FAMILIES = ["STIXGeneral", "DejaVu Serif", "DejaVu Sans"]
_FACES = {"italic": r"\mathit", "bold": r"\mathbf", "roman": r"\mathrm"}
_ESCAPES = {letter: "\\" + letter for letter in "$%#&_{}"} | {" ": r"\ "}
_ESCAPES |= {sign: f"{{{sign}}}" for sign in "=+−×∗<>"}  # without the space of a formula
_ACCENTS = {"\u0302": r"\hat", "\u0304": r"\bar", "\u0303": r"\tilde", "\u0307": r"\dot"}


class PicturesExtraError(BackpropError, ImportError):
    """A format needs a package that is not installed."""


def write(
    scene: Scene, target: str | os.PathLike[str] | BinaryIO, kind: str, theme: ThemeName = "light"
) -> None:
    """Write the picture to a file.

    Args:
        scene: what is drawn.
        target: the file.
        kind: "png" or "pdf".
        theme: "light" or "dark"; "auto" is "light" here.

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
        axes.add_patch(PathPatch(Path(points, codes), fill=False, edgecolor=colors.wire, lw=1.1))
        if curve.arrow:
            axes.add_patch(Polygon(arrowhead(curve.points), color=colors.wire, lw=0))
    for shape in scene.shapes:
        is_branch = shape.role == "branch"
        look: dict[str, Any] = {
            "facecolor": colors.wire if is_branch else getattr(colors, shape.role),
            "edgecolor": colors.wire if is_branch else colors.ink,
            "linewidth": 0 if is_branch else 1.1,
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


def mathtext(line: Line) -> str:
    """A line in matplotlib's TeX."""
    if all(run.face == "roman" and not run.script for run in line):
        return "".join(run.text for run in line).replace("$", r"\$")
    return "$" + "".join(map(_run, line)) + "$"


def _run(run: Run) -> str:
    script = {0: "", -1: "_", 1: "^"}[run.script]
    accent = _ACCENTS.get(run.text[-1:])
    body = run.text[:-1] if accent else run.text
    tex = _FACES[run.face] + "{" + "".join(_ESCAPES.get(c, c) for c in body) + "}"
    return f"{script}{{{accent or ''}{tex if not accent else '{' + tex + '}'}}}"
