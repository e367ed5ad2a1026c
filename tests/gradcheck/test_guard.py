"""The guard around a person's code: their errors are counted, those of the package come through."""

from __future__ import annotations

from typing import Any

import pytest

from functional_bp.gradcheck import guard
from functional_bp.gradcheck.clock import TimeUp
from functional_bp.gradcheck.guard import Guard, swallowed


def fails() -> Any:
    return {}["a key that a person has forgotten"]


def test_what_a_person_raises_is_caught_and_counted() -> None:
    before = sum(swallowed.values())
    with Guard("a claim") as ran:
        fails()
    assert isinstance(ran.error, KeyError) and sum(swallowed.values()) == before + 1
    assert any(caught[1:] == ("a claim", "KeyError") for caught in swallowed)


def test_nothing_is_counted_where_nothing_is_raised() -> None:
    before = sum(swallowed.values())
    with Guard("a claim") as ran:
        pass
    assert ran.error is None and sum(swallowed.values()) == before


def test_a_fault_of_the_package_comes_through_in_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    broken: Any = lambda: guard.is_own_fault(None)  # type: ignore[arg-type]
    with pytest.raises(AttributeError), Guard("a claim"):
        broken()
    monkeypatch.setattr(guard, "OWN_FAULTS_RAISE", False)
    with Guard("a claim") as ran:
        broken()
    assert isinstance(ran.error, AttributeError)


def test_an_interruption_comes_through() -> None:
    with pytest.raises(TimeUp), Guard("a claim"):
        raise TimeUp


def test_what_is_said_of_an_error() -> None:
    with Guard("a claim") as ran:
        raise ValueError("\n one\ntwo")
    assert (ran.raised, ran.message) == ("ValueError", "one")
    with Guard("a claim") as ran:
        fails()
    assert ran.place is not None and ran.place.text.startswith("return {}[")
    with Guard("a claim") as ran:
        raise ValueError
    assert ran.message == ""
