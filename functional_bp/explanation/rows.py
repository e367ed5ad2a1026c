"""The two sweeps, step by step: forward by equation, backward by use of a variable."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from functional_bp.engine.sweeps import evaluate
from functional_bp.engine.transforms import vjp
from functional_bp.explanation.formulas.equations import forward, reverse, symbol, symbols
from functional_bp.explanation.formulas.expression import Expression, Symbol
from functional_bp.explanation.formulas.formula import Formula
from functional_bp.explanation.full_sweeps import Share
from functional_bp.explanation.numbers import MOST_SHOWN
from functional_bp.explanation.record import EvaluatedGraph
from functional_bp.graph.graph import Equation, Graph, Variable

# Local gradients: what a pullback makes of 1, where an operation is small enough to show it.

MOST_LOCALS = 400  # uses of variables; beyond that nobody reads numbers
DIFFERENTIATED = ("custom_jvp_call", "custom_vjp_call")  # closed, and yet quick to run again


def local_gradients(
    shares: Mapping[Share, Any], values: Mapping[Variable, Any]
) -> dict[Share, Any]:
    """For small operations, ∂output/∂operand with upstream × local = downstream entry by entry.

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
    """One step of the forward sweep.

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
        """What is computed."""
        return self.read()


@dataclass(frozen=True)
class ReverseRow:
    """One step of the reverse sweep: upstream × local = downstream.

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
        """How the cotangent is computed."""
        return self.read() if self.read else None


def forward_rows(explanation: EvaluatedGraph) -> list[ForwardRow]:
    """Inputs and constants, then the equations in execution order."""
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
                       equation.scope, source_of(equation), inside_of(equation), number)
        )  # fmt: skip
    return rows


def reverse_rows(explanation: EvaluatedGraph) -> list[ReverseRow]:
    """The outputs' cotangents, then every use of a variable, in reverse order of the equations.

    Where a variable has several uses, its sum follows the last of them.
    """
    return list(_reverse(explanation))


def _reverse(explanation: EvaluatedGraph) -> Iterator[ReverseRow]:
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
                "seed", _bar(variable, known), None, counts[variable] > 1, (), None, seed
            )
    for equation in reversed(graph.equations):
        upstream = tuple(bars[v] for v in equation.outputs if v in bars)
        source = source_of(equation)
        for k, variable in enumerate(equation.inputs):
            if (share := shares.get((equation, k))) is None:
                continue
            yield ReverseRow(
                "share", _bar(variable, known), partial(reverse, equation, k, known),
                counts[variable] > 1, upstream, local.get((equation, k)), share, (),
                equation.scope, source,
            )  # fmt: skip
            added = parts.setdefault(variable, [])
            added.append(share)
            if len(added) == counts[variable] > 1 and variable in bars:
                yield ReverseRow("sum", _bar(variable, known), None, False, (), None,
                                 bars[variable], tuple(added), equation.scope)  # fmt: skip


def _bar(variable: Variable, known: dict[Variable, Expression]) -> Expression:
    shown = symbol(variable, known)
    return Symbol(shown.name, bar=True) if isinstance(shown, Symbol) else shown


def source_of(equation: Equation) -> str:
    """``file.py:12``, the person's line."""
    return f"{os.path.basename(equation.source[0])}:{equation.source[1]}" if equation.source else ""


def inside_of(equation: Equation) -> str:
    """What the graphs inside an equation hold: ``body × 3: mul, add``."""
    said = []
    for nested in equation.nested:
        if nested.runs == 0:
            continue
        times = " × ?" if nested.runs is None else f" × {nested.runs}" if nested.runs > 1 else ""
        names = [inner.operation for inner in _opened(nested.graph)]
        more = ", …" if len(names) > MOST_INSIDE else ""
        said.append(f"{nested.label}{times}: {', '.join(names[:MOST_INSIDE])}{more}")
    return "; ".join(said)


def _opened(graph: Graph) -> Graph:
    """The graph inside, past calls that hold no more than one call."""
    while len(graph) == 1 and len(graph.equations[0].nested) == 1:
        graph = graph.equations[0].nested[0].graph
    return graph
