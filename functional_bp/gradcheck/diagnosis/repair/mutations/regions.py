"""Matrices, windows and borders may need a triangle, a flipped kernel, other first rows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from functional_bp.gradcheck.diagnosis import costs
from functional_bp.gradcheck.diagnosis.repair.mutations.library_calls import outside_of
from functional_bp.gradcheck.diagnosis.repair.mutations.mutation import Edit, Site, with_operand
from functional_bp.gradcheck.diagnosis.repair.program import in_scope
from functional_bp.gradcheck.findings import Kind

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
