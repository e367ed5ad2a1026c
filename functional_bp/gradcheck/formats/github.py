"""Findings as the workflow commands by which GitHub Actions annotates the source of a change.

References: docs.github.com, "Workflow commands for GitHub Actions", "Setting an error message".
"""

from __future__ import annotations

from collections.abc import Sequence

from functional_bp.gradcheck.findings import CheckResult, Place
from functional_bp.gradcheck.formats import words


def render(reports: Sequence[CheckResult]) -> str:
    """A line for every finding, for every reason that kept back a verdict, and for every note."""
    lines: list[str] = []
    for report in reports:
        for finding in report.findings:
            title = f"{report.name}: {words.title(finding)}"
            where = finding.where or (finding.repair.place if finding.repair else None)
            lines.append(_command("error", title, words.detail(finding), where))
        for reason in report.reasons:
            lines.append(_command("warning", f"{report.name}: not decided", reason))
        for note in report.notes:
            lines.append(_command("notice", report.name, note))
    lines.append(words.totals(reports))
    return "\n".join(lines) + "\n"


def _command(level: str, title: str, message: str, where: Place | None = None) -> str:
    properties = {"file": words.short_path(where.file), "line": str(where.line)} if where else {}
    properties["title"] = title
    listed = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
    return f"::{level} {listed}::{_data(message)}"


def _data(text: str) -> str:
    """As ``escapeData`` of the Actions toolkit."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    """As ``escapeProperty`` of the Actions toolkit."""
    return _data(text).replace(":", "%3A").replace(",", "%2C")
