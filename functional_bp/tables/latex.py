"""Tables are written in LaTeX: ``longtable`` and ``booktabs``, formulas in mathematics."""

from __future__ import annotations

from collections.abc import Callable

from functional_bp.tables.table import Cell, Line, Table
from functional_bp.tables.text import fitted

COLORS = {"nan": "red", "infinite": "red", "exploding": "magenta", "vanishing": "orange",
          "zero": "orange"}  # fmt: skip
PACKAGES = ("amsmath", "amssymb", "array", "booktabs", "longtable", "xcolor")
PAGE_WIDTH = 165  # characters on a landscape page, with the formulas' letters counted once
LONGEST, LONG = 44, "64mm"  # characters of a cell on one line, and the width of longer ones


def latex(
    tables: tuple[Table, ...],
    escaped: Callable[[str], str],
    written: Callable[[Cell], str] | None = None,
    standalone: bool = False,
) -> str:
    """Write the tables one below the other.

    Args:
        tables: what to write.
        escaped: writes plain text in LaTeX.
        written: writes a cell in LaTeX; by default its text, escaped.
        standalone: a whole document; otherwise a piece of one that loads ``PACKAGES``.
    """
    written = written or (lambda cell: escaped(cell.text))
    body = "\n\n".join(_table(table, escaped, written) for table in tables) + "\n"
    if not standalone:
        return f"% needs: {', '.join(PACKAGES)}\n{body}"
    uses = "".join(f"\\usepackage{{{package}}}\n" for package in PACKAGES)
    margins = "\\usepackage[landscape,margin=15mm]{geometry}\n"
    return (
        "\\documentclass{article}\n" + uses + margins
        + f"\\begin{{document}}\n\\footnotesize\n{body}\\end{{document}}\n"
    )  # fmt: skip


def _table(table: Table, escaped: Callable[[str], str], written: Callable[[Cell], str]) -> str:
    table = fitted(table, PAGE_WIDTH)
    form = "".join(_form(table, k) for k in range(len(table.columns)))
    heads = " & ".join(escaped(column.heading) for column in table.columns)
    rows = [_line(line, len(table.columns), escaped, written) for line in table.lines]
    return "\n".join(
        [
            rf"\begin{{longtable}}{{{form}}}",
            rf"\multicolumn{{{len(table.columns)}}}{{l}}{{\textbf{{{escaped(table.title)}}}}} \\",
            rf"\toprule {heads} \\ \midrule \endhead",
            *rows,
            r"\bottomrule",
            r"\end{longtable}",
        ]
    )


def _form(table: Table, k: int) -> str:
    """Say how a column is aligned; long cells are broken into lines."""
    right = table.columns[k].align == "right"
    lengths = (len(line.cells[k].text) for line in table.lines if not line.is_heading)
    if max(lengths, default=0) <= LONGEST:
        return "r" if right else "l"
    ragged = r"\raggedleft" if right else r"\raggedright"
    return rf">{{{ragged}\arraybackslash}}p{{{LONG}}}"


def _line(
    line: Line, count: int, escaped: Callable[[str], str], written: Callable[[Cell], str]
) -> str:
    if line.is_heading:
        inside = rf"\textit{{{escaped(line.cells[0].text)}}}"
        return rf"\multicolumn{{{count}}}{{l}}{{{inside}}} \\"
    return " & ".join(_coloured(cell, written(cell)) for cell in line.cells) + r" \\"


def _coloured(cell: Cell, text: str) -> str:
    color = COLORS.get(cell.state)
    return rf"\textcolor{{{color}}}{{{text}}}" if color and text else text
