"""A layout by Graphviz's ``dot``, which the package pygraphviz brings along.

A label is a node of its own to ``dot``, on the way of its wire: so its space is kept free by what
keeps nodes apart.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable
from itertools import combinations
from typing import Any

import numpy as np

from functional_bp.explanation.pictures.boxes import Box, Placed, Point, Wire

INCH = 72.0  # points
HEADS = {"right": ("LR", "w", "e"), "down": ("TB", "n", "s")}


def place(boxes: list[Box], wires: list[Wire], direction: str) -> Placed:
    """Lay out with ``dot``; the sizes of all nodes are fixed beforehand."""
    import pygraphviz  # pyright: ignore[reportMissingImports]

    rankdir, entry, way_out = HEADS[direction]
    labelled = any(wire.label_width > 0 for wire in wires)
    drawing: Any = pygraphviz.AGraph(
        strict=False, directed=True, rankdir=rankdir, splines="true",
        nodesep=16 / INCH, ranksep=(20 if labelled else 34) / INCH,
    )  # fmt: skip
    drawing.node_attr.update(shape="box", fixedsize="true", label="")
    drawing.edge_attr.update(arrowhead="none")
    number: dict[Hashable, str] = {}
    cored = {box.key for box in boxes if box.core}
    for i, box in enumerate(boxes):
        number[box.key] = f"b{i}"
        drawing.add_node(f"b{i}", **_size(box.width, box.height))
    for i, wire in enumerate(wires):
        tail, head = number[wire.tail], number[wire.head]
        start = {"tailport": way_out} if wire.tail in cored else {}
        end = {"headport": entry} if wire.head in cored else {}
        if wire.label_width > 0:
            drawing.add_node(f"w{i}", **_size(wire.label_width, wire.label_height))
            drawing.add_edge(tail, f"w{i}", key=f"{i}a", headport=entry, weight=2, **start)
            drawing.add_edge(f"w{i}", head, key=f"{i}b", tailport=way_out, weight=2, **end)
        else:
            drawing.add_edge(tail, head, key=f"{i}a", minlen=2 if labelled else 1, **start, **end)
    drawing.layout("dot")
    at = {node: _point(node.attr["pos"]) for node in drawing.nodes()}
    curves = {key: _points(drawing.get_edge(u, v, key)) for u, v, key in drawing.edges(keys=True)}
    routes = {}
    for i, wire in enumerate(wires):
        route = curves[f"{i}a"]
        if wire.label_width > 0:
            route = [*route, *_straight(route[-1], curves[f"{i}b"][0]), *curves[f"{i}b"][1:]]
        routes[wire.key] = route
    placed = Placed(
        {box.key: at[number[box.key]] for box in boxes},
        routes,
        {wire.key: at[f"w{i}"] for i, wire in enumerate(wires) if wire.label_width > 0},
        0.0,
        0.0,
    )
    return _mirrored(placed, wires, direction)


def _mirrored(placed: Placed, wires: list[Wire], direction: str) -> Placed:
    """The same, or its mirror image if there more wires come in where their order says."""
    across = 1 if direction == "right" else 0
    coming: dict[Hashable, list[float]] = defaultdict(list)
    for wire in wires:
        coming[wire.head].append(placed.centers[wire.tail][across])
    pairs = [pair for places in coming.values() for pair in combinations(places, 2)]
    if sum(a < b for a, b in pairs) >= sum(a > b for a, b in pairs):
        return placed
    x, y = (1, -1) if direction == "right" else (-1, 1)

    def turned(point: Point) -> Point:
        return x * point[0], y * point[1]

    return placed._replace(
        centers={key: turned(point) for key, point in placed.centers.items()},
        routes={key: [turned(point) for point in route] for key, route in placed.routes.items()},
        labels={key: turned(point) for key, point in placed.labels.items()},
    )


def _size(width: float, height: float) -> dict[str, str]:
    return {"width": f"{width / INCH:.5f}", "height": f"{height / INCH:.5f}"}


def _point(text: str) -> Point:
    """A position of Graphviz's, whose y grows upwards."""
    x, y = text.split(",")
    return float(x), -float(y)


def _points(edge: object) -> list[Point]:
    text: Iterable[str] = edge.attr["pos"].replace("\\\n", "").split()  # pyright: ignore[reportAttributeAccessIssue]
    return [_point(part) for part in text]


def _straight(start: Point, end: Point) -> list[Point]:
    (x0, y0), (x1, y1) = start, end
    return [
        (x0 + (x1 - x0) / 3, y0 + (y1 - y0) / 3),
        (x1 - (x1 - x0) / 3, y1 - (y1 - y0) / 3),
        end,
    ]


# Whether a layout is readable: no wire touches a box or a label that is not its own.

SAMPLES = 16  # points of each curve that are looked at
CLEARANCE = 2.0  # points that a wire stays away from what is not its own


def is_clear(placed: Placed, boxes: list[Box], wires: list[Wire]) -> bool:
    """Whether each wire stays clear of the boxes and labels of others."""
    keys: list[object] = [("box", box.key) for box in boxes]
    centers = [placed.centers[box.key] for box in boxes]
    sizes = [(box.width, box.height) for box in boxes]
    for wire in wires:
        if wire.key in placed.labels:
            keys.append(("label", wire.key))
            centers.append(placed.labels[wire.key])
            sizes.append((wire.label_width, wire.label_height))
    middle, half = np.array(centers), np.array(sizes) / 2 + CLEARANCE
    for wire in wires:
        own = {("box", wire.tail), ("box", wire.head), ("label", wire.key)}
        foreign = np.array([key not in own for key in keys])
        points = sampled(placed.routes[wire.key])
        inside = np.all(np.abs(points[:, None] - middle[foreign]) < half[foreign], axis=2)
        if inside.any():
            return False
    return True


def sampled(route: list[Point], samples: int = SAMPLES) -> np.ndarray:
    """Points along a Bézier chain."""
    at = np.linspace(0, 1, samples)[:, None]
    corners = np.array(route)
    pieces = []
    for i in range(0, len(route) - 1, 3):
        a, b, c, d = corners[i : i + 4]
        s = 1 - at
        pieces.append(s**3 * a + 3 * s * s * at * b + 3 * s * at * at * c + at**3 * d)
    return np.concatenate(pieces)
