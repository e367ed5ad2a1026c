"""The page is one HTML file, with what it tells of each value and equation as JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from html import escape
from importlib import resources
from itertools import chain
from typing import Any

import numpy as np

from functional_bp.explanation.formulas.equations import forward, reverse, symbols
from functional_bp.explanation.nonfinite import first_nonfinite
from functional_bp.explanation.numbers import (
    Summary,
    format_number,
    format_value,
    numbers_of,
    summarize,
)
from functional_bp.explanation.page.drawing import Drawer
from functional_bp.explanation.pictures.contents import Contents, contents
from functional_bp.explanation.pictures.scene import DARK, LIGHT, spans
from functional_bp.explanation.record import EvaluatedGraph
from functional_bp.explanation.scopes import Scope, scopes, views
from functional_bp.explanation.signals import signals
from functional_bp.graph.graph import Equation, Variable, short_place

MOST_IN_FULL = 64  # entries of an array that the page holds itself
BARS = 25  # of a histogram


def variable_facts(explanation: EvaluatedGraph, variable: Variable, name: str) -> dict[str, Any]:
    """Tell name (as markup too), type, value and gradient, size of the gradient, bytes kept."""
    facts: dict[str, Any] = {"n": variable.name, "t": variable.type, "k": variable.kind, "m": name}
    if variable in explanation.values:
        facts["v"] = array_facts(explanation.values[variable])
    if variable in explanation.bars:
        bar = explanation.bars[variable]
        facts |= {"g": array_facts(bar), "z": size_of(bar)}
    return _said({**facts, "b": explanation.kept_bytes.get(variable)})


def array_facts(array: Any) -> list[Any]:
    """Write a value, and beside it a small array's entries or a large one's distribution."""
    text = format_value(array)
    host = numbers_of(array)
    if host is None or host.ndim == 0:
        return [text]
    if host.size <= MOST_IN_FULL:
        return [text, [_entry(x) for x in host.reshape(-1)], list(host.shape)]
    summary = summarize(host)
    return [text, _described(summary), *histogram(host, summary)]


def histogram(array: np.ndarray, summary: Summary) -> list[str]:
    """Say how the finite entries lie between the least and the greatest: one digit for each bar.

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
    """Return the root mean square of the entries; "zero", "nan" or "inf" where that says more."""
    host = numbers_of(array)
    if host is None or not host.size:
        return "zero"
    summary = summarize(host)
    if summary.nans + summary.infinities:
        return "nan" if summary.nans else "inf"
    size = summary.norm / math.sqrt(host.size)
    return float(f"{size:.4g}") if size else "zero"


def equation_facts(
    explanation: EvaluatedGraph, equation: Equation, number: Mapping[Variable, int], known: Any
) -> dict[str, Any]:
    """Tell operation, costs, and what operands add to their cotangents by which formula."""
    facts: dict[str, Any] = {
        "o": equation.operation + (f" {equation.label}" if equation.label else ""),
        "i": [number.get(v, _literal(v)) for v in equation.inputs],
        "y": [number[v] for v in equation.outputs],
        "f": forward(equation, known).text(),
    }
    pulls = []
    for operand, variable in enumerate(equation.inputs):
        share = explanation.share(equation, operand)
        if share is not None:
            sign = "+=" if explanation.share_counts[variable] > 1 else "="
            line = reverse(equation, operand, known).text(sign)
            pulls.append([operand, line, format_value(share)])
    rule = equation.rule
    is_usual = rule.rule is not None and rule.kind in ("pullback", "joint")
    return facts | _said({
        "p": pulls,
        "c": equation.flops,
        "w": short_place(equation.source),
        "q": ", ".join(f"{key}={value}" for key, value in equation.parameters.items()),
        "s": equation.scope,
        "r": "" if is_usual else rule.kind,
    })  # fmt: skip


def _said(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts that say something: none that is empty or 0."""
    return {key: fact for key, fact in facts.items() if fact}


def first_facts(explanation: EvaluatedGraph) -> dict[str, Any] | None:
    """Tell the first NaN or infinity: the equation or the loop around it, the entry, the cause."""
    found = first_nonfinite(explanation)
    if found is None:
        return None
    equation = found.inside[0].equation if found.inside else found.equation
    rows = {"in": found.formula, **found.rows, "line": found.line}
    return {
        "e": -1 if equation is None else equation.index,
        "what": "value" if found.direction == "forward" else "gradient",
        "entry": str(found.entry),
        "rows": _said(rows),
        "cause": found.cause,
        "advice": found.advice,
    }


def _literal(variable: Variable) -> str:
    return format_value(variable.value) if variable.value is not None else variable.name


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


NAME_SIZE = 14.0
MOST_IN_NOTEBOOK = 800  # equations; about a megabyte
SCRIPTS = ("unfolding", "picture", "map", "opening", "colour", "panel", "page")  # in this order


def page(explanation: EvaluatedGraph, title: str | None = None) -> str:
    """Write one self-contained HTML file: the graph, scope by scope, with values and gradients.

    Example:
        >>> import functional_bp as bp
        >>> text = page(bp.explain(lambda x, y: x * y, 2.0, 3.0))
        >>> text.startswith("<!doctype html>"), "http://" in text.replace("http://www.w3.org", "")
        (True, False)
    """
    shown = contents(explanation)
    root = scopes(shown)
    title = title or explanation.graph.name
    data = _data(explanation, shown, root, title)
    # a "</script>" or "<!--" inside a name would end the data
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    parts = {
        "title": escape(title),
        "style": f"{_palette()}\n{_own('page.css')}",
        "script": "\n".join(_own(f"{name}.js") for name in SCRIPTS),
        "data": text.replace("<", "\\u003c"),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _own("page.html"))


def frame(explanation: EvaluatedGraph) -> str | None:
    """Put the page inside a notebook; None where it is too large for the notebook's file.

    A notebook then shows the still picture, with scopes closed.
    """
    if len(explanation.graph) > MOST_IN_NOTEBOOK:
        return None
    return (
        f'<iframe srcdoc="{escape(page(explanation))}" title="{escape(explanation.graph.name)}" '
        'style="width:100%;height:620px;border:1px solid #8884;border-radius:8px"></iframe>'
    )


def _own(file: str) -> str:
    """A file that stands beside this one."""
    return (
        resources.files("functional_bp.explanation.page").joinpath(file).read_text(encoding="utf-8")
    )


def _palette() -> str:
    """The colours of still pictures as properties of the page."""
    rules = []
    for selector, theme in ((":root", LIGHT), (':root[data-theme="dark"]', DARK)):
        colors = ";".join(f"--{role}:{color}" for role, color in theme._asdict().items())
        rules.append(f"{selector}{{{colors}}}")
    return "\n".join(rules)


def _data(explanation: EvaluatedGraph, shown: Contents, root: Scope, title: str) -> dict[str, Any]:
    graph = explanation.graph
    literals = [v for v in shown.maker if v.kind == "literal"]
    variables = [*graph.variables, *literals]
    number = {v: i for i, v in enumerate(variables)}
    every = list(root.walk())
    scope_number = {scope: i for i, scope in enumerate(every)}
    drawn = _drawn(explanation, shown)
    home = {node: scope for scope in every for node in scope.items if not isinstance(node, Scope)}
    held = _held(graph.equations, drawn, home, root)
    counts = {scope: len(found) for scope, found in held.items()}
    drawer = Drawer(explanation, shown, number, scope_number, counts)
    seen = views(root, shown)
    known = symbols(graph)
    first = first_facts(explanation)
    lines = {v: spans(line, NAME_SIZE) for v, line in shown.names.items()}
    equations = [equation_facts(explanation, e, number, known) for e in graph]
    for equation, node in drawn.items():
        equations[equation.index]["d"] = [scope_number[home[node]], node.equations[0].index]
    return {
        "title": title,
        "name": graph.name,
        "variables": [variable_facts(explanation, v, lines.get(v, "")) for v in variables],
        "equations": equations,
        "scopes": [
            {
                "p": scope.path,
                "n": scope.name,
                "u": scope_number[scope.parent] if scope.parent else -1,
                "e": [e.index for e in held[scope]],
                **({"note": scope.note} if scope.note else {}),
                **drawer.draw(seen[scope]),
            }
            for scope in every
        ],
        **({"first": first} if first else {}),
        "signals": [[s.kind, number[s.variable], s.message, s.line] for s in signals(explanation)],
    }


def _drawn(explanation: EvaluatedGraph, shown: Contents) -> dict[Equation, Any]:
    """The operator that stands for an equation: of what is part of a wire, the next that is drawn.

    What no output depends on has none.
    """
    drawn = {n.equations[0]: n for n in shown.nodes if n.kind == "operator"}
    graph = explanation.graph
    for equation in reversed(graph.equations):
        if equation not in drawn:
            after = (drawn[u] for v in equation.outputs for u in graph.uses(v) if u in drawn)
            before = (shown.maker.get(v) for v in equation.inputs)
            operators = (n for n in before if n is not None and n.kind == "operator")
            found = next(chain(after, operators), None)
            if found is not None:
                drawn[equation] = found
    return drawn


def _held(
    equations: tuple[Equation, ...],
    drawn: Mapping[Equation, Any],
    home: Mapping[Any, Scope],
    root: Scope,
) -> dict[Scope, list[Equation]]:
    """The equations of each scope, with those of the scopes inside; all are in the whole graph."""
    held: dict[Scope, list[Equation]] = {scope: [] for scope in root.walk()}
    for equation in equations:
        node = drawn.get(equation)
        for scope in (home[node] if node is not None else root).chain:
            held[scope].append(equation)
    return held
