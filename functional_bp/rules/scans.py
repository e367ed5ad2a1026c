"""``scan``: backpropagation through time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from functional_bp import _jax, backprop
from functional_bp.cases import case, integer, real
from functional_bp.plan import Plan, make_plan, out_activity, union
from functional_bp.rule import structure
from functional_bp.structure import Mask, Options, Structure, Sweep


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


@structure(
    lax.scan_p,
    cases=[
        case(_rnn, real(3, 3), real(2, 3), real(4, 2, 3)),
        case(_with_counter, real(), real(5)),
        case(
            lambda x, i: lax.scan(lambda c, k: (c * jnp.sin(x), c * k), x, i)[1],
            real(),
            integer(3, low=0, high=5),
        ),
        case(lambda x: lax.scan(lambda c, _: (jnp.sin(c), None), x, None, length=3)[0], real(2)),
        case(lambda x, xs: lax.scan(lambda c, y: (c * y, c), x, xs), real(), real(0)),
    ],
)
class Scan(Structure):
    """Adjoint recursion: (w̄ₜ, h̄ₜ, x̄ₜ) = f*(h̄ₜ₊₁, ȳₜ) backwards in time, w̄ = Σₜ w̄ₜ.

    Derivation: with (hₜ₊₁, yₜ) = f(w, hₜ, xₜ), perturb everything and pair with cotangents:

        Σₜ ⟨ȳₜ, ẏₜ⟩ + ⟨h̄_T, ḣ_T⟩,   (ḣₜ₊₁, ẏₜ) = Jₜ (ẇ, ḣₜ, ẋₜ)

        from t = T−1 down:  (w̄ₜ, h̄ₜ, x̄ₜ) = Jₜᵀ (h̄ₜ₊₁, ȳₜ)

    where h̄ₜ so found is the cotangent of the state before step t, and w, which every step
    reads, collects the sum.

    Residuals: per step, what f's own rules name, stacked over time. Not stacked: constants,
    what depends on constants alone (computed once, before the loop), the slices of xs, and the
    slices of an output ys that the caller gets anyway. A state kept both before and after a step
    is kept once.
    """

    def __init__(self, eqn: JaxprEqn, active: Mask, options: Options) -> None:
        super().__init__(eqn, active, options)
        self.jaxpr, self.consts = _jax.open_jaxpr(eqn.params["jaxpr"])
        nk, nc = _jax.scan_counts(eqn.params)
        self.groups = slice(0, nk), slice(nk, nk + nc), slice(nk + nc, None)
        self.carries = nc
        while True:  # a carry is active if it starts so or becomes so
            out = out_activity(self.jaxpr, active, options)
            carried = union(active[self.groups[1]], out[:nc])
            if carried == active[self.groups[1]]:
                break
            active = active[:nk] + carried + active[nk + nc :]
        self.body_active, self.out_active = active, out

    def seed(self, seeded: Mask, needed: Mask) -> None:
        """Plan the body: a carry is useful, or needed, if it is so after the step or in it."""
        nc = self.carries
        self.given = _invariant(self.jaxpr, self.groups[0])
        while True:
            self.plan = make_plan(
                self.jaxpr, self.body_active, seeded, needed, self.options, self.given
            )
            useful = union(self.plan.reached[self.groups[1]], seeded[:nc])
            read = union(self._reads(self.plan)[self.groups[1]], needed[:nc])
            if useful == seeded[:nc] and read == needed[:nc]:
                break
            seeded, needed = useful + seeded[nc:], read + needed[nc:]
        self.seeded, self.needed = seeded, needed
        self.wanted = tuple(a and r for a, r in zip(self.active, self.plan.reached))
        returned = {v for v, n in zip(self.jaxpr.outvars, needed) if n and isinstance(v, Var)}
        used = set(self.plan.keep) | _read_by(self.plan) | returned
        values = tuple(v for v in self.given if v in used)
        hoisted = make_plan(
            self.jaxpr, (False,) * len(self.active), (False,) * len(seeded),
            (False,) * len(seeded), self.options, (), values,
        )  # fmt: skip
        self.hoisted = hoisted

    def _reads(self, plan: Plan) -> Mask:
        reads = _read_by(plan) | set(plan.keep)
        return tuple(v in reads for v in self.jaxpr.invars)

    def forward(self, *operands: Any) -> tuple[Sequence[Any], Any]:
        """The scan, with what the rules keep stacked beside the outputs."""
        k, c, xs = (list(operands[group]) for group in self.groups)
        nc, needed = self.carries, self.needed
        _, (values, _) = backprop.forward(self.hoisted, self.consts, operands)
        given = dict(zip(self.hoisted.keep, values))
        self_places: list[Any] = []

        def body(state: Any, slices: Any) -> Any:
            state = _spread_over(state, needed[:nc])
            outs, residuals = backprop.forward(self.plan, self.consts, [*k, *state, *slices], given)
            leaves, tree = jax.tree.flatten(residuals)
            known = {id(v): ("const", v) for v in (*k, *given.values(), *self.consts)}
            known |= {id(v): ("xs", i) for i, v in enumerate(slices)}
            known |= {id(v): ("ys", i) for i, v in enumerate(outs[nc:]) if v is not None}
            stacked: list[Any] = []
            places = []
            for leaf in leaves:
                if not isinstance(leaf, Tracer) and id(leaf) not in known:
                    known[id(leaf)] = ("const", leaf)
                if id(leaf) not in known:
                    known[id(leaf)] = ("stack", len(stacked))
                    stacked.append(leaf)
                places.append(known[id(leaf)])
            self_places[:] = [tree, places]
            keep_state = [v for v, n in zip(outs[:nc], needed) if n]
            return keep_state, ([v if n else None for v, n in zip(outs[nc:], needed[nc:])], stacked)

        start = [v for v, n in zip(c, needed) if n]
        params = self.eqn.params
        last, (ys, stacked) = lax.scan(
            body, start, xs, params["length"], params["reverse"], params["unroll"]
        )
        tree, places = self_places
        outs = [*_spread_over(last, needed[:nc]), *ys]
        kept = []
        for kind, where in places:
            kept.append({"const": lambda w: w, "xs": xs.__getitem__, "ys": ys.__getitem__,
                         "stack": stacked.__getitem__}[kind](where))  # fmt: skip
        per_step = [kind != "const" for kind, _ in places]
        return outs, _Kept(kept, per_step, tree)

    def reverse(self, residuals: Any, cotangents: Sequence[Any]) -> Sequence[Any]:
        """The adjoint recursion, as a scan in the other direction."""
        nc, jaxpr, reached = self.carries, self.jaxpr, self.plan.reached
        k_vars, c_vars, x_vars = (jaxpr.invars[group] for group in self.groups)
        k_on, c_on, x_on = (reached[group] for group in self.groups)
        fill = lambda bar, var: backprop.zeros(var.aval) if bar is None else bar  # noqa: E731
        fixed = [v for v, per in zip(residuals.values, residuals.per_step) if not per]
        stacked = [v for v, per in zip(residuals.values, residuals.per_step) if per]

        def body(state: Any, slices: Any) -> Any:
            k_bar, c_bar = state
            kept, y_bar = slices
            moving, still = iter(kept), iter(fixed)
            leaves = [next(moving) if per else next(still) for per in residuals.per_step]
            c_bars = _spread_over(c_bar, self.seeded[:nc])
            found = backprop.reverse(
                self.plan, jax.tree.unflatten(residuals.tree, leaves), [*c_bars, *y_bar]
            )
            k_found, c_found, x_found = (found[group] for group in self.groups)
            k_bar = [s if b is None else lax.add(s, b) for s, b in zip(k_bar, _only(k_found, k_on))]
            c_new = [fill(b, v) for b, v, on in zip(c_found, c_vars, self.seeded) if on]
            return (k_bar, c_new), [fill(b, v) for b, v, on in zip(x_found, x_vars, x_on) if on]

        c_start = [
            fill(bar, var) for bar, var, on in zip(cotangents[:nc], c_vars, self.seeded) if on
        ]
        k_start = [backprop.zeros(v.aval) for v in _only(k_vars, k_on)]
        params = self.eqn.params
        (k_bar, c_bar), x_bar = lax.scan(
            body, (k_start, c_start), (stacked, list(cotangents[nc:])), params["length"],
            not params["reverse"], params["unroll"],
        )  # fmt: skip
        found = [*_spread_over(k_bar, k_on), *_spread_over(c_bar, self.seeded[:nc])]
        found += _spread_over(x_bar, x_on)
        return [bar if on else None for bar, on in zip(found, self.wanted)]

    def tangents(self, sweep: Sweep, operands: Any, dots: Any) -> tuple[Any, Any]:
        """A scan that carries the state's tangent along with the state."""
        nc, params = self.carries, self.eqn.params
        k, c, xs = (list(operands[group]) for group in self.groups)
        k_dot, c_dot, x_dot = (list(dots[group]) for group in self.groups)
        on = self.body_active[self.groups[1]]
        fill = lambda dot, x: backprop.zeros(jax.typeof(x)) if dot is None else dot  # noqa: E731

        def body(state: Any, slices: Any) -> Any:
            (c, c_dot), (x, x_dot) = state, slices
            args, arg_dots = [*k, *c, *x], [*k_dot, *_spread_over(c_dot, on), *x_dot]
            outs, out_dots = sweep(self.jaxpr, self.consts, args, arg_dots, self.options)
            c_new = [fill(d, x) for d, x, o in zip(out_dots, outs[:nc], on) if o]
            return (outs[:nc], c_new), (outs[nc:], out_dots[nc:])

        start = (c, [fill(d, x) for d, x, o in zip(c_dot, c, on) if o])
        (c, c_new), (ys, y_dot) = lax.scan(
            body, start, (xs, x_dot), params["length"], params["reverse"], params["unroll"]
        )
        return [*c, *ys], [*_spread_over(c_new, on), *y_dot]


@jax.tree_util.register_pytree_node_class
class _Kept:
    """A scan's residuals: values, which of them have a time axis, and their tree in the body."""

    def __init__(self, values: list[Any], per_step: list[bool], tree: Any) -> None:
        self.values, self.per_step, self.tree = values, per_step, tree

    def tree_flatten(self) -> tuple[Any, Any]:
        return self.values, (tuple(self.per_step), self.tree)

    @classmethod
    def tree_unflatten(cls, aux: Any, values: Any) -> _Kept:
        return cls(list(values), *aux)


def _invariant(jaxpr: Jaxpr, constants: slice) -> tuple[Var, ...]:
    """The variables of a loop's body that depend on its constants alone."""
    known = {*jaxpr.constvars, *jaxpr.invars[constants]}
    found: list[Var] = []
    for eqn in jaxpr.eqns:
        if not eqn.effects and all(isinstance(a, Literal) or a in known for a in eqn.invars):
            known.update(eqn.outvars)
            found += [v for v in eqn.outvars if type(v).__name__ != "DropVar"]
    return tuple(found)


def _read_by(plan: Plan) -> set[Any]:
    return {a for eqn in plan.live for a in eqn.invars if not isinstance(a, Literal)}


def _only(values: Sequence[Any], mask: Sequence[bool]) -> list[Any]:
    return [value for value, on in zip(values, mask) if on]


def _spread_over(values: Sequence[Any], mask: Sequence[bool]) -> list[Any]:
    """The inverse of ``_only``: None where the mask is off."""
    remaining = iter(values)
    return [next(remaining) if on else None for on in mask]
