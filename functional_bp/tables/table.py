"""A table is held before any format: columns, lines, cells, and what is remarkable in a cell."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

State = Literal[
    "", "nan", "infinite", "zero", "vanishing", "exploding",  # of a value
    "right", "wrong", "open", "note", "quiet", "off",  # of what was checked
]  # fmt: skip
OVERLINE = "\u0305"  # a bar over the letter before it


@dataclass(frozen=True)
class Cell:
    """A cell is one entry.

    Attributes:
        text: in Unicode.
        state: what is remarkable about it.
        short: the text where there is less room, "" for the same.
        is_code: whether it is a name in a program.
        hint: what a page says of it beside, when it is pointed at.
        link: where it leads, in a page.
    """

    text: str = ""
    state: State = ""
    short: str = ""
    is_code: bool = False
    hint: str = ""
    link: str = ""


@dataclass(frozen=True)
class Column:
    """A column has a heading, and says how its cells are set.

    Attributes:
        heading: what stands above it.
        align: "left" or "right".
        drop: where the width does not suffice, columns go in the order of this number; 0 stays.
        width: in a terminal, in characters; 0 for what its cells need.
        wraps: whether a terminal may break its cells into lines; else longer ones are cut.
    """

    heading: str
    align: Literal["left", "right"] = "left"
    drop: int = 0
    width: int = 0
    wraps: bool = True


@dataclass(frozen=True)
class Line:
    """A line has its cells, and is of some kind ("input", "sum", "scope", …)."""

    kind: str
    cells: tuple[Cell, ...]

    @property
    def is_heading(self) -> bool:
        """Say whether it has one cell, as long as the table is wide."""
        return self.kind in ("scope", "more", "total")


@dataclass(frozen=True)
class Table:
    """A table has a title, "" for none, columns, and lines with a cell for each of them."""

    title: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]

    def used(self) -> Table:
        """Leave out the columns in which nothing stands."""
        on = [any(line.cells[k].text for line in self.lines if not line.is_heading)
              for k in range(len(self.columns))]  # fmt: skip
        return self.only([k for k, used in enumerate(on) if used])

    def only(self, chosen: Iterable[int]) -> Table:
        """Leave the chosen columns alone; a heading keeps its one cell."""
        chosen = list(chosen)
        return Table(
            self.title,
            tuple(self.columns[k] for k in chosen),
            tuple(
                line if line.is_heading
                else Line(line.kind, tuple(line.cells[k] for k in chosen))
                for line in self.lines
            ),
        )  # fmt: skip


def shortened(table: Table) -> Table:
    """Put every cell in its short form."""
    lines = tuple(
        Line(line.kind, tuple(replace(c, text=c.short or c.text) for c in line.cells))
        for line in table.lines
    )
    return replace(table, lines=lines)


def ending(name: str, most: int = 20) -> str:
    """Leave of a long path what it ends in, which tells more than what it begins with."""
    return name if len(name) <= most else f"…{name[1 - most :]}"


def natural(name: str) -> list[object]:
    """Return a key to sort names by, numbers in them by their size."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part)
            for part in re.split(r"(\d+)", name) if part]  # fmt: skip


def between(scopes: Sequence[str]) -> str:
    """Write the first and the last scope as one: ``net/block0…3/mlp``."""
    if len(scopes) < 2:
        return "".join(scopes)
    first, last = scopes[0].split("/"), scopes[-1].split("/")
    joined = [_joined(a, b) for a, b in zip(first, last)]
    if len(first) == len(last) and None not in joined:
        return "/".join(filter(None, joined))
    if len(first) == len(last) and joined.count(None) == 1:
        return "/".join(part or f"{a}…{b}" for part, a, b in zip(joined, first, last))
    common = "/".join(os.path.commonprefix([first, last]))
    return f"{common}/…" if common else f"{scopes[0]} … {scopes[-1]}"


def _joined(first: str, last: str) -> str | None:
    """Write two parts of scopes that differ in a number as one: ``block0…3``."""
    counted = re.fullmatch(r"(.*?)(\d+)\|\1(\d+)", f"{first}|{last}")
    if first == last:
        return first
    return f"{counted[1]}{counted[2]}…{counted[3]}" if counted else None


def drops(lines: Sequence[Line], one: int, other: int) -> tuple[int, int]:
    """Return when two columns are dropped: that with fewer different entries third, else fifth."""
    first, second = (len({line.cells[k].text for line in lines} - {""}) for k in (one, other))
    return (3, 5) if first <= second else (5, 3)
