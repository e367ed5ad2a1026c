"""What a loop keeps of its steps: the fewest bytes from which a reverse sweep can be fed.

A step, traced with all that its rules keep, is a graph. What a rule names may be known before the
loop, may be a view of something else (a slice, a transpose, a conversion: no arithmetic), or be
one of several views of the same value. So the graph is divided:

1. what is computed twice in the same way is one value;
2. what depends on the loop's constants alone is computed once, before the loop;
3. each view is either kept or made again from what it is a view of, whichever needs fewer bytes.

Derivation of 3: views have one source each, so they form a forest. With price p(v) for keeping v,
the least price of having all that is named below v, v itself included if it is, is

    need(v) = p(v) if v is named, else min(p(v), Σ need(w) over the views w of v)

found from the leaves up; the choice follows from the roots down. On a tie the view is kept: it is
not made again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from jax import lax
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from functional_bp.plan import CHEAP

# No arithmetic, one operand: made again where that saves bytes.
VIEWS = CHEAP | {lax.transpose_p, lax.slice_p, lax.rev_p, lax.split_p, lax.copy_p}


class Divided(NamedTuple):
    """The equations of a step by where they run, and what is kept."""

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
        if not eqn.effects and fixed.issuperset(_variables(eqn.invars)):
            fixed.update(eqn.outvars)
    kept, again = _cheapest(eqns, _variables(named), lambda v: price(v, v in fixed))
    read = {*_variables(outputs), *kept}
    before: list[JaxprEqn] = []
    within: list[JaxprEqn] = []
    for eqn in reversed(eqns):
        if eqn.effects or not read.isdisjoint(eqn.outvars):
            early = not eqn.effects and fixed.issuperset(eqn.outvars)
            (before if early else within).append(eqn)
            read.update(_variables(eqn.invars))
    return Divided(before[::-1], within[::-1], again, kept, fixed)


def without_repeats(jaxpr: Jaxpr) -> tuple[list[JaxprEqn], list[Any]]:
    """The equations and outputs of a graph, with what is computed twice computed once."""
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
    """Which variables to keep, and which views to make again, to have all that is named."""
    wanted = dict.fromkeys(named)
    below: dict[Var, float] = {}  # for each source, what its views need
    for eqn in reversed(eqns):
        for v in eqn.outvars:
            if _is_view(eqn) and (v in wanted or v in below):
                need = price(v) if v in wanted else min(price(v), below[v])
                for source in _variables(eqn.invars):
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
        remade = _is_view(eqn) and have.issuperset(_variables(eqn.invars))
        for v in eqn.outvars:
            if not remade:
                choose(v)
            elif v in wanted or v in below:
                again[eqn] = None
                have.add(v)
    return kept, list(again)


def _is_view(eqn: JaxprEqn) -> bool:
    if eqn.primitive not in VIEWS or eqn.effects or len(_variables(eqn.invars)) > 1:
        return False
    # A number that was converted may choose a branch; converted in the reverse sweep again, it
    # made a scan of conditionals a fifth slower on a CPU, and saved three bytes a step.
    output: Any = eqn.outvars[0].aval
    return eqn.primitive is not lax.convert_element_type_p or output.shape != ()


def _variables(atoms: Iterable[Any]) -> list[Var]:
    return [atom for atom in atoms if not isinstance(atom, Literal)]
