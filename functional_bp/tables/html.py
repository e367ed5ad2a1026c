"""Tables are written as a piece of HTML with its own style, on light and dark pages."""

from __future__ import annotations

import re
from html import escape
from importlib import resources

from functional_bp.tables.table import OVERLINE, Cell, Line, Table

STYLE = resources.files("functional_bp.tables").joinpath("style.css").read_text(encoding="utf-8")


def html(tables: tuple[Table, ...]) -> str:
    """Write the tables in a ``<div>`` with the style that they need."""
    body = "".join(map(element, tables))
    return f'<div class="bp sweeps"><style>{STYLE}</style>{body}</div>'


def shown(text: str) -> str:
    r"""Escape text for a page; longer names that carry a bar are overlined as one.

    >>> print(shown("a<b"), shown("l\u0305o\u0305"))
    a&lt;b <span class="bar">lo</span>
    """
    over = re.compile(rf"(?:\w{OVERLINE})+")
    bar = lambda found: f'<span class="bar">{found[0].replace(OVERLINE, "")}</span>'
    return over.sub(bar, escape(text))


def element(table: Table) -> str:
    """Write a ``<table>`` alone, for a page that has ``STYLE``."""
    classes = ["number" if column.align == "right" else "" for column in table.columns]
    heads = "".join(
        f"<th{_attribute('class', kind)}>{shown(column.heading)}</th>"
        for kind, column in zip(classes, table.columns)
    )
    caption = f"<caption>{shown(table.title)}</caption>" if table.title else ""
    rows = "".join(_line(line, classes) for line in table.lines)
    return f"<table>{caption}<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}</tbody></table>\n"


def _line(line: Line, classes: list[str]) -> str:
    if line.is_heading:
        cells = f'<td colspan="{len(classes)}">{shown(line.cells[0].text)}</td>'
    else:
        cells = "".join(map(_cell, line.cells, classes))
    return f"<tr{_attribute('class', line.kind)}>{cells}</tr>\n"


def _cell(cell: Cell, kind: str) -> str:
    text = shown(cell.text)
    text = f"<a{_attribute('href', cell.link)}>{text}</a>" if cell.link else text
    kinds = _attribute("class", " ".join(filter(None, (kind, cell.state))))
    return f"<td{kinds}{_attribute('title', cell.hint)}>{text}</td>"


def _attribute(name: str, value: str) -> str:
    return f' {name}="{escape(value)}"' if value else ""
