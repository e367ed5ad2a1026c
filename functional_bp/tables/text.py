"""The tables in a terminal."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from typing import Any

from functional_bp.tables.table import Cell, Table, shortened

STYLES = {
    "nan": "bold red", "infinite": "bold red", "exploding": "bold magenta",
    "vanishing": "yellow", "zero": "yellow",
    "right": "green", "wrong": "bold red", "open": "yellow", "note": "cyan", "quiet": "dim",
    "off": "red",
}  # fmt: skip
KINDS = {"input": "dim", "sum": "bold", "seed": "dim"}
LONGEST_FORMULA = 48  # characters of a formula or value on one line


def text(tables: tuple[Table, ...], width: int | None = None, color: bool = False) -> str:
    """The tables, one below the other.

    Args:
        tables: what to write.
        width: characters per line; by default the terminal's.
        color: with a terminal's colours.
    """
    from rich.console import Console

    width = width or shutil.get_terminal_size((120, 24)).columns
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=color, highlight=False,
                      color_system="standard" if color else None, emoji=False)  # fmt: skip
    for k, table in enumerate(tables):
        console.print(*([] if not k else [""]), _rich(table, width), sep="\n")
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def grid(
    table: Table, *, gap: int = 2, widths: Sequence[int] = (), least: Sequence[int] = ()
) -> Any:
    """The table without lines, to stand among other text that rich prints.

    Args:
        table: without a title, and without lines that are headings.
        gap: characters between its columns.
        widths: of the columns; by default as wide as they need.
        least: what the columns' widths are at least.
    """
    from rich.table import Table as RichTable

    made = RichTable(box=None, pad_edge=False, header_style="dim", padding=(0, gap, 0, 0))
    for k, column in enumerate(table.columns):
        made.add_column(
            column.heading,
            justify="right" if column.align == "right" else "left",
            overflow="fold" if column.wraps else "ellipsis",
            no_wrap=not column.wraps,
            width=widths[k] if widths else None,
            min_width=least[k] if least else None,
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
        title=table.title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
    )
    for column in table.columns:
        justify = "right" if column.align == "right" else "left"
        most = LONGEST_FORMULA if not column.drop else None
        made.add_column(column.heading, justify=justify, overflow="fold", max_width=most)
    place = next(k for k, column in enumerate(table.columns) if not column.drop)
    for line in table.lines:
        if line.is_heading:
            blank = [Text("") for _ in table.columns]
            blank[place] = Text(line.cells[0].text, style="cyan")
            made.add_row(*blank)
        else:
            made.add_row(*map(_cell, line.cells), style=KINDS.get(line.kind, ""))
    return made


def _cell(cell: Cell) -> Any:
    from rich.text import Text

    return Text(cell.text, style=STYLES.get(cell.state, ""))


def fitted(table: Table, width: int) -> Table:
    """First without the sources, then with short values, then without more columns."""
    for step in range(1, len(table.columns) + 1):
        if _natural_width(table) <= width:
            return table
        if step == 2:
            table = shortened(table)
        least = min((c.drop for c in table.columns if c.drop), default=0)
        if step != 2 and least and (step > 2 or least == 1):
            table = table.only(k for k, c in enumerate(table.columns) if c.drop != least)
    return table


def _natural_width(table: Table) -> int:
    from rich.cells import cell_len

    lines = [line for line in table.lines if not line.is_heading]
    total = 0
    for k, column in enumerate(table.columns):
        longest = max([cell_len(column.heading), *(cell_len(line.cells[k].text) for line in lines)])
        total += 3 + (min(longest, LONGEST_FORMULA) if not column.drop else longest)
    return total
