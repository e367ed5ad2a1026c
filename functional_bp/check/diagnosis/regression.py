"""Which few terms of a dictionary add up to a vector, exactly: one, two or three of many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# What is left of the vector's square: a millionth of its norm, squared, and the rounding of the
# inner products (1e-16) in which pairs are looked for.
NEAR = 1e-10
PARALLEL = 1e-10  # of 1 − cos²: columns nearer than this are the same term in other words
PAIRS = 1200  # columns that are tried in pairs
MOST = 60  # candidates that are handed on


@dataclass(frozen=True)
class Basis:
    """Columns of norm 1, none of them twice, and their inner products.

    Attributes:
        columns: one row per term.
        gram: their inner products.
        costs: what each term costs; ties between fits go to the cheaper.
    """

    columns: np.ndarray
    gram: np.ndarray
    costs: np.ndarray

    def fits(self, vector: np.ndarray, forced: Sequence[int] = (), most: int = 2) -> list[Fit]:
        """Sums of the ``forced`` columns and up to ``most`` others that give the vector."""
        norm = float(np.linalg.norm(vector))
        if not norm:
            return []
        count = min(PAIRS, len(self.columns))
        gram, along = self.gram, self.columns @ (vector / norm)
        own = np.ones(len(along))
        left = 1.0
        for k in forced:  # Gram–Schmidt: what the forced columns do not span
            if own[k] <= PARALLEL:
                return []
            left -= along[k] ** 2 / own[k]
            along = along - gram[:, k] * along[k] / own[k]
            own, gram = (
                own - gram[:, k] ** 2 / own[k],
                gram - np.outer(gram[:, k], gram[k]) / own[k],
            )
        found: list[tuple[int, ...]] = [()] if left <= NEAR else []
        with np.errstate(all="ignore"):
            alone = np.where(own > PARALLEL, left - along**2 / own, np.inf)
        found += [(int(i),) for i in np.flatnonzero(alone <= NEAR)[:MOST]]
        if most >= 2 and not found:
            found += self._pairs(gram[:count, :count], along[:count], own[:count], left)
        results = [self._solved(vector, (*forced, *some)) for some in found]
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
        good = (area > 1e-6) & (left - taken <= NEAR) & (left - taken >= -1e-8)
        rows, cols = np.nonzero(np.triu(good, 1))
        order = np.argsort(self.costs[rows] + self.costs[cols], kind="stable")[:MOST]
        return [(int(rows[i]), int(cols[i])) for i in order]

    def _solved(self, vector: np.ndarray, some: tuple[int, ...]) -> Fit | None:
        if not some:
            return None
        matrix = self.columns[list(some)].T
        weights, *_ = np.linalg.lstsq(matrix, vector, rcond=None)
        off = float(np.linalg.norm(matrix @ weights - vector))
        if off > 1e-6 * float(np.linalg.norm(vector)):
            return None
        cost = float(self.costs[list(some)].sum()) + 0.5 * (len(some) - 1)
        return Fit(some, tuple(float(w) for w in weights), cost)


@dataclass(frozen=True)
class Fit:
    """A vector as a sum of columns: which, with what weights, at what cost."""

    terms: tuple[int, ...]
    weights: tuple[float, ...]
    cost: float


def distinct(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The columns that are not multiples of an earlier one, and the inner products of these."""
    gram = columns @ columns.T
    same = np.triu(np.abs(gram) > 1 - PARALLEL, 1).any(axis=0)
    kept = np.flatnonzero(~same)
    return kept, gram[np.ix_(kept, kept)]
