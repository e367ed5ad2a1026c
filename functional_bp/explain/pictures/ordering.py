"""The order inside the layers of a layout that has few crossings: sweeps of barycentres."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

Layers = list[list[int]]
Neighbours = Sequence[Sequence[int]]

SWEEPS = 16
MOST_TRANSPOSED = 1500  # nodes, beyond which neighbours are not exchanged one by one


def ordered(layers: Layers, before: Neighbours, after: Neighbours) -> Layers:
    """The layers in an order with fewer crossings.

    Args:
        layers: node numbers by layer, in a first order.
        before: for each node its neighbours in the layer before.
        after: the same in the layer after.
    """
    best, fewest = layers, _all_crossings(layers, after)
    current = layers
    stale = 0
    for sweep in range(SWEEPS):
        if fewest == 0 or stale > 5:
            break
        forward = sweep % 2 == 0
        current = _swept(current, before if forward else after, forward, sweep % 4 > 1)
        if sum(map(len, layers)) <= MOST_TRANSPOSED:
            current = _transposed(current, before, after)
        count = _all_crossings(current, after)
        stale += 1
        if count < fewest:
            best, fewest, stale = current, count, 0
    return best


def _swept(layers: Layers, fixed: Neighbours, forward: bool, reverse_ties: bool) -> Layers:
    """Each layer sorted by the mean position of its neighbours in the layer done before it."""
    result = list(layers)
    position: dict[int, int] = {}
    for level in range(len(layers)) if forward else reversed(range(len(layers))):
        wanted: dict[int, tuple[float, int]] = {}
        for place, node in enumerate(layers[level]):
            near = [position[other] for other in fixed[node] if other in position]
            mean = sum(near) / len(near) if near else float(place)
            wanted[node] = mean, -place if reverse_ties else place
        result[level] = sorted(layers[level], key=wanted.__getitem__)
        position = {node: place for place, node in enumerate(result[level])}
    return result


def _transposed(layers: Layers, before: Neighbours, after: Neighbours) -> Layers:
    """Neighbours exchanged wherever that saves a crossing, a few times over."""
    result = [list(layer) for layer in layers]
    position = {node: place for layer in result for place, node in enumerate(layer)}
    for _ in range(4):
        better = False
        for layer in result:
            for i in range(len(layer) - 1):
                u, v = layer[i], layer[i + 1]
                saved = 0
                for near in (before, after):
                    us = sorted(position[n] for n in near[u])
                    vs = sorted(position[n] for n in near[v])
                    saved += _inversions(us, vs) - _inversions(vs, us)
                if saved > 0:
                    layer[i], layer[i + 1] = v, u
                    position[u], position[v] = i + 1, i
                    better = True
        if not better:
            break
    return result


def _inversions(first: list[int], second: list[int]) -> int:
    """Pairs (a in first, b in second) with a > b, both lists sorted."""
    return sum(len(first) - bisect_right(first, b) for b in second)


def _all_crossings(layers: Layers, after: Neighbours) -> int:
    count = 0
    for layer, following in zip(layers, layers[1:]):
        position = {node: place for place, node in enumerate(following)}
        seen: list[int] = []
        for node in layer:
            ends = sorted(position[other] for other in after[node])
            count += sum(len(seen) - bisect_right(seen, end) for end in ends)
            for end in ends:
                seen.insert(bisect_right(seen, end), end)
    return count
