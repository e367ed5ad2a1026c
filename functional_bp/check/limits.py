"""How far a right gradient may be from the reference's: element by element, by measurement.

The limit of an entry is not a fixed tolerance but how much the reference itself moves there when

- inputs and cotangents are nudged by a few units in the last place (conditioning);
- it runs in float32 instead of float64, scaled by the ratio of their spacings (rounding inside the
  formula, such as cancellation, which nudging the inputs does not show);

plus a floor of a few units of the entry itself, of the largest entry, and of the natural unit of a
gradient, |y ȳ| / |x|.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from functional_bp.check.arrays import UNIT32, Arrays, nudged, single
from functional_bp.check.evaluation import Evaluation, Point

NOISE = 64  # standard deviations, as it were, of the measured movement
RELATIVE = 256  # units in the last place of the entry itself
OF_LARGEST = 16  # units of the largest entry of the array
OF_NATURAL = 64  # units of |y ȳ| / |x|


class Limits:
    """Measures limits for one subject.

    Args:
        full: the evaluation in float64.
        low: the same in float32, None where it cannot run there.
        rng: for the nudges.
    """

    def __init__(self, full: Evaluation, low: Evaluation | None, rng: np.random.Generator) -> None:
        self.full, self.low, self.rng = full, low, rng

    def reference_noise(self, point: Point, true: Arrays, nudges: int = 2) -> list[np.ndarray]:
        """How much each entry of the reference's cotangents moves."""
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
        """The reference's outputs at inputs that are a few units in the last place away."""
        outs = self.full.both(point.cast(lambda a: nudged(self.rng, a, self.full.unit))).true_outs
        assert outs is not None
        return outs

    def claim_noise(self, point: Point, claimed: Arrays) -> list[np.ndarray]:
        """The rounding error of the claim's own formula, which may be another than JAX's."""
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
        if self.low is None:
            return [np.zeros(np.shape(b)) for b in full]
        try:
            low = pick(self.low.both(point.cast(single)))
        except Exception:  # it cannot run in float32: no measurement, only the floors
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
        """The natural unit |y ȳ| / |x| of each active leaf's cotangent."""
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
        """The limit of |claimed − true| for each entry; infinite where the truth is not finite."""
        unit = self.full.unit
        with np.errstate(invalid="ignore"):
            judged = np.isfinite(true) & np.isfinite(noise)
        size = np.where(judged, np.abs(np.where(judged, true, 0)), 0.0)
        largest = float(np.max(size, initial=0.0))
        floor = (RELATIVE * unit + slack) * size + OF_LARGEST * unit * largest
        limit = NOISE * np.where(judged, noise, 0.0) + floor + OF_NATURAL * unit * natural
        return np.where(judged, limit, np.inf)


def exceeding(claimed: np.ndarray, true: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Where |claimed − true| is over the limit, or the claim is not finite where it should be."""
    with np.errstate(all="ignore"):
        within = np.abs(claimed - true) <= allowed
    return ~within & np.isfinite(allowed)


def any_of(masks: Sequence[np.ndarray]) -> bool:
    """Whether any entry of any mask is set."""
    return any(bool(mask.any()) for mask in masks)


def _smooth(noise: np.ndarray) -> np.ndarray:
    """Two nudges may miss an entry by chance: none counts less than a tenth of its row's noise."""
    if not noise.ndim or not noise.size:
        return noise
    row = np.max(np.where(np.isfinite(noise), noise, 0.0), axis=-1, keepdims=True)
    return np.maximum(noise, 0.1 * row)
