"""What a wrong gradient looks like, where the fault stands, and what to write instead."""

from __future__ import annotations

import time

import numpy as np

from functional_bp.check.diagnosis.numbers.hypothesis import Hypothesis
from functional_bp.check.diagnosis.numbers.search import hypotheses
from functional_bp.check.findings import Place
from functional_bp.check.subject import Diagnosis, Disagreement, Sample, Subject


def diagnose(disagreement: Disagreement, deadline: float) -> Diagnosis:
    """Search for what explains a disagreement, until ``time.monotonic()`` is ``deadline``."""
    found: list[Hypothesis] = hypotheses(disagreement, deadline)
    if not found:
        return Diagnosis()
    return Diagnosis(found[0].kind, found[0].message, tuple(h.message for h in found[1:]))


def line_of_cotangent(subject: Subject, name: str) -> Place | None:
    """The line of the backward pass that makes an argument's cotangent, None if unknown."""
    return None


def describe_values(name: str, claimed: np.ndarray, true: np.ndarray) -> tuple[str, str]:
    """Kind and message of a wrong cotangent, from its values and the true ones alone."""
    nothing = (np.zeros_like(true),)
    sample = Sample((np.zeros_like(true),), (), (), (), (claimed,), (true,))
    subject = Subject(name, (name,), nothing, (), lambda *_: (), lambda *_: ((), ()))
    masks = (np.abs(claimed - true) > 1e-9 * np.max(np.abs(true), initial=0.0),)
    disagreement = Disagreement(subject, 0, sample, masks, _no_other)
    found = hypotheses(disagreement, time.monotonic() + 1.0)
    if not found:
        return "other", "its values differ in no simple way"
    return found[0].kind, found[0].message


def _no_other() -> Sample:
    raise ValueError("the claim holds at the given inputs alone")
