"""Terms may be missing, too many or wrong: they are told in the rule's own residuals and inputs.

True − claimed is looked for as a sum of one, two or three of the dictionary's terms, exactly. Where
the truth is known as a sum as well, a term is missing, does not belong, or stands for another one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from functional_bp.gradcheck.diagnosis import costs
from functional_bp.gradcheck.diagnosis.expressions import (
    Expr,
    NamedNumber,
    name_of,
    product,
    total,
)
from functional_bp.gradcheck.diagnosis.patterns.evidence import Evidence, Judged
from functional_bp.gradcheck.diagnosis.patterns.formulas import (
    Term,
    atoms,
    build,
    flattened,
)
from functional_bp.gradcheck.diagnosis.sums import Dictionary, Fit, cost_of
from functional_bp.gradcheck.findings import Finding, Kind

# Sentences about terms.


@dataclass(frozen=True)
class Weighted:
    """A term has a coefficient; with ``total`` its mean is written as a sum."""

    term: Term
    constant: NamedNumber
    total: bool

    @property
    def signed(self) -> tuple[bool, Expr]:
        """Whether it is subtracted, and its absolute value as a formula."""
        number, body = self.constant.magnitude, self.term.expr(self.total)
        return self.constant.value < 0, body if self.constant.is_unit else number * body

    def __str__(self) -> str:
        return total([self.signed])


def missing(argument: str, gap: Sequence[Weighted]) -> tuple[Kind, str]:
    """Only the difference of truth and claim is known."""
    place = f"in the cotangent of {argument}"
    only = gap[0]
    value = abs(only.constant.value)
    if len(gap) == 1 and abs(value - 2) <= 1e-6:
        return (
            Kind.SIGN,
            f"{place}, true − claimed = {only}: a term has the wrong sign, or 2 · it is missing",
        )
    n = only.term.count
    if len(gap) == 1 and n and (_near(value, n - 1) or (only.total and _near(value, 1 - 1 / n))):
        return (
            Kind.MEAN_OR_SUM,
            f"{place}, true − claimed = {only}: a sum and a mean of {n} are mistaken",
        )
    if len(gap) == 2 and _opposite(*gap) and gap[0].term.factors == gap[1].term.factors:
        kind, _ = _layout("", gap[0].term, gap[1].term)
        return kind, f"{place}, true − claimed = {joined(gap)}: one stands where the other belongs"
    return Kind.MISSING_TERM, f"{place}, missing: {joined(gap)}"


def replaced(argument: str, true: Weighted, claimed: Weighted) -> tuple[Kind, str]:
    """One term stands in the place of another."""
    place = f"in the cotangent of {argument}"
    same = true.term.expr() == claimed.term.expr()
    return _weight(place, true, claimed) if same else _replaced(place, true, claimed)


def difference(
    argument: str,
    gap: Sequence[Weighted],
    true: Sequence[Weighted | None],
    claimed: Sequence[Weighted | None],
) -> tuple[Kind, str]:
    """It is known what of the gap's terms the truth and the claim hold.

    ``true`` and ``claimed`` are parallel to ``gap``; None where the term does not occur.
    """
    lost = [t for t, c in zip(true, claimed) if t is not None and c is None]
    extra = [c for t, c in zip(true, claimed) if c is not None and t is None]
    changed = [(t, c) for t, c in zip(true, claimed) if t is not None and c is not None]
    place = f"in the cotangent of {argument}"
    if lost and not extra and not changed:
        return Kind.MISSING_TERM, f"{place}, missing: {joined(lost)}"
    if extra and not lost and not changed:
        return Kind.EXTRA_TERM, f"{place}, a term does not belong: {joined(extra)}"
    if len(changed) == 1 and not lost and not extra:
        return _weight(place, *changed[0])
    if len(lost) == len(extra) == 1 and not changed:
        return _replaced(place, lost[0], extra[0])
    return Kind.MISSING_TERM, f"{place}, true − claimed = {joined(gap)}"


def _weight(place: str, true: Weighted, claimed: Weighted) -> tuple[Kind, str]:
    """The same term with another coefficient."""
    if abs(true.constant.value + claimed.constant.value) <= 1e-6 * abs(true.constant.value):
        return Kind.SIGN, f"{place}, a term has the wrong sign: it should be {true}"
    kind = Kind.MEAN_OR_SUM if true.total != claimed.total else Kind.FACTOR
    return kind, f"{place}, {claimed} stands where {true} belongs"


def _replaced(place: str, true: Weighted, claimed: Weighted) -> tuple[Kind, str]:
    """One term in the place of another: what they differ in."""
    stands = f"{place}, {claimed} stands where {true} belongs"
    t, c = true.term, claimed.term
    lost, extra = t.factors - c.factors, c.factors - t.factors
    if not lost and not extra:
        return _layout(stands, t, c)
    if t.frame.form != c.frame.form or t.frame.bar.expr != c.frame.bar.expr:
        return Kind.WRONG_OPERAND, stands
    if not extra:
        return Kind.MISSING_FACTOR, f"{stands}: the factor {_product(lost)} is missing"
    if not lost:
        return Kind.MISSING_FACTOR, f"{stands}: the factor {_product(extra)} is one too many"
    every = t.inner + t.outer + c.inner + c.outer
    bases = {part: atom.base for atom in every for part in atom.parts}
    same = {bases[part] for part in lost} == {bases[part] for part in extra}
    kind = Kind.WRONG_FUNCTION if same else Kind.WRONG_OPERAND
    return kind, f"{stands}: {_product(extra)} instead of {_product(lost)}"


def _layout(stands: str, true: Term, claimed: Term) -> tuple[Kind, str]:
    """The same factors, another reduction, product or order."""
    t, c = true.frame, claimed.frame
    if t.axes and c.axes:
        if t.axes != c.axes:
            return Kind.AXIS, f"{stands}: reduced over another axis"
        return Kind.AXIS, f"{stands}: the factors stand on the other side of the reduction"
    if t.final != c.final and t.is_summed and c.is_summed:
        return Kind.AXIS, f"{stands}: summed over another axis"
    if t.relation != c.relation and {t.kind, c.kind} == {Kind.REVERSAL}:  # two cumulative sums
        return Kind.AXIS, f"{stands}: along another axis"
    if t.relation != c.relation:
        return Kind.WRONG_OPERAND, f"{stands}: another array belongs in this product"
    if t.axes or t.final != c.final:
        return Kind.MISSING_SUM, f"{stands}: the reduction is missing"
    if c.axes:
        return Kind.MEAN_OR_SUM, f"{stands}: a reduction does not belong"
    if Kind.TRANSPOSE in (t.kind, c.kind):
        return Kind.TRANSPOSE, f"{stands}: a transpose is missing, or one too many"
    if Kind.REVERSAL in (t.kind, c.kind):
        return Kind.REVERSAL, f"{stands}: an axis runs in the wrong direction"
    return Kind.AXIS, stands


def _near(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-6 * abs(b)


def _opposite(a: Weighted, b: Weighted) -> bool:
    return a.total == b.total and _near(a.constant.value, -b.constant.value)


def joined(some: Sequence[Weighted]) -> str:
    """The terms stand one after another, with their signs."""
    return total([w.signed for w in some])


def _product(factors: Counter[Expr]) -> str:
    return str(product(list(factors.elements())))


SEARCHED = 2  # cases that are searched; what is found is verified on all
ROWS = 1200  # entries that are searched
SPARE = 4  # entries beyond the number of weights that a fit has to meet


@dataclass(frozen=True)
class TermSearch:
    """A dictionary on some entries of the cases has to explain these vectors."""

    evidence: Evidence
    dictionary: Dictionary
    true: np.ndarray
    gap: np.ndarray
    cases: Sequence[Judged]
    rows: np.ndarray

    def extended(self, terms: Sequence[Term]) -> TermSearch:
        """Further terms join the search."""
        values = [[term.value(case) for case in self.cases] for term in terms]
        columns = [flattened([v for v in row if v is not None], self.rows) for row in values]
        further = Dictionary.of(terms, np.stack(columns))
        return replace(self, dictionary=self.dictionary.with_further(further))

    def weighted(self, fit: Fit) -> list[Weighted]:
        """The terms of a fit get their coefficients."""
        return [weighted(self.evidence, *pair) for pair in zip(fit.terms, fit.weights)]


def find_terms(evidence: Evidence) -> list[Finding]:
    """true − claimed consists of these terms, which are missing or do not belong."""
    search = _prepared(evidence)
    if search is None:
        return []
    found = _compared(search)
    for fit in search.dictionary.fits(search.gap)[:5]:
        if evidence.late:
            break
        if len(fit.terms) == 1:
            found += _findings_of_gap(search, fit.terms[0], fit.weights[0])
        else:
            found += _findings(search, fit)
    found = found or _both(search)
    return sorted(found, key=lambda one: one.cost)[:3]


def _both(search: TermSearch) -> list[Finding]:
    """The claim and the truth as sums of two terms each, where the gap is too much at once."""
    evidence = search.evidence
    claims = search.dictionary.fits(search.true - search.gap)
    truths = search.dictionary.fits(search.true)
    if not claims or not truths or evidence.late:
        return []
    claim, truth = claims[0], truths[0]
    fit = Fit(truth.terms + claim.terms, truth.weights + tuple(-w for w in claim.weights), 0.0)
    error = _verified(evidence, fit)
    if error is None:
        return []
    claimed, true = (joined(search.weighted(fit)) for fit in (claim, truth))
    message = f"the cotangent of {evidence.argument} is claimed to be {claimed}; it is {true}"
    cost = costs.TWO_SUMS + costs.OF_BOTH_SIDES * (claim.cost + truth.cost)
    return [evidence.finding(Kind.WRONG_OPERAND, message, cost, error)]


def _findings_of_gap(search: TermSearch, term: Term, weight: float) -> list[Finding]:
    """What follows from true − claimed = weight · term, and from the two terms it may stand for."""
    plain = {atom.base: atom for atom in atoms(search.evidence) if atom.plain}
    found: list[Finding] = []
    both = term.split(plain)
    for terms, weights in (((term,), (weight,)), *([(both, (weight, -weight))] if both else ())):
        if not search.evidence.late:
            found += _findings(search.extended(terms), Fit(terms, weights, cost_of(terms)))
    return found


def _prepared(evidence: Evidence) -> TermSearch | None:
    """The dictionary of the disagreement; None where it is too small or too large for one."""
    cases = evidence.cases[:SEARCHED] if evidence.given.true.size > 8 else evidence.cases
    entries = sum(case.true.size for case in cases)
    if evidence.large or entries < 2 + SPARE:
        return None
    rows = np.arange(entries)
    if entries > ROWS:
        rows = np.sort(np.random.default_rng(0).choice(entries, ROWS, replace=False))
    dictionary = build(evidence, cases, rows)
    if dictionary is None:
        return None
    true = flattened([case.true for case in cases], rows)
    claimed = flattened([case.claimed for case in cases], rows)
    return TermSearch(evidence, dictionary, true, true - claimed, cases, rows)


def weighted(evidence: Evidence, term: Term, weight: float) -> Weighted:
    """A term gets its coefficient; a mean is written as a sum where that is simpler."""
    known = evidence.sizes
    constant = name_of(weight, known)
    if term.count is None:
        return Weighted(term, constant, total=False)
    as_sum = name_of(weight / term.count, known)
    if _plainness(as_sum) < _plainness(constant):
        return Weighted(term, as_sum, total=True)
    return Weighted(term, constant, total=False)


def _plainness(constant: NamedNumber) -> tuple[bool, bool, int, float]:
    size = abs(math.log(abs(constant.value))) if constant.value else math.inf
    return not constant.is_unit, not constant.named, constant.oddity, size


def _verified(evidence: Evidence, fit: Fit) -> float | None:
    """What is left of the gap with these weights, in all cases at its largest."""

    def claimed(case: Judged) -> np.ndarray | None:
        values = [term.value(case) for term in fit.terms]
        if any(value is None for value in values):
            return None
        return case.true - sum(weight * value for weight, value in zip(fit.weights, values))

    return evidence.explains(claimed)


def _findings(search: TermSearch, fit: Fit) -> list[Finding]:
    evidence = search.evidence
    error = _verified(evidence, fit)
    if error is None:
        return []
    gap = search.weighted(fit)
    cost = costs.GAP + costs.OF_THE_GAP * fit.cost
    cost += sum(0.0 if w.constant.named else costs.NAMELESS_WEIGHT for w in gap)
    cost += costs.COMPOSITE if any(w.term.composite for w in gap) else 0.0
    truth = _truth(search, fit)
    if truth is None:
        kind, message = missing(evidence.argument, gap)
    else:
        parts = list(zip(fit.terms, truth.weights, fit.weights))
        true = [_present(evidence, term, a, c) for term, a, c in parts]
        claimed = [_present(evidence, term, a - c, max(a, c, key=abs)) for term, a, c in parts]
        kind, message = difference(evidence.argument, gap, true, claimed)
        # A part of a whole that is known is likelier, and most so one part in another's place.
        whole = kind in (Kind.MISSING_TERM, Kind.EXTRA_TERM)
        cost -= costs.KNOWN_WHOLE if whole else costs.KNOWN_EXCHANGE
    return [evidence.finding(kind, message, cost, error, tuple(w.signed for w in gap))]


def _compared(search: TermSearch) -> list[Finding]:
    """The claim and the truth as one term each, and what they differ in."""
    evidence = search.evidence
    claims = search.dictionary.fits(search.true - search.gap, most=1)
    truths = search.dictionary.fits(search.true, most=1)
    if not claims or not truths:
        return []
    truth, claim = truths[0], claims[0]
    (true,), (claimed,) = search.weighted(truth), search.weighted(claim)
    fit = Fit(truth.terms + claim.terms, (truth.weights[0], -claim.weights[0]), 0.0)
    error = _verified(evidence, fit)
    if error is None:
        return []
    kind, message = replaced(evidence.argument, true, claimed)
    cost = costs.ONE_TERM_EACH + costs.OF_BOTH_SIDES * (truth.cost + claim.cost)
    cost += costs.DIFFERENCE_IN_TERM if true.term.difference or claimed.term.difference else 0.0
    cost += sum(0.0 if w.constant.named else costs.NAMELESS_WEIGHT for w in (true, claimed))
    gap = tuple(part.signed for part in search.weighted(fit))
    return [evidence.finding(kind, message, cost, error, gap)]


def _truth(search: TermSearch, fit: Fit) -> Fit | None:
    """The truth as a sum of the gap's terms and up to two others."""
    found = search.dictionary.fits(search.true, forced=fit.terms)
    return found[0] if found else None


def _present(evidence: Evidence, term: Term, weight: float, scale: float) -> Weighted | None:
    """A term with its weight; None where the weight is rounding."""
    return None if abs(weight) <= 1e-7 * abs(scale) else weighted(evidence, term, weight)
