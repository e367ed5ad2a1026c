"""Writing and adding at computed positions: the scatters.

With ι the map from the positions of the updates ``u`` to those of the operand ``x`` that the
indices give, every scatter is y_j = x_j ⊕ (all u_i with ι(i) = j). Dropped updates are those that
ι sends out of bounds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jax import lax

from functional_bp.cases import case, cplx, integer, real
from functional_bp.rule import rule


def read_back(y_bar: Any, indices: Any, u_t: Any, dimension_numbers: Any, **options: Any) -> Any:
    """ȳ_{ι(i)}: for every update the entry that it was written to; zero where it was dropped."""
    dimensions = lax.GatherDimensionNumbers(
        offset_dims=dimension_numbers.update_window_dims,
        collapsed_slice_dims=dimension_numbers.inserted_window_dims,
        start_index_map=dimension_numbers.scatter_dims_to_operand_dims,
        operand_batching_dims=dimension_numbers.operand_batching_dims,
        start_indices_batching_dims=dimension_numbers.scatter_indices_batching_dims,
    )
    return lax.gather(
        y_bar, indices, dimensions, window_sizes(y_bar, u_t, dimension_numbers),
        fill_value=0, **options,
    )  # fmt: skip


def window_sizes(x_t: Any, u_t: Any, dimension_numbers: Any) -> tuple[int, ...]:
    """The operand's extent that one update covers, axis by axis."""
    single = {*dimension_numbers.inserted_window_dims, *dimension_numbers.operand_batching_dims}
    windows = iter([u_t.shape[i] for i in dimension_numbers.update_window_dims])
    return tuple(1 if i in single else next(windows) for i in range(len(x_t.shape)))


def kept(y_bar: Any) -> Any:
    """x̄ = ȳ: an addition leaves what was there."""
    return y_bar


def added(
    y_bar: Any, indices: Any, u_t: Any, *,
    dimension_numbers: Any, indices_are_sorted: Any, unique_indices: Any, mode: Any,
) -> Any:  # fmt: skip
    """ū_i = ȳ_{ι(i)}: gather is the adjoint of scatter-add.

    Derivation: y_j = x_j + Σ_{i: ι(i)=j} u_i, so

        ⟨ȳ, ẏ⟩ = ⟨ȳ, ẋ⟩ + Σ_j ȳ_j Σ_{i: ι(i)=j} u̇_i = ⟨ȳ, ẋ⟩ + Σ_i ȳ_{ι(i)} u̇_i

    Residuals: the indices; no float.
    """
    return read_back(
        y_bar, indices, u_t, dimension_numbers,
        indices_are_sorted=indices_are_sorted, unique_indices=unique_indices, mode=mode,
    )  # fmt: skip


def subtracted(
    y_bar: Any, indices: Any, u_t: Any, *,
    dimension_numbers: Any, indices_are_sorted: Any, unique_indices: Any, mode: Any,
) -> Any:  # fmt: skip
    """ū_i = −ȳ_{ι(i)}, as for an addition of −u."""
    return lax.neg(
        read_back(
            y_bar, indices, u_t, dimension_numbers,
            indices_are_sorted=indices_are_sorted, unique_indices=unique_indices, mode=mode,
        )
    )  # fmt: skip


_rows = lax.ScatterDimensionNumbers((1,), (0,), (0,))
_windows = lax.ScatterDimensionNumbers((1, 2), (), (0, 1))
_batched = lax.ScatterDimensionNumbers((), (1,), (1,), (0,), (0,))


def _cases(scatter: Any, *, reference: Any = None, complex_too: bool = True) -> list[Any]:
    """Cases for one scatter: rows (all modes, repeats), windows that overlap, batched, empty."""

    def at(dimensions: Any, **options: Any) -> Any:
        return lambda x, i, u: scatter(x, i, u, dimensions, **options)

    return [
        case(at(_rows), real(4, 3), integer(values=[[3], [1], [3]]), real(3, 3)),
        case(at(_rows, mode="drop"), real(4, 3), integer(values=[[3], [-1], [7]]), real(3, 3)),
        case(at(_rows, mode="clip"), real(4, 3), integer(values=[[3], [-1], [7]]), real(3, 3)),
        case(at(_rows, mode="promise_in_bounds", unique_indices=True, indices_are_sorted=True),
             real(4, 3), integer(values=[[0], [2]]), real(2, 3)),
        case(at(_windows), real(4, 4), integer(values=[[0, 1], [1, 2], [3, 3]]), real(3, 2, 2)),
        case(at(_batched), real(3, 4), integer(values=[[[1], [1]], [[0], [3]], [[2], [2]]]),
             real(3, 2)),
        *([case(at(_rows), cplx(4, 3), integer(values=[[3], [1]]), cplx(2, 3))] * complex_too),
        case(at(_rows), real(4, 3), integer(values=np.zeros((0, 1), np.int32)), real(0, 3)),
    ]  # fmt: skip


rule(
    lax.scatter_add_p,
    "x, indices, u -> y",
    x=kept,
    u=added,
    cases=_cases(lax.scatter_add),
)
rule(
    lax.scatter_sub_p,
    "x, indices, u -> y",
    x=kept,
    u=subtracted,
    cases=_cases(lax.scatter_sub),
)
