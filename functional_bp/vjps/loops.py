"""``while`` runs as a scan: as it is with a static trip count, else bounded and checkpointed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import eval_jaxpr
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from functional_bp import _jax
from functional_bp.engine import sweeps
from functional_bp.engine.higher_order import HigherOrder, Mask, Options, Sweep, only, spread_over
from functional_bp.engine.improvements import improvement
from functional_bp.engine.plan import (
    Plan,
    fixed_point,
    make_plan,
    out_activity,
    plan_once,
    union,
    variables,
)
from functional_bp.engine.rule import case, higher_order, integer, real
from functional_bp.errors import StepBoundError, UnboundedLoopError, compose

LONGEST_STATIC = 100_000  # steps that are tried when a trip count is looked for


def _three_times(x: Any) -> Any:
    return lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, jnp.sin(s[1]) * 2), (0, x))[1]


@higher_order(
    lax.while_p,
    cases=[
        case(_three_times, real(2),
             reference=lambda x: lax.fori_loop(0, 3, lambda _, x: jnp.sin(x) * 2, x),
             note="jax: reverse-mode differentiation does not work for lax.while_loop"),
        case(lambda n, x: lax.fori_loop(0, n, lambda i, s: s + i, 0) * x,
             integer(values=3), real()),
    ],
)
class While(HigherOrder):
    """The loop runs as a scan of n steps, its trip count or its bound, and is swept in reverse.

    Derivation: s₀ = s, sₜ₊₁ = f(sₜ) while c(sₜ). With n at least the number of steps taken, the
    loop equals n steps of sₜ₊₁ = f(sₜ) if c(sₜ) else sₜ, whose branches have rules. The trip
    count itself is locally constant.

    n is found by running the part of the state that c depends on, if that part starts from
    literals and depends on nothing else (a counter). Otherwise the person gives the bound:
    ``bp.grad(f, max_steps=n)``. Passing the bound is an error, not a wrong gradient.

    Residuals: for a static trip count as for ``scan``. For a bounded loop the state at every
    ⌈√n⌉-th step; the steps between are run again, ⌈√n⌉ at a time: memory ~ 2√n states for one
    more forward sweep. Derivation of √n: segments of length k keep n/k states, and k more while
    one is swept; n/k + k is least at k = √n.
    """

    def __init__(self, eqn: JaxprEqn, active: Mask, options: Options) -> None:
        super().__init__(eqn, active, options)
        params = eqn.params
        self.cond, self.cond_consts = _jax.open_jaxpr(params["cond_jaxpr"])
        self.body, self.body_consts = _jax.open_jaxpr(params["body_jaxpr"])
        nc, nb = params["cond_nconsts"], params["body_nconsts"]
        self.groups = slice(0, nc), slice(nc, nc + nb), slice(nc + nb, None)
        consts = active[self.groups[1]]
        onward = lambda state: union(state, out_activity(self.body, consts + state, options))
        self.out_active = fixed_point(onward, active[self.groups[2]])

    def seed(self, seeded: Mask, needed: Mask) -> None:
        """Rewrite the loop as a scan, and plan that scan."""
        self.steps = _trip_count(self)
        bounded = self.steps is None
        if bounded:
            self.steps = self.options.max_steps
        if self.steps is None:
            raise UnboundedLoopError(
                compose(
                    "a loop whose number of steps is not known before it runs needs a bound to be "
                    "differentiated in reverse",
                    where=_jax.place_of(self.eqn),
                    got="lax.while_loop, or lax.fori_loop with traced limits",
                    do="give the largest number of steps it may take: {max_steps}",
                    max_steps="bp.grad(f, max_steps=...), bp.vjp(f, x, max_steps=...)",
                )
            )
        run = _bounded if bounded else _static
        traced = jax.make_jaxpr(lambda *operands: run(self, operands))(
            *[a.aval for a in self.eqn.invars]
        )
        self.jaxpr, self.consts = _jax.open_jaxpr(traced)
        self.plan = plan_once(self.jaxpr, self.active, seeded, needed, self.options)
        self.wanted = self.plan.reached

    def forward(self, *operands: Any) -> tuple[Sequence[Any], Any]:
        """Run the loop as a scan."""
        return sweeps.forward(self.plan, self.consts, operands)

    def reverse(self, residuals: Any, cotangents: Sequence[Any]) -> Sequence[Any]:
        """Run the scan's reverse sweep."""
        return sweeps.reverse(self.plan, residuals, cotangents)

    def tangents(self, sweep: Sweep, operands: Any, dots: Any) -> tuple[Any, Any]:
        """Run the loop itself, with the state's tangent carried along: no bound is needed."""
        consts, state = operands[self.groups[1]], list(operands[self.groups[2]])
        const_dots, on = list(dots[self.groups[1]]), self.out_active
        fill = lambda dot, x: sweeps.zeros(jax.typeof(x)) if dot is None else dot

        def body(pair: Any) -> Any:
            state, state_dots = pair
            full = [*const_dots, *spread_over(state_dots, on)]
            args = [*consts, *state]
            outs, out_dots = sweep(self.body, self.body_consts, args, full, self.options)
            found = [fill(d, x) for d, x, o in zip(out_dots, outs, on) if o]
            rows = _goes_on(self, operands, state)
            return _where(rows, outs, state), _where(rows, found, state_dots)

        start = [fill(d, x) for d, x, o in zip(dots[self.groups[2]], state, on) if o]
        outs, found = lax.while_loop(
            lambda pair: _any(_goes_on(self, operands, pair[0])), body, (state, start)
        )
        return outs, spread_over(found, on)


def _step(loop: While, operands: Sequence[Any], state: Sequence[Any]) -> list[Any]:
    consts = operands[loop.groups[1]]
    return eval_jaxpr(loop.body, loop.body_consts, *consts, *state)


def _goes_on(loop: While, operands: Sequence[Any], state: Sequence[Any]) -> Any:
    """Say whether c(s) holds; under ``vmap`` one answer per row, if the rows differ in it."""
    consts = operands[loop.groups[0]]
    return eval_jaxpr(loop.cond, loop.cond_consts, *consts, *state)[0]


def _any(on: Any) -> Any:
    return lax.reduce_or(on, tuple(range(on.ndim)))


def _where(on: Any, then: Sequence[Any], otherwise: Sequence[Any]) -> list[Any]:
    """Take the rows for which ``on`` holds from one state, the others from the other."""
    if not on.shape:
        return list(then)  # a loop that is not mapped asks before it takes the step
    rows = tuple(range(on.ndim))
    return [
        lax.select(lax.broadcast_in_dim(on, x.shape, rows), x, y) for x, y in zip(then, otherwise)
    ]


def _static(loop: While, operands: Sequence[Any]) -> list[Any]:
    """Run the loop as exactly n steps."""
    state, _ = lax.scan(
        lambda s, _: (_step(loop, operands, s), None),
        list(operands[loop.groups[2]]), None, length=loop.steps,
    )
    return state


def _bounded(loop: While, operands: Sequence[Any]) -> list[Any]:
    """Run the loop as at most n steps in checkpointed segments of ⌈√n⌉; raise if c still holds
    then.
    """
    bound = loop.steps
    assert bound is not None
    length = max(1, math.isqrt(max(bound - 1, 0)) + 1)
    segments = -(-bound // length)
    start = jnp.zeros((), np.int32)

    def one(counted: Any, _: Any) -> Any:
        t, state = counted
        on = _goes_on(loop, operands, state)
        state = lax.cond(
            lax.bitwise_and(lax.lt(t, np.int32(bound)), _any(on)),
            lambda s: _where(on, _step(loop, operands, s), s),
            lambda s: list(s),
            state,
        )
        return (lax.add(t, np.int32(1)), state), None

    @jax.checkpoint
    def segment(counted: Any) -> Any:
        return lax.scan(one, counted, None, length=length)[0]

    def outer(counted: Any, _: Any) -> Any:
        on = _any(_goes_on(loop, operands, counted[1]))
        return lax.cond(on, segment, lambda c: c, counted), None

    (_, state), _ = lax.scan(outer, (start, list(operands[loop.groups[2]])), None, length=segments)
    return _refuse_unfinished(_goes_on(loop, operands, state), state, bound)


def _refuse_unfinished(unfinished: Any, state: Sequence[Any], bound: int) -> list[Any]:
    """Return the state; of a loop cut off at its bound raise an error, and return NaN until it
    comes.
    """

    def check(flag: Any) -> None:
        if np.any(flag):
            raise StepBoundError(
                compose(
                    f"a loop took more than max_steps={bound} steps, so its gradient is unknown",
                    got=f"a loop condition that still holds after {bound} steps",
                    do="pass a larger max_steps",
                )
            )

    jax.debug.callback(check, unfinished)
    poisoned = []
    for value in state:
        if jnp.issubdtype(value.dtype, np.inexact):
            rows = tuple(range(unfinished.ndim))
            flags = lax.broadcast_in_dim(unfinished, value.shape, rows)
            value = lax.select(flags, lax.full_like(value, np.nan), value)
        poisoned.append(value)
    return poisoned


def _trip_count(loop: While) -> int | None:
    """Return the number of steps if the condition depends on literals alone, None otherwise."""
    operands: list[Any] = loop.eqn.invars
    starts = operands[loop.groups[2]]
    steers = _steering(loop)
    holds: Any = loop.cond.outvars[0].aval
    if steers is None or holds.shape:
        return None
    fixed = [*operands[loop.groups[0]], *(starts[i] for i in steers)]
    if variables(fixed):
        return None
    state: list[Any] = [a.val if i in steers else None for i, a in enumerate(starts)]
    known = [a.val if isinstance(a, Literal) else None for a in operands]
    asking, stepping = (
        _excerpt(graph, needed)
        for graph, needed in [
            (loop.cond, (True,)),
            (loop.body, tuple(i in steers for i in range(len(starts)))),
        ]
    )
    with jax.ensure_compile_time_eval():
        for count in range(LONGEST_STATIC):
            asked = [*known[loop.groups[0]], *state]
            if not bool(sweeps.forward(asking, loop.cond_consts, asked)[0][0]):
                return count
            inputs = [*known[loop.groups[1]], *state]
            outs, _ = sweeps.forward(stepping, loop.body_consts, inputs)
            state = [out if i in steers else None for i, out in enumerate(outs)]
    return None


def _steering(loop: While) -> list[int] | None:
    """Find which parts of the state the condition depends on, step after step.

    None if it depends on a value from outside the loop as well.
    """
    nb = loop.groups[1].stop - loop.groups[1].start
    asked = _depends(loop.cond, (True,))[loop.eqn.params["cond_nconsts"] :]
    wanted = fixed_point(lambda on: union(on, _depends(loop.body, on)[nb:]), asked)
    read = only(loop.eqn.invars[loop.groups[1]], _depends(loop.body, wanted)[:nb])
    if variables(read):
        return None
    return [i for i, on in enumerate(wanted) if on]


def _excerpt(jaxpr: Jaxpr, needed: Mask) -> Plan:
    """Return what a graph has to run for the needed outputs, without effects."""
    off = (False,) * len(jaxpr.invars), (False,) * len(needed)
    return make_plan(jaxpr, *off, needed, effects=False)


def _depends(jaxpr: Jaxpr, wanted: Mask) -> Mask:
    """Find which inputs the wanted outputs depend on."""
    plan = _excerpt(jaxpr, wanted)
    reads = plan.reads.union(variables(only(jaxpr.outvars, wanted)))
    return tuple(v in reads for v in jaxpr.invars)


improvement(
    "while_loop in reverse",
    _three_times,
    at=(0.5,),
    true=8 * np.cos(0.5) * np.cos(2 * np.sin(0.5)) * np.cos(2 * np.sin(2 * np.sin(0.5))),
    jax="raises ValueError",
    source="chain rule through three steps of x ↦ 2 sin x",
)
