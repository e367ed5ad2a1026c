"""Wrong only at certain indices: repeated ones, the border, the first step, the diagonal."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from functional_bp.check.diagnosis.numbers.evidence import Case, Evidence
from functional_bp.check.diagnosis.numbers.hypothesis import Hypothesis
from functional_bp.check.diagnosis.numbers.regions import there

FILLED = 0.8  # part of a place's entries that has to be wrong for the place to be named
SHARED = 0.2  # the same where entries share an index or a value: the last one may well be right


def place_hypotheses(evidence: Evidence) -> list[Hypothesis]:
    """The places that hold all wrong entries."""
    if not any(case.wrong.any() and not case.wrong.all() for case in evidence.cases):
        return []
    return [*_repeats(evidence), *_indices(evidence)][:3]


def _repeats(evidence: Evidence) -> list[Hypothesis]:
    name = evidence.argument
    found = []
    for index in evidence.given.discrete:
        for text, place in (
            (f"at the entries of {name} that {index} names more than once", _named_often),
            (f"where an index in {index} repeats", _own_index_repeats),
            (f"at the entries of {name} that {index} names", _named_at_all),
        ):
            kind = "entries" if place is _named_at_all else "repeats"
            advice = ": accumulate (add), do not overwrite" if kind == "repeats" else ""
            message = f"wrong only {text}{advice}"
            found += _verified(evidence, kind, message, lambda c, p=place, i=index: p(c, i), 1.1)
    for known in [] if evidence.large else evidence.given.known:
        for text, in_row in ((f"a value of {known} repeats", False),
                             (f"a value of {known} repeats in its row", True)):  # fmt: skip
            message = f"wrong only where {text}: look at how ties are shared"
            found += _verified(
                evidence, "repeats", message, lambda c, k=known, r=in_row: _tied(c, k, r), 1.6
            )
    return found


def _indices(evidence: Evidence) -> list[Hypothesis]:
    shape = evidence.given.shape
    found: list[Hypothesis] = []
    union = np.logical_or.reduce([case.wrong for case in evidence.cases])
    for axis, n in enumerate(shape):
        if n < 2:
            continue
        steps = np.flatnonzero(union.any(tuple(i for i in range(len(shape)) if i != axis)))
        message = ""
        if len(steps) == 1:
            k = int(steps[0])
            which = ", the first" if k == 0 else ", the last" if k == n - 1 else ""
            message = f"wrong only at index {k} of axis {axis}{which}"
        elif len(steps) < n and steps[-1] == n - 1 and len(steps) == n - steps[0]:
            message = f"wrong only from index {steps[0]} of axis {axis} on"
        elif len(steps) < n and steps[0] == 0 and len(steps) == steps[-1] + 1:
            message = f"wrong only up to index {steps[-1]} of axis {axis}"
        elif 1 < len(steps) < n and len(set(np.diff(steps))) == 1 and len(steps) > 2:
            step = int(steps[1] - steps[0])
            message = f"wrong only at indices {steps[0]}, {steps[1]}, … of axis {axis}"
            message += f" (every {step}th)" if step > 2 else " (every second)" if step > 1 else ""
        if message:
            inside = np.zeros(shape, bool)
            inside[(slice(None),) * axis + (steps,)] = True
            found += _verified(evidence, "entries", message, lambda c, i=inside: i, 1.4)
    for kind, message, inside in _patterns(shape):
        found += _verified(evidence, kind, message, lambda c, i=inside: i, 1.4)
    return found


def _patterns(shape: tuple[int, ...]) -> Iterator[tuple[str, str, np.ndarray]]:
    if len(shape) >= 2 and shape[-1] == shape[-2] and shape[-1] > 1:
        square = np.ones(shape[-2:], bool)
        for text, part in (
            ("on the diagonal", np.eye(shape[-1], dtype=bool)),
            ("above the diagonal", np.triu(square, 1)),
            ("below the diagonal", np.tril(square, -1)),
            ("off the diagonal", ~np.eye(shape[-1], dtype=bool)),
            ("on and above the diagonal", np.triu(square)),
            ("on and below the diagonal", np.tril(square)),
        ):
            yield "entries", f"wrong only {text}", np.broadcast_to(part, shape)
    long = [axis for axis, n in enumerate(shape) if n > 2]
    groups = [*([axis] for axis in long), *([long[-2:], long] if len(long) > 1 else [])]
    for axes in groups:
        for width in (1, 2):
            inside = np.zeros(shape, bool)
            for axis in axes:
                if shape[axis] > 2 * width:
                    rows = [*range(width), *range(shape[axis] - width, shape[axis])]
                    inside[(slice(None),) * axis + (rows,)] = True
            if inside.any() and not inside.all():
                along = f"axis {axes[0]}" if len(axes) == 1 else f"axes {axes}".replace("[", "")
                wide = "" if width == 1 else f" ({width} wide)"
                message = f"wrong only at the border of {along.replace(']', '')}{wide}"
                yield "border", f"{message}: look at the padding", inside


def _verified(
    evidence: Evidence,
    kind: str,
    message: str,
    inside: Callable[[Case], np.ndarray | None],
    cost: float,
) -> list[Hypothesis]:
    """The hypothesis, if in all cases the wrong entries fill the place and lie nowhere else."""
    covered = total = outside = 0
    seen = 0
    for case in evidence.cases:
        place = inside(case)
        if place is None or np.any(case.wrong & ~place):
            return []
        telling = case.wrong | (case.true != 0)
        covered += int(np.sum(case.wrong))
        total += int(np.sum(place & telling))
        outside += int(np.sum(telling & ~place))
        seen += bool(case.wrong.any())
    if not outside or covered < (SHARED if kind == "repeats" else FILLED) * total:
        return []
    wrong = evidence.given.wrong
    here = "" if seen >= 3 else "on the given inputs, "
    text = f"{here}the cotangent of {evidence.argument} is {message} ({int(wrong.sum())} of "
    text += f"{wrong.size} entries){there(evidence)}"
    return [Hypothesis(kind, text, cost=cost, fresh_samples=max(seen - 1, 0))]


def _named_often(case: Case, index: str, least: int = 2) -> np.ndarray | None:
    """The entries along the first axis that an index array names at least twice."""
    array = case.discrete[index]
    if not case.shape or array.dtype == bool or not array.size:
        return None
    n = case.shape[0]
    if array.max() >= n or array.min() < -n:
        return None
    rows = np.bincount(np.asarray(array % n, np.int64).ravel(), minlength=n) >= least
    return np.broadcast_to(rows.reshape(-1, *(1,) * (len(case.shape) - 1)), case.shape)


def _named_at_all(case: Case, index: str) -> np.ndarray | None:
    return _named_often(case, index, 1)


def _own_index_repeats(case: Case, index: str) -> np.ndarray | None:
    """The updates whose index another update has too."""
    array = case.discrete[index]
    if array.dtype == bool or not case.shape or array.shape != case.shape[: array.ndim]:
        return None
    if array.ndim == 0:
        return None
    values, inverse, counts = np.unique(array, return_inverse=True, return_counts=True)
    rows = (counts[inverse] > 1).reshape(array.shape)
    return np.broadcast_to(
        rows.reshape(rows.shape + (1,) * (len(case.shape) - rows.ndim)), case.shape
    )  # fmt: skip


def _tied(case: Case, name: str, in_row: bool) -> np.ndarray | None:
    """The entries whose value stands elsewhere too, in the array or in the row."""
    array = case.known[name]
    if array.shape != case.shape or not array.ndim or (in_row and array.ndim == 1):
        return None
    rows = array.reshape(-1, array.shape[-1]) if in_row else array.reshape(1, -1)
    order = np.argsort(rows, axis=1)
    ordered = np.take_along_axis(rows, order, axis=1)
    same = ordered[:, 1:] == ordered[:, :-1]
    tied = np.zeros(rows.shape, bool)
    np.put_along_axis(tied, order, np.pad(same, ((0, 0), (0, 1))), axis=1)
    later = np.zeros(rows.shape, bool)
    np.put_along_axis(later, order, np.pad(same, ((0, 0), (1, 0))), axis=1)
    return (tied | later).reshape(array.shape)
