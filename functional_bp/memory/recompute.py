"""The same function, whose gradient needs no more memory than a budget: parts of it run again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Jaxpr, JaxprEqn, Var

from functional_bp import _jax
from functional_bp.engine import sweeps
from functional_bp.memory.schedule import Loop, Schedule, Segment, body_costs
from functional_bp.vjps.remat import without_calls

KEPT = "functional_bp.kept"  # the name of what a lean segment keeps
_POLICY = jax.checkpoint_policies.save_only_these_names(KEPT)


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
                continue
            if segment.kept is None:
                _run(eqns, env, frozenset())
                continue
            made = {v for eqn in eqns for v in eqn.outvars}
            read = dict.fromkeys(
                a for eqn in eqns for a in eqn.invars if isinstance(a, Var) and a not in made
            )
            later = _used_from(jaxpr, segment.stop)
            outs = [v for v in dict.fromkeys(v for eqn in eqns for v in eqn.outvars) if v in later]
            found = _lean(tuple(eqns), tuple(read), tuple(outs), segment)(*(env[v] for v in read))
            env.update(zip(outs, found))
        return [sweeps.value_of(v, env) for v in jaxpr.outvars]

    return run


def looped(eqn: JaxprEqn, operands: Sequence[Any], loop: Loop) -> list[Any]:
    """Run a ``scan`` so that its gradient keeps fewer bytes: in chunks, or with leaner steps."""
    constants, carries = _jax.scan_counts(eqn.params)
    jaxpr = body_costs(eqn).jaxpr
    _, consts = without_calls(_jax.open_jaxpr(eqn.params["jaxpr"])[0])
    kept = Schedule((Segment(0, len(jaxpr.eqns), loop.kept),), 0, 0)
    step = scheduled(jaxpr, kept)
    fixed, is_reverse = operands[:constants], eqn.params["reverse"]
    start, xs = list(operands[constants : constants + carries]), list(operands[constants + carries :])

    def body(state: Any, slices: Any) -> Any:
        outs = step(consts, *fixed, *state, *slices)
        return outs[:carries], outs[carries:]

    def scan(state: Any, slices: Any, length: int) -> Any:
        return lax.scan(body, state, slices, length, reverse=is_reverse)

    length = eqn.params["length"]
    if not loop.chunks:
        state, ys = scan(start, xs, length)
        return [*state, *ys]
    size = length // loop.chunks
    whole = size * loop.chunks
    divide = lambda x: x.reshape(loop.chunks, size, *x.shape[1:])
    join = lambda y: y.reshape(whole, *y.shape[2:])
    first = slice(length - whole, None) if is_reverse else slice(0, whole)
    rest = slice(0, length - whole) if is_reverse else slice(whole, None)
    chunk = jax.checkpoint(lambda state, slices: scan(state, slices, size))
    divided = [divide(x[first]) for x in xs]
    state, ys = lax.scan(chunk, start, divided, loop.chunks, reverse=is_reverse)
    ys = [join(y) for y in ys]
    if length > whole:
        last = jax.checkpoint(lambda state, slices: scan(state, slices, length - whole))
        state, more = last(state, [x[rest] for x in xs])
        pairs = zip(more, ys) if is_reverse else zip(ys, more)
        ys = [jnp.concatenate(pair) for pair in pairs]
    return [*state, *ys]


def _lean(
    eqns: Sequence[Any], read: Sequence[Var], outs: Sequence[Var], segment: Segment
) -> Callable[..., list[Any]]:
    def run(*values: Any) -> list[Any]:
        env: dict[Any, Any] = dict(zip(read, values))
        _run(eqns, env, segment.kept or frozenset())
        return [env[v] for v in outs]

    return jax.checkpoint(run, policy=_POLICY if segment.kept else None)


def _run(eqns: Sequence[Any], env: dict[Any, Any], kept: frozenset[Var]) -> None:
    for eqn in eqns:
        outs = sweeps.evaluate(eqn, [sweeps.value_of(a, env) for a in eqn.invars])
        named = (checkpoint_name(x, KEPT) if v in kept else x for v, x in zip(eqn.outvars, outs))
        env.update(zip(eqn.outvars, named))


@lru_cache(maxsize=64)
def _uses(jaxpr: Jaxpr) -> dict[Any, int]:
    last = {a: i for i, eqn in enumerate(jaxpr.eqns) for a in eqn.invars if isinstance(a, Var)}
    last.update({v: len(jaxpr.eqns) for v in jaxpr.outvars if isinstance(v, Var)})
    return last


def _used_from(jaxpr: Jaxpr, stop: int) -> set[Any]:
    return {v for v, last in _uses(jaxpr).items() if last >= stop}
