"""Reports as JUnit XML, which most build servers show as a table of tests.

A test suite is a report, a test case a row of its table. A finding that no row stands for is a
test case too, and so is a verdict that could not be reached.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from functional_bp.gradcheck.findings import CheckResult, Finding, Row
from functional_bp.gradcheck.formats import words

# Characters that XML 1.0 does not allow (its section 2.2).
FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render(reports: Sequence[CheckResult]) -> str:
    """All reports in one file."""
    root = ElementTree.Element("testsuites", name="functional-bp check")
    suites = [_suite(report) for report in reports]
    root.extend(suites)
    for count in ("tests", "failures", "skipped"):
        root.set(count, str(sum(int(suite.get(count, "0")) for suite in suites)))
    root.set("errors", "0")
    root.set("time", f"{sum(report.seconds for report in reports):.3f}")
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _suite(report: CheckResult) -> ElementTree.Element:
    explained, others = words.explained(report)
    cases = [_row(report, row, explained.get(at, [])) for at, row in enumerate(report.rows)]
    for finding in others:
        case = _case(report, words.title(finding))
        _failure(case, [finding])
        cases.append(case)
    if report.reasons:
        case = _case(report, "verdict")
        ElementTree.SubElement(case, "skipped", message=_clean("; ".join(report.reasons)))
        cases.append(case)
    suite = ElementTree.Element(
        "testsuite",
        name=_clean(report.name),
        tests=str(len(cases)),
        failures=str(sum(case.find("failure") is not None for case in cases)),
        errors="0",
        skipped=str(sum(case.find("skipped") is not None for case in cases)),
        time=f"{report.seconds:.3f}",
    )
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in report.settings.items():
        ElementTree.SubElement(properties, "property", name=_clean(name), value=_clean(str(value)))
    suite.extend(cases)
    if report.notes:
        ElementTree.SubElement(suite, "system-out").text = _clean("\n".join(report.notes))
    return suite


def _row(report: CheckResult, row: Row, findings: Sequence[Finding]) -> ElementTree.Element:
    case = _case(report, row.checked)
    if findings:
        _failure(case, findings)
    elif row.outcome == "wrong":
        error = f"error {words.error(row.error)}, limit {words.error(row.limit)}"
        message = f"{row.checked} is wrong: {error}, against {row.against}"
        ElementTree.SubElement(case, "failure", message=_clean(message), type="wrong")
    elif row.outcome in ("unresolved", "left out"):
        message = f"{words.MEANINGS[words.SYMBOLS[row.outcome]]}: {row.against}"
        ElementTree.SubElement(case, "skipped", message=_clean(message))
    elif row.outcome == "note":
        ElementTree.SubElement(case, "system-out").text = _clean(row.against)
    return case


def _case(report: CheckResult, name: str) -> ElementTree.Element:
    return ElementTree.Element("testcase", classname=_clean(report.name), name=_clean(name))


def _failure(case: ElementTree.Element, findings: Sequence[Finding]) -> None:
    first = findings[0]
    failure = ElementTree.SubElement(
        case, "failure", message=_clean(words.title(first)), type=_clean(first.kind)
    )
    failure.text = _clean("\n\n".join(words.detail(finding) for finding in findings))
    if first.where:
        case.set("file", _clean(words.short_path(first.where.file)))
        case.set("line", str(first.where.line))


def _clean(text: str) -> str:
    return FORBIDDEN.sub("�", text)
