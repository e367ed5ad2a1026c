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
    """Text, and what there is beside: entries of a small array, least and greatest of a large."""
    text = format_value(array)
    host = _numbers(array)
    if host is None or host.ndim == 0:
        return [text]
    if host.size <= MOST_IN_FULL:
        return [text, [_entry(x) for x in host.reshape(-1)], list(host.shape)]
    summary = summarize(host)
    return [text, _described(summary)]


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
            line = reverse(equation, operand, known).text("+=")
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
