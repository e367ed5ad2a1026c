"""The function of a graph that follows a schedule: what is made again stands under
``jax.checkpoint``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Jaxpr, JaxprEqn, Var

from functional_bp import _jax
from functional_bp.engine import sweeps
from functional_bp.engine.higher_order import has_tangent, only
from functional_bp.engine.plan import variables
from functional_bp.engine.transforms import vjp
from functional_bp.graph.nested import inner_graphs, opened_scan
from functional_bp.layouts.pieces import DividedStretch, divided, evaluate_piece
from functional_bp.memory.kept import KEPT
from functional_bp.memory.nested_schedules import on_mesh, opened, partition
from functional_bp.memory.schedule import LoopSchedule, Pieces, Schedule, Segment

_KEPT = jax.checkpoint_policies.save_only_these_names(KEPT)


def scheduled(jaxpr: Jaxpr, schedule: Schedule | None) -> Callable[..., list[Any]]:
    """Return the function of a graph, of its constants and arguments, that follows a schedule."""

    def run(consts: Sequence[Any], *args: Any) -> list[Any]:
        env: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args)))
        whole = (Segment(0, len(jaxpr.eqns)),)
        _follow(jaxpr, schedule.segments if schedule else whole, env)
        return [sweeps.value_of(v, env) for v in jaxpr.outvars]

    return run


def _follow(jaxpr: Jaxpr, segments: Sequence[Segment], env: dict[Any, Any]) -> None:
    for segment in segments:
        if segment.inside is not None:
            eqn = jaxpr.eqns[segment.start]
            operands = [sweeps.value_of(a, env) for a in eqn.invars]
            with _jax.emitting(eqn), eqn.ctx.manager:
                env.update(zip(eqn.outvars, _inside(eqn, operands, segment.inside)))
        elif segment.pieces is not None:
            _follow_in_pieces(jaxpr, segment, segment.pieces, env)
        elif segment.runs_again():
            _follow_again(jaxpr, segment, env)
        else:
            _run(jaxpr.eqns[segment.start : segment.stop], env)


def _follow_again(jaxpr: Jaxpr, segment: Segment, env: dict[Any, Any]) -> None:
    """Run a segment whose reverse sweep runs it, or its parts, again."""
    eqns = jaxpr.eqns[segment.start : segment.stop]
    kept = frozenset(jaxpr.eqns[i].outvars[k] for i, k in segment.kept or ())
    made = {v for eqn in eqns for v in eqn.outvars}
    read = dict.fromkeys(
        a for eqn in eqns for a in eqn.invars if isinstance(a, Var) and a not in made
    )
    last = _last_uses(jaxpr)
    outs = [v for eqn in eqns for v in eqn.outvars if last.get(v, -1) >= segment.stop]

    def run(*values: Any) -> list[Any]:
        local: dict[Any, Any] = dict(zip(read, values))
        if segment.parts:
            _follow(jaxpr, segment.parts, local)
        else:
            _run(eqns, local, kept)
        return [local[v] for v in outs]

    again = jax.checkpoint(run, policy=_KEPT if kept else None)
    env.update(zip(outs, again(*(env[v] for v in read))))


def _follow_in_pieces(jaxpr: Jaxpr, segment: Segment, pieces: Pieces, env: dict[Any, Any]) -> None:
    """Run a segment piece by piece along a dimension."""
    division = divided(jaxpr.eqns, segment.start, segment.stop, pieces.place)
    assert division is not None
    _run([jaxpr.eqns[i] for i in division.before], env)
    kept = frozenset(jaxpr.eqns[i].outvars[k] for i, k in segment.kept or ())
    stretch = _InPieces(jaxpr, division, pieces.count, kept)
    values = [env[v] for v, _ in stretch.reads]
    outs = stretch.outs(segment.stop)
    after = [jaxpr.eqns[i] for i in division.after]
    if pieces.total is not None:
        sums = [jaxpr.eqns[i].outvars[k] for i, k in pieces.total.sums]
        i, k = pieces.total.output
        total = jaxpr.eqns[i].outvars[k]
        others = [(v, axis) for v, axis in outs if v not in sums]
        env.update(zip((v for v, _ in others), stretch.run(others, values)))
        early, after = _parted(after, sums)
        _run(early, env)
        path = after[: after.index(jaxpr.eqns[i]) + 1] if total not in sums else []
        combine = _Combination(sums, path, total)
        factors = [env[v] for v in combine.reads]
        found = stretch.at_once(combine, jaxpr.eqns[i], values, factors)
        env.update(zip((*sums, total), found))
        after = [eqn for eqn in after if total not in eqn.outvars]
    else:
        env.update(zip((v for v, _ in outs), stretch.run(outs, values)))
    _run(after, env)


def _parted(eqns: Sequence[JaxprEqn], sums: Sequence[Var]) -> tuple[list[JaxprEqn], list[JaxprEqn]]:
    """Part equations into those that don't depend on sums, and those that do."""
    found: tuple[list[JaxprEqn], list[JaxprEqn]] = [], []
    known = set(sums)
    for eqn in eqns:
        depends = not known.isdisjoint(variables(eqn.invars))
        found[depends].append(eqn)
        known.update(eqn.outvars if depends else ())
    return found


class _Combination:
    """A scalar is combined of sums, linearly if there are several.

    Attributes:
        sums: the sums.
        reads: what else is read: factors.
    """

    def __init__(self, sums: Sequence[Var], path: Sequence[JaxprEqn], total: Var) -> None:
        self.sums, self._path, self._total = sums, path, total
        made = {*sums, *(v for eqn in path for v in eqn.outvars)}
        reads = dict.fromkeys(a for eqn in path for a in variables(eqn.invars) if a not in made)
        self.reads = list(reads)

    def __call__(self, sums: Sequence[Any], factors: Sequence[Any]) -> Any:
        """Return the scalar."""
        env = dict(zip((*self.sums, *self.reads), (*sums, *factors)))
        _run(self._path, env)
        return env[self._total]


Arrays = Sequence[tuple[Var, int | None]]  # with the axis along which each is divided


class _InPieces:
    """A stretch of a graph is run piece by piece.

    Attributes:
        reads: the values from outside, each with the axis along which it is divided, if it is.
    """

    def __init__(
        self, jaxpr: Jaxpr, division: DividedStretch, count: int, kept: frozenset[Var]
    ) -> None:
        self.jaxpr, self.division, self.kept = jaxpr, division, kept
        self.cut = _Cut(division.most, count)
        self.eqns = [(i, jaxpr.eqns[i]) for i in division.inside]
        self.made = {v for _, eqn in self.eqns for v in eqn.outvars}
        read = [
            (a, axis)
            for i, eqn in self.eqns
            for a, axis in zip(eqn.invars, division.read[i])
            if isinstance(a, Var) and a not in self.made
        ]
        self.reads: Arrays = list(dict.fromkeys(read))

    def outs(self, stop: int) -> Arrays:
        """Return what is read afterwards; sums over all pieces have no axis."""
        last = _last_uses(self.jaxpr)
        needed = {a for i in self.division.after for a in variables(self.jaxpr.eqns[i].invars)}
        return [
            (v, axis)
            for i, eqn in self.eqns
            for v, axis in zip(eqn.outvars, self.division.written[i])
            if v in needed or last.get(v, -1) >= stop
        ]

    def piece(self, outs: Arrays, values: Sequence[Any]) -> list[Any]:
        """Compute one piece of the outputs, of one of the values that are divided."""
        read = dict(zip(self.reads, values))
        env: dict[Any, Any] = {}
        for i, eqn in self.eqns:
            ins, axes = self.division.read[i], self.division.written[i]
            operands = [
                read[a, axis] if isinstance(a, Var) and a not in self.made
                else sweeps.value_of(a, env)
                for a, axis in zip(eqn.invars, ins)
            ]  # fmt: skip
            found = evaluate_piece(eqn, operands, ins, axes, self.cut.count)
            env.update(zip(eqn.outvars, _named(eqn, found, self.kept)))
        return [env[v] for v, _ in outs]

    def run(self, outs: Arrays, values: Sequence[Any]) -> list[Any]:
        """Compute the outputs; each piece runs again in its reverse sweep."""
        if not outs:
            return []
        piece = jax.checkpoint(partial(self.piece, outs), policy=_KEPT if self.kept else None)
        return self._over(piece, outs, [sweeps.zeros(v.aval) for v, _ in outs], values, True)

    def _over(
        self,
        piece: Callable[..., Any],
        outs: Arrays,
        zeros: Sequence[Any],
        values: Sequence[Any],
        is_differentiated: bool = False,
    ) -> list[Any]:
        """Run over all pieces: outputs with an axis are put together, the others added up.

        Args:
            piece: computes one of the outputs' pieces, of a piece of the values.
            outs: what it returns.
            zeros: what sums begin with.
            values: of ``reads``.
            is_differentiated: slices of later axes are copied beforehand, as their cotangents would
                else each be as large as the whole.
        """  # fmt: skip
        ahead = [axis is not None and (axis == 0 or is_differentiated) for _, axis in self.reads]
        axes = [axis or 0 for _, axis in self.reads]
        rows = [self.cut.rows(x, axis) for x, axis, on in zip(values, axes, ahead) if on]
        is_sum = [axis is None for _, axis in outs]

        def step(sums: Any, slices: Any) -> Any:
            number, rest = slices[0], iter(slices[1:])
            found = piece([
                next(rest) if on
                else x if axis is None
                else self.cut.piece(x, axis, number)
                for on, x, (_, axis) in zip(ahead, values, self.reads)
            ])  # fmt: skip
            sums = [x + y.astype(x.dtype) for x, y in zip(sums, only(found, is_sum))]
            return sums, only(found, [not on for on in is_sum])

        sums, parts = lax.scan(step, only(zeros, is_sum), [jnp.arange(self.cut.count), *rows])
        left, right = iter(sums), iter(parts)
        return [
            next(left) if axis is None else self.cut.whole(next(right), axis) for _, axis in outs
        ]

    def at_once(
        self, combine: _Combination, eqn: JaxprEqn, values: Sequence[Any], factors: Sequence[Any]
    ) -> list[Any]:
        """Compute sums and the scalar that is combined of them; with its gradient in the same
        sweep where that is asked for.

        Derivation: y = Σᵢ cᵢ sᵢ with sᵢ = Σ over pieces, so that each piece adds ⟨Σᵢ cᵢ ∂sᵢ/∂x, ẋ⟩
        to ẏ; that is linear in ẋ, its transpose x̄ = ȳ Σᵢ cᵢ ∂sᵢ/∂x. The factors c do not depend
        on the sums, so that they are known before.
        """
        sums: Arrays = [(v, None) for v in combine.sums]
        zeros = lambda: [sweeps.zeros(v.aval) for v, _ in sums]
        given = len(values)

        @jax.custom_jvp
        def run(*inputs: Any) -> Any:
            found = self._over(partial(self.piece, sums), sums, zeros(), inputs[:given])
            return [*found, combine(found, inputs[given:])]

        def tangents(inputs: Any, dots: Any) -> tuple[Any, Any]:
            values, factors = inputs[:given], inputs[given:]
            on = [not isinstance(dot, SymbolicZero) for dot in dots]
            moved = on[:given]
            start = zeros()
            y, weigh = vjp(lambda *sums: combine(sums, factors), *start)
            weights = weigh(jnp.ones_like(y))

            def sweep(values: Sequence[Any]) -> list[Any]:
                def of_chosen(*chosen: Any) -> Any:
                    given = iter(chosen)
                    return self.piece(
                        sums, [next(given) if o else x for o, x in zip(moved, values)]
                    )

                found, pull = vjp(of_chosen, *only(values, moved))
                return [*found, *pull(list(weights))]

            wanted: Arrays = [*sums, *only(self.reads, moved)]
            starts = [*start, *(_wide_zeros(v.aval) for v, _ in wanted[len(sums) :])]
            found = self._over(sweep, wanted, starts, values)
            found, bars = found[: len(sums)], found[len(sums) :]
            dot = sum(jnp.sum(x * bar.astype(x.dtype)) for bar, x in zip(bars, only(dots, moved)))
            y, more = _tangent(partial(combine, found), factors, dots[given:])
            of_sums = partial(self.run, sums)
            _, sum_dots = _tangent(of_sums, values, dots[:given])
            return [*found, y], [*sum_dots, jnp.asarray(dot + more, y.dtype)]

        def placed(inputs: Any, dots: Any) -> tuple[Any, Any]:
            with _jax.emitting(eqn):
                return tangents(inputs, dots)

        run.defjvp(placed, symbolic_zeros=True)
        return run(*values, *factors)


def _tangent(fun: Callable[..., Any], values: Sequence[Any], dots: Sequence[Any]) -> Any:
    """Return value and tangent of a function of a list, some of which do not move."""
    on = [not isinstance(dot, SymbolicZero) for dot in dots]

    def of_chosen(*chosen: Any) -> Any:
        given = iter(chosen)
        return fun([next(given) if o else x for o, x in zip(on, values)])

    if not any(on):
        y = fun(values)
        return y, jax.tree.map(jnp.zeros_like, y)
    return jax.jvp(of_chosen, tuple(only(values, on)), tuple(only(dots, on)))


def _wide_zeros(aval: Any) -> Any:
    """Make zeros to which many small terms are added: not in less than single precision."""
    zeros = sweeps.zeros(aval)
    return zeros.astype(jnp.promote_types(aval.dtype, jnp.float32)) if has_tangent(aval) else zeros


class _Cut:
    """An axis of n · u entries is cut into pieces: each takes whole groups of u entries.

    They are groups in a row; on several devices every ``count``-th, so that each device, which may
    hold a part of the axis, has a part of every piece.
    """

    def __init__(self, most: int, count: int) -> None:
        """Cut an axis whose entries stand in groups into ``count`` pieces.

        Args:
            most: n.
            count: a divisor of n.
        """
        self.count = count
        self._sizes = (most // count, count) if jax.device_count() > 1 else (1, count)

    def rows(self, x: Any, axis: int) -> Any:
        """Return all pieces of an array along an axis, one behind the other in a first axis."""
        parts, size = self._parts(x, axis), x.shape[axis] // self.count
        shape = (self.count, *x.shape[:axis], size, *x.shape[axis + 1 :])
        return jnp.moveaxis(parts, axis + 1, 0).reshape(shape)

    def piece(self, x: Any, axis: int, number: Any) -> Any:
        """Return one piece of an array along an axis."""
        found = lax.dynamic_slice_in_dim(self._parts(x, axis), number, 1, axis + 1)
        size = x.shape[axis] // self.count
        return found.reshape(*x.shape[:axis], size, *x.shape[axis + 1 :])

    def whole(self, rows: Any, axis: int) -> Any:
        """Put pieces together again."""
        (first, count), size = self._sizes, rows.shape[axis + 1]
        before, after = rows.shape[1 : axis + 1], rows.shape[axis + 2 :]
        parts = rows.reshape(count, *before, first, size // first, *after)
        return jnp.moveaxis(parts, 0, axis + 1).reshape(*before, size * count, *after)

    def _parts(self, x: Any, axis: int) -> Any:
        first, count = self._sizes
        sizes = first, count, x.shape[axis] // (first * count)
        return x.reshape(*x.shape[:axis], *sizes, *x.shape[axis + 1 :])


def _run(eqns: Sequence[JaxprEqn], env: dict[Any, Any], kept: frozenset[Var] = frozenset()) -> None:
    for eqn in eqns:
        outs = sweeps.evaluate(eqn, [sweeps.value_of(a, env) for a in eqn.invars])
        env.update(zip(eqn.outvars, _named(eqn, outs, kept)))


def _named(eqn: JaxprEqn, outs: Sequence[Any], kept: frozenset[Var]) -> Iterator[Any]:
    """Mark the outputs that are kept."""
    return (checkpoint_name(x, KEPT) if v in kept else x for v, x in zip(eqn.outvars, outs))


@lru_cache(maxsize=64)
def _last_uses(jaxpr: Jaxpr) -> dict[Any, int]:
    last = {a: i for i, eqn in enumerate(jaxpr.eqns) for a in eqn.invars if isinstance(a, Var)}
    last.update({v: len(jaxpr.eqns) for v in jaxpr.outvars if isinstance(v, Var)})
    return last


def _inside(eqn: JaxprEqn, operands: Sequence[Any], inside: Any) -> Sequence[Any]:
    """Run one equation whose graphs follow schedules of their own."""
    if isinstance(inside, LoopSchedule):
        return looped(eqn, operands, inside)
    bodies = [
        partial(_run_opened, part.jaxpr, schedule)
        for part, schedule in zip(inner_graphs(eqn), inside)
    ]
    if eqn.primitive is lax.cond_p:
        return lax.switch(operands[0], bodies, *operands[1:])
    return on_mesh(eqn, bodies[0], eqn.params["out_specs"])(*operands)


def _run_opened(jaxpr: Jaxpr, schedule: Schedule, *args: Any) -> tuple[Any, ...]:
    graph, consts = opened(jaxpr)
    return tuple(scheduled(graph, schedule)(consts, *args))


def looped(eqn: JaxprEqn, operands: Sequence[Any], loop: LoopSchedule) -> list[Any]:
    """Run a ``scan`` so that its gradient keeps fewer bytes: in chunks, or with leaner steps."""
    scan = opened_scan(eqn)
    jaxpr, consts = opened(scan.body.jaxpr)
    step = scheduled(jaxpr, loop.step)
    fixed, start, xs = scan.divided(operands)

    def body(state: Any, slices: Any) -> Any:
        outs = step(consts, *fixed, *state, *slices)
        return outs[: scan.carries], outs[scan.carries :]

    def cut(xs: Any, done: int, size: int, of: int) -> Any:
        first = of - done - size if scan.is_reversed else done
        return [x if size == of else lax.slice_in_dim(x, first, first + size) for x in xs]

    def run(state: Any, xs: Any, length: int, chunks: Sequence[int], groups: int) -> Any:
        if not chunks:
            return lax.scan(body, state, xs, length, reverse=scan.is_reversed)
        found: list[Any] = []
        done = 0
        for count, size in partition(length, chunks[0], groups):
            chunk = jax.checkpoint(lambda state, xs, size=size: run(state, xs, size, chunks[1:], 1))
            part = cut(xs, done, count * size, length)
            divided = [x.reshape(count, size, *x.shape[1:]) for x in part]
            state, ys = lax.scan(chunk, state, divided, count, reverse=scan.is_reversed)
            found.append([y.reshape(count * size, *y.shape[2:]) for y in ys])
            done += count * size
        return state, joined(found)

    def joined(found: list[Any]) -> list[Any]:
        columns: Any = zip(*(found[::-1] if scan.is_reversed else found))
        return [ys[0] if len(found) == 1 else jnp.concatenate(ys) for ys in columns]

    first = scan.length - loop.last
    state, ys = run(start, cut(xs, 0, first, scan.length), first, loop.chunks, loop.groups)
    if loop.last:
        rest = cut(xs, first, loop.last, scan.length)
        state, more = run(state, rest, loop.last, (), 1)
        ys = joined([ys, more])
    return [*state, *ys]
