"""The syntax tree of a function, also of one lambda among several on a line."""

from __future__ import annotations

import ast
import linecache
from collections.abc import Callable
from functools import lru_cache
from types import CodeType
from typing import Any

Node = ast.Lambda | ast.FunctionDef


def syntax(function: Callable[..., Any]) -> Node | None:
    """The syntax tree of a function written in Python; None where its source cannot be read."""
    code = getattr(function, "__code__", None)
    if not isinstance(code, CodeType):
        return None
    linecache.checkcache(code.co_filename)
    lines = linecache.getlines(code.co_filename, getattr(function, "__globals__", None))
    return _syntax(code, tuple(lines))


@lru_cache(maxsize=2048)
def _syntax(code: CodeType, lines: tuple[str, ...]) -> Node | None:
    text = "".join(lines)
    found = [n for n in _functions(text) if _first_line(n) == code.co_firstlineno]
    if code.co_name != "<lambda>":
        named = [n for n in found if isinstance(n, ast.FunctionDef) and n.name == code.co_name]
        return named[0] if named else None
    arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    lambdas = [n for n in found if isinstance(n, ast.Lambda) and _names(n) == arguments]
    if len(lambdas) < 2:
        return lambdas[0] if lambdas else None
    extent = _extent(code)
    return next((n for n in lambdas if _place(n.body) == extent), None)


@lru_cache(maxsize=64)
def _functions(text: str) -> tuple[Node, ...]:
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return ()
    return tuple(n for n in ast.walk(tree) if isinstance(n, ast.Lambda | ast.FunctionDef))


def _first_line(node: Node) -> int:
    return min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])


def _names(node: Node) -> tuple[str, ...]:
    arguments = node.args
    return tuple(a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs))


def _place(node: ast.expr) -> tuple[int, int, int, int]:
    return (node.lineno, node.col_offset, node.end_lineno or 0, node.end_col_offset or 0)


def _extent(code: CodeType) -> tuple[int, int, int, int]:
    """From the first to the last character that the code's instructions come from."""
    starts, ends = [], []
    for line, end_line, column, end_column in code.co_positions():
        if None not in (line, end_line, column, end_column) and end_column:
            starts.append((line, column))
            ends.append((end_line, end_column))
    return (*min(starts), *max(ends)) if starts else (0, 0, 0, 0)
