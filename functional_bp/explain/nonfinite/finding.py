"""What ``explanation.first_nonfinite()`` returns, and how it reads."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from functional_bp.explain.nonfinite.entries import Entry, number
from functional_bp.explain.numbers import format_value
from functional_bp.graph.parts import Equation

WIDTH = 100  # characters of a line


class Inside(NamedTuple):
    """An operation that holds the equation: a loop at one of its steps, or a function.

    Attributes:
        equation: the ``scan``, ``while`` or call.
        step: which step, from 0; None where it is no loop.
        steps: how many it takes; None where it is no loop.
    """

    equation: Equation
    step: int | None = None
    steps: int | None = None

    def __str__(self) -> str:
        label = self.equation.label
        name = f"{self.equation.operation} ({label})" if label else self.equation.operation
        return (
            name
            if self.step is None
            else f"{name}: step {self.step} of 0 … {(self.steps or 1) - 1}"
        )


@dataclass(frozen=True)
class FirstNonfinite:
    """The first NaN or infinity of a function and its gradient: where, from what, and why.

    ``print`` shows all of it; ``as_data()`` is the same as plain data.

    Attributes:
        direction: "forward" where a value is not finite, "reverse" where only a cotangent is.
        entry: the entry that is not finite: of a value ``y``, or of a cotangent ``x̄``.
        equation: the equation that makes it, forward or by its rule; None where a value is not
            finite from the start: an input, a constant, the cotangent of the output.
        formula: the equation as mathematics, ``y = ln x``.
        rule: in the reverse sweep, the rule's formula and its convention at such a point.
        inside: the loops and functions that hold the equation, outermost first, with the step.
        operands: the entries of the operands that it comes from.
        upstream: in the reverse sweep, the entries of the output's cotangent.
        kept: in the reverse sweep, the entries that the rule reads from the forward sweep.
        inputs: the values of all inputs of the equation, by name.
        cause: what about these entries makes a NaN or an infinity.
        advice: what to do.
        source: the person's ``(file, line)``; None if unknown.
        reaches: whether it reaches the output or a gradient.
    """

    direction: Literal["forward", "reverse"]
    entry: Entry
    equation: Equation | None
    cause: str
    advice: str = ""
    formula: str = ""
    rule: str = ""
    inside: tuple[Inside, ...] = ()
    operands: tuple[Entry, ...] = ()
    upstream: tuple[Entry, ...] = ()
    kept: tuple[Entry, ...] = ()
    inputs: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    source: tuple[str, int] | None = None
    reaches: bool = True

    @property
    def step(self) -> int | None:
        """The step of the innermost loop around the equation; None outside loops."""
        return next((i.step for i in reversed(self.inside) if i.step is not None), None)

    @property
    def operation(self) -> str:
        """The operation's name, as in ``bp.rules``; "" where no equation makes it."""
        return "" if self.equation is None else self.equation.operation

    @property
    def line(self) -> str:
        """The source as ``model.py:12``, "" if unknown."""
        return "" if self.source is None else f"{os.path.basename(self.source[0])}:{self.source[1]}"

    def __str__(self) -> str:
        what = "value" if self.direction == "forward" else "cotangent"
        where = f"in {self.formula}" if self.formula else "from the start"
        title = f"The first {what} that is not finite: {self.entry}, {where}"
        rows = [
            ("line", self.line),
            ("inside", "; ".join(map(str, self.inside))),
            ("rule", self.rule),
            ("upstream", ", ".join(map(str, self.upstream))),
            ("kept", ", ".join(map(str, self.kept))),
            ("operands", ", ".join(map(str, self.operands))),
            ("cause", self.cause),
            ("to do", self.advice),
            ("inputs", ", ".join(f"{n} = {format_value(x)}" for n, x in self.inputs.items())),
        ]
        lines = [title]
        for label, text in rows:
            if text:
                first = f"  {label:<10}"
                lines += textwrap.wrap(
                    text, WIDTH, initial_indent=first, subsequent_indent=" " * 12
                )
        return "\n".join(lines)

    def as_data(self) -> dict[str, Any]:
        """All of it as strings, numbers, lists and dicts; a NaN or an infinity is a string."""
        index = None if self.equation is None else self.equation.index
        return {
            "direction": self.direction,
            "operation": self.operation,
            "equation": index,
            "formula": self.formula,
            "entry": _entry(self.entry),
            "rule": self.rule,
            "inside": [
                {"operation": i.equation.operation, "label": i.equation.label,
                 "step": i.step, "steps": i.steps}
                for i in self.inside
            ],
            "operands": [_entry(e) for e in self.operands],
            "upstream": [_entry(e) for e in self.upstream],
            "kept": [_entry(e) for e in self.kept],
            "inputs": {name: format_value(x) for name, x in self.inputs.items()},
            "cause": self.cause,
            "advice": self.advice,
            "source": None if self.source is None else list(self.source),
            "reaches": self.reaches,
        }  # fmt: skip


def _entry(entry: Entry) -> dict[str, Any]:
    value = entry.value
    plain = isinstance(value, int | float) and value - value == 0
    return {
        "name": entry.name,
        "index": list(entry.index),
        "value": value if plain else number(value),
    }
