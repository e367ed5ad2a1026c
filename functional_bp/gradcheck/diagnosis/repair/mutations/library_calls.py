"""Calls of a library may have to run along another axis, be a mean for a sum, or pad otherwise."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from functional_bp.gradcheck.diagnosis import costs
from functional_bp.gradcheck.diagnosis.repair.mutations.entrywise import SPECIAL, UNARY
from functional_bp.gradcheck.diagnosis.repair.mutations.mutation import Edit, Site
from functional_bp.gradcheck.diagnosis.repair.program import in_scope
from functional_bp.gradcheck.diagnosis.repair.source import Fragment
from functional_bp.gradcheck.findings import Kind

Axes = tuple[int, ...]


def _softmax(x: Any, axis: Axes, keepdims: bool = False) -> Any:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def _logsumexp(x: Any, axis: Axes, keepdims: bool = False) -> Any:
    top = x.max(axis, keepdims=True)
    out = top + np.log(np.exp(x - top).sum(axis, keepdims=True))
    return out if keepdims else np.squeeze(out, axis)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sum": np.sum,
    "mean": np.mean,
    "max": np.max,
    "min": np.min,
    "prod": np.prod,
    "var": np.var,
    "std": np.std,
    "logsumexp": _logsumexp,
    "softmax": _softmax,
    "log_softmax": lambda x, axis, keepdims=False: x - _logsumexp(x, axis, True),
}
OTHERS = {"sum": ("mean", "max"), "mean": ("sum", "max"), "max": ("sum", "min"), "min": ("max",)}


def calls(site: Site) -> Iterator[Edit]:
    """A reduction may have to run along other axes, or be of a sibling function."""
    group = _group(site)
    if group is None:
        return
    name, slot = group
    x = site.values[slot]
    if not in_scope(x) or not 1 <= np.ndim(x) <= 6 or np.size(x) > 1_000_000:
        return
    present = _present(name, x, site.result)
    if present is None:
        return
    axes, keepdims = present
    for other in OTHERS.get(name, ()):
        averages = {name, other} == {"sum", "mean"}
        count = int(np.prod([x.shape[i] for i in axes], dtype=int))
        if averages and count == 1:
            continue
        yield _edit(
            site, slot, other, axes, keepdims,
            Kind.MEAN_OR_SUM if averages else Kind.WRONG_FUNCTION,
            f"should be the {other}" + (f" of {count} entries" if averages else ""),
            costs.LIKELIEST if averages else costs.OTHER_REDUCTION,
            lambda e, other=other: e.called(other) if e.spelling == name else None)
    total = not keepdims and len(axes) == np.ndim(x)  # a scalar goes with any shape
    for size in range(1, np.ndim(x) + 1):
        if size != len(axes) and (np.ndim(x) > 4 or not (keepdims or total)):
            continue
        for others in itertools.combinations(range(np.ndim(x)), size):
            if others == axes:
                continue
            more = ", and keepdims=True" if total else ""
            yield _edit(
                site, slot, name, others, keepdims or total, Kind.AXIS,
                f"the {name} should run along axis {_listed(others)}, not {_listed(axes)}{more}",
                costs.REDUCED_AXIS if size == len(axes) else costs.REDUCED_AXES,
                lambda e, others=others: (
                    e.called(axis=others[0] if len(others) == 1 else others, keepdims=total)
                    if e.spelling == name else None))


def functions(site: Site) -> Iterator[Edit]:
    """A call of a library may have to be of another function of the same array."""
    expression = site.expression
    if expression is None or not site.last or not isinstance(expression.node, ast.Call):
        return
    if site.equation.name in UNARY or not in_scope(site.result):
        return  # the equation by itself is the call
    outside = outside_of(site)
    if len(outside) != 1 or np.shape(site.values[outside[0]]) != np.shape(site.result):
        return
    (slot,) = outside
    if len([a for a in expression.node.args if not isinstance(a, ast.Constant)]) != 1:
        return
    for name, (function, template) in {**UNARY, **SPECIAL}.items():
        said = template.format("{v}")
        yield Edit(
            site.equation.key, Kind.WRONG_FUNCTION, f"should be {said}, not {{_e}}",
            lambda a, values, _, f=function: f(values[slot]),
            costs.SPECIAL_FUNCTION if name in SPECIAL else costs.FUNCTION_OF_CALL, reads=(slot,),
            write=template.format("_v"))


MODES = ("constant", "edge", "wrap", "reflect", "symmetric")


def paddings(site: Site) -> Iterator[Edit]:
    """A call of ``jnp.pad`` may need another mode."""
    expression = site.expression
    if expression is None or expression.spelling != "pad" or not site.last:
        return
    outside = outside_of(site)
    if len(outside) != 1:
        return
    x, result = site.values[outside[0]], site.result
    if x.ndim != result.ndim or site.equation.name == "pad":
        return
    grown = [i for i in range(x.ndim) if x.shape[i] != result.shape[i]]
    if len(grown) != 1:
        return
    axis, more = grown[0], result.shape[grown[0]] - x.shape[grown[0]]

    def padded(x: Any, low: int, mode: Any) -> Any:
        width = [(0, 0)] * x.ndim
        width[axis] = (low, more - low)
        return np.pad(x, width, mode=mode)

    present = None
    for low in range(more + 1):
        for mode in MODES:
            if more - low < x.shape[axis] and low < x.shape[axis]:
                if np.array_equal(padded(x, low, mode), result):
                    present = present or (low, mode)
    if present is None:
        return
    for mode in MODES:
        if mode != present[1]:
            yield Edit(
                site.equation.key, Kind.BORDER,
                f"should be padded with {'zeros' if mode == 'constant' else repr(mode)}, "
                f"not mode={present[1]!r}",
                lambda a, values, _, mode=mode: padded(values[outside[0]], present[0], mode),
                costs.PADDING_MODE + (mode != "constant"), reads=(outside[0],),
                write=lambda e, mode=mode: e.with_keyword("mode", mode))


def _edit(
    site: Site,
    slot: int,
    name: str,
    axes: Axes,
    keepdims: bool,
    kind: Kind,
    message: str,
    rank: float,
    write: Callable[[Fragment], str | None],
) -> Edit:
    function = FUNCTIONS[name]
    return Edit(
        site.equation.key, kind, message,
        lambda a, values, _: function(values[slot], axis=axes, keepdims=keepdims), rank,
        reads=(slot,), write=write)


def _listed(axes: Axes) -> str:
    return " and ".join(map(str, axes))


def _group(site: Site) -> tuple[str, int] | None:
    """The function that the site's expression calls, and the slot of what it is called on."""
    expression = site.expression
    name = "" if expression is None else expression.spelling
    if name not in FUNCTIONS:
        return ("sum", site.equation.operands[0]) if site.equation.name == "reduce_sum" else None
    if not site.last or expression is None:
        return None
    outside = outside_of(site)
    return (name, outside[0]) if len(outside) == 1 else None


def outside_of(site: Site, real: bool = True) -> list[int]:
    """The person's expression, inside which the site stands, is computed from these arrays."""
    expression = site.expression
    outside: dict[int, None] = {}
    frontier, seen = [site.equation.key], set()
    while frontier:
        slot = frontier.pop()
        if slot in seen:
            continue
        seen.add(slot)
        maker = site.makers.get(slot)
        if maker is not None and expression is not None and expression.span in maker.spans:
            frontier.extend(maker.operands)
        elif (in_scope(site.values.get(slot)) or not real) and np.ndim(site.values[slot]) > 0:
            outside[slot] = None
    return list(outside)


def _present(name: str, x: Any, result: Any) -> tuple[Axes, bool] | None:
    """Along which axes the call runs, and whether it keeps them, from what it returned."""
    for keepdims in (False, True):
        for size in range(1, np.ndim(x) + 1):
            for axes in itertools.combinations(range(np.ndim(x)), size):
                value = FUNCTIONS[name](x, axis=axes, keepdims=keepdims)
                if np.shape(value) == np.shape(result) and np.allclose(value, result, 1e-9, 1e-12):
                    return axes, keepdims
    return None
