"""Which few candidates add up to what is missing: the question of both searches for a term.

A candidate is a vector, of the entries that it would contribute. The patterns' are terms of a
formula, each times any constant; the repairs' are changes that an edit makes, as they are, or times
a constant that is still to be found. All pairs are looked at at once, by inner products.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from functional_bp.gradcheck.diagnosis import costs

# What is left of the vector's square: a millionth of its norm, squared, and the rounding of the
# inner products (1e-16) in which pairs are looked for.
NEAR = 1e-10
PARALLEL = 1e-10  # of a column's square: what is left of one that the forced columns span
DEPENDENT = 1e-6  # of the area that two columns span, squared
PAIRS = 1400  # columns that are tried in pairs
MOST = 60  # candidates that are handed on
NEAREST = 40  # pairs of each kind that are handed on

Sum = tuple[int, int, float, float]  # two candidates and their coefficients


def plain_pairs(vector: np.ndarray, first: np.ndarray, other: np.ndarray) -> np.ndarray:
    """‖v − x − y‖² for every row x of the first table and y of the other."""
    left = vector - first
    return (left**2).sum(1)[:, None] - 2 * left @ other.T + (other**2).sum(1)[None]


def free_pairs(gram: np.ndarray, along: np.ndarray, square: float) -> np.ndarray:
    """‖v − a x − b y‖² for all pairs x, y at the best a and b; infinite where they are parallel.

    Args:
        gram: the inner products of the candidates.
        along: their inner products with v.
        square: ‖v‖².
    """
    own = np.diag(gram)
    sizes = own[:, None] * own[None]
    area = sizes - gram**2
    with np.errstate(all="ignore"):
        taken = along[:, None] ** 2 * own[None] + along[None] ** 2 * own[:, None]
        taken = (taken - 2 * along[:, None] * along[None] * gram) / area
    return np.where(area > DEPENDENT * sizes, square - taken, np.inf)


def nearest(rest: np.ndarray, square: float) -> list[tuple[int, int]]:
    """The places of a matrix of squared remainders that are nought beside ‖v‖², least first."""
    places = np.argwhere(rest <= NEAR * square)
    order = np.argsort(rest[tuple(places.T)], kind="stable")[:NEAREST]
    return [(int(i), int(j)) for i, j in places[order]]


def sums_of_two(vector: np.ndarray, plain: np.ndarray, free: np.ndarray) -> Iterator[Sum]:
    """Two candidates add up to the vector; the free ones, which are counted after the plain ones,
    each times a constant.
    """
    square, count = float(vector @ vector), len(plain)
    rest = plain_pairs(vector, plain, plain)
    rest[np.tril_indices(count)] = np.inf
    yield from ((i, j, 1.0, 1.0) for i, j in nearest(rest, square))
    left, own = vector - plain, np.maximum((free**2).sum(1), 1e-300)
    inner = left @ free.T
    rest = (left**2).sum(1)[:, None] - inner**2 / own[None]
    for i, j in nearest(rest, square):
        yield i, count + j, 1.0, float(inner[i, j] / own[j])
    rest = free_pairs(free @ free.T, free @ vector, square)
    rest[np.tril_indices(len(free))] = np.inf
    for i, j in nearest(rest, square):
        (a, b), *_ = np.linalg.lstsq(free[[i, j]].T, vector, rcond=None)
        yield count + i, count + j, float(a), float(b)


@dataclass(frozen=True)
class Fit:
    """A vector is a sum of these terms, with these weights, at this cost."""

    terms: tuple[Any, ...]
    weights: tuple[float, ...]
    cost: float


@dataclass(frozen=True)
class Dictionary:
    """Terms, each of a ``cost``, come with their values.

    Attributes:
        terms: the terms, cheapest first.
        columns: one row per term: its values, scaled to norm 1.
        norms: what they were divided by.
    """

    terms: Sequence[Any]
    columns: np.ndarray
    norms: np.ndarray

    @classmethod
    def of(cls, terms: Sequence[Any], values: np.ndarray) -> Dictionary:
        """The dictionary of these terms, with a row of values for each."""
        norms = np.linalg.norm(values, axis=1)
        norms = np.where(norms > 0, norms, 1.0)
        return cls(terms, values / norms[:, None], norms)

    @cached_property
    def costs(self) -> np.ndarray:
        """What each term costs; ties between fits go to the cheaper."""
        return np.array([term.cost for term in self.terms])

    @cached_property
    def gram(self) -> np.ndarray:
        """The inner products of the columns that are tried in pairs."""
        some = self.columns[:PAIRS]
        return some @ some.T

    def with_further(self, other: Dictionary) -> Dictionary:
        """The terms of both."""
        pairs = ((self.columns, other.columns), (self.norms, other.norms))
        return Dictionary([*self.terms, *other.terms], *map(np.concatenate, pairs))

    def without_multiples(self) -> Dictionary:
        """The terms that are no multiples of earlier ones, as three random projections tell."""
        directions = np.random.default_rng(0).standard_normal((self.columns.shape[1], 3))
        shadows = self.columns @ directions
        shadows *= np.where(shadows[:, :1] < 0, -1, 1)
        _, first = np.unique(np.round(shadows, 7), axis=0, return_index=True)
        kept = np.sort(first)
        return Dictionary([self.terms[i] for i in kept], self.columns[kept], self.norms[kept])

    def fits(self, vector: np.ndarray, forced: Sequence[Any] = (), most: int = 2) -> list[Fit]:
        """The ``forced`` terms and up to ``most`` others add up to the vector."""
        norm = float(np.linalg.norm(vector))
        if not norm:
            return []
        given = [next(i for i, term in enumerate(self.terms) if term is one) for one in forced]
        # What the forced columns span is taken out of the vector and of all other columns.
        span, _ = np.linalg.qr(self.columns[given].T)
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
            gram = self.gram - some @ some.T if given else self.gram
            rest = free_pairs(gram, along[:PAIRS], left)
            rows, columns = np.nonzero(np.triu((rest <= NEAR) & (rest >= -100 * NEAR), 1))
            order = np.argsort(self.costs[rows] + self.costs[columns], kind="stable")[:MOST]
            found += [(int(rows[i]), int(columns[i])) for i in order]
        results = [self._solved(vector, (*given, *some), bool(given)) for some in found]
        return sorted((fit for fit in results if fit), key=lambda fit: fit.cost)

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
        terms = tuple(self.terms[i] for i in some)
        return Fit(terms, tuple(map(float, weights / self.norms[list(some)])), cost_of(terms))


def cost_of(terms: Sequence[Any]) -> float:
    """What a sum of terms costs."""
    return sum(term.cost for term in terms) + costs.FURTHER_TERM * (len(terms) - 1)
