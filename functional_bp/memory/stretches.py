"""Stretches of a graph between borders, where little crosses, and the bytes that each needs."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable
from functools import lru_cache
from typing import Any

import numpy as np
from jax import lax
from jax.extend.core import Var

from functional_bp.engine.higher_order import has_tangent, only
from functional_bp.engine.plan import size_in_bytes, variables
from functional_bp.memory.residual_costs import FUSED, Costs, cheapest, materialized

MOST_BORDERS, EVEN_BORDERS = 64, 12
# Exchange rates, bytes for an operation: from "only what is free" to "whatever it costs".
RATES = (1.0, 0.05, 0.004, 0.0003, 0.0)


class Stretches:
    """The stretches of one graph.

    Attributes:
        borders: numbers of equations before which a stretch may begin; the last is their count.
        weight: by equation, the bytes that all before it keep.
        work: by first and last border, the bytes of cotangents beside what is kept.
        passing, loose: likewise the bytes made in a stretch that cross its end; those that are not
            kept anyway.
        cuts: the cheapest sets of values to keep, at several exchange rates.

    Args:
        costs: of the graph.
    """

    def __init__(self, costs: Costs) -> None:
        self.costs = costs
        eqns = costs.jaxpr.eqns
        self.defined = {v: i for i, eqn in enumerate(eqns) for v in eqn.outvars}
        self.held = materialized(costs)
        self.reads = [self.defined.keys() & set(variables(eqn.invars)) for eqn in eqns]
        self.last_use: dict[Var, int] = {}
        ends = self.defined.keys() & set(variables(costs.jaxpr.outvars))
        for i, used in enumerate([*self.reads, ends]):
            self.last_use.update(dict.fromkeys(used, i))
        self.last_reversed: dict[Var, int] = {}  # from there a value has a cotangent
        seeded = self.defined.keys() & set(variables(only(costs.jaxpr.outvars, costs.seeded)))
        for i, used in enumerate([*self.reads, seeded]):
            if i == len(eqns) or costs.reversed[i]:
                self.last_reversed.update(dict.fromkeys(used, i))
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
        """Choose where segments may begin: where little crosses, best what is kept anyway.

        One is chosen of each part of the graph that keeps as much, and, as what runs in pieces ends
        where nothing is kept, too, one of each part of as many equations.
        """
        count = len(self.costs.jaxpr.eqns)
        crossing = np.zeros(count + 1)
        for v, last in self.last_use.items():
            loose = v not in self.cuts[0]
            crossing[self.defined[v] + 1 : last + 1] += size_in_bytes(v.aval) * (1 + 1e-3 * loose)
        self.weight = weight = np.cumsum([0, *(
            bytes_of(v for v in eqn.outvars if v in self.held) + own
            for eqn, own in zip(self.costs.jaxpr.eqns, self.costs.own_bytes)
        )])  # fmt: skip
        chosen = {0, count}
        for amount, most in ((weight, MOST_BORDERS), (np.arange(count + 1), EVEN_BORDERS)):
            bins = np.linspace(0, amount[-1], most + 1)
            for low, high in zip(bins, bins[1:]):
                inside = np.flatnonzero((amount > low) & (amount <= high))
                inside = inside[(inside > 0) & (inside < count)]
                if len(inside):
                    chosen.add(int(inside[np.argmin(crossing[inside])]))
        heavy = [i for i, own in enumerate(self.costs.own_bytes) if own > 0.03 * weight[-1]]
        return sorted(chosen.union(heavy, (i + 1 for i in heavy)))

    def _constants(self) -> set[Var]:
        """Find what depends on no input and is fused with what reads it: zeros, masks."""
        found: set[Var] = set()
        for eqn in self.costs.jaxpr.eqns:
            if eqn.primitive.name in FUSED and found.issuperset(variables(eqn.invars)):
                found.update(eqn.outvars)
        return found

    def _at_work(self) -> np.ndarray[Any, Any]:
        """Count, for each stretch, the bytes of cotangents beside what is kept, when most is there.

        A value has a cotangent from its last use that is reversed down to where it was made. By
        then, what only later equations name is gone. What is fused has none in memory.
        """
        eqns = self.costs.jaxpr.eqns
        matter = set(self.held)
        for eqn, read in zip(eqns, self.reads):
            name = eqn.primitive.name
            if name not in FUSED and not name.startswith("reduce_"):  # of a sum: a broadcast
                matter |= read | set(eqn.outvars)
        change = np.zeros(len(eqns) + 1)
        for v in matter:
            last = self.last_reversed.get(v, -1)
            if last >= 0 and has_tangent(v.aval):
                in_place = last < len(eqns) and eqns[last].primitive is lax.scan_p  # of the state's
                change[self.defined[v]] += size_of(v)
                change[min(last + (not in_place), len(eqns))] -= size_of(v)
        kept = np.array(self.costs.own_bytes, float)
        first = {v: i for i, group in reversed([*enumerate(self.costs.named)]) for v in group}
        for v in self.held:
            kept[first.get(v, self.defined[v])] += size_of(v)
        there = np.cumsum(kept) + np.cumsum(change)[:-1]
        blocks = list(zip(self.borders, self.borders[1:]))
        tops = np.array([there[a:b].max() for a, b in blocks])
        found = np.zeros((len(self.borders), len(self.borders)))
        for k in range(len(blocks)):
            ends = np.array(self.borders[k + 1 :])
            found[k, k + 1 :] = np.maximum.accumulate(tops[k:]) - self.weight[ends]
        return np.maximum(found, 0)

    def idle(self, b: int) -> float:
        """Count the operations before a border that need not run again: no rule names their end."""
        if b == len(self.borders) - 1:
            return 0  # what ends there runs once
        start, stop = self.borders[b - 1], self.borders[b]
        again = self.costs.flops_again(frozenset(), start, stop)
        return self.operations[stop] - self.operations[start] - again

    def _crossing(self, some: Collection[Var]) -> np.ndarray[Any, Any]:
        """Count, for each stretch, the bytes of these variables that are made in it and needed
        after it.
        """
        made = np.zeros((len(self.borders), len(self.borders)))
        for v in some:
            first, last = self.defined[v], self.last_needed.get(v, -1)
            low = bisect_right(self.borders, first)
            made[low - 1, low : bisect_right(self.borders, last)] += size_in_bytes(v.aval)
        return np.cumsum(made[::-1], 0)[::-1]


size_of = lru_cache(maxsize=100_000)(lambda v: size_in_bytes(v.aval))


def bytes_of(some: Iterable[Var]) -> int:
    """Count the bytes of variables."""
    return sum(map(size_of, some))
