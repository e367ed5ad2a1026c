"""Why a rule makes a NaN or an infinity: its pullback is itself a graph, and looked at as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import Jaxpr, Literal

from functional_bp import backprop
from functional_bp.explain.explanation import Explanation
from functional_bp.explain.formulas import equations
from functional_bp.explain.formulas.expression import Expression, Symbol
from functional_bp.explain.formulas.symbols import symbols
from functional_bp.explain.formulas.unicode import written
from functional_bp.explain.nonfinite.causes import cause_of, operands_of
from functional_bp.explain.nonfinite.entries import (
    Entry,
    Read,
    entry_at,
    first_bad,
    host,
    read_by,
)
from functional_bp.explain.nonfinite.finding import FirstNonfinite
from functional_bp.explain.nonfinite.origins import origin
from functional_bp.explain.sweeps import flatten_taken
from functional_bp.graph.parts import Equation, Variable
from functional_bp.graph.trace import trace
from functional_bp.plan import plan_once
from functional_bp.steps import Auxiliary
from functional_bp.structure import Options, has_tangent

MASKED = (
    "The upstream cotangent is 0, as of an entry that is masked out further on (or saturates), but "
    "the rule multiplies it by the local gradient there, and 0 · ∞ = NaN"
)
MASK_INPUT = (
    "mask the input of the operation as well as its result: "
    "jnp.where(ok, f(jnp.where(ok, x, 1.0)), 0.0)"
)


def bar(variable: Variable, known: Mapping[Variable, Expression]) -> str:
    """What a variable's cotangent is called: ``x̄``, as in formulas."""
    base = known.get(variable)
    return written(Symbol(base.name if isinstance(base, Symbol) else variable.name, bar=True))


class _Pullback(NamedTuple):
    """The pullback of one equation to one of its operands, as a function of arrays.

    Attributes:
        run: arrays to the operand's cotangent.
        arguments: what it is called with.
        names: what these are called; those of cotangents first.
        upstream: how many of them are cotangents.
    """

    run: Callable[..., list[Any]]
    arguments: list[Any]
    names: list[str]
    upstream: int


def made_in_reverse(explanation: Explanation, equation: Equation, operand: int) -> FirstNonfinite:
    """What is said of a rule that makes a cotangent which is not finite from finite ones."""
    graph, values = explanation.graph, explanation.values
    share = explanation.share(equation, operand)
    variable = equation.inputs[operand]
    index = first_bad(share)
    known = symbols(graph)
    entry = entry_at(bar(variable, known), share, index)
    pullback = _pullback_of(explanation, equation, operand)
    reads = read_by(pullback.run, pullback.arguments, 0, index)
    upstream, kept = _entries(pullback, reads)
    text, advice = _cause(pullback)
    if equation.nested and text:
        text = f"in its own backward function, {text}"
    if np.isnan(entry.value) and upstream and all(e.value == 0 for e in upstream):
        text, advice = ". ".join(filter(None, (text, MASKED))), MASK_INPUT
    rule = equations.reverse(equation, operand, known).text()
    found = equation.rule.rule
    if found is not None and found.kinks:
        rule += f"; without a derivative at {found.kinks}"
    return FirstNonfinite(
        "reverse", entry, equation, text, advice,
        formula=equations.forward(equation, known).text(), rule=rule,
        upstream=upstream, kept=kept,
        inputs={v.name: values[v] for v in equation.inputs if v.kind != "literal"},
        source=equation.source,
    )  # fmt: skip


def _entries(
    pullback: _Pullback, reads: Sequence[Read]
) -> tuple[tuple[Entry, ...], tuple[Entry, ...]]:
    """The entries that are read: of cotangents, and of what is kept."""
    each = [
        [entry_at(name, x, at) for at in read.first]
        for name, x, read in zip(pullback.names, pullback.arguments, reads)
    ]
    split = pullback.upstream
    flat = [[e for entries in part for e in entries] for part in (each[:split], each[split:])]
    return tuple(flat[0]), tuple(flat[1])


def _cause(pullback: _Pullback) -> tuple[str, str]:
    """The cause in words, and what to do."""
    from functional_bp.explain.nonfinite.search import values_of

    graph = trace(pullback.run, *pullback.arguments)
    flat = flatten_taken(graph, pullback.arguments)
    values = values_of(flat, pullback.arguments)
    names: dict[Variable, str] = dict(zip(flat.inputs, pullback.names))
    found = origin(flat, values, flat.outputs)
    if found is None:
        return "", ""
    if found.equation is None or found.given is not None:
        assert found.given is not None
        name = names.get(found.given, found.given.name)
        return f"{name}, which the rule reads, is not finite", "look at where it comes from"
    inner = found.equation
    outs = [values[v] for v in inner.outputs]
    cause = cause_of(inner, operands_of(inner, values), outs, names)
    return cause.text, cause.advice


def _pullback_of(explanation: Explanation, equation: Equation, operand: int) -> _Pullback:
    """The pullback of an equation to one operand, at the explanation's values."""
    eqn = equation.eqn
    by_var = {a: v for a, v in zip(eqn.invars, equation.inputs) if not isinstance(a, Literal)}
    by_var |= dict(zip(eqn.outvars, equation.outputs))
    inputs = list(dict.fromkeys(a for a in eqn.invars if not isinstance(a, Literal)))
    jaxpr = Jaxpr(
        constvars=[], invars=inputs, outvars=list(eqn.outvars), eqns=[eqn], effects=eqn.effects,
        debug_info=explanation.graph.jaxpr.debug_info.with_unknown_names(),
    )  # fmt: skip
    bars = [explanation.bars.get(v) for v in equation.outputs]
    seeded = tuple(x is not None for x in bars)
    active = tuple(has_tangent(a.aval) for a in inputs)
    options = Options(max_steps=explanation.max_steps)
    plan = plan_once(jaxpr, active, seeded, (True,) * len(bars), options)
    given = [x for x in bars if x is not None]
    structure = plan.steps[0].structure
    if structure is None:
        operands = [explanation.values[by_var[a]] for a in inputs]
        residuals: Any = backprop.forward(plan, (), operands)[1][0]
        place = [*map(id, inputs)].index(id(eqn.invars[operand]))
        kept_names = [
            f"{v.name} of {equation.operation}" if isinstance(v, Auxiliary) else by_var[v].name
            for v in plan.keep
        ]
    else:
        operands = operands_of(equation, explanation.values)
        _, residuals = structure.forward(*operands)
        place = operand
        held = zip(
            (*equation.inputs, *equation.outputs),
            (*operands, *(explanation.values[v] for v in equation.outputs)),
        )
        held = [(v.name, host(x)) for v, x in held if has_tangent(x)]
        kept_names = [_kept_name(k, x, held) for k, x in enumerate(jax.tree.leaves(residuals))]
    leaves, tree = jax.tree.flatten(residuals)

    def run(*arguments: Any) -> list[Any]:
        remaining = iter(arguments[: len(given)])
        out_bars = [next(remaining) if on else None for on in seeded]
        held = jax.tree.unflatten(tree, arguments[len(given) :])
        if structure is None:
            found = backprop.reverse(plan, (held, []), out_bars)
        else:
            found = structure.reverse(held, out_bars)
        return [found[place]]

    known = symbols(explanation.graph)
    names = [bar(v, known) for v, on in zip(equation.outputs, seeded) if on]
    return _Pullback(run, [*given, *leaves], [*names, *kept_names], len(given))


def _kept_name(number: int, residual: Any, values: Sequence[tuple[str, Any]]) -> str:
    """The variable that a residual is the value of, if any; else its number."""
    held = host(residual)
    same = (
        name
        for name, x in values
        if held is not None and x.shape == held.shape and np.array_equal(x, held, equal_nan=True)
    )
    return next(same, f"residual {number}")
