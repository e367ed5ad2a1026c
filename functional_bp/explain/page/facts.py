"""What the page tells of each value and of each equation, as JSON has it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from functional_bp.explain.explanation import Explanation
from functional_bp.explain.formulas.equations import forward, reverse
from functional_bp.explain.formulas.symbols import symbols
from functional_bp.explain.numbers import Summary, format_number, format_value, summarize
from functional_bp.graph.parts import Equation, Variable

MOST_IN_FULL = 64  # entries of an array that the page holds itself
BARS = 25  # of a histogram


def variable_facts(explanation: Explanation, variable: Variable, name: str) -> dict[str, Any]:
    """Name, type, value and gradient, size of the gradient, bytes kept.

    Args:
        explanation: the function at a point.
        variable: of its graph.
        name: as markup, "" for one without a name of its own.
    """
    facts: dict[str, Any] = {"n": variable.name, "t": variable.type, "k": variable.kind}
    if name:
        facts["m"] = name
    if variable in explanation.values:
        facts["v"] = array_facts(explanation.values[variable])
    if variable in explanation.bars:
        bar = explanation.bars[variable]
        facts["g"] = array_facts(bar)
        facts["z"] = size_of(bar)
    kept = explanation.kept_bytes.get(variable)
    if kept:
        facts["b"] = kept
    return facts


def array_facts(array: Any) -> list[Any]:
    """Text, and what there is beside: entries of a small array, of a large one its distribution."""
    text = format_value(array)
    host = _numbers(array)
    if host is None or host.ndim == 0:
        return [text]
    if host.size <= MOST_IN_FULL:
        return [text, [_entry(x) for x in host.reshape(-1)], list(host.shape)]
    summary = summarize(host)
    return [text, _described(summary), *histogram(host, summary)]


def histogram(array: np.ndarray, summary: Summary) -> list[str]:
    """How the finite entries lie between the least and the greatest: one digit for each bar.

    >>> x = np.array([0.0, 0.0, 0.0, 1.0])
    >>> histogram(x, summarize(x))
    ['9000000000000000000000003']
    """
    if not summary.greatest > summary.least or not np.isfinite(summary.greatest - summary.least):
        return []
    plain = np.abs(array) if array.dtype.kind == "c" else array.astype(np.float64)
    plain = plain[np.isfinite(plain)]
    place = (plain - summary.least) / (summary.greatest - summary.least)
    counts = np.bincount(np.minimum((BARS * place).astype(int), BARS - 1).ravel(), minlength=BARS)
    heights = np.ceil(9 * counts / counts.max()).astype(int)  # what is there is seen
    return ["".join(map(str, heights))]


def size_of(array: Any) -> float | str:
    """The root mean square of the entries; "zero", "nan" or "inf" where that says more."""
    host = _numbers(array)
    if host is None or not host.size:
        return "zero"
    summary = summarize(host)
    if summary.nans:
        return "nan"
    if summary.infinities:
        return "inf"
    size = summary.norm / math.sqrt(host.size)
    return float(f"{size:.4g}") if size else "zero"


def equation_facts(
    explanation: Explanation, equation: Equation, number: Mapping[Variable, int], known: Any
) -> dict[str, Any]:
    """Operation, operands with what they add to their cotangents and by which formula, costs."""
    facts: dict[str, Any] = {
        "o": equation.operation + (f" {equation.label}" if equation.label else ""),
        "i": [number.get(v, _literal(v)) for v in equation.inputs],
        "y": [number[v] for v in equation.outputs],
        "f": forward(equation, known).text(),
    }
    pulls = []
    for operand in range(len(equation.inputs)):
        share = explanation.share(equation, operand)
        if share is not None:
            sign = "+=" if explanation.share_counts[equation.inputs[operand]] > 1 else "="
            line = reverse(equation, operand, known).text(sign)
            pulls.append([operand, line, format_value(share)])
    if pulls:
        facts["p"] = pulls
    if equation.flops:
        facts["c"] = equation.flops
    if equation.source:
        file, line = equation.source
        facts["w"] = f"{os.path.basename(file)}:{line}"
    if equation.parameters:
        facts["q"] = ", ".join(f"{key}={value}" for key, value in equation.parameters.items())
    if equation.scope:
        facts["s"] = equation.scope
    rule = equation.rule
    if rule.rule is None or rule.kind not in ("pullback", "joint"):
        facts["r"] = rule.kind
    return facts


def first_facts(explanation: Explanation) -> dict[str, Any] | None:
    """The first NaN or infinity: the equation, or the loop that holds it, the entry, the cause."""
    found = explanation.first_nonfinite()
    if found is None:
        return None
    equation = found.inside[0].equation if found.inside else found.equation
    rows = {
        "in": found.formula,
        "inside": "; ".join(map(str, found.inside)),
        "rule": found.rule,
        "upstream": ", ".join(map(str, found.upstream)),
        "kept": ", ".join(map(str, found.kept)),
        "operands": ", ".join(map(str, found.operands)),
        "line": found.line,
    }
    return {
        "e": -1 if equation is None else equation.index,
        "what": "value" if found.direction == "forward" else "gradient",
        "entry": str(found.entry),
        "rows": {label: text for label, text in rows.items() if text},
        "cause": found.cause,
        "advice": found.advice,
    }


def signal_facts(explanation: Explanation, number: Mapping[Variable, int]) -> list[list[Any]]:
    """What is notable about gradients: kind, variable, message and line."""
    return [[s.kind, number[s.variable], s.message, s.line] for s in explanation.signals()]


def graph_symbols(explanation: Explanation) -> Any:
    """The symbols with which formulas name the graph's variables."""
    return symbols(explanation.graph)


def _literal(variable: Variable) -> str:
    return format_value(variable.value) if variable.value is not None else variable.name


def _numbers(array: Any) -> np.ndarray | None:
    """The entries on the host; None for what has no numbers (a key, a token)."""
    try:
        host = np.asarray(array)
    except (TypeError, ValueError):
        return None
    if host.dtype.kind == "V":  # bfloat16 and the like
        host = host.astype(np.float32)
    return host if host.dtype.kind in "biufc" else None


def _entry(number: Any) -> str:
    plain = np.asarray(number)
    if plain.dtype.kind == "f" and np.isfinite(plain):
        return f"{float(plain):.5g}".replace("-", "−")
    return format_number(number)


def _described(summary: Summary) -> str:
    parts = [f"from {format_number(summary.least)} to {format_number(summary.greatest)}"]
    if summary.zeros:
        count = math.prod(summary.shape)
        parts.append("all zero" if summary.zeros == count else f"{summary.zeros} of {count} zero")
    parts += [f"{n} {what}" for n, what in ((summary.nans, "NaN"), (summary.infinities, "∞")) if n]
    return ", ".join(parts)
