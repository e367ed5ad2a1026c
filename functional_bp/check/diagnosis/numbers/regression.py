"""Which few terms of a dictionary add up to a vector, exactly: one, two or three of many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

# What is left of the vector's square: a millionth of its norm, squared, and the rounding of the
# inner products (1e-16) in which pairs are looked for.
NEAR = 1e-10
PARALLEL = 1e-10  # of a column's square: what is left of one that the forced columns span
PAIRS = 1400  # columns that are tried in pairs
MOST = 60  # candidates that are handed on


@dataclass(frozen=True)
class Basis:
    """Columns of norm 1, none of them twice.

    Attributes:
        columns: one row per term.
        costs: what each term costs; ties between fits go to the cheaper.
    """

    columns: np.ndarray
    costs: np.ndarray

    @cached_property
    def gram(self) -> np.ndarray:
        """The inner products of the columns that are tried in pairs."""
        some = self.columns[:PAIRS]
        return some @ some.T

    def fits(self, vector: np.ndarray, forced: Sequence[int] = (), most: int = 2) -> list[Fit]:
        """Sums of the ``forced`` columns and up to ``most`` others that give the vector."""
        norm = float(np.linalg.norm(vector))
        if not norm:
            return []
        # What the forced columns span is taken out of the vector and of all other columns.
        span, _ = np.linalg.qr(self.columns[list(forced)].T)
        inside, part = self.columns @ span, span.T @ vector / norm
        along = self.columns @ (vector / norm) - inside @ part
        own = 1 - (inside**2).sum(1)
        left = 1 - float(part @ part)
        found: list[tuple[int, ...]] = [()] if left <= NEAR else []
        with np.errstate(all="ignore"):
            alone = np.where(own > PARALLEL, left - along**2 / own, np.inf)
        found += [(int(i),) for i in np.flatnonzero(alone <= NEAR)[:MOST]]
        if most >= 2 and not found:
            some = inside[:PAIRS]
            gram = self.gram - some @ some.T if forced else self.gram
            found += self._pairs(gram, along[:PAIRS], own[:PAIRS], left)
        results = [self._solved(vector, (*forced, *some), bool(forced)) for some in found]
        return sorted((fit for fit in results if fit), key=lambda fit: fit.cost)

    def _pairs(
        self, gram: np.ndarray, along: np.ndarray, own: np.ndarray, left: float
    ) -> list[tuple[int, ...]]:
        with np.errstate(all="ignore"):
            area = own[:, None] * own[None, :] - gram**2
            taken = (
                along[:, None] ** 2 * own[None, :]
                + along[None, :] ** 2 * own[:, None]
                - 2 * along[:, None] * along[None, :] * gram
            ) / area
            off = left - taken
        rows, cols = np.nonzero((off <= NEAR) & (off >= -1e-8) & (area > 1e-6))
        rows, cols = rows[rows < cols], cols[rows < cols]
        order = np.argsort(self.costs[rows] + self.costs[cols], kind="stable")[:MOST]
        return [(int(rows[i]), int(cols[i])) for i in order]

    def _solved(self, vector: np.ndarray, some: tuple[int, ...], forced: bool) -> Fit | None:
        if not some:
            return None
        matrix = self.columns[list(some)].T
        weights, *_ = np.linalg.lstsq(matrix, vector, rcond=None)
        off = float(np.linalg.norm(matrix @ weights - vector))
        if off > 1e-6 * float(np.linalg.norm(vector)):
            return None
        if len(some) > 1 and np.abs(weights).min() <= 1e-6 * np.abs(weights).max() and not forced:
            return None
        cost = float(self.costs[list(some)].sum()) + 0.5 * (len(some) - 1)
        return Fit(some, tuple(float(w) for w in weights), cost)


@dataclass(frozen=True)
class Fit:
    """A vector as a sum of columns: which, with what weights, at what cost."""

    terms: tuple[int, ...]
    weights: tuple[float, ...]
    cost: float


def distinct(columns: np.ndarray) -> np.ndarray:
    """The columns that are not multiples of an earlier one, told by three random projections."""
    directions = np.random.default_rng(0).standard_normal((columns.shape[1], 3))
    shadows = columns @ directions
    shadows *= np.where(shadows[:, :1] < 0, -1, 1)
    _, first = np.unique(np.round(shadows, 7), axis=0, return_index=True)
    return np.sort(first)
