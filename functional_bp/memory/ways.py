"""Ways to differentiate a stretch of a graph in one go: all kept, a part made again, in pieces."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn, Var

from functional_bp.engine.axes import rank
from functional_bp.engine.higher_order import has_tangent
from functional_bp.engine.plan import variables
from functional_bp.layouts.pieces import DividedStretch, Place, StretchAxes, divided
from functional_bp.memory.residual_costs import Costs
from functional_bp.memory.schedule import Pieces, Segment, SumOfPieces, places
from functional_bp.memory.stretches import Stretches, bytes_of, size_of

LONGEST = 12  # borders that a stretch may span of which only part is made again
PIECES = (2, 4, 8, 16, 32, 64)  # into about as many a stretch is divided
PIECE = 3e-3  # of a stretch's operations: what one more piece is taken to cost
CLASSES = 2  # of axes along which a stretch is tried in pieces
MOST_ENDS = 8  # of stretches from one border that are tried in pieces
MOST_VISITS = 40_000  # of equations, to find what can run in pieces


class Way(NamedTuple):
    """A way to differentiate a stretch.

    Attributes:
        kept: bytes until its reverse sweep.
        fresh: bytes made again in it, and of cotangents.
        flops: for that.
        border: bytes that cross the end of the stretch and are not among those kept.
        segment: which way it is.
    """

    kept: int
    fresh: int
    flops: int
    border: int
    segment: Segment


class Ways(Stretches):
    """The stretches of one graph, and the ways to differentiate each.

    Args:
        costs: of the graph.
        ways_inside: ways to differentiate an equation that holds graphs.
    """

    def __init__(self, costs: Costs, ways_inside: Callable[..., Iterable[Any]]) -> None:
        super().__init__(costs)
        self._ways_inside = ways_inside

    def ways(self, a: int, b: int) -> list[Way]:
        """List the ways to differentiate the stretch between two borders, in one go."""
        start, stop = self.borders[a], self.borders[b]
        eqns = self.costs.jaxpr.eqns[start:stop]
        whole = int(self.weight[stop] - self.weight[start])
        work, loose = int(self.work[a, b]), int(self.loose[a, b])
        found = [Way(whole, work, 0, loose, Segment(start, stop))]
        own = sum(self.costs.own_bytes[start:stop])
        if stop - start == 1 and own:
            for kept, fresh, flops, inside in self._ways_inside(eqns[0], own):
                kept += whole - own
                if kept + fresh < whole:
                    segment = Segment(start, stop, inside=inside)
                    found.append(Way(kept, fresh + work, flops, loose, segment))
        if b - a <= LONGEST:
            found += self._leaner(start, stop, whole, work)
        if (a, b) in self.divisible:
            found += self._in_pieces(a, b, whole, work)
        return found

    def _leaner(self, start: int, stop: int, whole: int, work: int) -> Iterator[Way]:
        """Go through ways to keep a part of what a stretch's rules name."""
        here = {v for eqn in self.costs.jaxpr.eqns[start:stop] for v in eqn.outvars}
        crossing = {v for v in here if self.last_needed.get(v, -1) >= stop}
        wanted = {v for group in self.costs.named[start:stop] for v in group if v in self.defined}
        seen: set[tuple[int, int]] = set()
        for cut in self.cuts:
            kept = cut & here
            flops, size = self.costs.flops_again(kept | crossing, start, stop), bytes_of(kept)
            if flops and (size, flops) not in seen and size < whole:
                seen.add((size, flops))
                fresh = bytes_of((here & self.held) - kept) + sum(self.costs.own_bytes[start:stop])
                stays = places(self.costs.jaxpr, kept | (crossing & wanted))
                segment = Segment(start, stop, stays)
                yield Way(size, fresh + work, flops, bytes_of(crossing - kept), segment)

    @cached_property
    def divisible(self) -> dict[tuple[int, int], list[tuple[Place, DividedStretch, float]]]:
        """Find stretches that can run in pieces: along which axis, in how many at most, and how
        much of the bytes is divided.
        """
        eqns = self.costs.jaxpr.eqns
        count = max(2, MOST_VISITS // len(eqns))
        starts = range(0, len(self.borders) - 1, math.ceil(len(self.borders) / count))
        found: dict[tuple[int, int], list[tuple[Place, DividedStretch, float]]] = {}
        for a in starts:
            start = self.borders[a]
            ends = [(b, self._classes(a, b, axes)) for b, axes in self._joined_from(a)]
            chosen = dict(ends[:: math.ceil(len(ends) / MOST_ENDS) or 1] + ends[-1:])
            for b, axes in self._joined_from(a):
                for place, share in chosen.get(b, ()):
                    division = divided(eqns, start, self.borders[b], place, axes)
                    if division is not None:
                        found.setdefault((a, b), []).append((place, division, share))
        return found

    def _joined_from(self, a: int) -> Iterator[tuple[int, StretchAxes]]:
        """Join the axes of ever longer stretches from a border; stop at each border behind it."""
        eqns, b = self.costs.jaxpr.eqns, a + 1
        axes = StretchAxes(eqns)
        size = lambda v: size_of(v) if v in self.held else 0
        for i in range(self.borders[a], len(eqns)):
            axes.add(i, eqns[i], size, self.costs.own_bytes[i])
            if i + 1 == self.borders[b]:
                yield b, axes
                b += 1

    def _classes(self, a: int, b: int, axes: StretchAxes) -> list[tuple[Place, float]]:
        """List axes along which a stretch seems divisible for the most part, and how much of its
        bytes.
        """
        start, stop = self.borders[a], self.borders[b]
        weight = self.weight[stop] - self.weight[start]
        stretch = list(zip(range(start, stop), self.costs.jaxpr.eqns[start:stop]))
        classes = axes.largest(CLASSES, 0.5 * weight)
        return [(axes.place(c, stretch), min(size / weight, 1)) for c, size in classes]

    def _in_pieces(self, a: int, b: int, whole: int, work: int) -> Iterator[Way]:
        """Go through ways to differentiate a stretch piece by piece."""
        start, stop = self.borders[a], self.borders[b]
        eqns = self.costs.jaxpr.eqns[start:stop]
        here = {v for eqn in eqns for v in eqn.outvars}
        crossing = bytes_of(v for v in here if self.last_needed.get(v, -1) >= stop)
        reads = bytes_of({v for read in self.reads[start:stop] for v in read} - here)
        each = math.ceil(PIECE * (self.operations[stop] - self.operations[start]))
        seen: set[int] = set()
        for place, division, share in self.divisible[a, b]:
            total = self._total(stop, division)
            overhead = each + self._added(division)
            for count in _counts(division.most, PIECES) if total is not None else ():
                fresh = (whole + work) * (1 - share + share / count) + reads
                segment = Segment(start, stop, frozenset(), pieces=Pieces(place, count, total))
                yield Way(0, int(fresh), count * overhead, crossing, segment)
        for cut in (frozenset[Var](), *self.cuts) if b - a <= LONGEST else (frozenset[Var](),):
            kept = cut & here
            flops, size = self.costs.flops_again(kept, start, stop), bytes_of(kept)
            if size in seen or size > 0.9 * whole:
                continue
            seen.add(size)
            stays = places(self.costs.jaxpr, kept)
            for place, division, share in self.divisible[a, b]:
                overhead = each + self._added(division)
                for count in _counts(division.most, PIECES[1::2]):
                    fresh = (whole + work - size) * (1 - share + share / count) + reads
                    segment = Segment(start, stop, stays, pieces=Pieces(place, count))
                    yield Way(size, int(fresh), flops + count * overhead, crossing, segment)

    def _added(self, division: DividedStretch) -> int:
        """Count the entries of what every piece reads whole: so many cotangents it adds."""
        made = {v for i in division.inside for v in self.costs.jaxpr.eqns[i].outvars}
        whole: set[Any] = {
            a
            for i in division.inside
            for a, axis in zip(self.costs.jaxpr.eqns[i].invars, division.read[i])
            if isinstance(a, Var) and axis is None and a not in made and has_tangent(a.aval)
        }
        return sum(math.prod(v.aval.shape) for v in whole)

    def _total(self, stop: int, division: DividedStretch) -> SumOfPieces | None:
        """Return the scalar through which all that is differentiated of a stretch goes."""
        costs, eqns = self.costs, self.costs.jaxpr.eqns
        reads = {a for i in division.inside for a in variables(eqns[i].invars)}
        later = {a for i in division.after if costs.reversed[i] for a in variables(eqns[i].invars)}
        found = {
            v: (i, k)
            for i in division.inside if costs.reversed[i]
            for k, v in enumerate(eqns[i].outvars)
            if has_tangent(v.aval) and (v in later or self.last_reversed.get(v, -1) >= stop)
        }  # fmt: skip
        if any(jnp.issubdtype(v.aval.dtype, jnp.complexfloating) for v in reads):
            return None
        if any(division.written[i][k] is not None for i, k in found.values()):
            return None
        sums = tuple(found.values())
        scalars = [place for v, place in found.items() if len(found) == 1 and rank(v.aval) == 0]
        sources = {v: frozenset([v]) for v in found}  # of what is linear in sums
        for i in division.after:
            (out, *more), read = eqns[i].outvars, set(variables(eqns[i].invars))
            if not more and read & sources.keys() and is_linear(eqns[i], sources.keys()):
                sources[out] = frozenset[Var]().union(*(sources[v] for v in read & sources.keys()))
                if sources[out] == found.keys() and rank(out.aval) == 0:
                    scalars.append((i, 0))
        end = costs.jaxpr.outvars[0]  # the loss, best: its cotangent is 1
        scalars.sort(key=lambda place: eqns[place[0]].outvars[place[1]] is not end)
        return SumOfPieces(sums, scalars[0]) if scalars else None


def _counts(most: int, wanted: Iterable[int]) -> set[int]:
    """Choose into how many pieces to divide: divisors near the wanted numbers, or these; on several
    devices, each of which has a part of every piece, divisors alone.
    """
    found = set[int]()
    for count in wanted:
        divisors = [n for n in range(2, most + 1) if most % n == 0 and 0.5 < n / count < 2]
        if divisors:
            found.add(min(divisors, key=lambda n: abs(n - count)))
        elif 2 < count <= most / 2 and jax.device_count() == 1:
            found.add(count)
    return found


LINEAR = frozenset(
    "add sub add_any neg mul div convert_element_type reshape squeeze broadcast_in_dim copy name "
    "reduce_sum transpose".split()
)


def is_linear(eqn: JaxprEqn, moving: Collection[Var]) -> bool:
    """Say whether an equation is linear in these of its operands, as far as its name tells."""
    name, moves = eqn.primitive.name, [isinstance(a, Var) and a in moving for a in eqn.invars]
    if name not in LINEAR or not has_tangent(eqn.outvars[0].aval):
        return False
    return not moves[1] if name == "div" else name != "mul" or sum(moves) == 1
