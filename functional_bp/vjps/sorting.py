"""Sorting and selecting along an axis is a permutation, which is constant where nothing ties.

The derivative of a sort is the permutation that it applied. The forward sweep writes that
permutation down, so that the reverse sweep moves entries back without sorting again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jax import lax

from functional_bp import _jax
from functional_bp.engine.axes import mixing
from functional_bp.engine.rule import case, cplx, integer, real, rule
from functional_bp.engine.sweeps import zeros


def put_back(y_bar: Any, x_t: Any, places: Any, axis: int) -> Any:
    """Return x̄ with x̄[…, places[i], …] = ȳ[…, i, …] along ``axis``, zero elsewhere.

    Derivation: y_i = x_{π(i)} with π one-to-one, so x̄_{π(i)} = ȳ_i. No two entries meet, which
    is what ``unique_indices`` tells the compiler.
    """
    axis %= y_bar.ndim
    others = tuple(i for i in range(y_bar.ndim) if i != axis)
    dimensions = lax.ScatterDimensionNumbers(
        update_window_dims=(),
        inserted_window_dims=(axis,),
        scatter_dims_to_operand_dims=(axis,),
        operand_batching_dims=others,
        scatter_indices_batching_dims=others,
    )
    return lax.scatter_add(
        zeros(x_t),
        lax.expand_dims(places, (y_bar.ndim,)),
        y_bar,
        dimensions,
        unique_indices=True,
        mode="promise_in_bounds",
    )


def sort_with_order(
    *operands: Any, dimension: int, is_stable: bool, num_keys: int
) -> tuple[list[Any], Any]:
    """Sort, and find the order: the positions 0, 1, … are sorted along as a last operand."""
    shape = operands[0].shape
    positions = lax.broadcasted_iota(_jax.index_dtype(shape[dimension]), shape, dimension)
    *outs, order = lax.sort(
        (*operands, positions), dimension=dimension, is_stable=is_stable, num_keys=num_keys
    )
    return outs, order


def sorted_along(
    ys_bar: Sequence[Any], xs_t: Sequence[Any], order: Any, index: int, *, dimension: int
) -> Any:
    """x̄_{π(i)} = ȳ_i, with π the order in which the sort took the entries.

    Derivation: every operand is permuted by the same π, that of the keys: y_i = x_{π(i)}. π is
    piecewise constant, so it adds nothing to the derivative, for keys and values alike.

    Kinks: among equal keys the order is the one that was used (stable: as they stood).

    Residuals: π alone.

    Source: derived above.
    """
    y_bar = ys_bar[index]
    return None if y_bar is None else put_back(y_bar, xs_t[index], order, dimension)


_TIED = [[1.0, 0.5, 1.0, -2.0], [0.5, 0.5, 0.5, 3.0]]

rule(
    lax.sort_p, "*xs -> *ys | order", xs=sorted_along, forward=sort_with_order,
    axes=mixing("dimension"),
    kinks="equal keys keep their order",
    cases=[
        case(lambda x: lax.sort(x), real(3, 4)),
        case(lambda x: lax.sort(x, dimension=0, is_stable=False), real(4, 3)),
        case(lambda x: lax.sort(x), real(values=_TIED), note="ties"),
        case(lambda x: lax.sort(x, dimension=0), cplx(4)),
        case(lambda k, v: lax.sort((k, v), num_keys=1), real(2, 4), real(2, 4)),
        case(lambda k, m, v: lax.sort((k, m, v), num_keys=2),
             real(values=_TIED), real(2, 4), cplx(2, 4)),
        case(lambda k, v: lax.sort((k, v), dimension=0), integer(5), real(5)),
        case(lambda x: lax.sort((x, lax.iota("int32", 4)), num_keys=1), real(4)),
        case(lambda x: lax.sort(x), real(2, 0)),
    ],
)


def largest(y_bar: Any, x_t: Any, places: Any, *, axis: int) -> Any:
    """x̄_{places(i)} = ȳ_i; entries that were not selected have none.

    Kinks: among equal entries those that ``top_k`` took, the first ones.

    Residuals: the places, which the operation returns anyway.
    """
    return put_back(y_bar, x_t, places, axis)


def nearly_largest(y_bar: Any, x_t: Any, places: Any, *, reduction_dimension: int) -> Any:
    """x̄_{places(i)} = ȳ_i, for the entries that the approximate search found."""
    return put_back(y_bar, x_t, places, reduction_dimension)


rule(
    lax.top_k_p, "x -> y, places", x=largest, axes=mixing("axis"),
    kinks="of equal entries, the first",
    cases=[
        case(lambda x: lax.top_k(x, 2), real(3, 4)),
        case(lambda x: lax.top_k(x, 2, axis=0), real(4, 3)),
        case(lambda x: lax.top_k(x, 2), real(values=_TIED), note="ties"),
    ],
)
rule(
    lax.approx_top_k_p, "x -> y, places", x=nearly_largest, axes=mixing("reduction_dimension"),
    kinks="of equal entries, those that the search returned",
    cases=[
        case(lambda x: lax.approx_max_k(x, 2), real(3, 4)),
        case(lambda x: lax.approx_min_k(x, 3, reduction_dimension=0), real(4, 2)),
        case(lambda x: lax.approx_max_k(x, 2, aggregate_to_topk=False), real(3, 4)),
    ],
)
