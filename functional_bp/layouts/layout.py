"""A layout says which mesh axis divides which dimensions of a loss; it is a value.

It becomes shardings of the arguments of a jitted function, and XLA's partitioner does the rest: the
results are those of one device, to rounding.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.tree_util import keystr

from functional_bp.errors import BackpropError, describe
from functional_bp.graph.graph import format_bytes
from functional_bp.layouts.dimensions import Dimension, Dimensions, Leaf
from functional_bp.layouts.topology import devices_of
from functional_bp.tables import html as html_tables
from functional_bp.tables import text as text_tables
from functional_bp.tables.table import Cell, Column, Line, Table

BATCH = "batch"
MOST_DEVICES = 64  # up to which a message names the numbers that divide a size


class LayoutError(BackpropError, ValueError):
    """A layout does not fit: the devices, a mesh axis, or a size that it cannot divide."""


@dataclass(frozen=True)
class Layout:
    """A layout lays the arguments of a loss out on a mesh; ``shard.layout`` makes it.

    Where an array has two dimensions that one mesh axis divides, the one that is named first is
    divided.

    Attributes:
        mesh: the devices, under names of mesh axes; the partitioner decides along all of them.
        divided: each mesh axis with the names of the dimensions that it divides.
        store: the mesh axis over which parameters and optimizer state are divided that it leaves
            whole otherwise, along their longest axis that divides; None for none.
        dimensions: of the loss, where the layout is bound to one.
    """

    mesh: Mesh
    divided: tuple[tuple[str, tuple[str, ...]], ...]
    store: str | None = None
    dimensions: Dimensions | None = field(default=None, repr=False, compare=False)

    def bind(self, dims: Dimensions) -> Layout:
        """Return the same layout for the loss whose dimensions these are.

        Raises:
            LayoutError: a size cannot be divided.
            UnknownDimensionError: the loss has no dimension of a name.
        """
        self._check(dims)
        return replace(self, dimensions=dims)

    @property
    def names(self) -> tuple[str, ...]:
        """The dimensions that it divides."""
        return tuple(dict.fromkeys(name for _, names in self.divided for name in names))

    @property
    def batch_axes(self) -> tuple[str, ...]:
        """The mesh axes that divide the batch."""
        dims = self.dimensions
        is_batch = lambda name: name == BATCH or (dims and name in dims and dims[name].is_batch)
        return tuple(axis for axis, names in self.divided if any(map(is_batch, names)))

    def specs(self, dims: Dimensions | None = None) -> list[PartitionSpec]:
        """Say how each array among the loss's arguments is divided, in the order of their leaves.

        Args:
            dims: of the loss; by default those that the layout is bound to.

        Raises:
            LayoutError: a size cannot be divided, or the layout is bound to no loss.
            UnknownDimensionError: the loss has no dimension of a name.
        """
        dims = self._bound(dims)
        names = {dimension.name: k for k, dimension in enumerate(self._check(dims))}
        known = [tuple(n if n in names else None for n in axes) for axes in dims.axes]
        resolved = self._resolved(dims)
        return [
            self._spec(axes, _shape(leaf), resolved, leaf.argument == 0)
            for axes, leaf in zip(known, dims.leaves)
        ]

    def shardings(self, dims: Dimensions | None = None) -> list[NamedSharding]:
        """The same as shardings: ``jax.device_put`` and ``in_shardings`` of ``jit`` take them."""
        return [NamedSharding(self.mesh, spec) for spec in self.specs(dims)]

    def of_tree(self, tree: Any, dims: Dimensions | None = None) -> Any:
        """Say how a pytree is divided that repeats the parameters: optimizer state, a mean of them.

        An array whose path ends as that of a parameter, and which has its shape, is divided as it
        is. What follows no parameter is divided by ``store`` alone.

        Args:
            tree: of arrays or their shapes.
            dims: of the loss, whose first argument the parameters are.

        Returns:
            A sharding in the place of each array.
        """
        follows: dict[str, tuple[tuple[int, ...], PartitionSpec]] = {}
        if not (dims is None and self.dimensions is None and set(self.names) <= {BATCH}):
            dims = self._bound(dims)
            follows = {
                leaf.path.removeprefix(leaf.keys[0]): (_shape(leaf), spec)
                for leaf, spec in zip(dims.leaves, self.specs(dims))
                if leaf.argument == 0
            }

        def sharding(path: Any, x: Any) -> NamedSharding:
            shape = tuple(np.shape(x))
            ends = (follows.get(keystr(path[start:])) for start in range(len(path) + 1))
            spec = next((spec for end in ends if end for at, spec in [end] if at == shape), None)
            if spec is None:
                spec = self._spec((None,) * len(shape), shape, (), True)
            return NamedSharding(self.mesh, spec)

        return jax.tree.map_with_path(sharding, tree)

    @property
    def whole(self) -> NamedSharding:
        """Each device has the whole array."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def is_shared(self) -> bool:
        """Several processes hold the devices."""
        return not self.whole.is_fully_addressable

    def bytes_per_device(self, dims: Dimensions | None = None) -> int:
        """Count the bytes of the loss's arguments on one device."""
        dims = self._bound(dims)
        return sum(map(self._bytes, dims.leaves, self.specs(dims)))

    def _bytes(self, leaf: Leaf, spec: PartitionSpec) -> int:
        if leaf.variable is None or not leaf.variable.bytes:
            return 0
        return leaf.variable.bytes // math.prod(self.mesh.shape[axis] for axis in _axes(spec))

    def _bound(self, dims: Dimensions | None) -> Dimensions:
        if (dims := self.dimensions if dims is None else dims) is None:
            raise LayoutError(
                "the layout does not know the axes of the loss's arguments",
                got=f"dimensions by name alone: {', '.join(self.names) or 'none'}",
                do="give the dimensions too: shard.layout(mesh, shard.dimensions(loss, params,\n"
                "            batch), ...)",
            )
        return dims

    def _resolved(self, dims: Dimensions) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Mesh axes with the dimensions' names as the loss has them."""
        return tuple((a, tuple(find(dims, n).name for n in names)) for a, names in self.divided)

    def _check(self, dims: Dimensions) -> list[Dimension]:
        """The dimensions that are divided."""
        over: dict[str, list[str]] = {}
        for axis, names in self._resolved(dims):
            for name in names:
                over.setdefault(name, []).append(axis)
        for name, axes in over.items():
            self._check_divides(dims[name], axes, dims)
        return [dims[name] for name in over]

    def _check_divides(self, dimension: Dimension, axes: Sequence[str], dims: Dimensions) -> None:
        count = math.prod(self.mesh.shape[axis] for axis in axes)
        for place in dimension.places:
            size = _shape(dims.leaves[place.leaf])[place.axis]
            if size % count:
                raise _uneven(dimension.name, str(place), size, axes, count)
        if not dimension.places:
            raise LayoutError(
                f"no argument has the dimension {dimension.name!r}",
                got="one that is inside of the loss alone",
                expected=f"one of {', '.join(d.name for d in dims.values() if d.places)}",
            )

    def _spec(
        self,
        names: Sequence[str | None],
        shape: Sequence[int],
        divided: Sequence[tuple[str, Sequence[str]]],
        stored: bool,
    ) -> PartitionSpec:
        by_axis: list[tuple[str, ...]] = [()] * len(shape)
        for mesh_axis, dimensions in divided:
            if found := [names.index(d) for d in dimensions if d in names]:
                by_axis[found[0]] += (mesh_axis,)
        if stored and self.store is not None and not any(self.store in axes for axes in by_axis):
            self._store(by_axis, shape)
        while by_axis and not by_axis[-1]:
            by_axis.pop()
        return PartitionSpec(*(x if len(x) > 1 else x[0] if x else None for x in by_axis))

    def _store(self, by_axis: list[tuple[str, ...]], shape: Sequence[int]) -> None:
        """Divide the longest axis that divides, one that is whole before one that is not."""
        count = self.mesh.shape[self.store]
        sizes = [n // math.prod(self.mesh.shape[a] for a in x) for n, x in zip(shape, by_axis)]
        fitting = [i for i, size in enumerate(sizes) if size and size % count == 0]
        if fitting:
            best = max(fitting, key=lambda i: (not by_axis[i], sizes[i]))
            by_axis[best] += (str(self.store),)

    # In words.

    @cached_property
    def words(self) -> str:
        """What divides what, in a sentence."""
        told = [
            f"{_listed(names)} over {axis} ({self.mesh.shape[axis]})"
            for axis, names in self.divided
            if names
        ]
        if self.store is not None:
            told.append(
                f"parameters and optimizer state, where whole otherwise, stored over "
                f"{self.store} ({self.mesh.shape[self.store]})"
            )
        count = self.mesh.size
        return f"{count} device{'s' * (count > 1)}: " + ("; ".join(told) or "each has all")

    def table(self, dims: Dimensions | None = None) -> Table:
        """Return the arguments with their bytes on each device as a table."""
        dims = self._bound(dims)
        columns = (
            Column("argument"), Column("array", drop=2), Column("divided"),
            Column("bytes", "right", drop=1), Column("per device", "right"),
        )  # fmt: skip
        specs = self.specs(dims)
        rows = [
            (leaf.path, describe(leaf.variable), _words(spec, names), leaf.variable.bytes,
             self._bytes(leaf, spec))
            for leaf, spec, names in zip(dims.leaves, specs, dims.axes)
            if leaf.variable is not None
        ]  # fmt: skip
        lines = [_line("", *row) for row in rows]
        lines.append(_line("sum", "all", "", "", sum(r[3] for r in rows), sum(r[4] for r in rows)))
        return Table("Arguments on each device", columns, tuple(lines))

    def text(
        self, dims: Dimensions | None = None, width: int | None = None, color: bool = False
    ) -> str:
        """Write it for a terminal, with the table if the dimensions are known."""
        known = self.dimensions if dims is None else dims
        if known is None:
            return self.words
        return f"{self.words}\n\n{text_tables.text((self.table(known),), width, color)}"

    def __str__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        table = "" if self.dimensions is None else html_tables.html((self.table(),))
        return f"<p>{self.words}</p>{table}"


def layout(
    mesh: Mesh | Mapping[str, int] | int | Sequence[Any],
    dims: Dimensions | None = None,
    /,
    *,
    store: str | None = None,
    devices: Sequence[Any] | None = None,
    **divided: str | Sequence[str] | None,
) -> Layout:
    """Lay a loss out on devices: which mesh axis divides which of its dimensions.

    Args:
        mesh: the devices under names of mesh axes: a mesh of JAX; the size of each mesh axis, as
            ``{"data": 4, "model": 2}``; or a number of devices, or a list, if there is one axis.
        dims: what ``shard.dimensions`` found, to check against and to count bytes; later
            ``.bind(dims)`` does the same.
        store: a mesh axis over which parameters and optimizer state are divided too that are whole
            on its devices otherwise: each along its longest axis that divides.
        devices: those that a mapping is over; by default the first ones there are.
        **divided: for a mesh axis a dimension's name, or several: ``data="batch",
            model=["W1.1", "heads"]``. A dimension's name is one of ``dims``, or an axis of an
            argument that belongs to it, ``W2.0``.

    Returns:
        A value that never changes. ``specs(dims)``, ``shardings(dims)`` and ``of_tree(tree, dims)``
        say how arguments, and what repeats the parameters, are divided; without ``dims`` for the
        loss that it is bound to. Printed, it says so in words and in bytes.

    Raises:
        LayoutError: an unknown mesh axis, devices that are not there or of several kinds, or a
            size that cannot be divided.
        UnknownDimensionError: the loss has no dimension of a name.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from functional_bp import shard
        >>> def loss(params, x):
        ...     return jnp.mean((jnp.tanh(x @ params["W1"]) @ params["W2"]) ** 2)
        >>> f32 = lambda *shape: jax.ShapeDtypeStruct(shape, "float32")
        >>> params = {"W1": f32(4, 16), "W2": f32(16, 4)}
        >>> dims = shard.dimensions(loss, params, f32(32, 4))
        >>> shard.layout({"data": 1, "model": 1}, dims, data="batch", model="W1.1").specs()
        [P(None, 'model'), P('model',), P('data',)]
    """
    named = [*divided, *([store] if store is not None and store not in divided else [])]
    made = _mesh(mesh, named, devices)
    for name in named:
        if name not in made.axis_names:
            near = difflib.get_close_matches(name, made.axis_names, n=3, cutoff=0.4)
            raise LayoutError(f"the mesh has no axis {name!r}",
                              expected=f"one of {', '.join(near or made.axis_names)}")  # fmt: skip
    axes = tuple((axis, _several(divided.get(axis))) for axis in made.axis_names)
    unbound = Layout(made, axes, store)
    return unbound if dims is None else unbound.bind(dims)


def find(dims: Dimensions, name: str) -> Dimension:
    """Return the dimension of a name, or that of an argument's axis, ``W2.0``.

    Raises:
        UnknownDimensionError: there is none.
    """
    if name in dims:
        return dims[name]
    path = lambda place: ".".join((*dims.leaves[place.leaf].keys, str(place.axis)))
    found = [d for d in dims.values() if any(f".{path(p)}".endswith(f".{name}") for p in d.places)]
    return found[0] if len(found) == 1 else dims[name]


def _several(names: str | Sequence[str] | None) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(dict.fromkeys(names or ()))


def _shape(leaf: Leaf) -> tuple[int, ...]:
    return () if leaf.variable is None else leaf.variable.shape


def _axes(spec: PartitionSpec) -> Iterator[str]:
    """All mesh axes of a partition spec."""
    for entry in spec:
        yield from entry if isinstance(entry, tuple) else [] if entry is None else [entry]


# The mesh.


def _mesh(given: Any, named: Sequence[str], devices: Sequence[Any] | None) -> Mesh:
    if isinstance(given, Mesh):
        found = list(given.devices.flat)
        automatic = (AxisType.Auto,) * len(given.axis_names)
        made = Mesh(given.devices, given.axis_names, axis_types=automatic)
    else:
        sizes, found = _sizes(given, named, devices)
        shape = tuple(sizes.values())
        automatic = (AxisType.Auto,) * len(shape)
        made = jax.make_mesh(shape, tuple(sizes), automatic, devices=found)
    kinds = sorted({f"{d.platform} {d.device_kind}" for d in found})
    if len(kinds) > 1:
        raise LayoutError("the devices of a mesh are of several kinds", got=", ".join(kinds),
                          expected="one kind: a program is compiled for one",
                          do="give those of one kind: jax.devices('gpu')")  # fmt: skip
    return made


def _sizes(
    given: Any, named: Sequence[str], devices: Sequence[Any] | None
) -> tuple[dict[str, int], list[Any]]:
    """The size of each mesh axis, and the devices."""
    present = list(jax.devices() if devices is None else devices)
    if isinstance(given, Mapping):
        sizes = dict(given)
    else:
        if not isinstance(given, int):
            present = list(given)
        if len(named) != 1:
            raise LayoutError(
                "the devices are to be arranged in several mesh axes",
                got=f"{given if isinstance(given, int) else len(present)} devices for "
                f"{_listed(named) or 'no axis'}",
                expected='the size of each axis, {"data": 4, "model": 2}',
            )
        sizes = {named[0]: given if isinstance(given, int) else len(present)}
    count = math.prod(sizes.values())
    wrong = [f"{a}: {n!r}" for a, n in sizes.items() if not isinstance(n, int) or n < 1]
    if wrong or not 1 <= count <= len(present):
        raise LayoutError(
            "the mesh does not fit the devices",
            got=", ".join(wrong) or f"{' × '.join(map(str, sizes.values()))} = {count} devices",
            expected=f"axes whose product is at most {len(present)}, the devices there are",
            do="simulate more with jax.config.update('jax_num_cpu_devices', n), first",
        )
    return sizes, present[:count]


def given_devices(
    given: int | str | Sequence[Any] | None, error: type[BackpropError] = LayoutError
) -> list[Any]:
    """Return so many devices, or these, or those of a TPU topology, or all.

    Raises:
        BackpropError: of the class ``error``: there are fewer devices, or none.
    """
    if isinstance(given, str):
        return devices_of(given, error)
    present = jax.devices()
    if isinstance(given, int) and not 1 <= given <= len(present):
        raise error(
            "there are not so many devices", got=f"devices={given}",
            expected=f"1 to {len(present)}",
            do="simulate more with jax.config.update('jax_num_cpu_devices', n), first",
        )  # fmt: skip
    found = present if given is None else present[:given] if isinstance(given, int) else [*given]
    if not found:
        raise error("there is no device", got="devices=[]",
                    expected="a number, or a list such as jax.devices()")  # fmt: skip
    return found


def _uneven(name: str, place: str, size: int, axes: Sequence[str], count: int) -> LayoutError:
    below, above = size - size % count, size + -size % count
    numbers = [str(n) for n in range(2, MOST_DEVICES + 1) if size % n == 0]
    over = f"over {' and '.join(axes)}"
    do = f"pad it to {above} with entries that change nothing (a mask, a weight of 0)"
    if numbers:
        do += f",\n            or divide it by {_listed(numbers[:8], 'or')}"
    return LayoutError(
        f"{count} devices cannot share the dimension {name!r} evenly", where=place,
        got=f"size {size} {over}",
        expected=f"a multiple of {count}: {f'{below} or ' if below else ''}{above}", do=do,
    )  # fmt: skip


# Words.


def _listed(names: Sequence[str], last: str = "and") -> str:
    return f" {last} ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _words(spec: PartitionSpec, names: Sequence[str | None]) -> str:
    """``batch over data, W1.1 over model``."""
    told = [
        f"{name} over {' and '.join(axes) if isinstance(axes, tuple) else axes}"
        for axes, name in zip(spec, names)
        if axes is not None
    ]
    return ", ".join(told)


def _line(kind: str, name: str, array: str, words: str, total: int, part: int) -> Line:
    where = Cell(words) if words or kind else Cell("whole", "quiet")
    numbers = Cell(format_bytes(total)), Cell(format_bytes(part))
    return Line(kind, (Cell(name, is_code=not kind), Cell(array), where, *numbers))
