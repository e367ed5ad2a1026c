"""Tables are written for a terminal: with rules and colours, or plain."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from typing import Any

from functional_bp.tables.table import Cell, Column, Table, shortened

STYLES = {
    "nan": "bold red", "infinite": "bold red", "exploding": "bold magenta",
    "vanishing": "yellow", "zero": "yellow",
    "right": "green", "wrong": "bold red", "open": "yellow", "note": "cyan", "quiet": "dim",
    "off": "red",
}  # fmt: skip
KINDS = {"input": "dim", "sum": "bold", "seed": "dim"}
LONGEST_FORMULA = 48  # characters of a formula or value on one line


def text(tables: tuple[Table, ...], width: int | None = None, color: bool = False) -> str:
    """Write the tables one below the other; cells are folded where the width does not suffice.

    Args:
        tables: what to write.
        width: characters per line; by default the terminal's.
        color: with a terminal's colours.
    """
    from rich.console import Console

    width = width or shutil.get_terminal_size((120, 24)).columns
    out = io.StringIO()
    console = Console(
        file=out, width=width, force_terminal=color, highlight=False, emoji=False,
        color_system="standard" if color else None, force_jupyter=False,  # text, not a display
    )  # fmt: skip
    for k, table in enumerate(tables):
        console.print(*([] if not k else [""]), _rich(table, width), sep="\n")
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def grid(
    table: Table, *, gap: int = 2, widths: Sequence[int] = (), least: Sequence[int] = ()
) -> Any:
    """Set a table without rules, to stand among other text that rich prints.

    Args:
        table: without a title, and without lines that are headings.
        gap: characters between its columns.
        widths: of the columns; by default as wide as they need.
        least: what the columns' widths are at least.
    """
    from rich.table import Table as RichTable

    made = RichTable(box=None, pad_edge=False, header_style="dim", padding=(0, gap, 0, 0))
    for k, column in enumerate(table.columns):
        _add(
            made, column, width=widths[k] if widths else None, min_width=least[k] if least else None
        )
    for line in table.lines:
        made.add_row(*map(_cell, line.cells))
    return made


def _rich(table: Table, width: int) -> Any:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    table = fitted(table, width)
    made = RichTable(
        title=table.title or None,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
    )
    place = next(k for k, column in enumerate(table.columns) if not column.drop)
    room = max(width - _natural_width(table), 0)  # which a heading may take, and no more
    for k, column in enumerate(table.columns):
        most = None if column.drop or column.width else LONGEST_FORMULA
        if k == place and most:
            most = min(most, _longest(table, k) + room)
        _add(made, column, width=column.width or None, max_width=most)
    for line in table.lines:
        if line.is_heading:
            blank = [Text("") for _ in table.columns]
            blank[place] = Text(line.cells[0].text, style="cyan")
            made.add_row(*blank)
        else:
            made.add_row(*map(_cell, line.cells), style=KINDS.get(line.kind, ""))
    return made


def _add(made: Any, column: Column, **widths: int | None) -> None:
    overflow = "fold" if column.wraps else "ellipsis"
    made.add_column(column.heading, justify=column.align, overflow=overflow,
                    no_wrap=not column.wraps, **widths)  # fmt: skip


def _cell(cell: Cell) -> Any:
    from rich.text import Text

    return Text(cell.text, style=STYLES.get(cell.state, ""))


def fitted(table: Table, width: int) -> Table:
    """Drop the first column, then make values short, then drop more columns, until it fits."""
    for step in range(1, len(table.columns) + 1):
        if _natural_width(table) <= width:
            return table
        if step == 2:
            table = shortened(table)
        least = min((c.drop for c in table.columns if c.drop), default=0)
        if step != 2 and least and (step > 2 or least == 1):
            table = table.only(k for k, c in enumerate(table.columns) if c.drop != least)
    return table


def plain(table: Table, width: int, least: int = 44) -> list[str]:
    """Write the lines of a table without rules, folds and colours; what is too long is cut.

    Args:
        table: what to write, without its title. A line with nothing behind its first cell may be as
            long as the table is wide.
        width: characters per line.
        least: characters that the first column keeps; before that, others go in their order.
    """
    table = table.used()
    longest, room = 0, width
    rows: list[list[str]] = []
    widths: list[int] = []
    for gone in (-1, *sorted({column.drop for column in table.columns} - {0})):
        table = table.only([k for k, c in enumerate(table.columns) if c.drop != gone])
        headings = [column.heading for column in table.columns]
        rows = [[cell.text for cell in line.cells] for line in table.lines]
        whole = [row for row, line in zip(rows, table.lines) if not line.is_heading]
        longest = max((len(row[0]) for row in whole), default=0)
        widths = [max(map(len, column)) for column in list(zip(headings, *whole))[1:]]
        room = width - sum(w + 2 for w in widths)
        if room >= min(longest, least):
            break
    first = max(8, min(longest, room))
    marks = [">" if column.align == "right" else "<" for column in table.columns[1:]]

    def written(row: list[str]) -> str:
        behind = [f"{text:{mark}{w}}" for text, mark, w in zip(row[1:], marks, widths)]
        return "  ".join([f"{_cut(row[0], first):<{first}}", *behind]).rstrip()

    headings = [column.heading for column in table.columns]
    lines = [written(row) if any(row[1:]) else _cut(row[0], width) for row in rows]
    return [written(headings), *lines]


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(width - 1, 0)] + "…"


def _natural_width(table: Table) -> int:
    total = -3  # between columns
    for k, column in enumerate(table.columns):
        longest = _longest(table, k)
        total += 3 + (min(longest, LONGEST_FORMULA) if not column.drop else longest)
    return total


def _longest(table: Table, k: int) -> int:
    """Count the characters of a column's longest cell."""
    from rich.cells import cell_len

    cells = [line.cells[k].text for line in table.lines if not line.is_heading]
    return max(map(cell_len, [table.columns[k].heading, *cells]))
