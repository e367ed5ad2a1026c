"""How a program's memory grows with the sizes of its inputs, from a few compilations.

A *dimension* is a size that several axes share: the batch in ``x.shape[0]`` and ``y.shape[0]``. It
is found by trying: axes of that size at the same place in the shapes of the batch are made larger
together, and where the function does not take that, others of that size with them, those of the
trained argument last; those of them that need not grow are left out again.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from functional_bp.errors import BackpropError
from functional_bp.graph.graph import format_bytes
from functional_bp.tables import text as text_tables
from functional_bp.tables.table import Cell, Column, Line, Table, ending

MOST_GUESSES = 12  # of the largest size, from the line through two; then it is halved
MOST_TRIED = 16  # axes of which it is tried whether a dimension needs each


NO_DIMENSION = "the function takes no other size of any axis of its arguments"


class SizeError(BackpropError, ValueError, LookupError):
    """No dimension has that name, or not even its smallest size fits."""


class Axis(NamedTuple):
    """An axis of one array among the arguments: which leaf, its name, and which axis."""

    leaf: int
    name: str
    axis: int

    def __str__(self) -> str:
        return f"{self.name}.shape[{self.axis}]"


class ArgumentDimension(NamedTuple):
    """A dimension is a size that axes share.

    Attributes:
        axes: where it occurs.
        size: what it is now.
    """

    axes: tuple[Axis, ...]
    size: int

    @property
    def name(self) -> str:
        """Return the first axis as Python writes it: ``x.shape[0]``."""
        return str(self.axes[0])

    def resized(self, args: Any, size: int) -> Any:
        """Return the arguments, as shapes, with this dimension at another size."""
        leaves, tree = jax.tree.flatten(args)
        for leaf, _, axis in self.axes:
            shape = list(leaves[leaf].shape)
            shape[axis] = size
            leaves[leaf] = leaves[leaf].update(shape=tuple(shape))
        return jax.tree.unflatten(tree, leaves)


class GrowthRate(NamedTuple):
    """A dimension's part in the memory of a program.

    Attributes:
        dimension: which.
        fixed_bytes: of the program at size 0, by the line through the first two compiled sizes.
        bytes_per_unit: what one more of it costs, other dimensions as they are.
        sizes, bytes: what was compiled.
        is_linear: whether all of these lie on that line.
    """

    dimension: ArgumentDimension
    fixed_bytes: float
    bytes_per_unit: float
    sizes: tuple[int, ...]
    bytes: tuple[int, ...]
    is_linear: bool

    @property
    def course(self) -> str:
        """Say whether it is linear, or how the third size differs from the line through two."""
        predicted = self.fixed_bytes + self.bytes_per_unit * self.sizes[2]
        more = "more" if self.bytes[2] > predicted else "less"
        return "linear" if self.is_linear else f"{more} than linear"


class Largest(NamedTuple):
    """The largest size that fits.

    Attributes:
        dimension: of what.
        size: the largest that fits.
        bytes: that the program needs at that size, as compiled.
        compilations: how many it took.
    """

    dimension: ArgumentDimension
    size: int
    bytes: int
    compilations: int

    def __str__(self) -> str:
        return (
            f"{self.dimension.name} = {self.size} needs {format_bytes(self.bytes)} "
            f"(found in {self.compilations} compilations)"
        )


class Growth(NamedTuple):
    """How the peak of a program grows, one line a dimension; printed, a table."""

    name: str
    peak_bytes: int
    slopes: tuple[GrowthRate, ...]

    def __getitem__(self, key: Any) -> Any:
        """Return the slope of a dimension, by name: ``growth["x.shape[0]"]``."""
        found = {str(axis): s for s in self.slopes for axis in s.dimension.axes}
        if key not in found:
            raise unknown(key, list(found))
        return found[key]

    def table(self) -> Table:
        """Return it as a table."""
        columns = (
            Column("dimension"),
            Column("size", "right"),
            Column("for each", "right"),
            Column("fixed", "right"),
            Column("compiled at", "right", drop=2),
        )
        lines = []
        for slope in self.slopes:
            axes, name = slope.dimension.axes, slope.dimension.name
            others = f" = {axes[1]}" if len(axes) == 2 else f" and {len(axes) - 1} more axes"
            more = f" and {len(axes) - 1} more" if len(axes) > 1 else ""
            title = Cell(name + (others if more else ""), short=ending(name, 24) + more)
            sizes = ", ".join(map(str, slope.sizes))
            fixed = _signed(slope.fixed_bytes) if slope.is_linear else "–"
            compiled = sizes if slope.is_linear else f"{sizes}: {slope.course}"
            amounts = _signed(slope.bytes_per_unit), fixed
            cells = (str(slope.dimension.size), *amounts, compiled)
            lines.append(Line("", (title, *map(Cell, cells))))
        return Table(f"How the {format_bytes(self.peak_bytes)} grow", columns, tuple(lines))

    def text(self, width: int | None = None, color: bool = False) -> str:
        """Write the table for a terminal."""
        if not self.slopes:
            return f"{self.name}: {NO_DIMENSION}"
        return text_tables.text((self.table(),), width, color)

    def __str__(self) -> str:
        return self.text()


def _signed(amount: float) -> str:
    return ("−" if amount < 0 else "") + format_bytes(round(abs(amount)))


def unknown(key: str, names: Sequence[str]) -> SizeError:
    """Make the error for a dimension that is not there, with near names."""
    if not names:
        return SizeError(
            "nothing can be made larger",
            got=NO_DIMENSION,
            expected="a function that takes its sizes from the shapes of its arguments",
            do="look for sizes that are written as numbers in it, or closed over",
        )
    near = difflib.get_close_matches(str(key), names, n=3, cutoff=0.3) or names[:3]
    return SizeError(
        "no such dimension",
        got=repr(key),
        expected=", ".join(names),
        do=f"write one of them: {', '.join(near)}",
    )


def dimensions_of(
    args: tuple[Any, ...], paths: Sequence[str], trained: Sequence[bool], fits: Callable[..., bool]
) -> list[ArgumentDimension]:
    """Find the dimensions of the arguments that can be made larger.

    Args:
        args: shapes.
        paths: the leaves' names.
        trained: which leaves are parameters.
        fits: says of arguments whether the function takes them.
    """
    sizes: dict[int, tuple[list[Axis], list[Axis]]] = {}  # of the batch, and of what is trained
    for k, (leaf, name, is_trained) in enumerate(zip(jax.tree.leaves(args), paths, trained)):
        for axis, size in enumerate(leaf.shape):
            if size > 1:
                sizes.setdefault(size, ([], []))[is_trained].append(Axis(k, name, axis))
    found = []
    for size, (free, fixed) in sizes.items():
        grows = lambda axes, size=size: fits(
            ArgumentDimension(tuple(axes), size).resized(args, 2 * size)
        )
        groups, left = _groups(free, fixed, grows)
        if left and grows(left):
            groups.append(left)
        found += [ArgumentDimension(tuple(axes), size) for axes in groups]
    return sorted(found, key=lambda d: (trained[d.axes[0].leaf], d.axes[0].leaf, d.axes[0].axis))


def _groups(
    free: Sequence[Axis], fixed: list[Axis], grows: Callable[[Sequence[Axis]], bool]
) -> tuple[list[list[Axis]], list[Axis]]:
    """Divide the axes of one size that the batch has into those that grow together.

    Returns:
        Groups, and what is left of the axes of the trained argument.
    """
    groups: list[list[Axis]] = []
    alike: dict[int, list[Axis]] = {}
    for one in free:
        alike.setdefault(one.axis, []).append(one)
    seeds = [*alike.values(), *([one] for one in free)]
    left = [*free, *fixed]
    for seed in seeds:
        if not set(seed) <= set(left):
            continue
        others = [one for one in left if one in free]
        chosen = next((axes for axes in (seed, others, left) if grows(axes)), None)
        if chosen is None:
            continue
        spare = [one for one in reversed(chosen) if one not in seed]
        for one in spare if len(spare) <= MOST_TRIED else ():
            fewer = [other for other in chosen if other != one]
            chosen = fewer if grows(fewer) else chosen
        groups.append(chosen)
        left = [one for one in left if one not in chosen]
    return groups, [one for one in left if one in fixed]


def slope_of(
    dimension: ArgumentDimension, args: Any, peak: Callable[..., int], now: int
) -> GrowthRate:
    """Compile at twice and three times the size, and fit a line through the first two."""
    sizes = (dimension.size, 2 * dimension.size, 3 * dimension.size)
    amounts = (now, *(peak(dimension.resized(args, size)) for size in sizes[1:]))
    per_unit = (amounts[1] - amounts[0]) / (sizes[1] - sizes[0])
    fixed = amounts[0] - per_unit * sizes[0]
    predicted = fixed + per_unit * sizes[2]
    is_linear = abs(predicted - amounts[2]) <= 1e-3 * amounts[2]
    return GrowthRate(dimension, fixed, per_unit, sizes, amounts, is_linear)


def largest_of(
    dimension: ArgumentDimension, args: Any, peak: Callable[..., int], now: int, memory: int
) -> Largest:
    """Find the largest size at which the program fits, by compiling where the line says.

    Raises:
        SizeError: not even size 1 fits.
    """
    compiled = {dimension.size: now}

    def fits(size: int) -> bool:
        if size not in compiled:
            compiled[size] = peak(dimension.resized(args, size))
        return compiled[size] <= memory

    low, high = 0, dimension.size  # fits, and does not
    while fits(high):
        low, high = high, max(_where_the_line_meets(compiled, memory) + 1, 2 * high)
    while high - low > 1:
        guess = _where_the_line_meets(compiled, memory)
        tried = [size for size in (guess, guess + 1) if low < size < high]
        size = tried[0] if tried and len(compiled) < MOST_GUESSES else (low + high) // 2
        if fits(size):
            low = size
        else:
            high = size
    if not low:
        raise SizeError(
            f"no size of {dimension.name} fits",
            got=f"{format_bytes(compiled[1])} at size 1",
            expected=f"at most {format_bytes(memory)}",
            do="see what fills it at that size: bp.footprint there",
        )
    return Largest(dimension, low, compiled[low], len(compiled) - 1)


def _where_the_line_meets(compiled: dict[int, int], memory: int) -> int:
    """Return the size at which the line through the two nearest figures is at ``memory``."""
    near = sorted(compiled, key=lambda size: abs(compiled[size] - memory))[:2]
    if len(near) < 2 or compiled[near[0]] == compiled[near[1]]:
        return near[0] * memory // max(compiled[near[0]], 1)
    slope = (compiled[near[1]] - compiled[near[0]]) / (near[1] - near[0])
    return max(int(near[0] + (memory - compiled[near[0]]) / slope), 0)
