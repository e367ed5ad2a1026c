"""The function of a graph that follows a schedule: what is made again stands under
``jax.checkpoint``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Jaxpr, JaxprEqn, Var

from functional_bp import _jax
from functional_bp.engine import sweeps
from functional_bp.graph.nested import inner_graphs, opened_scan
from functional_bp.memory.in_pieces import follow_in_pieces
from functional_bp.memory.marked import again, last_uses, run
from functional_bp.memory.nested_schedules import on_mesh, opened, partition
from functional_bp.memory.schedule import LoopSchedule, Schedule, Segment


def scheduled(jaxpr: Jaxpr, schedule: Schedule | None) -> Callable[..., list[Any]]:
    """Return the function of a graph, of its constants and arguments, that follows a schedule."""

    def follow(consts: Sequence[Any], *args: Any) -> list[Any]:
        env: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args)))
        whole = (Segment(0, len(jaxpr.eqns)),)
        _follow(jaxpr, schedule.segments if schedule else whole, env)
        return [sweeps.value_of(v, env) for v in jaxpr.outvars]

    return follow


def _follow(jaxpr: Jaxpr, segments: Sequence[Segment], env: dict[Any, Any]) -> None:
    for segment in segments:
        if segment.inside is not None:
            eqn = jaxpr.eqns[segment.start]
            operands = [sweeps.value_of(a, env) for a in eqn.invars]
            with _jax.emitting(eqn), eqn.ctx.manager:
                env.update(zip(eqn.outvars, _inside(eqn, operands, segment.inside)))
        elif segment.pieces is not None:
            follow_in_pieces(jaxpr, segment, segment.pieces, env)
        elif segment.runs_again():
            _follow_again(jaxpr, segment, env)
        else:
            run(jaxpr.eqns[segment.start : segment.stop], env)


def _follow_again(jaxpr: Jaxpr, segment: Segment, env: dict[Any, Any]) -> None:
    """Run a segment whose reverse sweep runs it, or its parts, again."""
    eqns = jaxpr.eqns[segment.start : segment.stop]
    kept = frozenset(jaxpr.eqns[i].outvars[k] for i, k in segment.kept or ())
    made = {v for eqn in eqns for v in eqn.outvars}
    read = dict.fromkeys(
        a for eqn in eqns for a in eqn.invars if isinstance(a, Var) and a not in made
    )
    last = last_uses(jaxpr)
    outs = [v for eqn in eqns for v in eqn.outvars if last.get(v, -1) >= segment.stop]

    def segment_of(*values: Any) -> list[Any]:
        local: dict[Any, Any] = dict(zip(read, values))
        if segment.parts:
            _follow(jaxpr, segment.parts, local)
        else:
            run(eqns, local, kept)
        return [local[v] for v in outs]

    env.update(zip(outs, again(segment_of, kept)(*(env[v] for v in read))))


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

    def advance(state: Any, xs: Any, length: int, chunks: Sequence[int], groups: int) -> Any:
        if not chunks:
            return lax.scan(body, state, xs, length, reverse=scan.is_reversed)
        found: list[Any] = []
        done = 0
        for count, size in partition(length, chunks[0], groups):
            inner = jax.checkpoint(partial(advance, length=size, chunks=chunks[1:], groups=1))
            part = cut(xs, done, count * size, length)
            divided = [x.reshape(count, size, *x.shape[1:]) for x in part]
            state, ys = lax.scan(
                jax.checkpoint(inner), state, divided, count, reverse=scan.is_reversed
            )
            found.append([y.reshape(count * size, *y.shape[2:]) for y in ys])
            done += count * size
        return state, joined(found)

    def joined(found: list[Any]) -> list[Any]:
        columns: Any = zip(*(found[::-1] if scan.is_reversed else found))
        return [ys[0] if len(found) == 1 else jnp.concatenate(ys) for ys in columns]

    first = scan.length - loop.last
    state, ys = advance(start, cut(xs, 0, first, scan.length), first, loop.chunks, loop.groups)
    if loop.last:
        rest = cut(xs, first, loop.last, scan.length)
        state, more = advance(state, rest, loop.last, (), 1)
        ys = joined([ys, more])
    return [*state, *ys]
