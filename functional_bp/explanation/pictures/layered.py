"""A layered layout places boxes and wires, with few crossings and level wires.

1. Boxes are put in layers along the direction of the wires, each near its uses (``ranks``).
2. A wire that passes layers has a bend in each of them; its label stands in a layer between.
3. The order inside each layer is chosen for few crossings, by sweeps of barycentres (``ordered``);
   positions are chosen for level wires (``aligned``). With the order of a layer fixed and a
   distance kept, the best positions are an isotonic regression, solved exactly by pooling
   neighbours that violate the order; sweeps over the layers repeat it.
4. Inside a layer a wire runs level, in space of its own; it climbs or falls only between layers.
   So no wire touches a box or a label that is not its own.

>>> placed = layout([Vertex("x", 20, 20), Vertex("y", 20, 20)], [Wire("w", "x", "y", 30, 24)])
>>> placed.centers["x"][0] < placed.labels["w"][0] < placed.centers["y"][0]
True
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from graphlib import TopologicalSorter
from itertools import accumulate, pairwise
from typing import Literal, NamedTuple

import numpy as np

Direction = Literal["right", "down"]
Point = tuple[float, float]


class Vertex(NamedTuple):
    """A vertex is a box with a place of its own; width and height are in points.

    Wires are attached to the sides that face other layers, within ``core`` points around their
    middle; anywhere where it is 0.
    """

    key: Hashable
    width: float
    height: float
    core: float = 0


class Wire(NamedTuple):
    """A wire goes from the box ``tail`` to the box ``head``, with space for its label if asked."""

    key: Hashable
    tail: Hashable
    head: Hashable
    label_width: float = 0
    label_height: float = 0


class Placed(NamedTuple):
    """Everything has its place, in points; x grows to the right, y downwards, both from 0.

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

    def moved(self, to: Callable[[float, float], Point], width: float, height: float) -> Placed:
        """Return everything at other places, in a frame of another size."""
        return Placed(
            {key: to(*center) for key, center in self.centers.items()},
            {key: [to(*point) for point in route] for key, route in self.routes.items()},
            {key: to(*label) for key, label in self.labels.items()},
            width,
            height,
        )


def framed(placed: Placed, boxes: list[Vertex], wires: list[Wire]) -> Placed:
    """Move everything to where its frame begins at 0, and measure the frame."""
    corners = [*(p for route in placed.routes.values() for p in route)]
    sized = [(placed.centers[b.key], b.width, b.height) for b in boxes]
    sized += [
        (placed.labels[w.key], w.label_width, w.label_height)
        for w in wires
        if w.key in placed.labels
    ]
    for (x, y), width, height in sized:
        corners += [(x - width / 2, y - height / 2), (x + width / 2, y + height / 2)]
    xs, ys = zip(*corners)
    left, top = min(xs), min(ys)
    return placed.moved(
        lambda x, y: (round(x - left, 2), round(y - top, 2)),
        round(max(xs) - left, 2),
        round(max(ys) - top, 2),
    )


def layout(
    boxes: Iterable[Vertex], wires: Iterable[Wire], direction: Direction = "right"
) -> Placed:
    """Place boxes in layers along ``direction``, wires and their labels between them.

    Args:
        boxes: with keys that differ.
        wires: with keys that differ, from one box to another of them; cycles are allowed.
        direction: where the heads of wires are, seen from their tails.
    """
    boxes, wires = list(boxes), list(wires)
    if not boxes:
        return Placed({}, {}, {}, 0.0, 0.0)
    if direction == "right":
        return framed(place_layered(boxes, wires), boxes, wires)
    turned = place_layered(
        [Vertex(b.key, b.height, b.width, b.core) for b in boxes],
        [w._replace(label_width=w.label_height, label_height=w.label_width) for w in wires],
    )
    return framed(turned.moved(lambda x, y: (y, x), 0.0, 0.0), boxes, wires)


# The order inside the layers.

Layers = list[list[int]]
Neighbours = Sequence[Sequence[int]]

ORDERING_SWEEPS = 16
MOST_TRANSPOSED = 1500  # nodes, beyond which neighbours are not exchanged one by one


def ordered(layers: Layers, before: Neighbours, after: Neighbours) -> Layers:
    """Return the layers in an order with fewer crossings.

    Args:
        layers: node numbers by layer, in a first order.
        before: for each node its neighbours in the layer before.
        after: the same in the layer after.
    """
    best, fewest = layers, _all_crossings(layers, after)
    current = layers
    stale = 0
    for sweep in range(ORDERING_SWEEPS):
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
                insort(seen, end)
    return count


# The layers: every wire forwards, all of them together as short as can be.

Edge = tuple[int, int]


def back_edges(count: int, edges: Sequence[Edge]) -> set[int]:
    """Find the edges to turn round so that there is no cycle."""
    out: list[list[tuple[int, int]]] = [[] for _ in range(count)]
    has_input = [False] * count
    for i, (u, v) in enumerate(edges):
        out[u].append((i, v))
        has_input[v] = True
    state = [0] * count  # 1: on the way, 2: done
    back: set[int] = set()
    for root in sorted(range(count), key=lambda node: has_input[node]):
        if state[root]:
            continue
        state[root] = 1
        stack = [(root, iter(out[root]))]
        while stack:
            node, rest = stack[-1]
            for i, following in rest:
                if state[following] == 1:
                    back.add(i)
                elif state[following] == 0:
                    state[following] = 1
                    stack.append((following, iter(out[following])))
                    break
            else:
                state[node] = 2
                stack.pop()
    return back


def ranks(count: int, edges: Sequence[Edge], step: int) -> list[int]:
    """Return the layer of each node, from 0; every edge spans at least ``step`` layers.

    Derivation:

        minimize Σ (rank of head − rank of tail)  subject to  rank of head − rank of tail ≥ step

        is a linear program whose matrix is totally unimodular, so that its corners are whole
        numbers. Of equally short layouts the one farther to the left is taken.
    """
    from scipy import sparse  # both take as long to import as JAX; tables need neither
    from scipy.optimize import linprog

    longest = _longest_path(count, edges, step)
    if not edges:
        return longest
    units = [rank // step for rank in longest]
    cost = np.zeros(count)
    for u, v in edges:
        cost[v] += 1
        cost[u] -= 1
    little = 1 / (4 * count * (max(units) + 1))
    cost += little * (1 + np.arange(count) / count)
    rows = np.repeat(np.arange(len(edges)), 2)
    columns = np.asarray(edges).reshape(-1)
    matrix = sparse.csr_array((np.tile([1.0, -1.0], len(edges)), (rows, columns)))
    matrix.resize((len(edges), count))
    found = linprog(cost, A_ub=matrix, b_ub=-np.ones(len(edges)), method="highs")
    if found.status == 0:
        units = [round(rank) for rank in found.x]
    if any(units[v] <= units[u] for u, v in edges):  # stopped early, or rounded wrongly
        return longest
    return [step * (unit - min(units)) for unit in units]


def _longest_path(count: int, edges: Sequence[Edge], step: int) -> list[int]:
    before: dict[int, list[int]] = {node: [] for node in range(count)}
    for u, v in edges:
        before[v].append(u)
    rank = [0] * count
    for node in TopologicalSorter(before).static_order():
        rank[node] = max((rank[u] + step for u in before[node]), default=0)
    return rank


# Positions along the layers: each node wants to be where its wires are level.

ALIGNING_SWEEPS = 5
LEVEL = 18.0  # a wire that climbs less than this is made level if it can be
FAR = 60.0  # the same between two bends of a long wire
STIFF = 8.0  # the weight of what is between two such bends


class Link(NamedTuple):
    """A link is a piece of a wire between adjacent layers: where it is attached, and how stiff."""

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


Pulls = dict[int, list[_Pull]]


def aligned(
    layers: Layers, links: Sequence[Link], distance: Sequence[Sequence[float]]
) -> dict[int, float]:
    """Return a position for each node.

    Args:
        layers: node numbers, in order.
        links: between nodes of adjacent layers.
        distance: for each layer, the least distance of each node to the one before it.
    """
    before: Pulls = defaultdict(list)
    after: Pulls = defaultdict(list)
    for u, v, at_u, at_v, weight in links:
        before[v].append(_Pull(u, at_u - at_v, weight))
        after[u].append(_Pull(v, at_v - at_u, weight))
    both = {node: [*before[node], *after[node]] for layer in layers for node in layer}
    position: dict[int, float] = {}
    for layer, gaps in zip(layers, distance):
        places = accumulate(gaps[1:], initial=-sum(gaps[1:]) / 2)
        position.update(zip(layer, places))
    levels = list(range(len(layers)))
    for pulls, order in [(before, levels), (after, levels[::-1])] * 2:
        for level in order:
            _settle(layers[level], distance[level], pulls, position)
    for sweep in range(ALIGNING_SWEEPS):
        for level in levels if sweep % 2 else levels[::-1]:
            _settle(layers[level], distance[level], both, position)
    _level(layers, distance, both, position)
    return position


def _settle(
    layer: list[int],
    gaps: Sequence[float],
    pulls: Pulls,
    position: dict[int, float],
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
    pulls: Pulls,
    position: dict[int, float],
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
            layer, gaps, at = layers[level], distance[level], position[node] + by
            if i and layer[i - 1] not in moved:
                if at < position[layer[i - 1]] + gaps[i] - 0.001:
                    return False
            if i + 1 < len(layer) and layer[i + 1] not in moved:
                if at > position[layer[i + 1]] - gaps[i + 1] + 0.001:
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


# The whole of it.

BETWEEN_BOXES = 20.0  # the distance of neighbours in a layer
BETWEEN_LABELS = 8.0
BETWEEN_WIRES = 10.0
BETWEEN_LAYERS = 30.0
MOST_BETWEEN_LAYERS = 72.0
SLOPE = 0.45  # of the height that wires climb between two layers: what they get to do it in
PORT = 12.0  # the distance of wires at a box


def place_layered(boxes: list[Vertex], wires: list[Wire]) -> Placed:
    """Lay out from left to right."""
    number = {box.key: i for i, box in enumerate(boxes)}
    edges = [(number[w.tail], number[w.head]) for w in wires]
    turned = back_edges(len(boxes), edges)
    edges = [(v, u) if i in turned else (u, v) for i, (u, v) in enumerate(edges)]
    step = 2 if any(w.label_width > 0 for w in wires) else 1
    rank = ranks(len(boxes), edges, step)

    widths = [box.width for box in boxes]
    heights = [box.height for box in boxes]
    margins = [BETWEEN_BOXES] * len(boxes)
    chains: list[list[int]] = []
    label_of: dict[int, int] = {}
    for i, ((u, v), wire) in enumerate(zip(edges, wires)):
        chain = [u]
        # of a wire with a label: the last layer before the box where it comes in
        labelled = (rank[u] + 1 if i in turned else rank[v] - 1) if wire.label_width > 0 else None
        for level in range(rank[u] + 1, rank[v]):
            node = len(widths)
            here = level == labelled
            if here:
                label_of[i] = node
            widths.append(wire.label_width if here else 0.0)
            heights.append(wire.label_height if here else 0.0)
            margins.append(BETWEEN_LABELS if here else BETWEEN_WIRES)
            rank.append(level)
            chain.append(node)
        chains.append([*chain, v])
    chains = _without_empty_layers(chains, rank, len(boxes), set(label_of.values()))

    before: list[list[int]] = [[] for _ in widths]
    after: list[list[int]] = [[] for _ in widths]
    for chain in chains:
        for u, v in pairwise(chain):
            after[u].append(v)
            before[v].append(u)
    layers = ordered(_first_order(before, after, rank, len(boxes)), before, after)
    ports = _ports(layers, chains, [box.core or 0.8 * box.height for box in boxes])
    links = [
        Link(u, v, ports[i, k][0], ports[i, k][1], _stiffness(u, v, len(boxes)))
        for i, chain in enumerate(chains)
        for k, (u, v) in enumerate(pairwise(chain))
    ]
    distance = [
        [0.0]
        + [(heights[u] + heights[v]) / 2 + max(margins[u], margins[v]) for u, v in pairwise(layer)]
        for layer in layers
    ]
    ys = aligned(layers, links, distance)
    columns = _columns(layers, links, ys, widths)
    borders = {node: border for layer, border in zip(layers, columns) for node in layer}
    middle = {node: sum(border) / 2 for node, border in borders.items()}
    routes = {}
    for i, (chain, wire) in enumerate(zip(chains, wires)):
        ends = ys[chain[0]] + ports[i, 0][0], ys[chain[-1]] + ports[i, len(chain) - 2][1]
        route = _smooth(_knots(chain, ends, ys, widths, borders, middle))
        routes[wire.key] = route[::-1] if i in turned else route
    return Placed(
        {box.key: (middle[i], ys[i]) for i, box in enumerate(boxes)},
        routes,
        {wires[i].key: (middle[node], ys[node]) for i, node in label_of.items()},
        0.0,
        0.0,
    )


def _stiffness(u: int, v: int, boxes: int) -> float:
    """Bends of a long wire are kept level before wires between boxes are."""
    return (1.0, 2.0, STIFF)[(u >= boxes) + (v >= boxes)]


def _without_empty_layers(
    chains: list[list[int]], rank: list[int], boxes: int, labels: set[int]
) -> list[list[int]]:
    """Drop the layers in which there are bends alone; ``rank`` is renumbered in place."""
    used = sorted({rank[node] for node in (*range(boxes), *labels)})
    level = {r: i for i, r in enumerate(used)}
    kept = [[node for node in chain if rank[node] in level] for chain in chains]
    for node, r in enumerate(rank):
        rank[node] = level.get(r, -1)
    return kept


def _first_order(before: Neighbours, after: Neighbours, rank: list[int], boxes: int) -> Layers:
    """Nodes by layer, as a walk along the wires meets them, back from the ends."""
    layers: Layers = [[] for _ in range(max(rank) + 1)]
    seen: set[int] = set()
    ends = [node for node in range(boxes) if not after[node]]
    for end in (*ends, *range(boxes)):
        stack = [end]
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            layers[rank[node]].append(node)
            stack += reversed(before[node])
    return layers


def _ports(
    layers: list[list[int]], chains: list[list[int]], cores: list[float]
) -> dict[tuple[int, int], tuple[float, float]]:
    """For each piece of each wire, how far from the middle of its ends it is attached."""
    position = {node: i for layer in layers for i, node in enumerate(layer)}
    leaving: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    coming: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for i, chain in enumerate(chains):
        leaving[chain[0]].append((position[chain[1]], i, 0))
        coming[chain[-1]].append((position[chain[-2]], i, len(chain) - 2))
    found = {(i, k): [0.0, 0.0] for i, chain in enumerate(chains) for k in range(len(chain) - 1)}
    for side, ends in ((0, leaving), (1, coming)):
        for node, wires in ends.items():
            gap = min(PORT, cores[node] / len(wires))
            for place, (_, i, k) in enumerate(sorted(wires)):
                found[i, k][side] = gap * (place - (len(wires) - 1) / 2)
    return {key: (at[0], at[1]) for key, at in found.items()}


def _columns(
    layers: list[list[int]], links: list[Link], ys: dict[int, float], widths: list[float]
) -> list[tuple[float, float]]:
    """The left and right border of each layer; wires that climb far get more room for it."""
    climb: dict[int, float] = defaultdict(float)
    for link in links:
        rise = abs(ys[link.tail] + link.tail_offset - ys[link.head] - link.head_offset)
        climb[link.tail] = max(climb[link.tail], rise)
    columns, left = [], 0.0
    for layer in layers:
        right = left + max(widths[node] for node in layer)
        columns.append((left, right))
        rise = max(climb[node] for node in layer)
        left = right + min(max(BETWEEN_LAYERS, SLOPE * rise), MOST_BETWEEN_LAYERS)
    return columns


def _knots(
    chain: list[int],
    ends: tuple[float, float],
    ys: dict[int, float],
    widths: list[float],
    borders: dict[int, tuple[float, float]],
    middle: dict[int, float],
) -> list[Point]:
    """The points where a wire is level: the borders of its boxes, and of the layers it passes."""
    first, *between, last = chain
    start, end = ends
    knots = [(middle[first] + widths[first] / 2, start), (borders[first][1], start)]
    knots += [(x, ys[node]) for node in between for x in borders[node]]
    return [*knots, (borders[last][0], end), (middle[last] - widths[last] / 2, end)]


def _smooth(knots: list[Point]) -> list[Point]:
    """A Bézier chain through the knots, level at each of them; level pieces in a row are one."""
    knots = [here for here, following in pairwise(knots) if here != following] + knots[-1:]
    kept = [knots[0]]
    for before, here, following in zip(knots, knots[1:], knots[2:]):
        if max(abs(before[1] - here[1]), abs(here[1] - following[1])) > 0.01:
            kept.append(here)
    kept.append(knots[-1])
    route = [kept[0]]
    for (x0, y0), (x1, y1) in pairwise(kept):
        if abs(y0 - y1) < 0.01:
            route += [(x0 + (x1 - x0) / 3, y0), (x1 - (x1 - x0) / 3, y1), (x1, y1)]
        else:
            middle = (x0 + x1) / 2
            route += [(middle, y0), (middle, y1), (x1, y1)]
    return route
