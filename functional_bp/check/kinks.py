"""Kinks: is a claim that differs from the reference a valid subgradient all the same?

At a point where f has no derivative, every value between its one-sided slopes is a subgradient (of
Clarke's generalised gradient, along the directions tried here). relu'(0) may be 0, ½ or 1, a tie of
two maxima may be given to one of them: another convention is no error.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from functional_bp.check.arrays import UNIT64, all_finite
from functional_bp.check.evaluation import Evaluation, Point

ENTRIES = 3  # disagreeing entries of an argument that are looked at
OUTPUTS = 3  # outputs that each of them moves


def is_valid_subgradient(
    evaluation: Evaluation, point: Point, masks: Sequence[np.ndarray], rng: np.random.Generator
) -> bool:
    """Whether at disagreeing entries the claim lies between the one-sided slopes.

    Args:
        evaluation: runs the claim in float64.
        point: where the disagreement was found.
        masks: per active leaf, the entries that disagree.
        rng: chooses which of them to look at.
    """
    tested = 0
    for leaf, mask in enumerate(masks):
        places = np.argwhere(mask)
        if not len(places):
            continue
        if point.actives[leaf].dtype.kind == "c":
            return False
        rng.shuffle(places)
        for place in places[:ENTRIES]:
            found = _entry_is_valid(evaluation, point, leaf, tuple(int(i) for i in place))
            if not found:
                return False
            tested += found
    return tested > 0


def _entry_is_valid(evaluation: Evaluation, point: Point, leaf: int, place: tuple[int, ...]) -> int:
    """How many output entries were judged with the claim between the slopes; 0 if one is not."""
    x = point.actives[leaf]
    step = 1e-6 * max(1e-3, abs(float(x[place])), float(np.mean(np.abs(x))))
    unit = np.zeros_like(x)
    unit[place] = 1.0
    tied = (np.abs(x - x[place]) <= 1e-12 * (1 + abs(x[place]))).astype(x.dtype)

    def outs(direction: np.ndarray, sign: int) -> list[np.ndarray]:
        moved = list(point.actives)
        moved[leaf] = x + sign * step * direction
        return [np.asarray(o, np.float64) for o in evaluation.outs(moved, point.fixed)]

    here = outs(unit, 0)
    ahead, behind = outs(unit, 1), outs(unit, -1)
    change = [np.abs(a - h) + np.abs(b - h) for a, h, b in zip(ahead, here, behind)]
    touched = [(k, j) for k, c in enumerate(change) for j in np.flatnonzero(c.ravel())[:OUTPUTS]]
    tested = 0
    for k, j in (touched or [(0, 0)])[:OUTPUTS]:
        bars = tuple(np.zeros_like(bar) for bar in point.bars)
        bars[k].reshape(-1)[j] = 1.0
        claim = evaluation.both(point._replace(bars=bars)).claimed[leaf]
        if not all_finite([claim]):
            return 0
        for direction in (unit, tied, np.ones_like(x)):
            a, b, c = (outs(direction, sign)[k].reshape(-1)[j] for sign in (1, 0, -1))
            slopes = sorted(((a - b) / step, (b - c) / step))
            rounding = 8 * UNIT64 * max(abs(a), abs(b), abs(c)) / step
            size = abs(slopes[0]) + abs(slopes[1])
            is_smooth = slopes[1] - slopes[0] <= 1e-2 * size + 4 * rounding
            if direction is unit and is_smooth:
                return 0  # no kink here, no excuse
            room = 1e-3 * size + 4 * rounding
            if not slopes[0] - room <= float(np.sum(claim * direction)) <= slopes[1] + room:
                return 0
            tested += 1
    return tested
