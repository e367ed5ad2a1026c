"""What stands in the tables, before any format."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from functional_bp.explain.explanation import Explanation
from functional_bp.explain.formulas import latex, unicode
from functional_bp.explain.numbers import format_number, format_shape, format_value, summarize
from functional_bp.explain.rows import ForwardRow, ReverseRow, forward_rows, reverse_rows
from functional_bp.explain.states import WORDS, State, state_of
from functional_bp.graph.text import format_bytes

RANGE = " … "  # between the least and the greatest entry


@dataclass(frozen=True)
class Cell:
    """One entry.

    Attributes:
        text: in Unicode.
        formula: in LaTeX's mathematics, if it is a formula.
        state: what is remarkable about the value.
        short: the text where there is less room, "" for the same.
    """

    text: str = ""
    formula: str = ""
    state: State = ""
    short: str = ""


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        heading: what stands above it.
        align: "left" or "right".
        drop: where the width does not suffice, columns go in the order of this number; 0 stays.
    """

    heading: str
    align: str = "left"
    drop: int = 0


@dataclass(frozen=True)
class Line:
    """One row of a table: its cells, and what kind of row it is ("input", "sum", "scope", …)."""

    kind: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """A table with a title."""

    title: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]

    def used(self) -> Table:
        """Without the columns in which nothing stands."""
        on = [any(line.cells[k].text for line in self.lines if line.kind != "scope")
              for k in range(len(self.columns))]  # fmt: skip
        return self.only([k for k, used in enumerate(on) if used])

    def only(self, chosen: Iterable[int]) -> Table:
        """With the chosen columns alone; a scope's line keeps its one cell."""
        chosen = list(chosen)
        return Table(
            self.title,
            tuple(self.columns[k] for k in chosen),
            tuple(
                line if line.kind == "scope"
                else Line(line.kind, tuple(line.cells[k] for k in chosen))
                for line in self.lines
            ),
        )  # fmt: skip


FORWARD = (
    Column("#", "right", 3), Column("equation"), Column("value"), Column("kept", "right", 2),
    Column("source", "left", 1), Column("note", "left", 4),
)  # fmt: skip
REVERSE = (
    Column("formula"), Column("upstream", "right"), Column("local", "right"),
    Column("downstream", "right"), Column("source", "left", 1), Column("note", "left", 2),
)  # fmt: skip


def shortened(table: Table) -> Table:
    """The table with the short form of every cell."""
    lines = tuple(
        Line(line.kind, tuple(replace(c, text=c.short or c.text) for c in line.cells))
        for line in table.lines
    )
    return replace(table, lines=lines)


def tables(explanation: Explanation) -> tuple[Table, Table]:
    """The table of the forward sweep and that of the reverse sweep."""
    name = explanation.graph.name
    forward = Table(
        f"{name}: forward sweep", FORWARD, tuple(_forward(forward_rows(explanation), name))
    )
    reverse = Table(
        f"{name}: reverse sweep", REVERSE, tuple(_reverse(reverse_rows(explanation), name))
    )
    return forward.used(), reverse.used()


def value_cell(values: tuple[Any, ...], is_cotangent: bool = False) -> Cell:
    """Values as text: small ones written out, of others shape, norm, least and greatest entry."""
    if not values:
        return Cell()
    states: list[State] = [state for v in values if (state := state_of(v, is_cotangent))]
    texts = [described(v) for v in values]
    short = "; ".join(text.rpartition(", ")[0] if RANGE in text else text for text in texts)
    return Cell("; ".join(texts), "", states[0] if states else "", short)


def described(array: Any) -> str:
    """A number, a short vector, or shape, norm and range; one number if all entries are equal.

    >>> described(np.array([1.0, 2.0])), described(np.array([[1.0, 2.0], [3.0, 4.0]]))
    ('(1.00 2.00)', '2×2, ‖·‖ = 5.48, 1.00 … 4.00')
    >>> described(np.zeros((2, 3)))
    '2×3, all 0.00'
    """
    text = format_value(array)
    if "‖" not in text:
        return text
    summary = summarize(array)
    if np.isnan(summary.least):
        return text
    if summary.least == summary.greatest and not summary.nans + summary.infinities:
        return f"{format_shape(summary.shape)}, all {format_number(summary.least)}"
    return f"{text}, {format_number(summary.least)}{RANGE}{format_number(summary.greatest)}"


def _scope(scope: str, name: str) -> Line:
    return Line("scope", (Cell(scope or name),))


def _forward(rows: list[ForwardRow], name: str) -> Iterable[Line]:
    scope, number = "", 0
    for row in rows:
        if row.scope != scope:
            scope = row.scope
            yield _scope(scope, name)
        is_equation = row.kind == "equation"
        number += is_equation
        value = value_cell(row.values)
        notes = [row.inside, WORDS.get(value.state, "")]
        yield Line(row.kind, (
            Cell(str(number) if is_equation else ""),
            Cell(row.formula.text(), row.formula.latex()),
            value,
            Cell(format_bytes(row.kept) if row.kept else ""),
            Cell(row.source),
            Cell("; ".join(filter(None, notes))),
        ))  # fmt: skip


def _reverse(rows: list[ReverseRow], name: str) -> Iterable[Line]:
    scope = ""
    for row in rows:
        if row.scope != scope:
            scope = row.scope
            yield _scope(scope, name)
        downstream = value_cell((row.downstream,), is_cotangent=True)
        words = {"seed": "seed", "sum": "branches sum", "share": ""}[row.kind]
        note = "; ".join(filter(None, (words, WORDS.get(downstream.state, ""))))
        yield Line(row.kind, (
            _formula(row),
            value_cell(row.upstream, is_cotangent=True),
            Cell() if row.local is None else value_cell((row.local,)),
            downstream,
            Cell(row.source),
            Cell(note),
        ))  # fmt: skip


def _formula(row: ReverseRow) -> Cell:
    bar, bar_latex = unicode.written(row.variable), latex.written(row.variable)
    if row.formula is not None:
        sign = "+=" if row.is_share else "="
        tex = row.formula.latex(sign).replace("+=", r"\mathrel{+}=", 1)
        return Cell(row.formula.text(sign), tex, short=row.formula.brief(sign))
    if row.kind == "seed":
        sign = "+=" if row.is_share else "="
        value = described(row.downstream)
        return Cell(f"{bar} {sign} {value}", f"{bar_latex} {sign} {latex.transliterated(value)}")
    shares = [format_value(part) for part in row.parts]
    if any("‖" in share for share in shares):
        return Cell(
            f"{bar} = sum of {len(shares)} uses",
            rf"{bar_latex} = \text{{sum of {len(shares)} uses}}",
        )
    terms = " + ".join(f"({s})" if s.startswith("−") else s for s in shares)
    return Cell(f"{bar} = {terms}", f"{bar_latex} = {latex.transliterated(terms)}")
