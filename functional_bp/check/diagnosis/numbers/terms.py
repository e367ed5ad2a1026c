"""Terms that are missing, too many or wrong, in the rule's own residuals and inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from functional_bp.check.diagnosis.numbers.atoms import atoms
from functional_bp.check.diagnosis.numbers.constants import Constant, name_of, sizes
from functional_bp.check.diagnosis.numbers.dictionary import Dictionary, Term, build, flattened
from functional_bp.check.diagnosis.numbers.evidence import Case, Evidence
from functional_bp.check.diagnosis.numbers.hypothesis import Hypothesis, unexplained
from functional_bp.check.diagnosis.numbers.regression import Basis, Fit, distinct
from functional_bp.check.diagnosis.numbers.wording import (
    Weighted,
    difference,
    joined,
    missing,
    replaced,
)

SEARCHED = 2  # cases that are searched; what is found is verified on all
ROWS = 1200  # entries that are searched
SPARE = 4  # entries beyond the number of weights that a fit has to meet


@dataclass(frozen=True)
class Search:
    """A dictionary on some entries of the cases, and the vectors that it has to explain."""

    evidence: Evidence
    dictionary: Dictionary
    basis: Basis
    true: np.ndarray
    gap: np.ndarray
    cases: Sequence[Case]
    rows: np.ndarray

    def extended(self, parts: Sequence[tuple[Term, float]]) -> tuple[Search, Fit]:
        """The search with further terms, and their sum with the given weights as a fit."""
        columns, norms = [], []
        for term, _ in parts:
            values = [term.value(case) for case in self.cases]
            column = flattened([value for value in values if value is not None], self.rows)
            norms.append(float(np.linalg.norm(column)) or 1.0)
            columns.append(column / norms[-1])
        terms = [*self.dictionary.terms, *(term for term, _ in parts)]
        matrix = np.concatenate([self.dictionary.columns, columns])
        scales = np.concatenate([self.dictionary.norms, norms])
        costs = np.concatenate([self.basis.costs, [term.cost for term, _ in parts]])
        places = tuple(range(len(terms) - len(parts), len(terms)))
        weights = tuple(weight * norm for (_, weight), norm in zip(parts, norms))
        cost = sum(term.cost for term, _ in parts) + 0.5 * (len(parts) - 1)
        search = replace(
            self, dictionary=Dictionary(terms, matrix, scales), basis=Basis(matrix, costs)
        )
        return search, Fit(places, weights, cost)

    def weight(self, index: int, weight: float) -> Weighted:
        """The term at an index with its coefficient, as a mean or as a sum, named."""
        term = self.dictionary.terms[index]
        return weighted(self.evidence, term, weight / float(self.dictionary.norms[index]))


def term_hypotheses(evidence: Evidence) -> list[Hypothesis]:
    """What true − claimed consists of, and whether it is missing or does not belong."""
    search = prepared(evidence)
    if search is None:
        return []
    found = _compared(search)
    for fit in search.basis.fits(search.gap)[:5]:
        if evidence.late:
            break
        if len(fit.terms) == 1:
            term = search.dictionary.terms[fit.terms[0]]
            weight = fit.weights[0] / float(search.dictionary.norms[fit.terms[0]])
            found += gap_hypotheses(search, term, weight)
        else:
            found += _hypotheses(search, fit)
    found = found or _both(search)
    return sorted(found, key=lambda hypothesis: hypothesis.cost)[:3]


def _both(search: Search) -> list[Hypothesis]:
    """The claim and the truth as sums of two terms each, where the gap is too much at once."""
    evidence = search.evidence
    claims = search.basis.fits(search.true - search.gap)
    truths = search.basis.fits(search.true)
    if not claims or not truths or evidence.late:
        return []
    claim, truth = claims[0], truths[0]
    fit = Fit(truth.terms + claim.terms, truth.weights + tuple(-w for w in claim.weights), 0.0)
    error = _verified(search, fit)
    if error is None:
        return []
    claimed, true = (
        joined([search.weight(i, w) for i, w in zip(f.terms, f.weights)]) for f in (claim, truth)
    )
    message = f"{evidence.here}the cotangent of {evidence.argument} is claimed to be {claimed}; "
    message += f"it is {true}"
    cost = 2.5 + 0.25 * (claim.cost + truth.cost)
    return [Hypothesis("wrong operand", message, error, cost, len(evidence.fresh))]


def gap_hypotheses(search: Search, term: Term, weight: float) -> list[Hypothesis]:
    """What follows from true − claimed = weight · term, and from the two terms it may stand for."""
    plain = {atom.text: atom for atom in atoms(search.evidence) if atom.plain}
    found: list[Hypothesis] = []
    both = term.split(plain)
    for parts in ([(term, weight)], [(both[0], weight), (both[1], -weight)] if both else []):
        if parts and not search.evidence.late:
            extended, fit = search.extended(parts)
            found += _hypotheses(extended, fit)
    return found


def prepared(evidence: Evidence) -> Search | None:
    """The dictionary of the disagreement; None where it is too small or too large for one."""
    cases = evidence.cases[:SEARCHED] if evidence.given.true.size > 8 else evidence.cases
    entries = sum(case.true.size for case in cases)
    if evidence.large or entries < 2 + SPARE:
        return None
    rows = np.arange(entries)
    if entries > ROWS:
        rows = np.sort(np.random.default_rng(0).choice(entries, ROWS, replace=False))
    dictionary = build(evidence, cases, rows)
    if not dictionary.terms:
        return None
    kept = distinct(dictionary.columns)
    dictionary = Dictionary(
        [dictionary.terms[i] for i in kept], dictionary.columns[kept], dictionary.norms[kept]
    )
    costs = np.array([term.cost for term in dictionary.terms])
    true = flattened([case.true for case in cases], rows)
    claimed = flattened([case.claimed for case in cases], rows)
    basis = Basis(dictionary.columns, costs)
    return Search(evidence, dictionary, basis, true, true - claimed, cases, rows)


def weighted(evidence: Evidence, term: Term, weight: float) -> Weighted:
    """A term with its coefficient: a mean is written as a sum where that is simpler."""
    known = sizes(evidence)
    constant = name_of(weight, known)
    if term.count is None:
        return Weighted(term, constant, total=False)
    as_sum = name_of(weight / term.count, known)
    if _plainness(as_sum) < _plainness(constant):
        return Weighted(term, as_sum, total=True)
    return Weighted(term, constant, total=False)


def _plainness(constant: Constant) -> tuple[bool, bool, int]:
    return (not constant.is_one, not constant.named, len(constant.text))


def _verified(search: Search, fit: Fit) -> float | None:
    """What is left of the gap with these weights, in all cases at its largest."""
    worst = 0.0
    for case in search.evidence.cases:
        total = np.zeros_like(case.true)
        for index, weight in zip(fit.terms, fit.weights):
            value = search.dictionary.terms[index].value(case)
            if value is None:
                return None
            total = total + weight / search.dictionary.norms[index] * value
        error = unexplained(case.true - total, case.claimed, case.true)
        if error is None:
            return None
        worst = max(worst, error)
    return worst


def _hypotheses(search: Search, fit: Fit) -> list[Hypothesis]:
    error = _verified(search, fit)
    if error is None:
        return []
    evidence = search.evidence
    gap = [search.weight(i, w) for i, w in zip(fit.terms, fit.weights)]
    cost = 2.0 + 0.5 * fit.cost + sum(0.0 if w.constant.named else 1.0 for w in gap)
    cost += 1.0 if any(w.term.composite for w in gap) else 0.0
    truth = _truth(search, fit)
    if truth is None:
        kind, message = missing(evidence.argument, gap)
    else:
        parts = list(zip(fit.terms, truth.weights, fit.weights))
        true = [_present(search, i, a, c) for i, a, c in parts]
        claimed = [_present(search, i, a - c, max(a, c, key=abs)) for i, a, c in parts]
        kind, message = difference(evidence.argument, gap, true, claimed)
        # A part of a whole that is known is likelier, and most so one part in another's place.
        cost -= 0.3 if kind in ("missing term", "extra term") else 1.0
    count = len(evidence.fresh)
    return [Hypothesis(kind, evidence.here + message, error, cost, count, added=joined(gap))]


def _compared(search: Search) -> list[Hypothesis]:
    """The claim and the truth as one term each, and what they differ in."""
    evidence = search.evidence
    claims = search.basis.fits(search.true - search.gap, most=1)
    truths = search.basis.fits(search.true, most=1)
    if not claims or not truths:
        return []
    ends = (truths[0].terms[0], truths[0].weights[0]), (claims[0].terms[0], claims[0].weights[0])
    true, claimed = (search.weight(*end) for end in ends)
    fit = Fit((ends[0][0], ends[1][0]), (ends[0][1], -ends[1][1]), 0.0)
    error = _verified(search, fit)
    if error is None:
        return []
    kind, message = replaced(evidence.argument, true, claimed)
    cost = 0.9 + 0.25 * (truths[0].cost + claims[0].cost)
    cost += 1.5 if true.term.difference or claimed.term.difference else 0.0
    cost += sum(0.0 if w.constant.named else 1.0 for w in (true, claimed))
    gap = joined([true, search.weight(ends[1][0], -ends[1][1])])
    count = len(evidence.fresh)
    return [Hypothesis(kind, evidence.here + message, error, cost, count, added=gap)]


def _truth(search: Search, fit: Fit) -> Fit | None:
    """The truth as a sum of the gap's terms and up to two others."""
    found = search.basis.fits(search.true, forced=fit.terms)
    return found[0] if found else None


def _present(search: Search, index: int, weight: float, scale: float) -> Weighted | None:
    """A term with its weight; None where the weight is rounding."""
    return None if abs(weight) <= 1e-7 * abs(scale) else search.weight(index, weight)
