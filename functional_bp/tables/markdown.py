"""Tables are written as Markdown, for a page or a notebook."""

from __future__ import annotations

from functional_bp.tables.table import Cell, Line, Table

MARKS = {"nan": "⚠ ", "infinite": "⚠ ", "exploding": "⚠ ", "vanishing": "", "zero": ""}


def escaped(text: str) -> str:
    r"""Escape in a cell what Markdown would take for its own.

    >>> print(escaped("a|b * c_d"))
    a\|b \* c\_d
    """
    return "".join("\\" + c if c in r"\`*_{}[]<>|#~$" else c for c in text.replace("\n", " "))


def markdown(tables: tuple[Table, ...]) -> str:
    """Write the tables in GitHub's Markdown."""
    titled = (
        [f"**{escaped(table.title)}**", ""] * bool(table.title) + lines(table) for table in tables
    )
    return "\n\n".join(map("\n".join, titled)) + "\n"


def lines(table: Table) -> list[str]:
    """Write the lines of a table without its title."""
    heads = " | ".join(column.heading for column in table.columns)
    rule = " | ".join("--:" if column.align == "right" else ":--" for column in table.columns)
    place = next(k for k, column in enumerate(table.columns) if not column.drop)
    rows = [_line(line, len(table.columns), place) for line in table.lines]
    return [f"| {heads} |", f"| {rule} |", *rows]


def _line(line: Line, count: int, place: int) -> str:
    if line.is_heading:
        cells = [""] * count
        cells[place] = f"*{escaped(line.cells[0].text)}*"
    else:
        cells = [MARKS.get(c.state, "") + _text(c) for c in line.cells]
        if line.kind == "sum":
            cells = [f"**{c}**" if c else "" for c in cells]
    return f"| {' | '.join(cells)} |"


def _text(cell: Cell) -> str:
    return f"`{cell.text}`" if cell.is_code and cell.text else escaped(cell.text)
