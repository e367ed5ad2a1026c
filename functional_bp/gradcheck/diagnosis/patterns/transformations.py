"""The claim as a whole may be the truth times something, or the truth moved to other places.

First the claim's use of the cotangent is looked at, in which it must be linear; then constants,
signs and conjugates; the right numbers in the wrong places: transposed, permuted, shifted, summed;
last a factor too few, one too many, or another one, where claimed / true is a known quantity.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from functional_bp.gradcheck.diagnosis import costs
from functional_bp.gradcheck.diagnosis.expressions import CLOSE, NamedNumber, name_of
from functional_bp.gradcheck.diagnosis.expressions import name as named
from functional_bp.gradcheck.diagnosis.patterns.evidence import Evidence, Judged, unexplained
from functional_bp.gradcheck.diagnosis.patterns.formulas import Atom, atoms, placed
from functional_bp.gradcheck.diagnosis.repair.mutations.arrangement import shifted
from functional_bp.gradcheck.diagnosis.sums import plain_pairs
from functional_bp.gradcheck.findings import Finding, Kind

# A factor that is no constant.

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
    own, square = (matrix**2).sum(1), float(wanted @ wanted)
    # ‖wanted − p + q‖² for all pairs; what is near is verified exactly.
    off = plain_pairs(wanted, matrix, -matrix)
    near = np.argwhere(off <= 1e-9 * (square + own[:, None] + own[None, :]))
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
    constant = name_of(c, evidence.sizes)
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
    return [Atom(named(text), text, costs.ARRAY) for text in evidence.given.bars]


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
    constant = name_of(c, evidence.sizes, max(CLOSE, evidence.rounding / largest))
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
    if not np.any(evidence.given.claimed):
        return []
    of, ybar = f"the cotangent of {evidence.argument}", _together(evidence)
    claim = lambda case, scale: _claim(evidence, case, scale)
    is_times = lambda case, scale, factor: _same(claim(case, scale), factor * case.claimed)
    tests: tuple[tuple[Kind, str, Callable[[Judged], bool]], ...] = (
        (Kind.COTANGENT_IGNORED, f"{of} does not change with {ybar}: {ybar} is not used",
         lambda case: is_times(case, 0.0, 1) and is_times(case, 2.0, 1)),
        (Kind.NOT_LINEAR, f"{of} is not zero where {ybar} is: a term without {ybar} is added",
         lambda case: not _same(claim(case, 0.0), 0 * case.claimed, case.claimed)),
        (Kind.NOT_LINEAR, f"{of} is quadratic in {ybar}: {ybar} is multiplied in twice",
         lambda case: is_times(case, 2.0, 4) and is_times(case, -1.0, 1)),
        (Kind.NOT_LINEAR, f"{of} depends on the size of {ybar} alone, not on its sign",
         lambda case: is_times(case, -1.0, 1) and is_times(case, 2.0, 2)),
        (Kind.NOT_LINEAR, f"{of} is not linear in {ybar}: twice {ybar} must give twice",
         lambda case: not is_times(case, 2.0, 2) or not is_times(case, -1.0, -1)),
    )  # fmt: skip
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


# The right numbers in the wrong places.

Move = Callable[[np.ndarray], np.ndarray]
SHIFTS = (1, -1, 2, -2)
GLANCED = 1000  # entries that have to agree before all are compared


@dataclass(frozen=True)
class _Moved:
    kind: Kind
    text: str  # "claimed = {…}"
    what: str
    move: Move
    cost: float


def find_moves(evidence: Evidence) -> list[Finding]:
    """The claimed entries may be the true ones moved, or sums of them."""
    found: list[Finding] = []
    for layout in itertools.chain(_moves(evidence), _sums(evidence)):
        if evidence.late or len(found) >= 3:
            break
        one = _tried(evidence, layout)
        if one is not None:
            found.append(one)
    if not found and not evidence.late:
        found += _summed_claim(evidence)
    if not found and not evidence.late:
        found += _any_order(evidence)
    return found


def _tried(evidence: Evidence, layout: _Moved) -> Finding | None:
    claimed, moved = evidence.given.claimed, layout.move(evidence.given.true)
    some = np.unravel_index(np.arange(0, moved.size, moved.size // GLANCED + 1), moved.shape)
    c = common_factor([(claimed[some], moved[some])])
    if not c or not np.allclose(
        claimed[some], c * moved[some], 1e-5, 1e-5 * np.ptp(np.abs(moved[some]))
    ):
        return None
    c = common_factor([(claimed, moved)]) or c
    error = evidence.explains(lambda case: c * layout.move(case.true))
    if error is None:
        return None
    constant = name_of(c, evidence.sizes)
    if not constant.named:
        return None
    message = f"claimed = {constant.factor}{layout.text}: {layout.what}"
    cost = layout.cost + (0.0 if constant.is_one else costs.AND_A_CONSTANT)
    return evidence.finding(layout.kind, message, cost, error)


def _moves(evidence: Evidence) -> Iterator[_Moved]:
    shape, name = evidence.given.shape, evidence.argument
    ndim = len(shape)
    orders = [order for order in itertools.permutations(range(ndim)) if order != (*range(ndim),)]
    for order in orders:
        if ndim > 4 and sum(i != axis for i, axis in enumerate(order)) > 2:
            continue
        if tuple(shape[axis] for axis in order) == shape:
            yield _Moved(
                Kind.TRANSPOSE, "true.T" if ndim == 2 else f"transpose(true, {order})",
                f"a transpose is missing, or one too many, in the cotangent of {name}",
                lambda a, o=order: np.transpose(a, o), costs.TRANSPOSED,
            )  # fmt: skip
    axes = [axis for axis in range(ndim) if shape[axis] > 1]
    for some in _groups(axes):
        yield _Moved(
            Kind.REVERSAL, f"flip(true, {_plain(some)})",
            f"{_along(some)} of the cotangent of {name} runs in the wrong direction",
            lambda a, s=some: np.flip(a, s), costs.FLIPPED,
        )  # fmt: skip
    for axis, shift in itertools.product(axes, SHIFTS):
        if abs(shift) >= shape[axis]:
            continue
        what = f"entries are shifted by {_places(shift)} along axis {axis}"
        for text, move, cost in (
            (f"roll(true, {shift}, {axis})", np.roll, costs.ROLLED_ENTRIES),
            (f"true, shifted by {shift} along axis {axis} and filled with zeros", shifted,
             costs.SHIFTED_ENTRIES),
        ):  # fmt: skip
            yield _Moved(
                Kind.OFF_BY_ONE, text.replace("-", "−"), what,
                lambda a, m=move, s=shift, x=axis: m(a, s, x), cost,
            )  # fmt: skip
    for order in orders if evidence.given.true.size > 1 else ():
        yield _Moved(
            Kind.PERMUTATION, f"transpose(true, {order}).reshape{shape}",
            "rows and columns are mixed up: reshaped in the wrong order",
            lambda a, o=order: np.transpose(a, o).reshape(a.shape), costs.RESHAPED,
        )  # fmt: skip


def _groups(axes: Sequence[int]) -> list[tuple[int, ...]]:
    return [*itertools.combinations(axes, 1), *itertools.combinations(axes, 2)]


def _reverse_diff(a: np.ndarray, axis: int) -> np.ndarray:
    return -np.diff(a, axis=axis, append=0)


# kind, how it is written, what it means, the claim as a function of the truth and an axis
CUMULATED: tuple[tuple[Kind, str, str, Callable[[np.ndarray, int], np.ndarray]], ...] = (
    (Kind.MISSING_SUM, "cumsum(true, {axis})", "summed up along axis {axis} once too often",
     np.cumsum),
    (Kind.MISSING_SUM, "diff(true) along axis {axis}",
     "the cumulative sum along axis {axis} is missing",
     lambda a, axis: np.diff(a, axis=axis, prepend=0)),
    (Kind.MISSING_SUM, "reverse diff(true) along axis {axis}",
     "the reverse cumulative sum along axis {axis} is missing", _reverse_diff),
    (Kind.REVERSAL, "cumulative sum of the entries that true sums in reverse along axis {axis}",
     "a cumulative sum runs in the wrong direction along axis {axis}",
     lambda a, axis: np.cumsum(_reverse_diff(a, axis), axis)),
    (Kind.REVERSAL, "reverse cumulative sum of the entries that true sums up along axis {axis}",
     "a cumulative sum runs in the wrong direction along axis {axis}",
     lambda a, axis: np.flip(
         np.cumsum(np.flip(np.diff(a, axis=axis, prepend=0), axis), axis), axis)),
)  # fmt: skip


def _sums(evidence: Evidence) -> Iterator[_Moved]:
    shape, name = evidence.given.shape, evidence.argument
    axes = [axis for axis in range(len(shape)) if shape[axis] > 1]
    for some in _groups(axes):
        yield _Moved(
            Kind.MEAN_OR_SUM, f"sum(true, axis={_plain(some)}), broadcast back",
            f"the cotangent of {name} is reduced over {_along(some)}, and every entry gets the "
            "same",
            lambda a, s=some: np.broadcast_to(a.sum(s, keepdims=True), a.shape), costs.REDUCED,
        )  # fmt: skip
    for axis, (kind, text, what, function) in itertools.product(axes, CUMULATED):
        yield _Moved(
            kind, text.format(axis=axis), what.format(axis=axis),
            lambda a, f=function, x=axis: f(a, x), costs.CUMULATED,
        )  # fmt: skip


def _summed_claim(evidence: Evidence) -> list[Finding]:
    """Whether summing the claim over an axis gives the truth, the same for every entry."""
    shape = evidence.given.shape
    axes = [axis for axis in range(len(shape)) if shape[axis] > 1]

    def total(case: Judged, some: tuple[int, ...]) -> np.ndarray:
        return np.broadcast_to(case.claimed.sum(some, keepdims=True), case.shape)

    for some in _groups(axes):
        c = common_factor([(evidence.given.true, total(evidence.given, some))])
        constant = None if c is None else name_of(c, evidence.sizes)
        if constant is None or not constant.named:
            continue
        errors = [
            unexplained(constant.value * total(case, some), case.true, 2 * case.true)
            for case in evidence.cases
        ]
        known = [error for error in errors if error is not None]
        if len(known) < len(errors):
            continue
        is_mean = constant.size is not None and constant.value < 1
        what = "mean" if is_mean else "sum"
        message = (
            f"the {what} over {_along(some)} is missing: "
            f"true = {what}(claimed, axis={_plain(some)}), the same for every entry"
        )
        return [evidence.finding(Kind.MISSING_SUM, message, costs.UNSUMMED, max(known))]
    return []


def _any_order(evidence: Evidence) -> list[Finding]:
    """Whether the claim holds the true values in some other order, along one axis or overall."""
    shape, name = evidence.given.shape, evidence.argument
    if evidence.given.true.size < 3 or np.iscomplexobj(evidence.given.true):
        return []
    sums = [(np.sum(case.claimed**2), np.sum(case.true**2)) for case in evidence.cases]
    if not all(np.isclose(claimed, true, 1e-8, 0) for claimed, true in sums):
        return []
    for axis in [*range(len(shape)), None]:
        if axis is not None and shape[axis] < 2:
            continue

        def ordered(a: np.ndarray, axis: int | None = axis) -> np.ndarray:
            return np.sort(a, axis)

        same = [
            np.allclose(ordered(case.claimed), ordered(case.true), 1e-8, 0)
            and np.unique(case.true).size > 2
            for case in evidence.cases
        ]
        if all(same):
            along = "" if axis is None or len(shape) == 1 else f" along axis {axis}"
            order = _by_known_order(evidence, axis)
            message = f"the cotangent of {name} holds the right numbers in a wrong order{along}"
            message += order or ": a permutation is missing, or its inverse belongs here"
            return [evidence.finding(Kind.PERMUTATION, message, costs.PERMUTED, 0.0)]
    return []


def _by_known_order(evidence: Evidence, axis: int | None) -> str:
    """The permutation in the words of a known array: its indices, or those that sort it."""
    if axis is None:
        return ""
    case = evidence.given
    for names, orders in (
        (case.known, (("argsort({})", 2), ("the inverse of argsort({})", 3))),
        (case.discrete, (("{}", 1), ("the inverse of {}", 2))),
    ):
        for name, (text, turns) in itertools.product(names, orders):
            if all(_placed(c, name, turns, axis) for c in evidence.cases):
                return f": claimed = true, indexed by {text.format(name)}"
    return ""


def _placed(case: Judged, name: str, turns: int, axis: int) -> bool:
    array = case.known.get(name, case.discrete.get(name))
    if array is None or array.size == 0:
        return False
    if array.shape != case.shape and (array.ndim != 1 or array.shape[0] != case.shape[axis]):
        return False
    along = axis if array.shape == case.shape else 0
    index = array
    for _ in range(turns - 1):
        index = np.argsort(index, along, kind="stable")
    if index.dtype.kind not in "iu" or index.min() < 0 or index.max() >= case.shape[axis]:
        return False
    if array.shape == case.shape:
        moved = np.take_along_axis(case.true, index, axis)
    else:
        moved = np.take(case.true, index, axis)
    return bool(np.allclose(moved, case.claimed, 1e-8, 0))


def _along(axes: tuple[int, ...]) -> str:
    return f"axis {axes[0]}" if len(axes) == 1 else f"axes {' and '.join(map(str, axes))}"


def _plain(axes: tuple[int, ...]) -> str:
    return str(axes[0]) if len(axes) == 1 else str(axes)


def _places(shift: int) -> str:
    return f"{abs(shift)} place{'s' if abs(shift) > 1 else ''}"
