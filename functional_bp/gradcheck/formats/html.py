"""A report is written as HTML that stands by itself: light and dark, and nothing is fetched."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources

from functional_bp.gradcheck.findings import CheckResult, Finding, Repair
from functional_bp.gradcheck.formats import words
from functional_bp.tables import html as tables
from functional_bp.tables.table import Table

OWN_STYLE = resources.files("functional_bp.gradcheck.formats").joinpath("report.css")
STYLE = tables.STYLE + OWN_STYLE.read_text(encoding="utf-8")
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
</head>
<body class="bp page">
{body}
</body>
</html>
"""


def render(reports: Sequence[CheckResult]) -> str:
    """Write a page of its own."""
    name = reports[0].name if len(reports) == 1 else words.totals(reports)
    return PAGE.format(title=escape(f"{name} – functional-bp check"), body=fragment(reports))


def fragment(reports: Sequence[CheckResult]) -> str:
    """Write what a notebook shows below a cell."""
    parts = [_overview(reports)] if len(reports) > 1 else []
    parts += [_report(report, f"r{position}") for position, report in enumerate(reports)]
    return f'<div class="bp reports"><style>{STYLE}</style>\n{"".join(parts)}</div>'


def _overview(reports: Sequence[CheckResult]) -> str:
    table = _wide(words.overview(reports), "rows")
    return f"<article><h2>{escape(words.totals(reports))}</h2>{table}</article>\n"


def _report(report: CheckResult, anchor: str) -> str:
    parts = [
        f'<article id="{anchor}">',
        f"<h2>{escape(report.name)}</h2>",
        f'<p class="quiet">{escape(" · ".join(words.settings(report)))}</p>',
        f'<p class="verdict {words.STATES[report.verdict]}">{escape(words.summary(report))}</p>',
    ]
    parts += [_wide(words.rows(report.rows), "rows")] if report.rows else []
    parts += [_finding(finding) for finding in report.findings]
    for heading, sentences in (("Not decided", report.reasons), ("Notes", report.notes)):
        parts += [f"<h4>{heading}</h4>", _list(sentences)] if sentences else []
    if words.rerun(report):
        again = escape(words.broken(words.rerun(report), 100))
        parts.append(f"<footer><h4>Check it again</h4><pre>{again}</pre></footer>")
    return "\n".join([*parts, "</article>\n"])


def _finding(finding: Finding) -> str:
    parts = [f"<section><h3>✗ {escape(words.title(finding))}</h3>"]
    parts += [f"<p>{_escape(finding.message)}</p>"] if finding.message else []
    parts.append(f'<p class="quiet">{escape(words.extent(finding))}</p>')
    parts += [_wide(words.entries(finding.entries))] if finding.entries else []
    if finding.explanations:
        parts += ["<h4>What it looks like</h4>", _list(finding.explanations)]
    if finding.where:
        parts.append(f"<h4>Written at {escape(words.place(finding.where))}</h4>")
        if finding.where.text and not words.shown_by_repair(finding):
            parts.append(f"<pre>{escape(finding.where.text)}</pre>")
    parts += [_repair(finding, finding.repair)] if finding.repair else []
    if finding.example:
        code = escape(words.numpy_code(finding.example))
        parts.append(f"<h4>The smallest input that fails</h4><pre>{code}</pre>")
    return "\n".join([*parts, "</section>"])


def _repair(finding: Finding, repair: Repair) -> str:
    where = f" at {words.place(repair.place)}" if words.repaired_elsewhere(finding) else ""
    text = f"<h4>Repair{escape(where)}</h4>"
    text += f"<p>{_escape(repair.message)}</p>" if repair.message else ""
    before, after = words.edits(repair)
    lines = [("before", f"− {line}") for line in before.splitlines()]
    lines += [("after", f"+ {line}") for line in after.splitlines()]
    spans = "".join(f'<span class="{kind}">{escape(line)}</span>' for kind, line in lines)
    return text + (f'<pre class="edit">{spans}</pre>' if spans else "")


def _wide(table: Table, kind: str = "") -> str:
    """A table that is scrolled where a page is too narrow."""
    return f'<div class="{f"wide {kind}".strip()}">{tables.element(table)}</div>'


def _list(sentences: Iterable[str]) -> str:
    items = "".join(f"<li>{_escape(sentence)}</li>" for sentence in sentences)
    return f"<ul>{items}</ul>"


def _escape(text: str) -> str:
    """With the line breaks that the text has."""
    return escape(text).replace("\n", "<br>")
