"""What ``explanation.signals()`` returns, and how it reads."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from functional_bp.graph.parts import Variable

WIDTH = 100  # characters of a line

Kind = Literal[
    "nan", "infinite", "dead", "underflow", "exploding", "vanishing", "partly dead"
]  # in the order in which they are told
KINDS: tuple[Kind, ...] = (
    "nan", "infinite", "dead", "underflow", "exploding", "vanishing", "partly dead",
)  # fmt: skip


@dataclass(frozen=True)
class Signal:
    """One thing that is notable about a variable's gradient.

    Attributes:
        kind: "nan", "infinite", "dead", "underflow", "exploding", "vanishing" or "partly dead".
        variable: whose gradient, or value.
        message: what is notable, with the numbers, and what to look at.
        source: the person's ``(file, line)`` where it arises; None if unknown.
        numbers: the numbers that the message is made of, by name.
    """

    kind: Kind
    variable: Variable
    message: str
    source: tuple[str, int] | None = None
    numbers: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The variable's name."""
        return self.variable.name

    @property
    def line(self) -> str:
        """The source as ``model.py:12``, "" if unknown."""
        return "" if self.source is None else f"{os.path.basename(self.source[0])}:{self.source[1]}"

    def __str__(self) -> str:
        at = f"  ({self.line})" if self.line else ""
        return f"{self.kind}: {self.name}: {self.message}{at}"

    def as_data(self) -> dict[str, Any]:
        """All of it as strings, numbers, lists and dicts."""
        return {
            "kind": self.kind,
            "variable": self.name,
            "message": self.message,
            "source": None if self.source is None else list(self.source),
            "numbers": dict(self.numbers),
        }


class Signals(Sequence[Signal]):
    """The findings in order: what is not finite, dead, exploding, vanishing, partly dead.

    A sequence of ``Signal``; empty, and false, where nothing is notable. ``print`` shows them.
    """

    def __init__(self, function: str, signals: Sequence[Signal], examined: int) -> None:
        self.function, self.examined = function, examined
        self._signals = tuple(sorted(signals, key=lambda s: KINDS.index(s.kind)))

    def __getitem__(self, index: Any) -> Any:
        return self._signals[index]

    def __len__(self) -> int:
        return len(self._signals)

    def __iter__(self) -> Iterator[Signal]:
        return iter(self._signals)

    def of(self, name: str) -> tuple[Signal, ...]:
        """The findings about the variable of that name."""
        return tuple(s for s in self if s.name == name)

    def as_data(self) -> list[dict[str, Any]]:
        """All of them as plain data."""
        return [signal.as_data() for signal in self]

    def __str__(self) -> str:
        looked = f"{self.function}: gradients of {self.examined} variables"
        if not self:
            return f"{looked}, nothing notable"
        kinds = max(len(s.kind) for s in self)
        names = min(max(len(s.name) for s in self), 24)
        lines = [f"{looked}, {len(self)} finding{'' if len(self) == 1 else 's'}"]
        for signal in self:
            head = f"  {signal.kind:<{kinds}}  {signal.name:<{names}}  "
            text = f"{signal.message}  ({signal.line})" if signal.line else signal.message
            indent = " " * (kinds + names + 6)
            lines += textwrap.wrap(text, WIDTH, initial_indent=head, subsequent_indent=indent)
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<Signals of {self.function}: {len(self)} findings>"
