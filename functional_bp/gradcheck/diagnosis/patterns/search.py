"""What a wrong gradient looks like, from its numbers alone.

Every search states what it found as a ``Hypothesis`` that has been verified on fresh samples.
They run from the plain to the elaborate: a sign before a missing term.
"""

from __future__ import annotations

from collections.abc import Callable

from functional_bp.gradcheck.clock import now
from functional_bp.gradcheck.diagnosis.patterns.evidence import Evidence, gather
from functional_bp.gradcheck.diagnosis.patterns.factors import (
    cotangent_hypotheses,
    factor_hypotheses,
    scale_hypotheses,
)
from functional_bp.gradcheck.diagnosis.patterns.hypothesis import Hypothesis
from functional_bp.gradcheck.diagnosis.patterns.layout import layout_hypotheses
from functional_bp.gradcheck.diagnosis.patterns.places import (
    not_finite,
    place_hypotheses,
    region_hypotheses,
    row_hypotheses,
    shard_hypotheses,
)
from functional_bp.gradcheck.diagnosis.patterns.terms import term_hypotheses
from functional_bp.gradcheck.subject import Disagreement

Pattern = Callable[[Evidence], list[Hypothesis]]

PLAIN: tuple[Pattern, ...] = (
    shard_hypotheses, cotangent_hypotheses, scale_hypotheses, layout_hypotheses,
)  # fmt: skip
PARTIAL: tuple[Pattern, ...] = (place_hypotheses, region_hypotheses)
FORMULAS: tuple[Pattern, ...] = (factor_hypotheses, term_hypotheses)
LAST: tuple[Pattern, ...] = (row_hypotheses,)


def hypotheses(disagreement: Disagreement, deadline: float) -> list[Hypothesis]:
    """What accounts for a disagreement, the likeliest first.

    Args:
        disagreement: a claim that is wrong in one argument's cotangent.
        deadline: in ``clock.now()`` seconds; no search goes on beyond it.
    """
    evidence = gather(disagreement, deadline)
    if not evidence.given.finite:
        return not_finite(evidence)
    if not evidence.given.wrong.any():
        return []
    found = [h for search in (*PLAIN, *PARTIAL) for h in _run(search, evidence)]
    if not any(h.residual_error < 1 and h.cost < 3 for h in found):  # NaN where it says only where
        found += [h for search in FORMULAS for h in _run(search, evidence)]
    if not found:
        found += [h for search in LAST for h in _run(search, evidence)]
    by_message = {h.message: h for h in sorted(found, key=lambda h: -h.cost)}
    return sorted(by_message.values(), key=lambda h: h.cost)


def _run(search: Pattern, evidence: Evidence) -> list[Hypothesis]:
    """A search, unless time is up; one that fails on strange data explains nothing.

    A diagnosis must never take a verdict down with it, and the other searches go on.
    """
    if now() > evidence.deadline:
        return []
    try:
        return search(evidence)
    except Exception:
        return []
