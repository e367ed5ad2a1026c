"""The same function, whose gradient needs no more memory than a budget: parts of it run again.

A value that a rule names is kept, or made again when its turn comes. What to keep is chosen for
estimated bytes (``memory.schedule``), compiled, and measured; the estimate is moved until the
compiled program, whose bytes are exact, needs no more than the budget at the least operations.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from functools import lru_cache
from types import MethodType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.core import Tracer
from jax.extend.core import Jaxpr, JaxprEqn, Var

from functional_bp import _jax
from functional_bp.engine import sweeps
from functional_bp.engine.higher_order import has_tangent, only
from functional_bp.engine.plan import size_in_bytes
from functional_bp.engine.transforms import vjp
from functional_bp.errors import BackpropError
from functional_bp.graph import names
from functional_bp.graph.graph import format_bytes, format_count, short_place
from functional_bp.memory.allocation import CompiledProgram, program_of
from functional_bp.memory.attribution import Purpose, usage_of
from functional_bp.memory.footprint import FootprintError, abstract, parse_bytes
from functional_bp.memory.kept import KEPT
from functional_bp.memory.residual_costs import Costs, costs_of, shape_of
from functional_bp.memory.schedule import (
    LoopSchedule,
    Output,
    Schedule,
    Scheduler,
    Segment,
    body_costs,
)
from functional_bp.vjps.remat import without_calls

_POLICY = jax.checkpoint_policies.save_only_these_names(KEPT)
LEAST_BYTES = 1024  # of a budget that is a number: 1.5 is neither a share nor meant as bytes
MOST_COMPILATIONS = 10
EVEN = (2, 3, 4, 6, 8)  # segments of equal weight, tried where the estimated least is too much
CLOSE = 0.03  # of the budget: nearer to it no further program is compiled


class BudgetError(BackpropError, ValueError):
    """A gradient needs more memory than the budget, however much of it runs again.

    Attributes:
        least: the bytes of temporaries of the leanest program that was found.
    """

    least: int = 0


class Recomputation(NamedTuple):
    """What was chosen for the shapes of a call.

    Attributes:
        schedule: what is made again.
        program: the gradient's memory, as compiled.
        plain: that of the gradient with nothing made again.
        budget_bytes: that ``program.peak_bytes`` was to stay within.
        flops: of value and gradient with nothing made again, counted as three runs of the function.
        compilations: how many programs were compiled to find it.
        made: source lines whose operations run again, with their bytes.
    """

    schedule: Schedule
    program: CompiledProgram
    plain: CompiledProgram
    budget_bytes: int
    flops: int
    compilations: int
    made: tuple[tuple[str, str, int], ...]

    def __str__(self) -> str:
        saved = self.plain.peak_bytes - self.program.peak_bytes
        lines = [
            f"needs {format_bytes(self.program.peak_bytes)} of {format_bytes(self.budget_bytes)}; "
            f"{format_bytes(self.plain.peak_bytes)} with nothing made again",
        ]
        if saved > 0:
            share = 100 * self.schedule.flops / max(self.flops, 1)
            lines.append(
                f"saves {format_bytes(saved)} for {format_count(self.schedule.flops)} operations "
                f"that run again, {share:.1f} % of all"
            )
            lines += [f"  {format_bytes(size):>10}  {operation}  {where}".rstrip()
                      for operation, where, size in self.made]  # fmt: skip
        lines.append(f"found in {self.compilations} compilations")
        return "\n".join(lines)


class RecomputedFunction:
    """A function whose gradient makes parts of the function again; ``bp.recompute`` makes it.

    Attributes:
        fun: the function as it was given.
        budget: as it was given.
        choices: what was chosen, for each structure and shapes of arguments.
    """

    def __init__(
        self, fun: Callable[..., Any], budget: Any, argnums: Sequence[int], owner: Any = None
    ) -> None:
        bound = fun if owner is None else MethodType(fun, owner)
        functools.update_wrapper(self, bound, updated=())
        self.fun, self.budget, self.argnums = fun, budget, tuple(argnums)
        self.choices: dict[Any, Recomputation] = {}
        self._owner = owner  # what a method is bound to

    def __get__(self, instance: Any, owner: Any = None) -> RecomputedFunction:
        """Return it bound, as a method: ``argnums`` count what stands behind ``self``."""
        if instance is None:
            return self
        bound = RecomputedFunction(self.fun, self.budget, self.argnums, instance)
        bound.choices = self.choices
        return bound

    def _call(self, args: Any, kwargs: Any) -> _Call:
        """Flatten a call; arrays of an object that is a pytree are differentiated with the rest."""
        if self._owner is None:
            return _Call(self.fun, args, kwargs, self.argnums)
        argnums = [k + (k >= 0) for k in self.argnums]
        if _is_module(self._owner):
            argnums = [0, *argnums]
        return _Call(self.fun, (self._owner, *args), kwargs, argnums)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the function returns."""
        call = self._call(args, kwargs)
        choice = self._choice(call)
        return call.result(scheduled(call.jaxpr, choice.schedule)((), *call.consts, *call.leaves))

    def choice(self, *args: Any, **kwargs: Any) -> Recomputation:
        """Say what is made again for arguments of these shapes; nothing runs.

        Args:
            *args: arrays, or ``jax.ShapeDtypeStruct`` in their place.
            **kwargs: further arguments.
        """
        return self._choice(self._call(args, kwargs))

    def _choice(self, call: _Call) -> Recomputation:
        if call.key not in self.choices:
            self.choices[call.key] = _Search(call, self.budget).result()
        return self.choices[call.key]

    def __str__(self) -> str:
        name = names.function_name(self.fun)
        if not self.choices:
            return f"{name}, to be differentiated within {self.budget!r}: not called yet"
        return "\n".join(f"{name} {choice}" for choice in self.choices.values())

    def __repr__(self) -> str:
        return f"<recompute of {names.function_name(self.fun)} within {self.budget!r}>"


def recompute(
    fun: Callable[..., Any], budget: int | float | str, *, argnums: int | Sequence[int] = 0
) -> RecomputedFunction:
    """Return the same function, whose gradient by ``bp.grad`` needs no more than a budget.

    What the reverse sweep needs is made again where that is cheap, instead of being kept; loops
    (``lax.scan``) run again in chunks. For the shapes of each call, programs are compiled until one
    is found that keeps the budget, on the platform that JAX uses here, at the fewest operations.

    This holds for ``bp.grad``. ``jax.grad`` of the result is right too, but on a CPU it saves
    nothing in code without loops (JAX 0.10).

    Args:
        fun: takes and returns pytrees of arrays; what is no array among its arguments stays as it
            is. Or a method, ``@functools.partial(bp.recompute, budget=0.5)``, or a module that is
            a pytree: its own arrays are differentiated as well.
        budget: what the program of value and gradient may need, arguments and results included:
            bytes, or a text such as "2 GiB"; a fraction below 1, or "40%", is one of the
            temporaries that it needs with nothing made again. Of one device, where arrays have
            shardings.
        argnums: the arguments that will be differentiated.

    Returns:
        A function; printed, it says what is made again. ``.choice(*args)`` says so beforehand.

    Raises:
        BudgetError: when called, if no choice keeps the budget; the message says what the least is,
            and what fills it.
    """
    _share(budget)
    positions = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    if _is_module(fun):
        return RecomputedFunction(_called(type(fun)), budget, positions, fun)
    return RecomputedFunction(fun, budget, positions)


def _called(kind: Any) -> Callable[..., Any]:
    """Return the function that calls an object of a class, under the name of the class."""

    @functools.wraps(kind.__call__)
    def call(module: Any, *args: Any, **kwargs: Any) -> Any:
        return module(*args, **kwargs)

    call.__name__ = kind.__name__
    return call


def _is_module(owner: Any) -> bool:
    """Say whether an object is a pytree that holds arrays, as a module of Equinox is."""
    return any(leaf is not owner and _is_array(leaf) for leaf in jax.tree.leaves(owner))


def _share(budget: Any) -> float | None:
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


class _Call:
    """A call of the function is a flat graph without calls, and its arguments."""

    out_tree: Any
    fixed_outs: list[Any]

    def __init__(
        self, fun: Callable[..., Any], args: Any, kwargs: Any, argnums: Sequence[int]
    ) -> None:
        argnums = _positions(argnums, len(args), len(kwargs), names.function_name(fun))
        flat_args, tree = jax.tree.flatten((args, kwargs))
        trained = jax.tree.leaves(
            tuple(jax.tree.map(lambda _, k=k: k in argnums, arg) for k, arg in enumerate(args))
        )
        trained += [False] * (len(flat_args) - len(trained))
        is_traced = [
            _is_array(leaf) or on and names.leaf_is_array(leaf)
            for on, leaf in zip(trained, flat_args)
        ]
        self.leaves: list[Any] = list(only(flat_args, is_traced))
        shapes = list(map(_shape_of, self.leaves))

        def flat(*leaves: Any) -> list[Any]:
            given = iter(leaves)
            whole = [next(given) if on else leaf for on, leaf in zip(is_traced, flat_args)]
            inner_args, inner_kwargs = jax.tree.unflatten(tree, whole)
            out = fun(*inner_args, **inner_kwargs)
            found, self.out_tree = jax.tree.flatten(out)
            self.fixed_outs = [None if names.leaf_is_array(leaf) else leaf for leaf in found]
            return [leaf for leaf in found if names.leaf_is_array(leaf)]

        jaxpr, self.consts = _jax.open_jaxpr(jax.make_jaxpr(flat)(*shapes))
        inputs = [*jaxpr.constvars, *jaxpr.invars]  # closures' arrays are arguments like others
        unnamed = jaxpr.debug_info.with_unknown_names()
        self.jaxpr, made = without_calls(
            jaxpr.replace(constvars=[], invars=inputs, debug_info=unnamed)
        )
        assert not made
        self.shapes = [*map(_shape_of, self.consts), *shapes]
        marked = [False] * len(self.consts) + only(trained, is_traced)
        pairs = zip(marked, self.jaxpr.invars, strict=True)
        self.active = [on and has_tangent(v.aval) for on, v in pairs]
        if not any(self.active):
            raise FootprintError(
                f"nothing of {names.function_name(fun)} is differentiated",
                got=f"argnums={argnums}, of which nothing is an array of real or complex numbers",
                do="say with argnums which arguments will be",
            )
        self.name = names.function_name(fun)
        fixed = [repr(leaf) for on, leaf in zip(is_traced, flat_args) if not on]
        operations = tuple(eqn.primitive.name for eqn in self.jaxpr.eqns)
        self.key = tree, tuple(map(str, self.shapes)), tuple(fixed), operations

    def result(self, outs: Sequence[Any]) -> Any:
        """Return what the function returned; what is no array was told when it was traced."""
        found = iter(outs)
        leaves = [next(found) if fixed is None else fixed for fixed in self.fixed_outs]
        return jax.tree.unflatten(self.out_tree, leaves)


def _positions(argnums: Sequence[int], count: int, more: int, name: str) -> tuple[int, ...]:
    """Count positions from the front; those of ``more`` arguments given by keyword are let be.

    Raises:
        FootprintError: one is beyond the arguments.
    """
    if not all(-count <= k < count + more for k in argnums):
        raise FootprintError(
            f"argnums of {name} is beyond the arguments",
            got=f"argnums={argnums}",
            expected=f"{-count} to {count - 1}",
        )
    return tuple(k % count for k in argnums if k < count)


def _is_array(leaf: Any) -> bool:
    """Say whether a value is traced: Python's numbers, texts and functions stay as they are."""
    return not isinstance(leaf, int) and names.leaf_is_array(leaf)


def _shape_of(leaf: Any) -> Any:
    if isinstance(leaf, Tracer):
        aval: Any = jax.typeof(leaf)
        return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type)
    return abstract(leaf)


class _Search:
    """Compiles programs until one keeps the budget."""

    def __init__(
        self, call: _Call, budget: Any, program: Callable[[Schedule], CompiledProgram] | None = None
    ) -> None:
        self.call, self.program = call, program or self._gradient
        self.compiled: dict[Any, CompiledProgram] = {}
        self.costs = costs_of(call.jaxpr, call.active)
        plain = Schedule((Segment(0, len(call.jaxpr.eqns), None),), 0, 0)
        self.plain = self.measured(plain)
        fixed = self.plain.peak_bytes - self.plain.temporary_bytes
        share = _share(budget)
        self.budget = (
            parse_bytes(budget) if share is None
            else fixed + int(share * self.plain.temporary_bytes)
        )  # fmt: skip
        self.tried = {plain: self.plain}

    def measured(self, schedule: Schedule) -> CompiledProgram:
        """Compile the program under a schedule, once."""
        if schedule.segments not in self.compiled:
            self.compiled[schedule.segments] = self.program(schedule)
        return self.compiled[schedule.segments]

    def _gradient(self, schedule: Schedule) -> CompiledProgram:
        """Compile the gradient under a schedule."""
        call = self.call
        run = scheduled(call.jaxpr, schedule)
        on = [has_tangent(v.aval) for v in call.jaxpr.outvars]

        def program(chosen: Any, others: Any, bars: Any) -> Any:
            def of_chosen(*values: Any) -> Any:
                left, right = iter(values), iter(others)
                outs = run((), *(next(left) if on else next(right) for on in call.active))
                return only(outs, on), only(outs, [not o for o in on])

            outs, pull, rest = vjp(of_chosen, *chosen, has_aux=True)
            return outs, rest, pull(bars)

        chosen = only(call.shapes, call.active)
        others = only(call.shapes, [not on for on in call.active])
        bars = [shape_of(v) for v in only(call.jaxpr.outvars, on)]
        if all(bar.shape == () for bar in bars):
            ones = [jnp.ones((), bar.dtype) for bar in bars]
            jitted = jax.jit(lambda chosen, others: program(chosen, others, ones))
            return program_of(jitted.lower(chosen, others).compile())
        return program_of(jax.jit(program).lower(chosen, others, bars).compile())

    def result(self) -> Recomputation:
        """Return the choice of the fewest operations within the budget."""
        if self.plain.peak_bytes <= self.budget:
            return self._choice(next(iter(self.tried)))
        scheduler = Scheduler(self.costs)
        low, high = scheduler.least(), scheduler.most_bytes
        best = self._tried(low)
        if not best:
            self._refine(scheduler, low.bytes)
            best = self._fewest()
            if best is None:
                raise self._too_small()
        at, top = low.bytes, high
        while len(self.compiled) < MOST_COMPILATIONS and top - at > 0.01 * high:
            middle = (at + top) // 2
            found = scheduler.within(middle)
            if found is not None and self._tried(found):
                at = middle
                if self.budget - self.measured(found).peak_bytes < CLOSE * self.budget:
                    break
            else:
                top = middle
        chosen = self._fewest()
        assert chosen is not None
        return self._choice(chosen)

    def _refine(self, scheduler: Scheduler, least: int) -> None:
        """Try estimates above the least, and equal segments: estimates err."""
        found = [scheduler.within(int(least * factor)) for factor in (1.15, 1.4, 1.8)]
        found += [scheduler.even(count) for count in EVEN if count < len(scheduler.borders)]
        for schedule in dict.fromkeys(filter(None, found)):
            if self._tried(schedule):
                return

    def _tried(self, schedule: Schedule) -> bool:
        self.tried[schedule] = self.measured(schedule)
        return self.tried[schedule].peak_bytes <= self.budget

    def _fewest(self) -> Schedule | None:
        within = [s for s, program in self.tried.items() if program.peak_bytes <= self.budget]
        return min(within, key=lambda s: (s.flops, self.tried[s].peak_bytes), default=None)

    def _choice(self, schedule: Schedule) -> Recomputation:
        total = 3 * sum(self.costs.flops)
        made = _made_again(self.costs, schedule)
        return Recomputation(schedule, self.measured(schedule), self.plain, self.budget, total,
                      len(self.compiled), made)  # fmt: skip

    def _too_small(self) -> BudgetError:
        schedule, program = min(self.tried.items(), key=lambda item: item[1].peak_bytes)
        usage = usage_of(program, lambda name: Purpose.BATCH)
        largest = [
            f"{format_bytes(share.bytes)} {share.type} of {share.origin.operation} "
            f"{short_place(share.origin.source)}".rstrip()
            for share in usage.shares if share.origin is not None
        ][:2]  # fmt: skip
        arguments = program.peak_bytes - program.temporary_bytes
        error = BudgetError(
            f"the gradient of {self.call.name} cannot be had within the budget",
            got=f"at least {format_bytes(program.peak_bytes)}, of which arguments and results "
            f"are {format_bytes(arguments)}; largest: {'; '.join(largest)}",
            expected=f"at most {format_bytes(self.budget)}",
            do="make the batch smaller, or divide what is largest (bp.footprint shows it)"
            + self._closed(),
        )
        error.least = program.temporary_bytes
        return error

    def _closed(self) -> str:
        """Name the operations whose insides keep much, and are not made again."""
        eqns = zip(self.call.jaxpr.eqns, self.costs.own_bytes)
        large = [eqn.primitive.name for eqn, own in eqns if own > 0.2 * self.plain.temporary_bytes]
        closed = sorted(set(large) - {"scan"})
        return f"; nothing inside {', '.join(closed)} is made again" if closed else ""


def _made_again(costs: Costs, schedule: Schedule) -> tuple[tuple[str, str, int], ...]:
    """List the source lines of what is made again, the most bytes first."""
    sums: dict[tuple[str, str], int] = {}
    for segment in schedule.segments:
        for i in range(segment.start, segment.stop):
            eqn = costs.jaxpr.eqns[i]
            if segment.kept is None and segment.loop is None:
                continue
            size = costs.own_bytes[i] + sum(
                size_in_bytes(v.aval)
                for k, v in enumerate(eqn.outvars)
                if (i, k) not in (segment.kept or ()) and any(v in g for g in costs.named[i:])
            )
            if size:
                key = eqn.primitive.name, short_place(_jax.source_line(eqn))
                sums[key] = sums.get(key, 0) + size
    ranked = sorted(sums.items(), key=lambda item: -item[1])[:8]
    return tuple((operation, where, size) for (operation, where), size in ranked)


def scheduled(jaxpr: Jaxpr, schedule: Schedule) -> Callable[..., list[Any]]:
    """Return the function of a graph in which lean segments stand under ``jax.checkpoint``."""

    def run(consts: Sequence[Any], *args: Any) -> list[Any]:
        env: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args)))
        for segment in schedule.segments:
            eqns = jaxpr.eqns[segment.start : segment.stop]
            if segment.loop is not None:
                (eqn,) = eqns
                operands = [sweeps.value_of(a, env) for a in eqn.invars]
                env.update(zip(eqn.outvars, looped(eqn, operands, segment.loop)))
            elif segment.kept is None:
                _run(eqns, env, frozenset())
            else:
                _run_lean(jaxpr, segment, segment.kept, env)
        return [sweeps.value_of(v, env) for v in jaxpr.outvars]

    return run


def _run_lean(
    jaxpr: Jaxpr, segment: Segment, places: frozenset[Output], env: dict[Any, Any]
) -> None:
    eqns = jaxpr.eqns[segment.start : segment.stop]
    kept = frozenset(jaxpr.eqns[i].outvars[k] for i, k in places)
    made = {v for eqn in eqns for v in eqn.outvars}
    read = dict.fromkeys(
        a for eqn in eqns for a in eqn.invars if isinstance(a, Var) and a not in made
    )
    last = _last_uses(jaxpr)
    outs = [v for eqn in eqns for v in eqn.outvars if last.get(v, -1) >= segment.stop]

    def run(*values: Any) -> list[Any]:
        local: dict[Any, Any] = dict(zip(read, values))
        _run(eqns, local, kept)
        return [local[v] for v in outs]

    lean = jax.checkpoint(run, policy=_POLICY if kept else None)
    env.update(zip(outs, lean(*(env[v] for v in read))))


def _run(eqns: Sequence[JaxprEqn], env: dict[Any, Any], kept: frozenset[Var]) -> None:
    for eqn in eqns:
        outs = sweeps.evaluate(eqn, [sweeps.value_of(a, env) for a in eqn.invars])
        named = (checkpoint_name(x, KEPT) if v in kept else x for v, x in zip(eqn.outvars, outs))
        env.update(zip(eqn.outvars, named))


@lru_cache(maxsize=64)
def _last_uses(jaxpr: Jaxpr) -> dict[Any, int]:
    last = {a: i for i, eqn in enumerate(jaxpr.eqns) for a in eqn.invars if isinstance(a, Var)}
    last.update({v: len(jaxpr.eqns) for v in jaxpr.outvars if isinstance(v, Var)})
    return last


def looped(eqn: JaxprEqn, operands: Sequence[Any], loop: LoopSchedule) -> list[Any]:
    """Run a ``scan`` so that its gradient keeps fewer bytes: in chunks, or with leaner steps."""
    constants, carries = _jax.scan_counts(eqn.params)
    _, consts = without_calls(_jax.open_jaxpr(eqn.params["jaxpr"])[0])
    jaxpr = body_costs(eqn).jaxpr
    step = scheduled(jaxpr, Schedule((Segment(0, len(jaxpr.eqns), loop.kept),), 0, 0))
    fixed, is_reverse, length = operands[:constants], eqn.params["reverse"], eqn.params["length"]
    start, xs = list(operands[constants : constants + carries]), operands[constants + carries :]

    def scan(state: Any, slices: Any, length: int) -> Any:
        def body(state: Any, slices: Any) -> Any:
            outs = step(consts, *fixed, *state, *slices)
            return outs[:carries], outs[carries:]

        return lax.scan(body, state, slices, length, reverse=is_reverse)

    if not loop.chunks:
        state, ys = scan(start, list(xs), length)
        return [*state, *ys]
    size = length // loop.chunks
    whole = size * loop.chunks
    first, rest = slice(0, whole), slice(whole, None)
    if is_reverse:
        first, rest = slice(length - whole, None), slice(0, length - whole)
    chunk = jax.checkpoint(lambda state, slices: scan(state, slices, size))
    divided = [x[first].reshape(loop.chunks, size, *x.shape[1:]) for x in xs]
    state, ys = lax.scan(chunk, start, divided, loop.chunks, reverse=is_reverse)
    ys = [y.reshape(whole, *y.shape[2:]) for y in ys]
    if length > whole:
        last = jax.checkpoint(lambda state, slices: scan(state, slices, length - whole))
        state, more = last(state, [x[rest] for x in xs])
        pairs = zip(more, ys) if is_reverse else zip(ys, more)
        ys = [jnp.concatenate(pair) for pair in pairs]
    return [*state, *ys]


# A larger program, in which a function stands that is differentiated: a training step.

Chooser = Callable[["_Call"], Schedule]  # says of a function's graph what of it is made again


def check_budget(budget: Any) -> None:
    """Raise a ``FootprintError`` if this is no budget."""
    _share(budget)


def rescheduled(fun: Callable[..., Any], choose: Chooser) -> Callable[..., Any]:
    """Return the same function of what is differentiated, under the schedule of its graph."""

    @functools.wraps(fun)
    def run(*args: Any) -> Any:
        call = _Call(fun, args, {}, range(len(args)))
        schedule = choose(call)
        if not schedule.flops:
            return fun(*args)
        return call.result(scheduled(call.jaxpr, schedule)((), *call.consts, *call.leaves))

    return run


def within(
    budget: Any,
    trace: Callable[[Chooser], Any],
    program: Callable[[Schedule], CompiledProgram],
) -> Recomputation:
    """Choose a schedule by the memory of a program in which a ``rescheduled`` function stands.

    Args:
        budget: of that program, as ``recompute`` takes it.
        trace: traces the program with a chooser.
        program: compiles it under a schedule.

    Raises:
        BudgetError: no choice keeps the budget.
    """
    calls: list[_Call] = []

    def look(call: _Call) -> Schedule:
        calls.append(call)
        return Schedule((Segment(0, len(call.jaxpr.eqns), None),), 0, 0)

    trace(look)
    call = calls[0]
    call.consts, call.leaves = [], []  # they belong to the trace, which has ended
    return _Search(call, budget, program).result()
