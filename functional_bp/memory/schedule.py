"""Which stretches of a program run again in its reverse sweep, so that its memory suffices.

A flat graph has *borders*, where little crosses. Let C(i, j, m) be the least operations that run
and reverse the stretch between borders i and j within m bytes, what crosses i being in memory. A
stretch is reversed in one of several *ways* v: all that its rules name is kept, or the cheapest set
by a minimum cut (``residual_costs.cheapest``) at some exchange rate of bytes for operations, or a
loop in it is differentiated in chunks, or it runs in pieces along a dimension whose entries are
independent. Each way keeps k(v) until its reverse sweep, needs f(v) more in it (what is made again,
and cotangents; of n pieces, those of one), and takes e(v) operations for that: none for pieces that
are reversed as soon as they have run, as they can be where all that is differentiated behind them
goes through one scalar. With r(i, b) operations in a stretch, and c(i, b) bytes made in it that
cross its end:

    C(i, j, m) = min of
        r'(i, j) + e(v)                                   if k(v) + f(v) ≤ m: a way
        r(i, b) + e(v) + C(b, j, m − k(v))                a way, then the rest
        r(i, b) + C(b, j, m − c(i, b)) + C(i, b, m)       only the border's values are kept; after
                                                          the rest, the stretch runs again, in parts

by dynamic programming over borders and bytes, exact for chains. Here r' is r without what stands
at the end and no rule names, which need not run again.

References:
    Beaumont, Eyraud-Dubois, Herrmann, Joly, Shilova 2019, Optimal checkpointing for heterogeneous
    chains, arXiv 1911.13214: this recursion with one way.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Jaxpr, JaxprEqn, Var

from functional_bp.engine.axes import rank
from functional_bp.engine.higher_order import has_tangent
from functional_bp.engine.plan import size_in_bytes, variables
from functional_bp.layouts.pieces import DividedStretch, Place, StretchAxes, divided
from functional_bp.memory.residual_costs import FUSED, Costs, cheapest, materialized

MOST_BORDERS = 64
LEVELS = 512  # into which bytes are divided
LONGEST = 12  # borders that a stretch may span of which only part is made again
# Exchange rates, bytes for an operation: from "only what is free" to "whatever it costs".
RATES = (1.0, 0.05, 0.004, 0.0003, 0.0)
MOST_RUNGS = 24  # of a ladder
PIECES = (2, 4, 8, 16, 32, 64)  # into about as many a stretch is divided
PIECE = 3e-3  # of a stretch's operations: what one more piece is taken to cost
CLASSES = 2  # of axes along which a stretch is tried in pieces
MOST_ENDS = 8  # of stretches from one border that are tried in pieces
MOST_VISITS = 40_000  # of equations, to find what can run in pieces

Output = tuple[int, int]  # an equation's position in its graph, and which of its outputs


class LoopSchedule(NamedTuple):
    """How a ``scan`` is differentiated with fewer bytes.

    Attributes:
        chunks: into how many its steps are divided, each of which runs again as a whole; then into
            how many each of these is, and so on; none: no chunks.
        groups: of the first division: chunks of as many lengths, the longest first. When they are
            run again, there is room for long ones while few are kept, so that fewer are needed.
        step: how a step is differentiated; None: all that its rules name is kept.
        last: so many of the last steps are not in chunks: when the chunks run again, what these
            kept is gone.
    """

    chunks: tuple[int, ...]
    groups: int
    step: Schedule | None
    last: int = 0


class SumOfPieces(NamedTuple):
    """A scalar is linear in sums over all pieces, or is the only one.

    Attributes:
        sums: the sums.
        output: the scalar.
    """

    sums: tuple[Output, ...]
    output: Output


@dataclass(frozen=True)
class Pieces:
    """A stretch of equations runs piece by piece, and so does its reverse sweep.

    Attributes:
        place: an axis of the dimension that is divided.
        count: into how many pieces.
        total: all that is differentiated goes through it: each piece is reversed as soon as it has
            run, and nothing runs again.
    """

    place: Place
    count: int
    total: SumOfPieces | None = None


class Segment(NamedTuple):
    """A stretch of equations, and what is made again in it.

    Attributes:
        start, stop: the equations.
        kept: of what it makes, what it keeps, the rest being made again; None: it keeps all.
        parts: it runs again in these segments, and keeps nothing until then.
        inside: if it is one equation with graphs of its own, how these are differentiated.
        pieces: it runs in pieces, of which each keeps what is kept.
    """

    start: int
    stop: int
    kept: frozenset[Output] | None = None
    parts: tuple[Segment, ...] = ()
    inside: LoopSchedule | tuple[Schedule, ...] | None = None
    pieces: Pieces | None = None

    def runs_again(self) -> bool:
        """Say whether anything in it does."""
        return self.kept is not None or bool(self.parts) or self.inside is not None


@dataclass(frozen=True)
class Schedule:
    """Segments that follow each other, and what they are estimated to need.

    Attributes:
        segments: all equations, in order.
        bytes: the most that is kept and made again at once.
        flops: that run again.
    """

    segments: tuple[Segment, ...]
    bytes: int = 0
    flops: int = 0


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


class Scheduler:
    """Finds schedules of one graph.

    Args:
        costs: of the graph.
        ways_inside: ways to differentiate an equation that holds graphs.
    """

    def __init__(self, costs: Costs, ways_inside: Any = lambda eqn, own: ()) -> None:
        self.costs, self.ways_inside = costs, ways_inside
        eqns = costs.jaxpr.eqns
        self.defined = {v: i for i, eqn in enumerate(eqns) for v in eqn.outvars}
        self.held = materialized(costs)
        self.reads = [self.defined.keys() & set(_variables(eqn.invars)) for eqn in eqns]
        self.last_use: dict[Var, int] = {}
        ends = self.defined.keys() & set(_variables(costs.jaxpr.outvars))
        for i, used in enumerate([*self.reads, ends]):
            self.last_use.update(dict.fromkeys(used, i))
        self.last_needed = dict(self.last_use)
        for i, group in enumerate(costs.named):
            for v in group:
                if v in self.defined:
                    self.last_needed[v] = max(i, self.last_needed.get(v, 0))
        self.operations = np.cumsum([0, *costs.flops]).astype(float)
        self.cuts = tuple(dict.fromkeys(frozenset(cheapest(costs.run_again, r, {})) for r in RATES))
        self.borders = self._borders()
        self.work = self._at_work()
        self.most_bytes = int(self.weight[-1] + self.work[0, -1])
        passing = self.defined.keys() - self._constants()
        self.passing = self._crossing(passing)
        self.loose = self._crossing(passing - self.held)

    def _borders(self) -> list[int]:
        """Choose where segments may begin: where little crosses, best what is kept anyway."""
        count = len(self.costs.jaxpr.eqns)
        crossing = np.zeros(count + 1)
        for v, last in self.last_use.items():
            loose = v not in self.cuts[0]
            crossing[self.defined[v] + 1 : last + 1] += size_in_bytes(v.aval) * (1 + 1e-3 * loose)
        self.weight = weight = np.cumsum([0, *(
            _bytes(v for v in eqn.outvars if v in self.held) + own
            for eqn, own in zip(self.costs.jaxpr.eqns, self.costs.own_bytes)
        )])  # fmt: skip
        chosen = {0, count}
        bins = np.linspace(0, weight[-1], MOST_BORDERS + 1)
        for low, high in zip(bins, bins[1:]):
            inside = np.flatnonzero((weight > low) & (weight <= high))
            inside = inside[(inside > 0) & (inside < count)]
            if len(inside):
                chosen.add(int(inside[np.argmin(crossing[inside])]))
        heavy = [i for i, own in enumerate(self.costs.own_bytes) if own > 0.03 * weight[-1]]
        return sorted(chosen.union(heavy, (i + 1 for i in heavy)))

    def _constants(self) -> set[Var]:
        """Find what depends on no input and is fused with what reads it: zeros, masks."""
        found: set[Var] = set()
        for eqn in self.costs.jaxpr.eqns:
            if eqn.primitive.name in FUSED and found.issuperset(_variables(eqn.invars)):
                found.update(eqn.outvars)
        return found

    def _at_work(self) -> np.ndarray[Any, Any]:
        """Count, for each stretch, the bytes of cotangents beside what is kept, when most is there.

        A value has a cotangent from its last use down to where it was made. By then, what only
        later equations name is gone. What is fused has none in memory.
        """
        eqns = self.costs.jaxpr.eqns
        matter = set(self.held)
        for eqn, read in zip(eqns, self.reads):
            name = eqn.primitive.name
            if name not in FUSED and not name.startswith("reduce_"):  # of a sum: a broadcast
                matter |= read | set(eqn.outvars)
        change = np.zeros(len(eqns) + 1)
        for v in matter:
            last = self.last_use.get(v, -1)
            if last >= 0 and has_tangent(v.aval):
                in_place = last < len(eqns) and eqns[last].primitive is lax.scan_p  # of the state's
                change[self.defined[v]] += _size(v)
                change[min(last + (not in_place), len(eqns))] -= _size(v)
        kept = np.array(self.costs.own_bytes, float)
        first = {v: i for i, group in reversed([*enumerate(self.costs.named)]) for v in group}
        for v in self.held:
            kept[first.get(v, self.defined[v])] += _size(v)
        there = np.cumsum(kept) + np.cumsum(change)[:-1]
        blocks = list(zip(self.borders, self.borders[1:]))
        tops = np.array([there[a:b].max() for a, b in blocks])
        found = np.zeros((len(self.borders), len(self.borders)))
        for k in range(len(blocks)):
            ends = np.array(self.borders[k + 1 :])
            found[k, k + 1 :] = np.maximum.accumulate(tops[k:]) - self.weight[ends]
        return np.maximum(found, 0)

    @cached_property
    def ladder(self) -> tuple[Schedule, ...]:
        """Return schedules from the fewest bytes to the fewest operations.

        They don't depend on any budget, so that budgets share them.
        """
        if not self.costs.jaxpr.eqns:
            return (Schedule(()),)
        table = _Table(self)
        total = [np.inf, *table.least[0, -1]]
        rungs = [m for m in range(LEVELS + 1) if total[m + 1] < total[m]]
        if len(rungs) > MOST_RUNGS:
            wanted = np.geomspace(rungs[0] + 1, rungs[-1] + 1, MOST_RUNGS)
            rungs = sorted({min(rungs, key=lambda m: abs(m - w)) for w in wanted})
        return tuple(map(table.schedule, rungs))

    def within(self, limit: float) -> Schedule | None:
        """Return the rung of the fewest operations that needs at most ``limit`` bytes; or None."""
        return next((s for s in reversed(self.ladder) if s.bytes <= limit), None)

    def even(self, count: int) -> Schedule:
        """Divide the graph into ``count`` segments that keep about as much, all but the last made
        again.
        """
        targets = [self.weight[-1] * k / count for k in range(1, count)]
        inner = {min(self.borders[1:-1], key=lambda b: abs(self.weight[b] - t)) for t in targets}
        bounds = [0, *sorted(inner), self.borders[-1]]
        *again, (start, stop) = zip(bounds, bounds[1:])
        segments = [Segment(a, b, parts=(Segment(a, b),)) for a, b in again]
        flops = int(self.operations[start])
        return Schedule((*segments, Segment(start, stop)), 0, flops)

    def ways(self, a: int, b: int) -> list[Way]:
        """List the ways to differentiate the stretch between two borders, in one go."""
        start, stop = self.borders[a], self.borders[b]
        eqns = self.costs.jaxpr.eqns[start:stop]
        whole = int(self.weight[stop] - self.weight[start])
        work, loose = int(self.work[a, b]), int(self.loose[a, b])
        found = [Way(whole, work, 0, loose, Segment(start, stop))]
        own = sum(self.costs.own_bytes[start:stop])
        if stop - start == 1 and own:
            for kept, fresh, flops, inside in self.ways_inside(eqns[0], own):
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
            flops, size = self.costs.flops_again(kept | crossing, start, stop), _bytes(kept)
            if flops and (size, flops) not in seen and size < whole:
                seen.add((size, flops))
                fresh = _bytes((here & self.held) - kept) + sum(self.costs.own_bytes[start:stop])
                fresh += work
                stays = places(self.costs.jaxpr, kept | (crossing & wanted))
                yield Way(size, fresh, flops, _bytes(crossing - kept), Segment(start, stop, stays))

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
            ends = list(self._divisible_from(a))
            for b, classes in ends[:: math.ceil(len(ends) / MOST_ENDS) or 1] + ends[-1:]:
                for place, share in classes:
                    division = divided(eqns, self.borders[a], self.borders[b], place)
                    if division is not None:
                        found.setdefault((a, b), []).append((place, division, share))
        return found

    def _divisible_from(self, a: int) -> Iterator[tuple[int, list[tuple[Place, float]]]]:
        """Go through ends of stretches from a border that seem divisible for the most part: along
        which axes, and how much of the bytes.
        """
        eqns, start = self.costs.jaxpr.eqns, self.borders[a]
        axes, b = StretchAxes(eqns), a + 1
        size = lambda v: _size(v) if v in self.held else 0
        for i in range(start, len(eqns)):
            axes.add(i, eqns[i], size, self.costs.own_bytes[i])
            if i + 1 == self.borders[b]:
                weight = self.weight[i + 1] - self.weight[start]
                stretch = list(zip(range(start, i + 1), eqns[start : i + 1]))
                classes = axes.largest(CLASSES, 0.5 * weight)
                yield b, [(axes.place(c, stretch), min(size / weight, 1)) for c, size in classes]
                b += 1

    def _in_pieces(self, a: int, b: int, whole: int, work: int) -> Iterator[Way]:
        """Go through ways to differentiate a stretch piece by piece."""
        start, stop = self.borders[a], self.borders[b]
        eqns = self.costs.jaxpr.eqns[start:stop]
        here = {v for eqn in eqns for v in eqn.outvars}
        crossing = _bytes(v for v in here if self.last_needed.get(v, -1) >= stop)
        reads = _bytes({v for read in self.reads[start:stop] for v in read} - here)
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
            flops, size = self.costs.flops_again(kept, start, stop), _bytes(kept)
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
        later = {a for i in division.after for a in variables(eqns[i].invars)}
        found = {
            v: (i, k)
            for i in division.inside if costs.reversed[i]
            for k, v in enumerate(eqns[i].outvars)
            if has_tangent(v.aval) and (v in later or self.last_use.get(v, -1) >= stop)
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

    def idle(self, b: int) -> float:
        """Count the operations before a border that need not run again: no rule names their end."""
        if b == len(self.borders) - 1:
            return 0  # what ends there runs once
        start, stop = self.borders[b - 1], self.borders[b]
        again = self.costs.flops_again(frozenset(), start, stop)
        return self.operations[stop] - self.operations[start] - again

    def _crossing(self, variables: Collection[Var]) -> np.ndarray[Any, Any]:
        """Count, for each stretch, the bytes of these variables that are made in it and needed
        after it.
        """
        made = np.zeros((len(self.borders), len(self.borders)))
        for v in variables:
            first, last = self.defined[v], self.last_needed.get(v, -1)
            low = bisect_right(self.borders, first)
            made[low - 1, low : bisect_right(self.borders, last)] += size_in_bytes(v.aval)
        return np.cumsum(made[::-1], 0)[::-1]


class _Table:
    """C(i, j, m) for all borders and bytes, and the schedules that it stands for."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        borders = scheduler.borders
        count = len(borders)
        self.unit = max(scheduler.most_bytes / LEVELS, 1.0)
        self.least = least = np.full((count, count, LEVELS + 1), np.inf)
        self.runs = np.subtract.outer(*[scheduler.operations[borders]] * 2).T
        self.idle = [0, *map(scheduler.idle, range(1, count))]
        self.ways = {
            (a, b): scheduler.ways(a, b) for a in range(count) for b in range(a + 1, count)
        }
        for a in reversed(range(count - 1)):
            for b in range(a + 1, count):
                runs, rest = self.runs[a, b], least[b, b + 1 :]
                for way in self.ways[a, b]:
                    cost, (alone, kept, low) = runs + way.flops, self._levels(way)
                    _lower(least[a, b, alone:], cost - self.idle[b])
                    _lower(least[a, b + 1 :, low:], cost + rest[:, low - kept : LEVELS + 1 - kept])
                c = self._up(scheduler.passing[a, b])
                if c <= LEVELS:
                    again = rest[:, : LEVELS + 1 - c] + least[a, b, c:]
                    _lower(least[a, b + 1 :, c:], runs + again)

    def _up(self, size: float) -> int:
        return math.ceil(size / self.unit - 1e-9)

    def _levels(self, way: Way) -> tuple[int, int, int]:
        """Return the bytes that a way needs at the end, keeps before a rest, and needs there."""
        kept = min(self._up(way.kept + way.border), LEVELS + 1)
        low = max(kept, self._up(way.kept + way.fresh))
        return self._up(way.kept + way.fresh), kept, min(low, LEVELS + 1)

    def schedule(self, level: int) -> Schedule:
        """Return the schedule of the fewest operations within so many bytes."""
        last = len(self.scheduler.borders) - 1
        again = self.least[0, last, level] - self.runs[0, last]
        return Schedule(self._segments(0, last, level), int(level * self.unit), int(again))

    def _segments(self, a: int, j: int, m: int) -> tuple[Segment, ...]:
        wanted = self.least[a, j, m]
        for way in self.ways[a, j]:
            cost = self.runs[a, j] + way.flops - self.idle[j]
            if self._levels(way)[0] <= m and cost == wanted:
                return (way.segment,)
        for b in range(a + 1, j):
            runs, rest = self.runs[a, b], self.least[b, j]
            for way in self.ways[a, b]:
                _, kept, low = self._levels(way)
                if low <= m and runs + way.flops + rest[m - kept] == wanted:
                    return (way.segment, *self._segments(b, j, m - kept))
            c = self._up(self.scheduler.passing[a, b])
            if c <= m and runs + (rest[m - c] + self.least[a, b, m]) == wanted:
                start, stop = self.scheduler.borders[a], self.scheduler.borders[b]
                again = Segment(start, stop, parts=self._segments(a, b, m))
                return (again, *self._segments(b, j, m - c))
        raise AssertionError("the table holds what it was filled with")


def _lower(target: np.ndarray[Any, Any], value: Any) -> None:
    np.minimum(target, value, out=target)


def _counts(most: int, wanted: Iterable[int]) -> set[int]:
    """Choose into how many pieces to divide: divisors near the wanted ones."""
    divisors = [n for n in range(2, most + 1) if most % n == 0]
    near = lambda count: [n for n in divisors if 0.5 < n / count < 2]
    return {min(found, key=lambda n: abs(n - count)) for count in wanted if (found := near(count))}


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


def places(jaxpr: Jaxpr, variables: Collection[Var]) -> frozenset[Output]:
    """Say where in a graph variables are made, which holds for another trace of it too."""
    return frozenset(
        (i, k)
        for i, eqn in enumerate(jaxpr.eqns)
        for k, v in enumerate(eqn.outvars)
        if v in variables
    )


def _variables(atoms: Iterable[Any]) -> list[Var]:
    return [atom for atom in atoms if isinstance(atom, Var)]


_size = lru_cache(maxsize=100_000)(lambda v: size_in_bytes(v.aval))


def _bytes(variables: Iterable[Var]) -> int:
    return sum(map(_size, variables))
