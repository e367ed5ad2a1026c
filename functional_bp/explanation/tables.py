"""Both sweeps step by step, as tables: forward by equation, in reverse by use of a variable.

A row has the formula, read off the rules, and the numbers at the point. In reverse, upstream ×
local = downstream: the local gradient is what a pullback makes of 1, and stands where an operation
is small enough to show it. ``tables`` puts the rows in cells, before any format.
"""

from __future__ import annotations

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
from functional_bp.explanation.full_sweeps import Share
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

    Args:
        shares: uses of variables that have a cotangent.
        values: the forward values.
    """
    small = [use for use in shares if _is_small(*use)][:MOST_LOCALS]

    def jacobians(operands: list[list[Any]]) -> list[Any]:
        return [_jacobian(*use, given) for use, given in zip(small, operands)]

    given = [[_value(v, values) for v in equation.inputs] for equation, _ in small]
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


def _value(variable: Variable, values: Mapping[Variable, Any]) -> Any:
    if variable in values:
        return values[variable]
    return jnp.asarray(variable.value, variable.dtype)


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
    seeds: dict[Variable, list[Any]] = {}
    for variable, seed in zip(graph.outputs, explanation.seeds):
        if seed is not None:
            seeds.setdefault(variable, []).append(seed)
    parts: dict[Variable, list[Any]] = {v: list(given) for v, given in seeds.items()}
    for variable, given in seeds.items():
        for seed in given:
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
            added = parts.setdefault(variable, [])
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


def tables(explanation: EvaluatedGraph, rows: int | None = None) -> tuple[Table, Table]:
    """Make the table of the forward sweep and that of the reverse sweep.

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
