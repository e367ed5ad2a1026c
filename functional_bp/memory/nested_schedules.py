"""Ways to differentiate an equation that holds graphs, with fewer bytes than its rule keeps.

What is inside a branch or a device's block has a schedule of its own. A loop runs again in chunks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.extend.core import Jaxpr, JaxprEqn, Var, primitives

from functional_bp.engine.higher_order import has_tangent
from functional_bp.engine.plan import fixed_point, variables
from functional_bp.graph.nested import inner_graphs, opened_scan
from functional_bp.memory.residual_costs import Costs, cheapest, costs_of, shape_of
from functional_bp.memory.schedule import LoopSchedule, Schedule, Segment, places
from functional_bp.memory.scheduler import Scheduler
from functional_bp.memory.stretches import RATES, size_of
from functional_bp.vjps.remat import without_calls

GROUPS = (2, 4, 8, 16)
LONG = 64  # steps; from there on a loop is divided unevenly, and more than once
RUNGS = 4  # of the ladder of what is inside that are tried

Inside = tuple[int, int, int, LoopSchedule | tuple[Schedule, ...]]  # kept, fresh, flops, how


def opened(jaxpr: Jaxpr) -> tuple[Jaxpr, list[Any]]:
    """Write out the calls of a graph, and what stands in it under ``jax.checkpoint``."""
    return without_calls(jaxpr, (primitives.jit_p, primitives.remat_p))


@lru_cache(maxsize=256)
def scheduler_of(jaxpr: Jaxpr) -> Scheduler:
    """Return a scheduler of what is inside of an equation."""
    graph, _ = opened(jaxpr)
    costs = costs_of(graph, [has_tangent(v.aval) for v in graph.invars])
    return Scheduler(costs, ways_inside)


def ways_inside(eqn: JaxprEqn, own: int) -> Iterator[Inside]:
    """Go through ways to differentiate an equation that keeps ``own`` bytes as it stands."""
    if any(part.consts for part in inner_graphs(eqn)):
        return
    if eqn.primitive is lax.scan_p:
        yield from _loop_ways(eqn, own)
    elif eqn.primitive is lax.cond_p:
        yield from _once_ways(eqn, 1)
    elif eqn.primitive.name == "shard_map":
        found: list[Inside] = []
        devices = inner_graphs(eqn)[0].runs or 1

        def decide(*_: Any) -> tuple[()]:
            found.extend(_once_ways(eqn, devices))
            return ()

        jax.eval_shape(on_mesh(eqn, decide, ()), *map(shape_of, eqn.invars))
        yield from found


def on_mesh(eqn: JaxprEqn, body: Callable[..., Any], out_specs: Any) -> Callable[..., Any]:
    """Run ``body`` where a ``shard_map`` runs its own."""
    params = eqn.params
    return jax.shard_map(
        body, mesh=params["mesh"], in_specs=tuple(params["in_specs"]), out_specs=out_specs,
        axis_names=params["newly_manual_axes"], check_vma=params["check_vma"],
    )  # fmt: skip


def _once_ways(eqn: JaxprEqn, count: int) -> Iterator[Inside]:
    """Go through schedules of graphs that run once, on ``count`` devices: what they keep is in
    memory from then on, or made again from nothing.
    """
    schedulers = [scheduler_of(part.jaxpr) for part in inner_graphs(eqn)]
    runs = max(sum(s.costs.flops) for s in schedulers)
    most = max(s.stretches.most_bytes for s in schedulers)
    for share in (k / RUNGS for k in range(1, RUNGS)):
        found = tuple(s.within(share * most) or s.ladder[0] for s in schedulers)
        size, flops = max(s.bytes for s in found) * count, max(s.flops for s in found)
        yield size, 0, flops * count, found
        whole = tuple(_again(f, len(s.costs.jaxpr.eqns)) for f, s in zip(found, schedulers))
        yield 0, size, (flops + runs) * count, whole


def _again(schedule: Schedule, count: int) -> Schedule:
    """Return the schedule of a graph that keeps nothing, and runs again as another one says."""
    return Schedule((Segment(0, count, parts=schedule.segments),))


class _Step(NamedTuple):
    """A step of a loop keeps bytes, makes bytes again, and takes operations for that."""

    kept: int
    fresh: int
    flops: int
    schedule: Schedule | None


def _loop_ways(eqn: JaxprEqn, own: int) -> Iterator[Inside]:
    """Go through ways to differentiate a ``scan``.

    With n steps that carry c bytes, name r bytes and take f operations each:

    ==========================  =====================  ===========  ===============
    way                         kept                   made again   operations
    ==========================  =====================  ===========  ===============
    as it stands                n r                                 0
    each step keeps k           n k                    r            n f(k)
    m chunks, each run again    m c                    n r / m      n f
    both                        m c                    n k / m + r  n (f + f(k))
    chunks of chunks            m c                    M(n / m)     n f + F(n / m)
    chunks, then q last steps   m c + q r              (n − q) r/m  (n − q) f
    ==========================  =====================  ===========  ===============

    One division needs 2 √(n c r) bytes. In G groups, with m chunks of each length: while those of
    the i-th run again, i m are kept; so they may have M/r − i m c/r steps. Σᵢ m (M − i m c)/r = n
    is solved by the least M at m = M/(c (G + 1)), M = √(2 (G + 1)/G · n c r); the limit √(2 n c r)
    is that of binomial checkpointing with two runs (Griewank and Walther 2000, doi
    10.1145/347837.347846).
    """
    length = eqn.params.get("length")
    if not isinstance(length, int) or length < 2:
        return
    scan = opened_scan(eqn)
    scheduler = scheduler_of(scan.body.jaxpr)
    costs = scheduler.costs
    _, states, scanned = scan.divided(costs.jaxpr.invars)
    prices = {v: size_of(v) for v in _needed_states(costs, states)}
    effort, carry = sum(costs.flops), max(sum(prices.values()), 1)
    copied = sum(map(size_of, scanned)) * length  # of what is cut
    full = _Step(own // length, 0, 0, None)
    for step in (full, *_lean_steps(scheduler, prices, full.kept)):
        if step is not full:
            loop = LoopSchedule((), 1, step.schedule)
            yield length * step.kept, step.fresh, length * step.flops, loop
        for count, last in _beginnings(length):
            kept = count * carry + last * step.kept + copied
            fresh = max(0, ((length - last) // count - last) * step.kept) + step.fresh
            flops = (length - last) * effort + length * step.flops
            yield kept, fresh, flops + 2, LoopSchedule((count,), 1, step.schedule, last)
        for chunks, groups in _divisions(length, carry, max(step.kept, 1)):
            peak, kept = _loop_bytes(length, chunks, groups, carry, step.kept)
            parts = partition(length, chunks[0], groups)
            kept += copied if len(parts) > 1 else 0
            flops = length * (len(chunks) * effort + step.flops)
            loop = LoopSchedule(chunks, groups, step.schedule)
            yield kept, peak - kept + step.fresh, flops + groups, loop  # fewer loops are better


def _lean_steps(scheduler: Scheduler, prices: dict[Var, int], whole: int) -> Iterator[_Step]:
    """Go through ways to keep fewer bytes of a step, or to need fewer when it runs again."""
    costs = scheduler.costs
    count = len(costs.jaxpr.eqns)
    seen: set[int] = set()
    for rate in RATES:
        kept = frozenset(cheapest(costs.run_again, rate, prices))
        size, flops = sum(map(size_of, kept)), costs.flops_again(kept)
        if flops and size < 0.98 * whole and size not in seen:
            seen.add(size)
            segment = Segment(0, count, places(costs.jaxpr, kept))
            yield _Step(size, whole, flops, Schedule((segment,)))
    carried, runs = sum(prices.values()), sum(costs.flops)
    for share in (0.6, 0.35):
        found = scheduler.within(share * scheduler.stretches.most_bytes)
        if found is not None and carried < 0.98 * whole and found.flops:
            yield _Step(carried, found.bytes, runs + found.flops, _again(found, count))


def _beginnings(length: int) -> Iterator[tuple[int, int]]:
    """Go through divisions of the first steps alone: into how many chunks, and the steps left."""
    found = [(m, math.ceil(length / (m + 1))) for m in (1, 2, 3, 5)]
    found += [(1, round(share * length)) for share in (0.6, 0.7, 0.8, 0.9)]
    yield from ((m, last) for m, last in dict.fromkeys(found) if m <= length - last < length)


def _divisions(length: int, carry: int, step: int) -> Iterator[tuple[tuple[int, ...], int]]:
    """Go through divisions of a loop: chunks, chunks of chunks, and how many lengths."""
    best = math.sqrt(length * step / carry)
    counts = {_divisor_near(length, best * factor) for factor in (0.5, 1, 2)}
    yield from (((m,), 1) for m in counts if 1 < m <= length // 2)
    if length < LONG:
        return
    for groups in GROUPS:
        count = groups * round(math.sqrt(2 * length * step / carry / groups / (groups + 1)))
        if groups <= count <= length // 2:
            yield (count,), groups
    for depth in (2, 3):
        m = round((length * step / carry) ** (1 / (depth + 1)))
        if m > 1 and 2 * m**depth <= length:
            yield (_divisor_near(length, m), *[m] * (depth - 1)), 1


def partition(length: int, chunks: int, groups: int) -> list[tuple[int, int]]:
    """Divide steps into chunks: how many of which length, the longest first."""
    each = max(chunks // groups, 1)
    shares = [groups - i for i in range(groups)]
    sizes = [length * share // (each * sum(shares)) for share in shares]
    rest = length - each * sum(sizes)
    for i in range(groups):
        if rest >= each:
            sizes[i], rest = sizes[i] + 1, rest - each
    parts = [(each, size) for size in sizes if size]
    return [*parts, (1, rest)] if rest else parts


def _loop_bytes(
    length: int, chunks: Sequence[int], groups: int, carry: int, step: int
) -> tuple[int, int]:
    """Return the most bytes that are in memory at once, and those kept before the reverse sweep."""
    if not chunks:
        return length * step, length * step
    kept = most = 0
    for count, size in partition(length, chunks[0], groups):
        kept += count * carry
        most = max(most, kept + _loop_bytes(size, chunks[1:], 1, carry, step)[0])
    return most, kept


def _divisor_near(length: int, wanted: float) -> int:
    """Choose a number of chunks: one that divides the steps, if there is one within a factor of 2.

    What is scanned has else to be copied, to cut off the rest.
    """
    near = [k for k in range(2, length // 2 + 1) if length % k == 0 and 0.5 < k / wanted < 2]
    return min(near, key=lambda k: abs(math.log(k / wanted)), default=round(wanted))


def _needed_states(costs: Costs, states: Sequence[Var]) -> list[Var]:
    """List the states that a second run needs: not a buffer that steps write and none reads."""
    jaxpr = costs.jaxpr
    after = dict(zip(states, jaxpr.outvars))

    def reached(wanted: frozenset[Any]) -> frozenset[Any]:
        needed = set(wanted)
        needed.update(v for s in states if s in wanted for v in variables([after[s]]))
        for eqn in reversed(jaxpr.eqns):
            if not needed.isdisjoint(eqn.outvars):
                needed.update(variables(eqn.invars))
        return frozenset(needed)

    named = frozenset(v for group in costs.named for v in group)
    needed = fixed_point(reached, named)
    return [v for v in states if v in needed]
