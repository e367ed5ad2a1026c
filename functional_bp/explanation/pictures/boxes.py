"""What a layout is given, and what it answers."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

Point = tuple[float, float]


class Box(NamedTuple):
    """Something with a place of its own; width and height in points.

    Wires are attached to the sides that face other layers, within ``core`` points around their
    middle; anywhere where it is 0.
    """

    key: Hashable
    width: float
    height: float
    core: float = 0


class Wire(NamedTuple):
    """A connection from the box ``tail`` to the box ``head``, with space for its label if asked."""

    key: Hashable
    tail: Hashable
    head: Hashable
    label_width: float = 0
    label_height: float = 0


class Placed(NamedTuple):
    """Where everything is, in points; x grows to the right, y downwards, both from 0.

    Attributes:
        centers: of the boxes.
        routes: for each wire a chain of cubic Bézier curves, 1 + 3n points, from the border of its
            tail to the border of its head.
        labels: for each wire with a label the centre of the space reserved for it. The wire goes
            straight through the middle of that space, in the direction of the layout; nothing else
            touches it.
        width, height: of the frame that holds all of it.
    """

    centers: dict[Hashable, Point]
    routes: dict[Hashable, list[Point]]
    labels: dict[Hashable, Point]
    width: float
    height: float


def transposed(placed: Placed) -> Placed:
    """The same with x and y exchanged."""
    return Placed(
        {key: (y, x) for key, (x, y) in placed.centers.items()},
        {key: [(y, x) for x, y in route] for key, route in placed.routes.items()},
        {key: (y, x) for key, (x, y) in placed.labels.items()},
        placed.height,
        placed.width,
    )


def framed(placed: Placed, boxes: list[Box], wires: list[Wire]) -> Placed:
    """The same moved to where its frame begins at 0, with the frame measured."""
    corners = [*(p for route in placed.routes.values() for p in route)]
    sized = [(placed.centers[b.key], b.width, b.height) for b in boxes]
    sized += [
        (placed.labels[w.key], w.label_width, w.label_height)
        for w in wires
        if w.key in placed.labels
    ]
    for (x, y), width, height in sized:
        corners += [(x - width / 2, y - height / 2), (x + width / 2, y + height / 2)]
    left, top = (min(values, default=0.0) for values in (list(c) for c in _axes(corners)))
    right, bottom = (max(values, default=0.0) for values in (list(c) for c in _axes(corners)))

    def moved(point: Point) -> Point:
        return round(point[0] - left, 2), round(point[1] - top, 2)

    return Placed(
        {key: moved(point) for key, point in placed.centers.items()},
        {key: [moved(point) for point in route] for key, route in placed.routes.items()},
        {key: moved(point) for key, point in placed.labels.items()},
        round(right - left, 2),
        round(bottom - top, 2),
    )


def _axes(points: list[Point]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
