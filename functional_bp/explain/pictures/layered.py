"""The built-in layout: layers, few crossings, level wires.

1. Boxes are put in layers along the direction of the wires, each near its uses (``ranking``).
2. A wire that passes layers has a bend in each of them; its label stands in a layer between.
3. The order inside each layer is chosen for few crossings (``ordering``), positions for level wires
   (``aligning``).
4. Inside a layer a wire runs level, in space of its own; it climbs or falls only between layers.
   So no wire touches a box or a label that is not its own.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

from functional_bp.explain.pictures.aligning import STIFF, Link, aligned
from functional_bp.explain.pictures.boxes import Box, Placed, Point, Wire
from functional_bp.explain.pictures.ordering import ordered
from functional_bp.explain.pictures.ranking import back_edges, ranks

BETWEEN_BOXES = 20.0  # the distance of neighbours in a layer
BETWEEN_LABELS = 8.0
BETWEEN_WIRES = 10.0
BETWEEN_LAYERS = 30.0
MOST_BETWEEN_LAYERS = 72.0
SLOPE = 0.45  # of the height that wires climb between two layers: what they get to do it in
PORT = 12.0  # the distance of wires at a box


def place(boxes: list[Box], wires: list[Wire]) -> Placed:
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

    layers = _first_order(chains, rank, len(boxes))
    before: list[list[int]] = [[] for _ in widths]
    after: list[list[int]] = [[] for _ in widths]
    for chain in chains:
        for u, v in pairwise(chain):
            after[u].append(v)
            before[v].append(u)
    layers = ordered(layers, before, after)
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
    ys = _renumbered(layers, links, distance)
    columns = _columns(layers, links, ys, widths)
    level_of = {node: level for level, layer in enumerate(layers) for node in layer}
    middle = {node: sum(columns[level]) / 2 for node, level in level_of.items()}
    routes = {}
    for i, (chain, wire) in enumerate(zip(chains, wires)):
        knots = _knots(chain, [ports[i, k] for k in range(len(chain) - 1)],
                       ys, widths, columns, middle, level_of)  # fmt: skip
        route = _smooth(knots)
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


def _first_order(chains: list[list[int]], rank: list[int], boxes: int) -> list[list[int]]:
    """Nodes by layer, as a walk along the wires meets them, back from the ends."""
    into: dict[int, list[int]] = defaultdict(list)
    out: set[int] = set()
    for chain in chains:
        for u, v in pairwise(chain):
            into[v].append(u)
            out.add(u)
    layers: list[list[int]] = [[] for _ in range(max(rank) + 1)]
    seen: set[int] = set()
    ends = [node for node in range(boxes) if node not in out]
    for end in (*ends, *range(boxes)):
        stack = [end]
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            layers[rank[node]].append(node)
            stack += reversed(into[node])
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


def _renumbered(
    layers: list[list[int]], links: list[Link], distance: list[list[float]]
) -> dict[int, float]:
    """Positions by node; nodes of dropped layers have none."""
    nodes = [node for layer in layers for node in layer]
    number = {node: i for i, node in enumerate(nodes)}
    ys = aligned(
        [[number[node] for node in layer] for layer in layers],
        [link._replace(tail=number[link.tail], head=number[link.head]) for link in links],
        distance,
    )
    return dict(zip(nodes, ys))


def _columns(
    layers: list[list[int]], links: list[Link], ys: dict[int, float], widths: list[float]
) -> list[tuple[float, float]]:
    """The left and right border of each layer; wires that climb far get more room for it."""
    level_of = {node: level for level, layer in enumerate(layers) for node in layer}
    climb = [0.0] * len(layers)
    for link in links:
        rise = abs(ys[link.tail] + link.tail_offset - ys[link.head] - link.head_offset)
        climb[level_of[link.tail]] = max(climb[level_of[link.tail]], rise)
    columns, left = [], 0.0
    for layer, rise in zip(layers, climb):
        right = left + max(widths[node] for node in layer)
        columns.append((left, right))
        left = right + min(max(BETWEEN_LAYERS, SLOPE * rise), MOST_BETWEEN_LAYERS)
    return columns


def _knots(
    chain: list[int],
    ports: list[tuple[float, float]],
    ys: dict[int, float],
    widths: list[float],
    columns: list[tuple[float, float]],
    middle: dict[int, float],
    level_of: dict[int, int],
) -> list[Point]:
    """The points where a wire is level: the borders of its boxes, and of the layers it passes."""
    first, last = chain[0], chain[-1]
    y = ys[first] + ports[0][0]
    knots = [(middle[first] + widths[first] / 2, y), (columns[level_of[first]][1], y)]
    for node in chain[1:-1]:
        left, right = columns[level_of[node]]
        knots += [(left, ys[node]), (right, ys[node])]
    y = ys[last] + ports[-1][1]
    knots += [(columns[level_of[last]][0], y), (middle[last] - widths[last] / 2, y)]
    return knots


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
