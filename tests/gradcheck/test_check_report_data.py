"""The report of a check for programs, as JSON: complete, and read back as it was."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from sample_reports import (
    ALL,
    ARRAYS,
    WRONG,
    nasty,
    with_example,
)

from functional_bp.gradcheck.findings import Finding, Kind
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


def test_what_the_searches_alone_ask_for_is_no_part_of_a_report() -> None:
    plain = WRONG.findings[0]
    searched = dataclasses.replace(plain, cost=3.0, fresh_samples=2, cut_short=True)
    assert searched == plain and repr(searched) == repr(plain)
    assert (
        dataclasses.replace(WRONG, findings=(searched,)).to_json()
        == dataclasses.replace(WRONG, findings=(plain,)).to_json()
    )


def test_a_kind_is_one_of_an_enumeration_and_equals_its_text() -> None:
    finding = Finding("mean or sum", "", also=("factor",))
    assert finding.kind is Kind.MEAN_OR_SUM and finding.also == (Kind.FACTOR,)
    assert finding.kind == "mean or sum" and f"{finding.kind}" == "mean or sum"
    with pytest.raises(ValueError, match="no such kind"):
        Finding("no such kind", "")


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
