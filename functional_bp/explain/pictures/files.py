"""An explanation into a file, in the format that the file's suffix says."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Unpack

from functional_bp.errors import compose
from functional_bp.explain.explanation import Explanation
from functional_bp.explain.pictures import raster, svg
from functional_bp.explain.pictures.picture import (
    PictureError,
    PictureOptions,
    Style,
    check_word,
    scene_of,
)
from functional_bp.explain.pictures.theme import ThemeName

STILL = (".svg", ".png", ".pdf")
WRITTEN: Mapping[str, Callable[[Explanation], str]] = {
    ".html": lambda explanation: explanation.html(),
    ".md": lambda explanation: explanation.markdown(),
    ".tex": lambda explanation: explanation.latex(standalone=True),
    ".txt": lambda explanation: explanation.text(width=TEXT_WIDTH),
}
TEXT_WIDTH = 120  # characters of a line, in a file


def save(
    explanation: Explanation,
    path: str | os.PathLike[str],
    style: Style = "cs231n",
    theme: ThemeName = "light",
    **options: Unpack[PictureOptions],
) -> None:
    """Write an explanation; see ``Explanation.save``."""
    path = Path(path)
    suffix = path.suffix.lower()
    check_word("theme", theme, ("light", "dark", "auto"))
    if suffix in WRITTEN:
        path.write_text(WRITTEN[suffix](explanation), encoding="utf-8")
        return
    if suffix not in STILL:
        raise PictureError(
            compose(
                f"{path.name} names no format that an explanation can be saved in",
                got=f"the suffix {suffix!r}",
                expected=", ".join((*STILL, *WRITTEN)),
            )
        )
    scene = scene_of(explanation, style, **options)
    if suffix == ".svg":
        path.write_text(svg.write(scene, theme), encoding="utf-8")
    else:
        raster.write(scene, path, suffix[1:], theme)
