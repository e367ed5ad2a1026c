"""A threshold that separates right entries from wrong ones, and a round number for it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Separation:
    """A condition on an array's values that holds at all wrong entries and at no right one.

    Attributes:
        condition: with a place for the array's name: ``"{} < −9"``.
        chance: how likely a separation as sharp would be if the wrong entries lay at random.
    """

    condition: str
    chance: float


def separations(
    values: np.ndarray, wrong: np.ndarray, known: Sequence[float] = ()
) -> Iterator[Separation]:
    """The conditions on ``values`` that tell wrong entries from right ones.

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
        text = "{} < " + number(round_between(high, float(good_levels[0]), known=known))
        yield Separation(text, 2 / ways)
    elif low > good_levels[-1]:
        text = "{} > " + number(round_between(float(good_levels[-1]), low, up=False, known=known))
        yield Separation(text, 2 / ways)
    elif low == high:
        # An exact value is hit often or it is special; one entry in the middle is neither.
        special = low == 0 or bad.size > 2
        yield Separation("{} = " + number(low), 0.0 if special else 1.0)
    else:
        before, after = good_levels[good_levels < low], good_levels[good_levels > high]
        start = round_between(float(before[-1]), low, up=False, known=known)
        stop = round_between(high, float(after[0]), known=known)
        text = f"{number(start)} < {{}} < {number(stop)}"
        yield Separation(text, (levels - wrongs + 1) / ways)


def round_between(low: float, high: float, up: bool = True, known: Sequence[float] = ()) -> float:
    """The roundest number in ``(low, high]``, or in ``[low, high)`` where ``up`` is False.

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


def number(value: float) -> str:
    """A number for a sentence, with a minus sign."""
    return f"{value:.6g}".replace("-", "−")


def aligned(array: np.ndarray, shape: Sequence[int]) -> Iterator[np.ndarray]:
    """``array`` broadcast to ``shape``, in NumPy's way and with its axes at the front."""
    shape = tuple(shape)
    if array.ndim <= len(shape):
        front = array.reshape(array.shape + (1,) * (len(shape) - array.ndim))
        for view in (array, front) if front.shape != array.shape else (array,):
            if all(n in (1, m) for n, m in zip(view.shape[::-1], shape[::-1])):
                yield np.broadcast_to(view, shape)
