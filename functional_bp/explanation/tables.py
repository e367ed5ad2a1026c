"""What stands in the tables, before any format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from functional_bp.explanation.formulas.transliteration import escaped, transliterated
from functional_bp.explanation.formulas.writing import LATEX, written
from functional_bp.explanation.numbers import (
    WORDS,
    format_number,
    format_shape,
    format_value,
    state_of,
    summary_of,
)
from functional_bp.explanation.record import EvaluatedGraph
from functional_bp.explanation.rows import ForwardRow, ReverseRow, forward_rows, reverse_rows
from functional_bp.graph.graph import format_bytes
from functional_bp.tables.table import Cell, Column, Line, State, Table

RANGE = " … "  # between the least and the greatest entry
Row = TypeVar("Row", ForwardRow, ReverseRow)

FORWARD = (
    Column("#", "right", 3), Column("equation"), Column("value"), Column("kept", "right", 2),
    Column("source", "left", 1), Column("note", "left", 4),
)  # fmt: skip
REVERSE = (
    Column("formula"), Column("upstream", "right"), Column("local", "right"),
    Column("downstream", "right"), Column("source", "left", 1), Column("note", "left", 2),
)  # fmt: skip


@dataclass(frozen=True)
class FormulaCell(Cell):
    """A cell that holds a formula, which ``write`` writes in LaTeX's mathematics."""

    write: Callable[[], str] = str


def in_latex(cell: Cell) -> str:
    """A cell in LaTeX: a formula in mathematics, anything else escaped."""
    if isinstance(cell, FormulaCell) and (formula := cell.write()):
        return f"${formula}$"
    return escaped(cell.text)


def tables(explanation: EvaluatedGraph, rows: int | None = None) -> tuple[Table, Table]:
    """The table of the forward sweep and that of the reverse sweep.

    Args:
        explanation: the function at a point.
        rows: of each table at most, the first and the last; None for all.
    """
    name, cells = explanation.graph.name, _Cells()
    ahead, back = forward_rows(explanation), reverse_rows(explanation)
    forward = [_forward(part, name, cells) for part in _ends(ahead, rows)]
    reverse = [_reverse(part, name, cells) for part in _ends(back, rows)]
    return (
        Table(f"{name}: forward sweep", FORWARD, _joined(forward, len(ahead), rows)).used(),
        Table(f"{name}: reverse sweep", REVERSE, _joined(reverse, len(back), rows)).used(),
    )


def _ends(rows: Sequence[Row], most: int | None) -> list[Sequence[Row]]:
    """All rows, or the first and the last of too many."""
    if most is None or len(rows) <= max(most, 2):
        return [rows]
    most = max(most, 2)
    return [rows[: (most + 1) // 2], rows[len(rows) - most // 2 :]]


def _joined(parts: Sequence[Iterable[Line]], count: int, most: int | None) -> tuple[Line, ...]:
    if len(parts) == 1:
        return tuple(parts[0])
    most = max(most or 0, 2)
    gap = Line("more", (Cell(f"⋮ {count - most:,} rows are left out ⋮"),))
    return (*parts[0], gap, *parts[1])


class _Cells:
    """The cells of values; what stands in several rows is described once."""

    def __init__(self) -> None:
        self._made: dict[Any, tuple[Any, Cell]] = {}

    def __call__(self, values: tuple[Any, ...], is_cotangent: bool = False) -> Cell:
        """The cell; arrays are told apart by identity, and held so that it stays theirs."""
        key = (*map(id, values), is_cotangent)
        if key not in self._made:
            self._made[key] = values, value_cell(values, is_cotangent)
        return self._made[key][1]


def value_cell(values: tuple[Any, ...], is_cotangent: bool = False) -> Cell:
    """Values as text: small ones written out, of others shape, norm, least and greatest entry."""
    if not values:
        return Cell()
    states: list[State] = [state for v in values if (state := state_of(v, is_cotangent))]
    texts, short = zip(*map(_described, values))
    return Cell("; ".join(texts), states[0] if states else "", "; ".join(short))


def described(array: Any) -> str:
    """A number, a short vector, or shape, norm and range; one number if all entries are equal.

    >>> described(np.array([1.0, 2.0])), described(np.array([[1.0, 2.0], [3.0, 4.0]]))
    ('(1.00 2.00)', '2×2, ‖·‖ = 5.48, 1.00 … 4.00')
    >>> described(np.zeros((2, 3)))
    '2×3, all 0.00'
    """
    return _described(array)[0]


def _described(array: Any) -> tuple[str, str]:
    """The text of a value, and the same without its range."""
    short, summary = format_value(array), summary_of(array)
    if summary is None or np.isnan(summary.least):
        return short, short
    if summary.least == summary.greatest and not summary.nans + summary.infinities:
        short = f"{format_shape(summary.shape)}, all {format_number(summary.least)}"
        return short, short
    return f"{short}, {format_number(summary.least)}{RANGE}{format_number(summary.greatest)}", short


def _scope(scope: str, name: str) -> Line:
    return Line("scope", (Cell(scope or name),))


def _forward(rows: Sequence[ForwardRow], name: str, cells: _Cells) -> Iterable[Line]:
    scope = ""
    for row in rows:
        if row.scope != scope:
            scope = row.scope
            yield _scope(scope, name)
        value = cells(row.values)
        notes = [row.inside, WORDS.get(value.state, "")]
        yield Line(row.kind, (
            Cell(str(row.number) if row.number else ""),
            FormulaCell(row.formula.text(), write=row.formula.latex),
            value,
            Cell(format_bytes(row.kept) if row.kept else ""),
            Cell(row.source),
            Cell("; ".join(filter(None, notes))),
        ))  # fmt: skip


def _reverse(rows: Sequence[ReverseRow], name: str, cells: _Cells) -> Iterable[Line]:
    scope = ""
    for row in rows:
        if row.scope != scope:
            scope = row.scope
            yield _scope(scope, name)
        downstream = cells((row.downstream,), is_cotangent=True)
        words = {"seed": "seed", "sum": "branches sum", "share": ""}[row.kind]
        note = "; ".join(filter(None, (words, WORDS.get(downstream.state, ""))))
        yield Line(row.kind, (
            _formula(row),
            cells(row.upstream, is_cotangent=True),
            Cell() if row.local is None else cells((row.local,)),
            downstream,
            Cell(row.source),
            Cell(note),
        ))  # fmt: skip


def _formula(row: ReverseRow) -> FormulaCell:
    bar, sign = written(row.variable), "+=" if row.is_share else "="
    bar_latex = lambda: written(row.variable, LATEX)
    if (formula := row.formula) is not None:
        tex = lambda: formula.latex(sign).replace("+=", r"\mathrel{+}=", 1)
        return FormulaCell(formula.text(sign), short=formula.brief(sign), write=tex)
    if row.kind == "seed":
        value = described(row.downstream)
        tex = lambda: f"{bar_latex()} {sign} {transliterated(value)}"
        return FormulaCell(f"{bar} {sign} {value}", write=tex)
    shares = [format_value(part) for part in row.parts]
    if any(summary_of(part) for part in row.parts):
        uses = f"sum of {len(shares)} uses"
        tex = lambda: rf"{bar_latex()} = \text{{{uses}}}"
        return FormulaCell(f"{bar} = {uses}", write=tex)
    terms = " + ".join(f"({s})" if s.startswith("−") else s for s in shares)
    tex = lambda: f"{bar_latex()} = {transliterated(terms)}"
    return FormulaCell(f"{bar} = {terms}", write=tex)
