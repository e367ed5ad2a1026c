"""How often each property of the rules really compared something, over a whole run of the tests.

A property has nothing to say of some cases: an output alone where there is only one, a second
derivative where JAX has none. Were it to fall silent on all of them, no test would fail. So a run
of many cases fails where a property compared less often than its floor.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

# The least share of the cases, of those that run by default and of the long ones.
FLOORS = {
    "value": 0.9, "cotangent": 0.9, "linear in the cotangent": 0.9, "low precision": 0.7,
    "adjoint identity": 0.7, "second order": 0.7, "vmap against a loop": 0.6,
    "every subset of active arguments": 0.1, "every output alone": 0.01,
}  # fmt: skip
MANY = 30  # cases; fewer are somebody's choice
CHANCE = 3  # comparisons; a floor below it can be missed by the choice of a sample alone

cases = 0
compared: Counter[str] = Counter()


def count(report: Any) -> None:
    """Add what a test's report says that it compared (``record_property``)."""
    global cases
    for name, value in report.user_properties if report.when == "call" else ():
        if name == "compared":
            cases += 1
            compared.update(value)


def silent() -> list[str]:
    """The properties that compared less often than they must, each in a sentence."""
    if cases < MANY:
        return []
    return [
        f"{name!r} was compared in {compared[name]} of {cases} cases, not in {floor:.0%} of them"
        for name, floor in FLOORS.items()
        if compared[name] < floor * cases and floor * cases >= CHANCE
    ]


def fail_if_silent(session: pytest.Session) -> None:
    """Make the run fail, and say why, where a property has fallen silent."""
    if hasattr(session.config, "workerinput"):  # whoever started this process counts
        return
    for sentence in silent():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        reporter: Any = session.config.pluginmanager.get_plugin("terminalreporter")
        reporter.write_line(sentence, red=True)
