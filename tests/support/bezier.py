"""Where curves and boxes of a picture lie."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Rectangle = tuple[float, ...]  # left, top, right, bottom


def points_of(route: Sequence[tuple[float, float]]) -> np.ndarray:
    """Points [n, 2] along a chain of cubic Bézier curves."""
    t = np.linspace(0, 1, 40)[:, None]
    pieces = []
    for i in range(0, len(route) - 1, 3):
        a, b, c, d = np.array(route[i : i + 4])
        pieces.append(
            (1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * b + 3 * (1 - t) * t**2 * c + t**3 * d
        )
    return np.concatenate(pieces)


def overlap(a: Rectangle, b: Rectangle, slack: float = 0.5) -> bool:
    return min(a[2], b[2]) - max(a[0], b[0]) > slack and min(a[3], b[3]) - max(a[1], b[1]) > slack
