"""How a program's memory grows with the sizes of its inputs, from a few compilations.

A *dimension* is a size that several axes share: the batch in ``x.shape[0]`` and ``y.shape[0]``. It
is found by trying: all axes of that size among the arguments that are not trained are made larger
together, and where the function then does not fit, those of the trained argument with them.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from functional_bp.errors import BackpropError
from functional_bp.graph.graph import format_bytes
from functional_bp.tables import text as text_tables
from functional_bp.tables.table import Cell, Column, Line, Table

MOST_COMPILATIONS = 12  # of a search for the largest size


class SizeError(BackpropError, ValueError, LookupError):
    """No dimension has that name, or not even its smallest size fits."""


class Axis(NamedTuple):
    """An axis of one array among the arguments: which leaf, its name, and which axis."""

    leaf: int
    name: str
    axis: int

    def __str__(self) -> str:
        return f"{self.name}.shape[{self.axis}]"


class Dimension(NamedTuple):
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

    dimension: Dimension
    fixed_bytes: float
    bytes_per_unit: float
    sizes: tuple[int, ...]
    bytes: tuple[int, ...]
    is_linear: bool


class Largest(NamedTuple):
    """The largest size that fits.

    Attributes:
        dimension: of what.
        size: the largest that fits.
        bytes: that the program needs at that size, as compiled.
        compilations: how many it took.
    """

    dimension: Dimension
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
            Column("compiled at", "right", drop=1),
        )
        lines = []
        for slope in self.slopes:
            axes = slope.dimension.axes
            others = f" = {axes[1]}" if len(axes) == 2 else f" and {len(axes) - 1} more axes"
            name = slope.dimension.name + (others if len(axes) > 1 else "")
            about = "" if slope.is_linear else "more than linear; "
            sizes = about + ", ".join(map(str, slope.sizes))
            amounts = _signed(slope.bytes_per_unit), _signed(slope.fixed_bytes)
            cells = (name, str(slope.dimension.size), *amounts, sizes)
            lines.append(Line("", tuple(map(Cell, cells))))
        return Table(f"How the {format_bytes(self.peak_bytes)} grow", columns, tuple(lines))

    def __str__(self) -> str:
        return text_tables.text((self.table(),))


def _signed(amount: float) -> str:
    return ("−" if amount < 0 else "") + format_bytes(round(abs(amount)))


def unknown(key: str, names: Sequence[str]) -> SizeError:
    """Make the error for a dimension that is not there, with near names."""
    near = difflib.get_close_matches(str(key), names, n=3, cutoff=0.3) or names[:3]
    return SizeError(
        "no such dimension",
        got=repr(key),
        expected=", ".join(names) or "none: no axis can be made longer by itself",
        do=f"write one of them: {', '.join(near)}",
    )


def dimensions_of(
    args: tuple[Any, ...], paths: Sequence[str], trained: Sequence[bool], fits: Callable[..., bool]
) -> list[Dimension]:
    """Find the dimensions of the arguments that can be made larger.

    Args:
        args: shapes.
        paths: the leaves' names.
        trained: which leaves are parameters.
        fits: says of arguments whether the function takes them.
    """
    axes: dict[int, list[tuple[Axis, bool]]] = {}
    for k, (leaf, name, is_trained) in enumerate(zip(jax.tree.leaves(args), paths, trained)):
        for axis, size in enumerate(leaf.shape):
            axes.setdefault(size, []).append((Axis(k, name, axis), is_trained))
    found: list[Dimension] = []
    for size, group in axes.items():
        free = [axis for axis, is_trained in group if not is_trained]
        every = [axis for axis, _ in group]
        alone = [[axis] for axis in free] if len(free) > 1 else []
        for chosen in ([free] if free else []) + alone + [every]:
            dimension = Dimension(tuple(chosen), size)
            if size > 1 and fits(dimension.resized(args, 2 * size)):
                found.append(dimension)
                break
    return found


def slope_of(dimension: Dimension, args: Any, peak: Callable[..., int], now: int) -> GrowthRate:
    """Compile at twice and three times the size, and fit a line through the first two."""
    sizes = (dimension.size, 2 * dimension.size, 3 * dimension.size)
    amounts = (now, *(peak(dimension.resized(args, size)) for size in sizes[1:]))
    per_unit = (amounts[1] - amounts[0]) / (sizes[1] - sizes[0])
    fixed = amounts[0] - per_unit * sizes[0]
    predicted = fixed + per_unit * sizes[2]
    is_linear = abs(predicted - amounts[2]) <= 1e-3 * amounts[2]
    return GrowthRate(dimension, fixed, per_unit, sizes, amounts, is_linear)


def largest_of(
    dimension: Dimension, args: Any, peak: Callable[..., int], now: int, memory: int
) -> Largest:
    """Find the largest size at which the program fits, by compiling where the line says.

    Raises:
        SizeError: not even size 1 fits.
    """
    compiled = {dimension.size: now}

    def needs(size: int) -> int:
        if size not in compiled:
            compiled[size] = peak(dimension.resized(args, size))
        return compiled[size]

    low, high = 0, 0  # the largest known to fit, the smallest known not to (0: none)
    size = dimension.size
    while len(compiled) <= MOST_COMPILATIONS and (not high or high - low > 1):
        if needs(size) <= memory:
            low = max(low, size)
        else:
            high = min(high or size, size)
        size = _next_size(compiled, low, high, memory)
    if not low and high > 1 and needs(1) <= memory:
        low = 1
    if not low:
        raise SizeError(
            f"no size of {dimension.name} fits",
            got=f"{format_bytes(needs(1))} at size 1",
            expected=f"at most {format_bytes(memory)}",
            do="see what fills it at that size: bp.footprint there",
        )
    return Largest(dimension, low, needs(low), len(compiled) - 1)


def _next_size(compiled: dict[int, int], low: int, high: int, memory: int) -> int:
    """Choose what to try: where the line through the two nearest sizes meets the memory."""
    sizes = sorted(compiled, key=lambda size: abs(compiled[size] - memory))[:2]
    guess = 2 * max(compiled)
    if len(sizes) == 2 and compiled[sizes[0]] != compiled[sizes[1]]:
        slope = (compiled[sizes[1]] - compiled[sizes[0]]) / (sizes[1] - sizes[0])
        guess = int(sizes[0] + (memory - compiled[sizes[0]]) / slope) if slope > 0 else guess
    elif compiled[sizes[0]] > memory:
        guess = max(sizes[0] // 2, 1)
    if high:
        guess = min(guess, high - 1)
    if guess in compiled:  # the line's answer is known: look beside it
        guess = low + 1 if not high or low + 1 < high else low
    return max(guess, low + 1) if not high else min(max(guess, low + 1), max(high - 1, 1))
