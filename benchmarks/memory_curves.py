"""Memory against operations, one small picture for each loss, as an SVG.

Left is less memory, low is fewer operations; both as ratios to plain ``jax.value_and_grad``, which
is at (1, 1). Ours is a line through its budgets, everything else a mark.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import NamedTuple

from functional_bp.memory.footprint_report import COLOURS

COLUMNS, WIDTH, HEIGHT, LEFT, TOP = 4, 196, 150, 44, 30  # of one picture, and where its axes begin
MOST_MEMORY, LEAST_FLOPS, MOST_FLOPS = 1.2, 0.95, 1.45  # what is beyond stands at the edge
OURS = COLOURS[0]
OF_POLICY = {
    "nothing": COLOURS[5], "dots": COLOURS[1], "dots without batch": COLOURS[2],
    "everything": COLOURS[3],
}  # fmt: skip
OF_PLACEMENT = {  # around (0, 0)
    "whole": "M0,-4.6L4.4,3.4H-4.4Z",
    "blocks": "M-4,0A4,4 0 1 0 4,0A4,4 0 1 0 -4,0Z",
    "segments": "M-3.6,-3.6H3.6V3.6H-3.6Z",
}


class Mark(NamedTuple):
    """What ``jax.checkpoint`` at a placement with a policy needs."""

    memory: float
    flops: float
    placement: str
    policy: str


class Curve(NamedTuple):
    """The figures of one loss: ours as (memory, flops), and those of ``jax.checkpoint``."""

    ours: list[tuple[float, float]]
    theirs: list[Mark]


def svg(curves: Mapping[str, Curve]) -> str:
    """Draw the curves by name, and a legend after them."""
    cells = [*(_panel(name, curve) for name, curve in curves.items()), _legend()]
    placed = "".join(
        f'<g transform="translate({WIDTH * (k % COLUMNS)},{HEIGHT * (k // COLUMNS)})">{cell}</g>'
        for k, cell in enumerate(cells)
    )
    width, height = COLUMNS * WIDTH, HEIGHT * -(-len(cells) // COLUMNS)
    title = "Operations against memory of gradients, over those of plain jax.value_and_grad"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="bp-curves" role="img" '
        f'viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f"<title>{title}</title><style>{_STYLE}</style>{placed}</svg>\n"
    )


_STYLE = f"""
.bp-curves {{ font: 11px system-ui, sans-serif; }} .bp-curves text {{ fill: #1d2125; }}
.bp-curves .title {{ font-weight: bold; font-size: 12px; }}
.bp-curves .tick {{ font-size: 10px; }} .bp-curves .end {{ text-anchor: end; }}
.bp-curves .middle {{ text-anchor: middle; }}
.bp-curves .grid {{ stroke: #8a9299; stroke-opacity: .35; fill: none; }}
.bp-curves .ours {{ stroke: {OURS}; stroke-width: 2; fill: none; }}
.bp-curves .budget {{ fill: {OURS}; }} .bp-curves .mark {{ fill-opacity: .85; }}
@media (prefers-color-scheme: dark) {{ .bp-curves text {{ fill: #e6e4df; }}
.bp-curves .ours {{ stroke: #4aa3df; }} .bp-curves .budget {{ fill: #4aa3df; }} }}
"""


def _x(memory: float) -> float:
    return LEFT + (WIDTH - LEFT - 12) * min(memory, MOST_MEMORY) / MOST_MEMORY


def _y(flops: float) -> float:
    inside = min(max(flops, LEAST_FLOPS), MOST_FLOPS)
    foot = HEIGHT - 26
    return foot - (foot - TOP) * (inside - LEAST_FLOPS) / (MOST_FLOPS - LEAST_FLOPS)


def _panel(name: str, curve: Curve) -> str:
    title = escape(name.replace("_", " "))
    return "".join(
        [
            f'<text class="title" x="{LEFT}" y="{TOP - 10}">{title}</text>',
            *_grid(),
            *map(_mark, sorted(curve.theirs, key=lambda mark: -mark.memory)),
            *_line(sorted(curve.ours)),
        ]
    )


def _grid() -> Iterator[str]:
    for memory in (0.0, 0.5, 1.0):
        x, foot = _x(memory), _y(LEAST_FLOPS)
        yield f'<path class="grid" d="M{x:.1f},{TOP}V{foot:.1f}"/>'
        yield f'<text class="tick middle" x="{x:.1f}" y="{foot + 12:.1f}">{memory:g}</text>'
    for flops in (1.0, 1.2, 1.4):
        y = _y(flops)
        yield f'<path class="grid" d="M{LEFT},{y:.1f}H{_x(MOST_MEMORY):.1f}"/>'
        yield f'<text class="tick end" x="{LEFT - 5}" y="{y + 3.5:.1f}">{flops:g}</text>'


def _mark(mark: Mark) -> str:
    title = f"{mark.placement}, {mark.policy} saved: {mark.memory:.2f}, {mark.flops:.2f}"
    return _symbol(mark.placement, mark.policy, _x(mark.memory), _y(mark.flops), title)


def _symbol(placement: str, policy: str, x: float, y: float, title: str = "") -> str:
    told = f"<title>{escape(title)}</title>" if title else ""
    return (
        f'<path class="mark" fill="{OF_POLICY[policy]}" d="{OF_PLACEMENT[placement]}" '
        f'transform="translate({x:.1f},{y:.1f})">{told}</path>'
    )


def _line(points: list[tuple[float, float]]) -> Iterator[str]:
    places = [(_x(memory), _y(flops)) for memory, flops in points]
    yield f'<polyline class="ours" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}"/>'
    for (x, y), (memory, flops) in zip(places, points):
        title = f"<title>ours: {memory:.2f}, {flops:.2f}</title>"
        yield f'<circle class="budget" cx="{x:.1f}" cy="{y:.1f}" r="3">{title}</circle>'


def _legend() -> str:
    rows = [
        '<path class="ours" d="M0,0H20"/><circle class="budget" cx="10" r="3"/>'
        '<text x="28" y="4">bp.recompute</text>',
        '<text x="0" y="4">jax.checkpoint saves</text>',
    ]
    for policy in OF_POLICY:
        rows.append(f'{_symbol("blocks", policy, 10, 0)}<text x="28" y="4">{policy}</text>')
    places = "".join(
        f'{_symbol(placement, "nothing", 6 + 50 * k, 0)}<text x="{13 + 50 * k}" y="4">'
        f"{placement}</text>" for k, placement in enumerate(OF_PLACEMENT)
    )  # fmt: skip
    rows += [places, '<text x="0" y="4">→ memory; at the edge: more</text>']
    rows += ['<text x="0" y="4">↑ operations; plain: 1, 1</text>']
    return "".join(
        f'<g transform="translate({LEFT - 32},{TOP - 20 + 16 * k})">{row}</g>'
        for k, row in enumerate(rows)
    )
