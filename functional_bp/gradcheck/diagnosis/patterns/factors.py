"""The claim as a whole may be the truth times something: a constant, a sign, a known quantity.

First the claim's use of the cotangent is looked at, in which it must be linear; then constants,
signs and conjugates; last a factor too few, one too many, or another one, where claimed / true is a
known quantity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import numpy as np

from functional_bp.gradcheck.diagnosis import costs
from functional_bp.gradcheck.diagnosis.patterns.evidence import Evidence, Judged, unexplained
from functional_bp.gradcheck.diagnosis.patterns.expressions import name as named
from functional_bp.gradcheck.diagnosis.patterns.formulas import Atom, atoms, placed
from functional_bp.gradcheck.diagnosis.patterns.named_numbers import (
    CLOSE,
    NamedNumber,
    name_of,
    sizes,
)
from functional_bp.gradcheck.findings import Finding, Kind

ROWS = 3000  # entries that the search looks at; what it finds is verified on all
NEAR = 1e-7  # root mean square of the logarithm of what two sides differ by


def find_factors(evidence: Evidence) -> list[Finding]:
    """The ratio of claim and truth may be one quantity, or the quotient of two."""
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
) -> list[Finding]:
    fitting = []
    for atom, column in zip(found, columns):
        for power in (1, -1):
            if _rms(wanted - power * column) > NEAR:
                continue
            numerator, denominator = (atom, None) if power == 1 else (None, atom)
            fit = _verified(evidence, numerator, denominator)
            if fit:
                fitting.append(_finding(evidence, numerator, denominator, *fit))
    return _best(fitting)


def _quotient(
    evidence: Evidence, wanted: np.ndarray, found: list[Atom], columns: list[np.ndarray]
) -> list[Finding]:
    matrix = np.stack(columns)
    gram, along = matrix @ matrix.T, matrix @ wanted
    own, total = np.diag(gram), float(wanted @ wanted)
    # ‖wanted − p + q‖² for all pairs, from inner products; what is near is verified exactly.
    off = total + own[:, None] + own[None, :]
    off = off - 2 * along[:, None] + 2 * along[None, :] - 2 * gram
    near = np.argwhere(off <= 1e-9 * (total + own[:, None] + own[None, :]))
    prices = np.array([atom.cost for atom in found])
    fitting = []
    for i, j in sorted(near.tolist(), key=lambda pair: prices[pair].sum())[:40]:
        if evidence.late:
            break
        fit = _verified(evidence, found[i], found[j]) if i != j else None
        if fit:
            fitting.append(_finding(evidence, found[i], found[j], *fit))
    return _best(fitting)


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


def _times(case: Judged, array: np.ndarray, atom: Atom | None) -> np.ndarray:
    factor = None if atom is None else placed(atom, case, case.shape)
    return array if factor is None else array * factor


def _finding(
    evidence: Evidence, numerator: Atom | None, denominator: Atom | None, c: float, error: float
) -> Finding:
    constant = name_of(c, sizes(evidence))
    top = constant.factor + (f"{numerator.expr} · " if numerator else "")
    bottom = f" / {denominator.expr}" if denominator else ""
    equation = f"claimed = {top}true{bottom}"
    target = f"the cotangent of {evidence.argument}"
    cost = costs.QUOTIENT + sum(atom.cost for atom in (numerator, denominator) if atom)
    if not constant.is_one:
        cost += costs.NAMED_CONSTANT if constant.named else costs.NAMELESS_CONSTANT
    kind = Kind.MISSING_FACTOR
    if numerator and denominator:
        what = f"{numerator.expr} stands in {target} where {denominator.expr} belongs"
        same = numerator.base == denominator.base
        kind = Kind.WRONG_FUNCTION if same else Kind.WRONG_OPERAND
    elif numerator:
        what = f"the factor {numerator.expr} is one too many in {target}"
        if numerator.base in evidence.given.bars:
            kind = Kind.NOT_LINEAR
            what = f"{numerator.expr} is multiplied in twice in {target}"
    else:
        name = denominator.expr if denominator else ""
        what = f"the factor {name} is missing from {target}"
        if denominator and denominator.base in evidence.given.bars:
            kind, what = Kind.COTANGENT_IGNORED, f"{name} is not used in {target}"
    return evidence.finding(kind, f"{equation}: {what}", cost, error)


def _bars(evidence: Evidence) -> list[Atom]:
    return [
        Atom(named(text), text, costs.ARRAY, lambda case, n=text: case.bars[n])
        for text in evidence.given.bars
    ]


def _best(found: list[Finding]) -> list[Finding]:
    return sorted(found, key=lambda h: h.cost)[:2]


def _centered(a: np.ndarray) -> np.ndarray:
    return a - a.mean()


def _rms(a: np.ndarray) -> float:
    return float(np.sqrt(np.mean(a * a)))


# Zero, another sign, a constant factor, a conjugate.


def find_scales(evidence: Evidence) -> list[Finding]:
    """A constant, a sign, a conjugate or another argument's cotangent may explain the claim."""
    whole = _zero(evidence) or _factor(evidence)
    return [whole] if whole else [*_conjugate(evidence), *_of_another_argument(evidence)]


def common_factor(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float | None:
    """This c gives claimed ≈ c · true over all pairs (claimed, true), by least squares."""
    top = sum(float(np.vdot(true, claimed).real) for claimed, true in pairs)
    bottom = sum(float(np.vdot(true, true).real) for _, true in pairs)
    return top / bottom if bottom > 0 and np.isfinite(top) else None


def factor_message(
    constant: NamedNumber, subject: str, claimed: str, true: str
) -> tuple[Kind, str]:
    """This kind and message say that claimed = c · true."""
    equation = f"{claimed} = {constant.text} · {true}"
    why = f" ({constant.why})" if constant.why else ""
    if constant.is_unit and constant.value < 0:
        return Kind.SIGN, f"{claimed} = −{true}: the sign of {subject} is wrong"
    if constant.size and constant.value < 0:
        return Kind.MEAN_OR_SUM, f"{equation}{why}: wrong sign, and a mean mistaken for a sum"
    if constant.size and constant.value not in (constant.size, 1 / constant.size):
        return Kind.MEAN_OR_SUM, f"{equation}{why}: the mean is over another number of elements"
    if constant.size and constant.value < 1:
        return Kind.MEAN_OR_SUM, f"{equation}{why}: a mean stands where a sum belongs"
    if constant.size:
        return Kind.MEAN_OR_SUM, f"{equation}{why}: a sum stands where a mean belongs"
    return Kind.FACTOR, f"{equation}{why}: {subject} is off by a constant factor"


def _zero(evidence: Evidence) -> Finding | None:
    name = evidence.argument
    if all(not np.any(case.claimed) for case in evidence.cases):
        message = f"no gradient flows to {name}: its cotangent is zero throughout"
        return evidence.finding(Kind.MISSING_TERM, message, costs.ZERO_THROUGHOUT, 0.0)
    if all(not np.any(case.true) for case in evidence.cases):
        message = f"the cotangent of {name} should be zero: the output does not depend on {name}"
        return evidence.finding(Kind.EXTRA_TERM, message, costs.ZERO_THROUGHOUT, 0.0)
    return None


def _factor(evidence: Evidence) -> Finding | None:
    c = common_factor([(case.claimed, case.true) for case in evidence.cases])
    if c is None or c == 0:
        return None
    error = evidence.explains(lambda case: c * case.true)
    if error is None:
        return None
    largest = float(np.abs(evidence.given.claimed).max(initial=0.0))
    constant = name_of(c, sizes(evidence), max(CLOSE, evidence.rounding / largest))
    subject = f"the cotangent of {evidence.argument}"
    kind, message = factor_message(constant, subject, "claimed", "true")
    cost = costs.CONSTANT if constant.named else costs.NAMELESS_FACTOR
    cost = costs.SIGN if constant.is_unit else cost
    return evidence.finding(kind, message, cost, error)


def _conjugate(evidence: Evidence) -> list[Finding]:
    if not np.iscomplexobj(evidence.given.true):
        return []
    forms = {
        "conj(true)": (np.conj, "a complex conjugate is missing, or one too many"),
        "−conj(true)": (lambda a: -np.conj(a), "wrong sign, and a conjugate missing or too many"),
        "real(true)": (lambda a: np.real(a) + 0j, "the imaginary part is dropped"),
        "i · true": (lambda a: 1j * a, "off by the factor i"),
        "−i · true": (lambda a: -1j * a, "off by the factor −i"),
    }
    found = []
    for text, (form, what) in forms.items():
        error = evidence.explains(lambda case, form=form: form(case.true))
        if error is not None:
            message = f"claimed = {text} for {evidence.argument}: {what}"
            found.append(evidence.finding(Kind.WRONG_FUNCTION, message, costs.CONJUGATE, error))
    return found


def _of_another_argument(evidence: Evidence) -> list[Finding]:
    names, own = evidence.subject.names, evidence.disagreement.argument

    def others(case: Judged, i: int) -> np.ndarray | None:
        true = np.asarray(case.sample.true[i])
        return true if true.shape == case.shape else None

    for i, name in enumerate(names):
        if i == own:
            continue
        error = evidence.explains(lambda case, i=i: others(case, i))
        if error is None:
            continue
        sample = evidence.given.sample
        swapped = np.allclose(sample.claimed[i], sample.true[own], 1e-6, 0)
        what = "the two are swapped" if swapped else "one cotangent is returned twice"
        message = f"what is claimed for {names[own]} is the cotangent of {name}: {what}"
        # Returned twice it may as well be a factor that was forgotten.
        cost = costs.ARGUMENTS_SWAPPED if swapped else costs.RETURNED_TWICE
        return [evidence.finding(Kind.WRONG_OPERAND, message, cost, error)]
    return []


# Linear in the cotangent.

LINEAR_TOLERANCE = 1e-6  # relative; in float64 anything but linear is off by far more
STEP = 1e-3  # by which an argument is moved to see whether an output depends on it


def find_misused_cotangents(evidence: Evidence) -> list[Finding]:
    """The claim is called with no cotangent, with a doubled or reversed one, and so on."""
    if evidence.subject.only_here:
        return []
    return _linearity(evidence) or _ignored(evidence)


def _linearity(evidence: Evidence) -> list[Finding]:
    name = evidence.argument
    ybar = _together(evidence)
    tests: list[tuple[Kind, str, Callable[[Judged], bool]]] = [
        (
            Kind.COTANGENT_IGNORED,
            f"the cotangent of {name} does not change with {ybar}: {ybar} is not used",
            lambda case: (
                _same(_claim(evidence, case, 0.0), case.claimed)
                and _same(_claim(evidence, case, 2.0), case.claimed)
            ),
        ),
        (
            Kind.NOT_LINEAR,
            f"the cotangent of {name} is not zero where {ybar} is: a term without {ybar} is added",
            lambda case: not _same(_claim(evidence, case, 0.0), 0 * case.claimed, case.claimed),
        ),
        (
            Kind.NOT_LINEAR,
            f"the cotangent of {name} is quadratic in {ybar}: {ybar} is multiplied in twice",
            lambda case: (
                _same(_claim(evidence, case, 2.0), 4 * case.claimed)
                and _same(_claim(evidence, case, -1.0), case.claimed)
            ),
        ),
        (
            Kind.NOT_LINEAR,
            f"the cotangent of {name} depends on the size of {ybar} alone, not on its sign",
            lambda case: (
                _same(_claim(evidence, case, -1.0), case.claimed)
                and _same(_claim(evidence, case, 2.0), 2 * case.claimed)
            ),
        ),
        (
            Kind.NOT_LINEAR,
            f"the cotangent of {name} is not linear in {ybar}: twice {ybar} must give twice",
            lambda case: (
                not _same(_claim(evidence, case, 2.0), 2 * case.claimed)
                or not _same(_claim(evidence, case, -1.0), -case.claimed)
            ),
        ),
    ]
    if not np.any(evidence.given.claimed):
        return []
    for kind, message, test in tests:
        if evidence.late:
            break
        if all(test(case) for case in evidence.cases[:3]):
            return [evidence.finding(kind, message, costs.NOT_LINEAR)]
    return []


def _ignored(evidence: Evidence) -> list[Finding]:
    """Outputs that depend on the argument, and whose cotangent makes no difference."""
    bars = list(evidence.given.bars)
    found = []
    for k, bar in enumerate(bars if len(bars) > 1 else []):
        if evidence.late:
            break
        unused = all(
            _same(_claim(evidence, case, 0.0, only=k), case.claimed) for case in evidence.cases[:3]
        )
        if unused and _depends(evidence, k):
            message = (
                f"{bar} makes no difference to the cotangent of "
                f"{evidence.argument}, though that output depends on {evidence.argument}"
            )
            found.append(evidence.finding(Kind.COTANGENT_IGNORED, message, costs.OUTPUT_IGNORED))
    return found


def _claim(evidence: Evidence, case: Judged, scale: float, only: int | None = None) -> np.ndarray:
    """The claim with the cotangents of all outputs scaled, or of one only."""
    bars = tuple(
        bar * scale if only is None or only == k else bar for k, bar in enumerate(case.sample.bars)
    )
    with jax.enable_x64(True):
        cotangents = evidence.pull(case.sample.actives, case.sample.fixed, bars)
    claimed = np.asarray(cotangents[evidence.disagreement.argument])
    return np.where(np.isfinite(case.sample.true[evidence.disagreement.argument]), claimed, 0)


def _depends(evidence: Evidence, output: int) -> bool:
    position, sample = evidence.disagreement.argument, evidence.given.sample
    actives = list(sample.actives)
    rng = np.random.default_rng(0)
    moved = np.asarray(actives[position])
    actives[position] = moved + STEP * rng.standard_normal(moved.shape) * (1 + np.abs(moved))
    with jax.enable_x64(True):
        outs = evidence.subject.value(tuple(actives), sample.fixed)
    return not _same(np.asarray(outs[output]), np.asarray(sample.outs[output]))


def _same(a: np.ndarray, b: np.ndarray, scale: np.ndarray | None = None) -> bool:
    size = np.linalg.norm(b if scale is None else scale)
    return bool(np.linalg.norm(a - b) <= LINEAR_TOLERANCE * size)


def _together(evidence: Evidence) -> str:
    bars = list(evidence.given.bars)
    return bars[0] if len(bars) == 1 else "the outputs' cotangents"
