"""Where a function was written: its file, its first line and its syntax tree.

>>> pair = (lambda x: x + 1, lambda x: x - 1)
>>> [ast.unparse(found.node) for found in map(definition, pair)]
['lambda x: x + 1', 'lambda x: x - 1']
"""

from __future__ import annotations

import ast
import linecache
from collections.abc import Callable
from functools import lru_cache
from types import CodeType
from typing import Any, NamedTuple

MOST_WRAPPED = 8  # decorators and partials around a function that are taken off


class Definition(NamedTuple):
    """A function as it was written.

    Attributes:
        node: the ``def`` or the lambda, its decorators included.
        file: of its source; of a notebook's cell or a prompt, the name that Python gave to it.
        line: its first line; of a decorated function that of the first decorator.
    """

    node: ast.Lambda | ast.FunctionDef
    file: str
    line: int


def definition(function: Callable[..., Any] | CodeType) -> Definition | None:
    """The definition of a function or method written in Python; None where no source is there.

    It may be given as what it was compiled to.

    Of several lambdas on one line it is the one whose parameters and extent the code has. What
    wraps a function (a decorator, ``functools.partial``) has a definition only if it is itself
    written in Python; ``unwrapped`` takes it off.
    """
    code = function if isinstance(function, CodeType) else getattr(function, "__code__", None)
    if not isinstance(code, CodeType):
        return None
    linecache.checkcache(code.co_filename)
    lines = linecache.getlines(code.co_filename, getattr(function, "__globals__", None))
    node = _node(code, tuple(lines))
    return node and Definition(node, code.co_filename, code.co_firstlineno)


def unwrapped(function: Any) -> Any:
    """The function inside decorators, JAX's transforms and partial applications."""
    for _ in range(MOST_WRAPPED):
        inner = getattr(function, "__wrapped__", None)
        if inner is None and not hasattr(function, "__code__"):
            inner = getattr(function, "func", None)
        if inner is None:
            break
        function = inner
    return function


def file_of(function: Any) -> str | None:
    """The file that a function was written in; None for what is not written in Python."""
    code = getattr(unwrapped(function), "__code__", None)
    return None if code is None else code.co_filename


@lru_cache(maxsize=2048)
def _node(code: CodeType, lines: tuple[str, ...]) -> ast.Lambda | ast.FunctionDef | None:
    found = [n for n in _functions("".join(lines)) if _first_line(n) == code.co_firstlineno]
    if code.co_name != "<lambda>":
        named = [n for n in found if isinstance(n, ast.FunctionDef) and n.name == code.co_name]
        return named[0] if named else None
    arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    lambdas = [n for n in found if isinstance(n, ast.Lambda) and _parameters(n) == arguments]
    if len(lambdas) < 2:
        return lambdas[0] if lambdas else None
    extent = _extent(code)
    return next((n for n in lambdas if _place(n.body) == extent), None)


@lru_cache(maxsize=64)
def _functions(text: str) -> tuple[ast.Lambda | ast.FunctionDef, ...]:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return ()
    return tuple(n for n in ast.walk(tree) if isinstance(n, ast.Lambda | ast.FunctionDef))


def _first_line(node: ast.Lambda | ast.FunctionDef) -> int:
    return min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])


def _parameters(node: ast.Lambda | ast.FunctionDef) -> tuple[str, ...]:
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
