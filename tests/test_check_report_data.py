"""The report of a check for programs (JSON, JUnit, GitHub's lines): complete and escaped."""

from __future__ import annotations

import dataclasses
import json
from xml.etree import ElementTree

import numpy as np
import pytest
from sample_reports import (
    ALL,
    ARRAYS,
    NASTY,
    OPEN,
    REGION,
    RIGHT,
    WRONG,
    nasty,
    with_example,
)

from functional_bp.gradcheck.findings import Finding, Place
from functional_bp.gradcheck.formats import github, junit, words
from functional_bp.gradcheck.formats import json as json_format
from functional_bp.gradcheck.report import Report

# JSON


@pytest.mark.parametrize("report", [*ALL, nasty()], ids=lambda report: report.verdict)
def test_json_holds_everything(report: Report) -> None:
    written = report.to_json()
    read = Report.from_json(written)
    assert read.to_json() == written
    bare = lambda r: dataclasses.replace(r, findings=())
    assert bare(read) == bare(report)
    assert [f.where for f in read.findings] == [f.where for f in report.findings]
    assert [f.repair for f in read.findings] == [f.repair for f in report.findings]
    json.loads(written, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_json_arrays_come_back_as_they_were() -> None:
    read = Report.from_json(with_example(**{k: np.asarray(v) for k, v in ARRAYS.items()}).to_json())
    for name, array in ARRAYS.items():
        got = read.findings[0].example[name]
        assert got.dtype == np.asarray(array).dtype
        assert np.array_equal(got, np.asarray(array), equal_nan=got.dtype.kind in "fc")


def test_json_entries_keep_what_is_not_finite() -> None:
    entry = Report.from_json(WRONG.to_json()).findings[1].entries[0]
    assert entry.claimed != entry.claimed and entry.claimed.imag == 2.0 and entry.true == 1 - 3j


@pytest.mark.parametrize(
    ("written", "got"),
    [
        ("[]", "list"),
        ("{}", "no version"),
        (json_format.render(ALL), "version 1"),
        ('{"version": 99, "verdict": "right"}', "version 99"),
    ],
)
def test_json_that_is_no_report_is_refused(written: str, got: str) -> None:
    with pytest.raises(ValueError, match="this is not the JSON of one report") as refused:
        Report.from_json(written)
    assert f"got:      {got}" in str(refused.value) and "report.to_json()" in str(refused.value)


def test_json_of_several() -> None:
    every = json.loads(json_format.render(ALL))["reports"]
    assert [r["verdict"] for r in every] == ["wrong", "right", "inconclusive"]


# JUnit


def test_junit_has_a_case_for_every_row_and_finding() -> None:
    root = ElementTree.fromstring(junit.render(ALL))
    assert [suite.get("name") for suite in root] == [report.name for report in ALL]
    layer_norm = root[0]
    cases = {case.get("name"): case for case in layer_norm.iter("testcase")}
    assert list(cases) == [*(row.checked for row in WRONG.rows), words.title(REGION)]
    failure = cases["cotangent of x"].find("failure")
    assert failure is not None and failure.get("type") == "missing term"
    assert "+ x_bar = r * (a" in (failure.text or "")
    assert (cases["cotangent of x"].get("file"), cases["cotangent of x"].get("line")) == (
        "mypackage/ops.py", "19")  # fmt: skip
    assert cases["value"].find("failure") is None
    skipped = [cases[name].find("skipped") for name in ("vmap", "sharding")]
    assert [s.get("message") for s in skipped if s is not None] == [
        "not decided: took longer than 20 s", "left out: one device only"]  # fmt: skip
    counts = {name: layer_norm.get(name) for name in ("tests", "failures", "skipped")}
    assert counts == {"tests": "9", "failures": "2", "skipped": "2"}
    assert {name: root.get(name) for name in counts} == {
        "tests": "12", "failures": "2", "skipped": "4"}  # fmt: skip
    verdict = root[2].findall("testcase")[-1].find("skipped")
    assert verdict is not None and verdict.get("message", "").startswith("no witness settled")


def test_junit_of_a_wrong_row_without_finding() -> None:
    report = dataclasses.replace(WRONG, findings=())
    failure = ElementTree.fromstring(report.to_junit()).find(".//failure")
    assert failure is not None and failure.get("message") == (
        "cotangent of x is wrong: error 0.53, limit 1e-6, against jax.vjp and finite differences"
    )


def test_junit_escapes() -> None:
    root = ElementTree.fromstring(nasty().to_junit())  # raises for a character XML has not
    assert root[0].get("name") == NASTY.replace("\x07", "�")


# Annotations


def test_github_lines() -> None:
    finding = Finding("sign", "50 % wrong\nnamely half", "x", where=Place("a,b:c.py", 7, "x = 1"))
    report = Report("m:f", "wrong", (finding,))
    first, *rest = github.render([report, OPEN, RIGHT]).splitlines()
    assert first == (
        "::error file=a%2Cb%3Ac.py,line=7,title=m%3Af%3A cotangent of x%3A the sign is wrong::"
        "50 %25 wrong%0Anamely half%0Aon the given inputs%0Aat a,b:c.py:7  x = 1"
    )
    assert rest == [
        "::warning title=mypackage.ops%3Aslow%3A not decided::"
        "no witness settled: finite differences of x differ by 3e-2",
        "3 gradients: 1 right, 1 wrong, 1 not decided",
    ]
    assert WRONG.to_github().splitlines()[2].startswith("::notice title=mypackage.ops%3Alayer_norm")


def test_github_escapes() -> None:
    lines = nasty().to_github().splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["::error", "::warning", "::notice", "1"]
