"""Edits that bring in another value in scope: as an operand, a factor or a term."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from functional_bp.check.diagnosis.constants import named
from functional_bp.check.diagnosis.edits import Edit, Site
from functional_bp.check.diagnosis.in_numpy import in_scope

SYMBOLS = {"add": "+", "sub": "-", "mul": "*", "div": "/", "dot_general": "@"}
FUNCTIONS: tuple[tuple[str, Callable[[Any], Any]], ...] = (
    ("(1 - {0})", lambda w: 1 - w),
    ("{0} ** 2", np.square),
    ("(1 - {0} ** 2)", lambda w: 1 - w * w),
    ("{0} * (1 - {0})", lambda w: w * (1 - w)),
    ("jnp.exp({0})", np.exp),
    ("jnp.sign({0})", np.sign),
    ("jnp.cos({0})", np.cos),
    ("({0} > 0)", lambda w: (w > 0).astype(w.dtype)),
)


def borrowed(site: Site) -> Iterator[Edit]:
    """Every edit that reads a further value."""
    if not in_scope(site.result):
        yield from _conditions(site)
        return
    for slot in site.scope:
        w = site.values[slot]
        if slot == site.equation.key or not in_scope(w):
            continue
        weight = 0.0 if site.names.get(slot) else 1.0
        yield from _operand(site, slot, w, weight)
        if len(site.equation.results) > 1:
            continue
        yield from _factor(site, slot, w, weight)
        yield from _inner_factor(site, slot, w, weight)
        yield from _term(site, slot, w, weight)
        yield from _sum(site, slot, w, weight)


def _conditions(site: Site) -> Iterator[Edit]:
    for slot in site.scope:
        for position, x in enumerate(site.operands):
            w = site.values[slot]
            same = np.shape(w) == np.shape(x) and getattr(w, "dtype", None) == x.dtype
            if same and slot != site.equation.operands[position]:
                yield _replaced(site, slot, position, 1.0 + (not site.names.get(slot)))


def _replaced(site: Site, slot: int, position: int, rank: float) -> Edit:
    parts = ["_a", "_b"]
    symbol = SYMBOLS.get(site.equation.name)
    if position < 2:
        parts[position] = "_v"
    return Edit(
        site.equation.key,
        "wrong operand",
        f"{{_{'abc'[min(position, 2)]}}} should be {{v}}",
        lambda a, v, _: site.again([v[slot] if i == position else x for i, x in enumerate(a)]),
        rank,
        reads=(slot,),
        write=f"{parts[0]} {symbol} {parts[1]}" if symbol else "",
    )


def _operand(site: Site, slot: int, w: Any, weight: float) -> Iterator[Edit]:
    for position, x in enumerate(site.operands):
        same = np.shape(x) == np.shape(w) and in_scope(x) and x.dtype == w.dtype
        if same and site.equation.operands[position] != slot:
            literal = site.equation.operands[position] in site.literals
            yield _replaced(site, slot, position, 1.4 + weight + 0.8 * literal)


def _fitted(w: Any, shape: tuple[int, ...]) -> tuple[Callable[[Any], Any], str] | None:
    """How a value is broadcast to a shape, and how that is written."""
    if np.shape(w) == shape:
        return (lambda w: w), "{0}"
    if np.ndim(w) == 0:
        return (lambda w: w), "{0}"
    rank = len(shape)
    for axes in itertools.combinations(range(rank), np.ndim(w)):
        if all(n in (1, shape[i]) for i, n in zip(axes, np.shape(w))):
            if max(axes) == rank - 1 and axes == tuple(range(rank - np.ndim(w), rank)):
                return (lambda w: w), "{0}"
            index = tuple(slice(None) if i in axes else None for i in range(rank))
            shown = ", ".join(":" if i in axes else "None" for i in range(rank))
            return (lambda w: w[index]), f"{{0}}[{shown}]"
    return None


def _factor(site: Site, slot: int, w: Any, weight: float) -> Iterator[Edit]:
    fit = _fitted(w, np.shape(site.result))
    if fit is None or np.ndim(site.result) == 0 and not site.last:
        return
    spread, text = fit
    key, shown = site.equation.key, text.format("_v")
    inside = slot in site.equation.operands
    yield Edit(
        key, "missing factor", f"the factor {text.format('{v}')} is missing",
        lambda a, v, _: site.again(a) * spread(v[slot]), 1.3 + weight,
        reads=(slot,), write=f"_e * {shown}",
    )  # fmt: skip
    yield Edit(
        key, "missing factor", f"the division by {text.format('{v}')} is missing",
        lambda a, v, _: site.again(a) / spread(v[slot]), 1.5 + weight + inside,
        reads=(slot,), write=f"_e / {shown}",
    )  # fmt: skip
    if not weight:
        for template, function in FUNCTIONS:
            yield Edit(
                key, "missing factor", f"the factor {template.format('{v}')} is missing",
                lambda a, v, _, f=function: site.again(a) * spread(f(v[slot])), 2.5,
                reads=(slot,), write=f"_e * {template.format(shown)}",
            )  # fmt: skip


def _inner_factor(site: Site, slot: int, w: Any, weight: float) -> Iterator[Edit]:
    names = ("dot_general", "reduce_sum", "concatenate", "scatter-add", "cumsum", "gather", "scan")
    if site.equation.name not in names:
        return
    for position, x in enumerate(site.operands):
        fit = _fitted(w, np.shape(x)) if in_scope(x) else None
        if fit is None or np.ndim(x) == 0:
            continue
        spread, text = fit
        name = f"{{_{'abc'[min(position, 2)]}}}"
        parts = ["_a", "_b"]
        if position < 2:
            parts[position] = f"({parts[position]} * {text.format('_v')})"
        matmul = site.equation.name == "dot_general"
        for divide in (False, True):
            yield Edit(
                site.equation.key, "missing factor",
                f"{name} lacks a " + ("division by " if divide else "factor ") + text.format("{v}"),
                lambda a, v, _, p=position, spread=spread, divide=divide: site.again(
                    [(x / spread(v[slot]) if divide else x * spread(v[slot])) if i == p else x
                     for i, x in enumerate(a)]
                ), 1.8 + weight + divide,
                reads=(slot,),
                write=f"{parts[0]} @ {parts[1]}" if matmul and not divide else "",
            )  # fmt: skip


def _term(site: Site, slot: int, w: Any, weight: float) -> Iterator[Edit]:
    shape = np.shape(site.result)
    fit = _fitted(w, shape)
    forms: list[tuple[Callable[[Any], Any], str, float]] = []
    if fit is not None and (np.ndim(w) or np.ndim(site.result) == 0):
        forms.append((*fit, 1.6))
    if np.shape(w) == shape and not weight:
        for axis in range(len(shape)):
            if shape[axis] > 1:
                for name, function in (("mean", np.mean), ("sum", np.sum)):
                    text = f"{{0}}.{name}({axis}, keepdims=True)"
                    forms.append(
                        (lambda w, f=function, i=axis: f(w, axis=i, keepdims=True), text, 2.4)
                    )
    for spread, text, rank in forms:
        yield _added(site, slot, spread, text, rank + weight)


def _added(site: Site, slot: int, spread: Callable[[Any], Any], text: str, rank: float) -> Edit:
    shown = text.format("_v")

    def settle(c: float) -> Edit | None:
        constant = named(c, site.sizes)
        if constant is None or constant.value == 0:
            return None
        size = abs(constant.value)
        sign = "-" if constant.value < 0 else "+"
        times = "" if size == 1 else f"({constant.text.lstrip('-')}) * "
        said = "" if size == 1 else f"{constant.name.lstrip('−')} · "
        inside = slot in site.equation.operands
        return replace(
            edit,
            message=f"the term {sign} {said}{text.format('{v}')} is missing",
            compute=lambda a, v, _: site.again(a) + constant.value * spread(v[slot]),
            write=f"_e {sign} {times}{shown}",
            rank=rank + constant.simple + 0.5 * inside,
            start=None, settle=None,
        )  # fmt: skip

    edit = Edit(
        site.equation.key, "missing term", "",
        lambda a, v, c: site.again(a) + c * spread(v[slot]), rank,
        reads=(slot,), start=0.0, settle=settle,
    )  # fmt: skip
    return edit


def _sum(site: Site, slot: int, w: Any, weight: float) -> Iterator[Edit]:
    shape = np.shape(site.result)
    lost = np.ndim(w) - len(shape)
    if not site.last or lost < 1 or site.equation.name == "reduce_sum" or np.ndim(w) > 4:
        return
    for axes in itertools.combinations(range(np.ndim(w)), lost):
        if tuple(n for i, n in enumerate(np.shape(w)) if i not in axes) == shape:
            axis: object = axes[0] if lost == 1 else axes
            yield Edit(
                site.equation.key, "missing sum", f"should be the sum of {{v}} along axis {axis}",
                lambda a, v, _, axes=axes: np.sum(v[slot], axis=axes), 1.2 + weight,
                reads=(slot,), write=f"_v.sum({axis})",
            )  # fmt: skip
