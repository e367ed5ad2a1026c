"""Layouts: nothing overlaps, whatever the graph, and the same graph is always placed the same."""

from __future__ import annotations

import itertools
import math
import random
import time

import pytest
from bezier import Rectangle, overlap, points_of

from functional_bp.explanation.pictures.layered import (
    Direction,
    Placed,
    Vertex,
    Wire,
    layout,
)

DIRECTIONS: list[Direction] = ["right", "down"]


def drawn(seed: int, count: int, labels: bool) -> tuple[list[Vertex], list[Wire]]:
    """A random graph: boxes of several sizes, near and far wires, double ones, a few cycles."""
    dice = random.Random(seed)
    boxes = [
        Vertex(i, dice.choice([10, 34, 80]), dice.choice([6, 34, 62]), dice.choice([0, 0, 5]))
        for i in range(count)
    ]
    wires = []
    for head in range(1, count):
        for _ in range(dice.choice([0, 1, 1, 2, 4])):
            tail = max(0, head - dice.choice([1, 1, 2, 3, 11]))
            label = dice.choice([0, 30, 90]) if labels else 0
            wires.append(Wire((len(wires),), tail, head, label, 28 if label else 0))
    for _ in range(dice.choice([0, 0, 2])):
        tail, head = dice.sample(range(count), 2)
        wires.append(Wire((len(wires),), tail, head, 30 if labels else 0, 28 if labels else 0))
    return boxes, wires


def around(center: tuple[float, float], width: float, height: float) -> Rectangle:
    x, y = center
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def away(points: list[list[float]], place: tuple[float, float]) -> float:
    """The distance of a place from the line through points."""
    nearest = math.inf
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        length = (x1 - x0) ** 2 + (y1 - y0) ** 2
        along = (place[0] - x0) * (x1 - x0) + (place[1] - y0) * (y1 - y0)
        t = min(max(along / length, 0), 1) if length else 0
        nearest = min(nearest, math.dist(place, (x0 + t * (x1 - x0), y0 + t * (y1 - y0))))
    return nearest


def faults(boxes: list[Vertex], wires: list[Wire], placed: Placed) -> list[str]:
    """Everything that a reader would complain of."""
    spaces = {("box", b.key): around(placed.centers[b.key], b.width, b.height) for b in boxes}
    spaces |= {
        ("label", w.key): around(placed.labels[w.key], w.label_width, w.label_height)
        for w in wires
        if w.label_width
    }
    found = [
        f"{a} overlaps {b}"
        for (a, x), (b, y) in itertools.combinations(spaces.items(), 2)
        if overlap(x, y)
    ]
    for wire in wires:
        route = placed.routes[wire.key]
        if len(route) % 3 != 1 or len(route) < 4:
            found.append(f"{wire.key} is no Bézier chain")
        points = points_of(route).tolist()
        for end, point in ((wire.tail, points[0]), (wire.head, points[-1])):
            left, top, right, bottom = spaces["box", end]
            inside = left - 1.5 <= point[0] <= right + 1.5 and top - 1.5 <= point[1] <= bottom + 1.5
            deep = min(point[0] - left, right - point[0], point[1] - top, bottom - point[1])
            if not inside or deep > 1.5:
                found.append(f"{wire.key} does not end at the border of {end}")
        own = {("box", wire.tail), ("box", wire.head), ("label", wire.key)}
        for key, (left, top, right, bottom) in spaces.items():
            if key not in own and any(
                left + 1.1 < x < right - 1.1 and top + 1.1 < y < bottom - 1.1 for x, y in points
            ):
                found.append(f"{wire.key} goes over {key}")
        for x, y in points:
            if not (-0.1 <= x <= placed.width + 0.1 and -0.1 <= y <= placed.height + 0.1):
                found.append(f"{wire.key} leaves the frame")
        if wire.label_width and away(points, placed.labels[wire.key]) > 1:
            found.append(f"{wire.key} does not go through its label")
    for key, (left, top, right, bottom) in spaces.items():
        if left < -0.1 or top < -0.1 or right > placed.width + 0.1 or bottom > placed.height + 0.1:
            found.append(f"{key} leaves the frame")
    return found


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("seed", range(8))
def test_nothing_overlaps(seed: int, direction: Direction) -> None:
    for labels in (False, True):
        boxes, wires = drawn(seed, 5 + 5 * seed, labels)
        placed = layout(boxes, wires, direction)
        assert placed.centers.keys() == {box.key for box in boxes}
        assert placed.routes.keys() == {wire.key for wire in wires}
        assert faults(boxes, wires, placed) == []


def test_the_witness_sees_an_overlap() -> None:
    boxes, wires = drawn(3, 20, True)
    placed = layout(boxes, wires)
    moved = placed._replace(centers={**placed.centers, 4: placed.centers[5]})
    assert any("overlaps" in fault for fault in faults(boxes, wires, moved))
    assert any("does not end" in fault for fault in faults(boxes, wires, moved))
    over = placed._replace(routes={**placed.routes, wires[9].key: [(0, 0)] * 3 + [(900, 200)]})
    assert faults(boxes, wires, over) != []


def test_the_same_graph_is_placed_the_same() -> None:
    first = layout(*drawn(5, 30, True))
    assert first == layout(*drawn(5, 30, True))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_heads_lie_in_the_direction(direction: Direction) -> None:
    dice = random.Random(7)
    boxes = [Vertex(i, 30, 30) for i in range(40)]
    wires = [Wire(i, dice.randrange(i), i) for i in range(1, 40)]
    centers = layout(boxes, wires, direction).centers
    axis = 0 if direction == "right" else 1
    assert all(centers[w.tail][axis] + 30 < centers[w.head][axis] for w in wires)


def test_a_chain_is_level() -> None:
    boxes = [Vertex(i, 30, 30) for i in range(9)]
    wires = [Wire(i, i, i + 1, 20, 20) for i in range(8)]
    placed = layout(boxes, wires)
    assert len({y for _, y in placed.centers.values()}) == 1
    assert placed.height == 30


def test_five_hundred_boxes_take_less_than_three_seconds() -> None:
    dice = random.Random(1)
    boxes = [Vertex(i, 36, 36) for i in range(500)]
    wires = [
        Wire((i, k), max(0, i - 1 - int(dice.random() ** 2 * 40)), i, 30, 28)
        for i in range(1, 500)
        for k in range(2)
    ]
    started = time.process_time()
    layout(boxes, wires)
    assert time.process_time() - started < 3


def test_nothing_and_one_box() -> None:
    assert layout([], []) == Placed({}, {}, {}, 0, 0)
    assert layout([Vertex("x", 30, 20)], []).centers == {"x": (15, 10)}
