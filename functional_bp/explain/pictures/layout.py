"""Where boxes and wires go: Graphviz where it is installed, a layered layout of our own elsewhere.

>>> placed = layout([Box("x", 20, 20), Box("y", 20, 20)], [Wire("w", "x", "y", 30, 24)])
>>> placed.centers["x"][0] < placed.labels["w"][0] < placed.centers["y"][0]
True
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from typing import Literal

from functional_bp.errors import BackpropError, compose
from functional_bp.explain.pictures.boxes import Box, Placed, Wire, framed, transposed
from functional_bp.explain.pictures.clearance import is_clear

Direction = Literal["right", "down"]
Engine = Literal["graphviz", "built-in"]
MOST_FOR_GRAPHVIZ = 120  # boxes and labels; beyond it dot takes seconds, then minutes


class LayoutError(BackpropError, ValueError):
    """Boxes and wires that no layout can place."""


def layout(
    boxes: Iterable[Box],
    wires: Iterable[Wire],
    direction: Direction = "right",
    engine: Engine | None = None,
) -> Placed:
    """Place boxes in layers along ``direction``, wires and their labels between them.

    Args:
        boxes: with keys that differ.
        wires: with keys that differ, from one box to another; cycles are allowed.
        direction: where the heads of wires are, seen from their tails.
        engine: "graphviz" (the extra ``pictures``) or "built-in"; by default Graphviz where it is
            installed and the picture is small enough for it. Where Graphviz leads a wire over
            something else, the built-in layout is taken, in which that cannot happen.

    Raises:
        LayoutError: a wire from a box to itself, or to a box that is not there; a key given twice.
    """
    boxes, wires = list(boxes), list(wires)
    _check(boxes, wires)
    if not boxes:
        return Placed({}, {}, {}, 0.0, 0.0)
    if engine is None:
        size = len(boxes) + sum(wire.label_width > 0 for wire in wires)
        small = max(size, len(wires)) <= MOST_FOR_GRAPHVIZ
        engine = "graphviz" if small and has_graphviz() else "built-in"
    if engine == "graphviz":
        from functional_bp.explain.pictures.graphviz import place as place_by_graphviz

        placed = place_by_graphviz(boxes, wires, direction)
        if is_clear(placed, boxes, wires):
            return framed(placed, boxes, wires)
    from functional_bp.explain.pictures.layered import place

    if direction == "right":
        return framed(place(boxes, wires), boxes, wires)
    turned = place(
        [Box(b.key, b.height, b.width, b.core) for b in boxes],
        [w._replace(label_width=w.label_height, label_height=w.label_width) for w in wires],
    )
    return framed(transposed(turned), boxes, wires)


def has_graphviz() -> bool:
    """Whether pygraphviz, which brings Graphviz along, is installed."""
    return importlib.util.find_spec("pygraphviz") is not None


def _check(boxes: list[Box], wires: list[Wire]) -> None:
    keys = {box.key for box in boxes}
    if len(keys) != len(boxes) or len({wire.key for wire in wires}) != len(wires):
        raise LayoutError(
            compose(
                "a key stands for two boxes or two wires",
                got=f"{len(boxes)} boxes, {len(wires)} wires",
                expected="a key of its own for each",
            )
        )
    for wire in wires:
        if wire.tail == wire.head or wire.tail not in keys or wire.head not in keys:
            raise LayoutError(
                compose(
                    f"the wire {wire.key!r} cannot be drawn",
                    got=f"from {wire.tail!r} to {wire.head!r}",
                    expected="two different boxes that are there",
                )
            )
