"""One equation of the reverse sweep: which pullbacks to call, and where their arguments are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jax.extend.core import JaxprEqn, Literal

from functional_bp.errors import RuleError, compose
from functional_bp.rule import Name, Pullback, Rule
from functional_bp.structure import Mask, Structure


class Auxiliary:
    """A value computed by a rule's ``forward`` beside the outputs; kept like a variable."""

    def __init__(self, eqn: JaxprEqn, name: str) -> None:
        self.eqn, self.name = eqn, name


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


def spread(names: Sequence[Name], count: int) -> list[Name]:
    """The signature's name for each of ``count`` operands or outputs."""
    extra = count - sum(not name.starred for name in names)
    return [n for name in names for n in [name] * (extra if name.starred else 1)]


def pull_step(
    eqn: JaxprEqn,
    rule: Rule,
    on: Callable[[Any], bool],
    out_useful: Mask,
    is_held: Callable[[Any], bool] = lambda _: False,
) -> Step:
    """Which pullbacks to call for an equation, and where each finds its arguments.

    ``is_held`` tells of a variable whether its value is there anyway (``rule.if_held``).
    """
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
        for name, atom in zip(spread(names, len(group)), group):
            if name.starred:
                atoms.setdefault(name.text, []).append(atom)
            else:
                atoms[name.text] = atom
        for name in names:
            if name.starred:
                atoms.setdefault(name.text, [])
    atoms.update({name: Auxiliary(eqn, name) for name in rule.auxiliaries})
    spread_outs = spread(rule.outputs, len(eqn.outvars))
    positions = {
        name.text: [i for i, n in enumerate(spread_outs) if n.text == name.text]
        for name in rule.outputs
    }
    operands = spread(rule.operands, len(eqn.invars))
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
        other = rule.if_held.get(operands[i].text)
        if other is not None and all(is_held(atoms[name]) for name in other.keeps):
            pullback = other
        if pullback is None:
            continue
        if not any(out_useful[p] for name in pullback.cotangents for p in positions[name]):
            continue
        index = i - first[operands[i].text]
        pulls.append(Pull((i,), (operands[i].text,), pullback, arguments(pullback, index),
                          parameters(pullback)))  # fmt: skip
    return Step(eqn, rule, tuple(pulls))


def named(step: Step) -> list[Any]:
    """The variables and auxiliaries that the step's pullbacks ask for."""
    payloads = [p for pull in step.pulls for kind, p, _ in pull.arguments if kind == "value"]
    every = [v for p in payloads for v in (p if isinstance(p, list) else [p])]
    return [v for v in every if not isinstance(v, Literal)]


def names_auxiliary(step: Step) -> bool:
    """Whether a pullback of the step asks for what the rule's ``forward`` computes beside."""
    return any(isinstance(value, Auxiliary) for value in named(step))
