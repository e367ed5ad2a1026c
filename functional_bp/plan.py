"""The plan of a graph: which cotangents to compute, which values to keep, what to run at all.

A plan is made once per graph and question, before anything runs, and cached:

1. *activity*, first to last equation: which variables depend on a wanted input;
2. *usefulness*, last to first: which of those reach an output whose cotangent is given, which
   values the rules on the way name (these are kept), and which equations still have to run.

Reference: Griewank and Walther's "varied" and "useful" variables, and their "to be recorded".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from jax import dtypes, lax
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var
from jax.interpreters import ad

from functional_bp import _jax
from functional_bp.errors import RuleError, StrictError, compose, missing_rule
from functional_bp.rule import Name, Pullback, Rule, rules

Atom = Any  # a jaxpr's Var or Literal
Mask = tuple[bool, ...]
Sweep = Callable[..., tuple[list[Any], list[Any]]]  # tangents.forward_mode


class Options(NamedTuple):
    """What a caller may set for a whole sweep, nested graphs included."""

    strict: bool = False  # refuse rules that are not ours
    max_steps: int | None = None  # the bound for loops without a static trip count
    linear: bool = False  # the graph is linear in its active inputs: it is being transposed


class Auxiliary:
    """A value computed by a rule's ``forward`` beside the outputs; kept like a variable."""

    def __init__(self, eqn: JaxprEqn, name: str) -> None:
        self.eqn, self.name = eqn, name


class Structure:
    """An operation that holds a graph of its own: ``scan``, ``cond``, ``jit``, …

    The engine makes one for every active equation, then calls, in this order, ``seed`` once,
    ``forward`` and ``reverse`` any number of times. ``out_active`` must be set on return from
    ``__init__``, ``wanted`` on return from ``seed``. A structure with a leaner forward mode than
    the transpose of ``reverse`` has a method ``tangents(sweep, operands, dots)``.
    """

    out_active: Mask
    wanted: Mask

    def __init__(self, eqn: JaxprEqn, active: Mask, options: Options) -> None:
        self.eqn, self.active, self.options = eqn, active, options
        self.out_active = tuple(has_tangent(v.aval) for v in eqn.outvars)
        self.wanted = tuple(on and has_tangent(a.aval) for on, a in zip(active, eqn.invars))

    def seed(self, seeded: Mask, needed: Mask) -> None:
        """Learn which outputs will be given a cotangent, and which outputs' values are used."""
        self.seeded, self.needed = seeded, needed

    def forward(self, *operands: Any) -> tuple[Sequence[Any], Any]:
        """The outputs, and a pytree of arrays that ``reverse`` needs. An output that is not
        needed may be None; a residual that is itself an operand costs nothing."""
        raise NotImplementedError

    def reverse(self, residuals: Any, cotangents: Sequence[Any]) -> Sequence[Any]:
        """One cotangent per operand, None where it is zero or not wanted. Absent output
        cotangents are None."""
        raise NotImplementedError


@lru_cache(maxsize=4096)
def _inexact(dtype: Any) -> bool:
    return dtypes.issubdtype(dtype, np.inexact)


def has_tangent(aval: Any) -> bool:
    """Whether a value of this type has a tangent space: real and complex arrays do."""
    dtype = getattr(aval, "dtype", None)
    if dtype is None or not hasattr(aval, "shape"):
        return bool(getattr(aval, "is_high", False))
    return _inexact(dtype)


class Pull(NamedTuple):
    """One pullback call: for which operands, and where its arguments are found."""

    operands: tuple[int, ...]
    names: tuple[str, ...]  # the operands' names in the signature, for a joint rule
    pullback: Pullback
    arguments: tuple[tuple[str, Any, bool], ...]  # kind, payload, optional
    parameters: dict[str, Any]


class Step(NamedTuple):
    """One equation of the reverse sweep."""

    eqn: JaxprEqn
    rule: Rule | None
    pulls: tuple[Pull, ...] = ()
    structure: Structure | None = None


class Plan(NamedTuple):
    """The two sweeps over one graph, decided."""

    jaxpr: Jaxpr
    steps: tuple[Step, ...]  # in forward order
    keep: tuple[Any, ...]  # variables and auxiliaries whose values the reverse sweep needs
    again: tuple[JaxprEqn, ...]  # equations cheaper to run again than to keep their output
    live: tuple[JaxprEqn, ...]  # equations that the forward sweep runs
    last_uses: dict[JaxprEqn, list[Var]]  # what may be dropped after each
    out_active: Mask
    reached: Mask  # active inputs that get a cotangent
    augmented: dict[JaxprEqn, Step]  # equations run by a structure or by a rule's ``forward``


# An equation of these costs no arithmetic: run it again instead of keeping its larger output.
CHEAP = {
    lax.broadcast_in_dim_p,
    lax.iota_p,
    lax.reshape_p,
    lax.squeeze_p,
    lax.convert_element_type_p,
}


@lru_cache(maxsize=8192)
def make_plan(
    jaxpr: Jaxpr,
    active: Mask,
    seeded: Mask,
    needed: Mask,
    options: Options = Options(),
    given: tuple[Var, ...] = (),
    also: tuple[Var, ...] = (),
) -> Plan:
    """Plan both sweeps of ``jaxpr`` (without its constants' values).

    Args:
        jaxpr: the graph.
        active: which inputs want a cotangent.
        seeded: which outputs will be given one.
        needed: which outputs' values are used.
        options: for the whole sweep.
        given: variables whose values the forward sweep is handed and need not compute.
        also: variables to keep whatever the rules name; they come first in ``Plan.keep``.
    """
    varied, structures = _activity(jaxpr, active, options)
    on = lambda atom: not isinstance(atom, Literal) and atom in varied  # noqa: E731
    useful = {v for v, s in zip(jaxpr.outvars, seeded) if s and on(v)}
    values = {v for v, n in zip(jaxpr.outvars, needed) if n and not isinstance(v, Literal)}
    values.update(also)
    handed = set(given)
    defined_by = {v: eqn for eqn in jaxpr.eqns for v in eqn.outvars}
    keep: dict[Any, None] = dict.fromkeys(also)
    again: dict[JaxprEqn, None] = {}
    steps: list[Step] = []
    live: list[JaxprEqn] = []

    def add_kept(value: Any) -> None:
        if isinstance(value, Literal) or value in keep:
            return
        eqn = None if isinstance(value, Auxiliary) or value in handed else defined_by.get(value)
        if eqn is not None and eqn in again:
            return
        if eqn is not None and _is_cheaper_again(eqn):
            again[eqn] = None
            for atom in eqn.invars:
                add_kept(atom)
        else:
            keep[value] = None
            if not isinstance(value, Auxiliary):
                values.add(value)

    for eqn in reversed(jaxpr.eqns):
        out_useful = tuple(v in useful for v in eqn.outvars)
        step = None
        if any(out_useful):
            if eqn in structures:
                structure = structures[eqn]
                structure.seed(out_useful, tuple(v in values for v in eqn.outvars))
                step = Step(eqn, rules.get(eqn.primitive), structure=structure)
                useful.update(a for a, w in zip(eqn.invars, structure.wanted) if w and on(a))
            else:
                step = _pull_step(eqn, rules[eqn.primitive], on, out_useful)
                for pull in step.pulls:
                    useful.update(eqn.invars[i] for i in pull.operands)
                    for kind, payload, _ in pull.arguments:
                        if kind == "value":
                            for value in payload if isinstance(payload, list) else [payload]:
                                add_kept(value)
            steps.append(step)
        runs = bool(eqn.effects) or (step is not None and step.structure is not None)
        runs |= any(v in values and v not in handed for v in eqn.outvars)
        runs |= step is not None and _names_auxiliary(step)
        if runs:
            live.append(eqn)
            values.update(a for a in eqn.invars if not isinstance(a, Literal))
    steps.reverse()
    live.reverse()
    order = {eqn: i for i, eqn in enumerate(jaxpr.eqns)}
    return Plan(
        jaxpr,
        tuple(steps),
        tuple(keep),
        tuple(sorted(again, key=order.__getitem__)),
        tuple(live),
        _last_uses(live, [*keep, *jaxpr.outvars]),
        tuple(on(v) for v in jaxpr.outvars),
        tuple(v in useful for v in jaxpr.invars),
        {s.eqn: s for s in steps if s.structure or _names_auxiliary(s)},
    )


@lru_cache(maxsize=8192)
def out_activity(jaxpr: Jaxpr, active: Mask, options: Options) -> Mask:
    """Which outputs depend on an active input, for the structures that hold ``jaxpr``."""
    varied, _ = _activity(jaxpr, active, options)
    return tuple(not isinstance(v, Literal) and v in varied for v in jaxpr.outvars)


def union(first: Mask, second: Mask) -> Mask:
    """Elementwise or."""
    return tuple(a or b for a, b in zip(first, second, strict=True))


rules.changed += [make_plan.cache_clear, out_activity.cache_clear]


def _activity(
    jaxpr: Jaxpr, active: Mask, options: Options
) -> tuple[set[Var], dict[JaxprEqn, Structure]]:
    """The variables that depend on an active input through operations with a derivative."""
    varied = {v for v, on in zip(jaxpr.invars, active) if on and has_tangent(v.aval)}
    structures: dict[JaxprEqn, Structure] = {}
    for eqn in jaxpr.eqns:
        on = tuple(not isinstance(a, Literal) and a in varied for a in eqn.invars)
        if not any(on) or not any(has_tangent(v.aval) for v in eqn.outvars):
            continue
        made = structure_of(eqn, on, options)
        if made is not None:
            structures[eqn] = made
            varied.update(v for v, o in zip(eqn.outvars, made.out_active) if o)
        elif _has_pullback(eqn, on):
            varied.update(v for v in eqn.outvars if has_tangent(v.aval))
    return varied, structures


def structure_of(eqn: JaxprEqn, active: Mask, options: Options) -> Structure | None:
    """The structure of an active equation; None where it has pullbacks instead."""
    rule = rules.get(eqn.primitive)
    if rule is None:
        return _foreign(eqn, options)(eqn, active, options)
    return None if rule.structure is None else rule.structure(eqn, active, options)


def _has_pullback(eqn: JaxprEqn, active: Mask) -> bool:
    """Whether the rule has a pullback for any of the active operands."""
    rule = rules[eqn.primitive]
    names = _spread(rule.operands, len(eqn.invars))
    return rule.joint is not None or any(
        name.text in rule.pullbacks for name, on in zip(names, active) if on
    )


class Unruled(Structure):
    """An operation that nobody can differentiate: an error, once its cotangent is wanted."""

    def seed(self, seeded: Mask, needed: Mask) -> None:
        """Raise: no rule of ours, and none that its author registered, or may be used."""
        where = ":".join(map(str, _jax.source_line(self.eqn) or ()))
        if self.eqn.primitive not in ad.primitive_jvps:
            raise missing_rule(self.eqn.primitive.name, where, [a.aval for a in self.eqn.invars])
        raise StrictError(
            compose(
                f"strict=True refuses the operation {self.eqn.primitive.name!r}",
                where=where,
                got="a rule that its author registered with JAX",
                expected="a rule in bp.rules",
                do="register one with bp.rule, or leave strict out",
            )
        )


def _foreign(eqn: JaxprEqn, options: Options) -> type[Structure]:
    """The structure that asks JAX for the rule that a primitive's author registered there."""
    if options.strict or eqn.primitive not in ad.primitive_jvps:
        return Unruled
    from functional_bp.rules.registered import Registered

    return Registered


def _spread(names: Sequence[Name], count: int) -> list[Name]:
    """The signature's name for each of ``count`` operands or outputs."""
    extra = count - sum(not name.starred for name in names)
    return [n for name in names for n in [name] * (extra if name.starred else 1)]


def _pull_step(eqn: JaxprEqn, rule: Rule, on: Any, out_useful: Mask) -> Step:
    """Which pullbacks to call for an equation, and where each finds its arguments."""
    atoms: dict[str, Any] = {}
    for what, names, group in (
        ("operands", rule.operands, eqn.invars),
        ("outputs", rule.outputs, eqn.outvars),
    ):
        fixed = sum(not name.starred for name in names)
        if len(group) != fixed and (len(group) < fixed or fixed == len(names)):
            raise RuleError(
                compose(
                    f"the signature of the rule of {eqn.primitive.name!r} has {fixed} {what}",
                    where=f"{rule.file}:{rule.line}",
                    got=f"an operation with {len(group)} {what}",
                )
            )
        for name, atom in zip(_spread(names, len(group)), group):
            if name.starred:
                atoms.setdefault(name.text, []).append(atom)
            else:
                atoms[name.text] = atom
        for name in names:
            if name.starred:
                atoms.setdefault(name.text, [])
    atoms.update({name: Auxiliary(eqn, name) for name in rule.auxiliaries})
    spread_outs = _spread(rule.outputs, len(eqn.outvars))
    positions = {
        name.text: [i for i, n in enumerate(spread_outs) if n.text == name.text]
        for name in rule.outputs
    }
    operands = _spread(rule.operands, len(eqn.invars))
    first = {name.text: i for i, name in reversed(list(enumerate(operands)))}

    def arguments(pullback: Pullback, index: int) -> tuple[tuple[str, Any, bool], ...]:
        found = []
        for need in pullback.needs:
            if need.kind == "cotangent":
                places = positions[need.name]
                starred = any(n.text == need.name and n.starred for n in rule.outputs)
                payload: Any = places if starred else places[0]
            elif need.kind == "index":
                payload = index
            else:
                payload = atoms[need.name]
                if need.kind == "shape":
                    payload = (
                        [a.aval for a in payload] if isinstance(payload, list) else payload.aval
                    )
            found.append((need.kind, payload, need.optional))
        return tuple(found)

    def parameters(pullback: Pullback) -> dict[str, Any]:
        for name, required in pullback.parameters:
            if required and name not in eqn.params:
                raise RuleError(
                    compose(
                        f"a pullback of the rule of {eqn.primitive.name!r} asks for {name!r}",
                        where=f"{rule.file}:{rule.line}",
                        got=f"an operation with the parameters {', '.join(eqn.params) or '(none)'}",
                        do="name one of these; with a default, it may be missing",
                    )
                )
        return {
            p: eqn.params[p] for p, required in pullback.parameters if required or p in eqn.params
        }

    active = [i for i, atom in enumerate(eqn.invars) if on(atom)]
    if rule.joint is not None:
        pull = Pull(
            tuple(active),
            tuple(operands[i].text for i in active),
            rule.joint,
            arguments(rule.joint, 0),
            parameters(rule.joint),
        )
        return Step(eqn, rule, (pull,))
    pulls = []
    for i in active:
        pullback = rule.pullbacks.get(operands[i].text)
        if pullback is None:
            continue
        if not any(out_useful[p] for name in pullback.cotangents for p in positions[name]):
            continue
        index = i - first[operands[i].text]
        pulls.append(Pull((i,), (operands[i].text,), pullback, arguments(pullback, index),
                          parameters(pullback)))  # fmt: skip
    return Step(eqn, rule, tuple(pulls))


def _is_cheaper_again(eqn: JaxprEqn) -> bool:
    """Whether running the equation again keeps fewer bytes, at no arithmetic."""
    if eqn.primitive not in CHEAP or eqn.effects:
        return False
    inputs = sum(
        a.aval.size * a.aval.dtype.itemsize for a in eqn.invars if not isinstance(a, Literal)
    )
    output = eqn.outvars[0].aval
    view = eqn.primitive in (lax.reshape_p, lax.squeeze_p)
    size = output.size * output.dtype.itemsize
    return inputs < size or (view and inputs == size)


def _names_auxiliary(step: Step) -> bool:
    return any(
        kind == "value" and isinstance(payload, Auxiliary)
        for pull in step.pulls
        for kind, payload, _ in pull.arguments
    )


def _last_uses(eqns: Sequence[JaxprEqn], keep: Sequence[Any]) -> dict[JaxprEqn, list[Var]]:
    """The variables that no later equation, and nothing kept, still needs."""
    seen = {v for v in keep if not isinstance(v, Literal)}
    uses: dict[JaxprEqn, list[Var]] = {}
    for eqn in reversed(eqns):
        dead = [
            a for a in (*eqn.invars, *eqn.outvars) if not isinstance(a, Literal) and a not in seen
        ]
        uses[eqn] = list(dict.fromkeys(dead))
        seen.update(dead)
    return uses
