"""The source of a person's code, and which of it an equation was made by."""

from __future__ import annotations

import ast
import linecache
import os
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

from functional_bp.check.diagnosis.repairs.program import Span

PACKAGE = os.path.abspath(os.path.join(os.path.dirname(__file__), *[os.pardir] * 2))


class Source:
    """The lines of a file and its syntax tree, None where it cannot be read or parsed."""

    def __init__(self, file: str) -> None:
        self.lines = linecache.getlines(file)
        self.ends: dict[tuple[int, int], list[Any]] = {}
        self.targets: dict[int, str] = {}  # id of an assigned expression -> its one name
        self.functions: list[ast.FunctionDef | ast.Lambda] = []
        try:
            self.tree: ast.Module | None = ast.parse("".join(self.lines))
        except (SyntaxError, ValueError):
            self.tree = None
        for node in ast.walk(self.tree) if self.tree is not None else ():
            if isinstance(node, ast.expr | ast.AugAssign):
                end = (node.end_lineno or 0, node.end_col_offset or 0)
                self.ends.setdefault(end, []).append(node)
            if isinstance(node, ast.FunctionDef | ast.Lambda):
                self.functions.append(node)
            if isinstance(node, ast.Assign) and len(node.targets) == 1:
                if isinstance(node.targets[0], ast.Name):
                    self.targets[id(node.value)] = node.targets[0].id

    def node(self, span: Span) -> Any:
        """The smallest node with the span's end that holds its start."""
        start = (span.line, span.column)
        best = None
        for node in self.ends.get((span.end_line, span.end_column), ()):
            if (node.lineno, node.col_offset) <= start and (
                best is None or (node.lineno, node.col_offset) > (best.lineno, best.col_offset)
            ):
                best = node
        return best

    def holding(self, spans: Sequence[Span]) -> ast.expr | None:
        """The smallest expression that holds all of the spans."""
        first = min((span.line, span.column) for span in spans)
        last = max((span.end_line, span.end_column) for span in spans)
        holding = [
            node
            for end, nodes in self.ends.items()
            for node in nodes
            if (node.lineno, node.col_offset) <= first and end >= last
        ]
        latest = lambda n: (n.lineno, n.col_offset, -n.end_lineno, -n.end_col_offset)  # noqa: E731
        inner = max(holding, key=latest, default=None)
        return inner if isinstance(inner, ast.expr) else None

    def function(self, line: int) -> ast.FunctionDef | ast.Lambda | None:
        """The innermost function whose code holds a line."""
        holding = [f for f in self.functions if f.lineno <= line <= (f.end_lineno or 0)]
        return max(holding, key=lambda f: f.lineno, default=None)

    def starting(self, line: int) -> ast.FunctionDef | ast.Lambda | None:
        """The function whose code starts at a line, its decorators counted."""
        for function in self.functions:
            decorators = getattr(function, "decorator_list", [])
            if line in (function.lineno, *(d.lineno for d in decorators)):
                return function
        return None


@lru_cache(maxsize=32)
def _read(file: str, stamp: float) -> Source:
    return Source(file)


def read(file: str) -> Source:
    """The source of a file, read again where the file has changed."""
    linecache.checkcache(file)
    return _read(file, os.path.getmtime(file) if os.path.exists(file) else 0.0)


def is_own(file: str, home: str | None) -> bool:
    """Whether a file is the person's: the checked function's, or none of this package's."""
    return file == home or not os.path.abspath(file).startswith(PACKAGE + os.sep)


def own_span(spans: Iterable[Span], home: str | None) -> Span | None:
    """The innermost expression in the person's code; the checked function's file comes first."""
    spans = [span for span in spans if is_own(span.file, home)]
    return next((span for span in spans if span.file == home), spans[0] if spans else None)


def home_of(function: Callable[..., Any] | None) -> str | None:
    """The file that a function was written in."""
    for _ in range(8):
        code = getattr(function, "__code__", None)
        if code is not None and not hasattr(function, "__wrapped__"):
            return code.co_filename
        inner = getattr(function, "__wrapped__", None) or getattr(function, "func", None)
        if inner is None:
            return None if code is None else code.co_filename
        function = inner
    return None
