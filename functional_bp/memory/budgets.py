"""Programs are compiled until one keeps a memory budget.

Estimates order them, compiled bytes decide. The ladder of schedules is the same for all budgets of
a graph, and so is what was compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr

from functional_bp import _jax
from functional_bp.engine.higher_order import only
from functional_bp.engine.plan import size_in_bytes
from functional_bp.engine.transforms import vjp
from functional_bp.errors import BackpropError
from functional_bp.graph.graph import format_bytes, format_count, short_place
from functional_bp.graph.names import operation_name
from functional_bp.memory.allocation import CompiledProgram, program_of
from functional_bp.memory.attribution import Purpose, usage_of
from functional_bp.memory.footprint import FootprintError, parse_bytes
from functional_bp.memory.nested_schedules import opened, ways_inside
from functional_bp.memory.residual_costs import Costs, costs_of, operations, shape_of
from functional_bp.memory.schedule import Schedule, Segment
from functional_bp.memory.scheduled import scheduled
from functional_bp.memory.scheduler import Scheduler

LEAST_BYTES = 1024  # of a budget that is a number: 1.5 is neither a share nor meant as bytes
EVEN = (2, 3, 4, 6, 8)  # segments of equal weight, tried where the estimated least is too much
NEXT = 2  # rungs above the first that needs too much: estimates of neighbours err
LITTLE = 0.003  # of the operations: to save that no further program is compiled
PLAIN = Schedule((), 0, 0)  # nothing is made again


class BudgetError(BackpropError, ValueError):
    """A gradient needs more memory than the budget, however much of it runs again.

    Attributes:
        least: the bytes of temporaries of the leanest program that was found.
        compilations: how many programs were compiled.
    """

    least: int = 0
    compilations: int = 0


class Recomputation(NamedTuple):
    """What was chosen for the shapes of a call.

    Attributes:
        schedule: what is made again.
        program: the gradient's memory, as compiled.
        plain: that of the gradient with nothing made again.
        budget_bytes: that ``program.peak_bytes`` was to stay within.
        flops: of value and gradient with nothing made again.
        compilations: how many programs were compiled to find it, beside those for other budgets.
        made: source lines whose operations run again, with their bytes.
        pieces: which lines run in pieces, along what, and whether these run again.
    """

    schedule: Schedule
    program: CompiledProgram
    plain: CompiledProgram
    budget_bytes: int
    flops: int
    compilations: int
    made: tuple[tuple[str, str, int], ...]
    pieces: tuple[str, ...] = ()

    @property
    def extra_flops(self) -> int:
        """Count the operations beyond those with nothing made again, as compiled where told."""
        lean, plain = self.program.flops, self.plain.flops
        return self.schedule.flops if lean is None or plain is None else max(lean - plain, 0)

    def __str__(self) -> str:
        saved = self.plain.peak_bytes - self.program.peak_bytes
        lines = [
            f"needs {format_bytes(self.program.peak_bytes)} of {format_bytes(self.budget_bytes)}; "
            f"{format_bytes(self.plain.peak_bytes)} with nothing made again",
        ]
        if saved > 0:
            more, share = self.extra_flops, 100 * self.extra_flops / max(self.flops, 1)
            lines.append(
                f"saves {format_bytes(saved)} for {format_count(more)} more operations, "
                f"{share:.1f} % of all"
            )
            lines += [f"  {format_bytes(size):>10}  {operation}  {where}".rstrip()
                      for operation, where, size in self.made]  # fmt: skip
            lines += self.pieces
        count = self.compilations
        lines.append(f"found in {count} compilation{'s' * (count != 1)}")
        return "\n".join(lines)


class FlatGraph(NamedTuple):
    """A flat graph to be differentiated.

    Attributes:
        name: of the person's function.
        jaxpr: without calls and constants.
        active: which inputs are differentiated.
        seeded: which outputs are.
        shapes: of the inputs, with their shardings.
    """

    name: str
    jaxpr: Jaxpr
    active: tuple[bool, ...]
    seeded: tuple[bool, ...]
    shapes: tuple[Any, ...]

    @property
    def opened(self) -> Jaxpr:
        """Return the graph in which schedules are found: nothing stands under a checkpoint yet."""
        return opened(self.jaxpr)[0]

    def following(self, schedule: Schedule) -> Callable[..., list[Any]]:
        """Return the function of the graph that follows a schedule."""
        if not schedule.flops:
            return scheduled(self.jaxpr, None)  # with the person's own checkpoints
        return scheduled(self.opened, schedule)

    def gradient(self, schedule: Schedule) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Return the function of value and gradient under a schedule, and shapes of arguments."""
        run = self.following(schedule)
        on = self.seeded

        def program(chosen: Any, others: Any, bars: Any) -> Any:
            def of_chosen(*values: Any) -> Any:
                left, right = iter(values), iter(others)
                outs = run((), *(next(left) if on else next(right) for on in self.active))
                return only(outs, on), only(outs, [not o for o in on])

            outs, pull, rest = vjp(of_chosen, *chosen, has_aux=True)
            return outs, rest, pull(bars)

        chosen = only(self.shapes, self.active)
        others = only(self.shapes, [not on for on in self.active])
        bars = [shape_of(v) for v in only(self.jaxpr.outvars, on)]
        if not all(bar.shape == () for bar in bars):
            return program, (chosen, others, bars)
        ones = [jnp.ones((), bar.dtype) for bar in bars]
        return lambda chosen, others: program(chosen, others, ones), (chosen, others)

    def compiled(self, schedule: Schedule) -> CompiledProgram:
        """Compile value and gradient under a schedule."""
        gradient, shapes = self.gradient(schedule)
        return program_of(jax.jit(gradient).lower(*shapes).compile())


class Search:
    """Compiles programs until one keeps a budget; budgets share what was compiled.

    Args:
        graph: to be differentiated.
        compiled: the program under a schedule; that of value and gradient, if left out.
    """

    def __init__(
        self, graph: FlatGraph, compiled: Callable[[Schedule], CompiledProgram] | None = None
    ) -> None:
        self.graph, self._compiled = graph, compiled or graph.compiled
        self.tried: dict[Schedule, CompiledProgram] = {}
        self._told = 0
        self._answers: dict[int, int] = {}  # bytes of the program for each budget
        self.plain = self.measured(PLAIN)

    def measured(self, schedule: Schedule) -> CompiledProgram:
        """Return the program under a schedule."""
        if schedule not in self.tried:
            self.tried[schedule] = self._compiled(schedule)
        return self.tried[schedule]

    @cached_property
    def scheduler(self) -> Scheduler:
        """What finds schedules, which takes a while, and is the same for all budgets."""
        return Scheduler(self.costs, ways_inside)

    @cached_property
    def costs(self) -> Costs:
        """What each equation keeps, and takes to run again."""
        return costs_of(self.graph.opened, self.graph.active, self.graph.seeded)

    @cached_property
    def flops(self) -> int:
        """Count the operations with nothing made again: as compiled, or of the graph."""
        if self.plain.flops is not None:
            return self.plain.flops
        gradient, shapes = self.graph.gradient(PLAIN)
        jaxpr, _ = _jax.open_jaxpr(jax.make_jaxpr(gradient)(*shapes))
        return sum(map(operations, jaxpr.eqns))

    def within(self, budget: Any) -> Recomputation:
        """Return the choice of the fewest operations within a budget.

        Raises:
            BudgetError: nothing that was tried keeps it.
        """
        share = share_of(budget)
        fixed = self.plain.peak_bytes - self.plain.temporary_bytes
        limit = (
            parse_bytes(budget) if share is None
            else fixed + int(share * self.plain.temporary_bytes)
        )  # fmt: skip
        if self.plain.peak_bytes > limit:
            self._descend(limit)
        least, most = self._between(limit)
        within = [s for s, p in self.tried.items() if least <= p.peak_bytes <= most]
        if not within:
            raise self._too_small(limit)
        chosen = min(within, key=lambda s: (self._effort(s), self.tried[s].peak_bytes))
        self._answers[limit] = self.tried[chosen].peak_bytes
        return Recomputation(
            chosen, self.measured(chosen), self.plain, limit, self.flops, self._new_compilations(),
            _made_again(self.costs, chosen), tuple(_pieces(self.costs, chosen.segments)),
        )  # fmt: skip

    def _effort(self, schedule: Schedule) -> int:
        """Return the operations of a program: as compiled, or estimated where that is not told."""
        found = self.tried[schedule].flops
        return self.flops + schedule.flops if found is None else found

    def _between(self, limit: int) -> tuple[int, int]:
        """Return what a program needs at least and at most, so that no budget's program is larger
        than that of a larger budget.
        """
        smaller = [size for budget, size in self._answers.items() if budget <= limit]
        larger = [size for budget, size in self._answers.items() if budget >= limit]
        return max(smaller, default=0), min([limit, *larger])

    def _new_compilations(self) -> int:
        told, self._told = self._told, len(self.tried)
        return self._told - told

    def _descend(self, limit: int) -> None:
        """Bisect the ladder: estimates order the programs, compiled bytes decide."""
        rungs = [s for s in self.scheduler.ladder if s.flops]
        little = LITTLE * self.flops
        fits = lambda schedule: self.measured(schedule).peak_bytes <= limit
        low, high = -1, len(rungs)
        while high - low > 1 and (low < 0 or rungs[low].flops - rungs[high - 1].flops > little):
            middle = (low + high) // 2
            low, high = (middle, high) if fits(rungs[middle]) else (low, middle)
        for above in rungs[high + 1 : high + 1 + NEXT]:
            if low < 0 or rungs[low].flops - above.flops > little:
                fits(above)
        if low < 0:  # estimates err
            counts = [n for n in EVEN if n < len(self.scheduler.stretches.borders)]
            any(map(fits, (*rungs[1:4], *map(self.scheduler.even, counts))))

    def _too_small(self, limit: int) -> BudgetError:
        schedule, program = min(self.tried.items(), key=lambda item: item[1].peak_bytes)
        usage = usage_of(program, lambda name: Purpose.BATCH)
        made = [share for share in usage.shares if share.origin is not None][:2]
        largest = [
            f"{format_bytes(share.bytes)}, {f'{share.count} × ' if share.count > 1 else ''}"
            f"{share.type} of {share.origin.operation} {short_place(share.origin.source)}".rstrip()
            for share in made if share.origin
        ]  # fmt: skip
        arguments = program.peak_bytes - program.temporary_bytes
        size = format_bytes
        if size(program.peak_bytes) == size(limit):
            size = lambda count: f"{count:,} bytes"
        error = BudgetError(
            f"the gradient of {self.graph.name} cannot be had within the budget",
            got=f"at least {size(program.peak_bytes)}, of which arguments and results "
            f"are {format_bytes(arguments)}{'; largest: ' * bool(largest)}{'; '.join(largest)}",
            expected=f"at most {size(limit)}",
            do="make the batch smaller, or what is largest" + self._closed(),
        )
        error.least, error.compilations = program.temporary_bytes, len(self.tried)
        return error

    def _closed(self) -> str:
        """Name the operations whose insides keep much, and are not made again."""
        costs = self.costs
        eqns = zip(costs.jaxpr.eqns, costs.own_bytes)
        large = [operation_name(eqn) for eqn, own in eqns if own > 0.2 * self.plain.temporary_bytes]
        closed = sorted(set(large) - {"scan", "cond", "shard_map"})
        return f"; nothing inside {', '.join(closed)} is made again" if closed else ""


def _made_again(costs: Costs, schedule: Schedule) -> tuple[tuple[str, str, int], ...]:
    """List the source lines of what is made again, the most bytes first."""
    sums: dict[tuple[str, str], int] = {}
    named = {v for group in costs.named for v in group}
    for segment in filter(Segment.runs_again, schedule.segments):
        if segment.pieces is not None and segment.pieces.total is not None:
            continue
        for i in range(segment.start, segment.stop):
            eqn = costs.jaxpr.eqns[i]
            size = costs.own_bytes[i] + sum(
                size_in_bytes(v.aval)
                for k, v in enumerate(eqn.outvars)
                if (i, k) not in (segment.kept or ()) and v in named
            )
            if size:
                key = operation_name(eqn), short_place(_jax.source_line(eqn))
                sums[key] = sums.get(key, 0) + size
    ranked = sorted(sums.items(), key=lambda item: -item[1])[:8]
    return tuple((operation, where, size) for (operation, where), size in ranked)


def _pieces(costs: Costs, segments: Iterable[Segment]) -> Iterator[str]:
    """Say of each segment that runs in pieces, of those inside too, how it does."""
    eqns = costs.jaxpr.eqns
    for segment in segments:
        yield from _pieces(costs, segment.parts)
        if segment.pieces is None:
            continue
        i, (is_output, array, axis) = segment.pieces.place
        aval: Any = (eqns[i].outvars if is_output else eqns[i].invars)[array].aval
        ends = eqns[segment.start], eqns[segment.stop - 1]
        start, stop = (short_place(_jax.source_line(eqn)) for eqn in ends)
        again = "each runs again" if segment.pieces.total is None else "none runs again"
        yield (
            f"  {start} to {stop} in {segment.pieces.count} pieces of axis {axis} of "
            f"{operation_name(eqns[i])} ({aval.shape[axis]:,}); {again}"
        )


def share_of(budget: Any) -> float | None:
    """Return the fraction that a budget is, None where it is bytes.

    Raises:
        FootprintError: it is neither.
    """
    text = str(budget).strip()
    try:
        number = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        parse_bytes(budget)
        return None
    if 0 < number < 1:
        return number
    if not number >= LEAST_BYTES:
        raise FootprintError(
            "this is no budget",
            got=repr(budget),
            expected='a size of a memory in bytes, a text such as "2 GiB", or a fraction below 1',
        )
    return None
