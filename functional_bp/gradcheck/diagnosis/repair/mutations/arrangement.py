"""Operations that move or sum entries may need another axis, order, direction or place.

Matrices, windows and borders may need a triangle, a flipped kernel, other first rows; calls of a
library may have to run along another axis, be a mean for a sum, or pad otherwise.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from functional_bp._jax import scan_counts
from functional_bp.gradcheck.diagnosis import costs
from functional_bp.gradcheck.diagnosis.repair.locations import Edit, Site, outside_of, with_operand
from functional_bp.gradcheck.diagnosis.repair.program import Instruction, compute, in_scope
from functional_bp.gradcheck.diagnosis.repair.source import Fragment
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
    empty = slice(0, shift) if shift > 0 else slice(shift, None)
    moved[(slice(None),) * axis + (empty,)] = 0
    return moved


# Matrices, windows, borders.

INDEXED = {  # the positions of the operands that say where
    "scatter": (1,), "scatter-add": (1,), "scatter-mul": (1,), "gather": (1,),
    "dynamic_slice": (1, 2, 3), "dynamic_update_slice": (2, 3, 4),
}


TRIANGLES = {"tril": np.tril, "triu": np.triu}


def _transposed(x: Any) -> Any:
    return np.swapaxes(x, -1, -2)


def _with_half_diagonal(x: Any) -> Any:
    return x * (1 - 0.5 * np.eye(x.shape[-1]))


# What is made of a square matrix: kind, name, function, how it is written, how unlikely it is.
PARTS: tuple[tuple[Kind, str, Callable[[Any], Any], str, float], ...] = (
    (Kind.WRONG_FUNCTION, "its lower triangle", np.tril, "jnp.tril({0})", 1.5),
    (Kind.WRONG_FUNCTION, "its upper triangle", np.triu, "jnp.triu({0})", 1.5),
    (Kind.MISSING_TERM, "its sum with its transpose", lambda x: x + _transposed(x),
     "({0} + {0}.T)", 1.4),
    (Kind.MISSING_TERM, "its difference from its transpose", lambda x: x - _transposed(x),
     "({0} - {0}.T)", 1.8),
    (Kind.MISSING_TERM, "its symmetric part", lambda x: (x + _transposed(x)) / 2,
     "({0} + {0}.T) / 2", 1.5),
    (Kind.MISSING_TERM, "the same with half the diagonal", _with_half_diagonal,
     "{0} - 0.5 * jnp.diag(jnp.diag({0}))", 1.7),
    (Kind.ENTRIES, "the same without the diagonal", lambda x: x * (1 - np.eye(x.shape[-1])),
     "{0} - jnp.diag(jnp.diag({0}))", 1.9),
    (Kind.ENTRIES, "its diagonal", lambda x: x * np.eye(x.shape[-1]),
     "jnp.diag(jnp.diag({0}))", 2.0),
)


def parts(site: Site) -> Iterator[Edit]:
    """A square matrix may have to be a triangle of it, its symmetric part or its diagonal."""
    if site.last and _is_square(site.result):
        for kind, name, function, template, rank in PARTS:
            text = template if site.result.ndim == 2 else template.replace(".T", ".mT")
            yield site.edit(
                kind, f"{{_e}} should be {name}", lambda *a, f=function: f(site.again(a)), rank,
                write=text.format("_e"))


def _is_square(x: Any) -> bool:
    shape = np.shape(x)
    return len(shape) >= 2 and shape[-1] == shape[-2] > 1


def triangles(site: Site) -> Iterator[Edit]:
    """A call of ``jnp.tril`` or ``jnp.triu`` may need the other, or a diagonal more or less."""
    expression = site.expression
    if expression is None or expression.spelling not in ("tril", "triu") or not site.last:
        return
    outside = [slot for slot in outside_of(site, False) if slot in site.scope]
    if len(outside) != 1 or np.shape(site.values[outside[0]]) != np.shape(site.result):
        return
    (slot,) = outside
    for (name, function), k in itertools.product(TRIANGLES.items(), (0, -1, 1)):
        same = name == expression.spelling
        if np.array_equal(function(site.values[slot], k), site.result):
            continue
        yield Edit(
            site.equation.key, Kind.ENTRIES if same else Kind.WRONG_FUNCTION,
            f"should be {name} from the diagonal {k} on",
            lambda a, v, _, f=function, k=k: f(v[slot], k),
            costs.DIAGONAL if same else costs.OTHER_TRIANGLE,
            write=f"jnp.{name}(_a, {k})" if k else f"jnp.{name}(_a)",
            also=Kind.OFF_BY_ONE if same else Kind.TRANSPOSE)


def reordered(site: Site) -> Iterator[Edit]:
    """The result may need two axes of one length swapped, or be reversed along two axes."""
    shape = np.shape(site.result)
    if not 2 <= len(shape) <= 4 or not site.last:
        return
    last = (len(shape) - 2, len(shape) - 1)
    for i, j in itertools.combinations(range(len(shape)), 2):
        if shape[i] == shape[j] > 1 and len(shape) > 2:
            yield site.edit(
                Kind.TRANSPOSE, f"axes {i} and {j} of {{_e}} should be swapped",
                lambda *a, i=i, j=j: np.swapaxes(site.again(a), i, j),
                costs.USUAL_AXES_SWAPPED if (i, j) in ((0, 1), last) else costs.AXES_SWAPPED,
                write=f"jnp.swapaxes(_e, {i}, {j})")
        if shape[i] > 1 and shape[j] > 1:
            yield site.edit(
                Kind.REVERSAL, f"{{_e}} should be reversed along axes {i} and {j}",
                lambda *a, i=i, j=j: np.flip(site.again(a), (i, j)),
                costs.LAST_AXES_REVERSED if (i, j) == last else costs.AXES_REVERSED,
                write=f"jnp.flip(_e, ({i}, {j}))")


def convolution(site: Site) -> Iterator[Edit]:
    """A convolution may need its kernel flipped, its channels swapped, or other paddings and
    strides.
    """
    params = site.equation.params
    for position, spec in enumerate(params["dimension_numbers"][:2]):
        shape, spatial = np.shape(site.operands[position]), tuple(spec[2:])
        made = site.equation.operands[position] in site.makers  # likelier wrong where it is made
        later = (not position) + made
        every = [spatial, *((axis,) for axis in spatial if len(spatial) > 1)]
        for axes in every:
            shown = axes[0] if len(axes) == 1 else axes
            rank = costs.KERNEL_REVERSED + costs.ALONG_ONE_AXIS * (axes != spatial)
            yield site.operand_edit(
                position, Kind.REVERSAL, f"{{x}} should be reversed along axis {shown}",
                lambda x, axes=axes: np.flip(x, axes), rank + later, f"jnp.flip(_x, {shown})")
        pairs = [tuple(spec[:2]), *itertools.combinations(spatial, 2)]
        for i, j in pairs:
            if shape[i] == shape[j]:
                yield site.operand_edit(
                    position, Kind.TRANSPOSE, f"axes {i} and {j} of {{x}} should be swapped",
                    lambda x, i=i, j=j: np.swapaxes(x, i, j), costs.CHANNELS_SWAPPED + later,
                    f"jnp.swapaxes(_x, {i}, {j})")
    for axis, (low, high) in enumerate(params["padding"]):
        for shift in dict.fromkeys((high - low, 1, -1, 2, -2)):
            if shift:
                new = (int(low + shift), int(high - shift))
                padding = tuple(with_operand(params["padding"], axis, new))
                yield site.edit(
                    Kind.OFF_BY_ONE,
                    f"spatial axis {axis} should be padded by {new}, not " f"({low}, {high})",
                    lambda *a, p=padding: site.again(a, padding=p), costs.PADDING_MOVED)
    for name in ("window_strides", "lhs_dilation", "rhs_dilation"):
        for step in (1, 2, 3):
            new = (step,) * len(params[name])
            if new != tuple(params[name]):
                yield site.edit(
                    Kind.OFF_BY_ONE, f"{name} should be {new}, not {tuple(params[name])}",
                    lambda *a, name=name, new=new: site.again(a, **{name: new}), costs.STRIDE)


def triangular(site: Site) -> Iterator[Edit]:
    """A solve with a triangular matrix may need a transpose, or stand on the other side."""
    params = site.equation.params
    trans = params["transpose_a"]
    called = site.expression is not None and site.expression.spelling == "solve_triangular"
    yield site.edit(
        Kind.TRANSPOSE, f"the matrix should {'not ' if trans else ''}be transposed",
        lambda *a: site.again(a, transpose_a=not trans), costs.TRIANGLE_TRANSPOSED,
        write=(lambda e: e.with_keyword("trans", int(not trans))) if called else "")
    yield site.edit(
        Kind.TRANSPOSE, "the matrix should stand on the other side",
        lambda *a: site.again(a, left_side=not params["left_side"]), costs.OTHER_SIDE)
    right = site.operands[1]
    if np.ndim(right) >= 2 and right.shape[-1] == right.shape[-2]:
        yield site.operand_edit(
            1, Kind.TRANSPOSE, "{x} should be transposed", _transposed, costs.RIGHT_SIDE_TRANSPOSED,
            "_x.T")


def rolled(site: Site) -> Iterator[Edit]:
    """A roll may have to go the other way, by one more or less, or not belong."""
    expression, result = site.expression, site.result
    if expression is None or expression.spelling != "roll" or not site.last:
        return
    axis = site.equation.params.get("dimension", 0)
    size = result.shape[axis]
    low, high = site.operands[0].shape[axis], site.operands[-1].shape[axis]
    shift = low if low <= high else -high  # the part that went round
    for other, rank in (
        (-shift, costs.ROLLED_BACK), (0, costs.NOT_ROLLED),
        *((other, costs.ROLLED_BY_ONE) for other in (shift + 1, shift - 1) if other),
    ):
        if (other - shift) % size:
            yield site.edit(
                Kind.OFF_BY_ONE, f"should be rolled by {other}, not {shift}",
                lambda *a, by=other - shift: np.roll(site.again(a), by, axis), rank,
                write="_a" if other == 0 else lambda e, to=other: e.rolled(to))


def ends(site: Site) -> Iterator[Edit]:
    """A short part at an end of several may have to be zeros."""
    operands = site.operands
    axis = site.equation.params.get("dimension", 0)
    if len(operands) < 2 or not all(in_scope(x) for x in operands):
        return
    for position in dict.fromkeys((0, len(operands) - 1)):
        x = operands[position]
        if x.any() and 2 * x.shape[axis] < site.result.shape[axis]:
            yield site.operand_edit(
                position, Kind.BORDER, "zeros belong in the place of {x}", np.zeros_like,
                costs.ZERO_END + costs.LAST_END * position, "jnp.zeros_like(_x)")


def elsewhere(site: Site) -> Iterator[Edit]:
    """An index may be one off, or have to be the first or the last."""
    name = site.equation.name
    shape = np.shape(site.operands[0])
    for position in INDEXED[name]:
        if position >= len(site.operands):
            continue
        index = np.asarray(site.operands[position])
        if index.dtype.kind not in "iu" or index.size > 64:
            continue
        for shift in (1, -1):
            yield site.operand_edit(
                position, Kind.OFF_BY_ONE,
                f"the index should be {abs(shift)} " f"{'more' if shift > 0 else 'less'}",
                lambda x, s=shift: x + s, costs.INDEX_BY_ONE)
        if index.size == 1 and len(shape):
            now = int(index.ravel()[0])
            for to in dict.fromkeys((0, shape[0] - 1)):
                if to != now % shape[0]:
                    yield site.operand_edit(
                        position, Kind.OFF_BY_ONE, f"the index should be {to}, not {now}",
                        lambda x, to=to: np.full_like(x, to), costs.INDEX_AT_AN_END)


def borders(site: Site) -> Iterator[Edit]:
    """The first or the last row of the result may have to be nought, twice or half as much."""
    for axis, index, where in _ends(site):
        for factor, said, rank in (
            (0.0, "nought", costs.ZERO_BORDER),
            (2.0, "twice that", costs.SCALED_BORDER),
            (0.5, "half that", costs.SCALED_BORDER),
        ):
            yield site.edit(
                Kind.BORDER, f"the {where} of {{_e}} should be {said}",
                lambda *a, i=index, c=factor: _scaled(site.again(a), i, c), rank,
                write=f"_e.at[{_shown(axis, index)}].multiply({factor:g})")


def borrowed_borders(site: Site) -> Iterator[Edit]:
    """The first or the last row of the result may have to be that of another value."""
    if not in_scope(site.result) or len(site.equation.results) > 1:
        return
    places = list(_ends(site))
    for slot in site.scope if places else ():
        w, weight = site.values[slot], site.names.get(slot, costs.UNNAMED)
        if (
            not in_scope(w)
            or np.shape(w) != np.shape(site.result)
            or weight > costs.NAMED_ELSEWHERE
        ):
            continue
        for axis, index, where in places:
            at = _shown(axis, index)
            yield Edit(
                site.equation.key, Kind.BORDER, f"the {where} of {{_e}} should be that of {{v}}",
                lambda a, v, _, i=index, s=slot: _replaced(site.again(a), i, v[s]),
                costs.BORDER_OF_VALUE + weight, reads=(slot,), write=f"_e.at[{at}].set(_v[{at}])")


def indexed(site: Site) -> Iterator[Edit]:
    """The rows of a value that an array of indices names may belong here."""
    if not in_scope(site.result) or not site.last or len(site.equation.results) > 1:
        return
    shape = np.shape(site.result)
    distance = lambda slot: site.names.get(slot, costs.UNNAMED)
    near = [slot for slot in site.scope if distance(slot) <= costs.NAMED_ELSEWHERE]
    places = [slot for slot in near if _is_index(site.values[slot], shape)]
    for slot, at in itertools.product(near, places):
        w, index = site.values[slot], site.values[at]
        if not in_scope(w) or np.ndim(w) != len(shape) or np.shape(w)[1:] != shape[1:]:
            continue
        if index.min() >= -len(w) and index.max() < len(w):
            yield Edit(
                site.equation.key, Kind.PERMUTATION, "should be {v}[{w}]",
                lambda a, v, _, s=slot, i=at: v[s][v[i]], costs.INDEXED_ROWS + distance(slot),
                reads=(slot, at), write="_v[_w]")


def _is_index(x: Any, shape: tuple[int, ...]) -> bool:
    kind = getattr(getattr(x, "dtype", None), "kind", "")
    return kind in "iu" and kind != "" and np.ndim(x) == 1 and np.shape(x) == shape[:1]


def _ends(site: Site) -> Iterator[tuple[int, tuple[Any, ...], str]]:
    shape = np.shape(site.result)
    if not site.last or not 1 <= len(shape) <= 3:
        return
    for axis in dict.fromkeys((0, len(shape) - 1)):
        if shape[axis] > 2:
            for k, word in ((0, "first"), (-1, "last")):
                index = (slice(None),) * axis + (k,)
                yield axis, index, f"{word} entry along axis {axis}"


def _shown(axis: int, index: tuple[Any, ...]) -> str:
    return ", ".join([*[":"] * axis, str(index[-1])])


def _scaled(x: Any, index: tuple[Any, ...], factor: float) -> Any:
    x = np.array(x)
    x[index] *= factor
    return x


def _replaced(x: Any, index: tuple[Any, ...], by: Any) -> Any:
    x = np.array(x)
    x[index] = by[index]
    return x


# Calls of a library.

Axes = tuple[int, ...]


def _softmax(x: Any, axis: Axes, keepdims: bool = False) -> Any:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def _logsumexp(x: Any, axis: Axes, keepdims: bool = False) -> Any:
    top = x.max(axis, keepdims=True)
    out = top + np.log(np.exp(x - top).sum(axis, keepdims=True))
    return out if keepdims else np.squeeze(out, axis)


REDUCTIONS: dict[str, Callable[..., Any]] = {
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
        yield _reduced(
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
            yield _reduced(
                site, slot, name, others, keepdims or total, Kind.AXIS,
                f"the {name} should run along axis {_listed(others)}, not {_listed(axes)}{more}",
                costs.REDUCED_AXIS if size == len(axes) else costs.REDUCED_AXES,
                lambda e, others=others: (
                    e.called(axis=others[0] if len(others) == 1 else others, keepdims=total)
                    if e.spelling == name else None))


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


def _reduced(
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
    function = REDUCTIONS[name]
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
    if name not in REDUCTIONS:
        return ("sum", site.equation.operands[0]) if site.equation.name == "reduce_sum" else None
    if not site.last or expression is None:
        return None
    outside = outside_of(site)
    return (name, outside[0]) if len(outside) == 1 else None


def _present(name: str, x: Any, result: Any) -> tuple[Axes, bool] | None:
    """Along which axes the call runs, and whether it keeps them, from what it returned."""
    for keepdims in (False, True):
        for size in range(1, np.ndim(x) + 1):
            for axes in itertools.combinations(range(np.ndim(x)), size):
                value = REDUCTIONS[name](x, axis=axes, keepdims=keepdims)
                if np.shape(value) == np.shape(result) and np.allclose(value, result, 1e-9, 1e-12):
                    return axes, keepdims
    return None
