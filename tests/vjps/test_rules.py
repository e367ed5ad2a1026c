"""Every rule on every case of the registry, by property: no rule is named here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import enclosures
import pytest
from measuring import compiled, measure
from properties import PROPERTIES, close, tolerance
from rule_cases import all_cases, name_of, one_of_three, sampled_cases
from sampling import LARGE, by_default, sampled

import functional_bp as bp
from functional_bp.engine.rule import Rule


def is_large(rule: Rule, k: int) -> bool:
    return name_of(rule, k) in LARGE


def long(parameters: list[Any]) -> list[Any]:
    return [pytest.param(*p.values, id=p.id, marks=pytest.mark.long) for p in parameters]


# By default the first case of every sixth rule has every property, that of the others the three
# of first order. Of large rules a slice of the cases has every property.
SAMPLE = sampled_cases()[::2]
SAMPLED, SLICE = ({p.id for p in some} for some in (SAMPLE, one_of_three(0)))
OTHERS = [p for p in all_cases() if p.id not in SAMPLED]
LONG = long([p for p in OTHERS if not is_large(*p.values) or p.id in SLICE])
WHOLE = {p.id for p in LONG}
FIRST = [p for p in OTHERS if p.values[1] == 0]
OTHERS_OF_LARGE = long([p for p in OTHERS if p.values[1] and p.id not in WHOLE])


@pytest.mark.parametrize(("rule", "k"), [*SAMPLE, *LONG])
def test_every_property_holds(rule: Rule, k: int, record_property: Any) -> None:
    record_property("compared", hold(PROPERTIES, measure(rule.cases[k], seed=k), rule, k))


@pytest.mark.parametrize(("rule", "k"), [*FIRST, *OTHERS_OF_LARGE])
def test_value_cotangents_and_adjoint_identity(rule: Rule, k: int) -> None:
    chosen = {name: PROPERTIES[name] for name in ("value", "cotangent", "adjoint identity")}
    hold(chosen, measure(rule.cases[k], seed=k, brief=True), rule, k)


def hold(properties: dict[str, Any], numbers: dict[str, Any], rule: Rule, k: int) -> list[str]:
    """Which properties had something to compare."""
    faults, compared = [], []
    for name, check in properties.items():
        try:
            compared += [name] * check(numbers)
        except AssertionError as error:
            faults.append(f"{name}: {error}")
    assert not faults, f"{rule.file}:{rule.line}, case {k}\n" + "\n".join(faults)
    return compared


def test_every_rule_is_held_to_its_first_case_by_default() -> None:
    run = by_default([*SAMPLE, *LONG, *FIRST])
    chosen = {(rule.primitive.name, k) for rule, k in (p.values for p in run)}
    assert {name for name, _ in chosen} >= LARGE
    assert chosen >= {(p.name, 0) for p, rule in bp.rules.items() if rule.cases}


def chapter_of(rule: Rule, k: int) -> str:
    return Path(rule.file).stem


# Even the long tests take a sample here: of each rule the first case and every fourth after it.
INSIDE = by_default(sampled(all_cases(), 4, kind=name_of))
SMALL = [p for p in INSIDE if not is_large(*p.values)]
LARGE_ONES = long([p for p in INSIDE if is_large(*p.values)])


@pytest.mark.parametrize(("rule", "k"), [*sampled(SMALL, 64, kind=chapter_of), *LARGE_ONES])
def test_inside_other_transforms(rule: Rule, k: int) -> None:
    numbers = enclosures.measure(rule.cases[k], bp.vjp, compiled)
    probe = numbers["probe"]
    for name, bars in numbers["found"].items():
        for i, (got, want) in enumerate(zip(bars, numbers["true"], strict=True)):
            close(got, want, tolerance(probe), f"{name}, argument {probe.active[i]}")
