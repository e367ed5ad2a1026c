"""The rule by which cases run by default keeps one of each kind, and loses none."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rule_cases import all_cases, one_of_three
from sampling import SLOW, by_default, leave_to_long, sampled


def test_the_first_and_every_third_after_it() -> None:
    parameters = sampled(range(8), 3)
    assert [p.values for p in parameters] == [(k,) for k in range(8)]
    assert [p.values for p in by_default(parameters)] == [(0,), (3,), (6,)]


def test_each_kind_has_its_own_first() -> None:
    cases = [("a", 1), ("b", 1), ("a", 2), ("a", 3), ("c", 1), ("b", 2)]
    chosen = by_default(sampled(cases, 2, kind=lambda name, _: name))
    assert [p.values for p in chosen] == [("a", 1), ("b", 1), ("a", 3), ("c", 1)]


def test_three_slices_give_all_cases_and_each_has_every_rule() -> None:
    slices = [{p.id for p in one_of_three(start)} for start in range(3)]
    assert set.union(*slices) == {p.id for p in all_cases()}
    for found in slices:
        names = {id.rpartition("-")[0] for id in found}
        assert names == {p.id.rpartition("-")[0] for p in all_cases()}


def test_names_and_marks_are_kept() -> None:
    given = [pytest.param(k, id=f"case {k}", marks=pytest.mark.libraries) for k in range(2)]
    for parameter, marks in zip(sampled(given, 5), [{"libraries"}, {"libraries", "long"}]):
        assert parameter.id == f"case {parameter.values[0]}"
        assert {mark.name for mark in parameter.marks} == marks


def test_every_second_function_of_a_slow_module() -> None:
    marked: list[str] = []

    def item(name: str) -> Any:
        return SimpleNamespace(nodeid=name, add_marker=lambda mark: marked.append(name))

    names = ["tests/test_slow.py::test_a", "tests/test_slow.py::test_b[0]",
             "tests/test_slow.py::test_b[1::2]", "tests/test_slow.py::test_c",
             "tests/test_quick.py::test_b"]  # fmt: skip
    leave_to_long([item(name) for name in names], {"test_slow": 2})
    assert marked == names[1:3]


def test_slow_modules_exist() -> None:
    there = {file.stem for file in Path(__file__).parent.rglob("*.py")}
    assert set(SLOW) <= there
