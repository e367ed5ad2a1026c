"""Positions along the layers of a layout: straight wires where there is room for them.

Each node wants to be where its wires are level. With the order of a layer fixed and a distance
kept, the best positions of one layer are an isotonic regression, solved exactly by pooling
neighbours that violate the order; sweeps over the layers repeat it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

Layers = list[list[int]]
SWEEPS = 5
LEVEL = 18.0  # a wire that climbs less than this is made level if it can be
FAR = 60.0  # the same between two bends of a long wire
STIFF = 8.0  # the weight of what is between two such bends


class Link(NamedTuple):
    """A piece of a wire between nodes of adjacent layers: where it is attached, how stiff it is."""

    tail: int
    head: int
    tail_offset: float
    head_offset: float
    weight: float


class _Pull(NamedTuple):
    """One end of a link, seen from a node: it is level when the node is at ``other + shift``."""

    other: int
    shift: float
    weight: float


def aligned(
    layers: Layers, links: Sequence[Link], distance: Sequence[Sequence[float]]
) -> list[float]:
    """A position for each node.

    Args:
        layers: node numbers, in order.
        links: between nodes of adjacent layers.
        distance: for each layer, the least distance of each node to the one before it.
    """
    count = sum(map(len, layers))
    before: list[list[_Pull]] = [[] for _ in range(count)]
    after: list[list[_Pull]] = [[] for _ in range(count)]
    for u, v, at_u, at_v, weight in links:
        before[v].append(_Pull(u, at_u - at_v, weight))
        after[u].append(_Pull(v, at_v - at_u, weight))
    both = [[*left, *right] for left, right in zip(before, after)]
    position = [0.0] * count
    for layer, gaps in zip(layers, distance):
        place = -sum(gaps[1:]) / 2
        for node, gap in zip(layer, [0.0, *gaps[1:]]):
            place += gap
            position[node] = place
    levels = list(range(len(layers)))
    for pulls, order in [(before, levels), (after, levels[::-1])] * 2:
        for level in order:
            _settle(layers[level], distance[level], pulls, position)
    for sweep in range(SWEEPS):
        for level in levels if sweep % 2 else levels[::-1]:
            _settle(layers[level], distance[level], both, position)
    _level(layers, distance, both, position)
    return position


def _settle(
    layer: list[int],
    gaps: Sequence[float],
    pulls: Sequence[Sequence[_Pull]],
    position: list[float],
) -> None:
    """Move the nodes of one layer to where their wires are most level, in order and apart."""
    blocks: list[tuple[float, float, int]] = []  # position of its first node, weight, nodes
    offset, offsets = 0.0, []
    for i, node in enumerate(layer):
        offset += gaps[i] if i else 0.0
        offsets.append(offset)
        near = pulls[node]
        weight = sum(p.weight for p in near)
        if weight:
            wanted = sum(p.weight * (position[p.other] + p.shift) for p in near) / weight
        else:
            wanted, weight = position[node], 0.01
        mean, size = wanted - offset, 1
        while blocks and blocks[-1][0] > mean:
            above, its_weight, its_size = blocks.pop()
            mean = (mean * weight + above * its_weight) / (weight + its_weight)
            weight, size = weight + its_weight, size + its_size
        blocks.append((mean, weight, size))
    places = iter(zip(layer, offsets))
    for mean, _, size in blocks:
        for _ in range(size):
            node, offset = next(places)
            position[node] = mean + offset


def _level(
    layers: Layers,
    distance: Sequence[Sequence[float]],
    pulls: Sequence[Sequence[_Pull]],
    position: list[float],
) -> None:
    """Make wires that are almost level exactly so, where nothing stands in the way.

    What is joined by level wires moves together.
    """
    place = {node: (level, i) for level, layer in enumerate(layers) for i, node in enumerate(layer)}

    def group(start: int) -> set[int]:
        found, waiting = {start}, [start]
        while waiting:
            node = waiting.pop()
            for other, shift, _ in pulls[node]:
                if other not in found and abs(position[other] + shift - position[node]) < 0.01:
                    found.add(other)
                    waiting.append(other)
        return found

    def fits(moved: set[int], by: float) -> bool:
        for node in moved:
            level, i = place[node]
            layer, gaps = layers[level], distance[level]
            if i and layer[i - 1] not in moved:
                if position[node] + by < position[layer[i - 1]] + gaps[i] - 0.001:
                    return False
            if i + 1 < len(layer) and layer[i + 1] not in moved:
                if position[node] + by > position[layer[i + 1]] - gaps[i + 1] + 0.001:
                    return False
        return True

    for _ in range(3):
        moves = 0
        for layer in layers:
            for node in layer:
                for other, shift, weight in pulls[node]:
                    by = position[other] + shift - position[node]
                    if 0.01 <= abs(by) < (FAR if weight >= STIFF else LEVEL):
                        moved = group(node)
                        if other not in moved and fits(moved, by):
                            moves += 1
                            for each in moved:
                                position[each] += by
        if not moves:
            break
