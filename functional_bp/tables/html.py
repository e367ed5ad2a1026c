"""Tables are written as a piece of HTML with its own style, on light and dark pages."""

from __future__ import annotations

import re
from html import escape

from functional_bp.tables.table import OVERLINE, Cell, Line, Table

STYLE = """
.bp-sweeps{--ink:#1f2328;--soft:#59636e;--line:#d1d9e0;--band:#f6f8fa;--bad:#cf222e;--warn:#9a6700;
--loud:#8250df;--scope:#0969da;color:var(--ink);overflow-x:auto;
font:14px/1.5 "STIX Two Text","Cambria Math",Cambria,Georgia,serif}
@media (prefers-color-scheme:dark){.bp-sweeps{--ink:#e6edf3;--soft:#9198a1;--line:#3d444d;
--band:#161b22;--bad:#ff7b72;--warn:#d29922;--loud:#d2a8ff;--scope:#58a6ff}}
[data-theme=light] .bp-sweeps{--ink:#1f2328;--soft:#59636e;--line:#d1d9e0;--band:#f6f8fa;
--bad:#cf222e;--warn:#9a6700;--loud:#8250df;--scope:#0969da}
[data-theme=dark] .bp-sweeps{--ink:#e6edf3;--soft:#9198a1;--line:#3d444d;--band:#161b22;
--bad:#ff7b72;--warn:#d29922;--loud:#d2a8ff;--scope:#58a6ff}
.bp-sweeps table{color:inherit;font:inherit;border-collapse:collapse;margin:0 0 1.5em}
.bp-sweeps caption{text-align:left;font-weight:bold;padding:.4em 0}
.bp-sweeps th,.bp-sweeps td{padding:.2em .9em;text-align:left;vertical-align:baseline;
border-bottom:1px solid var(--line)}
.bp-sweeps th{color:var(--soft);font-weight:normal}
.bp-sweeps td.right,.bp-sweeps th.right{text-align:right;font-variant-numeric:tabular-nums}
.bp-sweeps tr.input td,.bp-sweeps tr.seed td{color:var(--soft)}
.bp-sweeps tr.sum td{background:var(--band);font-weight:bold}
.bp-sweeps tr.scope td{color:var(--scope);font-style:italic}
.bp-sweeps .bar{text-decoration:overline}
.bp-sweeps tr td.nan,.bp-sweeps tr td.infinite{color:var(--bad);font-weight:bold}
.bp-sweeps tr td.exploding{color:var(--loud);font-weight:bold}
.bp-sweeps tr td.zero,.bp-sweeps tr td.vanishing{color:var(--warn)}
"""


def html(tables: tuple[Table, ...]) -> str:
    """Write the tables in a ``<div>`` with the style that they need."""
    body = "".join(map(_table, tables))
    return f'<div class="bp-sweeps"><style>{STYLE}</style>{body}</div>'


def shown(text: str) -> str:
    r"""Escape text for a page; longer names that carry a bar are overlined as one.

    >>> print(shown("a<b"), shown("l\u0305o\u0305"))
    a&lt;b <span class="bar">lo</span>
    """
    over = re.compile(rf"(?:\w{OVERLINE})+")
    bar = lambda found: f'<span class="bar">{found[0].replace(OVERLINE, "")}</span>'
    return over.sub(bar, escape(text))


def _table(table: Table) -> str:
    heads = "".join(f'<th class="{c.align}">{shown(c.heading)}</th>' for c in table.columns)
    aligns = [column.align for column in table.columns]
    rows = "".join(_line(line, aligns) for line in table.lines)
    return (
        f"<table><caption>{shown(table.title)}</caption><thead><tr>{heads}</tr></thead>"
        f"<tbody>{rows}</tbody></table>"
    )


def _line(line: Line, aligns: list[str]) -> str:
    if line.is_heading:
        cells = f'<td colspan="{len(aligns)}">{shown(line.cells[0].text)}</td>'
    else:
        cells = "".join(_cell(cell, align) for cell, align in zip(line.cells, aligns))
    return f'<tr class="{line.kind}">{cells}</tr>'


def _cell(cell: Cell, align: str) -> str:
    kinds = " ".join(filter(None, (align, cell.state)))
    return f'<td class="{kinds}">{shown(cell.text)}</td>'
