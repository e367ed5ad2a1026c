"""Terms with one number per row: true − claimed = c · t, where c is then explained by itself."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from functional_bp.check.diagnosis.numbers.atoms import Atom, atoms, placed, products, written
from functional_bp.check.diagnosis.numbers.dictionary import Term
from functional_bp.check.diagnosis.numbers.evidence import Case, Evidence
from functional_bp.check.diagnosis.numbers.frames import Frame, frames
from functional_bp.check.diagnosis.numbers.hypothesis import Hypothesis
from functional_bp.check.diagnosis.numbers.terms import gap_hypotheses, prepared

FIT = 1e-7  # of a row's norm, that the best multiple of a term leaves
DEEPEST = 3  # factors beside the cotangent, and beside the mean


@dataclass(frozen=True)
class _Row:
    """The gap as a term times one number per row along ``axes``."""

    factors: tuple[Atom, ...]
    axes: tuple[int, ...]
    numbers: tuple[np.ndarray, ...]  # one array per case, with the axes kept


def row_hypotheses(evidence: Evidence) -> list[Hypothesis]:
    """Explains the gap by a term whose coefficient is one number per row (or overall)."""
    if evidence.large or not evidence.given.shape:
        return []
    vague: list[Hypothesis] = []
    for row in _rows(evidence):
        if evidence.late:
            break
        explained = _explained(evidence, row)
        if explained:
            return explained
        if len(vague) < 1:
            along = f"axis {row.axes[0]}" if len(row.axes) == 1 else f"axes {row.axes}"
            term = written(row.factors)
            what = (
                f"one number per row along {along}, times {term}: a term in {term} is missing"
                if term
                else f"the same along {along}: a sum or mean over {along} is missing"
            )
            message = (
                f"{evidence.here}in the cotangent of {evidence.argument}, "
                f"true − claimed is {what}, or one too many"
            )
            vague.append(
                Hypothesis("missing term", message, 0.0, 7.0, len(evidence.fresh))
            )  # fmt: skip
    return vague


def _rows(evidence: Evidence) -> Iterator[_Row]:
    shape = evidence.given.shape
    some = [a for a in atoms(evidence) if placed(a, evidence.given, shape) is not None]
    plain = [a for a in some if a.plain][:7]
    candidates = [*products(plain, 2), *((a,) for a in some if not a.plain)]
    axes = [axis for axis in reversed(range(len(shape))) if shape[axis] > 1]
    sets: list[tuple[int, ...]] = [(axis,) for axis in axes]
    if len(axes) > 1:
        sets.append(tuple(sorted(axes)))
    for factors, over in itertools.product(candidates, sets):
        numbers: list[np.ndarray] = []
        for case in evidence.cases:
            number = None if evidence.late else _numbers(case, factors, over)
            if number is None:
                break
            numbers.append(number)
        if len(numbers) == len(evidence.cases):
            yield _Row(factors, over, tuple(numbers))


def _numbers(
    case: Case, factors: Sequence[Atom], axes: tuple[int, ...]
) -> np.ndarray | None:  # fmt: skip
    """One number per row with true − claimed = number · product; None where there is none."""
    term: np.ndarray = np.ones(case.shape)
    for atom in factors:
        value = placed(atom, case, case.shape)
        if value is None:
            return None
        term = term * value
    gap = case.true - case.claimed
    square = (np.abs(term) ** 2).sum(axes, keepdims=True)
    if not np.all(square > 0):
        return None
    numbers = (term.conj() * gap).sum(axes, keepdims=True) / square
    left = np.linalg.norm(gap - numbers * term)
    return numbers if left <= FIT * np.linalg.norm(gap) else None


def _explained(evidence: Evidence, row: _Row) -> list[Hypothesis]:
    """The numbers as a constant times row quantities times a mean of ȳ with factors."""
    wanted = np.concatenate([np.ravel(n) for n in row.numbers])
    if np.iscomplexobj(wanted) or wanted.size < 3 or not np.all(wanted):
        return []
    some = atoms(evidence)
    scaled = [a for a in some if a.cost <= 1.8 and _per_row(evidence, a, row) is not None]
    outer = [*products([a for a in scaled if a.plain], DEEPEST), *((a,) for a in scaled)]
    outer = [factors for factors in outer if _row_product(evidence, factors, row) is not None]
    values = [_row_product(evidence, factors, row) for factors in outer]
    matrix = np.stack([value for value in values if value is not None])
    for frame in frames(evidence):
        if frame.axes != row.axes or frame.outside != evidence.given.shape or evidence.late:
            continue
        plain = [a for a in some if a.plain or (a.difference and a.base in evidence.kept)]
        plain = [a for a in plain if placed(a, evidence.given, frame.inside) is not None][:6]
        for inner in products(plain, DEEPEST):
            mean = _mean(evidence, frame, inner)
            if mean is None or evidence.late:
                continue
            with np.errstate(all="ignore"):
                ratio = wanted / (matrix * mean)
                spread = np.ptp(ratio, axis=1) / np.abs(ratio.mean(axis=1))
            for k in np.flatnonzero(spread <= 1e-6)[:1]:
                term = Term(frame, inner, outer[k] + row.factors)
                constant = float(ratio[k].mean())
                search = prepared(evidence)
                return [] if search is None else gap_hypotheses(search, term, constant)
    return []


def _per_row(evidence: Evidence, atom: Atom, row: _Row) -> np.ndarray | None:
    """The atom's values, one per row of every case, if it does not vary along the row."""
    values = []
    for case in evidence.cases:
        value = placed(atom, case, case.shape)
        if value is None:
            return None
        first = np.take(value, [0], row.axes[0])
        for axis in row.axes[1:]:
            first = np.take(first, [0], axis)
        if not np.array_equal(np.broadcast_to(first, value.shape), value):
            return None
        values.append(np.ravel(first))
    return np.concatenate(values)


def _row_product(evidence: Evidence, factors: Sequence[Atom], row: _Row) -> np.ndarray | None:
    total = np.ones(sum(n.size for n in row.numbers))
    for atom in factors:
        value = _per_row(evidence, atom, row)
        if value is None:
            return None
        total = total * value
    return total


def _mean(evidence: Evidence, frame: Frame, inner: tuple[Atom, ...]) -> np.ndarray | None:
    values = []
    for case in evidence.cases:
        inside = frame.cotangent(case)
        for atom in inner:
            factor = placed(atom, case, frame.inside)
            if factor is None:
                return None
            inside = inside * factor
        values.append(np.ravel(frame.apply(case, inside)))
    return np.concatenate(values)
