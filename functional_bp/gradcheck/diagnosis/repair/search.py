"""The person's backward pass is edited until it is right: the edit names the fault and its line.

Single edits of the backward pass are tried, the likeliest first; then those of what the forward
pass keeps. Two edits at once are looked for last: those whose changes add up to what is missing,
then one on top of another.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functional_bp.definitions import file_of
from functional_bp.gradcheck.clock import TimeLimit
from functional_bp.gradcheck.diagnosis import costs
from functional_bp.gradcheck.diagnosis.repair.locations import (
    all_keys,
    backward_keys,
    coarsest,
    sites,
    sizes_of,
    thresholds_of,
)
from functional_bp.gradcheck.diagnosis.repair.mutations.catalogue import catalogue
from functional_bp.gradcheck.diagnosis.repair.mutations.insertions import borrowed, composed
from functional_bp.gradcheck.diagnosis.repair.mutations.mutation import Edit, Site
from functional_bp.gradcheck.diagnosis.repair.mutations.regions import borrowed_borders, indexed
from functional_bp.gradcheck.diagnosis.repair.patch import described, is_unpacked, joined
from functional_bp.gradcheck.diagnosis.repair.program import Changes, Program, trace
from functional_bp.gradcheck.diagnosis.repair.rewrites import (
    is_alias,
    marked,
    twins,
    with_aliases,
    with_kept_lines,
)
from functional_bp.gradcheck.diagnosis.repair.source import Names
from functional_bp.gradcheck.diagnosis.repair.validate import Tried, Validator, unsettled
from functional_bp.gradcheck.findings import Finding, Kind
from functional_bp.gradcheck.guard import Guard
from functional_bp.gradcheck.subject import Disagreement, Sample

# Two edits at once.

WIDE = 512  # entries of the output that are looked at
MOST_OF_PAIRS = 60_000  # attempts at two edits at once
PROMISING = 24  # first edits on top of which a second is looked for
CLOSE = 1e-6


def pairs(
    validation: Validator, sites: Mapping[int, Any], second: Callable[[Edit], list[Edit]]
) -> list[tuple[Edit, Edit]]:
    """These pairs of edits were verified, the likeliest first."""
    found = list(sums(validation))
    if validation.late or any(_rank(pair) <= costs.CONVINCING for pair in found):
        return sorted(found, key=_rank)
    for first in _promising(validation):
        if validation.late:
            break
        for other in second(first):
            if validation.holds(validation.changes(first, other)):
                found.append((first, other))
        if any(_rank(pair) <= costs.CONVINCING for pair in found):
            break
    return sorted(found, key=_rank)


def _rank(pair: tuple[Edit, Edit]) -> float:
    return pair[0].rank + pair[1].rank


def _promising(validation: Validator) -> list[Edit]:
    """First edits that take much of the error away, then likely ones."""
    plain = [t for t in validation.tried if t.edit.settle is None]
    helping = sorted((t for t in plain if t.error < 0.9), key=lambda t: t.error)
    parallel = sorted(plain, key=lambda t: -_cosine(t, validation))
    likely = sorted(plain, key=lambda t: t.edit.rank)
    scaled = [
        found
        for t in validation.tried
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


def _cosine(tried: Tried, validation: Validator) -> float:
    """How parallel the result under an edit is to the true one."""
    out = validation.present[validation.seen] + tried.change
    wanted = validation.present[validation.seen] + validation.missing[validation.seen]
    size = float(np.linalg.norm(out) * np.linalg.norm(wanted))
    return 0.0 if size == 0 or not np.isfinite(size) else abs(float(out @ wanted)) / size


def sums(validation: Validator) -> list[tuple[Edit, Edit]]:
    """The changes of two edits, each possibly times a constant, add up to what is missing."""
    if validation.size == 0 or len(validation.tried) < 2:
        return []
    seen = validation.seen
    chosen = np.random.default_rng(0).permutation(len(seen))[:WIDE]
    missing = validation.missing[seen][chosen]
    plain = [t for t in validation.tried if t.edit.settle is None][:4000]
    free = [t for t in validation.tried if t.edit.settle is not None][:1500]
    found: list[tuple[Edit, Edit]] = []
    for first, other, coefficients in (
        *_two_plain(plain, missing, chosen),
        *_one_free(plain, free, missing, chosen),
        *_two_free(free, missing, chosen),
    ):
        if validation.late or len(found) >= 3:
            break
        if first.edit.site == other.edit.site:
            continue
        edits = [_with_constant(t.edit, c) for t, c in zip((first, other), coefficients)]
        if all(e is not None and e.settle is None for e in edits):
            one, two = (replace(e) for e in edits if e is not None)
            if validation.holds(validation.changes(one, two)):
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


SHOWN = 3
LAYING_OUT = ("broadcast_in_dim", "reshape", "convert_element_type")


@dataclass(frozen=True)
class Candidate:
    """An edit passed at its site; less ``rank`` is likelier."""

    edit: Edit
    site: Site
    rank: float


def repairs(disagreement: Disagreement, limit: TimeLimit, *, several: bool = True) -> list[Finding]:
    """At most three edits of the claimed backward pass make it right, the likeliest first.

    Two edits at once are looked for if ``several``.
    """
    found, search = single_repairs(disagreement, limit)
    return search.two(limit) if not found and several and search is not None else found


def single_repairs(
    disagreement: Disagreement, limit: TimeLimit
) -> tuple[list[Finding], RepairSearch | None]:
    """Single edits make it right; the search that comes with them goes on with two at once."""
    with jax.enable_x64(True), np.errstate(all="ignore"):
        searches: list[tuple[RepairSearch, list[Candidate]]] = []
        for whole in (False, True):  # the backward pass, then what the forward pass kept for it
            search = _prepare(disagreement, limit, whole)
            if search is None:
                continue
            found = search.one()
            if whole and searches:  # a fault in the backward pass is likelier
                found = [replace(c, rank=c.rank + costs.IN_WHAT_IS_KEPT) for c in found]
            searches.append((search, found))
            if any(c.rank <= costs.PLAUSIBLE for c in searches[-1][1]):
                break
        best = min((c.rank for _, found in searches for c in found), default=np.inf)
        for search, found in searches:
            if found and found[0].rank == best:
                return search.reported([(c,) for c in found]), search
        return [], searches[0][0] if searches else None


class RepairSearch:
    """The search goes through the edits for one disagreement."""

    def __init__(
        self,
        validation: Validator,
        names: Names,
        sizes: Sequence[int],
        thresholds: Sequence[float],
        within: frozenset[int] | None,
    ) -> None:
        self.validation, self.names = validation, names
        self.sites = list(
            sites(
                validation.program, validation.point(0).values, validation.judged, names, sizes,
                thresholds, (), within,
            )
        )  # fmt: skip
        others: set[int] = set()
        for site in list(self.sites):
            if site.equation.key in others:
                self.sites.remove(site)
            else:
                others.update(twin.key for twin in validation.twins.get(site.equation.key, ()))
        self.by_key = {site.equation.key: site for site in self.sites}

    def one(self) -> list[Candidate]:
        """These single edits explain it, the likeliest first."""
        found = self.singles({})
        return [c for c in found if c.rank <= found[0].rank + costs.COMPARABLE]

    def two(self, limit: TimeLimit) -> list[Finding]:
        """What two edits at once explain."""
        self.validation.limit = limit
        self.validation.most += MOST_OF_PAIRS
        with jax.enable_x64(True), np.errstate(all="ignore"):
            groups = pairs(self.validation, self.by_key, self.second)
            return self.reported(
                [tuple(Candidate(e, self.by_key[e.site], e.rank) for e in g) for g in groups]
            )

    def second(self, first: Edit) -> list[Edit]:
        """These edits make the program right once a first one is made."""
        return [c.edit for c in self.singles(self.validation.changes(first), brief=True)]

    def singles(self, under: Changes, brief: bool = False) -> list[Candidate]:
        """Every single edit about as likely as the likeliest has been verified, that one first."""
        passed: list[Candidate] = []
        for sources in ((catalogue, borrowed, borrowed_borders, indexed), (composed,)):
            for candidate in self._likeliest_first(sources, under):
                best = min((c.rank for c in passed), default=np.inf)
                if (
                    self.validation.late
                    or candidate.rank > best + costs.COMPARABLE
                    or brief
                    and passed
                ):
                    break
                if best <= costs.LIKELY and candidate.edit.reads:
                    continue
                found = self.validation.attempt(candidate.edit, under)
                if found is not None and len(passed) < 2 * SHOWN:
                    rank = candidate.rank - candidate.edit.rank + found.rank
                    passed += self._verified(Candidate(found, candidate.site, rank), under)
            if passed:
                break
        return sorted(passed, key=lambda c: c.rank)

    def _likeliest_first(
        self, sources: Sequence[Callable[[Site], Iterator[Edit]]], under: Changes
    ) -> list[Candidate]:
        made = [
            Candidate(edit, site, edit.rank + costs.PER_STEP * distance + _strangeness(site, edit))
            for distance, site in enumerate(self.sites)
            if site.equation.key not in under
            for source in sources
            for edit in _without_failures(source(site))
        ]
        return sorted(made, key=lambda candidate: candidate.rank)

    def _verified(self, candidate: Candidate, under: Changes) -> list[Candidate]:
        """The candidate if it holds on fresh samples; less likely where more than it is wrong."""
        changes = {**under, **self.validation.changes(candidate.edit)}
        if not self.validation.holds(changes):
            return []
        whole = self.validation.holds(changes, whole=True)
        if self._says_nothing(candidate):
            return []
        return [Candidate(candidate.edit, candidate.site, candidate.rank + (not whole))]

    def _says_nothing(self, candidate: Candidate) -> bool:
        """Whether the edit reads as no change: a stale value goes by the name of the right one."""
        one = described(candidate.edit, candidate.site, self.names)
        unchanged = (
            one.repair is not None
            and 0 < len(one.repair.before)
            and (one.repair.before == one.repair.after)
        )
        return unchanged or re.search(r"(\S.*) should be \1$", one.message) is not None

    def reported(self, groups: Sequence[Sequence[Candidate]]) -> list[Finding]:
        """Verified edits are told in words; those that say the same are told once."""
        found: list[Finding] = []
        for group in groups:
            said = [described(c.edit, c.site, self.names) for c in group]
            one = said[0] if len(said) == 1 else joined(said)
            if not any((f.where, f.message) == (one.where, one.message) for f in found):
                found.append(one)
        return found[:SHOWN]


def _without_failures(edits: Iterator[Edit]) -> Iterator[Edit]:
    """The edits up to one that cannot even be made: a failing entry costs its site alone."""
    with Guard("the making of edits"):
        yield from edits


def _strangeness(site: Site, edit: Edit) -> float:
    """How odd it is to edit here: inside a library's call, or where its result is not yet out."""
    if is_alias(site.equation) and (site.expression is None or is_unpacked(site.expression)):
        return costs.AT_A_SECOND_NAME
    if site.expression is None:
        return costs.AT_NO_LINE
    if site.own and site.last:
        return costs.LIKELIEST
    if edit.kind == Kind.WRONG_OPERAND and site.equation.name in LAYING_OUT:
        return costs.LAID_OUT_BY_A_CALL
    if site.own:
        return costs.BEFORE_THE_LAST_STEP
    return costs.AT_THE_LAST_STEP if site.last else costs.INSIDE_A_CALL


def _prepare(disagreement: Disagreement, limit: TimeLimit, whole: bool) -> RepairSearch | None:
    """The search in the backward pass, or in the ``whole``; None where there is no program."""
    with Guard("a trace of the claim"):  # one that cannot be traced has no program
        return None if limit.is_reached else _attempt(disagreement, limit, whole)
    return None


def _attempt(disagreement: Disagreement, limit: TimeLimit, whole: bool) -> RepairSearch | None:
    subject = disagreement.subject
    backward, residuals = subject.backward, subject.residuals
    if not whole and (backward is None or residuals is None):
        return None

    def arguments(sample: Sample) -> tuple[Any, ...]:
        rest = (tuple(sample.fixed), tuple(sample.bars), tuple(sample.actives), tuple(sample.outs))
        given = jax.tree.map(_as_jax, (tuple(sample.actives), tuple(sample.fixed)))
        kept = () if whole or residuals is None else residuals(*given)
        return (_arrays(kept), *rest)

    def claim(kept: Any, fixed: Any, bars: Any, actives: Any, outs: Any) -> Sequence[Any]:
        if backward is None or residuals is None:
            return subject.pull(actives, fixed, bars)[1]
        return backward(marked(residuals(actives, fixed)) if whole else kept, fixed, bars)

    given = disagreement.given
    first = arguments(given)
    program = trace(claim, *first)

    def draw(number: int) -> tuple[list[Any], Sequence[np.ndarray]]:
        sample = given if number == 0 else disagreement.fresh()
        held = first if number == 0 else arguments(sample)
        return _numeric(held), [np.asarray(t) for t in sample.true]

    validation = Validator(program, draw, disagreement.argument, limit)
    outs = program.outs(validation.point(0).values)
    if not agrees(outs, given.claimed, 1e-4 + 4 * coarsest(program)):
        return None
    home = file_of(subject.source)
    right = [i for i in range(len(program.outputs)) if i not in validation.wrong]
    if whole and backward is not None:
        program = with_kept_lines(program, home)
    program = with_aliases(program, disagreement.argument, right, home)
    repeated = twins(program, home)
    validation = Validator(program, draw, disagreement.argument, limit, twins=repeated)
    outs_from = len(program.inputs) - len(_numeric(first[-1]))
    given_names = _given_names(disagreement, program, first)
    names = Names(program, home, given_names, program.inputs[outs_from:])
    within = None
    if whole:
        count = [len(_numeric(part)) for part in first]
        start = count[0] + count[1]
        within = backward_keys(program, program.inputs[start : start + count[2]], home)
        if backward is not None and residuals is not None:  # the backward pass has been searched
            within = all_keys(program) - within
    return RepairSearch(
        validation, names, sizes_of(validation.point(0).values), _thresholds(disagreement), within
    )


def _as_jax(leaf: Any) -> Any:
    """An array as a person's code expects one, with ``.at`` and the like."""
    return jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf


def _arrays(tree: Any) -> Any:
    return jax.tree_util.tree_map(
        lambda leaf: np.asarray(leaf) if isinstance(leaf, jax.Array) and _is_plain(leaf) else leaf,
        tree,
    )


def _is_plain(leaf: Any) -> bool:
    return not jnp.issubdtype(leaf.dtype, jax.dtypes.extended)


def _numeric(tree: Any) -> list[Any]:
    leaves = jax.tree_util.tree_leaves(tree)
    return [leaf for leaf in leaves if isinstance(leaf, np.ndarray | np.generic)]


def agrees(outs: Sequence[Any], claimed: Sequence[Any], tolerance: float = 1e-4) -> bool:
    """Whether the program computes what was claimed, so that its faults are the claim's."""
    return len(outs) == len(claimed) and all(
        np.shape(a) == np.shape(b)
        and np.allclose(a, b, tolerance, 1e-2 * tolerance * (1 + _largest(b)), equal_nan=True)
        for a, b in zip(outs, claimed)
    )


def _largest(x: Any) -> float:
    return float(np.nan_to_num(np.abs(x)).max(initial=0.0))


def _given_names(
    disagreement: Disagreement, program: Program, held: tuple[Any, ...]
) -> dict[int, str]:
    """The arguments' and residuals' names by slot, for values that no local variable holds."""
    kept, fixed, bars, actives, outs = (len(_numeric(part)) for part in held)
    subject = disagreement.subject
    residuals = list(disagreement.residuals)
    plain = [residuals[i] if len(residuals) == kept else f"res[{i}]" for i in range(kept)]
    names = [
        *plain,
        *(subject.fixed_names if len(subject.fixed_names) == fixed else [""] * fixed),
        *(subject.bar_names or (["y_bar"] if bars == 1 else [f"y_bar[{i}]" for i in range(bars)])),
        *(subject.names if len(subject.names) == actives else [""] * actives),
        *(["y"] if outs == 1 else [f"y[{i}]" for i in range(outs)]),
    ]
    return {slot: name for slot, name in zip(program.inputs, names) if name}


def _thresholds(disagreement: Disagreement) -> list[float]:
    """The numbers that the reference, or the forward pass, compares with."""
    subject = disagreement.subject
    forward = subject.reference or subject.value
    with Guard("a trace of the reference"):  # without one there is no graph to read them from
        given = disagreement.given
        return thresholds_of(trace(forward, tuple(given.actives), tuple(given.fixed)))
    return []
