"""The person's backward pass is edited until it is right: the edit names the fault and its line.

Single edits of the backward pass are tried, the likeliest first; then those of what the forward
pass keeps. Two edits at once are looked for last: those whose changes add up to what is missing,
then one on top of another.
"""

from __future__ import annotations

import ast
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
    Edit,
    Site,
    all_keys,
    backward_keys,
    coarsest,
    sites,
    sizes_of,
    thresholds_of,
)
from functional_bp.gradcheck.diagnosis.repair.mutations import arrangement, entrywise
from functional_bp.gradcheck.diagnosis.repair.mutations.insertions import borrowed, composed
from functional_bp.gradcheck.diagnosis.repair.program import Changes, Program, in_scope, trace
from functional_bp.gradcheck.diagnosis.repair.rewrites import (
    is_alias,
    marked,
    twins,
    use_of,
    with_aliases,
    with_kept_lines,
)
from functional_bp.gradcheck.diagnosis.repair.source import (
    Fragment,
    Names,
    expression,
    own_span,
    read,
)
from functional_bp.gradcheck.diagnosis.repair.validate import Tried, Validator, unsettled
from functional_bp.gradcheck.diagnosis.sums import sums_of_two
from functional_bp.gradcheck.findings import Finding, Kind, Repair
from functional_bp.gradcheck.guard import Guard
from functional_bp.gradcheck.subject import Disagreement, Sample

# The edits of an equation, by its primitive.

Entry = Callable[[Site], Iterator[Edit]]

# fmt: off
CATALOGUE: dict[str, tuple[Entry, ...]] = {
    **{name: (entrywise.arithmetic,) for name in entrywise.ARITHMETIC},
    **{name: (entrywise.arithmetic, arrangement.transposed_operand) for name in (
        "add", "add_any", "sub", "mul", "div",
    )},
    "max": (entrywise.extreme,), "min": (entrywise.extreme,),
    "integer_pow": (entrywise.exponent,), "square": (entrywise.exponent,),
    "select_n": (entrywise.select,),
    **{name: (entrywise.compare,) for name in entrywise.COMPARISONS},
    **{name: (entrywise.unary,) for name in entrywise.UNARY if name not in ("square", "neg")},
    **{name: (entrywise.unary,) for name in entrywise.SPECIAL},
    "convert_element_type": (entrywise.cast,),
    **{name: (arrangement.cumulative,) for name in (
        "cumsum", "cumprod", "cumlogsumexp", "cummax", "cummin",
    )},
    "scan": (arrangement.scan,),
    **{name: (arrangement.elsewhere,) for name in arrangement.INDEXED},
    "scatter": (arrangement.scatter, arrangement.elsewhere), "slice": (arrangement.gathered,),
    "pad": (arrangement.pad,), "stack": (arrangement.concatenate,),
    "concatenate": (arrangement.concatenate, arrangement.rolled, arrangement.ends),
    "conv_general_dilated": (arrangement.convolution,),
    "triangular_solve": (arrangement.triangular,),
    "transpose": (arrangement.transpose,),
    "broadcast_in_dim": (arrangement.spread,), "dot_general": (arrangement.dot,),
}
# fmt: on
EVERYWHERE: tuple[Entry, ...] = (
    entrywise.literals,
    entrywise.scaled,
    entrywise.weighted,
    entrywise.shifted,
    entrywise.conjugated,
    arrangement.moved,
    entrywise.wrapped,
    arrangement.parts,
    arrangement.reordered,
    arrangement.borders,
)


def catalogue(site: Site) -> Iterator[Edit]:
    """These edits of the equation by itself read no further values."""
    if not in_scope(site.result) and site.equation.name not in (*entrywise.COMPARISONS, "scan"):
        yield from (edit for entry in CATALOGUE.get(site.equation.name, ()) for edit in entry(site))
        yield from arrangement.triangles(site)
        return
    yield from arrangement.calls(site)
    yield from entrywise.functions(site)
    yield from arrangement.paddings(site)
    yield from arrangement.triangles(site)
    for entry in CATALOGUE.get(site.equation.name, ()):
        yield from entry(site)
    if in_scope(site.result) and len(site.equation.results) == 1:
        for entry in EVERYWHERE:
            yield from entry(site)


# Two edits at once.

WIDE = 512  # entries of the output that are looked at
MOST_OF_PAIRS = 60_000  # attempts at two edits at once
PROMISING = 24  # first edits on top of which a second is looked for


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
    plain = [t for t in validation.tried if t.edit.settle is None][:4000]
    free = [t for t in validation.tried if t.edit.settle is not None][:1500]
    tables = (
        np.array([t.change[chosen] for t in some]).reshape(len(some), len(chosen))
        for some in (plain, free)
    )
    found: list[tuple[Edit, Edit]] = []
    for i, j, *coefficients in sums_of_two(validation.missing[seen][chosen], *tables):
        if validation.late or len(found) >= 3:
            break
        one, two = (
            t.edit if t.edit.settle is None else unsettled(t.edit, coefficient)
            for t, coefficient in zip(((*plain, *free)[k] for k in (i, j)), coefficients)
        )
        if one is None or two is None or one.site == two.site:
            continue
        if validation.holds(validation.changes(one, two)):
            found.append((one, two))
    return found


# The search.

SHOWN = 3
LAYING_OUT = ("broadcast_in_dim", "reshape", "convert_element_type")


@dataclass(frozen=True)
class Candidate:
    """An edit passed at its site; less ``rank`` is likelier."""

    edit: Edit
    site: Site
    rank: float


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
        for sources in (
            (catalogue, borrowed, arrangement.borrowed_borders, arrangement.indexed),
            (composed,),
        ):
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
        edit, site = candidate.edit, candidate.site
        repair = described(edit, site, self.names).repair
        if repair is not None and repair.before and repair.before == repair.after:
            return True
        if edit.change is None or edit.change[1] != "_v":
            return False
        position, at, use = edit.change[0], site.expression, use_of(site.equation)
        span = None if at is None else at.span
        node = None
        if at is not None and site.own and use != -1:
            node = at.operand(position if use is None else use)
        held = self.names.identity(site.equation.operands[position], span)
        held = held if node is None else ast.unparse(node)
        return held == self.names.identity(edit.reads[0], span)

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


# A patch in words.


def described(edit: Edit, site: Site, names: Names) -> Finding:
    """An edit is told in words, with its line and what to write instead."""
    at, whole = site.expression, site.own or site.last
    if edit.at is not None:
        made = expression(edit.at.spans, names.home)
        if made is not None and isinstance(edit.write, Callable) and edit.write(made) is not None:
            at, whole = made, True
    span = None if at is None else at.span
    values = {f"_{'vw'[i]}": names.at(slot, span) for i, slot in enumerate(edit.reads[:2])}
    words = {"vw"[i]: names.described(slot, span) for i, slot in enumerate(edit.reads[:2])}
    slots = site.equation.operands
    for position, name in enumerate(("_a", "_b", "_c")[: len(slots)]):
        node = None if at is None or not site.own else at.operand(position)
        slot = slots[position]
        words[name] = ast.unparse(node) if node is not None else names.described(slot, span)
    before = at.text if at is not None and whole else ""
    words["_e"] = before or "the result"
    use = use_of(site.equation)
    if use is not None:
        operand = None if at is None or use < 0 else at.operand(use)
        named = names.described(slots[0], span) if operand is None else ast.unparse(operand)
        words.update(_e=named, _a=named)
    several = is_alias(site.equation) and (use == -1 or at is not None and is_unpacked(at))
    if several and (held := _holding_all(site, names.home)) is not None:
        words.setdefault("_a", words["_e"])
        at, before = held, held.text
    message = re.sub(r"\{(\w+)\}", lambda m: words.get(m[1], "an operand"), edit.message)
    after = None
    if at is not None and at.node is not None and not is_unpacked(at):
        if several:
            after = _everywhere(edit, at, site, words["_e"])
        else:
            after = _after(edit, at, site, names, values)
    if after is not None and not before and at is not None:
        before = at.text
        words["_e"] = words["_e"] if use is not None else before
    place = None if at is None else at.place
    of = f"`{words['_e']}`" + (f" in `{before}`" if use is not None and before else "")
    is_told = "{_e}" in edit.message or not before or message.startswith(f"{before} ")
    said = message if is_told else f"{of}: {message}"
    repair = Repair(message, place, before if after else "", after or "")
    also = (edit.also,) if edit.also else ()
    return Finding(edit.kind, said, where=place, repair=repair, also=also)


def _everywhere(edit: Edit, at: Fragment, site: Site, name: str) -> str | None:
    """The expression with every use of a value in it written otherwise."""
    template = edit.change[1] if edit.change else edit.write
    if not isinstance(template, str) or not template or edit.reads:
        return None
    template = re.sub(r"\b_[ea]\b", "_x", template)
    return at.everywhere(name, template, len(site.equation.params["uses"]))


def _holding_all(site: Site, home: str | None) -> Fragment | None:
    """The expression that holds every use of a value that has no line of its own."""
    spans = [own_span(each, home) for each in site.equation.params.get("uses", ())]
    known = [span for span in spans if span is not None]
    functions = {(span.file, span.function) for span in known}
    if len(known) < len(spans) or len(functions) != 1:
        return None
    node = read(known[0].file).holding(known)
    return None if node is None else Fragment(known[0], node)


def is_unpacked(at: Fragment) -> bool:
    """Whether an expression is a name that something is assigned to."""
    return isinstance(at.node, ast.Name) and isinstance(at.node.ctx, ast.Store)


def _after(
    edit: Edit,
    at: Fragment,
    site: Site,
    names: Names,
    values: Mapping[str, ast.expr | None],
) -> str | None:
    use = use_of(site.equation)
    if use is not None:
        template = edit.change[1] if edit.change else edit.write
        node = at.operand(use) if use >= 0 else None
        if node is None or not isinstance(template, str) or not template:
            return None
        return at.changed(node, re.sub(r"\b_[ea]\b", "_x", template), values)
    if edit.change is not None:
        position, template = edit.change
        node = at.operand(position) if site.own else None
        if node is None:
            slot = site.equation.operands[position]
            node = at.part(names.described(slot, at.span))
        return None if node is None else at.changed(node, template, values)
    if isinstance(edit.write, Callable):
        return edit.write(at)
    if not edit.write or not (site.own or site.last):
        return None
    if re.search(r"\b_[abc]\b", edit.write) and not site.own:
        return None
    return at.written(edit.write, values)


def joined(said: Sequence[Finding]) -> Finding:
    """Two edits that are needed at once are told as one."""
    first = said[0]
    parts = [f"{one.message}" + (f" (line {one.where.line})" if one.where else "") for one in said]
    message = "two things at once: " + "; and ".join(parts)
    repairs = [one.repair for one in said if one.repair is not None and one.repair.after]
    if len(repairs) < len(said):  # half of a repair is none
        return Finding(first.kind, message, where=first.where, repair=Repair(message, first.where))
    before, after = ("; ".join(each) for each in zip(*((r.before, r.after) for r in repairs)))
    repair = Repair(message, first.where, before, after)
    return Finding(first.kind, message, where=first.where, repair=repair)
