"""Operations are evaluated on the values at hand while they are differentiated: define by run.

A tracer here carries its value, so that Python may branch on it, print it or convert it to a
number; and what does not depend on a differentiated input never becomes a tracer at all, so that
closures hold plain values. Three traces build on ``DefineByRun``: ``Recorder`` notes the steps of
a reverse sweep, ``GraphRecorder`` the equations of a graph, ``tangents.Pusher`` carries a tangent
along.

A record is the second way to a plan, beside staging (``staging.py``): used outside ``jit``, where
Python may look at values, and wherever closures hold what the function made. Plan, rules and
reverse sweep are the same. Since an operation runs before it is known what becomes of it, its
residuals are those for all its outputs; what turns out not to be needed is dropped at the end.

References:
    Griewank and Walther 2008, Evaluating derivatives, doi 10.1137/1.9780898717761: "recording", the
    tape of define-by-run reverse mode.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax
from jax.core import Tracer
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Primitive, Var, primitives

from functional_bp import _jax
from functional_bp.engine import sweeps
from functional_bp.engine.higher_order import (
    Mask,
    Options,
    has_tangent,
    higher_order_of,
    of_jax,
    only,
)
from functional_bp.engine.plan import (
    Plan,
    SweepStep,
    has_pullback,
    is_among,
    named,
    names_auxiliary,
    pull_step,
)
from functional_bp.engine.registered import Registered
from functional_bp.engine.rule import rules
from functional_bp.engine.sweeps import Residuals
from functional_bp.errors import BackpropError, compose


class Follower(_jax.Tracer):
    """A follower is a value that depends on a differentiated input."""

    __slots__ = ("primal",)

    def __init__(self, trace: Any, primal: Any) -> None:
        super().__init__(trace, jax.typeof(primal))
        self.primal = primal

    def full_lower(self) -> Any:
        """Return the tracer itself."""
        return self

    def to_concrete_value(self) -> Any:
        """Return the value, as far as it is known, for ``if x > 0``.

        ``lax.reduce`` and ``lax.reduce_window`` are not told: they leave out an initial value that
        is neutral, and with it its derivative.
        """
        return None if _jax.asks_if_neutral() else _jax.concrete(self.primal)

    def _contents(self) -> list[tuple[str, Any]]:
        """JAX asks this of a value that depends on a differentiated one (``closure_convert``)."""
        return [("primal", _jax.perturbed())]

    def _known(self, is_number: bool = False) -> Any:
        if not self._trace.is_valid():
            raise _jax.escaped(self)
        if is_number:
            warnings.warn(
                "A number is made of a value that depends on a differentiated argument; no "
                "gradient flows through the number. Write float(jax.lax.stop_gradient(x)) where "
                "that is meant, and jax.numpy in place of math where it is not.",
                stacklevel=3,
            )
        found = self.to_concrete_value()
        if found is None:
            raise jax.errors.ConcretizationTypeError(self, "Its value is not known yet.")
        return found

    # Python may take a number, as from a PyTorch tensor that requires a gradient, with its warning.
    # NumPy may take no array: ``__array__`` stays an error.

    def __float__(self) -> float:
        return float(self._known(is_number=True))

    def __complex__(self) -> complex:
        return complex(self._known(is_number=True))

    def __format__(self, spec: str) -> str:
        found = self.to_concrete_value()
        return super().__format__(spec) if found is None else format(found, spec)

    def item(self, *args: Any) -> Any:
        """Return the entry as a Python number."""
        return self._known().item(*args)

    def tolist(self) -> Any:
        """Return the entries as Python numbers."""
        return self._known(is_number=True).tolist()

    def _short_repr(self) -> str:
        return f"{type(self).__name__}({self.primal!r})"

    def __init_subclass__(cls) -> None:
        cls.__module__ = "jax"  # libraries that dispatch on a value's package take it for JAX's


class ClosureError(BackpropError, jax.errors.UnexpectedTracerError):
    """A function with a derivative of its own closes over what it may not."""


class Reference(_jax.Tracer):
    """A reference is a mutable array that the function made: a name for a succession of values."""

    __slots__ = ("newest",)

    def __init__(self, trace: Any, aval: Any, newest: Any) -> None:
        super().__init__(trace, aval)
        self.newest = newest

    def full_lower(self) -> Any:
        """Return the tracer itself."""
        return self


_freeze, _free = _jax.find_primitive("core.freeze_p"), _jax.find_primitive("core.free_ref_p")


class DefineByRun(_jax.Trace):
    """This trace passes what concerns none of its tracers through to the trace around it."""

    inlines = True  # whether small functions of JAX are run operation by operation

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.parent_trace = _jax.current_trace()
        self.requires_low = False
        self.options = options

    def owns(self, x: Any) -> bool:
        """Say whether ``x`` is a tracer of this trace."""
        return isinstance(x, Follower) and x._trace is self

    def apply(self, primitive: Primitive, params: dict[str, Any], operands: Sequence[Any]) -> Any:
        """Run an operation that has a tracer of this trace among its operands."""
        raise NotImplementedError

    def apply_equation(self, eqn: JaxprEqn, operands: Sequence[Any]) -> Sequence[Any]:
        """Run an operation that is traced already."""
        raise NotImplementedError

    def apply_own_rule(
        self, primitive: Primitive, params: dict[str, Any], operands: Sequence[Any]
    ) -> Sequence[Any]:
        """Run a function that brings a derivative of its own."""
        raise NotImplementedError

    def process_primitive(
        self, primitive: Primitive, operands: Sequence[Any], params: dict[str, Any], /
    ) -> Any:
        """JAX calls this for each operation."""
        if primitive.ref_allocating:
            return self._new_reference(primitive, operands, params)
        if any(isinstance(x, Reference) and x._trace is self for x in operands):
            return self.discharged(primitive, operands, params)
        if not any(map(self.owns, operands)):
            return _jax.bind(self.parent_trace, primitive, operands, params)
        if self.inlines and primitive is primitives.jit_p and _jax.is_inlined(params):
            with _jax.under(self):
                return sweeps.run(*_jax.open_jaxpr(params["jaxpr"]), operands, _rebound)
        return self.apply(primitive, params, operands)

    def _new_reference(self, primitive: Primitive, operands: Any, params: Any) -> Reference:
        (aval,), _ = _jax.out_types(primitive, list(map(jax.typeof, operands)), params)
        inner = aval.inner_aval
        with _jax.under(self.parent_trace):
            newest = operands[0] if operands else lax.full(inner.shape, 0, inner.dtype)
        return Reference(self, aval, newest)

    def discharged(self, primitive: Primitive, operands: Any, params: Any) -> Any:
        """Run an operation that reads, writes or makes references, on their newest values."""
        held = [isinstance(x, Reference) and x._trace is self for x in operands]
        values = [x.newest if on else x for x, on in zip(operands, held)]
        if primitive is _freeze:
            return values[0]
        if primitive is _free:
            return []
        atoms = [Var(jax.typeof(x)) for x in operands]
        avals, effects = _jax.out_types(primitive, [a.aval for a in atoms], params)
        eqn = _jax.equation(primitive, params, atoms, avals, effects)
        with _jax.under(self):
            newest, outs = _jax.discharge(eqn, held, values)
        for reference, on, value in zip(operands, held, newest, strict=True):
            if on and value is not None:
                reference.newest = value
        return list(outs) if primitive.multiple_results else outs[0]

    def _process_own_rule(
        self, primitive: Primitive, operands: Sequence[Any], params: dict[str, Any]
    ) -> Any:
        if not any(map(self.owns, operands)):
            return _jax.bind(self.parent_trace, primitive, operands, params)
        try:
            return self.apply_own_rule(primitive, params, operands)
        except jax.errors.UnexpectedTracerError as error:
            raise ClosureError(
                compose(
                    "a function with a derivative of its own uses a value that is not among its "
                    "arguments, and that depends on a differentiated one or is of another call",
                    got=f"{primitive.name} that closes over such a value",
                    expected="a derivative for all that the function depends on",
                    do="pass the value as an argument",
                )
            ) from error

    def process_custom_jvp_call(
        self, primitive: Any, fun: Any, jvp: Any, operands: Any, /, **params: Any
    ) -> Any:
        """JAX calls this for a function with ``jax.custom_jvp``."""
        if of_jax and _jax.custom_tangent(jvp, of_jax) and any(map(self.owns, operands)):
            return self.apply_staged(primitive, {**params, "subfuns": (fun, jvp)}, operands)[0]
        return self._process_own_rule(primitive, operands, {**params, "subfuns": (fun, jvp)})

    def process_custom_vjp_call(
        self, primitive: Any, fun: Any, fwd: Any, bwd: Any, operands: Any, /, **params: Any
    ) -> Any:
        """JAX calls this for a function with ``jax.custom_vjp``."""
        return self._process_own_rule(primitive, operands, {**params, "subfuns": (fun, fwd, bwd)})

    def process_call(self, _: Any, fun: Any, operands: Any, params: Any, /) -> Any:
        """JAX 0.10 calls this for a function that is to be run in place."""
        del params
        with _jax.under(self):
            return fun.call_wrapped(*operands)

    def process_shard_map(self, primitive: Any, fun: Any, operands: Any, /, **params: Any) -> Any:
        """JAX calls this for ``shard_map``, whose body is traced before it is differentiated."""
        params = {**params, "subfuns": (fun,)}
        if not any(map(self.owns, operands)):
            return _jax.bind(self.parent_trace, primitive, operands, params)
        found, outs = self.apply_staged(primitive, params, operands)
        return outs.update(found)

    def apply_staged(
        self, primitive: Primitive, params: dict[str, Any], operands: Sequence[Any]
    ) -> tuple[list[Any], Any]:
        """Run an operation as the equation that it is in a graph; return also what it returned
        there.
        """
        returned: list[Any] = []

        def alone(*xs: Any) -> list[Any]:
            returned.append(_jax.bind(_jax.current_trace(), primitive, xs, params))
            return list(returned[0])

        def step(eqn: JaxprEqn, values: Sequence[Any]) -> Sequence[Any]:
            if eqn.primitive is primitive and any(map(self.owns, values)):
                return self.apply_equation(eqn, values)
            with _jax.under(self):
                return sweeps.evaluate(eqn, values)

        closed = jax.make_jaxpr(alone)(*operands)
        return sweeps.run(*_jax.open_jaxpr(closed), operands, step), returned[0]

    def stage_value(self, val: Any) -> Any:
        """Make the value one of the trace around; a tracer of this trace is one already."""
        return val if self.owns(val) else self.parent_trace.stage_value(val)


def _rebound(eqn: JaxprEqn, operands: Sequence[Any]) -> Sequence[Any]:
    """Run an equation as if it stood at the line that runs now."""
    out = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
    return out if eqn.primitive.multiple_results else [out]


def split(trace: DefineByRun, operands: Sequence[Any]) -> tuple[list[bool], list[Any]]:
    """Say which operands are tracers of the trace, and return the values behind all of them."""
    on = [trace.owns(x) for x in operands]
    return on, [x.primal if o else x for x, o in zip(operands, on)]


def chosen_call(
    primitive: Primitive, params: dict[str, Any], values: Sequence[Any], on: Sequence[bool]
) -> Callable[..., list[Any]]:
    """Make the operation a function of those operands that ``on`` marks."""
    run = lambda full: _jax.bind(_jax.current_trace(), primitive, full, params)
    return sweeps.of_chosen(run, values, on)


# The record.


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

    def apply(self, primitive: Primitive, params: dict[str, Any], operands: Sequence[Any]) -> Any:
        """Run one operation and put it on the record."""
        on, values = split(self, operands)
        atoms = list(map(self.atom, operands))
        avals, effects = _jax.out_types(primitive, [a.aval for a in atoms], params)
        if _jax.has_reference_effect(effects):
            return self.discharged(primitive, operands, params)
        eqn = _jax.equation(primitive, params, atoms, avals, effects, self.depth)
        found = self.note(eqn, values, on)
        return found if primitive.multiple_results else found[0]

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
        rule = rules.get(primitive)
        if rule is None or rule.higher_order is not None or rule.auxiliaries:
            return super().apply(primitive, params, operands)
        on, values = split(self, operands)
        made = _jax.bind(self.parent_trace, primitive, values, params)
        if rule.kind in ("piecewise constant", "no tangent space"):
            return made
        outs = list(made) if primitive.multiple_results else [made]
        atoms, avals = list(map(self.atom, operands)), list(map(jax.typeof, outs))
        eqn = _jax.equation(primitive, params, atoms, avals, prefix=self.depth)
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
                active_atoms = set(only(eqn.invars, on))
                is_on = lambda a: is_among(a, active_atoms)
                step = pull_step(eqn, rule, is_on, active, self.is_held)
                env: dict[Any, Any] = {}
                if names_auxiliary(step):
                    outs = sweeps.forward_with_auxiliaries(step, values, env)
                elif outs is None:
                    outs = sweeps.evaluate(eqn, values)
                pairs = zip((*eqn.invars, *eqn.outvars), (*values, *outs))
                env.update((a, x) for a, x in pairs if not isinstance(a, Literal))
                self.values.update((v, env[v]) for v in named(step))
                self.steps.append((step, None))
        return self._tracers(eqn, outs, active)

    def is_held(self, atom: Any) -> bool:
        """Say whether a variable is an input, there anyway when the reverse sweep runs."""
        return is_among(atom, self.held)

    def apply_own_rule(
        self, primitive: Primitive, params: dict[str, Any], operands: Sequence[Any]
    ) -> Sequence[Any]:
        """Run a function that brings a derivative of its own by its author's forward rule.

        It is given the values at hand, and its closures hold what they held.
        """
        on, values = split(self, operands)
        with _jax.under(self.parent_trace):
            call = chosen_call(primitive, params, values, on)
            outs, pull = _jax.vjp(call, *only(values, on))
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
