"""One line that made several equations: in a Python loop, or in a function that is called twice.

A fault in it is in each of them, so an edit of one is made to all. The values that it reads are
those of the same turn of the loop, if they come from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from functional_bp.check.diagnosis.repairs.program import Equation, Program, Values
from functional_bp.check.diagnosis.repairs.source import own_span

PLACES = ("start_indices", "limit_indices")  # of x[t], which each turn reads elsewhere
Renaming = Mapping[int, int]  # slots of one turn of the loop to those of another


@dataclass(frozen=True)
class Renamed:
    """Values as they are seen from another turn of a loop."""

    values: Values
    renaming: Renaming

    def __getitem__(self, slot: int) -> Any:
        return self.values[self.renaming.get(slot, slot)]


@dataclass(frozen=True)
class Twin:
    """The same operation in another turn of the loop."""

    equation: Equation
    renaming: Renaming

    @property
    def key(self) -> int:
        """What the equation is known by."""
        return self.equation.key


def twins(program: Program, home: str | None) -> dict[int, list[Twin]]:
    """For each equation of a repeated line, the same operation in the other turns."""
    groups: dict[Any, list[Equation]] = {}
    for equation in program.equations:
        span = own_span(equation.spans, home)
        if span is not None:
            groups.setdefault(span, []).append(equation)
    turns: dict[int, list[list[Equation]]] = {}  # by the number of turns: lines, turn by turn
    for group in groups.values():
        size = _period(group)
        count = len(group) // size
        if count > 1:
            rows = [group[i * size : (i + 1) * size] for i in range(count)]
            turns.setdefault(count, []).extend([list(column) for column in zip(*rows)])
    found: dict[int, list[Twin]] = {}
    for count, columns in turns.items():
        turn_of = {e.key: (column, t) for column in columns for t, e in enumerate(column)}
        for column in columns:
            for at, equation in enumerate(column):
                found[equation.key] = [
                    Twin(column[t], _renaming(turn_of, t - at, count))
                    for t in range(count)
                    if t != at
                ]
    return found


def _renaming(
    turn_of: Mapping[int, tuple[Sequence[Equation], int]], shift: int, count: int
) -> Renaming:
    return {
        key: column[t + shift].key for key, (column, t) in turn_of.items() if 0 <= t + shift < count
    }


def _period(group: Sequence[Equation]) -> int:
    """How many equations of a line make one turn."""
    signs = [_signature(equation) for equation in group]
    for size in range(1, len(group) // 2 + 1):
        if len(group) % size == 0 and signs == signs[:size] * (len(group) // size):
            return size
    return len(group)


def _signature(equation: Equation) -> tuple[str, str]:
    own = ("jaxpr", "branches", *(PLACES if equation.name == "slice" else ()))
    params = {k: v for k, v in equation.params.items() if k not in own}
    return equation.name, repr(sorted((k, str(v)) for k, v in params.items()))
