"""The patterns of a wrong gradient are looked for in its numbers alone.

Every search states what it found as a ``Finding`` that has been verified on fresh samples. They run
from the plain to the elaborate: a sign before a missing term.
"""

from __future__ import annotations

from collections.abc import Callable

from functional_bp.gradcheck.clock import TimeLimit
from functional_bp.gradcheck.diagnosis import costs
from functional_bp.gradcheck.diagnosis.patterns.evidence import Evidence, gather
from functional_bp.gradcheck.diagnosis.patterns.factors import (
    find_factors,
    find_misused_cotangents,
    find_scales,
)
from functional_bp.gradcheck.diagnosis.patterns.layout import find_moves
from functional_bp.gradcheck.diagnosis.patterns.places import (
    find_collectives,
    find_places,
    find_regions,
    not_finite,
)
from functional_bp.gradcheck.diagnosis.patterns.terms import find_terms
from functional_bp.gradcheck.findings import Finding
from functional_bp.gradcheck.guard import Guard
from functional_bp.gradcheck.subject import Disagreement

Pattern = Callable[[Evidence], list[Finding]]

PLAIN: tuple[Pattern, ...] = (
    find_collectives, find_misused_cotangents, find_scales, find_moves,
)  # fmt: skip
PARTIAL: tuple[Pattern, ...] = (find_places, find_regions)
FORMULAS: tuple[Pattern, ...] = (find_factors, find_terms)


def find_patterns(disagreement: Disagreement, limit: TimeLimit) -> list[Finding]:
    """The numbers say what accounts for a disagreement, the likeliest first.

    Args:
        disagreement: a claim that is wrong in one argument's cotangent.
        limit: no search goes on beyond it.
    """
    evidence = gather(disagreement, limit)
    if not evidence.given.finite:
        return not_finite(evidence)
    if not evidence.given.wrong.any():
        return []
    found = [h for search in (*PLAIN, *PARTIAL) for h in _run(search, evidence)]
    explained = [h for h in found if h.unexplained < 1]  # NaN where it says only where
    if not any(h.cost < costs.WITHOUT_FORMULAS for h in explained):
        found += [h for search in FORMULAS for h in _run(search, evidence)]
    by_message = {h.message: h for h in sorted(found, key=lambda h: -h.cost)}
    return sorted(by_message.values(), key=lambda h: h.cost)


def _run(search: Pattern, evidence: Evidence) -> list[Finding]:
    """A search, unless time is up; one that fails on strange data explains nothing.

    A diagnosis must never take a verdict down with it, and the other searches go on.
    """
    with Guard(search.__name__):
        return [] if evidence.late else search(evidence)
    return []
