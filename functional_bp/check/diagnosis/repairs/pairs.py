"""Two edits at once: those whose changes add up to what is missing, then one on top of another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from functional_bp.check.diagnosis.repairs.edits.edit import Edit
from functional_bp.check.diagnosis.repairs.trial import Trial, Tried, unsettled

WIDE = 512  # entries of the output that are looked at
PROMISING = 24  # first edits on top of which a second is looked for
CONVINCING = 2.0  # a pair of such a rank in sum is not looked beyond
CLOSE = 1e-6


def pairs(
    trial: Trial, sites: Mapping[int, Any], second: Callable[[Edit], list[Edit]]
) -> list[tuple[Edit, Edit]]:
    """Verified pairs of edits, likeliest first."""
    found = list(sums(trial))
    if trial.late or any(_rank(pair) <= CONVINCING for pair in found):
        return sorted(found, key=_rank)
    for first in _promising(trial):
        if trial.late:
            break
        for other in second(first):
            if trial.holds(trial.changes(first, other)):
                found.append((first, other))
        if any(_rank(pair) <= CONVINCING for pair in found):
            break
    return sorted(found, key=_rank)


def _rank(pair: tuple[Edit, Edit]) -> float:
    return pair[0].rank + pair[1].rank


def _promising(trial: Trial) -> list[Edit]:
    """First edits that take much of the error away, then likely ones."""
    plain = [t for t in trial.tried if t.edit.settle is None]
    helping = sorted((t for t in plain if t.error < 0.9), key=lambda t: t.error)
    parallel = sorted(plain, key=lambda t: -_cosine(t, trial))
    likely = sorted(plain, key=lambda t: t.edit.rank)
    scaled = [
        found
        for t in trial.tried
        if t.edit.settle is not None and t.edit.start == 1.0
        for c in (-1.0, 2.0, 0.5)
        if (found := t.edit.settle(c)) is not None
    ]
    chosen: list[Edit] = []
    for group in (
        [t.edit for t in helping[:12]],
        [t.edit for t in parallel[:8]],
        [t.edit for t in likely[:PROMISING]],
        scaled[:PROMISING],
    ):
        chosen.extend(edit for edit in group if edit not in chosen)
    return chosen


def _cosine(tried: Tried, trial: Trial) -> float:
    """How parallel the result under an edit is to the true one."""
    out = trial.present[trial.seen] + tried.change
    wanted = trial.present[trial.seen] + trial.missing[trial.seen]
    size = float(np.linalg.norm(out) * np.linalg.norm(wanted))
    return 0.0 if size == 0 or not np.isfinite(size) else abs(float(out @ wanted)) / size


def sums(trial: Trial) -> list[tuple[Edit, Edit]]:
    """Pairs whose changes add up, each possibly times a constant, to what is missing."""
    if trial.size == 0 or len(trial.tried) < 2:
        return []
    seen = trial.seen
    chosen = np.random.default_rng(0).permutation(len(seen))[:WIDE]
    missing = trial.missing[seen][chosen]
    plain = [t for t in trial.tried if t.edit.settle is None][:4000]
    free = [t for t in trial.tried if t.edit.settle is not None][:1500]
    found: list[tuple[Edit, Edit]] = []
    for first, other, coefficients in (
        *_two_plain(plain, missing, chosen),
        *_one_free(plain, free, missing, chosen),
        *_two_free(free, missing, chosen),
    ):
        if trial.late or len(found) >= 3:
            break
        if first.edit.site == other.edit.site:
            continue
        edits = [_with_constant(t.edit, c) for t, c in zip((first, other), coefficients)]
        if all(e is not None and e.settle is None for e in edits):
            one, two = (replace(e) for e in edits if e is not None)
            if trial.holds(trial.changes(one, two)):
                found.append((one, two))
    return found


Match = tuple[Tried, Tried, tuple[float, float]]


def _with_constant(edit: Edit, coefficient: float) -> Edit | None:
    if edit.settle is None or edit.start is None:
        return edit
    return unsettled(edit, edit.start + coefficient)


def _matrix(tried: Sequence[Tried], chosen: np.ndarray) -> np.ndarray:
    return np.array([t.change[chosen] for t in tried]).reshape(len(tried), len(chosen))


def _best(rest: np.ndarray, size: float) -> list[tuple[int, int]]:
    """The places of a matrix of squared remainders that are nought, least first."""
    places = np.argwhere(rest <= (CLOSE * size) ** 2 * 100)
    order = np.argsort(rest[tuple(places.T)], kind="stable")[:40]
    return [(int(i), int(j)) for i, j in places[order]]


def _two_plain(plain: Sequence[Tried], missing: np.ndarray, chosen: np.ndarray) -> list[Match]:
    if len(plain) < 2:
        return []
    changes = _matrix(plain, chosen)
    left = missing - changes
    # ‖missing − a − b‖² = ‖missing − a‖² − 2⟨missing − a, b⟩ + ‖b‖²
    rest = (left**2).sum(1)[:, None] - 2 * left @ changes.T + (changes**2).sum(1)[None]
    rest[np.tril_indices(len(plain))] = np.inf
    size = float(np.linalg.norm(missing))
    return [(plain[i], plain[j], (0.0, 0.0)) for i, j in _best(rest, size)]


def _one_free(
    plain: Sequence[Tried], free: Sequence[Tried], missing: np.ndarray, chosen: np.ndarray
) -> list[Match]:
    if not plain or not free:
        return []
    left, slopes = missing - _matrix(plain, chosen), _matrix(free, chosen)
    inner, square = left @ slopes.T, np.maximum((slopes**2).sum(1), 1e-300)
    rest = (left**2).sum(1)[:, None] - inner**2 / square[None]
    size = float(np.linalg.norm(missing))
    return [
        (plain[i], free[j], (0.0, float(inner[i, j] / square[j]))) for i, j in _best(rest, size)
    ]


def _two_free(free: Sequence[Tried], missing: np.ndarray, chosen: np.ndarray) -> list[Match]:
    if len(free) < 2:
        return []
    slopes = _matrix(free, chosen)
    gram, inner = slopes @ slopes.T, slopes @ missing
    diagonal = np.diag(gram)
    determinant = diagonal[:, None] * diagonal[None] - gram**2
    independent = determinant > 1e-9 * diagonal[:, None] * diagonal[None]
    determinant = np.where(independent, determinant, 1.0)
    # Cramer's rule for the two coefficients of each pair.
    first = (inner[:, None] * diagonal[None] - gram * inner[None]) / determinant
    second = (inner[None] * diagonal[:, None] - gram * inner[:, None]) / determinant
    rest = missing @ missing - first * inner[:, None] - second * inner[None]
    rest = np.where(independent, rest, np.inf)
    rest[np.tril_indices(len(free))] = np.inf
    size = float(np.linalg.norm(missing))
    return [
        (free[i], free[j], (float(first[i, j]), float(second[i, j]))) for i, j in _best(rest, size)
    ]
