"""These edits bring in another value in scope: as an operand, a factor or a term.

Terms that are missing as a whole are made of two values with a name: u · v, u · Σ(u · v).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from functional_bp.gradcheck.diagnosis import costs
from functional_bp.gradcheck.diagnosis.expressions import NamedNumber
from functional_bp.gradcheck.diagnosis.repair.locations import (
    OPERAND,
    Edit,
    Site,
    solved,
    with_operand,
)
from functional_bp.gradcheck.diagnosis.repair.mutations.entrywise import UNARY
from functional_bp.gradcheck.diagnosis.repair.program import in_scope
from functional_bp.gradcheck.findings import Kind

FUNCTIONS: tuple[tuple[str, Callable[[Any], Any]], ...] = (
    ("(1 - {0})", lambda w: 1 - w),
    ("{0} ** 2", np.square),
    ("(1 - {0} ** 2)", lambda w: 1 - w * w),
    ("{0} * (1 - {0})", lambda w: w * (1 - w)),
    ("jnp.exp({0})", np.exp),
    ("jnp.sign({0})", np.sign),
    ("jnp.cos({0})", np.cos),
    ("jax.nn.sigmoid({0})", UNARY["logistic"][0]),
    ("jnp.tanh({0})", np.tanh),
    ("jnp.sqrt({0})", np.sqrt),
    ("jnp.log({0})", np.log),
    ("({0} > 0)", lambda w: (w > 0).astype(w.dtype)),
    ("({0} < 0)", lambda w: (w < 0).astype(w.dtype)),
)
VIEWS = ("slice", "transpose", "rev", "reshape", "squeeze", "pad")
MIXING = ("dot_general", "reduce_sum", "concatenate", "scatter-add", "cumsum", "gather")


def borrowed(site: Site) -> Iterator[Edit]:
    """Every one of these edits reads a further value."""
    several = len(site.equation.results) > 1
    for slot in site.scope:
        w = site.values[slot]
        if slot in site.equation.results or not isinstance(w, np.ndarray | np.generic):
            continue
        weight = site.names.get(slot, costs.UNNAMED)
        yield from _operand(site, slot, w, weight)
        if w.dtype == bool and not several and in_scope(site.result):
            yield from _masked(site, slot, w, weight)
        if several or not in_scope(w) or not in_scope(site.result):
            continue
        yield from _factor(site, slot, w, weight)
        yield from _inner(site, slot, w, weight)
        yield from _terms(site, slot, w, weight)
        yield from _sum(site, slot, w, weight)
        yield from _matrix(site, slot, w, weight)


def _operand(site: Site, slot: int, w: Any, weight: float) -> Iterator[Edit]:
    scanned = site.equation.name == "scan" and slot in site.equation.operands
    twice = costs.SCANNED_ALREADY * scanned
    for position, x in enumerate(site.operands):
        same = np.shape(x) == np.shape(w) and getattr(x, "dtype", None) == w.dtype
        if same and site.equation.operands[position] != slot:
            yield Edit(
                site.equation.key, Kind.WRONG_OPERAND,
                f"{OPERAND[min(position, 3)]} should be {{v}}",
                lambda a, v, _, p=position: site.again(with_operand(a, p, v[slot])),
                costs.OTHER_OPERAND + weight + twice
                + costs.FOR_A_NUMBER * site.is_literal(position),
                reads=(slot,), change=(position, "_v"))


Fit = tuple[Callable[[Any], Any], str]


def _fits(w: Any, shape: tuple[int, ...]) -> Iterator[Fit]:
    """The ways in which a value is broadcast to a shape, NumPy's first, and how each is written."""
    rank = len(shape)
    for axes in reversed(list(itertools.combinations(range(rank), np.ndim(w)))):
        if all(n in (1, shape[i]) for i, n in zip(axes, np.shape(w))):
            if axes == tuple(range(rank - np.ndim(w), rank)):
                yield (lambda w: w), "{0}"
                continue
            index = tuple(slice(None) if i in axes else None for i in range(rank))
            shown = ", ".join(":" if i in axes else "None" for i in range(rank))
            yield (lambda w, index=index: w[index]), f"{{0}}[{shown}]"


def _cuts(w: Any, shape: tuple[int, ...]) -> Iterator[Fit]:
    """The first and the last part of a value that is longer than a shape along one axis."""
    if np.ndim(w) != len(shape):
        return
    longer = [axis for axis, n in enumerate(shape) if np.shape(w)[axis] != n]
    if len(longer) == 1 and 0 < shape[longer[0]] < np.shape(w)[longer[0]]:
        axis, n = longer[0], shape[longer[0]]
        for bounds, text in ((slice(n), f":{n}"), (slice(-n, None), f"-{n}:")):
            index = (slice(None),) * axis + (bounds,)
            yield (lambda w, index=index: w[index]), f"{{0}}[{':, ' * axis}{text}]"


def _factor(site: Site, slot: int, w: Any, weight: float) -> Iterator[Edit]:
    for fit in _fits(w, np.shape(site.result)):
        yield from _one_factor(site, slot, weight, fit)


def _one_factor(site: Site, slot: int, weight: float, fit: Fit) -> Iterator[Edit]:
    spread, text = fit
    key, shown = site.equation.key, text.format("_v")
    inside = slot in site.equation.operands
    yield Edit(
        key, Kind.MISSING_FACTOR, f"the factor {text.format('{v}')} is missing",
        lambda a, v, _: site.again(a) * spread(v[slot]),
        costs.FACTOR + weight + costs.FACTOR_ALREADY * inside, reads=(slot,), write=f"_e * {shown}")
    yield Edit(
        key, Kind.MISSING_FACTOR, f"the division by {text.format('{v}')} is missing",
        lambda a, v, _: site.again(a) / spread(v[slot]), costs.DIVISOR + weight + inside,
        reads=(slot,), write=f"_e / {shown}")
    if not weight:
        for template, function in FUNCTIONS:
            yield Edit(
                key, Kind.MISSING_FACTOR, f"the factor {template.format('{v}')} is missing",
                lambda a, v, _, f=function: site.again(a) * spread(f(v[slot])),
                costs.FACTOR_OF_FUNCTION, reads=(slot,), write=f"_e * {template.format(shown)}")


def _masked(site: Site, slot: int, mask: Any, weight: float) -> Iterator[Edit]:
    """The result only where a condition holds, or where it does not."""
    if not np.ndim(mask) or not site.last:
        return
    for spread, text in _fits(mask, np.shape(site.result)):
        held, shown = text.format("{v}"), text.format("_v")
        for kept, said, write in (
            (True, f"should be 0 where not {held}", f"jnp.where({shown}, _e, 0)"),
            (False, f"should be 0 where {held}", f"jnp.where({shown}, 0, _e)"),
        ):
            yield Edit(
                site.equation.key, Kind.REGION, said,
                lambda a, v, _, kept=kept, f=spread: np.where(f(v[slot]) == kept, site.again(a), 0),
                costs.MASK + weight, reads=(slot,), write=write, also=Kind.MISSING_FACTOR)


def _inner(site: Site, slot: int, w: Any, weight: float) -> Iterator[Edit]:
    """A factor or a term of one operand, where that is not one of the result."""
    for position, x in enumerate(site.operands):
        if in_scope(x) and np.ndim(x):
            for fit in _fits(w, np.shape(x)):
                yield from _one_inner(site, slot, w, weight, position, fit)


def _one_inner(
    site: Site, slot: int, w: Any, weight: float, position: int, fit: Fit
) -> Iterator[Edit]:
    spread, text = fit
    operand, shown = OPERAND[min(position, 3)], text.format("_v")
    if site.equation.name in (*MIXING, *VIEWS, *UNARY, "add", "sub"):
        for divide in (False, True):
            yield Edit(
                site.equation.key, Kind.MISSING_FACTOR,
                f"{operand} lacks a {'division by' if divide else 'factor'} " + text.format("{v}"),
                lambda a, v, _, p=position, f=spread, divide=divide: site.again(
                    with_operand(a, p, a[p] / f(v[slot]) if divide else a[p] * f(v[slot]))),
                costs.FACTOR_OF_OPERAND + weight + divide, reads=(slot,),
                change=(position, f"_x {'/' if divide else '*'} {shown}"))
    if np.ndim(w) and site.equation.name in ("mul", "div", *MIXING, *VIEWS, *UNARY):
        yield _added(site, slot, spread, text, costs.TERM_OF_OPERAND + weight, position)


def _terms(site: Site, slot: int, w: Any, weight: float) -> Iterator[Edit]:
    shape = np.shape(site.result)
    if np.ndim(w) or not shape:
        for fit in _fits(w, shape):
            already = costs.TERM_ALREADY * (slot in site.equation.operands)
            yield _added(site, slot, *fit, costs.TERM + weight + already)
    for cut, text in () if weight else _cuts(w, shape):
        yield _added(site, slot, cut, text, costs.CUT_TERM)
    if np.shape(w) != shape or weight:
        return
    for axis in range(len(shape)):
        if shape[axis] > 1:
            for name, function in (("mean", np.mean), ("sum", np.sum)):
                yield _added(
                    site, slot, lambda w, f=function, i=axis: f(w, axis=i, keepdims=True),
                    f"{{0}}.{name}({axis}, keepdims=True)", costs.REDUCED_TERM,
                    simplest=2 * (name == "mean"))


def _added(
    site: Site,
    slot: int,
    spread: Callable[[Any], Any],
    text: str,
    rank: float,
    position: int | None = None,
    simplest: int = 2,
) -> Edit:
    """The result, or one operand, plus a constant times a value."""

    def compute(a: Any, v: Any, c: float) -> Any:
        term = c * spread(v[slot])
        if position is None:
            return site.again(a) + term
        return site.again(with_operand(a, position, a[position] + term))

    def told(constant: NamedNumber) -> dict[str, Any] | None:
        if constant.oddity > simplest:
            return None
        sign = "-" if constant.value < 0 else "+"
        unit = abs(constant.value) == 1
        shown = ("" if unit else f"({constant.python.lstrip('-')}) * ") + text.format("_v")
        said = ("" if unit else f"{constant.text.lstrip('−')} · ") + text.format("{v}")
        if position is None:
            how = dict(message=f"the term {sign} {said} is missing", write=f"_e {sign} {shown}")
        else:
            operand = OPERAND[min(position, 3)]
            how = dict(message=f"{operand} should be {operand} {sign} {said}",
                       change=(position, f"_x {sign} {shown}"))  # fmt: skip
        return dict(how, rank=rank + constant.oddity)

    return solved(
        site.equation.key, site.sizes, Kind.MISSING_TERM, compute, 0.0, rank, told, (slot,))


MATRICES: tuple[tuple[str, Callable[[Any, Any], Any]], ...] = (
    ("{e} @ {v}", lambda x, w: x @ w), ("{e} @ {v}.T", lambda x, w: x @ w.T),
    ("{v} @ {e}", lambda x, w: w @ x), ("{v}.T @ {e}", lambda x, w: w.T @ x),
)


def _matrix(site: Site, slot: int, w: Any, weight: float) -> Iterator[Edit]:
    """The result times a square matrix, from either side."""
    shape = np.shape(site.result)
    square = np.ndim(w) == 2 and np.shape(w)[0] == np.shape(w)[1] > 1
    if not square or not 1 <= len(shape) <= 2 or not site.last:
        return
    for template, function in MATRICES:
        left = template.startswith("{e}")
        if shape[-1 if left else 0] == np.shape(w)[0]:
            yield Edit(
                site.equation.key, Kind.MISSING_FACTOR,
                "{_e} should be " + template.replace("{e}", "{_e}"),
                lambda a, v, _, f=function: f(site.again(a), v[slot]), costs.MATRIX_FACTOR + weight,
                reads=(slot,), write=template.format(e="_e", v="_v"))


def _sum(site: Site, slot: int, w: Any, weight: float) -> Iterator[Edit]:
    """The sum of a value over its further axes, in the place of one entry of it."""
    shape = np.shape(site.result)
    lost = np.ndim(w) - len(shape)
    if not site.last or lost < 1 or site.equation.name == "reduce_sum" or np.ndim(w) > 4:
        return
    for axes in itertools.combinations(range(np.ndim(w)), lost):
        if tuple(n for i, n in enumerate(np.shape(w)) if i not in axes) == shape:
            axis: object = axes[0] if lost == 1 else axes
            yield Edit(
                site.equation.key, Kind.MISSING_SUM,
                f"should be the sum of {{v}} along axis {axis}",
                lambda a, v, _, axes=axes: np.sum(v[slot], axis=axes), costs.SUM_OF_VALUE + weight,
                reads=(slot,), write=f"_v.sum({axis})")


# Terms of two values.

MOST = 12  # values with a name that are combined


def composed(site: Site) -> Iterator[Edit]:
    """A product of two named values may be a further term, plain or summed along an axis."""
    shape = np.shape(site.result)
    if not in_scope(site.result) or not site.last or not shape or len(site.equation.results) > 1:
        return
    usable = [
        slot
        for slot in site.scope
        if site.names.get(slot, costs.UNNAMED) <= costs.NAMED_AS_PART
        and in_scope(site.values[slot])
        and slot != site.equation.key
    ]
    yield from _branches(site, usable)
    yield from _contractions(site, usable)
    for one, two in itertools.combinations_with_replacement(usable[:MOST], 2):
        a, b = site.values[one], site.values[two]
        try:
            fits = np.broadcast_shapes(a.shape, b.shape) == shape
        except ValueError:
            continue
        if not fits:
            continue
        yield _term(site, one, two, lambda a, b: a * b, "_v * _w", costs.PRODUCT_TERM)
        if a.shape != shape or b.shape != shape or one == two:
            continue
        for axis, (name, function) in itertools.product(
            range(len(shape)), (("sum", np.sum), ("mean", np.mean))
        ):
            for u, v in ((one, two), (two, one)):
                yield _term(
                    site, u, v,
                    lambda a, b, f=function, i=axis: a * f(a * b, axis=i, keepdims=True),
                    f"_v * (_v * _w).{name}({axis}, keepdims=True)", costs.PROJECTED_TERM)


def _branches(site: Site, usable: Sequence[int]) -> Iterator[Edit]:
    """A branch of a choice, as the product of two named values."""
    if site.equation.name != "select_n" or len(site.operands) != 3:
        return
    shape = np.shape(site.result)
    for one, two in itertools.combinations(usable[:MOST], 2):
        try:
            fits = np.broadcast_shapes(np.shape(site.values[one]), np.shape(site.values[two]))
        except ValueError:
            continue
        for position, branch in ((1, "_b"), (2, "_c")) if fits == shape else ():
            text = {"_b": "_c", "_c": "_b"}[branch]
            parts = ("_v * _w", text) if branch == "_c" else (text, "_v * _w")
            yield Edit(
                site.equation.key, Kind.REGION, f"{{{branch}}} should be {{v}} * {{w}}",
                lambda a, v, _, p=position, u=one, w=two: site.again(
                    with_operand(a, p, np.broadcast_to(v[u] * v[w], shape))),
                costs.PRODUCT_BRANCH, reads=(one, two),
                write=f"jnp.where(_a, {parts[0]}, {parts[1]})")


def _contractions(site: Site, usable: Sequence[int]) -> Iterator[Edit]:
    """The whole result as a matrix times a vector, in the place of something entry by entry.

    Or as the product of two values, summed over a batch of which one entry was taken.
    """
    for one, two in itertools.permutations(usable[:MOST], 2):
        a, b = site.values[one], site.values[two]
        batch = tuple(range(np.ndim(a) - 1))
        ends = (*np.shape(a)[-1:], *np.shape(b)[-1:])
        if len(batch) > 1 and np.shape(a)[:-1] == np.shape(b)[:-1] and ends == site.result.shape:
            yield Edit(
                site.equation.key, Kind.MISSING_SUM,
                "should be the product of {v} and {w}, summed over all but their last axes",
                lambda _, v, __, u=one, w=two, axes=batch: np.tensordot(v[u], v[w], (axes, axes)),
                costs.CONTRACTION, reads=(one, two),
                write=f"jnp.tensordot(_v, _w, ({batch}, {batch}))")
        if np.ndim(a) != 2 or np.ndim(b) != 1:
            continue
        for axis, text in ((0, "_v @ _w"), (1, "_v.T @ _w")):
            if a.shape[axis] == site.result.size and a.shape[1 - axis] == b.size:
                said = text.replace("_v", "{v}").replace("_w", "{w}")
                yield Edit(
                    site.equation.key, Kind.MISSING_SUM, f"should be {said}",
                    lambda _, v, __, u=one, w=two, t=axis: (v[u].T if t else v[u]) @ v[w],
                    costs.CONTRACTION, reads=(one, two), write=text)


def _term(
    site: Site, one: int, two: int, function: Callable[[Any, Any], Any], text: str, rank: float
) -> Edit:
    def told(constant: NamedNumber) -> dict[str, Any] | None:
        if constant.oddity > 0:
            return None
        sign = "-" if constant.value < 0 else "+"
        term = text if abs(constant.value) == 1 else f"{constant.python.lstrip('-')} * {text}"
        said = term.replace("_v", "{v}").replace("_w", "{w}")
        return dict(message=f"the term {sign} {said} is missing", write=f"_e {sign} {term}")

    return solved(
        site.equation.key, site.sizes, Kind.MISSING_TERM,
        lambda a, v, c: site.again(a) + c * function(v[one], v[two]), 0.0, rank, told, (one, two))
