"""Cards of the page: nothing overlaps, twins stand in a frame, what is shared beside the rest."""

from itertools import combinations

import numpy as np
import pytest

from functional_bp.explanation.page.drawing import FEWEST_TWINS, Arranged, arranged
from functional_bp.explanation.pictures.layered import Vertex

WIDE, HEADS = 220.0, 12


def sized(count: int) -> list[Vertex]:
    return [Vertex(i, WIDE, 38.0) for i in range(count)]


def fan(heads: int) -> tuple[list[Vertex], list[tuple[int, int]]]:
    """One card, ``heads`` that it feeds, and one that they all feed."""
    joins = [(0, i) for i in range(1, heads + 1)] + [(i, heads + 1) for i in range(1, heads + 1)]
    return sized(heads + 2), joins


def overlapping(found: Arranged, boxes: list[Vertex]) -> list[tuple[int, int]]:
    at = found.placed.centers
    return [
        (i, j)
        for i, j in combinations(range(len(boxes)), 2)
        if abs(at[i][0] - at[j][0]) < (boxes[i].width + boxes[j].width) / 2
        and abs(at[i][1] - at[j][1]) < (boxes[i].height + boxes[j].height) / 2
    ]


CHAIN = [(i, i + 1) for i in range(1, 9)]
GRAPHS = {
    "fan": (*fan(HEADS), []),
    "chain with a weight": (sized(10), [*CHAIN, *((0, i) for i in range(1, 10))], [0]),
    "twins with a weight": (
        sized(HEADS + 3),
        [*fan(HEADS)[1], *((HEADS + 2, i) for i in range(1, HEADS + 1))],
        [HEADS + 2],
    ),
    "one card": (sized(1), [], []),
}
every = pytest.mark.parametrize("name", GRAPHS)


@every
def test_no_card_stands_on_another(name):
    boxes, joins, shared = GRAPHS[name]
    assert not overlapping(arranged(boxes, joins, shared), boxes)


def test_the_witness_sees_an_overlap():
    boxes, joins, shared = GRAPHS["fan"]
    found = arranged(boxes, joins, shared)
    x, y = found.placed.centers[1]
    found.placed.centers[2] = (x + 5, y)
    assert overlapping(found, boxes) == [(1, 2)]


@every
def test_every_card_and_wire_is_placed_on_the_page(name):
    boxes, joins, shared = GRAPHS[name]
    placed = arranged(boxes, joins, shared).placed
    assert set(placed.centers) == {box.key for box in boxes}
    assert set(placed.routes) == set(range(len(joins)))
    for box in boxes:
        x, y = placed.centers[box.key]
        assert box.width / 2 - 0.1 <= x <= placed.width - box.width / 2 + 0.1
        assert box.height / 2 - 0.1 <= y <= placed.height - box.height / 2 + 0.1
    for route in placed.routes.values():
        assert len(route) % 3 == 1  # a chain of Bézier curves


def test_twins_stand_in_a_frame_to_which_their_wires_are_drawn():
    boxes, joins = fan(HEADS)
    placed, frames = arranged(boxes, joins, [])
    ((left, top, width, height),) = frames
    for i in range(1, HEADS + 1):
        x, y = placed.centers[i]
        assert left < x - WIDE / 2 and x + WIDE / 2 < left + width
        assert top < y - 19 and y + 19 < top + height
        np.testing.assert_allclose(placed.routes[i - 1][-1][1], top, atol=1.0)
    assert placed.width < HEADS * WIDE / 2  # in one row they would be twice as wide at least


def test_few_cards_alike_need_no_frame():
    boxes, joins = fan(FEWEST_TWINS - 1)
    assert not arranged(boxes, joins, []).frames


def test_what_is_shared_stands_left_of_all_that_uses_it():
    boxes, joins, shared = GRAPHS["chain with a weight"]
    placed = arranged(boxes, joins, shared).placed
    right = placed.centers[0][0] + WIDE / 2
    assert all(right < placed.centers[i][0] - WIDE / 2 for i in range(1, 10))
    for wire, (a, b) in enumerate(joins):
        if a == 0:
            assert placed.routes[wire][-1][0] == pytest.approx(placed.centers[b][0] - WIDE / 2)
