"""Wrong only where a value lies: below a threshold, in a branch, at a tie, at no finite number."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from functional_bp.check.diagnosis.numbers.constants import name_of, sizes
from functional_bp.check.diagnosis.numbers.evidence import Case, Evidence
from functional_bp.check.diagnosis.numbers.hypothesis import Hypothesis, unexplained
from functional_bp.check.diagnosis.numbers.scales import common_factor
from functional_bp.check.diagnosis.numbers.thresholds import aligned, number, separations

CHANCE = 1e-2  # of a separation by luck, all arrays looked at taken together
NEARLY_ALL = 0.97  # wrong: then the few others are right by rounding, and there is no region
LIMIT = 20_000  # right entries per case that are looked at, and as many wrong ones

Values = Callable[[Case], np.ndarray | None]


def region_hypotheses(evidence: Evidence) -> list[Hypothesis]:
    """A condition on one array that separates the wrong entries from the right ones."""
    part = float(np.mean([case.wrong.mean() for case in evidence.cases]))
    if evidence.given.wrong.all() or part > NEARLY_ALL:
        return []
    found: list[Hypothesis] = []
    looked = 0
    for text, of in [*_discrete(evidence), *_continuous(evidence)]:
        if evidence.late or len(found) >= 3:
            break
        looked += 1
        pooled = _pooled(evidence, of)
        if pooled is None:
            continue
        values, wrong = pooled
        for separation in separations(values, wrong, evidence.thresholds):
            if separation.chance * looked < CHANCE:
                cost = 1.5 + 0.01 * looked + 3 * max(0.0, part - 0.5)
                found.append(_region(evidence, separation.condition.format(text), cost))
    return found


def not_finite(evidence: Evidence) -> list[Hypothesis]:
    """Where the claim is not finite though the truth is, with the operands there."""
    case = evidence.given
    at = ~np.isfinite(case.claimed)
    if not at.any():
        return []
    first = tuple(int(i) for i in np.argwhere(at)[0])
    values = []
    for name, array in {**case.known, **case.bars}.items():
        for view in aligned(array, case.shape):
            values.append(f"{name} = {_written(view[first])}")
            break
    where = ""
    for name, array in case.known.items():
        for view in aligned(array, case.shape):
            if np.isrealobj(view) and not where:
                for separation in separations(view, at):
                    where = f", where {separation.condition.format(name)}"
                    break
    index = f" at {list(first)}" if first else ""
    message = (
        f"the cotangent of {evidence.argument} is not finite at {int(at.sum())} of {at.size} "
        f"entries{where}: claimed{index} = {_written(case.claimed[first])}, "
        f"true = {_written(case.true[first])}"
    )
    details = (f"there {', '.join(values[:6])}",) if values else ()
    return [Hypothesis("not finite", message, float("nan"), 0.1, 0, details)]


def there(evidence: Evidence) -> str:
    """What holds at the wrong entries, as the end of a sentence: "; there claimed = 0"."""
    pairs = [(case.claimed[case.wrong], case.true[case.wrong]) for case in evidence.cases]
    if not any(claimed.any() for claimed, _ in pairs):
        return "; there claimed = 0"
    if not any(true.any() for _, true in pairs):
        return "; there it should be 0"
    c = common_factor(pairs)
    if not c or any(unexplained(c * true, claimed, true) is None for claimed, true in pairs):
        return ""
    constant = name_of(c, sizes(evidence))
    if not constant.named:
        return ""
    factor = "−" if constant.is_one else f"{constant.text} · "
    return f"; there claimed = {factor}true"


def _region(evidence: Evidence, condition: str, cost: float) -> Hypothesis:
    wrong = evidence.given.wrong
    seen = [case for case in evidence.fresh if case.wrong.any()]
    here = "" if len(seen) >= 2 else "on the given inputs, "
    message = (
        f"{here}the cotangent of {evidence.argument} is wrong only where {condition} "
        f"({int(wrong.sum())} of {wrong.size} entries){there(evidence)}"
    )
    return Hypothesis("region", message, cost=cost, fresh_samples=len(seen))


def _pooled(evidence: Evidence, of: Values) -> tuple[np.ndarray, np.ndarray] | None:
    """The values and the mask of wrong entries, over all cases.

    Where both the claim and the truth are zero nothing can be told: a branch that multiplies by
    zero hides the fault. Such entries are left out.
    """
    values, wrong = [], []
    for case in evidence.cases:
        with np.errstate(all="ignore"):
            array = of(case)
        if array is None:
            return None
        bad, good = np.nonzero(case.wrong), np.nonzero(~case.wrong & (case.true != 0))
        for some in (bad, good):
            stride = max(1, some[0].size // LIMIT) if some else 1
            taken = tuple(axis[::stride] for axis in some)
            values.append(np.atleast_1d(array[taken]))
        wrong += [np.ones(values[-2].size, bool), np.zeros(values[-1].size, bool)]
    return np.concatenate(values), np.concatenate(wrong)


def _continuous(evidence: Evidence) -> Iterator[tuple[str, Values]]:
    """The arrays that a threshold may stand on, the judged argument first."""
    names = sorted(evidence.given.known, key=lambda name: name != evidence.argument)
    for name in names:
        if np.isrealobj(evidence.given.known[name]):
            for way in range(2):
                yield name, _reader("known", name, way)
                yield f"|{name}|", _reader("known", name, way, np.abs)
        else:
            yield f"|{name}|", _reader("known", name, 0, np.abs)
    for name in evidence.given.bars:
        if np.isrealobj(evidence.given.bars[name]):
            yield name, _reader("bars", name, 0)
            yield f"|{name}|", _reader("bars", name, 0, np.abs)
    for name in names:
        if evidence.given.known[name].ndim:
            yield f"the norm of {name}'s row", _reader("known", name, 0, _row_norm)
            yield f"the largest |{name}| of a row", _reader("known", name, 0, _row_largest)


def _discrete(evidence: Evidence) -> Iterator[tuple[str, Values]]:
    for name in evidence.given.discrete:
        for way in range(2):
            yield name, _reader("discrete", name, way)


def _reader(
    group: str, name: str, way: int, form: Callable[[np.ndarray], np.ndarray] = np.asarray
) -> Values:
    def read(case: Case) -> np.ndarray | None:
        array = getattr(case, group).get(name)
        views = [] if array is None else list(aligned(form(array), case.shape))
        return views[way] if way < len(views) else None

    return read


def _row_norm(a: np.ndarray) -> np.ndarray:
    return np.linalg.norm(a, axis=-1, keepdims=True)


def _row_largest(a: np.ndarray) -> np.ndarray:
    return np.abs(a).max(-1, keepdims=True)


def _written(value: np.generic) -> str:
    return number(float(value.real)) if not np.iscomplexobj(value) else f"{value:.6g}"
