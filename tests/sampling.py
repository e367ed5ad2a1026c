"""Which of many equal cases run by default, by one rule; the others run with the long tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest


def sampled(
    cases: Iterable[Any], every: int, *, kind: Callable[..., Any] = lambda *_: None
) -> list[Any]:
    """Parameters: of each kind the first and each ``every``-th after it run by default.

    A case is a value, a tuple of values or a ``pytest.param``; ``kind`` is given its values.
    """
    seen: Counter[Any] = Counter()
    parameters = []
    for case in cases:
        if not hasattr(case, "marks"):  # a named tuple is one value
            case = pytest.param(*(case if type(case) is tuple else (case,)))
        group = kind(*case.values)
        marks = case.marks if seen[group] % every == 0 else (*case.marks, pytest.mark.long)
        seen[group] += 1
        parameters.append(pytest.param(*case.values, id=case.id, marks=marks))
    return parameters


def by_default(parameters: Iterable[Any]) -> list[Any]:
    """Those parameters that are not left to the long tests."""
    return [p for p in parameters if not any(mark.name == "long" for mark in p.marks)]
