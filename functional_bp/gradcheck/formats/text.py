"""A report is written for the terminal, and as plain text."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from functional_bp.gradcheck.findings import CheckResult, Finding, Row
from functional_bp.gradcheck.formats import words
from functional_bp.tables.text import STYLES, grid

LABEL = 13  # characters of the column of labels


def plain(reports: Sequence[CheckResult], width: int = 100) -> str:
    """Write the reports as text without colours."""
    console = Console(
        width=width, file=io.StringIO(), color_system=None, record=True, force_jupyter=False
    )
    console.print(render(reports))
    lines = console.export_text().splitlines()
    return "\n".join(line.rstrip() for line in lines) + "\n"


def render(reports: Sequence[CheckResult]) -> Group:
    """Set one report in full; of several, a table, and in full those that are not right."""
    if len(reports) == 1:
        return Group(*_report(reports[0]))
    parts: list[Any] = []
    for report in reports:
        if not report.ok:
            parts += [*_report(report), Text()]
    longest = max((cell_len(report.name) for report in reports), default=0)
    table = grid(words.overview(reports), least=(0, min(longest, 40), 0))
    return Group(*parts, table, Text(), Text(words.totals(reports), style="bold"))


def _report(report: CheckResult) -> Iterator[Any]:
    yield Text(report.name, style="bold")
    if report.settings:
        yield Text(" · ".join(words.settings(report)), style="dim")
    if report.rows:
        yield Text()
        yield _Rows(report.rows)
    for finding in report.findings:
        yield Text()
        yield from _finding(finding)
    for heading, sentences in (("not decided", report.reasons), ("note", report.notes)):
        if sentences:
            yield Text()
            yield _labelled((heading, Text(sentence)) for sentence in sentences)
    if report.findings:
        yield Rule(style="red", characters="─")
    else:
        yield Text()
    yield Text(words.summary(report), style=STYLES[words.STATES[report.verdict]])
    if words.rerun(report):
        yield _Verbatim(lambda width: words.broken(f"  again: {words.rerun(report)}", width), "dim")


class _Rows:
    """The table of what was checked; where there is room, its names stay on one line."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Any]:
        cells = [(row.checked, words.error(row.error), words.error(row.limit)) for row in self.rows]
        every = zip(("checked", "error", "limit"), *cells)
        widths = [max(map(cell_len, column)) for column in every]
        names = min(widths[0], max(16, options.max_width // 2 - 8))
        rest = options.max_width - (1 + names + widths[1] + widths[2]) - 2 * 4
        widths = [1, names, widths[1], widths[2], max(rest, 8)]
        yield grid(words.rows(self.rows), widths=widths)


class _Heading:
    """A heading has a rule behind it, or is broken into lines where the width is not enough."""

    def __init__(self, text: str) -> None:
        self.text = Text(text, style="bold red")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Any]:
        fits = self.text.cell_len + 2 <= options.max_width
        yield Rule(self.text, align="left", style="red", characters="─") if fits else self.text


def _finding(finding: Finding) -> Iterator[Any]:
    yield _Heading(f"✗ {words.title(finding)}")
    if finding.message:
        yield Text(finding.message)
    yield Text(words.extent(finding), style="dim")
    if finding.entries:
        yield Text()
        yield grid(words.entries(finding.entries), gap=3)
    lines = list(_what_to_do(finding))
    if lines:
        yield Text()
        yield _labelled(lines)
    if finding.example:
        yield Text()
        yield Text("the smallest input that fails", style="dim")
        yield _Verbatim(lambda width: words.numpy_code(finding.example, width))


def _what_to_do(finding: Finding) -> Iterator[tuple[str, Any]]:
    for position, explanation in enumerate(finding.explanations):
        yield ("looks like" if position == 0 else ""), Text(explanation)
    if finding.where:
        yield "written at", Text(words.place(finding.where), style="bold cyan")
        if finding.where.text and not words.shown_by_repair(finding):
            yield "", Text(finding.where.text)
    if finding.repair:
        repair = finding.repair
        yield "repair", Text(repair.message)
        if words.repaired_elsewhere(finding):
            yield "", Text(words.place(repair.place), style="bold cyan")
        before, after = words.edits(repair)
        if before or after:
            yield "", _edit(before, after)


def _edit(before: str, after: str) -> Table:
    table = Table.grid(padding=(0, 1, 0, 0))
    for sign, code, style in (("−", before, "red"), ("+", after, "green")):
        for line in code.splitlines():
            table.add_row(Text(sign, style=style), Text(line, style=style))
    return table


def _labelled(lines: Iterable[tuple[str, Any]]) -> Table:
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(width=LABEL - 1, no_wrap=True)
    table.add_column(overflow="fold")
    previous = None
    for label, text in lines:
        table.add_row(Text("" if label == previous else label, style="dim"), text)
        previous = label or previous
    return table


class _Verbatim:
    """Text to be copied: at the left margin, its lines broken for the width by itself alone."""

    def __init__(self, text: Callable[[int], str], style: str = "") -> None:
        self.text, self.style = text, style

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Any]:
        text = self.text(options.max_width)
        yield Text(text, style=self.style, no_wrap=True, overflow="ignore")
