"""Directional derivatives by central differences, with Richardson extrapolation.

For a smooth φ, D(h) = (φ(h) − φ(−h)) / 2h = φ'(0) + c₂h² + c₄h⁴ + …; two step sizes eliminate c₂,
three also c₄, and so on (Richardson's extrapolation). The difference of neighbours in that tableau
says how well the derivative is known (Ridders), so that there is a third answer beside right and
wrong: *unresolved*.

Reference: Press et al., *Numerical Recipes*, section 5.7, whose Neville tableau this is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

RATIO = 1.6  # of neighbouring step sizes
FIRST_STEPS = (1e-2, 1e-3, 1e-4, 1e-6)  # relative to the inputs; each starts a tableau


@dataclass(frozen=True)
class Slope:
    """φ'(0) as differences see it: value, error estimate, and whether it can be relied on."""

    value: float
    error: float
    resolved: bool


def extrapolate(
    function: Callable[[float], float], step: float, rows: int = 8
) -> tuple[float, float]:
    """φ'(0) from one tableau, with an estimate of its error (infinite where there is none)."""
    tableau: list[list[float]] = []
    best, error = np.nan, np.inf
    for i in range(rows):
        row = [(function(step) - function(-step)) / (2 * step)]
        power = RATIO**2
        for j in range(i):
            row.append((row[j] * power - tableau[i - 1][j]) / (power - 1))
            power *= RATIO**2
        if i:
            for j in range(1, i + 1):
                gap = max(abs(row[j] - row[j - 1]), abs(row[j] - tableau[i - 1][j - 1]))
                if gap <= error:
                    best, error = row[j], gap
            if abs(row[i] - tableau[i - 1][i - 1]) >= 2 * error:
                break  # rounding has taken over
        tableau.append(row)
        step /= RATIO
    return best, error


def slope(function: Callable[[float], float], rounding: float = 0.0) -> Slope:
    """φ'(0) from tableaux that start at several steps; resolved where two of them agree.

    ``rounding`` is the absolute rounding error of φ: a difference over the step h is known to
    rounding / h at best, however well its neighbours agree by chance.
    """
    with np.errstate(all="ignore"):
        found = [extrapolate(function, step) for step in FIRST_STEPS]
    finite = [
        (value, max(error, rounding / step))
        for (value, error), step in zip(found, FIRST_STEPS)
        if np.isfinite(value)
    ]
    if not finite:
        return Slope(np.nan, np.inf, False)
    value, error = min(finite, key=lambda pair: pair[1])
    agreeing = sum(abs(other - value) <= 1e-4 * abs(value) + 1e-300 for other, _ in finite)
    return Slope(value, error, bool(agreeing >= 2))


def bend(
    outs: Callable[[float], list[np.ndarray]], bars: tuple[np.ndarray, ...], step: float
) -> float:
    """Σ |ȳ| |y(h) − 2 y(0) + y(−h)| / h, less rounding: how much of a kink lies at 0.

    It tends to the jump of the slope as h → 0, and to 0 where the function is smooth. Outputs are
    taken one by one, so that opposite kinks do not cancel.
    """
    ahead, here, behind = outs(step), outs(0.0), outs(-step)
    total = 0.0
    for a, b, c, bar in zip(ahead, here, behind, bars):
        second = np.abs(a - 2 * b + c) - 8 * np.finfo(np.float64).eps * np.abs(b)
        total += float(np.sum(np.abs(bar) * np.maximum(second, 0)))
    return total / step
