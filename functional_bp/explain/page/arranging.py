"""Where the cards of a view stand: layers, and beside them what layers would spread out.

1. Cards that are fed by the same cards and feed the same cards, as the heads of attention do, are
   twins: five or more of them stand in a frame, and a wire to one is drawn to the frame.
2. What is shared (a weight used in many places) stands at the left, with wires that bend to the
   left sides of what uses it.
3. The rest, each frame as one box, is laid out from top to bottom; from left to right where that
   is seen larger.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from functional_bp.explain.pictures.boxes import Box, Placed, Point, Wire
from functional_bp.explain.pictures.layout import layout

WINDOW = (830.0, 790.0)  # what a picture usually has
WIDE = 2.0  # width over height, from which on a layout from left to right is tried
FEWEST_TWINS = 5
FRAME_WIDTH = 760.0  # of the cards in a frame, at most
GAP = 14.0  # of cards in a frame
COLUMN, FAN, BETWEEN = 34.0, 9.0, 18.0  # room for wires of what is shared, and between its cards

Frame = list[float]  # left, top, width, height


class Arranged(NamedTuple):
    """Centres by card, routes by wire, and the frames around twins."""

    placed: Placed
    frames: list[Frame]


def arranged(
    boxes: Sequence[Box], joins: Sequence[tuple[int, int]], shared: Sequence[int]
) -> Arranged:
    """The layout of a view.

    Args:
        boxes: the cards; a card's key is its place in this list.
        joins: for each wire the cards at its ends.
        shared: the cards that stand at the left of the rest.
    """
    groups = _twins(len(boxes), [join for join in joins if join[0] not in shared])
    frame_of: dict[Any, Any] = {i: ("frame", g) for g, group in enumerate(groups) for i in group}
    outer: dict[Any, Box] = {}
    for box in boxes:
        i = box.key
        if i in shared:
            continue
        key = frame_of.get(i, i)
        if key not in outer:
            members = groups[key[1]] if isinstance(key, tuple) else []
            outer[key] = _frame(key, [boxes[m] for m in members]) if members else box
    ends = {(frame_of.get(a, a), frame_of.get(b, b)): None for a, b in joins if a not in shared}
    wires = [Wire(pair, *pair) for pair in ends]
    placed = layout(outer.values(), wires, "down")
    if placed.width > WIDE * placed.height and placed.width > WINDOW[0]:
        # many things side by side are larger one above the other
        placed = max(placed, layout(outer.values(), wires, "right"), key=_visible)
    centers = {key: at for key, at in placed.centers.items() if not isinstance(key, tuple)}
    frames: list[Frame] = []
    for g, group in enumerate(groups):
        key = ("frame", g)
        x, y = placed.centers[key]
        left, top = x - outer[key].width / 2, y - outer[key].height / 2
        frames.append([left, top, outer[key].width, outer[key].height])
        centers |= _in_frame([boxes[m] for m in group], left, top)
    routes: dict[Any, list[Point]] = {
        wire: placed.routes[frame_of.get(a, a), frame_of.get(b, b)]
        for wire, (a, b) in enumerate(joins)
        if a not in shared
    }
    placed = Placed(centers, routes, {}, placed.width, placed.height)
    return (
        _beside(Arranged(placed, frames), boxes, joins, shared)
        if shared
        else Arranged(placed, frames)
    )


def _twins(count: int, joins: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Groups of cards with the same cards before and the same cards behind."""
    before: list[set[int]] = [set() for _ in range(count)]
    after: list[set[int]] = [set() for _ in range(count)]
    for a, b in joins:
        after[a].add(b)
        before[b].add(a)
    alike: dict[Any, list[int]] = {}
    for i in range(count):
        if before[i] and after[i]:
            alike.setdefault((frozenset(before[i]), frozenset(after[i])), []).append(i)
    return [group for group in alike.values() if len(group) >= FEWEST_TWINS]


def _cells(members: Sequence[Box]) -> tuple[int, float, float]:
    """The columns of a frame, and the size of a cell in it."""
    width = max(box.width for box in members) + GAP
    height = max(box.height for box in members) + GAP
    most = max(1, int(FRAME_WIDTH // width))
    rows = math.ceil(len(members) / most)
    return math.ceil(len(members) / rows), width, height


def _frame(key: Any, members: Sequence[Box]) -> Box:
    columns, width, height = _cells(members)
    rows = math.ceil(len(members) / columns)
    return Box(key, columns * width + GAP, rows * height + GAP)


def _in_frame(members: Sequence[Box], left: float, top: float) -> dict[Any, Point]:
    columns, width, height = _cells(members)
    return {
        box.key: (
            left + GAP / 2 + (i % columns + 0.5) * width,
            top + GAP / 2 + (i // columns + 0.5) * height,
        )
        for i, box in enumerate(members)
    }


def _beside(
    rest: Arranged,
    boxes: Sequence[Box],
    joins: Sequence[tuple[int, int]],
    shared: Sequence[int],
) -> Arranged:
    """What is shared at the left of the rest.

    Wires to all places that use a weight would pull the rest apart.
    """
    placed = rest.placed
    left = max(boxes[i].width for i in shared) + COLUMN + FAN * len(shared)
    centers: dict[Any, Point] = {key: (x + left, y) for key, (x, y) in placed.centers.items()}
    routes = {k: [(x + left, y) for x, y in route] for k, route in placed.routes.items()}
    y = 0.0
    for place, i in enumerate(shared):
        box = boxes[i]
        centers[i] = (box.width / 2, y + box.height / 2)
        y += box.height + BETWEEN
        for wire, (a, b) in enumerate(joins):
            if a == i:
                offset = 5.0 * (place - (len(shared) - 1) / 2)
                end = (centers[b][0] - boxes[b].width / 2, centers[b][1] + offset)
                routes[wire] = _bent((box.width, centers[i][1]), end, left - FAN * (place + 1))
    height = max(placed.height, y - BETWEEN)
    frames = [[x + left, *others] for x, *others in rest.frames]
    return Arranged(Placed(centers, routes, {}, placed.width + left, height), frames)


def _visible(placed: Placed) -> float:
    """The scale at which a layout fits in a window."""
    return min(WINDOW[0] / placed.width, WINDOW[1] / placed.height)


def _bent(start: Point, end: Point, x: float) -> list[Point]:
    """From a right side to a left side, level at both, down along ``x``."""
    (x0, y0), (x1, y1) = start, end
    bend = min(24.0, abs(y1 - y0) / 2)
    down = bend if y1 > y0 else -bend
    x = max(x, x0 + 4)
    turn = min(24.0, max(x - x0, 4.0))
    return [
        (x0, y0), (x - turn, y0), (x - turn, y0), (x - turn, y0),
        (x, y0), (x, y0), (x, y0 + down),
        (x, y0 + down), (x, y1 - down), (x, y1 - down),
        (x, y1), (x, y1), (x + turn, y1),
        (x + turn, y1), (x1, y1), (x1, y1),
    ]  # fmt: skip
