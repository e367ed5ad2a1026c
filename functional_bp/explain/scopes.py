"""The scopes of a flat graph as a tree: what stands in each, small enough to be looked at.

A scope is a call of a function or a ``jax.named_scope``. Where a scope holds more than anybody can
look at, it is divided (``dividing``): by the Python functions that made its equations, then where
few values pass.

>>> import jax, jax.numpy as jnp, functional_bp as bp
>>> from functional_bp.explain.pictures.contents import contents
>>> def loss(x):
...     with jax.named_scope("encoder"):
...         h = jnp.tanh(x) * 2
...     return jnp.sum(h * h)
>>> root = scopes(contents(bp.explain(loss, jnp.ones(3))))
>>> root.name, [item.name for item in root.items if isinstance(item, Scope)]
('', ['encoder'])
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from functional_bp.explain.pictures.contents import Contents, Node, Output
from functional_bp.graph.parts import Variable

MOST_ITEMS = 60  # operators and closed scopes; a scope with more of them is divided


@dataclass(eq=False)
class Scope:
    """A part of the graph with a name.

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

    def add_scope(self, name: str, divided: bool = False) -> Scope:
        """A new scope inside, under a path of its own."""
        taken = {item.name for item in self.items if isinstance(item, Scope)}
        number, free = 1, name
        while free in taken:
            number += 1
            free = f"{name}_{number}"
        path = f"{self.path}/{free}" if self.path else free
        inner = Scope(path, free, self, divided=divided)
        self.items.append(inner)
        return inner

    def walk(self) -> Iterator[Scope]:
        """It and the scopes inside, each before what it holds."""
        yield self
        for item in self.items:
            if isinstance(item, Scope):
                yield from item.walk()

    @property
    def operators(self) -> Iterator[Node]:
        """All operators in it, also those of the scopes inside."""
        for item in self.items:
            if isinstance(item, Scope):
                yield from item.operators
            else:
                yield item

    @property
    def chain(self) -> list[Scope]:
        """From the whole graph to this scope."""
        return [*(self.parent.chain if self.parent else []), self]


class Stub(NamedTuple):
    """A value at the border of a scope: it comes from outside, or is used there.

    Attributes:
        variable: the value.
        side: "in" or "out".
        elsewhere: where it comes from, or where it is first used.
    """

    variable: Variable
    side: str
    elsewhere: Scope | Node | Output


End = Scope | Node | Output | Stub


@dataclass(frozen=True)
class View:
    """What is seen when a scope is open: its items, what crosses its border, what joins them.

    Attributes:
        scope: the scope.
        ends: leaves, operators, closed scopes, outputs, stubs; in the order of execution.
        wires: from one end to another, with the variables that pass.
    """

    scope: Scope
    ends: list[End]
    wires: dict[tuple[End, End], list[Variable]]


def scopes(shown: Contents, most: int = MOST_ITEMS) -> Scope:
    """The tree of scopes of what is drawn.

    Args:
        shown: the contents of a picture in which every scope is open.
        most: items of a scope; one with more is divided.
    """
    from functional_bp.explain.dividing import divide

    root = Scope("", "", None)
    opened: dict[str, Scope] = {"": root}
    for node in shown.nodes:
        if node.kind != "operator":
            continue
        home = root
        parts = [part for part in node.equations[0].scope.split("/") if part]
        for i, part in enumerate(parts):
            path = "/".join(parts[: i + 1])
            if path not in opened:
                opened[path] = Scope(path, part, home)
                home.items.append(opened[path])
            home = opened[path]
        home.items.append(node)
    _simplify(root)
    divide(root, shown, most)
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
    """The view of every scope. A leaf stands in the innermost scope that holds all of its uses."""
    home: dict[Node | Output, Scope] = {output: root for output in shown.outputs}
    for scope in root.walk():
        home.update({item: scope for item in scope.items if isinstance(item, Node)})
    uses: list[tuple[Variable, Node | Output]] = [
        (use.variable, use.head) for found in shown.uses.values() for use in found
    ]
    uses += [(output.variable, output) for output in shown.outputs]
    heads: dict[Variable, list[Scope]] = {}
    for variable, head in uses:
        heads.setdefault(variable, []).append(home[head])
    for variable, maker in shown.maker.items():
        if maker.kind == "leaf" and variable in heads:
            home[maker] = _common([scope.chain for scope in heads[variable]])
    leaves = {s: [] for s in root.walk()}
    for node in shown.nodes:
        if node.kind == "leaf" and node in home:
            leaves[home[node]].append(node)
    found = {s: View(s, [*leaves[s], *s.items], {}) for s in root.walk()}
    for variable, head in uses:
        tail = shown.maker[variable]
        _join(found, variable, (tail, home[tail]), (head, home[head]))
    for view in found.values():
        known = set(view.ends)
        ends = dict.fromkeys(end for wire in view.wires for end in wire)
        view.ends.extend(end for end in ends if end not in known)
    return found


def _join(
    found: dict[Scope, View],
    variable: Variable,
    tail: tuple[Node, Scope],
    head: tuple[Node | Output, Scope],
) -> None:
    """Draw one use: in the scope that holds both ends, and at every border that it crosses."""
    out_of, into = tail[1].chain, head[1].chain
    depth = len(_common([out_of, into]).chain) - 1
    ends_out: list[Scope | Node | Output] = [*out_of, tail[0]]
    ends_in: list[Scope | Node | Output] = [*into, head[0]]

    def wire(scope: Scope, start: End, end: End) -> None:
        passing = found[scope].wires.setdefault((start, end), [])
        if variable not in passing:
            passing.append(variable)

    wire(out_of[depth], ends_out[depth + 1], ends_in[depth + 1])
    for i in range(depth + 1, len(out_of)):
        far = next((w for w in found[out_of[i]].wires if _leaves(w[1], variable)), None)
        stub = far[1] if far else Stub(variable, "out", ends_in[depth + 1])
        wire(out_of[i], ends_out[i + 1], stub)
    for i in range(depth + 1, len(into)):
        wire(into[i], Stub(variable, "in", ends_out[depth + 1]), ends_in[i + 1])


def _leaves(end: End, variable: Variable) -> bool:
    return isinstance(end, Stub) and end.side == "out" and end.variable is variable


def _common(chains: Sequence[list[Scope]]) -> Scope:
    """The innermost scope that all chains have."""
    level = 0
    while all(len(c) > level + 1 for c in chains) and len({c[level + 1] for c in chains}) == 1:
        level += 1
    return chains[0][level]
