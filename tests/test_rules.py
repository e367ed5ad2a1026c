"""Every rule on every case of the registry, by property: no rule is named here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import enclosures
import pytest
from measuring import compiled, measure
from properties import PROPERTIES, close, tolerance

import functional_bp as bp
from functional_bp.rule import Rule


def all_cases() -> list[Any]:
    """One parameter per rule and case, named chapter-primitive-number."""
    return [
        pytest.param(rule, k, id=f"{Path(rule.file).stem}-{rule.primitive.name}-{k}")
        for rule in bp.rules.values()
        for k in range(len(rule.cases))
    ]


def sampled_cases() -> list[Any]:
    """The first case of every third rule: each of the chapters has some among them."""
    return [parameter for parameter in all_cases() if parameter.values[1] == 0][::3]


@pytest.mark.parametrize(("rule", "k"), all_cases())
def test_every_property_holds(rule: Rule, k: int) -> None:
    numbers = measure(rule.cases[k], seed=k)
    faults = []
    for name, check in PROPERTIES.items():
        try:
            check(numbers)
        except AssertionError as error:
            faults.append(f"{name}: {error}")
    assert not faults, f"{rule.file}:{rule.line}, case {k}\n" + "\n".join(faults)


def inside(rule: Rule, k: int) -> None:
    numbers = enclosures.measure(rule.cases[k], bp.vjp, compiled)
    probe = numbers["probe"]
    for name, bars in numbers["found"].items():
        for i, (got, want) in enumerate(zip(bars, numbers["true"], strict=True)):
            close(got, want, tolerance(probe), f"{name}, argument {probe.active[i]}")


@pytest.mark.parametrize(("rule", "k"), sampled_cases())
def test_inside_other_transforms(rule: Rule, k: int) -> None:
    inside(rule, k)


SAMPLED = {parameter.id for parameter in sampled_cases()}


@pytest.mark.long
@pytest.mark.parametrize(("rule", "k"), [p for p in all_cases() if p.id not in SAMPLED])
def test_all_cases_inside_other_transforms(rule: Rule, k: int) -> None:
    inside(rule, k)
