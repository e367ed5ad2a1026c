"""The right numbers may stand in the wrong places: transposed, permuted, shifted, summed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from functional_bp.gradcheck.diagnosis import costs
from functional_bp.gradcheck.diagnosis.patterns.evidence import Evidence, Judged, unexplained
from functional_bp.gradcheck.diagnosis.patterns.factors import common_factor
from functional_bp.gradcheck.diagnosis.patterns.named_numbers import name_of, sizes
from functional_bp.gradcheck.findings import Finding, Kind

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
    constant = name_of(c, sizes(evidence))
    if not constant.named:
        return None
    message = f"claimed = {constant.factor}{layout.text}: {layout.what}"
    cost = layout.cost + (0.0 if constant.is_one else costs.AND_A_CONSTANT)
    return evidence.finding(layout.kind, message, cost, error)


def _moves(evidence: Evidence) -> Iterator[_Moved]:
    shape = evidence.given.shape
    ndim = len(shape)
    name = evidence.argument
    for order in itertools.permutations(range(ndim)):
        if ndim > 4 and sum(i != axis for i, axis in enumerate(order)) > 2:
            continue
        if order != tuple(range(ndim)) and tuple(shape[axis] for axis in order) == shape:
            text = "true.T" if ndim == 2 else f"transpose(true, {order})"
            what = f"a transpose is missing, or one too many, in the cotangent of {name}"
            yield _Moved(
                Kind.TRANSPOSE, text, what, lambda a, o=order: np.transpose(a, o), costs.TRANSPOSED
            )
    axes = [axis for axis in range(ndim) if shape[axis] > 1]
    for count in (1, 2):
        for some in itertools.combinations(axes, count):
            what = f"{_along(some)} of the cotangent of {name} runs in the wrong direction"
            text = f"flip(true, {_plain(some)})"
            yield _Moved(Kind.REVERSAL, text, what, lambda a, s=some: np.flip(a, s), costs.FLIPPED)
    for axis, shift in itertools.product(axes, SHIFTS):
        if abs(shift) < shape[axis]:
            what = f"entries are shifted by {_places(shift)} along axis {axis}"
            text = f"roll(true, {shift}, {axis})".replace("-", "−")
            yield _Moved(
                Kind.OFF_BY_ONE,
                text,
                what,
                lambda a, s=shift, x=axis: np.roll(a, s, x),
                costs.ROLLED_ENTRIES,
            )
            text = f"true, shifted by {shift} along axis {axis} and filled with zeros"
            yield _Moved(
                Kind.OFF_BY_ONE, text.replace("-", "−"), what,
                lambda a, s=shift, x=axis: shifted(a, s, x), costs.SHIFTED_ENTRIES,
            )  # fmt: skip
    if ndim > 1 and evidence.given.true.size > 1:
        what = "rows and columns are mixed up: reshaped in the wrong order"
        for order in itertools.permutations(range(ndim)):
            if order != tuple(range(ndim)):
                text = f"transpose(true, {order}).reshape{shape}"
                yield _Moved(
                    Kind.PERMUTATION, text, what,
                    lambda a, o=order: np.transpose(a, o).reshape(a.shape), costs.RESHAPED,
                )  # fmt: skip


def shifted(a: np.ndarray, by: int, axis: int) -> np.ndarray:
    """``a`` is moved by some places along an axis; zeros come in."""
    moved = np.roll(a, by, axis)
    empty = [slice(None)] * a.ndim
    empty[axis] = slice(0, by) if by > 0 else slice(by, None)
    moved[tuple(empty)] = 0
    return moved


def _sums(evidence: Evidence) -> Iterator[_Moved]:
    shape, name = evidence.given.shape, evidence.argument
    axes = [axis for axis in range(len(shape)) if shape[axis] > 1]
    some_axes = [*itertools.combinations(axes, 1), *itertools.combinations(axes, 2)]
    for some in some_axes:
        what = (
            f"the cotangent of {name} is reduced over {_along(some)}, "
            "and every entry gets the same"
        )  # fmt: skip
        yield _Moved(
            Kind.MEAN_OR_SUM, f"sum(true, axis={_plain(some)}), broadcast back", what,
            lambda a, s=some: np.broadcast_to(a.sum(s, keepdims=True), a.shape), costs.REDUCED,
        )  # fmt: skip
    for axis in axes:
        where = f"along axis {axis}"
        yield _Moved(
            Kind.MISSING_SUM, f"cumsum(true, {axis})", f"summed up {where} once too often",
            lambda a, x=axis: np.cumsum(a, x), costs.CUMULATED,
        )  # fmt: skip
        yield _Moved(
            Kind.MISSING_SUM, f"diff(true) {where}", f"the cumulative sum {where} is missing",
            lambda a, x=axis: np.diff(a, axis=x, prepend=0), costs.CUMULATED,
        )  # fmt: skip
        yield _Moved(
            Kind.MISSING_SUM, f"reverse diff(true) {where}",
            f"the reverse cumulative sum {where} is missing",
            lambda a, x=axis: -np.diff(a, axis=x, append=0), costs.CUMULATED,
        )  # fmt: skip
        yield _Moved(
            Kind.REVERSAL, f"cumulative sum of the entries that true sums in reverse {where}",
            f"a cumulative sum runs in the wrong direction {where}",
            lambda a, x=axis: np.cumsum(-np.diff(a, axis=x, append=0), x), costs.CUMULATED,
        )  # fmt: skip
        yield _Moved(
            Kind.REVERSAL, f"reverse cumulative sum of the entries that true sums up {where}",
            f"a cumulative sum runs in the wrong direction {where}",
            lambda a, x=axis: np.flip(np.cumsum(np.flip(np.diff(a, axis=x, prepend=0), x), x), x),
            costs.CUMULATED,
        )  # fmt: skip


def _summed_claim(evidence: Evidence) -> list[Finding]:
    """Whether summing the claim over an axis gives the truth, the same for every entry."""
    shape = evidence.given.shape
    axes = [axis for axis in range(len(shape)) if shape[axis] > 1]
    some_axes = [*itertools.combinations(axes, 1), *itertools.combinations(axes, 2)]

    def total(case: Judged, some: tuple[int, ...]) -> np.ndarray:
        return np.broadcast_to(case.claimed.sum(some, keepdims=True), case.shape)

    for some in some_axes:
        c = common_factor([(evidence.given.true, total(evidence.given, some))])
        constant = None if c is None else name_of(c, sizes(evidence))
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
    for name in [*case.known, *case.discrete]:
        for text, turns in (
            (f"indexed by {name}", 1),
            (f"indexed by the inverse of {name}", 2),
            (f"indexed by argsort({name})", 2),
            (f"indexed by the inverse of argsort({name})", 3),
        ):
            if (name in case.discrete) != ("argsort" not in text):
                continue
            if all(_placed(c, name, turns, axis) for c in evidence.cases):
                return f": claimed = true, {text}"
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
