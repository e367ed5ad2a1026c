"""A report is written as Markdown, for a pull request or an issue."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from functional_bp.gradcheck.findings import CheckResult, Finding
from functional_bp.gradcheck.formats import words
from functional_bp.tables.markdown import escaped, lines


def render(reports: Sequence[CheckResult]) -> str:
    """Write one report in full; of several, a table, and in full those that are not right."""
    if len(reports) == 1:
        return "\n".join(_report(reports[0])) + "\n"
    parts = [f"## {words.totals(reports)}", "", *lines(words.overview(reports))]
    for report in reports:
        if not report.ok:
            parts += ["", *_report(report)]
    return "\n".join(parts) + "\n"


def _report(report: CheckResult) -> Iterator[str]:
    yield f"## {_text(report.name)}"
    yield ""
    yield f"**{_text(words.summary(report))}**  "
    yield _text(" · ".join(words.settings(report)))
    if report.rows:
        yield from ("", *lines(words.rows(report.rows)))
    for finding in report.findings:
        yield ""
        yield from _finding(finding)
    for heading, sentences in (("Not decided", report.reasons), ("Notes", report.notes)):
        if sentences:
            yield from ("", f"**{heading}**", "", *(f"- {_text(text)}" for text in sentences))
    if words.rerun(report):
        yield from ("", "Check it again:", "", *_fence(words.rerun(report), "console"))


def _finding(finding: Finding) -> Iterator[str]:
    yield f"### ✗ {_text(words.title(finding))}"
    yield ""
    if finding.message:
        yield f"{_text(finding.message)}  "
    yield _text(words.extent(finding))
    if finding.entries:
        yield from ("", *lines(words.entries(finding.entries)))
    if finding.explanations:
        yield from ("", "What it looks like:", "")
        yield from (f"- {_text(explanation)}" for explanation in finding.explanations)
    if finding.where:
        yield from ("", f"Written at `{words.place(finding.where)}`")
        if finding.where.text and not words.shown_by_repair(finding):
            yield from ("", *_fence(finding.where.text, "python"))
    if finding.repair:
        where = f" at `{words.place(finding.repair.place)}`"
        where = where if words.repaired_elsewhere(finding) else ""
        yield from ("", f"Repair{where}: {_text(finding.repair.message)}".rstrip(": "))
        before, after = words.edits(finding.repair)
        edit = [f"- {line}" for line in before.splitlines()]
        edit += [f"+ {line}" for line in after.splitlines()]
        if edit:
            yield from ("", *_fence("\n".join(edit), "diff"))
    if finding.example:
        code = words.numpy_code(finding.example)
        yield from ("", "The smallest input that fails:", "", *_fence(code, "python"))


def _fence(code: str, language: str) -> Iterator[str]:
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", code)), default=0))
    yield from (f"{ticks}{language}", code, ticks)


def _text(text: str) -> str:
    """With Markdown's own characters escaped, on one line."""
    return escaped(" ".join(text.split()))
