"""A stretch of a graph runs piece by piece, and so does its reverse sweep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero, zero_from_primal
from jax.extend.core import Jaxpr, JaxprEqn, Var

from functional_bp import _jax
from functional_bp.engine import sweeps
from functional_bp.engine.higher_order import has_tangent, only
from functional_bp.engine.plan import variables
from functional_bp.engine.transforms import vjp
from functional_bp.layouts.pieces import DividedStretch, divided, evaluate_piece
from functional_bp.memory.marked import again, last_uses, marked, run
from functional_bp.memory.schedule import Pieces, Segment

Arrays = Sequence[tuple[Var, int | None]]  # with the axis along which each is divided


def follow_in_pieces(jaxpr: Jaxpr, segment: Segment, pieces: Pieces, env: dict[Any, Any]) -> None:
    """Run a segment piece by piece along a dimension."""
    division = divided(jaxpr.eqns, segment.start, segment.stop, pieces.place)
    assert division is not None
    run([jaxpr.eqns[i] for i in division.before], env)
    kept = frozenset(jaxpr.eqns[i].outvars[k] for i, k in segment.kept or ())
    stretch = _InPieces(jaxpr, division, pieces.count, kept)
    values = [env[v] for v, _ in stretch.reads]
    outs = stretch.outs(segment.stop)
    after = [jaxpr.eqns[i] for i in division.after]
    if pieces.total is None:
        env.update(zip((v for v, _ in outs), stretch.run(outs, values)))
        run(after, env)
        return
    sums = [jaxpr.eqns[i].outvars[k] for i, k in pieces.total.sums]
    eqn = jaxpr.eqns[pieces.total.output[0]]
    total = eqn.outvars[pieces.total.output[1]]
    path = _between(after, sums, total)
    combine = _Combination(sums, path, total)
    factors = _before(after, combine.reads)
    read = {*combine.reads, *(a for e in factors for a in variables(e.invars))}
    first = [(v, axis) for v, axis in outs if v in read and v not in sums]
    env.update(zip((v for v, _ in first), stretch.run(first, values)))
    run(factors, env)
    others = [(v, axis) for v, axis in outs if v not in sums and v not in env]
    found = stretch.at_once(combine, others, eqn, values, [env[v] for v in combine.reads])
    env.update(zip((*sums, *(v for v, _ in others), total), found))
    known = {*factors} | {e for e in after if total in e.outvars}
    run([e for e in after if e not in known], env)


def _between(eqns: Sequence[JaxprEqn], sources: Sequence[Var], end: Var) -> list[JaxprEqn]:
    """Return the equations through which a value depends on sources."""
    known, found = set(sources), list[JaxprEqn]()
    for eqn in eqns:
        if not known.isdisjoint(variables(eqn.invars)):
            known.update(eqn.outvars)
            found.append(eqn)
    return _before(found, [] if end in sources else [end])


def _before(eqns: Sequence[JaxprEqn], ends: Sequence[Var]) -> list[JaxprEqn]:
    """Return the equations that compute values."""
    needed, found = set(ends), list[JaxprEqn]()
    for eqn in reversed(eqns):
        if not needed.isdisjoint(eqn.outvars):
            needed.update(variables(eqn.invars))
            found.append(eqn)
    return found[::-1]


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
        run(self._path, env)
        return env[self._total]


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
        last = last_uses(self.jaxpr)
        needed = {a for i in self.division.after for a in variables(self.jaxpr.eqns[i].invars)}
        return [
            (v, axis)
            for i, eqn in self.eqns
            for v, axis in zip(eqn.outvars, self.division.written[i])
            if v in needed or last.get(v, -1) >= stop
        ]

    def piece(self, outs: Arrays, share: Fraction, values: Sequence[Any]) -> list[Any]:
        """Compute a piece of the outputs, a share of the whole, of one of what is divided."""
        read = dict(zip(self.reads, values))
        env: dict[Any, Any] = {}
        for i, eqn in self.eqns:
            ins, axes = self.division.read[i], self.division.written[i]
            operands = [
                read[a, axis] if isinstance(a, Var) and a not in self.made
                else sweeps.value_of(a, env)
                for a, axis in zip(eqn.invars, ins)
            ]  # fmt: skip
            found = evaluate_piece(eqn, operands, ins, axes, share)
            env.update(zip(eqn.outvars, marked(eqn, found, self.kept)))
        return [env[v] for v, _ in outs]

    def run(self, outs: Arrays, values: Sequence[Any]) -> list[Any]:
        """Compute the outputs; each piece runs again in its reverse sweep."""
        if not outs:
            return []

        def piece(share: Fraction, values: Sequence[Any]) -> list[Any]:
            return again(partial(self.piece, outs, share), self.kept)(values)

        return self._over(piece, outs, [sweeps.zeros(v.aval) for v, _ in outs], values, True)

    def _over(
        self,
        piece: Callable[[Fraction, Sequence[Any]], list[Any]],
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
        cut, axes = self.cut, [axis for _, axis in self.reads]
        is_sum = [axis is None for _, axis in outs]
        ahead = [
            axis is not None and (is_differentiated or axis == 0 and not cut.rest) for axis in axes
        ]

        def add(sums: Any, found: Any) -> list[Any]:
            return [x + y.astype(x.dtype) for x, y in zip(sums, only(found, is_sum))]

        def step(sums: Any, slices: Any) -> Any:
            number, rest = slices[0], iter(slices[1:])
            found = piece(cut.share, [
                next(rest) if on else x if axis is None else cut.piece(x, axis, number)
                for on, x, axis in zip(ahead, values, axes)
            ])  # fmt: skip
            return add(sums, found), only(found, [not on for on in is_sum])

        sums: Any = only(zeros, is_sum)
        heads: Any = [None] * len(outs)
        if cut.rest:  # before the others, which add to its sums: never beside them
            heads = piece(cut.rest, [
                x if axis is None else cut.head(x, axis) for x, axis in zip(values, axes)
            ])  # fmt: skip
            sums = add(sums, heads)
        rows = [cut.rows(x, axis or 0) for x, axis, on in zip(values, axes, ahead) if on]
        sums, parts = lax.scan(step, sums, [jnp.arange(cut.full), *rows])
        left, right = iter(sums), iter(parts)
        return [
            next(left) if axis is None else cut.whole(head, next(right), axis)
            for (_, axis), head in zip(outs, heads)
        ]

    def at_once(
        self,
        combine: _Combination,
        others: Arrays,
        eqn: JaxprEqn,
        values: Sequence[Any],
        factors: Sequence[Any],
    ) -> list[Any]:
        """Compute sums, other outputs, and the scalar that is combined of the sums; with its
        gradient in the same sweep where that is asked for.

        Derivation: y = Σᵢ cᵢ sᵢ with sᵢ = Σ over pieces, so that each piece adds ⟨Σᵢ cᵢ ∂sᵢ/∂x, ẋ⟩
        to ẏ; that is linear in ẋ, its transpose x̄ = ȳ Σᵢ cᵢ ∂sᵢ/∂x. The factors c do not depend
        on the sums, so that they are known before.
        """
        sums: Arrays = [(v, None) for v in combine.sums]
        outs: Arrays = [*sums, *others]
        zeros = lambda: [sweeps.zeros(v.aval) for v, _ in outs]
        given, count = len(values), len(sums)

        @jax.custom_jvp
        def both(*inputs: Any) -> Any:
            found = self._over(partial(self.piece, outs), outs, zeros(), inputs[:given])
            return [*found, combine(found[:count], inputs[given:])]

        def tangents(inputs: Any, dots: Any) -> tuple[Any, Any]:
            values, factors = inputs[:given], inputs[given:]
            on = [not isinstance(dot, SymbolicZero) for dot in dots]
            moved = on[:given]
            start = zeros()
            y, weigh = vjp(lambda *sums: combine(sums, factors), *start[:count])
            weights = list(weigh(jnp.ones_like(y)))

            def sweep(share: Fraction, values: Sequence[Any]) -> list[Any]:
                def of_chosen(*chosen: Any) -> Any:
                    given = iter(chosen)
                    mixed = [next(given) if o else x for o, x in zip(moved, values)]
                    found = self.piece(outs, share, mixed)
                    return found[:count], found[count:]

                found, pull, rest = vjp(of_chosen, *only(values, moved), has_aux=True)
                return [*found, *rest, *pull(weights)]

            wanted: Arrays = [*outs, *only(self.reads, moved)]
            starts = [*start, *(_wide_zeros(v.aval) for v, _ in wanted[len(outs) :])]
            found = self._over(sweep, wanted, starts, values)
            found, bars = found[: len(outs)], found[len(outs) :]
            dot = sum(jnp.sum(x * bar.astype(x.dtype)) for bar, x in zip(bars, only(dots, moved)))
            y, more = _tangent(partial(combine, found[:count]), factors, dots[given:])
            _, out_dots = _tangent(partial(self.run, outs), values, dots[:given])
            return [*found, y], [*out_dots, jnp.asarray(dot + more, y.dtype)]

        def placed(inputs: Any, dots: Any) -> tuple[Any, Any]:
            with _jax.emitting(eqn):
                return tangents(inputs, dots)

        both.defjvp(placed, symbolic_zeros=True)
        return both(*values, *factors)


def _tangent(fun: Callable[..., Any], values: Sequence[Any], dots: Sequence[Any]) -> Any:
    """Return value and tangent of a function of a list, some of which do not move."""
    on = [not isinstance(dot, SymbolicZero) for dot in dots]

    def of_chosen(*chosen: Any) -> Any:
        given = iter(chosen)
        return fun([next(given) if o else x for o, x in zip(on, values)])

    if not any(on):
        y = fun(values)
        return y, jax.tree.map(zero_from_primal, y)
    return jax.jvp(of_chosen, tuple(only(values, on)), tuple(only(dots, on)))


def _wide_zeros(aval: Any) -> Any:
    """Make zeros to which many small terms are added: not in less than single precision."""
    zeros = sweeps.zeros(aval)
    return zeros.astype(jnp.promote_types(aval.dtype, jnp.float32)) if has_tangent(aval) else zeros


class _Cut:
    """An axis of n · u entries is cut into pieces: each takes whole groups of u entries.

    They are groups in a row, behind those of a first, smaller piece where n is not divided; on
    several devices every ``count``-th, so that each device, which may hold a part of the axis, has
    a part of every piece.

    Attributes:
        full: how many pieces of the same size there are.
        share: of the axis, that each of them is.
        rest: that the first, smaller one is; 0 where there is none.
    """

    def __init__(self, most: int, count: int) -> None:
        """Cut an axis into at most ``count`` pieces, exactly as many if that divides n.

        Args:
            most: n.
            count: of pieces.
        """
        size = -(-most // count)
        self.full = most // size
        self.share, self.rest = Fraction(size, most), 1 - Fraction(self.full * size, most)
        self._sizes = (size, self.full) if jax.device_count() > 1 else (1, self.full)

    def head(self, x: Any, axis: int) -> Any:
        """Return the first, smaller piece of an array along an axis."""
        return lax.slice_in_dim(x, 0, self._start(x, axis), axis=axis)

    def rows(self, x: Any, axis: int) -> Any:
        """Return all other pieces of an array along an axis, one behind the other in a first."""
        parts, size = self._parts(x, axis), int(x.shape[axis] * self.share)
        shape = (self.full, *x.shape[:axis], size, *x.shape[axis + 1 :])
        return jnp.moveaxis(parts, axis + 1, 0).reshape(shape)

    def piece(self, x: Any, axis: int, number: Any) -> Any:
        """Return one of the other pieces of an array along an axis."""
        size = int(x.shape[axis] * self.share)
        if self._sizes[0] == 1:
            start = self._start(x, axis) + number * size
            return lax.dynamic_slice_in_dim(x, start, size, axis)
        found = lax.dynamic_slice_in_dim(self._parts(x, axis), number, 1, axis + 1)
        return found.reshape(*x.shape[:axis], size, *x.shape[axis + 1 :])

    def whole(self, head: Any, rows: Any, axis: int) -> Any:
        """Put pieces together again."""
        (first, count), size = self._sizes, rows.shape[axis + 1]
        before, after = rows.shape[1 : axis + 1], rows.shape[axis + 2 :]
        parts = rows.reshape(count, *before, first, size // first, *after)
        found = jnp.moveaxis(parts, 0, axis + 1).reshape(*before, size * count, *after)
        return jnp.concatenate([head, found], axis) if self.rest else found

    def _start(self, x: Any, axis: int) -> int:
        return int(x.shape[axis] * self.rest)

    def _parts(self, x: Any, axis: int) -> Any:
        first, count = self._sizes
        rest = lax.slice_in_dim(x, self._start(x, axis), None, axis=axis) if self.rest else x
        sizes = first, count, rest.shape[axis] // (first * count)
        return rest.reshape(*x.shape[:axis], *sizes, *x.shape[axis + 1 :])
