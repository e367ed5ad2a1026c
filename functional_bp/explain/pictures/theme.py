"""Colours, by what a mark means, on a light and on a dark background."""

from __future__ import annotations

from typing import Literal, NamedTuple

ThemeName = Literal["light", "dark", "auto"]


class Theme(NamedTuple):
    """A colour for each role of a mark; shapes have a filling and the border ``ink``."""

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
