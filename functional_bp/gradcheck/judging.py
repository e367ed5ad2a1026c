"""Two judges look at a claim at one point: with a reference's VJP, and with differences alone.

Both answer with a ``Judgement``. Neither calls a claim wrong where the function itself is not
finite, on rounding, or on another convention at a kink.

**Rounding.** How far a right gradient may be from the reference's is no fixed tolerance: it is
measured, entry by entry, by how much the reference itself moves when

- inputs and cotangents are nudged by a few units in the last place (conditioning);
- it runs in float32 instead of float64, scaled by the ratio of their spacings (rounding inside the
  formula, such as cancellation, which nudging the inputs does not show);

plus a floor of a few units of the entry itself, of the largest entry, and of the natural unit of
a gradient, |y ȳ| / |x|.

**Kinks.** At a point where f has no derivative, every value between its one-sided slopes is a
subgradient (of Clarke's generalised gradient, along the directions tried here). relu'(0) may be 0,
½ or 1, a tie of two maxima may be given to one of them: another convention is no error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

import numpy as np

from functional_bp.gradcheck.evaluation import Evaluation, Point, Result, Slope, bend, slope
from functional_bp.gradcheck.guard import Guard
from functional_bp.gradcheck.subject import (
    UNIT32,
    Arrays,
    all_finite,
    distance,
    normal,
    nudged,
    pairing,
    single,
)
from functional_bp.graph.interpret import UNIT64

NOISE = 64  # standard deviations, as it were, of the measured movement
RELATIVE = 256  # units in the last place of the entry itself
OF_LARGEST = 16  # units of the largest entry of the array
OF_NATURAL = 64  # units of |y ȳ| / |x|


class Limits:
    """Limits of a right gradient's error are measured for one subject.

    Args:
        full: the evaluation in float64.
        low: the same in float32, None where it cannot run there.
        rng: for the nudges.
    """

    def __init__(self, full: Evaluation, low: Evaluation | None, rng: np.random.Generator) -> None:
        self.full, self.low, self.rng = full, low, rng

    def reference_noise(self, point: Point, true: Arrays, nudges: int = 2) -> list[np.ndarray]:
        """Tell how much each entry of the reference's cotangents moves."""
        unit = self.full.unit
        noise = [np.zeros(np.shape(t)) for t in true]
        for _ in range(nudges):
            moved = self.full.both(point.cast(lambda a: nudged(self.rng, a, unit))).true
            assert moved is not None
            with np.errstate(invalid="ignore"):
                noise = [np.maximum(n, np.abs(a - b)) for n, a, b in zip(noise, moved, true)]
        rounding = self._rounding(point, true, lambda result: result.true)
        return [_smooth(n + r) for n, r in zip(noise, rounding)]

    def nudged_outs(self, point: Point) -> Arrays:
        """Return the reference's outputs at inputs that are a few units in the last place away."""
        outs = self.full.both(point.cast(lambda a: nudged(self.rng, a, self.full.unit))).true_outs
        assert outs is not None
        return outs

    def claim_noise(self, point: Point, claimed: Arrays) -> list[np.ndarray]:
        """Return the rounding error of the claim's own formula, which may be another than JAX's."""
        noise = self._rounding(point, claimed, lambda result: result.claimed)
        for _ in range(2):
            moved = self.full.both(point.cast(lambda a: nudged(self.rng, a, self.full.unit)))
            with np.errstate(invalid="ignore"):
                gaps = [np.abs(a - b) for a, b in zip(moved.claimed, claimed)]
            noise = [np.maximum(n, np.where(np.isfinite(g), g, 0.0)) for n, g in zip(noise, gaps)]
        return noise

    def _rounding(
        self, point: Point, full: Arrays, pick: Callable[..., Arrays]
    ) -> list[np.ndarray]:
        low = None
        if self.low is not None:
            with Guard("claim and reference in float32"):
                low = pick(self.low.both(point.cast(single)))
        if low is None:  # no measurement, only the floors
            return [np.zeros(np.shape(b)) for b in full]
        found = []
        for a, b in zip(low, full):
            with np.errstate(all="ignore"):
                moved = np.abs(a.astype(b.dtype) - b) * (self.full.unit / UNIT32)
                size = np.where(np.isfinite(b), np.abs(b), 0.0)
            # Where float32 overflows, nothing was measured: ten digits remain.
            fallback = 2e-9 * (size + np.max(size, initial=0.0))
            found.append(np.where(np.isfinite(moved), moved, fallback))
        return found

    def natural(self, point: Point, outs: Arrays, true: Arrays) -> list[float]:
        """Return the natural unit |y ȳ| / |x| of each active leaf's cotangent."""
        products = [np.abs(o * b) for o, b in zip(outs, point.bars)]
        height = max([0.0, *(float(np.max(p, initial=0.0)) for p in products)])
        largest_bar = max([0.0, *(float(np.max(np.abs(b), initial=0.0)) for b in point.bars)])
        units = []
        for x, bar in zip(point.actives, true):
            size = np.abs(x)
            middle = float(np.median(size)) if x.size else 0.0
            scale = middle + 1e-12 * float(np.max(size, initial=0.0)) + 1e-300
            unit = height / scale if np.isfinite(height) else 0.0
            finite = np.abs(bar)[np.isfinite(bar)]
            units.append(min(unit, 1e3 * (float(np.max(finite, initial=0.0)) + largest_bar)))
        return units

    def allowed(
        self, true: np.ndarray, noise: np.ndarray, natural: float, slack: float = 0.0
    ) -> np.ndarray:
        """Return each entry's limit of |claimed − true|, infinite where the truth is not finite."""
        unit = self.full.unit
        with np.errstate(invalid="ignore"):
            judged = np.isfinite(true) & np.isfinite(noise)
        size = np.where(judged, np.abs(np.where(judged, true, 0)), 0.0)
        largest = float(np.max(size, initial=0.0))
        floor = (RELATIVE * unit + slack) * size + OF_LARGEST * unit * largest
        limit = NOISE * np.where(judged, noise, 0.0) + floor + OF_NATURAL * unit * natural
        return np.where(judged, limit, np.inf)


def exceeding(claimed: np.ndarray, true: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Tell where |claimed − true| is over the limit, or the claim is wrongly not finite."""
    with np.errstate(all="ignore"):
        within = np.abs(claimed - true) <= allowed
    return ~within & np.isfinite(allowed)


def any_of(masks: Sequence[np.ndarray]) -> bool:
    """Tell whether any entry of any mask is set."""
    return any(bool(mask.any()) for mask in masks)


def _smooth(noise: np.ndarray) -> np.ndarray:
    """Two nudges may miss an entry by chance: none counts less than a tenth of its row's noise."""
    if not noise.ndim or not noise.size:
        return noise
    row = np.max(np.where(np.isfinite(noise), noise, 0.0), axis=-1, keepdims=True)
    return np.maximum(noise, 0.1 * row)


# Kinks

ENTRIES = 3  # disagreeing entries of an argument that are looked at
OUTPUTS = 3  # outputs that each of them moves


def is_valid_subgradient(
    evaluation: Evaluation, point: Point, masks: Sequence[np.ndarray], rng: np.random.Generator
) -> bool:
    """Tell whether at disagreeing entries the claim lies between the one-sided slopes.

    Args:
        evaluation: runs the claim in float64.
        point: where the disagreement was found.
        masks: per active leaf, the entries that disagree.
        rng: chooses which of them to look at.
    """
    tested = 0
    for leaf, mask in enumerate(masks):
        places = np.argwhere(mask)
        if not len(places):
            continue
        if point.actives[leaf].dtype.kind == "c":
            return False
        rng.shuffle(places)
        for place in places[:ENTRIES]:
            found = _entry_is_valid(evaluation, point, leaf, tuple(int(i) for i in place))
            if not found:
                return False
            tested += found
    return tested > 0


def _entry_is_valid(evaluation: Evaluation, point: Point, leaf: int, place: tuple[int, ...]) -> int:
    """How many output entries were judged with the claim between the slopes; 0 if one is not."""
    x = point.actives[leaf]
    step = 1e-6 * max(1e-3, abs(float(x[place])), float(np.mean(np.abs(x))))
    unit = np.zeros_like(x)
    unit[place] = 1.0
    tied = (np.abs(x - x[place]) <= 1e-12 * (1 + abs(x[place]))).astype(x.dtype)

    def outs(direction: np.ndarray, sign: int) -> list[np.ndarray]:
        moved = point.with_active(leaf, x + sign * step * direction)
        return [np.asarray(o, np.float64) for o in evaluation.outs(moved.actives, point.fixed)]

    here = outs(unit, 0)
    ahead, behind = outs(unit, 1), outs(unit, -1)
    change = [np.abs(a - h) + np.abs(b - h) for a, h, b in zip(ahead, here, behind)]
    touched = [(k, j) for k, c in enumerate(change) for j in np.flatnonzero(c.ravel())[:OUTPUTS]]
    tested = 0
    for k, j in (touched or [(0, 0)])[:OUTPUTS]:
        bars = tuple(np.zeros_like(bar) for bar in point.bars)
        bars[k].reshape(-1)[j] = 1.0
        claim = evaluation.both(point._replace(bars=bars)).claimed[leaf]
        if not all_finite([claim]):
            return 0
        for direction in (unit, tied, np.ones_like(x)):
            a, b, c = (outs(direction, sign)[k].reshape(-1)[j] for sign in (1, 0, -1))
            slopes = sorted(((a - b) / step, (b - c) / step))
            rounding = 8 * UNIT64 * max(abs(a), abs(b), abs(c)) / step
            size = abs(slopes[0]) + abs(slopes[1])
            is_smooth = slopes[1] - slopes[0] <= 1e-2 * size + 4 * rounding
            if direction is unit and is_smooth:
                return 0  # no kink here, no excuse
            room = 1e-3 * size + 4 * rounding
            if not slopes[0] - room <= float(np.sum(claim * direction)) <= slopes[1] + room:
                return 0
            tested += 1
    return tested


# The judges

ITERATIVE = 1e-6  # relative; two solvers that stop by a tolerance agree no better
SMALL_OUTPUT = 1e-5  # of the largest output
CANCELLED = 1e-8  # of Σ |x x̄|: what differences cannot see
OFF_SAMPLE = 1e-6  # relative slack away from the given inputs, where conditioning may be bad


class Ruling(Enum):
    """This can be said of a claim at a point."""

    RIGHT = auto()
    WRONG = auto()
    KINK = auto()  # another convention
    OUTSIDE = auto()  # the function is not finite, or claim and reference compute other values
    VALUE = auto()  # they compute other values at the given inputs
    UNRESOLVED = auto()  # differences cannot tell
    WITNESSES = auto()  # reference and differences disagree


@dataclass(frozen=True)
class Judgement:
    """A judgement is what a judge says of one point.

    Attributes:
        outcome: the verdict on the point.
        result: what was computed; ``true`` may be missing where there is no reference.
        masks: per active leaf, the entries that are wrong.
        errors, limits: per active leaf, the largest of |claimed − true| and of the limit.
        leaf: the active leaf that is most wrong.
        confirmed: finite differences side with the reference.
        reason: in words, where there is something to say.
    """

    outcome: Ruling
    result: Result
    masks: tuple[np.ndarray, ...] = ()
    errors: tuple[float, ...] = ()
    limits: tuple[float, ...] = ()
    leaf: int = 0
    confirmed: bool = False
    reason: str = ""


def _not_judged(result: Result, true_outs: Arrays, given: bool) -> Judgement | None:
    """The judgement where the forward values already decide."""
    if not all_finite(true_outs):
        return Judgement(Ruling.OUTSIDE, result, reason="the function is not finite there")
    gap = value_gap(result.outs, true_outs)
    return _other_values(result, gap, given) if gap > ITERATIVE else None


def _other_values(result: Result, gap: float, given: bool) -> Judgement:
    reason = f"the forward values differ by {gap:.1e} (relative)"
    return Judgement(Ruling.VALUE if given else Ruling.OUTSIDE, result, reason=reason)


class ReferenceJudge:
    """A judge compares entry by entry with the reference's cotangents; differences have a vote."""

    def __init__(
        self, full: Evaluation, limits: Limits, rng: np.random.Generator, *, iterative: bool,
        declared: bool,
    ) -> None:  # fmt: skip
        self.full, self.limits, self.rng = full, limits, rng
        self.iterative, self.declared = iterative, declared

    def judge(self, point: Point, *, given: bool) -> Judgement:
        """Judge the claim at a point."""
        result = self.full.both(point)
        assert result.true is not None and result.true_outs is not None
        if (decided := _not_judged(result, result.true_outs, given)) is not None:
            return decided
        gap = value_gap(result.outs, result.true_outs)
        if given and gap > self._value_limit(point, result):
            return _other_values(result, gap, given)
        slack = (0.0 if given else OFF_SAMPLE) + (1e3 * gap if gap > 1e-15 else 0.0)
        noise = self.limits.reference_noise(point, result.true)
        natural = self.limits.natural(point, result.true_outs, result.true)
        allowed = self._allowed(result.true, noise, natural, slack)
        masks = tuple(map(exceeding, result.claimed, result.true, allowed))
        if any_of(masks):
            own = self.limits.claim_noise(point, result.claimed)
            noise = [n + np.where(np.isfinite(o), o, 0.0) for n, o in zip(noise, own)]
            allowed = self._allowed(result.true, noise, natural, slack)
            masks = tuple(map(exceeding, result.claimed, result.true, allowed))
        errors = tuple(_largest_gap(c, t) for c, t in zip(result.claimed, result.true))
        bounds = tuple(float(np.max(a[np.isfinite(a)], initial=0.0)) for a in allowed)
        if not any_of(masks):
            return Judgement(Ruling.RIGHT, result, masks, errors, bounds)
        far = [distance(c, t) for c, t in zip(result.claimed, result.true)]
        far = [np.inf if np.isnan(d) else d for d in far]
        leaf = max(range(len(masks)), key=lambda i: (bool(masks[i].any()), far[i]))
        made = lambda outcome, **more: Judgement(
            outcome, result, masks, errors, bounds, leaf, **more
        )
        if self.declared:
            return made(Ruling.WRONG)
        if all_finite(result.claimed) and is_valid_subgradient(self.full, point, masks, self.rng):
            return made(Ruling.KINK, reason="a valid subgradient, by another convention at a kink")
        vote = side(self.full, point, result, masks[leaf], leaf)
        if vote is Side.REFERENCE:
            return made(Ruling.WRONG, confirmed=True)
        if vote is Side.CLAIM and given:
            reason = (
                "finite differences of the forward pass agree with the claim, not with the "
                "reference's gradient"
            )
            return made(Ruling.WITNESSES, reason=reason)
        return made(Ruling.WRONG if given and vote is Side.NEITHER else Ruling.UNRESOLVED)

    def _allowed(
        self, true: Arrays, noise: Sequence[np.ndarray], natural: Sequence[float], slack: float
    ) -> list[np.ndarray]:
        rounding = self.full.subject.rounding or [0.0] * len(true)
        return [
            self.limits.allowed(t, n, u, slack) + r
            for t, n, u, r in zip(true, noise, natural, rounding)
        ]

    def _value_limit(self, point: Point, result: Result) -> float:
        """How far the two forward values may be apart, relative."""
        if self.iterative:
            return ITERATIVE
        assert result.true_outs is not None and result.true is not None
        unit = self.full.unit
        moved = self.limits.nudged_outs(point)
        return 1e2 * value_gap(moved, result.true_outs) + 1e6 * unit


def value_gap(claimed: Sequence[np.ndarray], true: Sequence[np.ndarray]) -> float:
    """Return the largest relative distance of two forward passes' outputs.

    An output that is zero but for rounding is measured by the size of the others.
    """
    sizes = [float(np.linalg.norm(t.ravel())) for t in true]
    floor = SMALL_OUTPUT * max([0.0, *sizes])
    found = [0.0]
    for a, b, size in zip(claimed, true, sizes, strict=True):
        with np.errstate(all="ignore"):
            gap = float(np.linalg.norm((a - b).ravel())) / (max(size, floor) + 1e-300)
        found.append(np.inf if np.isnan(gap) else gap)
    return max(found)


def _largest_gap(claimed: np.ndarray, true: np.ndarray) -> float:
    with np.errstate(all="ignore"):
        gap = np.abs(claimed - true)
    gap = np.where(np.isfinite(true), np.where(np.isfinite(gap), gap, np.inf), 0.0)
    return float(np.max(gap, initial=0.0))


def directional(evaluation: Evaluation, point: Point, leaf: int, direction: np.ndarray) -> Slope:
    """Return d/dh ⟨ȳ, f(x + h v)⟩ at 0 by differences, for the direction v of one active leaf.

    At a kink this is the mean of both sides, where the complex step knows one alone.
    """
    here = evaluation.outs(point.actives, point.fixed)

    def along(step: float) -> float:
        outs = evaluation.along(point, leaf, step * direction)
        return pairing(point.bars, [a - b for a, b in zip(outs, here)])

    height = sum(float(np.sum(np.abs(o * b))) for o, b in zip(here, point.bars))
    return slope(along, 4 * UNIT64 * height if np.isfinite(height) else 0.0)


class Side(Enum):
    """Finite differences confirm one side, or neither."""

    REFERENCE = auto()
    CLAIM = auto()
    NEITHER = auto()


def side(evaluation: Evaluation, point: Point, result: Result, mask: np.ndarray, leaf: int) -> Side:
    """Tell whose cotangent finite differences confirm, at the entries where the two disagree."""
    assert result.true is not None
    claimed, true, x = result.claimed[leaf], result.true[leaf], point.actives[leaf]
    with np.errstate(all="ignore"):
        gap = np.where(np.isfinite(claimed), claimed - true, np.inf)
    place = np.unravel_index(int(np.argmax(np.where(mask, np.abs(gap), -1.0))), gap.shape)
    single = np.zeros_like(x)
    single[place] = 1.0
    many = np.where(mask, np.sign(np.real(np.where(np.isfinite(gap), gap, 1.0))), 0.0)
    size = max(float(np.abs(x[place])), 0.01 * float(np.mean(np.abs(x))), 1e-12)
    for direction in (single, many.astype(x.dtype)):
        found = directional(evaluation, point, leaf, size * direction)
        if not np.isfinite(found.value):
            continue
        value, error = found.value / size, found.error / size
        on = direction != 0
        by_reference = float(np.sum(np.real(true * direction)[on]))
        by_claim = float(np.sum(np.real(claimed * direction)[on]))
        if not np.isfinite(by_claim):
            close = 1e-2 * (abs(value) + abs(by_reference)) + 10 * error + 1e-6
            if abs(by_reference - value) <= close:
                return Side.REFERENCE
            continue
        apart = abs(by_claim - by_reference)
        scale = 0.05 * (abs(by_reference) + abs(value)) + min(10 * error, 0.2 * abs(value))
        if abs(by_reference - value) < 0.2 * apart and abs(by_reference - value) <= scale:
            return Side.REFERENCE
        if found.resolved and error < 0.01 * apart and abs(by_claim - value) < 0.05 * apart:
            return Side.CLAIM
    return Side.NEITHER


class Compared(NamedTuple):
    """A comparison of a claim with differences along one direction.

    Attributes:
        outcome: ``RIGHT``, ``WRONG`` or ``UNRESOLVED``.
        error: the relative error.
        reason: why differences cannot tell.
    """

    outcome: Ruling
    error: float = 0.0
    reason: str = ""


def _unresolved(reason: str) -> Compared:
    return Compared(Ruling.UNRESOLVED, 0.0, reason)


class DifferenceJudge:
    """A judge compares with directional derivatives; it needs only the forward values."""

    def __init__(
        self, full: Evaluation, limits: Limits, rng: np.random.Generator, *, iterative: bool
    ) -> None:
        self.full, self.limits, self.rng = full, limits, rng
        self.tolerance = 1e-4 if iterative else 1e-7

    def judge(self, point: Point, *, given: bool) -> Judgement:
        """Judge the claim at a point."""
        result = self.full.both(point)
        here = self.full.outs(point.actives, point.fixed)
        if (decided := _not_judged(result, here, given)) is not None:
            return decided
        count = 6 if given else 2
        reasons: list[str] = []
        errors = [0.0] * len(point.actives)
        judged = [False] * len(point.actives)
        for leaf, x in enumerate(point.actives):
            directions = [self._direction(x, sparse=k % 2 == 1) for k in range(count)]
            if len(np.unique(x)) < x.size:  # along this one equal entries stay equal
                directions.append(np.full(x.shape, np.mean(np.abs(x)) or 1.0, x.dtype))
            for direction in directions:
                if not np.any(direction):
                    continue
                found = self._along(point, result, here, leaf, direction)
                if found.outcome is Ruling.UNRESOLVED:
                    reasons.append(found.reason)
                    continue
                if found.outcome is Ruling.WRONG:
                    masks = tuple(np.zeros(np.shape(a), bool) for a in point.actives)
                    masks[leaf][...] = direction != 0
                    errors[leaf] = found.error
                    return Judgement(Ruling.WRONG, result, masks, tuple(errors), (), leaf, True)
                judged[leaf] = True
                errors[leaf] = max(errors[leaf], found.error)
        wanted = [on or not x.size for on, x in zip(judged, point.actives)]
        if not all(wanted):
            missing = ", ".join(n for n, on in zip(self.full.subject.names, wanted) if not on)
            why = reasons[0] if reasons else "no direction could be tried"
            reason = f"{missing}: {why}"
            return Judgement(Ruling.UNRESOLVED, result, (), tuple(errors), reason=reason)
        return Judgement(Ruling.RIGHT, result, (), tuple(errors))

    def _direction(self, x: np.ndarray, *, sparse: bool) -> np.ndarray:
        """A random direction, relative to the size of each entry."""
        size = np.maximum(np.abs(x), 0.1 * np.mean(np.abs(x))) if np.any(x) else np.ones(x.shape)
        usable = np.isfinite(x) & np.isfinite(size)
        drawn = np.where(usable, normal(self.rng, x) * np.where(usable, size, 0.0), 0.0)
        return drawn * (self.rng.random(x.shape) < 0.1) if sparse else drawn

    def _along(
        self, point: Point, result: Result, here: tuple[np.ndarray, ...], leaf: int,
        direction: np.ndarray,
    ) -> Compared:  # fmt: skip
        """The claim beside differences along a direction."""
        bar = np.where(direction != 0, result.claimed[leaf], 0.0)
        claimed = float(np.sum(np.real(bar * direction)))
        if not np.isfinite(claimed):  # differences judge the entries that are not finite alone
            direction = np.where(np.isfinite(result.claimed[leaf]), 0.0, direction)
        height = sum(float(np.sum(np.abs(o * b))) for o, b in zip(here, point.bars))
        size = float(np.linalg.norm(bar * direction))
        # Rounding before a cancellation, in the function or in the claim, shows in neither output.
        products = np.abs(point.actives[leaf] * result.claimed[leaf])
        lost = CANCELLED * float(np.sum(np.where(np.isfinite(products), products, 0.0)))

        def compared(known: Slope) -> tuple[float, float, float]:
            """Return the error, what of it is rounding, and the scale of both."""
            scale = max(abs(known.value), size)
            limit = 1e-11 * height + lost + 30 * known.error + self.tolerance * scale
            return abs(claimed - known.value), limit, scale + 1e-300

        exact = self.full.analytic_slope(point, leaf, direction)
        if exact is not None and np.isfinite(claimed):
            error, limit, scale = compared(exact)
            if error <= limit:
                return Compared(Ruling.RIGHT, error / scale)
        found = directional(self.full, point, leaf, direction)
        if not np.isfinite(found.value):
            return _unresolved("the forward pass is not finite nearby")
        outs = lambda h: list(self.full.along(point, leaf, h * direction))
        if not np.isfinite(claimed):
            close, far = (bend(outs, point.bars, h) for h in (1e-6, 1e-4))
            if not close <= 0.2 * far + 1e-9 * height:
                return _unresolved("a kink lies across the direction")
            if found.resolved and found.error <= 1e-5 * abs(found.value) + 1e-9 * height:
                return Compared(Ruling.WRONG, np.inf)
            return _unresolved("neither claim nor differences are finite")
        if not found.resolved or found.error > 1e-5 * abs(found.value) + 1e-9 * abs(claimed):
            if exact is None:
                return _unresolved("finite differences do not settle")
            found = exact
        error, limit, scale = compared(found)
        if error <= limit:
            return Compared(Ruling.RIGHT, error / scale)
        own = self.limits.claim_noise(point, result.claimed)[leaf]
        if error <= limit + NOISE * float(np.sum(np.abs(own * direction))):
            return Compared(Ruling.RIGHT, error / scale)  # its own formula rounds as much
        # A kink's bend stays as the step shrinks, that of a curve goes.
        near, far = (bend(outs, point.bars, h) for h in (3e-8, 1e-6))
        if not max(near, far) < 0.3 * error or (near > 0.01 * error and near > 0.3 * far):
            return _unresolved("a kink lies across the direction")
        along = lambda h: pairing(point.bars, [a - b for a, b in zip(outs(h), here)])
        small = [(along(h) - along(-h)) / (2 * h) for h in (1e-5, 1e-6)]
        rounding = 8 * UNIT64 * height / 1e-6
        if any(abs(s - found.value) > 0.3 * error + rounding for s in small):
            return _unresolved("finite differences depend on the step")
        return Compared(Ruling.WRONG, error / scale)


def numeric_cotangents(evaluation: Evaluation, point: Point, most: int = 600) -> tuple | None:
    """Return all cotangents by complex steps or differences; None for more than ``most``."""
    if sum(x.size for x in point.actives) > most:
        return None
    found = []
    for leaf, x in enumerate(point.actives):
        if x.dtype.kind == "c":
            return None
        bar = np.zeros(x.shape)
        typical = float(np.mean(np.abs(x))) if x.size else 0.0
        for place in np.ndindex(x.shape):
            unit = np.zeros_like(x)
            unit[place] = size = max(abs(float(x[place])), 0.1 * typical, 1e-6)
            exact = evaluation.analytic_slope(point, leaf, unit)
            known = exact or directional(evaluation, point, leaf, unit)
            bar[place] = known.value / size
        found.append(bar)
    return tuple(found)
