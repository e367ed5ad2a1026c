"""All rules and their cases, as parameters of tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sampling import LARGE

import functional_bp as bp
from functional_bp.engine.rule import Rule


def all_cases() -> list[Any]:
    """One parameter per rule and case, named chapter-primitive-number."""
    return [
        pytest.param(rule, k, id=f"{Path(rule.file).stem}-{rule.primitive.name}-{k}")
        for rule in bp.rules.values()
        for k in range(len(rule.cases))
    ]


def sampled_cases() -> list[Any]:
    """The first case of every third rule, for a property of its own that takes long."""
    return [p for p in all_cases() if p.values[1] == 0 and name_of(*p.values) not in LARGE][::3]


def one_of_three(start: int) -> list[Any]:
    """Of each rule every third case from ``start`` on, one at least: three slices give all."""
    return [p for p in all_cases() if p.values[1] % 3 == start % min(3, len(p.values[0].cases))]


def name_of(rule: Rule, k: int) -> str:
    return rule.primitive.name
