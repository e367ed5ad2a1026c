"""What a wrong gradient looks like, where the fault stands, and what to write instead."""

from __future__ import annotations

import numpy as np

from functional_bp.check.findings import Place
from functional_bp.check.subject import Diagnosis, Disagreement, Subject


def diagnose(disagreement: Disagreement, deadline: float) -> Diagnosis:
    """Search for what explains a disagreement, until ``time.monotonic()`` is ``deadline``."""
    return Diagnosis()


def line_of_cotangent(subject: Subject, name: str) -> Place | None:
    """The line of the backward pass that makes an argument's cotangent, None if unknown."""
    return None


def describe_values(name: str, claimed: np.ndarray, true: np.ndarray) -> tuple[str, str]:
    """What a wrong cotangent looks like beside the true one, from their values alone."""
    return "other", "its values differ"
