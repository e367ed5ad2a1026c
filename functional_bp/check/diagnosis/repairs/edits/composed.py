"""Terms that are missing as a whole, made of two values with a name: u · v, u · Σ(u · v)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from functional_bp.check.diagnosis.repairs.constants import named
from functional_bp.check.diagnosis.repairs.edits.edit import Edit, Site, with_operand
from functional_bp.check.diagnosis.repairs.in_numpy import in_scope

NEAR = 0.25  # how far from a name a value may be: a part of a named one
MOST = 12  # values with a name that are combined


def composed(site: Site) -> Iterator[Edit]:
    """Each product of two named values as a further term, plain or summed along an axis."""
    shape = np.shape(site.result)
    if not in_scope(site.result) or not site.last or not shape or len(site.equation.results) > 1:
        return
    usable = [
        slot
        for slot in site.scope
        if site.names.get(slot, 1.0) <= NEAR
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
        yield _term(site, one, two, lambda a, b: a * b, "_v * _w", 2.4)
        if a.shape != shape or b.shape != shape or one == two:
            continue
        for axis, (name, function) in itertools.product(
            range(len(shape)), (("sum", np.sum), ("mean", np.mean))
        ):
            for u, v in ((one, two), (two, one)):
                yield _term(
                    site, u, v,
                    lambda a, b, f=function, i=axis: a * f(a * b, axis=i, keepdims=True),
                    f"_v * (_v * _w).{name}({axis}, keepdims=True)", 2.6,
                )  # fmt: skip


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
                site.equation.key, "region", f"{{{branch}}} should be {{v}} * {{w}}",
                lambda a, v, _, p=position, u=one, w=two: site.again(
                    with_operand(a, p, np.broadcast_to(v[u] * v[w], shape))
                ), 2.0, reads=(one, two), write=f"jnp.where(_a, {parts[0]}, {parts[1]})",
            )  # fmt: skip


def _contractions(site: Site, usable: Sequence[int]) -> Iterator[Edit]:
    """The whole result as a matrix times a vector, in the place of something entry by entry."""
    for one, two in itertools.permutations(usable[:MOST], 2):
        a, b = site.values[one], site.values[two]
        if np.ndim(a) != 2 or np.ndim(b) != 1:
            continue
        for axis, text in ((0, "_v @ _w"), (1, "_v.T @ _w")):
            if a.shape[axis] == site.result.size and a.shape[1 - axis] == b.size:
                said = text.replace("_v", "{v}").replace("_w", "{w}")
                yield Edit(
                    site.equation.key, "missing sum", f"should be {said}",
                    lambda _, v, __, u=one, w=two, t=axis: (v[u].T if t else v[u]) @ v[w], 2.2,
                    reads=(one, two), write=text,
                )  # fmt: skip


def _term(
    site: Site, one: int, two: int, function: Callable[[Any, Any], Any], text: str, rank: float
) -> Edit:
    def compute(a: Any, v: Any, c: float) -> Any:
        return site.again(a) + c * function(v[one], v[two])

    def settle(c: float) -> Edit | None:
        constant = named(c, site.sizes)
        if constant is None or constant.simple > 0 or constant.value == 0:
            return None
        sign = "-" if constant.value < 0 else "+"
        term = text if abs(constant.value) == 1 else f"{constant.text.lstrip('-')} * {text}"
        said = term.replace("_v", "{v}").replace("_w", "{w}")
        return replace(
            edit, message=f"the term {sign} {said} is missing",
            compute=lambda a, v, _: compute(a, v, constant.value),
            write=f"_e {sign} {term}", rank=rank + constant.simple, start=None, settle=None,
        )  # fmt: skip

    edit = Edit(
        site.equation.key, "missing term", "", compute, rank,
        reads=(one, two), start=0.0, settle=settle,
    )  # fmt: skip
    return edit
