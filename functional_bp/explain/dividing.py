"""Large scopes in parts that can be looked at: by the functions called, or where few values pass.

1. Equations that one call of a person's Python function made are a part, under its name; slices
   that it alone is given (``step(h, xs[t])``) belong to it.
2. What is still too much is cut, in the order of execution, where the fewest values pass from one
   part to the next: in a network, between its blocks.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from itertools import accumulate

from functional_bp import _jax
from functional_bp.explain.pictures.contents import Contents, Node
from functional_bp.explain.scopes import Scope
from functional_bp.graph.parts import Variable

FEWEST, USUAL = 6, 24  # items of a part that is cut out
EVENNESS = 0.15  # what one item more or less than usual counts, in values that pass
CALL = 3  # operators that a call must have made to be a part
SLICES = frozenset({"slice", "dynamic_slice", "squeeze", "gather"})

Call = tuple[str, tuple[int, ...]]  # a function, and the expression in it that runs
Item = Scope | Node


def divide(root: Scope, shown: Contents, most: int) -> None:
    """Divide the scopes that hold more than ``most`` items."""
    for scope in list(root.walk()):
        _divide(scope, shown, most, 0)


def _divide(scope: Scope, shown: Contents, most: int, depth: int) -> None:
    if len(scope.items) <= most:
        return
    stacks = _stacks(scope.items)
    depth = max(depth, _shared_depth(stacks))
    calls = _calls(stacks, depth)
    if 1 < len(calls) < len(scope.items):
        items, scope.items = scope.items, []
        for start, stop, function in calls:
            if stop - start < CALL or not function:
                scope.items += items[start:stop]
            else:
                _enclose(scope, items[start:stop], function, _lines(items[start:stop]))
        _give_slices(scope, shown)
        for inner in scope.items:
            if isinstance(inner, Scope) and inner.divided:
                _divide(inner, shown, most, depth + 1)
    while len(scope.items) > most:
        items, scope.items = scope.items, []
        passing = _passing(items, shown)
        for number, (start, stop) in enumerate(_cuts(passing, most)):
            _enclose(scope, items[start:stop], f"part_{number + 1}", _lines(items[start:stop]))


def _enclose(scope: Scope, items: Sequence[Item], name: str, lines: str) -> Scope:
    """Put items of a scope in one of their own."""
    part = scope.add_scope(name, divided=True)
    part.note = lines
    part.items = list(items)
    for item in items:
        if isinstance(item, Scope):
            _move(item, part)
    return part


def _give_slices(scope: Scope, shown: Contents) -> None:
    """Put slices without a name, of which one part alone makes use, in that part."""
    part_of = {
        node: item
        for item in scope.items
        if isinstance(item, Scope) and item.divided
        for node in item.operators
    }
    made: dict[Node, list[Variable]] = {}
    for variable, node in shown.maker.items():
        made.setdefault(node, []).append(variable)
    ends = {output.variable for output in shown.outputs}
    for item in reversed(scope.items):
        if not isinstance(item, Node) or item.equations[0].operation not in SLICES:
            continue
        variables = made.get(item, [])
        users = {part_of.get(use.head) for v in variables for use in shown.uses.get(v, ())}
        user = users.pop() if len(users) == 1 else None
        if user is None or any(v in ends or v in shown.names for v in variables):
            continue
        user.items.insert(0, item)
        part_of[item] = user
    scope.items = [item for item in scope.items if item not in part_of]


def _move(scope: Scope, parent: Scope) -> None:
    scope.parent = parent
    last = scope.path.rpartition("/")[2]
    scope.path = f"{parent.path}/{last}" if parent.path else last
    for item in scope.items:
        if isinstance(item, Scope):
            _move(item, scope)


def _stacks(items: Sequence[Item]) -> list[tuple[Call, ...]]:
    """For each item the person's functions that were running, outermost first.

    What JAX traced once for several calls (a scope, an operation of its own library) has the stack
    of the item before it.
    """
    own = [_stack(item) if isinstance(item, Node) else () for item in items]
    first = next(filter(None, own), ())
    return list(accumulate(own, lambda before, stack: stack or before, initial=first))[1:]


def _stack(node: Node) -> tuple[Call, ...]:
    frames = _jax.source_spans(node.equations[0].eqn)
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    outer = [f for f in reversed(frames) if not f[0].startswith(package)]
    return tuple((function.rpartition(".")[2], tuple(extent)) for _, function, *extent in outer)


def _shared_depth(stacks: Sequence[tuple[Call, ...]]) -> int:
    """How many functions were running all along, less the one whose lines tell the calls apart."""
    depth = 0
    while all(len(s) > depth + 1 for s in stacks) and len({s[: depth + 1] for s in stacks}) == 1:
        depth += 1
    return depth


def _calls(stacks: Sequence[tuple[Call, ...]], depth: int) -> list[tuple[int, int, str]]:
    """Where calls that the function at a depth makes begin and end; "" for its own equations."""
    keys = [(s[depth][1], s[depth + 1][0]) if len(s) > depth + 1 else None for s in stacks]
    found: list[tuple[int, int, str]] = []
    start = 0
    for i in range(1, len(stacks) + 1):
        if i < len(stacks) and keys[i] == keys[start]:
            first, before = stacks[start], stacks[i - 1]
            again = keys[i] is not None and stacks[i] == first and before != first
            if not again:
                continue
        key = keys[start]
        found.append((start, i, key[1] if key else ""))
        start = i
    return found


def _passing(items: Sequence[Item], shown: Contents) -> list[int]:
    """For each place between two items, how many values pass it; arguments do not count."""
    place = {node: i for i, item in enumerate(items) for node in
             (item.operators if isinstance(item, Scope) else (item,))}  # fmt: skip
    change = [0] * (len(items) + 1)
    for variable, uses in shown.uses.items():
        start = place.get(shown.maker[variable])
        if start is None:
            continue
        last = max(place.get(use.head, start) for use in uses)
        change[start] += 1
        change[last] -= 1
    return list(accumulate(change))[: len(items) - 1]


def _cuts(passing: Sequence[int], most: int) -> list[tuple[int, int]]:
    """The cheapest way to cut items in parts of at most ``most``."""
    count = len(passing) + 1
    usual = max(USUAL, math.ceil(count / most))
    usual = min(usual, most)
    cost: Callable[[int, int], float] = lambda start, stop: (  # noqa: E731
        (passing[stop - 1] if stop < count else 0) + EVENNESS * abs(stop - start - usual)
    )
    best: list[float] = [0.0]
    came_from = [0]
    for stop in range(1, count + 1):
        starts = [s for s in range(max(0, stop - most), max(0, stop - FEWEST) + 1)]
        start = min(starts, key=lambda s: best[s] + cost(s, stop))
        best.append(best[start] + cost(start, stop))
        came_from.append(start)
    cuts, stop = [], count
    while stop:
        cuts.append((came_from[stop], stop))
        stop = came_from[stop]
    return cuts[::-1]


def _lines(items: Sequence[Item]) -> str:
    """The source lines that a part comes from, if they are in one file: "lines 12–40"."""
    nodes = [n for item in items for n in (item.operators if isinstance(item, Scope) else (item,))]
    places = {n.equations[0].source for n in nodes} - {None}
    files = {place[0] for place in places if place}
    if len(files) != 1:
        return ""
    lines = [place[1] for place in places if place]
    first, last = min(lines), max(lines)
    return f"line {first}" if first == last else f"lines {first}–{last}"
