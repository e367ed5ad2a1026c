"""A still picture of an explanation is drawn, and saved in the format that a file's suffix says."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Literal, TypedDict, Unpack

from functional_bp.errors import BackpropError, compose
from functional_bp.explanation.pictures import styles
from functional_bp.explanation.pictures.contents import Contents, bundled, contents
from functional_bp.explanation.pictures.layered import Direction
from functional_bp.explanation.pictures.scene import Scene, ThemeName, svg_text, write_raster
from functional_bp.explanation.record import EvaluatedGraph

Style = Literal["cs231n", "d2l"]
MOST_DRAWN = 400  # operators and closed scopes; more is no picture that anybody reads
MOST_AT_A_GLANCE = 60  # of these, in a notebook


class PictureOptions(TypedDict, total=False):
    """These say how a picture is drawn; see ``Explanation.svg``."""

    direction: Direction
    depth: int | None
    gates: Collection[str]
    branches: styles.Branches


class PictureError(BackpropError, ValueError):
    """A picture cannot be drawn as it was asked for."""


def scene_of(
    explanation: EvaluatedGraph,
    style: Style = "cs231n",
    *,
    direction: Direction = "right",
    depth: int | None = None,
    gates: Collection[str] = (),
    branches: styles.Branches = "shares",
) -> Scene:
    """Draw all marks of the picture; see ``Explanation.svg``."""
    check_word("style", style, ("cs231n", "d2l"))
    check_word("direction", direction, ("right", "down"))
    check_word("branches", branches, ("shares", "total"))
    shown = bundled(contents(explanation, depth, gates))
    _check_size(explanation, shown)
    if style == "d2l":
        return styles.draw_d2l(explanation, shown, direction)
    return styles.draw_cs231n(explanation, shown, direction, branches)


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
