"""Both sweeps step by step, as tables: forward by equation, in reverse by use of a variable.

A row has the formula, read off the rules, and the numbers at the point. In reverse, upstream ×
local = downstream: the local gradient is what a pullback makes of 1, and stands where an operation
is small enough to show it. ``tables`` puts the rows in cells, before any format.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from functional_bp.engine.sweeps import evaluate
from functional_bp.engine.transforms import vjp
from functional_bp.explanation.formulas.equations import (
    barred_symbol,
    forward,
    reverse,
    symbols,
)
from functional_bp.explanation.formulas.expression import Expression, Symbol
from functional_bp.explanation.formulas.formula import Formula
from functional_bp.explanation.formulas.transliteration import escaped, transliterated
from functional_bp.explanation.formulas.writing import LATEX, written
from functional_bp.explanation.full_sweeps import Share, operands_of
from functional_bp.explanation.numbers import (
    MOST_SHOWN,
    WORDS,
    format_number,
    format_shape,
    format_value,
    state_of,
    summary_of,
)
from functional_bp.explanation.record import EvaluatedGraph
from functional_bp.graph.graph import Equation, Graph, Variable, format_bytes, short_place
from functional_bp.tables.table import Cell, Column, Line, State, Table

MOST_LOCALS = 400  # uses of variables; beyond that nobody reads numbers
DIFFERENTIATED = ("custom_jvp_call", "custom_vjp_call")  # closed, and yet quick to run again


def local_gradients(
    shares: Mapping[Share, Any], values: Mapping[Variable, Any]
) -> dict[Share, Any]:
    """Compute ∂output/∂operand where upstream × local = downstream entry by entry.

    That is so for operations with one number as output, and for elementwise ones: those whose
    Jacobian is diagonal at this point.
    """
    small = [use for use in shares if _is_small(*use)][:MOST_LOCALS]

    def jacobians(operands: list[list[Any]]) -> list[Any]:
        return [_jacobian(*use, given) for use, given in zip(small, operands)]

    given = [operands_of(equation, values) for equation, _ in small]
    found = jax.jit(jacobians)(given) if small else []
    local = {use: _entries(np.asarray(j)) for use, j in zip(small, found) if j is not None}
    return {
        (equation, operand): entries.reshape(equation.inputs[operand].shape)
        for (equation, operand), entries in local.items()
        if entries is not None
    }


def _is_small(equation: Equation, operand: int) -> bool:
    if len(equation.outputs) != 1 or equation.inputs[operand].kind == "literal":
        return False
    if equation.nested and equation.operation not in DIFFERENTIATED:
        return False
    x, y = equation.inputs[operand], equation.outputs[0]
    if not all(v.dtype is not None and jnp.issubdtype(v.dtype, jnp.floating) for v in (x, y)):
        return False
    return 0 < x.size <= MOST_SHOWN and (y.size == 1 or y.shape == x.shape)


def _jacobian(equation: Equation, operand: int, given: list[Any]) -> Any:
    """Its rows are the pullbacks of the basis: entries of the output × entries of the operand."""

    def run(x: Any) -> Any:
        operands = [x if k == operand else y for k, y in enumerate(given)]
        return evaluate(equation.eqn, operands)[0]

    try:
        y, pull = vjp(run, given[operand])
    except Exception:  # it runs only among others: a collective, an operation with an effect
        return None
    basis = jnp.eye(y.size, dtype=y.dtype).reshape(y.size, *y.shape)
    rows: Callable[[Any], Any] = lambda y_bar: pull(y_bar)[0].reshape(-1)
    return jnp.stack([rows(y_bar) for y_bar in basis])


def _entries(jacobian: np.ndarray) -> np.ndarray | None:
    """The one row, or the diagonal if there is nothing beside it."""
    jacobian = jacobian.astype(np.float64)
    if len(jacobian) == 1:
        return jacobian[0]
    diagonal = np.diagonal(jacobian)
    beside = jacobian[~np.eye(len(jacobian), dtype=bool)]
    return diagonal if np.all(beside == 0) else None


MOST_INSIDE = 4  # operations of a nested graph that are named


@dataclass(frozen=True)
class ForwardRow:
    """A row is one step of the forward sweep.

    Attributes:
        kind: "input" (constants too) or "equation".
        read: the formula of what is computed, from the rules.
        values: of its outputs.
        kept: bytes that the reverse sweep keeps of them.
        scope, source: where the equation stands: name scopes, and ``file.py:12``.
        inside: what a graph that stays closed holds.
        number: of the equation, from 1; 0 for an input.
    """

    kind: Literal["input", "equation"]
    read: Callable[[], Formula]
    values: tuple[Any, ...]
    kept: int
    scope: str = ""
    source: str = ""
    inside: str = ""
    number: int = 0

    @cached_property
    def formula(self) -> Formula:
        """Say what is computed."""
        return self.read()


@dataclass(frozen=True)
class ReverseRow:
    """A row is one step of the reverse sweep: upstream × local = downstream.

    Attributes:
        kind: "seed" (an output's cotangent), "share" (what one use adds), "sum" (of several uses).
        read: the formula of how the cotangent is computed, from the rules.
        is_share: whether another use adds to the same cotangent.
        upstream: the cotangents of the equation's outputs.
        local: ∂output/∂operand, where it is small enough to be shown.
        downstream: what is added to the operand's cotangent; of a sum, the whole.
        parts: of a sum, the shares.
        scope, source: where the equation stands.
    """

    kind: Literal["seed", "share", "sum"]
    variable: Expression
    read: Callable[[], Formula] | None
    is_share: bool
    upstream: tuple[Any, ...]
    local: Any
    downstream: Any
    parts: tuple[Any, ...] = ()
    scope: str = ""
    source: str = ""

    @cached_property
    def formula(self) -> Formula | None:
        """Say how the cotangent is computed."""
        return self.read() if self.read else None


def forward_rows(explanation: EvaluatedGraph) -> list[ForwardRow]:
    """Return inputs and constants, then the equations in execution order."""
    graph, kept = explanation.graph, explanation.kept_bytes
    known = symbols(graph)
    rows = [
        ForwardRow("input", partial(Formula, known.get(v, Symbol(v.name)), None),
                   (explanation.values[v],), kept.get(v, 0))
        for v in (*graph.inputs, *graph.constants)
    ]  # fmt: skip
    for number, equation in enumerate(graph, 1):
        values = tuple(explanation.values[v] for v in equation.outputs)
        size = sum(kept.get(v, 0) for v in equation.outputs)
        rows.append(
            ForwardRow("equation", partial(forward, equation, known), values, size,
                       equation.scope, short_place(equation.source), inside_of(equation), number)
        )  # fmt: skip
    return rows


def reverse_rows(explanation: EvaluatedGraph) -> list[ReverseRow]:
    """Return the outputs' cotangents, then each use of a variable, in reverse order of equations.

    Where a variable has several uses, its sum follows the last of them.
    """
    return list(_reverse_rows(explanation))


def _reverse_rows(explanation: EvaluatedGraph) -> Iterator[ReverseRow]:
    graph, bars, shares = explanation.graph, explanation.bars, explanation.shares
    known = symbols(graph)
    local = local_gradients(shares, explanation.values)
    counts = explanation.share_counts
    parts: dict[Variable, list[Any]] = defaultdict(list)
    for variable, seed in zip(graph.outputs, explanation.seeds):
        if seed is not None:
            parts[variable].append(seed)
    for variable, seeds in parts.items():
        for seed in seeds:
            yield ReverseRow(
                "seed", barred_symbol(variable, known), None, counts[variable] > 1, (), None, seed
            )
    for equation in reversed(graph.equations):
        upstream = tuple(bars[v] for v in equation.outputs if v in bars)
        source = short_place(equation.source)
        for k, variable in enumerate(equation.inputs):
            if (share := shares.get((equation, k))) is None:
                continue
            yield ReverseRow(
                "share", barred_symbol(variable, known), partial(reverse, equation, k, known),
                counts[variable] > 1, upstream, local.get((equation, k)), share, (),
                equation.scope, source,
            )  # fmt: skip
            added = parts[variable]
            added.append(share)
            if len(added) == counts[variable] > 1 and variable in bars:
                yield ReverseRow("sum", barred_symbol(variable, known), None, False, (), None,
                                 bars[variable], tuple(added), equation.scope)  # fmt: skip


def inside_of(equation: Equation) -> str:
    """Say what the graphs inside an equation hold: ``body × 3: mul, add``."""
    said = []
    for nested in equation.nested:
        if nested.runs == 0:
            continue
        names = [inner.operation for inner in _opened(nested.graph)]
        more = ", …" if len(names) > MOST_INSIDE else ""
        said.append(f"{nested.label}{nested.times}: {', '.join(names[:MOST_INSIDE])}{more}")
    return "; ".join(said)


def _opened(graph: Graph) -> Graph:
    """The graph inside, past calls that hold no more than one call."""
    while len(graph) == 1 and len(graph.equations[0].nested) == 1:
        graph = graph.equations[0].nested[0].graph
    return graph


# The rows in cells.

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


def tables(
    explanation: EvaluatedGraph, rows: int | None = None, totals: str = ""
) -> tuple[Table, Table]:
    """Make the table of the forward sweep and that of the reverse sweep.

    Each has at most so many ``rows``, the first and the last; None for all. A line of ``totals``
    ends the first.
    """
    name, cells = explanation.graph.name, _Cells()
    forward = lambda part: _lines(part, name, lambda row: _forward(row, cells))
    reverse = lambda part: _lines(part, name, lambda row: _reverse(row, cells))
    ahead, back = forward_rows(explanation), reverse_rows(explanation)
    last = (Line("total", (Cell(totals),)),) if totals else ()
    return (
        Table(f"{name}: forward sweep", FORWARD, (*_ends(ahead, rows, forward), *last)).used(),
        Table(f"{name}: reverse sweep", REVERSE, _ends(back, rows, reverse)).used(),
    )


def _ends(
    rows: Sequence[Row], most: int | None, lines: Callable[[Sequence[Row]], Iterable[Line]]
) -> tuple[Line, ...]:
    """The lines of all rows, or of the first and the last of too many."""
    most = len(rows) if most is None else max(most, 2)
    if len(rows) <= most:
        return tuple(lines(rows))
    gap = Line("more", (Cell(f"⋮ {len(rows) - most:,} rows are left out ⋮"),))
    return (*lines(rows[: (most + 1) // 2]), gap, *lines(rows[len(rows) - most // 2 :]))


def _lines(
    rows: Sequence[Row], name: str, cells: Callable[[Row], tuple[Cell, ...]]
) -> Iterator[Line]:
    """A line for each row, and one before the rows of another scope; ``name`` is the outermost."""
    scope = ""
    for row in rows:
        if row.scope != scope:
            scope = row.scope
            yield Line("scope", (Cell(scope or name),))
        yield Line(row.kind, cells(row))


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


def value_cell(values: tuple[Any, ...], is_cotangent: bool) -> Cell:
    """Write small values out; of others tell shape, norm, least and greatest entry."""
    if not values:
        return Cell()
    states: list[State] = [state for v in values if (state := state_of(v, is_cotangent))]
    texts, short = zip(*map(_described, values))
    return Cell("; ".join(texts), states[0] if states else "", "; ".join(short))


def described(array: Any) -> str:
    """Write a number, a short vector, or shape, norm and range; one number if all are equal.

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


def _forward(row: ForwardRow, cells: _Cells) -> tuple[Cell, ...]:
    value = cells(row.values)
    return (
        Cell(str(row.number) if row.number else ""),
        FormulaCell(row.formula.text(), write=row.formula.latex),
        value,
        Cell(format_bytes(row.kept) if row.kept else ""),
        Cell(row.source),
        _note(row.inside, value),
    )


def _reverse(row: ReverseRow, cells: _Cells) -> tuple[Cell, ...]:
    downstream = cells((row.downstream,), is_cotangent=True)
    words = {"seed": "seed", "sum": "branches sum", "share": ""}[row.kind]
    return (
        _formula(row),
        cells(row.upstream, is_cotangent=True),
        Cell() if row.local is None else cells((row.local,)),
        downstream,
        Cell(row.source),
        _note(words, downstream),
    )


def _note(words: str, value: Cell) -> Cell:
    return Cell("; ".join(filter(None, (words, WORDS.get(value.state, "")))))


def _formula(row: ReverseRow) -> FormulaCell:
    sign = "+=" if row.is_share else "="
    if (formula := row.formula) is not None:
        tex = lambda: formula.latex(sign).replace("+=", r"\mathrel{+}=", 1)
        return FormulaCell(formula.text(sign), short=formula.brief(sign), write=tex)
    in_tex = transliterated
    shares = [format_value(part) for part in row.parts]
    if row.kind == "seed":
        right = described(row.downstream)
    elif any(summary_of(part) for part in row.parts):
        right = f"sum of {len(shares)} uses"
        in_tex = r"\text{{{}}}".format
    else:
        right = " + ".join(f"({s})" if s.startswith("−") else s for s in shares)
    tex = lambda: f"{written(row.variable, LATEX)} {sign} {in_tex(right)}"
    return FormulaCell(f"{written(row.variable)} {sign} {right}", write=tex)
