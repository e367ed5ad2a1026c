"""A loss has dimensions, and nobody needs to write them down: batch, time, width, heads, space.

They are found in its graph, by joining the axes of all values that belong together; two axes that
only happen to have the same size are two dimensions.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import keystr, tree_flatten_with_path

from functional_bp.engine.axes import Role
from functional_bp.errors import BackpropError
from functional_bp.graph.graph import Equation, Graph, Variable, format_bytes
from functional_bp.graph.names import leaf_is_array, positional_names, unique
from functional_bp.graph.trace import trace
from functional_bp.layouts.joined_axes import Axis, JoinedAxes
from functional_bp.tables import html as html_tables
from functional_bp.tables import text as text_tables
from functional_bp.tables.table import Cell, Column, Line, Table


class UnknownDimensionError(BackpropError, KeyError):
    """A loss has no dimension of that name."""


class LeafAxis(NamedTuple):
    """An axis of an array among the arguments.

    Attributes:
        leaf: the array's number in ``jax.tree.leaves(args)``.
        axis: the axis.
        path: the array, as a person writes it: ``params['W1']``.
    """

    leaf: int
    axis: int
    path: str

    def __str__(self) -> str:
        return f"{self.path}.{self.axis}"


@dataclass(frozen=True, eq=False)
class Dimension:
    """A dimension is a class of axes that belong together.

    Attributes:
        name: found, or given by ``Dimensions.rename``.
        size: of the axis that it is called by, or where it occurs first.
        sizes: all sizes that it occurs with: a dimension that is merged with another one, padded
            or strided along space has several.
        places: the axes of arguments that belong to it.
        values: how many values inside the graph carry it.
        bytes: of these values, as often as they are computed.
        argument_bytes: of the arguments that carry it.
        uses: the operations along it that do not just divide it, by role.
        twice: whether an array has it along two of its axes; a layout divides the first.
        is_batch: whether the examples of the arguments behind the first stand along it.
    """

    name: str
    size: int
    sizes: tuple[int, ...]
    places: tuple[LeafAxis, ...]
    values: int
    bytes: int
    argument_bytes: int
    uses: Mapping[Role, tuple[Equation, ...]] = field(repr=False)
    twice: bool = False
    is_batch: bool = False

    def axis_of(self, leaf: int) -> int | None:
        """Return the (first) axis of an argument's array that belongs to it, None for none."""
        return next((p.axis for p in self.places if p.leaf == leaf), None)


class Leaf(NamedTuple):
    """An array among the arguments.

    Attributes:
        argument: the number of the argument that it is in.
        keys: the argument's name and the keys below it; of one such as Haiku's ``net/~/linear``
            its parts. What is the only entry of its parent is left out, if it has entries itself.
        path: the same as a person writes it.
        variable: what stands for it in the graph; None for what is no array.
    """

    argument: int
    keys: tuple[str, ...]
    path: str
    variable: Variable | None


class Dimensions(Mapping[str, Dimension]):
    """The dimensions of a loss by name, those of its arguments first.

    Attributes:
        graph: the graph that they were found in.
        leaves: of the arguments, in the order of ``jax.tree.leaves(args)``.
    """

    def __init__(
        self, graph: Graph, leaves: Sequence[Leaf], found: Mapping[Dimension, Sequence[Axis]]
    ) -> None:
        self.graph, self.leaves, self._members = graph, tuple(leaves), dict(found)
        self._found = {dimension.name: dimension for dimension in found}

    def __getitem__(self, name: str) -> Dimension:
        if name not in self._found:
            near = difflib.get_close_matches(str(name), self._found, n=4, cutoff=0.4)
            raise UnknownDimensionError(
                f"{self.graph.name} has no dimension {name!r}",
                expected=f"one of {', '.join(near or self._found)}",
                do="print(shard.dimensions(...)) lists them; .rename(...) gives names",
            )
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def rename(self, names: Mapping[str, str] | None = None, **more: str) -> Dimensions:
        """Return the same dimensions under other names, ``{old: new}`` or ``old="new"``.

        Raises:
            UnknownDimensionError: there is no dimension of an old name.
            ValueError: two would have the same name.
        """
        given = {**(names or {}), **more}
        for old in given:
            self[old]
        after = [given.get(name, name) for name in self]
        if twice := [name for name, count in Counter(after).items() if count > 1]:
            raise ValueError(f"two dimensions would be called {twice[0]!r}")
        renamed = {
            replace(d, name=new): axes for new, (d, axes) in zip(after, self._members.items())
        }
        return Dimensions(self.graph, self.leaves, renamed)

    @cached_property
    def _name_of(self) -> dict[Axis, str]:
        return {axis: d.name for d, members in self._members.items() for axis in members}

    def names_of(self, variable: Variable) -> tuple[str | None, ...]:
        """Name each axis of a variable of the graph, or of one nested in it; None for size 1."""
        return tuple(self._name_of.get((variable, i)) for i in range(len(variable.shape)))

    @property
    def axes(self) -> list[tuple[str | None, ...]]:
        """Name the axes of every array among the arguments, in the order of their leaves."""
        variables = [leaf.variable for leaf in self.leaves]
        return [() if v is None else self.names_of(v) for v in variables]

    def members(self, name: str) -> Sequence[Axis]:
        """Return the axes of the graph's variables that belong to a dimension."""
        return self._members[self[name]]

    @property
    def table(self) -> Table:
        """Return the dimensions as a table."""
        return _table(self)

    def text(self, width: int | None = None, color: bool = False) -> str:
        """Write the table for a terminal; ``width`` in characters, by default the terminal's."""
        return text_tables.text((self.table,), width, color)

    def html(self) -> str:
        """Write the table as a piece of HTML."""
        return html_tables.html((self.table,))

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name} {dimension.size}" for name, dimension in self.items())
        return f"<Dimensions of {self.graph.name}: {sizes}>"

    def _repr_html_(self) -> str:
        return self.html()


def dimensions(loss: Callable[..., Any], *args: Any) -> Dimensions:
    """Find the dimensions of ``loss(*args)``: every axis of every value, joined where they belong.

    Nothing is computed.

    Args:
        loss: takes and returns pytrees of arrays.
        *args: its arguments: arrays, or ``jax.ShapeDtypeStruct`` in their place.

    Returns:
        A mapping from names to dimensions, which prints as a table. The first axis that the arrays
        of all arguments but the first have in common is called ``batch``, the others by an argument
        that has it: ``W1.1`` is the axis 1 of ``params['W1']``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> def loss(params, x, y):
        ...     hidden = jnp.tanh(x @ params["W1"] + params["b1"])
        ...     return jnp.mean((hidden @ params["W2"] - y) ** 2)
        >>> f32 = lambda *shape: jax.ShapeDtypeStruct(shape, "float32")
        >>> params = {"W1": f32(4, 16), "b1": f32(16), "W2": f32(16, 4)}
        >>> found = dimensions(loss, params, f32(32, 4), f32(32, 4))
        >>> found
        <Dimensions of loss: batch 32, W1.1 16, W2.1 4, x.1 4>
        >>> found.rename({"W1.1": "hidden"})["hidden"].places[0]
        LeafAxis(leaf=0, axis=1, path="params['W1']")
    """
    graph = trace(loss, *args)
    return dimensions_in(graph, leaves_of(loss, args, graph))


def dimensions_in(graph: Graph, leaves: Sequence[Leaf]) -> Dimensions:
    """Find the dimensions of a graph, whose inputs are leaves of arguments."""
    joined = JoinedAxes(graph)
    uses = _uses_by_class(joined)
    found: dict[Dimension, list[Axis]] = {}
    for root, axes in joined.classes.items():
        if any(variable.shape[i] > 1 for variable, i in axes):
            found[_dimension(axes, joined, leaves, uses.get(root, {}))] = axes
    batch = _batches(list(found), leaves)
    marked = {replace(d, is_batch=d in batch): axes for d, axes in found.items()}
    order = sorted(marked, key=lambda d: (not d.places, -d.bytes - d.argument_bytes))
    names = _names([(d, marked[d]) for d in order], leaves, joined)
    return Dimensions(
        graph, leaves, {replace(d, name=name): marked[d] for d, name in zip(order, names)}
    )


def leaves_of(loss: Callable[..., Any], args: Sequence[Any], graph: Graph) -> list[Leaf]:
    """List the arrays among a function's arguments, as the inputs of its graph."""
    heads, inputs = positional_names(loss, len(args)), iter(graph.inputs)
    leaves: list[Leaf] = []
    for path, x in tree_flatten_with_path(tuple(args))[0]:
        number, below = path[0].idx, path[1:]
        keys = (heads[number], *(part for step in below for part in _parts(step)))
        variable = next(inputs) if leaf_is_array(x) else None
        leaves.append(Leaf(number, keys, heads[number] + keystr(below), variable))
    return _without_only_entries(leaves)


def _parts(step: Any) -> list[str]:
    """What stands in one step of a pytree's path: a key, an index, an attribute's name."""
    key = next(getattr(step, name) for name in ("key", "idx", "name") if hasattr(step, name))
    return [part for part in str(key).split("/") if part not in ("", "~")] or [str(key)]


def _without_only_entries(leaves: Sequence[Leaf]) -> list[Leaf]:
    """Leave out of keys what tells nothing apart: Flax's ``params`` around all others."""
    entries: dict[tuple[str, ...], set[str]] = {}
    for leaf in leaves:
        for k, key in enumerate(leaf.keys):
            entries.setdefault(leaf.keys[:k], set()).add(key)

    def told(keys: tuple[str, ...]) -> tuple[str, ...]:
        inner = [k for k in range(1, len(keys) - 1) if not keys[k + 1].isdecimal()]
        only = {k for k in inner if len(entries[keys[:k]]) == 1}
        return tuple(key for k, key in enumerate(keys) if k not in only)

    return [leaf._replace(keys=told(leaf.keys)) for leaf in leaves]


def _uses_by_class(joined: JoinedAxes) -> dict[Axis, dict[Role, tuple[Equation, ...]]]:
    found: dict[Axis, dict[Role, tuple[Equation, ...]]] = {}
    for role, equation, axis in joined.uses:
        uses = found.setdefault(joined.find(axis), {})
        uses[role] = (*uses.get(role, ()), equation)
    return found


def _dimension(
    axes: Sequence[Axis],
    joined: JoinedAxes,
    leaves: Sequence[Leaf],
    uses: Mapping[Role, tuple[Equation, ...]],
) -> Dimension:
    """The dimension of a class of axes, without its name."""
    number = {leaf.variable: k for k, leaf in enumerate(leaves) if leaf.variable is not None}
    places = sorted(LeafAxis(number[v], i, leaves[number[v]].path) for v, i in axes if v in number)
    sizes = [v.shape[i] for v, i in axes if v.shape[i] != 1]
    carrying = dict.fromkeys(v for v, _ in axes)
    computed = [v for v in carrying if v in joined.computed]
    best = min(places, key=lambda p: _preference(p, leaves[p.leaf]), default=None)
    first = None if best is None else leaves[best.leaf].variable
    return Dimension(
        name="",
        size=sizes[0] if first is None or best is None else first.shape[best.axis],
        sizes=tuple(sorted(set(sizes))),
        places=tuple(places),
        values=len(computed),
        bytes=sum(v.bytes * joined.computed[v][1] for v in computed),
        argument_bytes=sum(v.bytes for v in carrying if v in number),
        uses=uses,
        twice=len(carrying) < len(axes),
    )


# Names.


def _names(
    found: Sequence[tuple[Dimension, Sequence[Axis]]], leaves: Sequence[Leaf], joined: JoinedAxes
) -> list[str]:
    """``batch``, an argument's axis, or that of a value inside."""
    taken = set[str]()
    names: list[str] = []
    for dimension, axes in found:
        if dimension.is_batch:
            name = "batch"
        elif _is_depth(dimension, leaves):
            name = "layers"
        elif dimension.places:
            place = min(dimension.places, key=lambda p: _preference(p, leaves[p.leaf]))
            name = f"{_short(leaves[place.leaf], leaves)}.{place.axis}"
        else:
            variable, axis = next((a for a in axes if a[0] in joined.computed), axes[0])
            equation, _ = joined.computed.get(variable, (None, 1))
            inside = equation.operation if equation else variable.kind
            name = f"{variable.tag or inside}.{axis}"
        names.append(unique(name, taken))
        taken.add(names[-1])
    return names


def _batches(dimensions: Sequence[Dimension], leaves: Sequence[Leaf]) -> list[Dimension]:
    """The dimension of the first axis of most of the arrays behind the first argument.

    Where all of these have the same length, they hold the same examples, even if the loss joins
    them nowhere, as one that compares all with all.
    """
    data = {k: v for k, leaf in enumerate(leaves) if leaf.argument and _is_data(v := leaf.variable)}
    count = {d: sum(p.axis == 0 and p.leaf in data for p in d.places) for d in dimensions}
    if len({v.shape[0] for v in data.values() if v is not None}) == 1:
        return [d for d in dimensions if count[d]]
    return [d for d in dimensions if 2 * count[d] > len(data)]


def _is_depth(dimension: Dimension, leaves: Sequence[Leaf]) -> bool:
    """Whether it is what a loop goes over: the first axis of stacked parameters."""
    scans = any(e.operation == "scan" for e in dimension.uses.get(Role.MIXED, ()))
    stacked = all(p.axis == 0 and leaves[p.leaf].argument == 0 for p in dimension.places)
    return scans and stacked and bool(dimension.places)


def _is_data(variable: Variable | None) -> bool:
    """Whether it is an array with an axis, and no key of random numbers."""
    if variable is None or not variable.shape:
        return False
    is_key = jnp.issubdtype(variable.dtype, jax.dtypes.prng_key)
    return not is_key and (variable.shape, str(variable.dtype)) != ((2,), "uint32")


def _preference(place: LeafAxis, leaf: Leaf) -> tuple[int, int, LeafAxis]:
    """A dimension bears the name of what makes it: the last axis of a weight, else of data."""
    shape = () if leaf.variable is None else leaf.variable.shape
    ndim = sum(size != 1 for size in shape)
    makes = leaf.argument == 0 and ndim > 1 and place.axis == len(shape) - 1
    return 0 if makes else 1 if leaf.argument else 2, -ndim, place


def _short(leaf: Leaf, leaves: Sequence[Leaf]) -> str:
    """The shortest end of the path that no other array has, and that begins with a word."""
    for start in range(len(leaf.keys) - 1, 0, -1):
        end = leaf.keys[start:]
        count = sum(other.keys[-len(end) :] == end for other in leaves)
        if count == 1 and not end[0].isdecimal():
            return ".".join(end)
    return ".".join(leaf.keys)


# The table.

MOST_PLACES = 4  # of a dimension, in a line of the table
MOST_INSIDE = 6  # dimensions that no argument has


def _table(found: Dimensions) -> Table:
    columns = (
        Column("dimension"), Column("size", "right"), Column("in the arguments"),
        Column("values", "right", drop=3), Column("bytes", "right", drop=2),
        Column("along it", drop=1),
    )  # fmt: skip
    outer = _alike([d for d in found.values() if d.places])
    inner = _alike([d for d in found.values() if not d.places])
    lines = [_line(alike, found.leaves) for alike in (*outer, *inner[:MOST_INSIDE])]
    if rest := inner[MOST_INSIDE:]:
        cells = Cell(f"{len(rest)} more", "quiet"), Cell(), Cell("inside", "quiet")
        lines.append(Line("", (*cells, *[Cell()] * 3)))
    return Table(f"Dimensions of {found.graph.name}", columns, tuple(lines))


def _alike(dimensions: Sequence[Dimension]) -> list[list[Dimension]]:
    """Put together what differs in numbers of its names alone: the same in each layer."""
    groups: dict[object, list[Dimension]] = {}
    for d in dimensions:
        places = frozenset(re.sub(r"\d+", "0", p.path) + f".{p.axis}" for p in d.places)
        inside = "" if places else re.sub(r"\.\d+(_\d+)?$", "", d.name)
        groups.setdefault((places, inside, d.sizes, d.is_batch, _along(d)), []).append(d)
    return list(groups.values())


def _line(alike: Sequence[Dimension], leaves: Sequence[Leaf]) -> Line:
    dimension, many = alike[0], f"{len(alike)} × " if len(alike) > 1 else ""
    short = [f"{_short(leaves[p.leaf], leaves)}.{p.axis}" for p in dimension.places]
    where = Cell(_first(short, MOST_PLACES), short=_first(short, 1))
    if not short:
        where = Cell("inside", "quiet")
    values, total = sum(d.values for d in alike), sum(d.bytes + d.argument_bytes for d in alike)
    cells = (
        Cell(dimension.name, is_code=True), Cell(f"{many}{dimension.size}"), where,
        Cell(str(values)), Cell(format_bytes(total)), Cell(_along(dimension)),
    )  # fmt: skip
    return Line("", cells)


def _first(names: Sequence[str], most: int) -> str:
    more = f", {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _along(dimension: Dimension) -> str:
    """What operations do along it, and whether an array has it twice."""
    told = [
        f"{role.value}: {', '.join(sorted({e.operation for e in equations}))}"
        for role, equations in dimension.uses.items()
    ]
    return "; ".join([*told, *(["twice in an array"] if dimension.twice else [])])
