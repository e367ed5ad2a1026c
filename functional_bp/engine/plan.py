"""The plan of a graph says which cotangents to compute, which values to keep, what to run at all.

A plan is made once per graph and question, before anything runs, and cached:

1. *activity*, first to last equation: which variables depend on a wanted input;
2. *usefulness*, last to first: which of those reach an output whose cotangent is given, which
   values the rules on the way name (these are kept), and which equations still have to run.

An equation's ``SweepStep`` says which pullbacks to call, and where their arguments are.

References:
    Griewank and Walther 2008, Evaluating derivatives, doi 10.1137/1.9780898717761: their "varied"
    and "useful" variables, and what is "to be recorded".
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from jax import lax
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from functional_bp import _jax
from functional_bp.engine.higher_order import (
    HigherOrder,
    Mask,
    Options,
    has_tangent,
    higher_order_of,
    only,
)
from functional_bp.engine.rule import Name, Need, Pullback, Rule, rules
from functional_bp.errors import RuleError, compose


class Auxiliary(NamedTuple):
    """An auxiliary is what a rule's ``forward`` computes beside the outputs, and is kept."""

    eqn: JaxprEqn
    name: str


class Pull(NamedTuple):
    """A pull is one pullback call: for which operands, and where its arguments are found."""

    operands: tuple[int, ...]
    names: tuple[str, ...]  # the operands' names in the signature, for a joint rule
    pullback: Pullback
    sources: dict[Need, Any]  # positions of outputs, variables, types: lists of a starred name
    parameters: dict[str, Any]

    def named(self, kind: str) -> list[Any]:
        """List the sources of one kind of need, those of a starred name one by one."""
        found = [source for need, source in self.sources.items() if need.kind == kind]
        return [x for source in found for x in (source if isinstance(source, list) else [source])]


class SweepStep(NamedTuple):
    """A step is one equation of the reverse sweep."""

    eqn: JaxprEqn
    rule: Rule | None
    pulls: tuple[Pull, ...] = ()
    higher_order: HigherOrder | None = None


def spread(names: Sequence[Name], count: int) -> list[Name]:
    """Return the signature's name for each of ``count`` operands or outputs."""
    extra = count - sum(not name.starred for name in names)
    return [n for name in names for n in [name] * (extra if name.starred else 1)]


def by_name(names: Sequence[Name], group: Sequence[Any]) -> dict[str, Any]:
    """Return operands or outputs by their names in the signature, a list for a starred one."""
    found: dict[str, Any] = {name.text: [] for name in names if name.starred}
    for name, x in zip(spread(names, len(group)), group):
        if name.starred:
            found[name.text].append(x)
        else:
            found[name.text] = x
    return found


def pull_step(
    eqn: JaxprEqn,
    rule: Rule,
    on: Callable[[Any], bool],
    out_useful: Mask,
    is_held: Callable[[Any], bool] = lambda _: False,
) -> SweepStep:
    """Decide which pullbacks to call for an equation, and where each finds its arguments.

    ``is_held`` tells of a variable whether its value is there anyway (``rule.if_held``).
    """
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
    atoms = {**by_name(rule.operands, eqn.invars), **by_name(rule.outputs, eqn.outvars)}
    atoms |= {name: Auxiliary(eqn, name) for name in rule.auxiliaries}
    positions = by_name(rule.outputs, range(len(eqn.outvars)))
    operands = [name.text for name in spread(rule.operands, len(eqn.invars))]

    def source(need: Need, index: int) -> Any:
        if need.kind == "cotangent":
            return positions[need.name]
        if need.kind == "index":
            return index
        atom = atoms[need.name]
        if need.kind == "value":
            return atom
        return [a.aval for a in atom] if isinstance(atom, list) else atom.aval

    def pull(operands_at: Sequence[int], pullback: Pullback, index: int = 0) -> Pull:
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
        texts = tuple(operands[i] for i in operands_at)
        sources = {need: source(need, index) for need in pullback.needs}
        return Pull(tuple(operands_at), texts, pullback, sources,
                    {**eqn.params, "wanted": frozenset(texts)})  # fmt: skip

    active = [i for i, atom in enumerate(eqn.invars) if on(atom)]
    if rule.joint is not None:
        return SweepStep(eqn, rule, (pull(active, rule.joint),))
    pulls = []
    for i in active:
        name = operands[i]
        pullback, other = rule.pullbacks.get(name), rule.if_held.get(name)
        if other is not None and all(is_held(atoms[kept]) for kept in other.keeps):
            pullback = other
        if pullback is not None:
            made = pull((i,), pullback, i - operands.index(name))
            if any(out_useful[p] for p in made.named("cotangent")):
                pulls.append(made)
    return SweepStep(eqn, rule, tuple(pulls))


def variables(atoms: Iterable[Any]) -> list[Any]:
    """Return the atoms that are no literals."""
    return [atom for atom in atoms if not isinstance(atom, Literal)]


def is_among(atom: Any, found: Container[Any]) -> bool:
    """Say whether an atom is one of the variables; a literal, which has no hash, is none."""
    return not isinstance(atom, Literal) and atom in found


def named(step: SweepStep) -> list[Any]:
    """Return the variables and auxiliaries that the step's pullbacks ask for."""
    return variables(v for pull in step.pulls for v in pull.named("value"))


def names_auxiliary(step: SweepStep) -> bool:
    """Say whether a pullback of the step asks for what the rule's ``forward`` computes beside."""
    return any(isinstance(value, Auxiliary) for value in named(step))


class Plan(NamedTuple):
    """A plan decides the two sweeps over one graph."""

    jaxpr: Jaxpr
    steps: tuple[SweepStep, ...]  # in forward order
    keep: tuple[Any, ...]  # variables and auxiliaries whose values the reverse sweep needs
    again: tuple[JaxprEqn, ...]  # equations cheaper to run again than to keep their output
    live: tuple[JaxprEqn, ...]  # equations that the forward sweep runs
    last_uses: dict[JaxprEqn, list[Var]]  # what may be dropped after each
    out_active: Mask
    reached: Mask  # active inputs that get a cotangent
    augmented: dict[JaxprEqn, SweepStep]  # equations run by their rule

    @property
    def reads(self) -> set[Any]:
        """``reads`` has the variables that the forward sweep's equations read."""
        return {v for eqn in self.live for v in variables(eqn.invars)}


# An equation of these costs no arithmetic: run it again instead of keeping its larger output.
CHEAP = {
    lax.broadcast_in_dim_p,
    lax.iota_p,
    lax.reshape_p,
    lax.squeeze_p,
    lax.convert_element_type_p,
}


def plan_once(
    jaxpr: Jaxpr,
    active: Mask,
    seeded: Mask,
    needed: Mask,
    options: Options = Options(),
    given: tuple[Var, ...] = (),
    also: tuple[Var, ...] = (),
    effects: bool = True,
    sources: tuple[Var, ...] = (),
    held: Mask = (),
) -> Plan:
    """Plan both sweeps of ``jaxpr`` (without its constants' values).

    ``make_plan`` is the same with a memory. A graph that was just traced is planned with
    ``plan_once``, lest the memory keep its constants alive.

    Args:
        jaxpr: the graph.
        active: which inputs want a cotangent.
        seeded: which outputs will be given one.
        needed: which outputs' values are used.
        options: for the whole sweep.
        given: variables whose values the forward sweep is handed and need not compute.
        also: variables to keep whatever the rules name; they come first in ``Plan.keep``.
        effects: run what has an effect (a print); False for an excerpt of a graph that runs too.
        sources: intermediate values that want a cotangent as inputs do.
        held: which inputs are there anyway when the reverse sweep runs; none, if left out.
    """
    varied, higher_orders = _activity(jaxpr, active, options, sources)
    on = lambda atom: is_among(atom, varied)
    at_hand = set(only(jaxpr.invars, held))
    is_held = lambda atom: is_among(atom, at_hand)
    useful = {v for v, s in zip(jaxpr.outvars, seeded) if s and on(v)}
    values = {*variables(only(jaxpr.outvars, needed)), *also}
    handed = set(given)
    defined_by = {v: eqn for eqn in jaxpr.eqns for v in eqn.outvars}
    keep: dict[Any, None] = dict.fromkeys(also)
    again: dict[JaxprEqn, None] = {}
    steps: list[SweepStep] = []
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
        if any(out_useful) and any(map(on, eqn.invars)):  # else it makes a source, no more
            if eqn in higher_orders:
                higher_order = higher_orders[eqn]
                higher_order.held = tuple(map(is_held, eqn.invars))
                higher_order.seed(out_useful, tuple(v in values for v in eqn.outvars))
                step = SweepStep(eqn, rules.get(eqn.primitive), higher_order=higher_order)
                useful.update(a for a, w in zip(eqn.invars, higher_order.wanted) if w and on(a))
            else:
                step = pull_step(eqn, rules[eqn.primitive], on, out_useful, is_held)
                for pull in step.pulls:
                    useful.update(eqn.invars[i] for i in pull.operands)
                    for value in pull.named("value"):
                        add_kept(value)
            steps.append(step)
        runs = (effects and bool(eqn.effects)) or (
            step is not None and step.higher_order is not None
        )
        runs |= any(v in values and v not in handed for v in eqn.outvars)
        runs |= step is not None and names_auxiliary(step)
        if runs:
            live.append(eqn)
            values.update(variables(eqn.invars))
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
        {s.eqn: s for s in steps if s.higher_order or names_auxiliary(s)},
    )


make_plan = lru_cache(maxsize=512)(plan_once)  # for nested graphs


@lru_cache(maxsize=512)
def out_activity(jaxpr: Jaxpr, active: Mask, options: Options) -> Mask:
    """Say which outputs depend on an active input, for rules of operations that hold ``jaxpr``."""
    varied, _ = _activity(jaxpr, active, options)
    return tuple(is_among(v, varied) for v in jaxpr.outvars)


def union(first: Mask, second: Mask) -> Mask:
    """Combine masks by an elementwise or."""
    return tuple(a or b for a, b in zip(first, second, strict=True))


def fixed_point(step: Callable[[Any], Any], start: Any) -> Any:
    """Apply ``step`` until nothing changes; of masks that it only adds to, the least such."""
    while (after := step(start)) != start:
        start = after
    return start


rules.changed += [make_plan.cache_clear, out_activity.cache_clear]


def _activity(
    jaxpr: Jaxpr, active: Mask, options: Options, sources: Sequence[Var] = ()
) -> tuple[set[Var], dict[JaxprEqn, HigherOrder]]:
    """Find the variables that depend on an active input, or a source, by what has a derivative."""
    varied = {v for v, on in zip(jaxpr.invars, active) if on and has_tangent(v.aval)}
    varied.update(v for v in sources if has_tangent(v.aval))
    higher_orders: dict[JaxprEqn, HigherOrder] = {}
    for eqn in jaxpr.eqns:
        on = tuple(is_among(a, varied) for a in eqn.invars)
        if not any(on) or not any(has_tangent(v.aval) for v in eqn.outvars):
            continue
        made = higher_order_of(eqn, on, options)
        if made is not None:
            higher_orders[eqn] = made
            varied.update(v for v, o in zip(eqn.outvars, made.out_active) if o)
        elif has_pullback(eqn, on):
            varied.update(v for v in eqn.outvars if has_tangent(v.aval))
    return varied, higher_orders


def has_pullback(eqn: JaxprEqn, active: Mask) -> bool:
    """Say whether the rule has a pullback for any of the active operands."""
    rule = rules[eqn.primitive]
    names = spread(rule.operands, len(eqn.invars))
    return rule.joint is not None or any(
        name.text in rule.pullbacks for name, on in zip(names, active) if on
    )


def _is_cheaper_again(eqn: JaxprEqn) -> bool:
    """Say whether running the equation again keeps fewer bytes, at no arithmetic."""
    if eqn.primitive not in CHEAP or eqn.effects:
        return False
    inputs = sum(size_in_bytes(v.aval) for v in variables(eqn.invars))
    output = size_in_bytes(eqn.outvars[0].aval)
    view = eqn.primitive in (lax.reshape_p, lax.squeeze_p)
    return _jax.surely(lambda: inputs < output) or (view and inputs == output)


def size_in_bytes(aval: Any) -> int:
    """Count the bytes of a value of this type; 0 of what is not an array."""
    return aval.size * aval.dtype.itemsize


def _last_uses(eqns: Sequence[JaxprEqn], keep: Sequence[Any]) -> dict[JaxprEqn, list[Var]]:
    """Find the variables that no later equation, and nothing kept, still needs."""
    seen = set(variables(keep))
    uses: dict[JaxprEqn, list[Var]] = {}
    for eqn in reversed(eqns):
        dead = [v for v in variables((*eqn.invars, *eqn.outvars)) if v not in seen]
        uses[eqn] = list(dict.fromkeys(dead))
        seen.update(dead)
    return uses
