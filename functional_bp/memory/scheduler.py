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
from functools import cached_property
from typing import Any

import numpy as np

from functional_bp.memory.residual_costs import Costs
from functional_bp.memory.schedule import Schedule, Segment
from functional_bp.memory.ways import Way, Ways

LEVELS = 512  # into which bytes are divided
MOST_RUNGS = 24  # of a ladder


class Scheduler:
    """Finds schedules of one graph.

    Args:
        costs: of the graph.
        ways_inside: ways to differentiate an equation that holds graphs.
    """

    def __init__(self, costs: Costs, ways_inside: Any = lambda eqn, own: ()) -> None:
        self.costs, self.stretches = costs, Ways(costs, ways_inside)

    @cached_property
    def ladder(self) -> tuple[Schedule, ...]:
        """Return schedules from the fewest bytes to the fewest operations.

        They don't depend on any budget, so that budgets share them.
        """
        if not self.costs.jaxpr.eqns:
            return (Schedule(()),)
        table = _Table(self.stretches)
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
        borders, weight = self.stretches.borders, self.stretches.weight
        targets = [weight[-1] * k / count for k in range(1, count)]
        inner = {min(borders[1:-1], key=lambda b: abs(weight[b] - t)) for t in targets}
        bounds = [0, *sorted(inner), borders[-1]]
        *again, (start, stop) = zip(bounds, bounds[1:])
        segments = [Segment(a, b, parts=(Segment(a, b),)) for a, b in again]
        flops = int(self.stretches.operations[start])
        return Schedule((*segments, Segment(start, stop)), 0, flops)


class _Table:
    """C(i, j, m) for all borders and bytes, and the schedules that it stands for."""

    def __init__(self, stretches: Ways) -> None:
        self.stretches = stretches
        borders = stretches.borders
        count = len(borders)
        self.unit = max(stretches.most_bytes / LEVELS, 1.0)
        self.least = least = np.full((count, count, LEVELS + 1), np.inf)
        self.runs = np.subtract.outer(*[stretches.operations[borders]] * 2).T
        self.idle = [0, *map(stretches.idle, range(1, count))]
        self.ways = {
            (a, b): stretches.ways(a, b) for a in range(count) for b in range(a + 1, count)
        }
        for a in reversed(range(count - 1)):
            for b in range(a + 1, count):
                runs, rest = self.runs[a, b], least[b, b + 1 :]
                for way in self.ways[a, b]:
                    cost, (alone, kept, low) = runs + way.flops, self._levels(way)
                    _lower(least[a, b, alone:], cost - self.idle[b])
                    _lower(least[a, b + 1 :, low:], cost + rest[:, low - kept : LEVELS + 1 - kept])
                c = self._up(stretches.passing[a, b])
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
        last = len(self.stretches.borders) - 1
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
            c = self._up(self.stretches.passing[a, b])
            if c <= m and runs + (rest[m - c] + self.least[a, b, m]) == wanted:
                start, stop = self.stretches.borders[a], self.stretches.borders[b]
                again = Segment(start, stop, parts=self._segments(a, b, m))
                return (again, *self._segments(b, j, m - c))
        raise AssertionError("the table holds what it was filled with")


def _lower(target: np.ndarray[Any, Any], value: Any) -> None:
    np.minimum(target, value, out=target)
