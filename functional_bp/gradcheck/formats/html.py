"""A report as HTML that stands by itself: light and dark, and nothing is fetched."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from functional_bp.gradcheck.findings import CheckResult, Finding, Repair, Row
from functional_bp.gradcheck.formats import words

CLASSES = {"✓": "right", "✗": "wrong", "?": "open", "·": "note", "–": "out"}

LIGHT = """
  --page: #f6f5f2; --card: #ffffff; --ink: #1d2125; --quiet: #667078; --line: #e2e0da;
  --right: #1a7f4b; --wrong: #b3261e; --open: #8a6100; --note: #1f6f8b;
  --wrong-tint: #fbeceb; --right-tint: #e9f5ee; --code: #f6f5f2;
"""
DARK = """
  --page: #15181b; --card: #1d2125; --ink: #e6e4df; --quiet: #98a2aa; --line: #343a40;
  --right: #63c995; --wrong: #ff8a80; --open: #e3b955; --note: #74c4de;
  --wrong-tint: #3a2423; --right-tint: #1e3329; --code: #15181b;
"""
STYLE = f"""
.fbp {{ {LIGHT} color-scheme: light;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: var(--ink);
  max-width: 62rem; }}
@media (prefers-color-scheme: dark) {{ .fbp {{ {DARK} color-scheme: dark; }} }}
body[data-jp-theme-light="true"] .fbp, body.vscode-light .fbp {{ {LIGHT} color-scheme: light; }}
body[data-jp-theme-light="false"] .fbp, body.vscode-dark .fbp {{ {DARK} color-scheme: dark; }}
.fbp article {{ background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 1.25rem 1.5rem; margin: 0 0 1.25rem; }}
.fbp h2 {{ font-size: 1.2rem; line-height: 1.3; margin: 0; overflow-wrap: anywhere; }}
.fbp h3 {{ font-size: 1rem; line-height: 1.35; margin: 0 0 .35rem; color: var(--wrong);
  overflow-wrap: anywhere; }}
.fbp h4 {{ font-size: .8rem; font-weight: 600; color: var(--quiet); margin: 1rem 0 .3rem; }}
.fbp a {{ color: inherit; text-decoration-color: var(--quiet); }}
.fbp p {{ margin: .2rem 0; }}
.fbp .quiet {{ color: var(--quiet); font-size: .87rem; }}
.fbp .verdict {{ font-weight: 600; }}
.fbp .right {{ color: var(--right); }} .fbp .wrong {{ color: var(--wrong); }}
.fbp .open {{ color: var(--open); }} .fbp .note {{ color: var(--note); }}
.fbp .out, .fbp .out td {{ color: var(--quiet); }}
.fbp .wide {{ overflow-x: auto; margin: .9rem 0; }}
.fbp table {{ border-collapse: collapse; font-size: .9rem; margin: 0; color: inherit; }}
.fbp table.rows {{ width: 100%; }}
.fbp th {{ text-align: left; font-weight: 500; color: var(--quiet); font-size: .8rem; }}
.fbp th, .fbp td {{ padding: .28rem 1rem .28rem 0; vertical-align: top; background: none;
  text-align: left; }}
.fbp tr + tr td, .fbp thead + tbody td {{ border-top: 1px solid var(--line); }}
.fbp .number {{ text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }}
.fbp td.symbol {{ width: 1.2rem; font-weight: 700; padding-right: .5rem; }}
.fbp code, .fbp pre {{ font: .84rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace;
  background: none; color: inherit; }}
.fbp pre {{ background: var(--code); border: 1px solid var(--line); border-radius: 6px;
  padding: .55rem .75rem; margin: .3rem 0; overflow-x: auto; white-space: pre; }}
.fbp section {{ border-left: 3px solid var(--wrong); padding: .1rem 0 .1rem 1rem;
  margin: 1.4rem 0; }}
.fbp ul {{ margin: .2rem 0; padding-left: 1.1rem; }}
.fbp .edit {{ padding: .35rem 0; }}
.fbp .edit span {{ display: block; padding: 0 .75rem 0 2rem; text-indent: -1.25rem;
  white-space: pre-wrap; overflow-wrap: anywhere; }}
.fbp .edit .before {{ background: var(--wrong-tint); color: var(--wrong); }}
.fbp .edit .after {{ background: var(--right-tint); color: var(--right); }}
.fbp footer {{ border-top: 1px solid var(--line); margin-top: 1.2rem; padding-top: .8rem; }}
.fbp footer h4 {{ margin-top: 0; }}
"""
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ margin: 0; padding: 2rem 1rem; background: #f6f5f2; }}
@media (prefers-color-scheme: dark) {{ body {{ background: #15181b; }} }}
.fbp {{ margin: 0 auto; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def render(reports: Sequence[CheckResult]) -> str:
    """A page of its own."""
    name = reports[0].name if len(reports) == 1 else words.totals(reports)
    return PAGE.format(title=escape(f"{name} – functional-bp check"), body=fragment(reports))


def fragment(reports: Sequence[CheckResult]) -> str:
    """What a notebook shows below a cell."""
    parts = [_overview(reports)] if len(reports) > 1 else []
    parts += [_report(report, f"r{position}") for position, report in enumerate(reports)]
    return f'<div class="fbp"><style>{STYLE}</style>\n{"".join(parts)}</div>'


def _report(report: CheckResult, anchor: str) -> str:
    parts = [
        f'<article id="{anchor}">',
        f"<h2>{escape(report.name)}</h2>",
        f'<p class="quiet">{escape(" · ".join(words.settings(report)))}</p>',
        f'<p class="verdict {_class(report.verdict)}">{escape(words.summary(report))}</p>',
    ]
    parts += [_rows(report.rows)] if report.rows else []
    parts += [_finding(finding) for finding in report.findings]
    for heading, sentences in (("Not decided", report.reasons), ("Notes", report.notes)):
        parts += [f"<h4>{heading}</h4>", _list(sentences)] if sentences else []
    if words.rerun(report):
        again = escape(words.broken(words.rerun(report), 100))
        parts.append(f"<footer><h4>Check it again</h4><pre>{again}</pre></footer>")
    return "\n".join([*parts, "</article>\n"])


def _rows(rows: Sequence[Row]) -> str:
    body = "".join(
        f'<tr class="{"out" if row.outcome == "left out" else ""}">'
        f'<td class="symbol {_class(row.outcome)}" title="{row.outcome}">'
        f"{words.SYMBOLS[row.outcome]}</td><td>{escape(row.checked)}</td>"
        f'<td class="number{" wrong" if row.outcome == "wrong" else ""}">'
        f"{words.error(row.error)}</td>"
        f'<td class="number quiet">{words.error(row.limit)}</td>'
        f"<td>{escape(row.against)}</td></tr>\n"
        for row in rows
    )
    head = '<th></th><th>checked</th><th class="number">error</th><th class="number">limit</th>'
    return _table(head + "<th>against</th>", body, "rows")


def _finding(finding: Finding) -> str:
    parts = [f"<section><h3>✗ {escape(words.title(finding))}</h3>"]
    parts += [f"<p>{_escape(finding.message)}</p>"] if finding.message else []
    parts.append(f'<p class="quiet">{escape(words.extent(finding))}</p>')
    if finding.entries:
        body = "".join(
            f'<tr><td class="quiet">{index}</td><td class="number">{claimed}</td>'
            f'<td class="number">{true}</td><td class="number wrong">{gap}</td></tr>\n'
            for index, claimed, true, gap in words.columns(finding.entries)
        )
        names = ("yours", "true", "yours − true")
        head = "".join(f'<th class="number">{name}</th>' for name in names)
        parts.append(_table(f"<th>index</th>{head}", body, "entries"))
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


def _overview(reports: Sequence[CheckResult]) -> str:
    body = "".join(
        f'<tr><td class="symbol {_class(report.verdict)}">{words.SYMBOLS[report.verdict]}</td>'
        f'<td><a href="#r{position}">{escape(report.name)}</a></td>'
        f'<td class="{_class(report.verdict)}">{escape(words.found(report))}</td></tr>\n'
        for position, report in enumerate(reports)
    )
    table = _table("<th></th><th>gradient</th><th>found</th>", body, "rows")
    return f"<article><h2>{escape(words.totals(reports))}</h2>{table}</article>\n"


def _table(head: str, body: str, kind: str) -> str:
    return (
        f'<div class="wide"><table class="{kind}"><thead><tr>{head}</tr></thead>'
        f"<tbody>\n{body}</tbody></table></div>"
    )


def _list(sentences: Iterable[str]) -> str:
    items = "".join(f"<li>{_escape(sentence)}</li>" for sentence in sentences)
    return f"<ul>{items}</ul>"


def _escape(text: str) -> str:
    """With the line breaks that the text has."""
    return escape(text).replace("\n", "<br>")


def _class(outcome: str) -> str:
    return CLASSES[words.SYMBOLS[outcome]]
