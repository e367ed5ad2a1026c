"""A claim may be wrong only somewhere: at certain indices, values or devices.

Indices repeat, lie at a border or on a diagonal; values lie below a threshold, in a branch, at a
tie, or are not finite; devices that share the work lack a sum over them, or take one too many.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from functional_bp import _jax
from functional_bp.gradcheck.diagnosis import costs
from functional_bp.gradcheck.diagnosis.expressions import name_of
from functional_bp.gradcheck.diagnosis.patterns.evidence import Evidence, Judged, unexplained
from functional_bp.gradcheck.diagnosis.patterns.formulas import aligned
from functional_bp.gradcheck.diagnosis.patterns.transformations import common_factor
from functional_bp.gradcheck.evaluation import pull_reference
from functional_bp.gradcheck.findings import Finding, Kind
from functional_bp.gradcheck.guard import Guard
from functional_bp.graph.interpret import equations

# Thresholds that separate right entries from wrong ones.


@dataclass(frozen=True)
class Separation:
    """A condition on an array's values holds at all wrong entries and at no right one.

    Attributes:
        condition: with a place for the array's name: ``"{} < −9"``.
        chance: how likely a separation as sharp would be if the wrong entries lay at random.
    """

    condition: str
    chance: float


def separations(
    values: np.ndarray, wrong: np.ndarray, known: Sequence[float] = ()
) -> Iterator[Separation]:
    """These conditions on ``values`` tell wrong entries from right ones.

    ``known`` are thresholds that stand in the code: of all that separate, they are preferred.
    """
    bad, good = values[wrong], values[~wrong]
    if bad.size == 0 or good.size == 0:
        return
    low, high = bad.min(), bad.max()
    if np.any((low <= good) & (good <= high)):
        return
    bad_levels, good_levels = np.unique(bad), np.unique(good)
    levels, wrongs = bad_levels.size + good_levels.size, bad_levels.size
    if values.dtype.kind in "iub":  # few levels, each of many entries that agree
        levels, wrongs = values.size, bad.size
    ways = math.comb(levels, wrongs) if levels < 2000 else math.inf
    if values.dtype == bool:
        yield Separation("{} = " + str(bool(bad[0])), 2 / ways)
        return
    if values.dtype.kind in "iu" and bad_levels.size == 1:
        yield Separation("{} = " + str(int(bad[0])), levels / ways)
        return
    low, high = float(bad_levels[0]), float(bad_levels[-1])
    if high < good_levels[0]:
        text = "{} < " + _digits(round_between(high, float(good_levels[0]), known=known))
        yield Separation(text, 2 / ways)
    elif low > good_levels[-1]:
        text = "{} > " + _digits(round_between(float(good_levels[-1]), low, up=False, known=known))
        yield Separation(text, 2 / ways)
    elif low == high:
        # An exact value is hit often or it is special; one entry in the middle is neither.
        special = low == 0 or bad.size > 2
        yield Separation("{} = " + _digits(low), 0.0 if special else 1.0)
    else:
        before, after = good_levels[good_levels < low], good_levels[good_levels > high]
        start = round_between(float(before[-1]), low, up=False, known=known)
        stop = round_between(high, float(after[0]), known=known)
        text = f"{_digits(start)} < {{}} < {_digits(stop)}"
        yield Separation(text, (levels - wrongs + 1) / ways)


def round_between(low: float, high: float, up: bool = True, known: Sequence[float] = ()) -> float:
    """This is the roundest number in ``(low, high]``, or in ``[low, high)`` if ``up`` is False.

    A ``known`` number that lies there comes first.
    """
    if not up:
        return -round_between(-high, -low, known=[-k for k in known])
    between = [k for k in known if low < k <= high]
    if between:
        return float(between[0])
    if low < 0 <= high:
        return 0.0
    exponent = math.floor(math.log10(max(abs(low), abs(high)))) + 1
    for power in range(exponent, exponent - 18, -1):
        for step in (10.0**power, 5 * 10.0 ** (power - 1), 2 * 10.0 ** (power - 1)):
            candidate = math.floor(high / step) * step
            if low < candidate <= high:
                return float(f"{candidate:.15g}")
    return high


def _digits(value: float) -> str:
    """A number for a sentence, with a minus sign."""
    return f"{value:.6g}".replace("-", "−")


# Regions of values.

CHANCE = 1e-2  # of a separation by luck, all arrays looked at taken together
NEARLY_ALL = 0.97  # wrong: then the few others are right by rounding, and there is no region
LIMIT = 20_000  # right entries per case that are looked at, and as many wrong ones

Values = Callable[[Judged], np.ndarray | None]


def find_regions(evidence: Evidence) -> list[Finding]:
    """A condition on one array may separate the wrong entries from the right ones."""
    part = float(np.mean([case.wrong.mean() for case in evidence.cases]))
    if evidence.given.wrong.all() or part > NEARLY_ALL:
        return []
    found: list[Finding] = []
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
                cost = (
                    costs.REGION + costs.PER_ARRAY * looked + costs.PER_PART * max(0.0, part - 0.5)
                )
                found.append(_region(evidence, separation.condition.format(text), cost))
    return found


def not_finite(evidence: Evidence) -> list[Finding]:
    """The claim is not finite here though the truth is."""
    case = evidence.given
    at = ~np.isfinite(case.claimed)
    if not at.any():
        return []
    first = tuple(int(i) for i in np.argwhere(at)[0])
    conditions = (
        f", where {separation.condition.format(name)}"
        for name, array in case.known.items() if np.isrealobj(array)
        for view in aligned(array, case.shape)
        for separation in separations(view, at)
    )  # fmt: skip
    where = next(conditions, "")
    index = f" at {list(first)}" if first else ""
    message = (
        f"the cotangent of {evidence.argument} is not finite at {int(at.sum())} of {at.size} "
        f"entries{where}: claimed{index} = {_written(case.claimed[first])}, "
        f"true = {_written(case.true[first])}"
    )
    return [Finding(Kind.NOT_FINITE, message, cost=costs.NOT_FINITE)]


def there(evidence: Evidence) -> str:
    """This holds at the wrong entries, as the end of a sentence: "; there claimed = 0"."""
    pairs = [(case.claimed[case.wrong], case.true[case.wrong]) for case in evidence.cases]
    if not any(claimed.any() for claimed, _ in pairs):
        return "; there claimed = 0"
    if not any(true.any() for _, true in pairs):
        return "; there it should be 0"
    c = common_factor(pairs)
    if not c or any(unexplained(c * true, claimed, true) is None for claimed, true in pairs):
        return ""
    constant = name_of(c, evidence.sizes)
    if not constant.named:
        return ""
    return f"; there claimed = {constant.factor}true"


def _region(evidence: Evidence, condition: str, cost: float) -> Finding:
    wrong = evidence.given.wrong
    seen = [case for case in evidence.fresh if case.wrong.any()]
    here = "" if len(seen) >= 2 else "on the given inputs, "
    message = (
        f"{here}the cotangent of {evidence.argument} is wrong only where {condition} "
        f"({int(wrong.sum())} of {wrong.size} entries){there(evidence)}"
    )
    return Finding(Kind.REGION, message, cost=cost, fresh_samples=len(seen))


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
    case = evidence.given
    names = sorted(case.known, key=lambda name: name != evidence.argument)
    ways = [(name, way) for name in names for way in range(2) if way == 0 or _is_real(case, name)]
    for name, way in (*ways, *((name, 0) for name in case.bars if _is_real(case, name))):
        if _is_real(case, name):
            yield name, _reader(name, way)
        yield f"|{name}|", _reader(name, way, np.abs)
    for name in names:
        if case.known[name].ndim:
            yield f"the norm of {name}'s row", _reader(name, 0, _row_norm)
            yield f"the largest |{name}| of a row", _reader(name, 0, _row_largest)


def _is_real(case: Judged, name: str) -> bool:
    return np.isrealobj(case.arrays[name])


def _discrete(evidence: Evidence) -> Iterator[tuple[str, Values]]:
    for name, way in itertools.product(evidence.given.discrete, range(2)):
        yield name, _reader(name, way)


def _reader(name: str, way: int, form: Callable[[np.ndarray], np.ndarray] = np.asarray) -> Values:
    """The array broadcast to the argument's shape in one of two ways."""

    def read(case: Judged) -> np.ndarray | None:
        array = case.arrays.get(name, case.discrete.get(name))
        views = [] if array is None else aligned(form(array), case.shape)
        return next(itertools.islice(views, way, None), None)

    return read


def _row_norm(a: np.ndarray) -> np.ndarray:
    return np.linalg.norm(a, axis=-1, keepdims=True)


def _row_largest(a: np.ndarray) -> np.ndarray:
    return np.abs(a).max(-1, keepdims=True)


def _written(value: np.generic) -> str:
    return _digits(float(value.real)) if not np.iscomplexobj(value) else f"{value:.6g}"


FILLED = 0.8  # part of a place's entries that has to be wrong for the place to be named
SHARED = 0.2  # the same where entries share an index or a value: the last one may well be right


def find_places(evidence: Evidence) -> list[Finding]:
    """These places hold all wrong entries."""
    if not any(case.wrong.any() and not case.wrong.all() for case in evidence.cases):
        return []
    return [*_repeats(evidence), *_indices(evidence)][:3]


ACCUMULATE = ": accumulate (add), do not overwrite"


def _repeats(evidence: Evidence) -> list[Finding]:
    name = evidence.argument
    found = []
    for index in evidence.given.discrete:
        named = f"at the entries of {name} that {index} names"
        for kind, text, place in (
            (Kind.REPEATS, f"{named} more than once{ACCUMULATE}", _named_often),
            (Kind.REPEATS, f"where an index in {index} repeats{ACCUMULATE}", _own_index_repeats),
            (Kind.ENTRIES, named, _named_at_all),
        ):
            inside = lambda case, p=place, i=index: p(case, i)
            found += _verified(evidence, kind, f"wrong only {text}", inside, costs.REPEATED_INDEX)
    for known in [] if evidence.large else evidence.given.known:
        for row, in_row in (("", False), (" in its row", True)):
            message = (
                f"wrong only where a value of {known} repeats{row}: look at how ties are shared"
            )
            inside = lambda case, k=known, r=in_row: _tied(case, k, r)
            found += _verified(evidence, Kind.REPEATS, message, inside, costs.TIE)
    return found


def _indices(evidence: Evidence) -> list[Finding]:
    shape = evidence.given.shape
    found: list[Finding] = []
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
            found += _verified(evidence, Kind.ENTRIES, message, lambda c, i=inside: i, costs.PLACE)
    for kind, message, inside in _patterns(shape):
        found += _verified(evidence, kind, message, lambda c, i=inside: i, costs.PLACE)
    return found


def _patterns(shape: tuple[int, ...]) -> Iterator[tuple[Kind, str, np.ndarray]]:
    if len(shape) >= 2 and shape[-1] == shape[-2] > 1:
        row, column = np.indices(shape[-2:])
        for text, part in (
            ("on the diagonal", row == column), ("above the diagonal", row < column),
            ("below the diagonal", row > column), ("off the diagonal", row != column),
            ("on and above the diagonal", row <= column),
            ("on and below the diagonal", row >= column),
        ):  # fmt: skip
            yield Kind.ENTRIES, f"wrong only {text}", np.broadcast_to(part, shape)
    long = [axis for axis, n in enumerate(shape) if n > 2]
    groups = [*([axis] for axis in long), *([long[-2:], long] if len(long) > 1 else [])]
    for axes, width in itertools.product(groups, (1, 2)):
        inside = np.zeros(shape, bool)
        for axis in axes:
            if shape[axis] > 2 * width:
                rows = [*range(width), *range(shape[axis] - width, shape[axis])]
                inside[(slice(None),) * axis + (rows,)] = True
        if inside.any() and not inside.all():
            along = f"axis {axes[0]}" if len(axes) == 1 else f"axes {', '.join(map(str, axes))}"
            wide = "" if width == 1 else f" ({width} wide)"
            message = f"wrong only at the border of {along}{wide}: look at the padding"
            yield Kind.BORDER, message, inside


def _verified(
    evidence: Evidence,
    kind: Kind,
    message: str,
    inside: Callable[[Judged], np.ndarray | None],
    cost: float,
) -> list[Finding]:
    """The finding, if in all cases the wrong entries fill the place and lie nowhere else."""
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
    if not outside or covered < (SHARED if kind == Kind.REPEATS else FILLED) * total:
        return []
    wrong = evidence.given.wrong
    here = "" if seen >= 3 else "on the given inputs, "
    text = f"{here}the cotangent of {evidence.argument} is {message} ({int(wrong.sum())} of "
    text += f"{wrong.size} entries){there(evidence)}"
    return [Finding(kind, text, cost=cost, fresh_samples=max(seen - 1, 0))]


def _named_often(case: Judged, index: str, least: int = 2) -> np.ndarray | None:
    """The entries along the first axis that an index array names at least twice."""
    array = case.discrete[index]
    if not case.shape or array.dtype == bool or not array.size:
        return None
    n = case.shape[0]
    if array.max() >= n or array.min() < -n:
        return None
    rows = np.bincount(np.asarray(array % n, np.int64).ravel(), minlength=n) >= least
    return np.broadcast_to(rows.reshape(-1, *(1,) * (len(case.shape) - 1)), case.shape)


def _named_at_all(case: Judged, index: str) -> np.ndarray | None:
    return _named_often(case, index, 1)


def _own_index_repeats(case: Judged, index: str) -> np.ndarray | None:
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


def _tied(case: Judged, name: str, in_row: bool) -> np.ndarray | None:
    """The entries whose value stands elsewhere too, in the array or in the row."""
    array = case.known[name]
    if array.shape != case.shape or not array.ndim or (in_row and array.ndim == 1):
        return None
    rows = array.reshape(-1, array.shape[-1]) if in_row else array.reshape(1, -1)
    order = np.argsort(rows, axis=1)
    ordered = np.take_along_axis(rows, order, axis=1)
    same = np.pad(ordered[:, 1:] == ordered[:, :-1], ((0, 0), (1, 1)))
    tied = np.zeros(rows.shape, bool)
    np.put_along_axis(tied, order, same[:, 1:] | same[:, :-1], axis=1)
    return tied.reshape(array.shape)


# Devices that share the work.

MEAN = (
    "a mean over them (lax.pmean) stands where a sum (lax.psum) belongs, or what is divided by "
    "their number already is divided again"
)
SUMMED = "it is summed over them (lax.psum) though each of them has the whole"
SHARED_BY_SHARDS = "it is summed over them (lax.psum) though each of them has entries of its own"


def find_collectives(evidence: Evidence) -> list[Finding]:
    """A claim with a ``shard_map`` may be off by a factor, or be one device's part alone."""
    for message, predict in _shared(evidence):
        error = evidence.explains(predict)
        if error is not None:
            return [evidence.finding(Kind.SHARDING, message, costs.COLLECTIVE, error)]
    return []


def _shared(evidence: Evidence) -> Iterator[tuple[str, Values]]:
    """What a claim is that takes the sum over the devices wrongly, with its value in a case."""
    name = evidence.argument
    for n in _device_counts(evidence):
        for c, claimed, why in ((1 / n, f"true / {n}", MEAN), (float(n), f"{n} · true", SUMMED)):
            message = f"claimed = {claimed} for {name}, shared by {n} devices: {why}"
            yield message, lambda case, c=c: c * case.true
        for axis, length in enumerate(evidence.given.shape):
            for c, shown in ((1.0, ""), (1 / n, f", over {n}"), (1 / n**2, f", over {n}²")):
                if length % n == 0:
                    yield (
                        f"claimed is the sum of the {n} devices' parts of the cotangent of {name} "
                        f"along axis {axis}{shown}: {SHARED_BY_SHARDS}",
                        lambda case, c=c, i=axis, n=n: c * _over_parts(case.true, i, n),
                    )
        if evidence.subject.reference is None:
            continue
        axes = [
            (output, axis)
            for output, bar in enumerate(evidence.given.sample.bars)
            for axis, length in enumerate(np.shape(bar)) if length % n == 0
        ]  # fmt: skip
        for (device, word), at in itertools.product(((0, "first"), (n - 1, "last")), axes):
            yield (
                f"claimed is the {word} of {n} devices' part of the cotangent of {name} alone: "
                "the sum over the devices (lax.psum) is missing",
                lambda case, d=device, at=at, n=n: _part(evidence, case, *at, d, n),
            )


def _device_counts(evidence: Evidence) -> list[int]:
    """Over how many devices the claim's ``shard_map``s split something."""
    subject, sample = evidence.subject, evidence.given.sample
    found: dict[int, None] = {}
    with Guard("a trace of the claim"), jax.enable_x64(True):
        closed = jax.make_jaxpr(lambda a, b: subject.pull(a, sample.fixed, b)[1])(
            tuple(sample.actives), tuple(sample.bars)
        )
        for equation in equations(_jax.open_jaxpr(closed)[0]):
            if equation.primitive.name == "shard_map":
                sizes = [int(n) for n in equation.params["mesh"].shape.values()]
                found.update(dict.fromkeys(n for n in (*sizes, math.prod(sizes)) if n > 1))
    return list(found)


def _over_parts(x: np.ndarray, axis: int, n: int) -> np.ndarray:
    """In each of n parts along an axis, the sum of all of them."""
    total = sum(np.split(x, n, axis))
    return np.concatenate([total] * n, axis)


def _part(evidence: Evidence, case: Judged, output: int, axis: int, device: int, n: int) -> Any:
    """The true cotangent if only one device's part of an output's cotangent were there."""
    bars = [np.asarray(bar) for bar in case.sample.bars]
    size = bars[output].shape[axis] // n
    inside = (slice(None),) * axis + (slice(device * size, (device + 1) * size),)
    kept = np.zeros_like(bars[output])
    kept[inside] = bars[output][inside]
    bars[output] = kept
    with jax.enable_x64(True):
        actives, fixed = case.sample.actives, case.sample.fixed
        true = pull_reference(evidence.subject, actives, fixed, tuple(bars))[1]
    return np.asarray(true[evidence.disagreement.argument])
