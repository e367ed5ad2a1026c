"""Operations that move or sum entries may need another axis, order, direction or place."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from functional_bp._jax import scan_counts
from functional_bp.gradcheck.diagnosis import costs
from functional_bp.gradcheck.diagnosis.repair.mutations.mutation import Edit, Site, with_operand
from functional_bp.gradcheck.diagnosis.repair.program import Instruction, compute, in_scope
from functional_bp.gradcheck.findings import Kind


def cumulative(site: Site) -> Iterator[Edit]:
    """A running sum may have to start from the other end, or run along another axis."""
    present = site.equation.params
    yield site.edit(
        Kind.REVERSAL, "should accumulate from the other end",
        lambda x: site.again([x], reverse=not present["reverse"]),
        write=lambda e: e.flipped_around(present["axis"]))
    for axis in range(site.result.ndim):
        if axis != present["axis"]:
            yield site.edit(
                Kind.AXIS, f"should run along axis {axis}, not {present[Kind.AXIS]}",
                lambda x, axis=axis: site.again([x], axis=axis),
                write=lambda e, axis=axis: e.called(axis=axis))


def scan(site: Site) -> Iterator[Edit]:
    """A scan may have to run the other way, over shifted or reversed values, or from zeros."""
    params = site.equation.params
    yield site.edit(
        Kind.REVERSAL, "should run in the other direction",
        lambda *a: site.again(a, reverse=not params["reverse"]),
        write=lambda e: e.with_keyword("reverse", not params["reverse"]))
    consts, carried = scan_counts(dict(params))
    for position in range(consts + carried, len(site.operands)):
        yield site.operand_edit(
            position, Kind.REVERSAL, "{x}, which it scans over, should be reversed",
            lambda x: np.flip(x, 0), costs.SCANNED_REVERSED, "_x[::-1]")
        for shift in (1, -1):
            yield site.operand_edit(
                position, Kind.OFF_BY_ONE,
                f"{{x}}, which it scans over, should be shifted by {shift}",
                lambda x, shift=shift: shifted(x, shift, 0), costs.SCANNED_SHIFTED)
    for place in range(carried, len(site.equation.results)):
        yield site.edit(
            Kind.REVERSAL, "what it stacks should be reversed",
            lambda *a, i=place: _with_result(site.again(a), i, lambda x: np.flip(x, 0)),
            costs.STACKED_REVERSED)
        for shift in (1, -1):
            yield site.edit(
                Kind.OFF_BY_ONE, f"what it stacks should be shifted by {shift}",
                lambda *a, i=place, by=shift: _with_result(
                    site.again(a), i, lambda x: shifted(x, by, 0)),
                costs.STACKED_SHIFTED)
    for position in range(consts, consts + carried):
        yield site.operand_edit(
            position, Kind.WRONG_OPERAND, "should start from zeros, not from {x}", np.zeros_like,
            costs.FROM_ZEROS, "jnp.zeros_like(_x)")


def _with_result(made: Any, position: int, function: Callable[[Any], Any]) -> list[Any]:
    results = list(made) if isinstance(made, list) else [made]
    results[position] = function(results[position])
    return results


def scatter(site: Site) -> Iterator[Edit]:
    """A scatter that overwrites may have to add."""

    def adding(*operands: Any) -> Any:
        from jax import lax

        params = site.equation.params
        numbers, mode = params["dimension_numbers"], params["mode"]
        return lax.scatter_add(*operands, dimension_numbers=numbers, mode=mode)

    places = np.reshape(site.operands[1], (-1, np.shape(site.operands[1])[-1] or 1))
    repeat = len(np.unique(places, axis=0)) < len(places)
    yield site.edit(
        Kind.REPEATS if repeat else Kind.ENTRIES,
        "should add where an index repeats, not overwrite" if repeat
        else "should add to the entries, not overwrite them",
        adding, write=lambda e: e.called("add"))


def gathered(site: Site) -> Iterator[Edit]:
    """A slice may have to start elsewhere; in a Python loop, by as much in every turn."""
    params = site.equation.params
    lows, highs = params["start_indices"], params["limit_indices"]
    shape = np.shape(site.operands[0])
    for axis in range(len(shape)):
        ends = (-lows[axis], shape[axis] - highs[axis])
        for shift in dict.fromkeys((1, -1, 2, -2, *ends)):
            low, high = lows[axis] + shift, highs[axis] + shift
            if shift == 0 or low < 0 or high > shape[axis]:
                continue

            def moved(equation: Any, a: Any, axis: int = axis, shift: int = shift) -> Any:
                return _sliced(equation, a[0], axis, shift)

            message = f"the slice of axis {axis} should start at {low}, not {lows[axis]}"
            if highs[axis] - lows[axis] == 1 and abs(shift) == 1:
                message = f"the index should be one {'more' if shift > 0 else 'less'}"
            yield Edit(
                site.equation.key, Kind.OFF_BY_ONE, message,
                lambda a, v, c, moved=moved: moved(site.equation, a), costs.SLICE_MOVED,
                write=lambda e, axis=axis, shift=shift: e.indexed(axis, shift),
                by_turn=moved if abs(shift) <= 2 else None)


def _sliced(equation: Instruction, x: Any, axis: int, shift: int) -> Any:
    """A slice of as many entries, ``shift`` further along an axis; raises past an end."""
    params = dict(equation.params)
    for name in ("start_indices", "limit_indices"):
        params[name] = tuple(with_operand(params[name], axis, params[name][axis] + shift))
    if params["start_indices"][axis] < 0 or params["limit_indices"][axis] > x.shape[axis]:
        raise ValueError(f"axis {axis} has {x.shape[axis]} entries")
    return compute(replace(equation, params=params), [x], {})[0]


def pad(site: Site) -> Iterator[Edit]:
    """Padding may have to be more on the other side."""
    config = site.equation.params["padding_config"]
    for axis, (low, high, interior) in enumerate(config):
        for shift in dict.fromkeys((high - low, 1, -1, 2, -2)):
            if shift:
                new = (int(low + shift), int(high - shift))
                other = tuple(with_operand(config, axis, (*new, interior)))
                yield site.edit(
                    Kind.OFF_BY_ONE, f"axis {axis} should be padded by {new}, not ({low}, {high})",
                    lambda x, fill, other=other: site.again([x, fill], padding_config=other),
                    costs.PADDING_MOVED, write=lambda e, axis=axis, new=new: e.padded(axis, new))


def concatenate(site: Site) -> Iterator[Edit]:
    """Two parts may stand in the wrong order."""
    rolled = site.expression is not None and site.expression.spelling == "roll"
    if len(site.operands) == 2 and not rolled:
        yield site.edit(
            Kind.PERMUTATION, "the parts should be in the other order",
            lambda a, b: site.again([b, a]), costs.PARTS_SWAPPED)


def transpose(site: Site) -> Iterator[Edit]:
    """The axes may have to be in another order, or as they were."""
    (x,), present = site.operands, site.equation.params["permutation"]
    if x.ndim > 4:
        return
    for order in itertools.permutations(range(x.ndim)):
        if order != tuple(present) and np.transpose(x, order).shape == site.result.shape:
            none = order == tuple(range(x.ndim))
            yield site.edit(
                Kind.TRANSPOSE,
                "should not be transposed" if none else f"the axes should be in order {order}",
                lambda x, order=order: np.transpose(x, order),
                costs.LIKELIEST if none else costs.AXES_IN_ORDER, write="_a" if none else "")


def rev(site: Site) -> Iterator[Edit]:
    """A reversal may not belong."""
    yield site.edit(Kind.REVERSAL, "should not be reversed", lambda x: x, write="_a")


def spread(site: Site) -> Iterator[Edit]:
    """A broadcast may have to run along another axis, as after a sum with ``keepdims=True``."""
    x, params = site.operands[0], site.equation.params
    shape, present = params["shape"], tuple(params["broadcast_dimensions"])
    lifted = int(np.prod(shape)) == np.size(x)  # only axes of length 1 are inserted
    for axes in itertools.combinations(range(len(shape)), np.ndim(x)):
        if axes == present or not np.ndim(x):
            continue
        if not lifted and any(n not in (1, shape[i]) for i, n in zip(axes, np.shape(x))):
            continue
        new = [1] * len(shape) if lifted else list(shape)
        for axis, size in zip(axes, np.shape(x)):
            new[axis] = size if lifted else shape[axis]
        yield site.edit(
            Kind.AXIS,
            f"broadcast along axis {_others(present, shape)}, should be along "
            f"{_others(axes, shape)}: keepdims=True is missing",
            lambda x, *_, axes=axes, new=tuple(new): site.again(
                [x], broadcast_dimensions=axes, shape=new),
            costs.KEEPDIMS, write=lambda e: e.keeping_dims(),
            at=site.makers.get(site.equation.operands[0]))


def _others(axes: tuple[int, ...], shape: tuple[int, ...]) -> str:
    return " and ".join(str(i) for i in range(len(shape)) if i not in axes)


def dot(site: Site) -> Iterator[Edit]:
    """A matrix product may need a transpose, or its operands the other way round."""
    for position, x in enumerate(site.operands):
        for i, j in itertools.combinations(range(x.ndim), 2):
            if x.shape[i] == x.shape[j]:
                yield site.operand_edit(
                    position, Kind.TRANSPOSE,
                    "{x} should be transposed" + ("" if x.ndim == 2 else f" in axes {i} and {j}"),
                    lambda x, i=i, j=j: np.swapaxes(x, i, j), costs.FURTHER_OPERAND * position,
                    "_x.T" if x.ndim == 2 else f"jnp.swapaxes(_x, {i}, {j})")
    a, b = site.operands
    if a.ndim == 2 and a.shape[0] == a.shape[1] and b.ndim in (1, 2) and a.shape[0] == b.shape[0]:
        yield site.edit(
            Kind.WRONG_FUNCTION, "should be a solve with {_a}, not a product", np.linalg.solve,
            costs.SOLVE, write="jnp.linalg.solve(_a, _b)")
    if a.shape == b.shape:
        yield site.edit(
            Kind.TRANSPOSE, "the operands should be swapped", lambda a, b: site.again([b, a]),
            costs.FACTORS_SWAPPED, write="_b @ _a")
    if site.result.ndim == 2 and site.result.shape[0] == site.result.shape[1]:
        yield site.edit(
            Kind.TRANSPOSE, "the product should be transposed", lambda a, b: site.again([a, b]).T,
            costs.PRODUCT_TRANSPOSED, write="(_b.T @ _a.T)")


def transposed_operand(site: Site) -> Iterator[Edit]:
    """A square operand may have to be transposed."""
    for position, x in enumerate(site.operands):
        if in_scope(x) and np.ndim(x) >= 2 and x.shape[-1] == x.shape[-2]:
            if x.shape == np.shape(site.result):
                yield site.operand_edit(
                    position, Kind.TRANSPOSE, "{x} should be transposed",
                    lambda x: np.swapaxes(x, -1, -2),
                    costs.OPERAND_TRANSPOSED + costs.FURTHER_OPERAND * position,
                    "_x.T" if x.ndim == 2 else "_x.mT")


def moved(site: Site) -> Iterator[Edit]:
    """The result may have to be reversed, rolled or shifted by one, or transposed."""
    result = site.result
    movable = site.equation.name in ("mul", "dot_general", "add", "sub", "concatenate")
    for axis in range(np.ndim(result)):
        if result.shape[axis] < 2:
            continue
        for position, x in enumerate(site.operands):
            if movable and in_scope(x) and np.ndim(x) > axis and x.shape[axis] > 1:
                yield site.operand_edit(
                    position, Kind.REVERSAL, f"{{x}} should be reversed along axis {axis}",
                    lambda x, axis=axis: np.flip(x, axis), costs.OPERAND_REVERSED,
                    f"jnp.flip(_x, {axis})")
        yield site.edit(
            Kind.REVERSAL, f"{{_e}} should be reversed along axis {axis}",
            lambda *a, axis=axis: np.flip(site.again(a), axis), costs.REVERSED,
            write=f"jnp.flip(_e, {axis})")
        for shift in (1, -1):
            yield site.edit(
                Kind.OFF_BY_ONE, f"{{_e}} should be rolled by {shift} along axis {axis}",
                lambda *a, axis=axis, shift=shift: np.roll(site.again(a), shift, axis),
                costs.ROLLED, write=f"jnp.roll(_e, {shift}, {axis})")
            yield site.edit(
                Kind.OFF_BY_ONE,
                f"{{_e}} should be shifted by {shift} along axis {axis}, "
                "zeros coming in at the border",
                lambda *a, axis=axis, shift=shift: shifted(site.again(a), shift, axis),
                costs.SHIFTED)
    if np.ndim(result) == 2 and result.shape[0] == result.shape[1]:
        yield site.edit(
            Kind.TRANSPOSE, "{_e} should be transposed", lambda *a: site.again(a).T,
            costs.RESULT_TRANSPOSED, write="_e.T")


def shifted(x: Any, shift: int, axis: int) -> Any:
    """The array is moved along an axis, with zeros where nothing comes in."""
    moved = np.roll(x, shift, axis)
    moved[(slice(None),) * axis + (0 if shift > 0 else -1,)] = 0
    return moved
