"""Gather and the dynamic slices read and write at computed positions.

All three copy entries from one place to another. The adjoint of a copy is an addition back to the
place that was read, and nothing more: positions are integers, so they have no cotangent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax import lax

from functional_bp.engine.axes import relate
from functional_bp.engine.rule import case, cplx, integer, linear, real, rule
from functional_bp.engine.sweeps import zeros


def sliced(y_bar: Any, x_t: Any, starts: Sequence[Any]) -> Any:
    """x̄ = 0 with ȳ written at the slice.

    Derivation: y_i = x_{i+s} for i inside the slice, so

        ⟨ȳ, ẏ⟩ = Σ_i ȳ_i ẋ_{i+s} = Σ_j ẋ_j [s ≤ j < s+n] ȳ_{j−s}

    Every j is read at most once, hence a write and no sum. A start that would run over an edge is
    clamped by ``dynamic_slice`` and by ``dynamic_update_slice`` alike, so both meet the same
    entries.
    """
    return lax.dynamic_update_slice(zeros(x_t), y_bar, starts, allow_negative_indices=False)


def dynamic_axes(x_t: Any, starts_t: Any, y_t: Any) -> Any:
    """An axis that is read in part is read at a position."""
    whole = [i for i, (n, m) in enumerate(zip(x_t.shape, y_t.shape)) if n == m]
    axes = range(len(x_t.shape))
    y = [i if i in whole else None for i in axes]
    return relate([axes, *[() for _ in starts_t]], [y],
                  positional=[i for i in axes if i not in whole])


linear(
    lax.dynamic_slice_p, "x, *starts -> y", x=sliced, axes=dynamic_axes,
    cases=[
        case(lambda x, i, j: lax.dynamic_slice(x, (i, j), (2, 3)),
             real(4, 5), integer(values=1), integer(values=2)),
        case(lambda x, i: lax.dynamic_slice(x, (i,), (3,)), real(5), integer(values=9),
             note="the start is clamped to 2"),
        case(lambda x, i: lax.dynamic_slice(x, (i,), (3,)), cplx(5), integer(values=-4)),
        case(lambda x, i: lax.dynamic_slice_in_dim(x, i, 0), real(3, 2), integer(values=1),
             note="an empty slice"),
    ],
)


def overwritten(y_bar: Any, u_t: Any, starts: Sequence[Any]) -> Any:
    """x̄ = ȳ with zeros over the slice.

    Derivation: y_j = u_{j−s} inside the slice and x_j outside; what is overwritten is lost, so
    x̄_j = ȳ_j outside and 0 inside.
    """
    return lax.dynamic_update_slice(y_bar, zeros(u_t), starts, allow_negative_indices=False)


def written(y_bar: Any, u_t: Any, starts: Sequence[Any]) -> Any:
    """ū_i = ȳ_{i+s}: the cotangent's own slice."""
    return lax.dynamic_slice(y_bar, starts, u_t.shape, allow_negative_indices=False)


def updated_axes(x_t: Any, u_t: Any, starts_t: Any) -> Any:
    """An axis that is written in part is written at a position."""
    axes = range(len(x_t.shape))
    u = [i if m == n else None for i, (m, n) in enumerate(zip(u_t.shape, x_t.shape))]
    return relate([axes, u, *[() for _ in starts_t]], [axes],
                  positional=[i for i in axes if u[i] is None])


rule(
    lax.dynamic_update_slice_p, "x, u, *starts -> y", linear="x, u", x=overwritten, u=written,
    axes=updated_axes,
    cases=[
        case(lambda x, u, i, j: lax.dynamic_update_slice(x, u, (i, j)),
             real(4, 5), real(2, 3), integer(values=1), integer(values=2)),
        case(lambda x, u, i: lax.dynamic_update_slice(x, u, (i,)),
             real(5), real(3), integer(values=9), note="the start is clamped to 2"),
        case(lambda x, u, i: lax.dynamic_update_slice(x, u, (i,)),
             cplx(5), cplx(2), integer(values=-4)),
        case(lambda x, u, i: lax.dynamic_update_slice_in_dim(x, u, i, 0),
             real(3, 2), real(0, 2), integer(values=1)),
    ],
)


def scatter_dimensions(dimensions: lax.GatherDimensionNumbers) -> lax.ScatterDimensionNumbers:
    """Return the dimension numbers of the scatter that writes where the gather reads."""
    return lax.ScatterDimensionNumbers(
        update_window_dims=dimensions.offset_dims,
        inserted_window_dims=dimensions.collapsed_slice_dims,
        scatter_dims_to_operand_dims=dimensions.start_index_map,
        operand_batching_dims=dimensions.operand_batching_dims,
        scatter_indices_batching_dims=dimensions.start_indices_batching_dims,
    )


def gathered(y_bar, x_t, indices, *, dimension_numbers, indices_are_sorted, unique_indices, mode):
    """x̄_j = Σ_{i: ι(i)=j} ȳ_i: scatter-add is the adjoint of gather.

    Derivation: y_i = x_{ι(i)}, with ι the map from output to operand positions that the indices
    give. Then

        ⟨ȳ, ẏ⟩ = Σ_i ȳ_i ẋ_{ι(i)} = Σ_j ẋ_j Σ_{i: ι(i)=j} ȳ_i

    Out of bounds: in mode ``clip`` ι itself is clamped, in both directions; in mode ``fill`` y_i
    is a constant there, and the scatter drops ȳ_i.

    Residuals: the indices; no float.
    """
    return lax.scatter_add(
        zeros(x_t), indices, y_bar, scatter_dimensions(dimension_numbers),
        indices_are_sorted=indices_are_sorted, unique_indices=unique_indices, mode=mode,
    )


def indexed_labels(
    x_t: Any, indices_t: Any, picked_t: Any, sizes: Sequence[int],
    numbers: lax.GatherDimensionNumbers,
) -> tuple[list[Any], list[Any], list[Any]]:
    """Label the axes of an array, of indices into it, and of what is picked out there.

    Indices stand where what they pick does; an axis that a window covers is the window's, and one
    that is indexed is ``("at", i)``. One that is taken whole can only be taken from its start.
    """
    rank = len(x_t.shape)
    x: list[Any] = [("x", i) for i in range(rank)]
    indices: list[Any] = [("i", i) for i in range(len(indices_t.shape) - 1)]
    for i, k in zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims):
        indices[k] = x[i]
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    covered = iter(numbers.offset_dims)
    picked: list[Any] = [None] * len(picked_t.shape)
    for i in range(rank):
        if i not in gone:
            place = next(covered)
            picked[place] = x[i] if sizes[i] == x_t.shape[i] else None
        if i in numbers.start_index_map and sizes[i] != x_t.shape[i]:
            x[i] = ("at", i)
    rest = iter(indices)
    picked = [label if k in numbers.offset_dims else next(rest) for k, label in enumerate(picked)]
    picked = [label if label in x or label in indices else None for label in picked]
    return x, [*indices, None], picked


def gathered_axes(
    x_t: Any, indices_t: Any, y_t: Any, *, dimension_numbers: Any, slice_sizes: Any
) -> Any:
    """Each index picks its own part of the output; what is indexed, is so by position."""
    x, indices, y = indexed_labels(x_t, indices_t, y_t, slice_sizes, dimension_numbers)
    return relate([x, indices], [y], positional=[label for label in x if label[0] == "at"])


def _rows(mode: str, **promises: Any) -> Any:
    dimensions = lax.GatherDimensionNumbers((1,), (0,), (0,))
    sizes = lambda x: (1, x.shape[1])
    return lambda x, i: lax.gather(x, i[:, None], dimensions, sizes(x), mode=mode, **promises)


_OUTSIDE = [3, -1, 7, 0, 3]
_windows = lax.GatherDimensionNumbers(offset_dims=(1, 2), collapsed_slice_dims=(),
                                      start_index_map=(0, 1))
_batched = lax.GatherDimensionNumbers(
    offset_dims=(), collapsed_slice_dims=(1,), start_index_map=(1,),
    operand_batching_dims=(0,), start_indices_batching_dims=(0,))

linear(
    lax.gather_p, "x, indices -> y", x=gathered, axes=gathered_axes,
    cases=[
        case(lambda x, i: x[i], real(4, 3), integer(values=[[2, -1], [2, 0]]), note="repeats"),
        case(lambda x, i: x[1:, i, None], cplx(3, 4), integer(values=[0, 0, 3])),
        case(_rows("fill"), real(4, 3), integer(values=_OUTSIDE)),
        case(_rows("fill", fill_value=2.5), real(4, 3), integer(values=_OUTSIDE)),
        case(_rows("clip"), real(4, 3), integer(values=_OUTSIDE)),
        case(_rows("promise_in_bounds", unique_indices=True, indices_are_sorted=True),
             real(4, 3), integer(values=[0, 2, 3])),
        case(lambda x, i: lax.gather(x, i, _windows, (2, 2), mode="clip"),
             real(4, 5), integer(values=[[0, 1], [1, 2], [9, 9]]), note="windows that overlap"),
        case(lambda x, i: lax.gather(x, i, _windows, (2, 2), mode="fill"),
             real(4, 5), integer(values=[[0, 1], [1, 2], [3, 4]]), note="the last runs over"),
        case(lambda x, i: lax.gather(x, i, _windows, (2, 4), mode="clip"), real(5, 4),
             integer(values=[[0, 1], [3, 0], [1, 0]]), note="the second axis is taken whole"),
        case(lambda x, i: lax.gather(x, i[..., None], _batched, (1, 1)),
             real(3, 4), integer(values=[[1, 1], [0, 3], [2, 2]])),
        case(lambda x, i: x[i], real(4, 3), integer(values=np.zeros((2, 0), np.int32))),
    ],
)
