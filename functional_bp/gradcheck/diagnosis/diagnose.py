"""A diagnosis says what a wrong gradient looks like, where the fault stands, and what to write.

Three searches look for it, and what each finds is verified on fresh inputs before it is told:

- ``patterns`` turn the true numbers into the claimed ones (a sign, a factor, a transpose, a missing
  term, a part of the input space);
- ``repair.search`` edits the person's backward pass until it is right;
- ``repair.dropped`` edits the true backward pass until it is the claim, which names the path that
  was forgotten.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from functional_bp.gradcheck.clock import TimeLimit, now
from functional_bp.gradcheck.diagnosis import costs
from functional_bp.gradcheck.diagnosis.localize import (
    correction,
    line_of_cotangent,
    line_of_overflow,
    line_of_shards,
    lines_of,
)
from functional_bp.gradcheck.diagnosis.patterns.evidence import Evidence, gather
from functional_bp.gradcheck.diagnosis.patterns.places import (
    find_collectives,
    find_places,
    find_regions,
    not_finite,
)
from functional_bp.gradcheck.diagnosis.patterns.terms import find_terms
from functional_bp.gradcheck.diagnosis.patterns.transformations import (
    find_factors,
    find_misused_cotangents,
    find_moves,
    find_scales,
)
from functional_bp.gradcheck.diagnosis.repair.dropped import drops
from functional_bp.gradcheck.diagnosis.repair.search import single_repairs
from functional_bp.gradcheck.findings import Finding, Kind, Place, Repair
from functional_bp.gradcheck.guard import Guard
from functional_bp.gradcheck.subject import Disagreement, Sample, Subject

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
    return sorted(found, key=lambda h: h.cost)


def _run(search: Pattern, evidence: Evidence) -> list[Finding]:
    """A search, unless time is up; one that fails on strange data explains nothing.

    A diagnosis must never take a verdict down with it, and the other searches go on.
    """
    with Guard(search.__name__):
        return [] if evidence.late else search(evidence)
    return []


__all__ = ["compose", "describe_values", "diagnose"]
__all__ += ["line_of_cotangent", "line_of_overflow", "lines_of"]

PLACES = (
    Kind.REGION,
    Kind.REPEATS,
    Kind.BORDER,
    Kind.ENTRIES,
)  # kinds that say where, and not what
SECONDS_ON_PAPER = 1.0  # for values that are given as numbers
# Of the time, by when each search ends at the latest.
SHARE_OF_NUMBERS, SHARE_OF_REPAIRS, SHARE_OF_ANOTHER = 0.3, 0.75, 0.85


def diagnose(disagreement: Disagreement, deadline: float) -> Finding:
    """The searches say what explains a disagreement; at ``deadline`` of ``now()`` they end."""
    limit = TimeLimit(deadline - now())
    seen: list[Finding] = _guarded(find_patterns, disagreement, limit.until(SHARE_OF_NUMBERS))
    # What the numbers explain plainly is not two faults.
    several = not any(h.unexplained < 1 and h.cost < costs.PLAIN for h in seen)
    singles = _guarded(single_repairs, disagreement, limit.until(SHARE_OF_REPAIRS))
    edits, search = singles if singles else ([], None)
    if not edits:
        edits = _of_another(disagreement, limit.until(SHARE_OF_ANOTHER))
    lost: list[Finding] = [] if edits else _guarded(drops, disagreement, limit)
    if not edits and several and search is not None:
        edits = _guarded(lambda _, limit: search.two(limit), disagreement, limit)
    # Where an edit was verified, more time could only have added other explanations.
    cut_short = limit.was_reached and not edits
    return replace(compose(disagreement, seen, edits, lost), cut_short=cut_short)


def _of_another(disagreement: Disagreement, limit: TimeLimit) -> list[Finding]:
    """Edits that make another argument's cotangent right, which is wrong too."""
    for argument, mask in enumerate(disagreement.masks):
        if argument != disagreement.argument and np.any(mask):
            other = replace(disagreement, argument=argument)
            singles = _guarded(single_repairs, other, limit)
            if singles and singles[0]:
                return singles[0]
    return []


def compose(
    disagreement: Disagreement, seen: list[Finding], edits: list[Finding], lost: list[Finding]
) -> Finding:
    """The findings of the searches become one; an edit that was verified says most."""
    told = [*(f.message for f in edits), *(h.message for h in seen), *(f.message for f in lost)]
    told = list(dict.fromkeys(told))
    if not told:
        return Finding(Kind.OTHER, "", where=_line(disagreement, Kind.OTHER))
    # A path that was dropped says more than the place where that can be seen.
    says_how = [h for h in seen if h.unexplained < 1]
    first = edits[0] if edits else lost[0] if lost and not says_how else (seen or lost)[0]
    if seen and seen[0].kind == Kind.SHARDING:  # an edit can only make up for it
        first = seen[0]
    # Of the same kind, the numbers say what it looks like; the edit says what to do about it.
    message = seen[0].message if seen and seen[0].kind == first.kind else first.message
    others = tuple(text for text in told if text != message)
    further = [*_further_kinds(seen), *(f.kind for f in lost[:1] if edits)]
    further += [kind for f in edits[:1] for kind in f.also]
    also = tuple(k for k in dict.fromkeys(further) if k != first.kind)
    if edits:
        repair = edits[0].repair
        where = None if first.kind == Kind.SHARDING else edits[0].where
        where = where or _line(disagreement, first.kind)
    else:
        repair = next((r for h in seen if (r := _corrected(disagreement, h)) is not None), None)
        where = _line(disagreement, first.kind) or (repair.place if repair else None)
    return Finding(first.kind, message, where=where, repair=repair, explanations=others, also=also)


def _further_kinds(seen: list[Finding]) -> list[str]:
    """Where the claim is wrong, by the likeliest place; and what explains all of it plainly."""
    places = [h.kind for h in seen if h.kind in PLACES][:1]
    plain = [h.kind for h in seen if h.unexplained < 1 and h.cost < costs.PLAIN][:2]
    return list(dict.fromkeys(places + plain))


def _corrected(disagreement: Disagreement, seen: Finding) -> Repair | None:
    try:
        return correction(disagreement, seen)
    except SyntaxError:  # an array in the formula has no name in Python
        return None


def _line(disagreement: Disagreement, kind: Kind) -> Place | None:
    """The line of a fault that no edit has named, as far as the graph tells."""
    subject, given, name = disagreement.subject, disagreement.given, _name(disagreement)
    with Guard("a search for the line"):  # a line is a help, and no more
        if kind in (Kind.NOT_FINITE, Kind.OVERFLOW):
            place = line_of_overflow(subject, given.actives, given.fixed, given.bars)
            if place is not None:
                return place
        if kind in (Kind.REGION, Kind.REPEATS, Kind.PRECISION, Kind.WRONG_OPERAND):
            places = lines_of(subject, kind, name)
            if places:
                return places[0]
        if kind == Kind.SHARDING and (place := line_of_shards(subject, name)) is not None:
            return place
        right = [n for n, mask in zip(subject.names, disagreement.masks) if not np.any(mask)]
        return line_of_cotangent(subject, name, right)
    return None


def _guarded(search: Callable[..., Any], disagreement: Disagreement, limit: TimeLimit) -> Any:
    """What a search finds; one that raises has found nothing, and the others go on."""
    with Guard("a search of the diagnosis"):
        return [] if limit.is_reached else search(disagreement, limit)
    return []


def _name(disagreement: Disagreement) -> str:
    return disagreement.subject.names[disagreement.argument]


def describe_values(
    name: str, claimed: np.ndarray, true: np.ndarray, rounding: float = 0.0
) -> tuple[Kind, str]:
    """The values of a wrong cotangent tell its kind and message beside the true ones alone."""
    nothing = (np.zeros_like(true),)
    sample = Sample(nothing, (), (), (), (claimed,), (true,))
    subject = Subject(
        name, (name,), nothing, (), lambda *_: (), lambda *_: ((), ()),
        only_here=True, rounding=(rounding,),
    )  # fmt: skip
    masks = (np.abs(claimed - true) > rounding + 1e-9 * np.max(np.abs(true), initial=0.0),)
    disagreement = Disagreement(subject, 0, sample, masks, _no_other)
    found = _guarded(find_patterns, disagreement, TimeLimit(SECONDS_ON_PAPER))
    if not found:
        return Kind.OTHER, "its values differ in no simple way"
    return found[0].kind, found[0].message


def _no_other() -> Sample:
    raise ValueError("the claim holds at the given inputs alone")
