"""The search: the forward sweep first, then the reverse sweep, and into loops step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from functional_bp import backprop
from functional_bp.explain.explanation import Explanation
from functional_bp.explain.formulas.equations import forward
from functional_bp.explain.formulas.symbols import symbols
from functional_bp.explain.nonfinite.causes import cause_of, operands_of
from functional_bp.explain.nonfinite.entries import entry_at, first_bad, is_bad
from functional_bp.explain.nonfinite.finding import FirstNonfinite, Inside
from functional_bp.explain.nonfinite.loops import Loop, Step, is_loop
from functional_bp.explain.nonfinite.origins import Origin, Values, made_anywhere, makes, origin
from functional_bp.explain.nonfinite.pullbacks import MASK_INPUT, bar, made_in_reverse
from functional_bp.explain.sweeps import flatten_taken, sweep
from functional_bp.graph.parts import Equation, Variable
from functional_bp.graph.view import Graph

HARMLESS = "It reaches neither the output nor a gradient: it is masked out."


def first_nonfinite(explanation: Explanation) -> FirstNonfinite | None:
    """The first NaN or infinity of both sweeps; None where all is finite.

    First what makes the output not finite; else what makes a cotangent so; else a value that is not
    finite and goes nowhere. An infinity that a person put in, as a mask of −∞, is no fault as long
    as it makes nothing else infinite.
    """
    graph, values = explanation.graph, explanation.values
    found = origin(graph, values, graph.outputs)
    if found is not None:
        return _forward(graph, values, found, explanation.max_steps)
    in_reverse = _reverse(explanation)
    if in_reverse is not None:
        return in_reverse
    found = made_anywhere(graph, values)
    if found is None:
        return None
    made = _forward(graph, values, found, explanation.max_steps)
    return replace(made, cause=f"{made.cause}. {HARMLESS}", advice="", reaches=False)


def _forward(graph: Graph, values: Values, found: Origin, max_steps: int | None) -> FirstNonfinite:
    """What is said of an origin in a forward sweep."""
    equation, given = found
    if given is not None or equation is None:
        assert given is not None
        return _given(graph, values, equation, given)
    operands = operands_of(equation, values)
    within = _opened(equation, operands, max_steps)
    if within is not None:
        return within
    outs = [values[v] for v in equation.outputs]
    cause = cause_of(equation, operands, outs, {})
    return FirstNonfinite(
        "forward", cause.entry, equation, cause.text, cause.advice,
        formula=forward(equation, symbols(graph)).text(), operands=cause.reads,
        inputs=inputs_of(equation, values), source=equation.source,
    )  # fmt: skip


def _given(graph: Graph, values: Values, user: Equation | None, given: Variable) -> FirstNonfinite:
    """An input, a constant or a literal that is itself not finite."""
    value = values.get(given)
    if given.kind == "literal" and user is not None:
        value = operands_of(user, values)[user.inputs.index(given)]
    name, what = {
        "input": (given.name, f"the input {given.name}"),
        "constant": (given.name, f"the constant {given.name}"),
    }.get(given.kind, ("a number in the code", "a number in the code"))
    used = "" if user is None else f"; it is first used in {forward(user, symbols(graph)).text()}"
    return FirstNonfinite(
        "forward", entry_at(name, value, first_bad(value)), None,
        f"{what} is not finite itself{used}", "look at where it comes from",
        source=None if user is None else user.source,
        inputs={} if user is None else inputs_of(user, values),
    )  # fmt: skip


def _opened(
    equation: Equation, operands: Sequence[Any], max_steps: int | None
) -> FirstNonfinite | None:
    """The origin inside the graph that an equation holds; None where it has none, or stays shut."""
    if is_loop(equation):
        for step, outs in Loop(equation, operands, max_steps).forward():
            if any(map(is_bad, outs)):
                found = _within(step.graph, step.operands, max_steps)
                if found is not None:
                    return _inside(found, equation, step)
        return None
    bodies = [n for n in equation.nested if n.runs == 1]
    if len(bodies) != 1 or len(bodies[0].graph.inputs) != len(operands):
        return None
    if equation.operation == "shard_map":  # its graph is that of one device
        return None
    found = _within(bodies[0].graph, operands, max_steps)
    return None if found is None else _inside(found, equation)


def _within(graph: Graph, operands: Sequence[Any], max_steps: int | None) -> FirstNonfinite | None:
    """The equation of a graph that makes what it returns not finite."""
    flat = flatten_taken(graph, operands)
    values = values_of(flat, operands)
    found = origin(flat, values, flat.outputs)
    if found is None or found.equation is None or found.given is not None:
        return None
    return _forward(flat, values, found, max_steps)


def values_of(flat: Graph, operands: Sequence[Any]) -> dict[Variable, Any]:
    """The value of every variable of a graph, operation by operation, as nothing else rounds."""
    values: dict[Variable, Any] = dict(zip(flat.inputs, operands, strict=True))
    values.update(zip(flat.constants, flat.consts))
    for equation in flat:
        if equation.outputs:  # not a print, which ran before
            outs = backprop.evaluate(equation.eqn, operands_of(equation, values))
            values.update(zip(equation.outputs, outs))
    return values


def _inside(found: FirstNonfinite, equation: Equation, step: Step | None = None) -> FirstNonfinite:
    held = Inside(equation) if step is None else Inside(equation, step.number, step.steps)
    return replace(found, inside=(held, *found.inside), source=found.source or equation.source)


def _reverse(explanation: Explanation) -> FirstNonfinite | None:
    """The first cotangent, last equation first, that is not finite; None if all are finite."""
    graph, bars = explanation.graph, explanation.bars
    bad = {v for v, x in bars.items() if is_bad(x)}
    if not bad and not any(is_bad(share) for share in explanation.shares.values()):
        return None
    for equation in reversed(graph.equations):
        for variable in equation.outputs:
            if variable in bad:
                return _summed(explanation, variable)
        for operand in range(len(equation.inputs)):
            share = explanation.share(equation, operand)
            if share is not None and is_bad(share):
                return _stepwise(explanation, equation) or _by_rule(explanation, equation, operand)
    return _summed(explanation, next(v for v in graph.variables if v in bad))


def _by_rule(explanation: Explanation, equation: Equation, operand: int) -> FirstNonfinite:
    """What a rule makes; or what made an operand infinite, that the rule multiplies by 0."""
    made = made_in_reverse(explanation, equation, operand)
    graph, values = explanation.graph, explanation.values
    if any(is_bad(np.asarray(entry.value)) for entry in made.kept):
        found = origin(graph, values, [v for v in equation.inputs if v.kind != "literal"])
        if found is not None and found.given is None:
            first = _forward(graph, values, found, explanation.max_steps)
            then = "It does not reach the output, but in the reverse sweep the rule of "
            then += f"{made.formula} makes {made.entry} of it, for 0 · ∞ = NaN"
            return replace(first, cause=f"{first.cause}. {then}", advice=MASK_INPUT)
    if makes(equation, values):
        first = _forward(graph, values, Origin(equation), explanation.max_steps)
        return replace(made, cause=f"{made.cause}. Forward, {first.cause}")
    return made


def _stepwise(explanation: Explanation, equation: Equation) -> FirstNonfinite | None:
    """The equation in a loop's body whose rule makes the cotangent, at the last such step."""
    if not is_loop(equation):
        return None
    operands = operands_of(equation, explanation.values)
    bars = [explanation.bars.get(v) for v in equation.outputs]
    for step, found in Loop(equation, operands, explanation.max_steps).reverse(bars):
        if any(bar is not None and is_bad(bar) for bar in found):
            flat = flatten_taken(step.graph, step.operands)
            swept = sweep(flat, step.operands, step.seeds, explanation.max_steps)
            inner = _reverse(Explanation(flat, swept, step.seeds, explanation.max_steps))
            return None if inner is None else _inside(inner, equation, step)
    return None


def _summed(explanation: Explanation, variable: Variable) -> FirstNonfinite:
    """A cotangent that is not finite though every share of it is: a seed, or a sum of shares."""
    graph, known = explanation.graph, symbols(explanation.graph)
    x_bar = explanation.bars[variable]
    entry = entry_at(bar(variable, known), x_bar, first_bad(x_bar))
    maker = graph.defined_by(variable)
    for output, seed in zip(graph.outputs, explanation.seeds):
        if output is variable and seed is not None and is_bad(seed):
            return FirstNonfinite(
                "reverse", entry, None, f"the cotangent given for {variable.name} is not finite",
                "look at where it comes from", source=None if maker is None else maker.source,
            )  # fmt: skip
    uses: list[tuple[Equation, Any]] = [
        (e, explanation.share(e, i))
        for e in graph.uses(variable)
        for i, v in enumerate(e.inputs)
        if v is variable and explanation.share(e, i) is not None
    ]
    shares = tuple(
        entry_at(f"{entry.name} by {e.outputs[0]}", share, entry.index) for e, share in uses
    )
    shares = tuple(share for share in shares if share.value != 0)
    last = min((e for e, _ in uses), key=lambda e: e.index, default=maker)
    terms = " + ".join(f"({s.value:.6g})" for s in shares)
    return FirstNonfinite(
        "reverse", entry, last,
        f"{entry.place} is the sum of the shares of {len(shares)} uses, each of which is finite: "
        f"{terms}".replace("-", "−"),
        "scale the loss down, or compute in a wider dtype",
        formula="" if last is None else forward(last, known).text(), upstream=shares,
        inputs={} if last is None else inputs_of(last, explanation.values),
        source=None if last is None else last.source,
    )  # fmt: skip


def inputs_of(equation: Equation, values: Mapping[Variable, Any]) -> dict[str, Any]:
    """The values of an equation's inputs by name; literals stand in its formula."""
    return {v.name: values[v] for v in equation.inputs if v.kind != "literal"}
