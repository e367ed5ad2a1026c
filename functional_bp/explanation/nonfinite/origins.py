"""The first NaN or infinity is searched for: forward, then in reverse, and in loops step by step.

An equation *makes* one if its operands are finite; if it turns infinities into a NaN (∞ − ∞); or
if it would make one also without the operands' bad entries (an overflow beside an entry masked
with −∞). Else it passes one on. The pullback of a rule that makes one is itself a graph, and is
looked at in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, count
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal, jaxpr_as_fun

from functional_bp import _jax
from functional_bp.engine import sweeps
from functional_bp.engine.higher_order import Options, has_tangent
from functional_bp.engine.plan import Auxiliary, plan_once
from functional_bp.explanation.formulas import equations
from functional_bp.explanation.formulas.equations import barred_symbol, forward, symbols
from functional_bp.explanation.formulas.expression import Expression
from functional_bp.explanation.formulas.writing import written
from functional_bp.explanation.full_sweeps import flatten_taken, operands_of, plan_of, sweep
from functional_bp.explanation.nonfinite.causes import (
    FirstNonfinite,
    Inside,
    cause_of,
    entry_at,
    first_bad,
    harmless,
    has_nan,
    host,
    is_bad,
    read_by,
)
from functional_bp.explanation.record import EvaluatedGraph
from functional_bp.graph.graph import Equation, Graph, Variable
from functional_bp.graph.inline import opened_jaxpr
from functional_bp.graph.interpret import interpret
from functional_bp.graph.nested import opened_scan
from functional_bp.graph.trace import trace

Values = Mapping[Variable, Any]


class Origin(NamedTuple):
    """A NaN or an infinity comes from here.

    Attributes:
        equation: that makes it, or that takes it from a literal; None where it was given.
        given: the input, constant or literal that is itself not finite.
    """

    equation: Equation | None
    given: Variable | None = None


def origin(graph: Graph, values: Values, ends: Sequence[Variable]) -> Origin | None:
    """Find the first origin of what is not finite at ``ends``, in forward order; None if all is."""
    bad = {v for v in graph.variables if is_bad(values[v])}
    on_way = {v for v in ends if v in bad}
    if not on_way:
        return None
    for equation in reversed(graph.equations):
        if on_way.intersection(equation.outputs):
            on_way.update(bad.intersection(equation.inputs))
    leading = [e for e in graph if on_way.intersection(e.outputs)]
    for equation in leading:
        if makes(equation, values):
            return Origin(equation)
    for variable in (*graph.inputs, *graph.constants):
        if variable in on_way:
            user = next((e for e in leading if variable in e.inputs), None)
            return Origin(user, variable)
    for equation in leading:
        for variable, operand in zip(equation.inputs, operands_of(equation, values)):
            if variable.kind == "literal" and is_bad(operand):
                return Origin(equation, variable)
    return Origin(leading[0]) if leading else None


def makes(equation: Equation, values: Values) -> bool:
    """Tell whether an equation makes a NaN or an infinity, and does not only pass it on."""
    outs = [values[v] for v in equation.outputs]
    if not any(map(is_bad, outs)):
        return False
    operands = operands_of(equation, values)
    if not any(map(is_bad, operands)):
        return True
    if any(map(has_nan, outs)) and not any(map(has_nan, operands)):
        return True
    if equation.operation == "while":  # might never end from another start
        return False
    without = ([harmless(x, value) for x in operands] for value in (0.0, 1.0))
    return all(any(map(is_bad, sweeps.evaluate(equation.eqn, given))) for given in without)


# Loops, step by step: a step is the loop's body as a graph of its own, at what it is fed.


def is_loop(equation: Equation) -> bool:
    """Tell whether an equation is a loop to be run step by step; not one over rows that stop."""
    if equation.operation == "while":
        return equation.nested[0].graph.outputs[0].shape == ()
    return equation.operation == "scan"


class LoopStep(NamedTuple):
    """A loop runs its body once.

    Attributes:
        number: which of them, from 0; of a reversed ``scan`` too, the index in ``xs``.
        steps: how many there are.
        graph: the loop's body.
        operands: what the body is fed.
        seeds: in a reverse sweep the cotangents of what it returns, None for none.
    """

    number: int
    steps: int
    graph: Graph
    operands: list[Any]
    seeds: Sequence[Any] = ()


class Loop:
    """A ``scan`` or a ``while`` is run step by step, from the values of its operands."""

    def __init__(self, equation: Equation, operands: Sequence[Any], max_steps: int | None) -> None:
        self.body = equation.nested[-1].graph
        self.max_steps = max_steps
        self.scan = opened_scan(equation.eqn) if equation.operation == "scan" else None
        if self.scan is not None:
            self.consts, self.start, self.xs = self.scan.divided(operands)
        else:
            params = equation.eqn.params
            tests, consts = params["cond_nconsts"], params["body_nconsts"]
            self.tests, operands = operands[:tests], operands[tests:]
            self.consts, self.start, self.xs = list(operands[:consts]), list(operands[consts:]), []
            self.condition = _function(equation.nested[0].graph)
        self.carries = len(self.start)
        self.run = _function(self.body)

    def forward(self) -> Iterator[tuple[LoopStep, list[Any]]]:
        """Return each step with what it returns, in the order in which they run."""
        for step in self._fed():
            yield step, self.run(*step.operands)

    def reverse(self, bars: Sequence[Any]) -> Iterator[tuple[LoopStep, list[Any]]]:
        """Return each step with the cotangents of what the body is fed, last step first."""
        first, last = len(self.consts), len(self.consts) + self.carries
        outs = self.body.outputs
        on = [bar is not None for bar in bars]
        while True:  # a carry's cotangent that a step makes goes to the step before
            plan = plan_of(opened_jaxpr(self.body), on, self.max_steps)
            reached = plan.reached[-len(self.body.inputs) :]
            grown = [a or b for a, b in zip(on, reached[first:last])] + on[self.carries :]
            if grown == on:
                break
            on = grown
        consts = self.body.consts

        @jax.jit
        def pull(operands: Sequence[Any], seeds: Sequence[Any]) -> list[Any]:
            _, residuals = sweeps.forward(plan, (), [*consts, *operands])
            return sweeps.reverse(plan, residuals, seeds)[len(consts) :]

        carried = bars[: self.carries]
        for step in reversed(self._fed()):
            state = [
                (sweeps.zeros(v.aval) if bar is None else bar) if o else None
                for bar, v, o in zip(carried, outs, on)
            ]
            slices = [None if bar is None else bar[step.number] for bar in bars[self.carries :]]
            step = step._replace(seeds=[*state, *slices])
            found = pull(step.operands, step.seeds)
            yield step, found
            carried = found[first:last]

    def _fed(self) -> list[LoopStep]:
        """The steps, each with what the body is fed, in the order in which they run."""
        state, fed = self.start, {}
        for t in self._numbers():
            if self.scan is None and not self.condition(*self.tests, *state)[0]:
                break
            fed[t] = [*self.consts, *state, *(x[t] for x in self.xs)]
            state = self.run(*fed[t])[: self.carries]
        return [LoopStep(t, len(fed), self.body, operands) for t, operands in fed.items()]

    def _numbers(self) -> Iterable[int]:
        """The numbers of the steps in the order in which they run."""
        if self.scan is None:
            return count()
        order = range(self.scan.length)
        return reversed(order) if self.scan.is_reversed else order


def _function(graph: Graph) -> Callable[..., list[Any]]:
    """A graph as a compiled function of its inputs."""
    run = jax.jit(jaxpr_as_fun(_jax.ClosedJaxpr(opened_jaxpr(graph), ())))
    return lambda *operands: run(*graph.consts, *operands)


# Why a rule makes one.

MASKED = (
    "The upstream cotangent is 0, as of an entry that is masked out further on (or saturates), but "
    "the rule multiplies it by the local gradient there, and 0 · ∞ = NaN"
)
MASK_INPUT = (
    "mask the input of the operation as well as its result: "
    "jnp.where(ok, f(jnp.where(ok, x, 1.0)), 0.0)"
)


def bar(variable: Variable, known: Mapping[Variable, Expression]) -> str:
    """Say what a variable's cotangent is called: ``x̄``, as in formulas."""
    return written(barred_symbol(variable, known))


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


def made_in_reverse(
    explanation: EvaluatedGraph, equation: Equation, operand: int
) -> FirstNonfinite:
    """Say what is wrong with a rule that makes a cotangent which is not finite of finite ones."""
    graph, values = explanation.graph, explanation.values
    share = explanation.share(equation, operand)
    variable = equation.inputs[operand]
    index = first_bad(share)
    known = symbols(graph)
    entry = entry_at(bar(variable, known), share, index)
    pullback = _pullback_of(explanation, equation, operand)
    reads = read_by(pullback.run, pullback.arguments, 0, index)
    each = [
        [entry_at(name, x, at) for at in read.first]
        for name, x, read in zip(pullback.names, pullback.arguments, reads)
    ]
    upstream, kept = tuple(chain(*each[: pullback.upstream])), chain(*each[pullback.upstream :])
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
        upstream=upstream, kept=tuple(kept),
        inputs={v.name: values[v] for v in equation.inputs if v.kind != "literal"},
        source=equation.source,
    )  # fmt: skip


def _cause(pullback: _Pullback) -> tuple[str, str]:
    """The cause in words, and what to do."""
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


def _pullback_of(explanation: EvaluatedGraph, equation: Equation, operand: int) -> _Pullback:
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
    _, residuals = sweeps.forward(plan, (), [explanation.values[by_var[a]] for a in inputs])
    leaves, tree = jax.tree.flatten(residuals)
    place = [*map(id, inputs)].index(id(eqn.invars[operand]))

    def run(*arguments: Any) -> list[Any]:
        remaining = iter(arguments[: len(given)])
        out_bars = [next(remaining) if on else None for on in seeded]
        held = jax.tree.unflatten(tree, arguments[len(given) :])
        return [sweeps.reverse(plan, held, out_bars)[place]]

    known = symbols(explanation.graph)
    names = [bar(v, known) for v, on in zip(equation.outputs, seeded) if on]
    names += [
        f"{v.name} of {equation.operation}" if isinstance(v, Auxiliary) else by_var[v].name
        for v in plan.keep
    ]
    values = [(v.name, host(explanation.values[v])) for v in by_var.values()]
    of_rule = jax.tree.leaves(residuals[1])  # of an operation with a plan of its own
    names += [_kept_name(k, x, values) for k, x in enumerate(of_rule)]
    return _Pullback(run, [*given, *leaves], names, len(given))


def _kept_name(number: int, residual: Any, values: Sequence[tuple[str, Any]]) -> str:
    """The variable that a residual is the value of, if any; else its number."""
    held = host(residual)
    if held is not None:
        for name, x in values:
            if x is not None and np.array_equal(x, held, equal_nan=True):
                return name
    return f"residual {number}"


HARMLESS = "It reaches neither the output nor a gradient: it is masked out."


def first_nonfinite(explanation: EvaluatedGraph) -> FirstNonfinite | None:
    """Find the first NaN or infinity of both sweeps; None where all is finite.

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
    harmless_one = next((e for e in graph if makes(e, values)), None)
    if harmless_one is None:
        return None
    made = _forward(graph, values, Origin(harmless_one), explanation.max_steps)
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
    is_named = given.kind in ("input", "constant")
    name = given.name if is_named else "a number in the code"
    what = f"the {given.kind} {name}" if is_named else name
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
    """Compute every variable of a graph, operation by operation, as nothing else rounds."""
    given = (*flat.consts, *operands)
    values = dict(zip((*flat.constants, *flat.inputs), given, strict=True))

    def run(eqn: JaxprEqn, fed: Sequence[Any]) -> Sequence[Any]:
        outs = sweeps.evaluate(eqn, fed) if eqn.outvars else []  # a print ran before
        values.update((flat.of_var[var], out) for var, out in zip(eqn.outvars, outs))
        return outs

    interpret(flat.jaxpr, flat.consts, operands, run)
    return values


def _inside(
    found: FirstNonfinite, equation: Equation, step: LoopStep | None = None
) -> FirstNonfinite:
    held = Inside(equation) if step is None else Inside(equation, step.number, step.steps)
    return replace(found, inside=(held, *found.inside), source=found.source or equation.source)


def _reverse(explanation: EvaluatedGraph) -> FirstNonfinite | None:
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


def _by_rule(explanation: EvaluatedGraph, equation: Equation, operand: int) -> FirstNonfinite:
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


def _stepwise(explanation: EvaluatedGraph, equation: Equation) -> FirstNonfinite | None:
    """The equation in a loop's body whose rule makes the cotangent, at the last such step."""
    if not is_loop(equation):
        return None
    operands = operands_of(equation, explanation.values)
    bars = [explanation.bars.get(v) for v in equation.outputs]
    for step, found in Loop(equation, operands, explanation.max_steps).reverse(bars):
        if any(bar is not None and is_bad(bar) for bar in found):
            flat = flatten_taken(step.graph, step.operands)
            swept = sweep(flat, step.operands, step.seeds, explanation.max_steps)
            inner = _reverse(EvaluatedGraph(flat, swept, step.seeds, explanation.max_steps))
            return None if inner is None else _inside(inner, equation, step)
    return None


def _summed(explanation: EvaluatedGraph, variable: Variable) -> FirstNonfinite:
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
    """Return the values of an equation's inputs by name; literals stand in its formula."""
    return {v.name: values[v] for v in equation.inputs if v.kind != "literal"}
