"""What the forward pass keeps, as lines of its own: a stale residual is repaired where it is kept.

``return y, (t, t)`` leaves no equation either, and both residuals are one value; each goes through
an equation of its own, which stands for its place in the forward pass's return.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.core import Tracer

from functional_bp.check.diagnosis.repairs.aliases import COPY
from functional_bp.check.diagnosis.repairs.program import Equation, Program, Span
from functional_bp.check.diagnosis.repairs.source import read

PREFIX = "kept "


def marked(kept: Any) -> Any:
    """The residuals, each under a name of its own."""
    leaves, tree = jax.tree_util.tree_flatten(kept)
    named = [
        checkpoint_name(leaf, f"{PREFIX}{i}") if isinstance(leaf, Tracer) else leaf
        for i, leaf in enumerate(leaves)
    ]
    return jax.tree_util.tree_unflatten(tree, named)


def with_kept_lines(program: Program, home: str | None) -> Program:
    """The program with the residuals' equations at the forward pass's return."""
    places = [(i, _number(e)) for i, e in enumerate(program.equations)]
    numbers = {i: number for i, number in places if number is not None}
    if not numbers or home is None:
        return program
    earlier = program.equations[: min(numbers)]
    spans = _returned([s for e in earlier for s in e.spans if s.file == home], home)
    equations = list(program.equations)
    for i, number in numbers.items():
        at = (spans[number],) if number < len(spans) else spans[-1:]
        params = {"alias": True, "use": None}
        equations[i] = replace(equations[i], primitive=COPY, params=params, spans=tuple(at))
    return replace(program, equations=tuple(equations))


def _number(equation: Equation) -> int | None:
    name = str(equation.params.get("name", ""))
    is_kept = equation.name == "name" and name.startswith(PREFIX)
    return int(name.removeprefix(PREFIX)) if is_kept else None


def _returned(spans: list[Span], home: str) -> list[Span]:
    """The expressions that the forward pass returns as residuals, in order."""
    source = read(home)
    functions = {s.function.rpartition(".")[2]: s.function for s in spans}
    for node in source.functions:
        if isinstance(node, ast.FunctionDef) and node.name in functions:
            for kept in _kept(node):
                parts = list(kept.elts) if isinstance(kept, ast.Tuple | ast.List) else [kept]
                return [_span(home, functions[node.name], part) for part in parts]
    return []


def _kept(function: ast.FunctionDef) -> Iterator[ast.expr]:
    for node in ast.walk(function):
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):
            if len(node.value.elts) == 2:
                yield node.value.elts[1]


def _span(file: str, function: str, node: ast.expr) -> Span:
    end = (node.end_lineno or node.lineno, node.end_col_offset or 0)
    return Span(file, function, node.lineno, node.col_offset, *end)
