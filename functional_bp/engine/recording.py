"""A function is run on its values, and the steps of its reverse sweep are recorded.

The second way to a plan, beside staging (``staging.py``): used outside ``jit``, where Python may
look at values, and wherever closures hold what the function made. Plan, rules and reverse sweep
are the same. Since an operation runs before it is known what becomes of it, its residuals are
those for all its outputs; what turns out not to be needed is dropped at the end.

References:
    Griewank and Walther 2008, Evaluating derivatives, doi 10.1137/1.9780898717761: "recording", the
    tape of define-by-run reverse mode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.core import Tracer
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Primitive, Var

from functional_bp import _jax
from functional_bp.engine import sweeps
from functional_bp.engine.define_by_run import DefineByRun, Follower, chosen_call, split
from functional_bp.engine.higher_order import Mask, Options, has_tangent, higher_order_of
from functional_bp.engine.plan import (
    Auxiliary,
    Plan,
    SweepStep,
    has_pullback,
    named,
    names_auxiliary,
    pull_step,
)
from functional_bp.engine.registered import Registered
from functional_bp.engine.rule import rules
from functional_bp.engine.sweeps import Residuals


class Recorded(Follower):
    """This is a value on the record, with the variable that stands for it there."""

    __slots__ = ("variable",)

    def __init__(self, trace: _Recording, primal: Any, variable: Var | None = None) -> None:
        super().__init__(trace, primal)
        self.variable = Var(self.aval) if variable is None else variable


class _Recording(DefineByRun):
    """Both kinds of record share this."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.depth = _jax.scope_depth()

    def atom(self, x: Any) -> Any:
        """Return what stands for an operand in an equation."""
        if self.owns(x):
            return x.variable
        aval = jax.typeof(x)
        is_array = isinstance(x, Tracer | jax.Array) or getattr(aval, "shape", None) != ()
        return Var(aval) if is_array else Literal(x, aval)

    def apply_equation(self, eqn: JaxprEqn, operands: Sequence[Any]) -> Sequence[Any]:
        """Run an operation that is traced already."""
        ins, outs = list(map(self.atom, operands)), [Var(v.aval) for v in eqn.outvars]
        on, values = split(self, operands)
        return self.note(eqn.replace(invars=ins, outvars=outs), values, on)

    def note(
        self, eqn: JaxprEqn, values: Sequence[Any], on: Sequence[bool], outs: Any = None
    ) -> Sequence[Any]:
        """Run an equation, unless its outputs are given, and put it on the record."""
        raise NotImplementedError


class Recorder(_Recording):
    """A recorder runs each operation, and notes what the reverse sweep will ask for."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.steps: list[tuple[SweepStep, Any]] = []  # a higher-order step comes with its residuals
        self.values: dict[Any, Any] = {}  # what a pullback names: variables and auxiliaries
        self.held: set[Any] = set()  # the inputs

    def apply(self, primitive: Primitive, params: dict[str, Any], operands: Sequence[Any]) -> Any:
        """Run one operation and note its step, if it has a derivative."""
        on, values = split(self, operands)
        rule = rules.get(primitive)
        if rule is not None and rule.kind in ("piecewise constant", "no tangent space"):
            return _jax.bind(self.parent_trace, primitive, values, params)
        atoms = list(map(self.atom, operands))
        outs, effects = None, frozenset()
        if rule is None or rule.higher_order is not None or rule.auxiliaries:
            avals, effects = _jax.out_types(primitive, [a.aval for a in atoms], params)
            if _jax.has_reference_effect(effects):
                return self.discharged(primitive, operands, params)
        else:
            made = _jax.bind(self.parent_trace, primitive, values, params)
            outs = list(made) if primitive.multiple_results else [made]
            avals = list(map(jax.typeof, outs))
        eqn = _jax.equation(primitive, params, atoms, avals, effects, self.depth)
        found = self.note(eqn, values, on, outs)
        return found if primitive.multiple_results else found[0]

    def note(
        self, eqn: JaxprEqn, values: Sequence[Any], on: Sequence[bool], outs: Any = None
    ) -> Sequence[Any]:
        """Run an equation, unless its outputs are given, and note its step."""
        values = [
            sweeps.value_of(a, {}) if isinstance(a, Literal) else x
            for a, x in zip(eqn.invars, values)
        ]
        floats = tuple(has_tangent(v.aval) for v in eqn.outvars)
        with _jax.under(self.parent_trace):
            made = higher_order_of(eqn, tuple(on), self.options) if any(floats) else None
            active = floats if made is None else made.out_active
            if not any(active) or (made is None and not has_pullback(eqn, tuple(on))):
                return sweeps.evaluate(eqn, values) if outs is None else outs
            rule = rules.get(eqn.primitive)
            if made is not None:
                made.held = tuple(map(self.is_held, eqn.invars))
                made.seed(active, (True,) * len(active))
                with eqn.ctx.manager:
                    outs, kept = made.forward(*values)
                self.steps.append((SweepStep(eqn, rule, higher_order=made), kept))
            else:
                assert rule is not None
                active_atoms = {a for a, o in zip(eqn.invars, on) if o}
                is_on = lambda a: not isinstance(a, Literal) and a in active_atoms
                step = pull_step(eqn, rule, is_on, active, self.is_held)
                env: dict[Any, Any] = {}
                if names_auxiliary(step):
                    outs = sweeps.forward_with_auxiliaries(step, values, env)
                elif outs is None:
                    outs = sweeps.evaluate(eqn, values)
                pairs = zip((*eqn.invars, *eqn.outvars), (*values, *outs))
                env.update((a, x) for a, x in pairs if not isinstance(a, Literal))
                self.values.update((v, env[_key(v)]) for v in named(step))
                self.steps.append((step, None))
        return self._tracers(eqn, outs, active)

    def is_held(self, atom: Any) -> bool:
        """Say whether a variable is an input, there anyway when the reverse sweep runs."""
        return not isinstance(atom, Literal) and atom in self.held

    def apply_own_rule(
        self, primitive: Primitive, params: dict[str, Any], operands: Sequence[Any]
    ) -> Sequence[Any]:
        """Run a function that brings a derivative of its own by its author's forward rule.

        It is given the values at hand, and its closures hold what they held.
        """
        on, values = split(self, operands)
        with _jax.under(self.parent_trace):
            call = chosen_call(primitive, params, values, on)
            outs, pull = _jax.vjp(call, *(x for x, o in zip(values, on) if o))
        avals = list(map(jax.typeof, outs))
        eqn = _jax.equation(primitive, {}, list(map(self.atom, operands)), avals, prefix=self.depth)
        floats = tuple(map(has_tangent, avals))
        higher_order = Registered(eqn, tuple(on), self.options)
        higher_order.seed(floats, (True,) * len(floats))
        self.steps.append((SweepStep(eqn, rules.get(primitive), higher_order=higher_order), pull))
        return self._tracers(eqn, outs, floats)

    def _tracers(self, eqn: JaxprEqn, outs: Sequence[Any], active: Sequence[bool]) -> list[Any]:
        """Return the outputs; those that have a tangent are further values on the record."""
        pairs = zip(outs, eqn.outvars, active)
        return [Recorded(self, value, var) if on else value for value, var, on in pairs]

    def finish(
        self, inputs: Sequence[Any], outs: Sequence[Any], seeded: Mask
    ) -> tuple[Plan, list[Any], Residuals]:
        """Return the plan of the reverse sweep, the outputs' values, and the residuals."""
        self.invalidate()
        on, values = split(self, outs)
        variables = [x.variable if o else Var(jax.typeof(x)) for x, o in zip(outs, on)]
        useful = {v for v, o, s in zip(variables, on, seeded) if o and s}
        steps: list[tuple[SweepStep, Any]] = []
        for step, kept in reversed(self.steps):
            if useful.isdisjoint(step.eqn.outvars):
                continue
            steps.append((step, kept))
            atoms = step.eqn.invars
            if step.higher_order is not None:
                useful.update(a for a, w in zip(atoms, step.higher_order.wanted) if w)
            else:
                useful.update(atoms[i] for pull in step.pulls for i in pull.operands)
        steps.reverse()
        keep = dict.fromkeys(v for step, _ in steps for v in named(step))
        invars = [x.variable if self.owns(x) else Var(jax.typeof(x)) for x in inputs]
        plan = Plan(
            jaxpr=_jax.graph_of([step.eqn for step, _ in steps], invars, variables),
            steps=tuple(step for step, _ in steps),
            keep=tuple(keep),
            again=(),
            live=(),
            last_uses={},
            out_active=tuple(on),
            reached=tuple(v in useful for v in invars),
            augmented={},
        )
        residuals = [kept for step, kept in steps if step.higher_order is not None]
        return plan, values, ([self.values[v] for v in keep], residuals)


class GraphRecorder(_Recording):
    """This recorder notes each operation as an equation of a graph, differentiable or not."""

    def __init__(self) -> None:
        super().__init__(Options())
        self.eqns: list[JaxprEqn] = []
        self.constants: dict[int, tuple[Var, Any]] = {}  # by identity

    def atom(self, x: Any) -> Any:
        """Return what stands for an operand; an array from outside is a constant of the graph."""
        made = super().atom(x)
        if self.owns(x) or isinstance(made, Literal):
            return made
        return self.constants.setdefault(id(x), (made, x))[0]

    def apply(self, primitive: Primitive, params: dict[str, Any], operands: Sequence[Any]) -> Any:
        """Run one operation and note its equation."""
        on, values = split(self, operands)
        atoms = list(map(self.atom, operands))
        avals, effects = _jax.out_types(primitive, [a.aval for a in atoms], params)
        if _jax.has_reference_effect(effects):
            return self.discharged(primitive, operands, params)
        found = self.note(
            _jax.equation(primitive, params, atoms, avals, effects, self.depth), values, on
        )
        return found if primitive.multiple_results else found[0]

    def apply_own_rule(
        self, primitive: Primitive, params: dict[str, Any], operands: Sequence[Any]
    ) -> Sequence[Any]:
        """Run a function that brings a derivative of its own, as the equation of a graph."""
        return self.apply_staged(primitive, params, operands)[0]

    def note(
        self, eqn: JaxprEqn, values: Sequence[Any], on: Sequence[bool], outs: Any = None
    ) -> Sequence[Any]:
        """Run an equation and put it on the record."""
        self.eqns.append(eqn)
        with _jax.under(self.parent_trace):
            outs = sweeps.evaluate(eqn, values)
        return [Recorded(self, value, var) for value, var in zip(outs, eqn.outvars)]


def record_graph(
    flat: Callable[..., Sequence[Any]], leaves: Sequence[Any]
) -> tuple[Jaxpr, list[Any]]:
    """Return the graph of what ``flat`` did at these values, and its constants' values."""
    recorder = GraphRecorder()
    inputs = [Recorded(recorder, jax.numpy.asarray(x)) for x in leaves]
    with _jax.under(recorder):
        outs = list(map(recorder.atom, flat(*inputs)))
    recorder.invalidate()
    constants = dict(recorder.constants.values())
    variables = [x.variable for x in inputs]
    return _jax.graph_of(recorder.eqns, variables, outs, constants), list(constants.values())


def record(
    flat: Callable[..., Sequence[Any]], leaves: Sequence[Any], wanted: Mask, options: Options
) -> tuple[Recorder, list[Any], list[Any]]:
    """Run ``flat`` with the wanted leaves on the record; return the recorder, its inputs, its
    outputs.
    """
    recorder = Recorder(options)
    inputs = [Recorded(recorder, x) if on else x for x, on in zip(leaves, wanted)]
    recorder.held.update(x.variable for x, on in zip(inputs, wanted) if on)
    with _jax.under(recorder):
        outs = list(flat(*inputs))
    return recorder, inputs, outs


def _key(value: Any) -> Any:
    """Say where the forward sweep puts a value."""
    return (value.eqn, value.name) if isinstance(value, Auxiliary) else value
