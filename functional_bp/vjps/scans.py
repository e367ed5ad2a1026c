"""``scan`` is differentiated by backpropagation through time, and keeps as few bytes as it can.

A step, traced with all that its rules keep, is a graph. What a rule names may be known before
the loop, may be a view of something else (a slice, a transpose, a conversion: no arithmetic), or
be one of several views of the same value. So ``divide`` divides the graph:

1. what is computed twice in the same way is one value;
2. what depends on the loop's constants alone is computed once, before the loop;
3. each view is either kept or made again from what it is a view of, whichever needs fewer bytes.

Derivation of 3: views have one source each, so they form a forest. With price p(v) for keeping
v, the least price of having all that is named below v, v itself included if it is, is

    need(v) = p(v) if v is named, else min(p(v), Σ need(w) over the views w of v)

found from the leaves up; the choice follows from the roots down. On a tie the view is kept: it
is not made again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from functional_bp import _jax
from functional_bp.engine import sweeps
from functional_bp.engine.higher_order import HigherOrder, Mask, Options, Sweep, only, spread_over
from functional_bp.engine.plan import (
    CHEAP,
    Plan,
    fixed_point,
    make_plan,
    out_activity,
    union,
    variables,
)
from functional_bp.engine.rule import case, higher_order, integer, real

# No arithmetic, one operand: made again where that saves bytes.
VIEWS = CHEAP | {lax.transpose_p, lax.slice_p, lax.rev_p, lax.split_p, lax.copy_p}


class Divided(NamedTuple):
    """The equations of a step are divided by where they run, and by what is kept."""

    before: list[JaxprEqn]  # once, before the loop
    within: list[JaxprEqn]  # in every step
    again: list[JaxprEqn]  # in every step of the reverse sweep
    kept: list[Var]
    fixed: set[Var]  # what is known before the loop


def divide(
    eqns: Sequence[JaxprEqn],
    constants: Sequence[Var],
    outputs: Sequence[Any],
    named: Sequence[Any],
    price: Callable[[Var, bool], float],
) -> Divided:
    """Divide the graph of a step.

    Args:
        eqns: its equations.
        constants: those of its inputs that are the same in every step.
        outputs: what a step returns.
        named: what the rules name.
        price: what it costs to keep a variable, given whether it is known before the loop.
    """
    fixed = set(constants)
    for eqn in eqns:
        if not eqn.effects and fixed.issuperset(variables(eqn.invars)):
            fixed.update(eqn.outvars)
    kept, again = _cheapest(eqns, variables(named), lambda v: price(v, v in fixed))
    read = {*variables(outputs), *kept}
    before: list[JaxprEqn] = []
    within: list[JaxprEqn] = []
    for eqn in reversed(eqns):
        if eqn.effects or not read.isdisjoint(eqn.outvars):
            early = not eqn.effects and fixed.issuperset(eqn.outvars)
            (before if early else within).append(eqn)
            read.update(variables(eqn.invars))
    return Divided(before[::-1], within[::-1], again, kept, fixed)


def without_repeats(jaxpr: Jaxpr) -> tuple[list[JaxprEqn], list[Any]]:
    """Return the equations and outputs of a graph, with what is computed twice computed once."""
    first: dict[Any, Sequence[Var]] = {}
    same: dict[Var, Var] = {}
    eqns: list[JaxprEqn] = []

    def known(atoms: Sequence[Any]) -> list[Any]:
        return [a if isinstance(a, Literal) else same.get(a, a) for a in atoms]

    for eqn in jaxpr.eqns:
        eqn = eqn.replace(invars=known(eqn.invars))
        # 0.0 equals -0.0, but is not written so.
        operands = tuple(repr(a) if isinstance(a, Literal) else a for a in eqn.invars)
        try:
            computed = eqn.primitive, operands, frozenset(eqn.params.items())
            found = eqn.outvars if eqn.effects else first.setdefault(computed, eqn.outvars)
        except TypeError:  # a parameter without a hash
            found = eqn.outvars
        if found is eqn.outvars:
            eqns.append(eqn)
        else:
            same.update(zip(eqn.outvars, found))
    return eqns, known(jaxpr.outvars)


def _cheapest(
    eqns: Sequence[JaxprEqn], named: Sequence[Var], price: Callable[[Var], float]
) -> tuple[list[Var], list[JaxprEqn]]:
    """Choose which variables to keep, and which views to make again, to have all that is named."""
    wanted = dict.fromkeys(named)
    below: dict[Var, float] = {}  # for each source, what its views need
    for eqn in reversed(eqns):
        for v in eqn.outvars:
            if _is_view(eqn) and (v in wanted or v in below):
                need = price(v) if v in wanted else min(price(v), below[v])
                for source in variables(eqn.invars):
                    below[source] = below.get(source, 0) + need
    kept: list[Var] = []
    again: dict[JaxprEqn, None] = {}
    have: set[Var] = set()

    def choose(v: Var) -> None:
        if v in wanted or (v in below and price(v) < below[v]):
            kept.append(v)
            have.add(v)

    made = {v for eqn in eqns for v in eqn.outvars}
    for v in dict.fromkeys([*wanted, *below]):
        if v not in made:
            choose(v)
    for eqn in eqns:
        remade = _is_view(eqn) and have.issuperset(variables(eqn.invars))
        for v in eqn.outvars:
            if not remade:
                choose(v)
            elif v in wanted or v in below:
                again[eqn] = None
                have.add(v)
    return kept, list(again)


def _is_view(eqn: JaxprEqn) -> bool:
    if eqn.primitive not in VIEWS or eqn.effects or len(variables(eqn.invars)) > 1:
        return False
    # A number that was converted may choose a branch; converted in the reverse sweep again, it
    # made a scan of conditionals a fifth slower on a CPU, and saved three bytes a step.
    output: Any = eqn.outvars[0].aval
    return eqn.primitive is not lax.convert_element_type_p or output.shape != ()


def _rnn(w: Any, h: Any, xs: Any) -> Any:
    def cell(h: Any, x: Any) -> Any:
        h = jnp.tanh(h @ w + x)
        return h, h * x

    return lax.scan(cell, h, xs)


def _with_counter(w: Any, xs: Any) -> Any:
    def step(carry: Any, x: Any) -> Any:
        t, s = carry
        return (t + 1, s * jnp.cos(w) + x * t), (t, s)

    return lax.scan(step, (0, jnp.zeros(())), xs, reverse=True)


@higher_order(
    lax.scan_p,
    cases=[
        case(_rnn, real(3, 3), real(2, 3), real(4, 2, 3)),
        case(_with_counter, real(), real(5)),
        case(lambda x, i: lax.scan(lambda c, k: (c * jnp.sin(x), c * k), x, i)[1],
             real(), integer(3, low=0, high=5)),
        case(lambda x: lax.scan(lambda c, _: (jnp.sin(c), None), x, None, length=3)[0], real(2)),
        case(lambda x, xs: lax.scan(lambda c, y: (c * y, c), x, xs), real(), real(0)),
        case(lambda x, xs: lax.scan(lambda c, y: (jnp.sin(y), c), x, xs)[1], real(), real(3),
             note="a state that a step returns and no operation reads"),
        case(lambda x, y: lax.scan(lambda c, _: (c[::-1], None), (x, y), None, length=3)[0][0],
             real(2), real(2), note="states that change places"),
    ],
)
class Scan(HigherOrder):
    """Adjoint recursion: (w̄ₜ, h̄ₜ, x̄ₜ) = f*(h̄ₜ₊₁, ȳₜ) backwards in time, w̄ = Σₜ w̄ₜ.

    Derivation: with (hₜ₊₁, yₜ) = f(w, hₜ, xₜ), perturb everything and pair with cotangents:

        Σₜ ⟨ȳₜ, ẏₜ⟩ + ⟨h̄_T, ḣ_T⟩,   (ḣₜ₊₁, ẏₜ) = Jₜ (ẇ, ḣₜ, ẋₜ)

        from t = T−1 down:  (w̄ₜ, h̄ₜ, x̄ₜ) = Jₜᵀ (h̄ₜ₊₁, ȳₜ)

    where h̄ₜ so found is the cotangent of the state before step t, and w, which every step
    reads, collects the sum.

    Residuals: per step, what f's own rules name, or what it is a view of, stacked over time
    (``divide``). Not stacked: constants, what depends on constants alone (computed once,
    before the loop), the slices of xs, and the slices of an output ys that the caller gets
    anyway. A state kept both before and after a step is kept once.

    References:
        Werbos 1990, Backpropagation through time: what it does and how to do it,
        doi 10.1109/5.58337.
    """

    def __init__(self, eqn: JaxprEqn, active: Mask, options: Options) -> None:
        options = options._replace(in_place=True)
        super().__init__(eqn, active, options)
        self.jaxpr, self.consts = _jax.open_jaxpr(eqn.params["jaxpr"])
        nk, nc = _jax.scan_counts(eqn.params)
        self.groups = slice(0, nk), slice(nk, nk + nc), slice(nk + nc, None)
        self.carries = nc

        def onward(active: Mask) -> Mask:  # a carry is active if it starts so or becomes so
            out = out_activity(self.jaxpr, active, options)
            return active[:nk] + union(active[self.groups[1]], out[:nc]) + active[nk + nc :]

        self.body_active = fixed_point(onward, active)
        self.out_active = out_activity(self.jaxpr, self.body_active, options)

    def seed(self, seeded: Mask, needed: Mask) -> None:
        """Plan the body: a carry is useful, or needed, if it is so after the step or in it."""
        nc, states = self.carries, self.groups[1]

        def plan_of(seeded: Mask, needed: Mask) -> Plan:
            return make_plan(self.jaxpr, self.body_active, seeded, needed, self.options)

        def back(asked: tuple[Mask, Mask]) -> tuple[Mask, Mask]:
            plan, (seeded, needed) = plan_of(*asked), asked
            used = _used(plan, needed)
            read = tuple(v in used for v in self.jaxpr.invars[states])
            return (
                union(plan.reached[states], seeded[:nc]) + seeded[nc:],
                union(read, needed[:nc]) + needed[nc:],
            )

        self.seeded, self.needed = fixed_point(back, (seeded, needed))
        self.plan = plan_of(self.seeded, self.needed)
        self.wanted = tuple(a and r for a, r in zip(self.active, self.plan.reached))

    def forward(self, *operands: Any) -> tuple[Sequence[Any], Any]:
        """Run the scan, with what the rules keep stacked beside the outputs."""
        k, c, xs = (list(operands[group]) for group in self.groups)
        c = only(c, self.needed[: self.carries])
        step = _Step(self, k, c, xs)
        env = dict(zip(step.constants, [*step.consts, *k]))
        _run(step.divided.before, env)

        def body(state: Any, slices: Any) -> Any:
            local = {**env, **dict(zip(step.varying, [*state, *slices]))}
            _run(step.divided.within, local)
            value = lambda atoms: [sweeps.value_of(a, local) for a in atoms]
            return value(step.state), (value(step.ys), value(step.stacked))

        params = self.eqn.params
        last, (ys, stacked) = scan_steps(body, c, xs, params, params["reverse"])
        outs = spread_over([*last, *ys], self.needed)
        return outs, step.kept(env, {"xs": xs, "ys": ys, "after": last, "stacked": stacked})

    def _reached_from(self, given: Mask) -> tuple[Mask, Mask]:
        """Find which states, and which inputs of a step, have a cotangent if these outputs have
        one.

        A function that is recorded is planned for all outputs. A state whose cotangent stays zero
        has none: times an infinite slope, zero would be no number.
        """
        seeded = tuple(s and g for s, g in zip(self.seeded[: self.carries], given))
        ys = given[self.carries :]
        if (*seeded, *ys) == self.seeded:
            return seeded, self.plan.reached
        nothing = (False,) * len(given)

        def reached(seeded: Mask) -> Mask:
            asked = (*seeded, *ys), nothing, self.options
            return make_plan(self.jaxpr, self.body_active, *asked).reached

        def back(seeded: Mask) -> Mask:
            useful = union(reached(seeded)[self.groups[1]], seeded)
            return tuple(u and s for u, s in zip(useful, self.seeded))

        seeded = fixed_point(back, seeded)
        return seeded, reached(seeded)

    def reverse(self, residuals: Any, cotangents: Sequence[Any]) -> Sequence[Any]:
        """Run the adjoint recursion, as a scan in the other direction."""
        nc, jaxpr = self.carries, self.jaxpr
        seeded, reached = self._reached_from(tuple(bar is not None for bar in cotangents))
        k_vars, c_vars, x_vars = (jaxpr.invars[group] for group in self.groups)
        k_on, c_on, x_on = (reached[group] for group in self.groups)
        fixed, stacked, last = residuals.by_kind()

        def filled(bars: Sequence[Any], variables: Sequence[Any], mask: Mask) -> list[Any]:
            return sweeps.or_zeros(only(bars, mask), only(variables, mask))

        def body(state: Any, slices: Any) -> Any:
            k_bar, c_bar, after = state
            kept, y_bar = slices
            tree, after = residuals.at_step(fixed, kept, after)
            c_bars = spread_over(c_bar, seeded)
            found = sweeps.reverse(self.plan, tree, [*c_bars, *y_bar])
            k_found, c_found, x_found = (found[group] for group in self.groups)
            k_bar = [s if b is None else lax.add(s, b) for s, b in zip(k_bar, only(k_found, k_on))]
            c_new = filled(c_found, c_vars, seeded)
            return (k_bar, c_new, after), filled(x_found, x_vars, x_on)

        c_start = filled(cotangents[:nc], c_vars, seeded)
        k_start = [sweeps.zeros(v.aval) for v in only(k_vars, k_on)]
        params = self.eqn.params
        start, slices = (k_start, c_start, last), (stacked, list(cotangents[nc:]))
        (k_bar, c_bar, _), x_bar = scan_steps(body, start, slices, params, not params["reverse"])
        found = [*spread_over(k_bar, k_on), *spread_over(c_bar, seeded)]
        found += spread_over(x_bar, x_on)
        return [bar if on else None for bar, on in zip(found, self.wanted)]

    def tangents(self, sweep: Sweep, operands: Any, dots: Any) -> tuple[Any, Any]:
        """Run a scan that carries the state's tangent along with the state."""
        nc, params = self.carries, self.eqn.params
        k, c, xs = (list(operands[group]) for group in self.groups)
        k_dot, c_dot, x_dot = (list(dots[group]) for group in self.groups)
        on = self.body_active[self.groups[1]]
        fill = lambda dot, x: sweeps.zeros(jax.typeof(x)) if dot is None else dot

        def body(state: Any, slices: Any) -> Any:
            (c, c_dot), (x, x_dot) = state, slices
            args, arg_dots = [*k, *c, *x], [*k_dot, *spread_over(c_dot, on), *x_dot]
            outs, out_dots = sweep(self.jaxpr, self.consts, args, arg_dots, self.options)
            c_new = [fill(d, x) for d, x, o in zip(out_dots, outs[:nc], on) if o]
            return (outs[:nc], c_new), (outs[nc:], out_dots[nc:])

        start = (c, [fill(d, x) for d, x, o in zip(c_dot, c, on) if o])
        (c, c_new), (ys, y_dot) = scan_steps(body, start, (xs, x_dot), params, params["reverse"])
        return [*c, *ys], [*spread_over(c_new, on), *y_dot]


def _used(plan: Plan, needed: Mask) -> set[Any]:
    """Find what a step reads, keeps, or returns."""
    return {*plan.reads, *plan.keep, *variables(only(plan.jaxpr.outvars, needed))}


def scan_steps(body: Any, start: Any, xs: Any, params: Any, is_reverse: bool) -> Any:
    """Run ``lax.scan`` for an equation's length, taken from what is scanned if symbolic."""
    length, unroll = params["length"], params["unroll"]
    if isinstance(length, int):
        return lax.scan(body, start, xs, length, is_reverse, unroll)
    counted = (xs, lax.full((length,), False))  # something is scanned, always
    return lax.scan(lambda c, x: body(c, x[0]), start, counted, None, is_reverse, unroll)


MANY = 1000  # in place of a length that is symbolic, where bytes are weighed


def _known_bytes(aval: Any) -> float:
    """Count the bytes of a value; symbolic lengths count as many."""
    shape = [n if isinstance(n, int) else MANY for n in aval.shape]
    return math.prod(shape) * aval.dtype.itemsize


class _Step:
    """One step of the forward sweep is a graph here, which tells where what is kept of it is found
    again.
    """

    tree: Any  # of what the rules name

    def __init__(self, scan: Scan, k: list[Any], c: list[Any], xs: list[Any]) -> None:
        used = scan.needed[: scan.carries]

        def run(k: Any, state: Any, slices: Any) -> Any:
            operands = [*k, *spread_over(state, used), *slices]
            outs, residuals = sweeps.forward(scan.plan, scan.consts, operands)
            named, self.tree = jax.tree.flatten(residuals)
            return only(outs, scan.needed), named

        length = scan.eqn.params["length"]
        slices = [_jax.find_helper("core.mapped_aval")(length, 0, jax.typeof(x)) for x in xs]
        jaxpr, self.consts = _jax.open_jaxpr(jax.make_jaxpr(run)(k, c, slices))
        eqns, outs = without_repeats(jaxpr)
        fixed, states, count = len(k), len(k) + len(c), sum(scan.needed)
        self.constants = [*jaxpr.constvars, *jaxpr.invars[:fixed]]
        self.varying = jaxpr.invars[fixed:]
        self.state, self.ys, self.named = outs[: len(c)], outs[len(c) : count], outs[count:]
        named = {a for a in self.named if isinstance(a, Var)}
        before = {
            after: state
            for after, state in zip(self.state, jaxpr.invars[fixed:states])
            if after is not state and state in named and isinstance(after, Var)
        }
        places = {
            v: ("after", i) for i, v in enumerate(self.state) if isinstance(v, Var) and v in before
        }
        places |= {v: ("ys", i) for i, v in enumerate(self.ys) if isinstance(v, Var)}
        places |= {v: ("xs", i) for i, v in enumerate(jaxpr.invars[states:])}
        free = {*places, *self.constants}
        steps = length if isinstance(length, int) else MANY

        def price(v: Var, is_fixed: bool) -> float:
            if v in free:
                return 0
            return _known_bytes(v.aval) * (1 if is_fixed else steps)

        self.divided = divide(eqns, self.constants, outs[:count], self.named, price)
        places |= {v: ("still", 0) for v in self.divided.fixed}
        self.stacked: list[Any] = []
        self.places: list[tuple[str, int]] = []
        for v in self.divided.kept:
            if v not in places:
                places[v] = ("stacked", len(self.stacked))
                self.stacked.append(v)
            self.places.append(places[v])
        position = {v: i for i, v in enumerate(self.divided.kept)}
        self.kinds = tuple(
            position[before[v]] if kind == "after" else "still" if kind == "still" else "step"
            for v, (kind, _) in zip(self.divided.kept, self.places)
        )

    def kept(self, env: dict[Any, Any], found: dict[str, Any]) -> _Kept:
        """Return the residuals outside the body."""
        values = [
            env[v] if kind == "still" else found[kind][i]
            for v, (kind, i) in zip(self.divided.kept, self.places)
        ]
        return _Kept(values, self)


@jax.tree_util.register_dataclass
@dataclass(eq=False)
class _Kept:
    """This is what is kept of a scan.

    A kind is "still" for what has no time axis, and for the state after a step the position of the
    same state before it: the value of the next step, or the last state. The rest has a time axis.
    """

    values: list[Any]
    step: _Step = field(metadata={"static": True})

    def by_kind(self) -> tuple[list[Any], list[Any], list[Any]]:
        """Return what has no time axis, what has one, and the last states."""
        chosen = lambda test: [v for v, k in zip(self.values, self.step.kinds) if test(k)]
        still, step = chosen(lambda k: k == "still"), chosen(lambda k: k == "step")
        return still, step, chosen(lambda k: isinstance(k, int))

    def at_step(self, still: Any, stacked: Any, after: Any) -> tuple[Any, list[Any]]:
        """Return the body's residuals at one step, and the states after the step before it."""
        step = self.step
        sources = {"still": iter(still), "step": iter(stacked)}
        following = iter(after)
        values = [
            next(following) if isinstance(kind, int) else next(sources[kind]) for kind in step.kinds
        ]
        before = [values[kind] for kind in step.kinds if isinstance(kind, int)]
        env = dict(zip(step.divided.kept, values))
        _run(step.divided.again, env)
        named = [sweeps.value_of(a, env) for a in step.named]
        return jax.tree.unflatten(step.tree, named), before


def _run(eqns: Sequence[JaxprEqn], env: dict[Any, Any]) -> None:
    """Add the outputs of the equations to the values of the variables."""
    for eqn in eqns:
        operands = [sweeps.value_of(a, env) for a in eqn.invars]
        env.update(zip(eqn.outvars, sweeps.evaluate(eqn, operands)))
