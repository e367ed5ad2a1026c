"""Whether a layout is readable: no wire touches a box or a label that is not its own."""

from __future__ import annotations

import numpy as np

from functional_bp.explain.pictures.boxes import Box, Placed, Point, Wire

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
