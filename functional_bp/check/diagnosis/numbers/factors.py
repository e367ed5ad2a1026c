"""A factor too few, one too many, or another one: claimed / true is a known quantity."""

from __future__ import annotations

import numpy as np

from functional_bp.check.diagnosis.numbers.atoms import Atom, atoms, placed
from functional_bp.check.diagnosis.numbers.constants import Constant, name_of, sizes
from functional_bp.check.diagnosis.numbers.evidence import Case, Evidence
from functional_bp.check.diagnosis.numbers.hypothesis import Hypothesis, unexplained

ROWS = 3000  # entries that the search looks at; what it finds is verified on all
NEAR = 1e-7  # root mean square of the logarithm of what two sides differ by


def factor_hypotheses(evidence: Evidence) -> list[Hypothesis]:
    """Explains the ratio of claim and truth by one quantity, or by the quotient of two."""
    cases = evidence.cases
    telling = [(case.true != 0) & (case.claimed != 0) for case in cases]
    if sum(int(np.sum(mask)) for mask in telling) < 3:
        return []
    ratio = np.concatenate([c.claimed[m] / c.true[m] for c, m in zip(cases, telling)])
    stride = max(1, ratio.size // ROWS)
    wanted = _centered(np.log(np.abs(ratio[::stride])))
    if not np.any(np.abs(wanted) > 1e-6):
        return []
    shape = evidence.given.shape
    found: list[Atom] = []
    columns: list[np.ndarray] = []
    for atom in [*_bars(evidence), *atoms(evidence, rows=True)]:
        if evidence.late or (evidence.large and atom.cost > 1.7):
            break
        views = [placed(atom, case, shape) for case in cases]
        values = [v[m] for v, m in zip(views, telling) if v is not None]
        if len(values) < len(cases):
            continue
        value = np.concatenate(values)[::stride]
        if np.all(value != 0):
            column = _centered(np.log(np.abs(value)))
            if np.any(np.abs(column) > 1e-9):
                found.append(atom)
                columns.append(column)
    if not found:
        return []
    return _single(evidence, wanted, found, columns) or _quotient(evidence, wanted, found, columns)


def _single(
    evidence: Evidence, wanted: np.ndarray, found: list[Atom], columns: list[np.ndarray]
) -> list[Hypothesis]:
    hypotheses = []
    for atom, column in zip(found, columns):
        for power in (1, -1):
            if _rms(wanted - power * column) > NEAR:
                continue
            numerator, denominator = (atom, None) if power == 1 else (None, atom)
            fit = _verified(evidence, numerator, denominator)
            if fit:
                hypotheses.append(_hypothesis(evidence, numerator, denominator, *fit))
    return _best(hypotheses)


def _quotient(
    evidence: Evidence, wanted: np.ndarray, found: list[Atom], columns: list[np.ndarray]
) -> list[Hypothesis]:
    matrix = np.stack(columns)
    gram, along = matrix @ matrix.T, matrix @ wanted
    own, total = np.diag(gram), float(wanted @ wanted)
    # ‖wanted − p + q‖² for all pairs, from inner products; what is near is verified exactly.
    off = total + own[:, None] + own[None, :]
    off = off - 2 * along[:, None] + 2 * along[None, :] - 2 * gram
    near = np.argwhere(off <= 1e-9 * (total + own[:, None] + own[None, :]))
    costs = np.array([atom.cost for atom in found])
    hypotheses = []
    for i, j in sorted(near.tolist(), key=lambda pair: costs[pair].sum())[:40]:
        if evidence.late:
            break
        fit = _verified(evidence, found[i], found[j]) if i != j else None
        if fit:
            hypotheses.append(_hypothesis(evidence, found[i], found[j], *fit))
    return _best(hypotheses)


def _verified(
    evidence: Evidence, numerator: Atom | None, denominator: Atom | None
) -> tuple[float, float] | None:
    """The c with claimed · denominator = c · true · numerator in all cases, and what is left."""
    left = [_times(case, case.claimed, denominator) for case in evidence.cases]
    right = [_times(case, case.true, numerator) for case in evidence.cases]
    inner = sum(float(np.vdot(r, a).real) for a, r in zip(left, right))
    c = inner / sum(float(np.vdot(r, r).real) for r in right)
    # Judged on the side that has no denominator, so that zeros of it do no harm.
    errors = [
        unexplained(c * r, a, 2 * a) if numerator is not None else unexplained(a / c, r, 2 * r)
        for a, r in zip(left, right)
    ]
    known = [error for error in errors if error is not None]
    return (c, max(known)) if len(known) == len(errors) else None


def _times(case: Case, array: np.ndarray, atom: Atom | None) -> np.ndarray:
    factor = None if atom is None else placed(atom, case, case.shape)
    return array if factor is None else array * factor


def _hypothesis(
    evidence: Evidence, numerator: Atom | None, denominator: Atom | None, c: float, error: float
) -> Hypothesis:
    constant = name_of(c, sizes(evidence))
    top = _with(constant, numerator)
    bottom = f" / {denominator.text}" if denominator else ""
    equation = f"claimed = {top}true{bottom}"
    target = f"the cotangent of {evidence.argument}"
    cost = 1.2 + sum(atom.cost for atom in (numerator, denominator) if atom)
    cost += 0.0 if constant.text == "1" else 0.4 if constant.named else 1.5
    kind = "missing factor"
    if numerator and denominator:
        what = f"{numerator.text} stands in {target} where {denominator.text} belongs"
        same = numerator.base == denominator.base
        kind = "wrong function" if same else "wrong operand"
    elif numerator:
        what = f"the factor {numerator.text} is one too many in {target}"
        if numerator.base in evidence.given.bars:
            kind = "not linear"
            what = f"{numerator.text} is multiplied in twice in {target}"
    else:
        name = denominator.text if denominator else ""
        what = f"the factor {name} is missing from {target}"
        if denominator and denominator.base in evidence.given.bars:
            kind, what = "cotangent ignored", f"{name} is not used in {target}"
    message = f"{evidence.here}{equation}: {what}"
    return Hypothesis(kind, message, error, cost, len(evidence.fresh))


def _with(constant: Constant, numerator: Atom | None) -> str:
    factor = "" if constant.text == "1" else "−" if constant.is_one else f"{constant.text} · "
    return factor + (f"{numerator.text} · " if numerator else "")


def _bars(evidence: Evidence) -> list[Atom]:
    return [
        Atom(name, name, 1.0, lambda case, n=name: case.bars[n]) for name in evidence.given.bars
    ]


def _best(hypotheses: list[Hypothesis]) -> list[Hypothesis]:
    return sorted(hypotheses, key=lambda h: h.cost)[:2]


def _centered(a: np.ndarray) -> np.ndarray:
    return a - a.mean()


def _rms(a: np.ndarray) -> float:
    return float(np.sqrt(np.mean(a * a)))
