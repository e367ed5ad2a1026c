"""The scopes of a flat graph are a tree, each of them small enough to be looked at.

A scope is a call of a function or a ``jax.named_scope``. Where a scope holds more than anybody can
look at, it is divided:

1. Equations that one call of a person's Python function made are a part, under its name; slices
   that it alone is given (``step(h, xs[t])``) belong to it.
2. What is still too much is cut, in the order of execution, where the fewest values pass from one
   part to the next: in a network, between its blocks.

>>> import jax, jax.numpy as jnp, functional_bp as bp
>>> from functional_bp.explanation.pictures.contents import contents
>>> def loss(x):
...     with jax.named_scope("encoder"):
...         h = jnp.tanh(x) * 2
...     return jnp.sum(h * h)
>>> root = scopes(contents(bp.explain(loss, jnp.ones(3))))
>>> root.name, [item.name for item in root.items if isinstance(item, Scope)]
('', ['encoder'])
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

from functional_bp import _jax
from functional_bp.explanation.pictures.contents import Contents, Node, Returned
from functional_bp.graph.graph import Variable
from functional_bp.graph.names import unique

MOST_ITEMS = 60  # operators and closed scopes; a scope with more of them is divided


@dataclass(eq=False)
class Scope:
    """A scope is a part of the graph with a name.

    Attributes:
        path: of names from the top: "encoder/block_2"; "" for the whole graph.
        name: what it is called in the scope that holds it.
        parent: the scope that holds it, None of the whole graph.
        items: operators and scopes in it, in the order of execution.
        divided: whether it was made by dividing a larger scope.
        note: what else is known of it: the lines that it comes from.
    """

    path: str
    name: str
    parent: Scope | None
    items: list[Scope | Node] = field(default_factory=list)
    divided: bool = False
    note: str = ""

    @property
    def scopes(self) -> list[Scope]:
        """Return the scopes in it, without those inside them."""
        return [item for item in self.items if isinstance(item, Scope)]

    def path_of(self, name: str) -> str:
        """Return the path of what has this name in it."""
        return f"{self.path}/{name}" if self.path else name

    def walk(self) -> Iterator[Scope]:
        """Go through it and the scopes inside, each before what it holds."""
        yield self
        for scope in self.scopes:
            yield from scope.walk()

    @property
    def operators(self) -> Iterator[Node]:
        """Go through all operators in it, also those of the scopes inside."""
        for item in self.items:
            yield from operators_of(item)

    @property
    def chain(self) -> list[Scope]:
        """Return the scopes from the whole graph to this one."""
        return [*(self.parent.chain if self.parent else []), self]


def operators_of(item: Scope | Node) -> Iterator[Node]:
    """Go through the operators that an item of a scope is or holds."""
    if isinstance(item, Scope):
        yield from item.operators
    else:
        yield item


class Stub(NamedTuple):
    """A value stands at the border of a scope: it comes from outside, or is used there.

    Attributes:
        variable: the value.
        side: "in" or "out".
        elsewhere: where it comes from, or where it is first used.
    """

    variable: Variable
    side: str
    elsewhere: Scope | Node | Returned


End = Scope | Node | Returned | Stub


@dataclass(frozen=True)
class View:
    """An open scope shows its items, what crosses its border, and what joins them.

    Attributes:
        ends: leaves, operators, closed scopes, outputs, stubs; in the order of execution.
        wires: from one end to another, with the variables that pass.
    """

    ends: list[End]
    wires: dict[tuple[End, End], list[Variable]]


def scopes(shown: Contents) -> Scope:
    """Return the scopes of a picture with all of them open; too large ones are divided."""
    root = Scope("", "", None)
    opened: dict[str, Scope] = {"": root}
    for node in shown.nodes:
        if node.kind != "operator":
            continue
        home = root
        for part in filter(None, node.equations[0].scope.split("/")):
            path = home.path_of(part)
            if path not in opened:
                opened[path] = Scope(path, part, home)
                home.items.append(opened[path])
            home = opened[path]
        home.items.append(node)
    _simplify(root)
    for scope in list(root.walk()):
        _divide(scope, shown, 0)
    return root


def _simplify(scope: Scope) -> None:
    """A scope that holds one item is that item; its name goes into the name of a scope inside."""
    items: list[Scope | Node] = []
    for item in scope.items:
        if isinstance(item, Scope):
            _simplify(item)
            if len(item.items) == 1:
                (only,) = item.items
                if isinstance(only, Scope):
                    only.name, only.parent = f"{item.name}/{only.name}", scope
                item = only
        items.append(item)
    scope.items = items


def views(root: Scope, shown: Contents) -> dict[Scope, View]:
    """Return every scope's view; a leaf stands in the innermost scope that holds all its uses."""
    home: dict[Node | Returned, Scope] = {output: root for output in shown.outputs}
    for scope in root.walk():
        home.update({item: scope for item in scope.items if isinstance(item, Node)})
    uses: list[tuple[Variable, Node | Returned]] = [
        (use.variable, use.head) for found in shown.uses.values() for use in found
    ]
    uses += [(output.variable, output) for output in shown.outputs]
    heads: dict[Variable, list[Scope]] = defaultdict(list)
    for variable, head in uses:
        heads[variable].append(home[head])
    for variable, maker in shown.maker.items():
        if maker.kind == "leaf" and variable in heads:
            home[maker] = _common([scope.chain for scope in heads[variable]])
    leaves: dict[Scope, list[Node]] = defaultdict(list)
    for node in shown.nodes:
        if node.kind == "leaf" and node in home:
            leaves[home[node]].append(node)
    found = {s: View([*leaves[s], *s.items], {}) for s in root.walk()}
    for variable, head in uses:
        tail = shown.maker[variable]
        _join(found, variable, (tail, home[tail]), (head, home[head]))
    for view in found.values():
        wired = (end for wire in view.wires for end in wire)
        view.ends[:] = dict.fromkeys((*view.ends, *wired))
    return found


def _join(
    found: dict[Scope, View],
    variable: Variable,
    tail: tuple[Node, Scope],
    head: tuple[Node | Returned, Scope],
) -> None:
    """Draw one use: in the scope that holds both ends, and at every border that it crosses."""
    out_of, into = tail[1].chain, head[1].chain
    depth = len(_common([out_of, into]).chain) - 1
    ends_out: list[Scope | Node | Returned] = [*out_of, tail[0]]
    ends_in: list[Scope | Node | Returned] = [*into, head[0]]

    def wire(scope: Scope, start: End, end: End) -> None:
        passing = found[scope].wires.setdefault((start, end), [])
        if variable not in passing:
            passing.append(variable)

    wire(out_of[depth], ends_out[depth + 1], ends_in[depth + 1])
    for i in range(depth + 1, len(out_of)):
        stubs = (end for _, end in found[out_of[i]].wires if isinstance(end, Stub))
        known = (stub for stub in stubs if stub.side == "out" and stub.variable is variable)
        stub = next(known, Stub(variable, "out", ends_in[depth + 1]))
        wire(out_of[i], ends_out[i + 1], stub)
    for i in range(depth + 1, len(into)):
        wire(into[i], Stub(variable, "in", ends_out[depth + 1]), ends_in[i + 1])


def _common(chains: Sequence[list[Scope]]) -> Scope:
    """The innermost scope that all chains have."""
    level = 0
    while all(len(c) > level + 1 for c in chains) and len({c[level + 1] for c in chains}) == 1:
        level += 1
    return chains[0][level]


# Large scopes in parts.

FEWEST, USUAL = 6, 24  # items of a part that is cut out
EVENNESS = 0.15  # what one item more or less than usual counts, in values that pass
CALL = 3  # operators that a call must have made to be a part
SLICES = frozenset({"slice", "dynamic_slice", "squeeze", "gather"})

Call = tuple[str, tuple[int, ...]]  # a function, and the expression in it that runs
Item = Scope | Node


def _divide(scope: Scope, shown: Contents, depth: int) -> None:
    """Divide a scope that holds too many items, below so many calls."""
    if len(scope.items) <= MOST_ITEMS:
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
                _enclose(scope, items[start:stop], function)
        _give_slices(scope, shown)
        for inner in scope.scopes:
            if inner.divided:
                _divide(inner, shown, depth + 1)
    while len(scope.items) > MOST_ITEMS:
        items, scope.items = scope.items, []
        for number, (start, stop) in enumerate(_cuts(_passing(items, shown)), 1):
            _enclose(scope, items[start:stop], f"part_{number}")


def _enclose(scope: Scope, items: list[Item], name: str) -> None:
    """Put items of a scope in one of their own."""
    name = unique(name, {inner.name for inner in scope.scopes})
    part = Scope(scope.path_of(name), name, scope, items, divided=True, note=_lines(items))
    scope.items.append(part)
    for inner in part.scopes:
        _move(inner, part)


def _give_slices(scope: Scope, shown: Contents) -> None:
    """Put slices without a name, of which one part alone makes use, in that part."""
    part_of = {node: part for part in scope.scopes if part.divided for node in part.operators}
    ends = {output.variable for output in shown.outputs}
    for item in reversed(scope.items):
        if not isinstance(item, Node) or item.equations[0].operation not in SLICES:
            continue
        variables = shown.made.get(item, [])
        users = {part_of.get(use.head) for v in variables for use in shown.uses.get(v, ())}
        user = users.pop() if len(users) == 1 else None
        if user is None or any(v in ends or v in shown.names for v in variables):
            continue
        user.items.insert(0, item)
        part_of[item] = user
    scope.items = [item for item in scope.items if item not in part_of]


def _move(scope: Scope, parent: Scope) -> None:
    scope.parent = parent
    scope.path = parent.path_of(scope.path.rpartition("/")[2])
    for inner in scope.scopes:
        _move(inner, scope)


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
    place = {node: i for i, item in enumerate(items) for node in operators_of(item)}
    change = [0] * (len(items) + 1)
    for variable, uses in shown.uses.items():
        start = place.get(shown.maker[variable])
        if start is None:
            continue
        last = max(place.get(use.head, start) for use in uses)
        change[start] += 1
        change[last] -= 1
    return list(accumulate(change))[: len(items) - 1]


def _cuts(passing: Sequence[int]) -> list[tuple[int, int]]:
    """The cheapest way to cut items in parts of at most ``MOST_ITEMS``."""
    count = len(passing) + 1
    usual = min(max(USUAL, math.ceil(count / MOST_ITEMS)), MOST_ITEMS)
    cost: Callable[[int, int], float] = lambda start, stop: (
        (passing[stop - 1] if stop < count else 0) + EVENNESS * abs(stop - start - usual)
    )
    best: list[float] = [0.0]
    came_from = [0]
    for stop in range(1, count + 1):
        starts = range(max(0, stop - MOST_ITEMS), max(0, stop - FEWEST) + 1)
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
    sources = (node.equations[0].source for item in items for node in operators_of(item))
    places = [place for place in sources if place]
    if len({file for file, _ in places}) != 1:
        return ""
    lines = [line for _, line in places]
    first, last = min(lines), max(lines)
    return f"line {first}" if first == last else f"lines {first}–{last}"
