"""Which of many equal cases run by default, by one rule; the others run with the long tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest


def sampled(
    cases: Iterable[Any],
    every: int,
    *,
    kind: Callable[..., Any] = lambda *_: None,
    at_first: int = 1,
) -> list[Any]:
    """Parameters: of each kind the first ones and each ``every``-th after them run by default.

    A case is a value, a tuple of values or a ``pytest.param``; ``kind`` is given its values.
    """
    seen: Counter[Any] = Counter()
    parameters = []
    for case in cases:
        param = case if hasattr(case, "marks") else pytest.param(*_values(case))
        group = kind(*param.values)
        place = seen[group] - at_first
        seen[group] += 1
        chosen = place < 0 or (place + 1) % every == 0
        marks = param.marks if chosen else (*param.marks, pytest.mark.long)
        parameters.append(pytest.param(*param.values, id=param.id, marks=marks))
    return parameters


def by_default(parameters: Iterable[Any]) -> list[tuple[Any, ...]]:
    """The values of those parameters that are not left to the long tests."""
    marked = lambda param: any(mark.name == "long" for mark in param.marks)  # noqa: E731
    return [param.values for param in parameters if not marked(param)]


def _values(case: Any) -> tuple[Any, ...]:
    return case if isinstance(case, tuple) else (case,)
