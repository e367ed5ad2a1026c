"""Operations as source: found in the families, edited, written to a file, imported."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import itertools
import pkgutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.corpus import families, hard
from benchmarks.corpus.declare import Case, Fault, Operation

_serial = itertools.count()


@dataclass(frozen=True)
class Loaded:
    """An operation imported from a file of its own.

    Attributes:
        function: the function with its hand-derived gradient.
        reference: the function to be differentiated for the truth.
        file: where its source stands.
        lines: those of the statements that were edited, from 1; empty for a right one.
    """

    function: Callable[..., Any]
    reference: Callable[..., Any]
    file: Path
    lines: frozenset[int]


@cache
def operations() -> tuple[Operation, ...]:
    """Every operation that a module in ``families`` or ``hard`` declares, in their order."""
    found = []
    for package in (families, hard):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            for value in vars(importlib.import_module(module.name)).values():
                values = value if isinstance(value, tuple) else (value,)
                found += [each for each in values if isinstance(each, Operation)]
    return tuple(found)


@cache
def cases() -> tuple[Case, ...]:
    """Every case: each operation right, on each of its inputs, and with each of its faults."""
    return tuple(itertools.chain.from_iterable(map(_cases_of, operations())))


def _cases_of(operation: Operation) -> Iterator[Case]:
    yield Case(f"{operation.name}:right", operation)
    for word in operation.also:
        yield Case(f"{operation.name}:right, {word}", operation, inputs=word)
    seen: Counter[str] = Counter()
    for fault in operation.faults:
        seen[fault.kind] += 1
        number = f" {seen[fault.kind]}" if seen[fault.kind] > 1 else ""
        yield Case(f"{operation.name}:{fault.kind}{number}", operation, fault)


def load(case: Case, folder: Path) -> Loaded:
    """Write the operation's module into the folder, with the case's fault, and import it."""
    text = _source(case.operation.module)
    lines: frozenset[int] = frozenset()
    if case.fault is not None:
        text, lines = edited(text, case.operation.name, case.fault)
    file = folder / f"{case.operation.module.rpartition('.')[2]}_{next(_serial)}.py"
    file.write_text(text, encoding="utf-8")
    module = _imported(file)
    function = getattr(module, case.operation.name)
    name = case.operation.reference
    reference = getattr(module, name) if name else _primal(function)
    return Loaded(function, reference, file, lines)


def edited(text: str, name: str, fault: Fault) -> tuple[str, frozenset[int]]:
    """The module's source with the fault in it, and the lines, from 1, that the edits touch.

    Raises:
        ValueError: if an old text does not stand exactly once in the operation's functions.
    """
    lines: set[int] = set()
    for old, new in fault.edits:
        starts = [
            at
            for first, last in _spans(text, name)
            for at in range(first, last)
            if text.startswith(old, at) and at + len(old) <= last
        ]
        if len(starts) != 1:
            raise ValueError(
                f"{name}: the text {old!r} stands {len(starts)} times in its backward pass, "
                "expected once"
            )
        at = starts[0]
        text = text[:at] + new + text[at + len(old) :]
        grown = new.count("\n") - old.count("\n")
        first = text.count("\n", 0, at) + 1
        lines = {line + grown if line > first else line for line in lines}
        lines |= {first + offset for offset in _changed_lines(old, new)}
    return text, frozenset(_whole_statements(text, lines))


def _changed_lines(old: str, new: str) -> list[int]:
    """Which of the new text's lines were not there before; its first where lines only went."""
    before = old.split("\n")
    changed = [i for i, line in enumerate(new.split("\n")) if line not in before]
    return changed or [0]


def _whole_statements(text: str, lines: set[int]) -> set[int]:
    """The lines, and with each those of the simple statement that it is a part of."""
    whole = set(lines)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.stmt) and not hasattr(node, "body"):
            own = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            if lines.intersection(own):
                whole.update(own)
    return whole


@cache
def _spans(text: str, name: str) -> list[tuple[int, int]]:
    """Where the functions ``name_…`` begin and end in the text, as characters."""
    starts = list(itertools.accumulate((len(line) for line in text.splitlines(True)), initial=0))
    return [
        (starts[node.lineno - 1], starts[node.end_lineno or node.lineno])
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith(f"{name}_")
    ]


@cache
def _source(module: str) -> str:
    file = importlib.import_module(module).__file__
    assert file is not None
    return Path(file).read_text(encoding="utf-8")


def _imported(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _primal(function: Any) -> Callable[..., Any]:
    """The undecorated body of a ``custom_vjp`` or ``custom_jvp``."""
    return getattr(function, "fun", function)
