"""Every rule on every case of the registry, by property: no rule is named here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import enclosures
import pytest
from measuring import compiled, measure
from properties import PROPERTIES, close, tolerance
from sampling import by_default, sampled

import functional_bp as bp
from functional_bp.rule import Rule


def all_cases() -> list[Any]:
    """One parameter per rule and case, named chapter-primitive-number."""
    return [
        pytest.param(rule, k, id=f"{Path(rule.file).stem}-{rule.primitive.name}-{k}")
        for rule in bp.rules.values()
        for k in range(len(rule.cases))
    ]


def name_of(rule: Rule, k: int) -> str:
    return rule.primitive.name


CASES = sampled(all_cases(), 16, kind=name_of)


@pytest.mark.parametrize(("rule", "k"), CASES)
def test_every_property_holds(rule: Rule, k: int) -> None:
    numbers = measure(rule.cases[k], seed=k)
    faults = []
    for name, check in PROPERTIES.items():
        try:
            check(numbers)
        except AssertionError as error:
            faults.append(f"{name}: {error}")
    assert not faults, f"{rule.file}:{rule.line}, case {k}\n" + "\n".join(faults)


def test_every_rule_is_held_to_its_first_case_by_default() -> None:
    chosen = {(rule.primitive.name, k) for rule, k in (p.values for p in by_default(CASES))}
    assert chosen >= {(p.name, 0) for p, rule in bp.rules.items() if rule.cases}


def chapter_of(rule: Rule, k: int) -> str:
    return Path(rule.file).stem


# Even the long tests take a sample here: of each rule the first case and every fourth after it.
INSIDE = by_default(sampled(all_cases(), 4, kind=name_of))


@pytest.mark.parametrize(("rule", "k"), sampled(INSIDE, 64, kind=chapter_of))
def test_inside_other_transforms(rule: Rule, k: int) -> None:
    numbers = enclosures.measure(rule.cases[k], bp.vjp, compiled)
    probe = numbers["probe"]
    for name, bars in numbers["found"].items():
        for i, (got, want) in enumerate(zip(bars, numbers["true"], strict=True)):
            close(got, want, tolerance(probe), f"{name}, argument {probe.active[i]}")
