"""Which of many equal cases run by default, by one rule; the others run with the long tests.

Where the tests of a module take a second or more each, so do its functions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
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


# Of the functions of these modules each k-th runs by default.
SLOW = {
    "test_bench_train": 2,
    "test_check": 2,
    "test_check_apart": 3,
    "test_check_lines": 3,
    "test_check_patterns": 3,
    "test_check_plugin": 3,
    "test_check_repairs": 3,
    "test_check_repairs_classics": 2,
    "test_check_search": 3,
    "test_check_stages": 2,
    "test_check_steps": 2,
    "test_check_terms": 3,
    "test_demo": 2,
    "test_explain_nonfinite": 2,
    "test_explain_signals": 2,
    "test_explain_tables": 2,
    "test_networks": 2,
    "test_train_checkpoint_killed": 2,
}

# Rules whose properties take seconds to compile, in second order above all: by default value,
# cotangents and the adjoint identity of their first case.
LARGE = {
    "custom_linear_solve", "geqrf", "hessenberg", "householder_product", "igamma", "igamma_grad_a",
    "igammac", "ormqr", "polygamma", "random_gamma", "scatter-max", "scatter-min", "schur",
    "tridiagonal", "zeta",
}  # fmt: skip


def leave_to_long(items: Iterable[pytest.Item], slow: dict[str, int] = SLOW) -> None:
    """Mark the functions of slow modules that do not run by default."""
    functions: dict[str, dict[str, None]] = {}
    for item in items:
        module, _, function = item.nodeid.partition("[")[0].rpartition("::")
        stem = Path(module.partition("::")[0]).stem
        if stem in slow:
            names = functions.setdefault(stem, {})
            names.setdefault(function)
            if list(names).index(function) % slow[stem]:
                item.add_marker(pytest.mark.long)


def by_default(parameters: Iterable[Any]) -> list[Any]:
    """Those parameters that are not left to the long tests."""
    return [p for p in parameters if not any(mark.name == "long" for mark in p.marks)]
