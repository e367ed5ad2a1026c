"""Which stretches of a program run again in its reverse sweep, so that its memory suffices.

A flat graph is cut into *segments*. What crosses a border is kept. A segment is either *plain* (all
that its rules name is kept) or *lean*: before its reverse sweep it runs again, from what crosses
its first border and from what it keeps besides, the cheapest set by a minimum cut
(``residual_costs.cheapest``) at some exchange rate of bytes for operations.

While a segment is differentiated, there is in memory what it and those before it keep, and what it
made again. The least operations at which this sum is below a limit everywhere are found exactly, by
dynamic programming over borders and kept bytes:

    F(j, k) = min over segments (i, j] and their variants v that fit, k_i + kept(v) = k, of
              F(i, k_i) + operations(v),      fits: k_i + kept(v) + made again(v) ≤ limit
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from jax import lax
from jax.extend.core import Jaxpr, JaxprEqn, Var

from functional_bp import _jax
from functional_bp.engine.higher_order import has_tangent
from functional_bp.engine.plan import size_in_bytes
from functional_bp.memory.residual_costs import Costs, cheapest, costs_of, materialized
from functional_bp.vjps.remat import without_calls

MOST_BORDERS = 64
LEVELS = 256  # into which kept bytes are divided by the dynamic program
# Exchange rates, bytes for an operation: from "only what is free" to "whatever it costs".
RATES = (1.0, 0.05, 0.004, 0.0003, 0.0)


Output = tuple[int, int]  # an equation's position in its graph, and which of its outputs


class LoopSchedule(NamedTuple):
    """How a ``scan`` is differentiated with fewer bytes.

    Attributes:
        chunks: into how many the steps are divided, each of which runs again as a whole; 0: none.
        kept: what a step keeps, the rest being made again in it; None: all that its rules name.
    """

    chunks: int
    kept: frozenset[Output] | None


class Segment(NamedTuple):
    """A stretch of equations, and what is made again in it.

    Attributes:
        start, stop: the equations.
        kept: of a lean one, what it keeps of what it makes; None of a plain one.
        loop: of a segment that is one ``scan``, how that is differentiated; None as it stands.
    """

    start: int
    stop: int
    kept: frozenset[Output] | None
    loop: LoopSchedule | None = None


class Variant(NamedTuple):
    """A way to differentiate a segment: bytes that it keeps, bytes made again, operations.

    ``choice`` is None for a plain one, a rate of ``RATES``, or what to do with a loop.
    """

    kept: int
    fresh: int
    flops: int
    choice: float | LoopSchedule | None


@dataclass(frozen=True)
class Schedule:
    """Segments that follow each other, and what they are estimated to need.

    Attributes:
        segments: all equations, in order.
        bytes: the most that is kept and made again at once.
        flops: that run again.
    """

    segments: tuple[Segment, ...]
    bytes: int
    flops: int


class Scheduler:
    """Finds schedules of one graph for any limit, what does not depend on the limit once."""

    def __init__(self, costs: Costs) -> None:
        self.costs = costs
        eqns = costs.jaxpr.eqns
        inputs = {*costs.jaxpr.invars, *costs.jaxpr.constvars}
        self.defined = {v: i for i, eqn in enumerate(eqns) for v in eqn.outvars}
        self.named = {v for group in costs.named for v in group} - inputs
        self.held = materialized(costs)
        self.last_named = {v: i for i, group in enumerate(costs.named) for v in group}
        self.last_use: dict[Var, int] = {}
        self.reads = [self.defined.keys() & set(_variables(eqn.invars)) for eqn in eqns]
        ends = self.defined.keys() & set(_variables(costs.jaxpr.outvars))
        for i, read in enumerate([*self.reads, ends]):
            self.last_use.update(dict.fromkeys(read, i))
        self.borders = self._borders()
        self.kept = {rate: frozenset(cheapest(costs, rate, {})) for rate in RATES}
        self._variants = self._tabulated()

    def _borders(self) -> list[int]:
        """Choose where segments may begin: where little crosses, spread over the operations."""
        count = len(self.costs.jaxpr.eqns)
        self.crossing = np.zeros(count + 1)
        for v, last in self.last_use.items():
            self.crossing[self.defined[v] + 1 : last + 1] += size_in_bytes(v.aval)
        self._weight = weight = np.cumsum([0, *(
            _bytes(v for v in eqn.outvars if v in self.held) + own
            for eqn, own in zip(self.costs.jaxpr.eqns, self.costs.own_bytes)
        )])  # fmt: skip
        chosen = {0, count}
        bins = np.linspace(0, weight[-1], MOST_BORDERS + 1)
        for low, high in zip(bins, bins[1:]):
            inside = np.flatnonzero((weight > low) & (weight <= high))
            inside = inside[(inside > 0) & (inside < count)]
            if len(inside):
                chosen.add(int(inside[np.argmin(self.crossing[inside])]))
        heavy = [i for i, own in enumerate(self.costs.own_bytes) if own > 0.03 * weight[-1]]
        return sorted(chosen.union(heavy, (i + 1 for i in heavy)))

    def _tabulated(self) -> dict[tuple[int, int], list[Variant]]:
        """Find the variants of each segment, by its borders."""
        table: dict[tuple[int, int], list[Variant]] = {}
        for a, start in enumerate(self.borders):
            for stop in self.borders[a + 1 :]:
                table[start, stop] = self._variants_of(start, stop)
        return table

    def _variants_of(self, start: int, stop: int) -> list[Variant]:
        eqns = self.costs.jaxpr.eqns[start:stop]
        here = {v for eqn in eqns for v in eqn.outvars}
        wanted = {v for group in self.costs.named[start:stop] for v in group if v in self.defined}
        own = sum(self.costs.own_bytes[start:stop])
        stay = self._stay(here, stop)
        held = _bytes(here & self.held)
        variants = [Variant(held + own, 0, 0, None)]
        if stop - start == 1 and own:
            variants += loop_variants(eqns[0], own, held)
        seen: set[tuple[int, int]] = set()
        for rate in RATES:
            kept = (self.kept[rate] & here) | stay
            made, flops = self._made_again(start, stop, wanted, kept)
            outside = set[Var]().union(*(self.reads[i] for i in made)) - here
            bytes_kept = _bytes(kept | outside)
            fresh = _bytes((here & self.held) - kept) + own
            key = bytes_kept, flops
            if flops and key not in seen and bytes_kept < held + own:
                seen.add(key)
                variants.append(Variant(bytes_kept, fresh, flops, rate))
        return variants

    def _made_again(
        self, start: int, stop: int, wanted: set[Var], kept: AbstractSet[Var]
    ) -> tuple[set[int], int]:
        """Return which equations of a lean segment run again, and their operations."""
        needed = wanted - kept
        made: set[int] = set()
        for i in reversed(range(start, stop)):
            if self.costs.own_bytes[i] or not needed.isdisjoint(self.costs.jaxpr.eqns[i].outvars):
                made.add(i)
                needed |= self.reads[i] - kept
        return made, sum(self.costs.flops[i] for i in made)

    @property
    def most_bytes(self) -> int:
        """Return what is estimated to be kept if nothing is made again."""
        return _bytes(self.held) + sum(self.costs.own_bytes)

    def least(self) -> Schedule:
        """Return the schedule of the least bytes that there is."""
        low, high = 0, self.most_bytes + 1
        best = self.within(high)
        for _ in range(24):
            middle = (low + high) // 2
            found = self.within(middle)
            if found is None:
                low = middle
            else:
                best, high = found, middle
        assert best is not None
        return best

    def even(self, count: int) -> Schedule:
        """Divide the graph into ``count`` lean segments that keep about as much each."""
        targets = [self._weight[-1] * k / count for k in range(1, count)]
        inner = {min(self.borders[1:-1], key=lambda b: abs(self._weight[b] - t)) for t in targets}
        bounds = [0, *sorted(inner), self.borders[-1]]
        pairs = list(zip(bounds, bounds[1:]))
        segments = tuple(Segment(a, b, self._inside(a, b, 0.0)) for a, b in pairs)
        made = {v for group in self.costs.named for v in group if v in self.defined}
        flops = 0
        for start, stop in pairs:
            here = {v for eqn in self.costs.jaxpr.eqns[start:stop] for v in eqn.outvars}
            kept = (self.kept[0.0] & here) | self._stay(here, stop)
            flops += self._made_again(start, stop, made & here, kept)[1]
        return Schedule(segments, 0, flops)

    def within(self, limit: int) -> Schedule | None:
        """Return the schedule of the fewest operations that needs at most ``limit``; or None."""
        unit = max(limit / LEVELS, 1.0)
        count = len(self.borders)
        flops = np.full((count, LEVELS + 1), np.inf)
        flops[0, 0] = 0
        choice: dict[tuple[int, int], tuple[int, int, float | LoopSchedule | None]] = {}
        for a in range(count):
            levels = np.flatnonzero(np.isfinite(flops[a]))
            if not len(levels):
                continue
            for b in range(a + 1, count):
                for kept, fresh, effort, what in self._variants[self.borders[a], self.borders[b]]:
                    up = int(np.ceil(kept / unit))
                    fits = levels[(levels + up) * unit + fresh <= limit + 0.5]
                    fits = fits[fits + up <= LEVELS]
                    better = flops[a, fits] + effort < flops[b, fits + up]
                    for level in fits[better]:
                        flops[b, level + up] = flops[a, level] + effort
                        choice[b, int(level + up)] = (a, int(level), what)
        if not np.isfinite(flops[-1]).any():
            return None
        level = int(np.argmin(flops[-1]))
        total = int(flops[-1, level])
        segments: list[Segment] = []
        b = count - 1
        while b:
            a, before, what = choice[b, level]
            start, stop = self.borders[a], self.borders[b]
            loop = what if isinstance(what, LoopSchedule) else None
            kept = self._inside(start, stop, what) if isinstance(what, float) else None
            segments.append(Segment(start, stop, kept, loop))
            b, level = a, before
        return Schedule(tuple(reversed(segments)), limit, total)

    def _inside(self, start: int, stop: int, rate: float) -> frozenset[Output]:
        """Return what a lean segment keeps: its part of the cut, and what later rules name."""
        here = {v for eqn in self.costs.jaxpr.eqns[start:stop] for v in eqn.outvars}
        return places(self.costs.jaxpr, (here & self.kept[rate]) | self._stay(here, stop))

    def _stay(self, here: set[Var], stop: int) -> frozenset[Var]:
        return frozenset(v for v in here & self.named if self.last_named[v] >= stop)


def places(jaxpr: Jaxpr, variables: Collection[Var]) -> frozenset[Output]:
    """Say where in a graph variables are made, which holds for another trace of it too."""
    return frozenset(
        (i, k)
        for i, eqn in enumerate(jaxpr.eqns)
        for k, v in enumerate(eqn.outvars)
        if v in variables
    )


@lru_cache(maxsize=256)
def body_costs(eqn: JaxprEqn) -> Costs:
    """Count what the body of a ``scan`` keeps, its calls written out."""
    jaxpr, _ = without_calls(_jax.open_jaxpr(eqn.params["jaxpr"])[0])
    return costs_of(jaxpr, [has_tangent(v.aval) for v in jaxpr.invars])


def loop_variants(eqn: JaxprEqn, own: int, held: int) -> list[Variant]:
    """List the ways to differentiate a ``scan`` that keep fewer bytes than its rules name.

    With n steps that carry c bytes, name r bytes and take f operations each:

    ========================================  ==================  ===========  ==============
    way                                       kept                made again   operations
    ========================================  ==================  ===========  ==============
    as it stands                              n r                              0
    each step keeps k and makes the rest      n k                 r            n f(k)
    m chunks, each run again                  m c                 n r / m      n f
    both                                      m c                 n k / m + r  n (f + f(k))
    ========================================  ==================  ===========  ==============

    Args:
        eqn: the equation.
        own: the bytes that it keeps as it stands, all steps together.
        held: those that it keeps beside that.
    """
    length = eqn.params.get("length")
    if eqn.primitive is not lax.scan_p or not isinstance(length, int) or length < 2:
        return []
    costs = body_costs(eqn)
    constants, carries = _jax.scan_counts(eqn.params)
    states = costs.jaxpr.invars[constants : constants + carries]
    scanned = costs.jaxpr.invars[constants + carries :]
    prices = {v: size_in_bytes(v.aval) for v in states}
    carry, step = sum(prices.values()), own / length
    effort = sum(costs.flops)
    leaner: dict[int, tuple[frozenset[Output], int]] = {}
    for rate in RATES:
        kept = frozenset(cheapest(costs, rate, prices))
        flops = flops_again(costs, kept)
        if flops and _bytes(kept) < 0.98 * step:
            leaner.setdefault(_bytes(kept), (places(costs.jaxpr, kept), flops))
    found = [
        Variant(length * k + held, int(step), length * flops, LoopSchedule(0, kept))
        for k, (kept, flops) in leaner.items()
    ]
    for k, (kept, flops) in [(int(step), (None, 0)), *leaner.items()]:
        best = math.sqrt(length * max(k, 1) / max(carry, 1))
        for chunks in {_divisor_near(length, best * factor) for factor in (0.5, 1, 2)}:
            if 1 < chunks <= length // 2:
                fresh = math.ceil(length / chunks) * k + (int(step) if kept is not None else 0)
                total = length * (effort + flops)
                copied = _bytes(scanned) * length if length % chunks else 0
                kept_bytes = chunks * carry + held + copied
                found.append(Variant(kept_bytes, fresh, total, LoopSchedule(chunks, kept)))
    return [v for v in found if v.kept + v.fresh < own + held]


def _divisor_near(length: int, wanted: float) -> int:
    """Choose a number of chunks: one that divides the steps, if there is one within a factor of 2.

    What is scanned has else to be copied, to cut off the rest.
    """
    near = [k for k in range(2, length // 2 + 1) if length % k == 0 and 0.5 < k / wanted < 2]
    return min(near, key=lambda k: abs(math.log(k / wanted)), default=round(wanted))


def flops_again(costs: Costs, kept: frozenset[Var]) -> int:
    """Count the operations that make again what the rules of a graph name and is not kept."""
    needed = {v for group in costs.named for v in group} - kept
    total = 0
    for i in reversed(range(len(costs.jaxpr.eqns))):
        eqn = costs.jaxpr.eqns[i]
        if costs.own_bytes[i] or not needed.isdisjoint(eqn.outvars):
            total += costs.flops[i]
            needed |= set(_variables(eqn.invars)) - kept
    return total


def _variables(atoms: Iterable[Any]) -> list[Var]:
    return [atom for atom in atoms if isinstance(atom, Var)]


_size = lru_cache(maxsize=100_000)(lambda v: size_in_bytes(v.aval))


def _bytes(variables: Iterable[Var]) -> int:
    return sum(map(_size, variables))
