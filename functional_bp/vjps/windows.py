"""Sums and extremes over windows are average and max pooling, and two operations in between.

With window offsets w, stride s, window dilation d, base dilation b and low padding ℓ, window o
covers the entries j with j b = o s + w d − ℓ, along every axis.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
from jax import lax

from functional_bp.engine.improvements import improvement
from functional_bp.engine.rule import case, linear, real, rule
from functional_bp.engine.sweeps import match_axes


def summed(
    y_bar: Any, x_t: Any, *, window_dimensions: Any, window_strides: Any, padding: Any,
    base_dilation: Any, window_dilation: Any,
) -> Any:
    """x̄_j = Σ of ȳ_o over the windows o that cover j: again a sum over windows.

    Derivation: y_o = Σ_w x_{(o s + w d − ℓ)/b}, so x̄_j = Σ_{o,w: o s + w d − ℓ = j b} ȳ_o. Write
    ỹ for ȳ with s−1 zeros between its entries, ỹ_{o s} = ȳ_o. The pairs (o, w) are then the w
    alone, and with w' = k−1−w

        x̄_j = Σ_w ỹ_{j b + ℓ − w d} = Σ_w' ỹ_{j b − ((k−1) d − ℓ) + w' d}

    a window sum of ỹ with stride b, dilation d and low padding (k−1) d − ℓ, long enough for the
    last j. Where windows touch without overlap (k = s, no dilation) each j has one window at most,
    and ȳ is repeated instead, without arithmetic.
    """
    plain = all(n == 1 for n in (*base_dilation, *window_dilation))
    if plain and tuple(window_dimensions) == tuple(window_strides):
        return _repeated(y_bar, x_t, window_dimensions, padding)
    config = []
    for n, out, k, s, (low, _), b, d in zip(
        x_t.shape, y_bar.shape, window_dimensions, window_strides, padding, base_dilation,
        window_dilation, strict=True,
    ):
        before = (k - 1) * d - low
        length = (n - 1) * b + (k - 1) * d + 1
        spaced = (out - 1) * s + 1 if out else 0
        config.append((before, length - before - spaced, s - 1))
    if math.prod(x_t.shape) == 0:
        return None
    return lax.reduce_window_sum_p.bind(
        lax.pad(y_bar, np.zeros((), y_bar.dtype), config),
        window_dimensions=window_dimensions,
        window_strides=base_dilation,
        padding=((0, 0),) * y_bar.ndim,
        base_dilation=(1,) * y_bar.ndim,
        window_dilation=window_dilation,
    )


def _repeated(y_bar: Any, x_t: Any, window: Any, padding: Any) -> Any:
    """Repeat every ȳ_o over its own window, cut to the operand."""
    paired = [size for out, k in zip(y_bar.shape, window) for size in (out, k)]
    whole = lax.broadcast_in_dim(y_bar, paired, range(0, 2 * y_bar.ndim, 2))
    whole = lax.reshape(whole, [out * k for out, k in zip(y_bar.shape, window)])
    edges = [
        (-low, n + low - covered, 0)
        for n, covered, (low, _) in zip(x_t.shape, whole.shape, padding, strict=True)
    ]
    return lax.pad(whole, np.zeros((), y_bar.dtype), edges)


def _pool(reduction: Any, initial: Any, *window: Any, **options: Any) -> Any:
    return lambda x: lax.reduce_window(x, initial, reduction, *window, **options)


def _geometries(reduction: Any, initial: Any) -> list[Any]:
    """Make cases for one reduction: windows that touch, overlap, are padded, dilated, apart."""
    return [
        case(_pool(reduction, initial, (2, 2), (2, 2), "VALID"), real(4, 5)),
        case(_pool(reduction, initial, (2, 3), (2, 3), "SAME"), real(5, 4)),
        case(_pool(reduction, initial, (3, 2), (1, 2), ((1, 1), (0, 2))), real(4, 5)),
        case(_pool(reduction, initial, (2,), (3,), ((1, 0),)), real(5), note="gaps"),
        case(_pool(reduction, initial, (2,), (1,), ((0, 0),), base_dilation=(2,)), real(4)),
    ]


linear(
    lax.reduce_window_sum_p,
    "x -> y",
    x=summed,
    cases=[
        *_geometries(lax.add, 0.0),
        case(_pool(lax.add, 0.0, (2,), (2,), ((-1, 3),)), real(5), note="negative padding"),
        case(_pool(lax.add, 0.0, (2,), (1,), ((1, 2),), base_dilation=(3,), window_dilation=(2,)),
             real(4)),
        case(_pool(lax.add, 0.0, (1, 3), (2, 2), "SAME", window_dilation=(1, 2)), real(3, 5)),
        case(_pool(lax.add, 0.0, (2,), (1,), "VALID"), real(0)),
    ],
)


def to_the_selected(
    y_bar: Any, x: Any, select_prim: Any, window_dimensions: Any, window_strides: Any,
    padding: Any, base_dilation: Any, window_dilation: Any,
) -> Any:
    """x̄_j = Σ of ȳ_o over the windows o that selected the entry j.

    Base dilation puts entries between the operand's that are never selected. Where windows are
    dilated, their selections are looked up first, and ȳ is added there.
    """
    y_bar = match_axes(y_bar, jax.typeof(x))
    if any(d != 1 for d in window_dilation):
        places = selected_places(
            x, select_prim, window_dimensions, window_strides, padding, base_dilation,
            window_dilation,
        )
        flat = lax.full((x.size,), 0, y_bar.dtype)
        flat = match_axes(flat, jax.typeof(y_bar))
        return lax.reshape(flat.at[places].add(y_bar, mode="drop"), x.shape)
    if any(b != 1 for b in base_dilation):
        x = lax.pad(x, worst(select_prim, x.dtype), [(0, 0, b - 1) for b in base_dilation])
    found = lax.select_and_scatter_add_p.bind(
        y_bar, x, select_prim=select_prim, window_dimensions=window_dimensions,
        window_strides=window_strides, padding=padding,
    )
    if any(b != 1 for b in base_dilation):
        found = lax.slice(found, (0,) * found.ndim, found.shape, base_dilation)
    return found


def worst(select_prim: Any, dtype: Any) -> np.ndarray:
    """Return the value that loses every selection: −∞ where the larger wins, else +∞."""
    return np.asarray(-np.inf if select_prim is lax.ge_p else np.inf, dtype)


def selected_places(
    x: Any, select_prim: Any, window_dimensions: Any, window_strides: Any, padding: Any,
    base_dilation: Any, window_dilation: Any,
) -> Any:
    """Return per window the flat position of the (first) entry it selects; x.size if none."""

    def better(left: Any, right: Any) -> Any:
        (a, i), (b, j) = left, right
        first = select_prim.bind(a, b) & ((a != b) | (i < j))
        return lax.select(first, a, b), lax.select(first, i, j)

    positions = lax.reshape(lax.iota(np.int32, x.size), x.shape)
    _, places = lax.reduce_window(
        (x, match_axes(positions, jax.typeof(x))), (worst(select_prim, x.dtype), np.int32(x.size)),
        better, window_dimensions, window_strides, padding, base_dilation, window_dilation,
    )
    return places


def largest_in_window(
    y_bar: Any, x: Any, *, window_dimensions: Any, window_strides: Any, padding: Any,
    base_dilation: Any, window_dilation: Any,
) -> Any:
    """x̄_j = Σ of ȳ_o over the windows o whose maximum stands at j.

    Derivation: y_o = x_{m(o)} with m(o) the position of the window's maximum, constant while no
    other entry reaches it. Then ⟨ȳ, ẏ⟩ = Σ_o ȳ_o ẋ_{m(o)} = Σ_j ẋ_j Σ_{o: m(o)=j} ȳ_o.

    Kinks: of equal entries in a window the first, in row-major order, has the whole cotangent.

    Residuals: x; the positions are found again from it.
    """
    return to_the_selected(y_bar, x, lax.ge_p, window_dimensions, window_strides, padding,
                           base_dilation, window_dilation)


def smallest_in_window(
    y_bar: Any, x: Any, *, window_dimensions: Any, window_strides: Any, padding: Any,
    base_dilation: Any, window_dilation: Any,
) -> Any:
    """x̄_j = Σ of ȳ_o over the windows o whose minimum stands at j; as for the maximum."""
    return to_the_selected(y_bar, x, lax.le_p, window_dimensions, window_strides, padding,
                           base_dilation, window_dilation)


def _first_in_window(better: Any, initial: float) -> Any:
    """Pool ``_EQUAL``'s windows by comparisons, of which the first of equals wins."""

    def pooled(x: Any) -> Any:
        full = lax.pad(x, lax.full((), initial, x.dtype), [(0, 1, 0), (0, 1, 0)])
        best = x
        for rows, columns in ((0, 1), (1, 0), (1, 1)):
            corner = (rows + x.shape[0], columns + x.shape[1])
            other = lax.slice(full, (rows, columns), corner)
            best = lax.select(better(best, other), best, other)
        return best

    return pooled


_EQUAL = [[1.0, 1.0, 0.0, 2.0], [1.0, 0.5, 2.0, 2.0]]

for _primitive, _reduction, _better, _initial, _pullback in (
    (lax.reduce_window_max_p, lax.max, lax.ge, -np.inf, largest_in_window),
    (lax.reduce_window_min_p, lax.min, lax.le, np.inf, smallest_in_window),
):
    rule(
        _primitive,
        "x -> y",
        x=_pullback,
        kinks="of equal entries in a window, the first",
        cases=[
            *_geometries(_reduction, _initial),
            case(_pool(_reduction, _initial, (2, 2), (1, 1), "SAME"), real(values=_EQUAL),
                 reference=_first_in_window(_better, _initial), second_order=False,
                 note="ties: the first, as jax.vjp; in JAX 0.12 select_and_gather_add, so jax.jvp "
                 "and second derivatives, takes another of the equals"),
            case(_pool(_reduction, _initial, (2,), (1,), "VALID", window_dilation=(2,)), real(6),
                 reference=lambda x, pair=_reduction: pair(x[:-2], x[2:]), note="jax.vjp raises"),
        ],
    )


improvement(
    "max-pool with window dilation",
    lambda x: lax.reduce_window(x, -np.inf, lax.max, (2,), (1,), "VALID", window_dilation=(2,)),
    at=([1.0, 5.0, 3.0, 2.0],), wrt=0, true=[0.0, 1.0, 1.0, 0.0],
    jax="raises NotImplementedError: VJP not implemented … with window dilation",
    source="y = (max(x₀, x₂), max(x₁, x₃)) = (x₂, x₁)",
)


def selected_tangents(
    y_bar: Any, x: Any, *, select_prim: Any, window_dimensions: Any, window_strides: Any,
    padding: Any, base_dilation: Any, window_dilation: Any,
) -> Any:
    """ṫ's cotangent is ȳ added where x was selected.

    Derivation: y_o = t_{m(o)} with m(o) chosen by x alone; linear in t, and constant in x wherever
    the choice does not change, so that x has no cotangent.

    Residuals: x.
    """
    return to_the_selected(y_bar, x, select_prim, window_dimensions, window_strides, padding,
                           base_dilation, window_dilation)


def _read_selected(select_prim: Any, *window: Any, **dilations: Any) -> Any:
    dimensions, strides, padding = window
    ones = (1,) * len(dimensions)
    return lambda t, x: lax.select_and_gather_add_p.bind(
        t, x, select_prim=select_prim, window_dimensions=dimensions, window_strides=strides,
        padding=padding, base_dilation=dilations.get("base_dilation", ones),
        window_dilation=dilations.get("window_dilation", ones),
    )


rule(
    lax.select_and_gather_add_p,
    "t, x -> y",
    linear="t",
    t=selected_tangents,
    kinks="of equal entries in a window, the first",
    cases=[
        case(_read_selected(lax.ge_p, (2, 2), (2, 1), ((0, 0), (1, 0))), real(4, 4), real(4, 4)),
        case(_read_selected(lax.le_p, (3,), (2,), ((0, 1),), base_dilation=(2,)), real(4), real(4)),
        case(_read_selected(lax.ge_p, (2,), (1,), ((0, 0),), window_dilation=(2,)), real(4),
             real(values=[1, 5, 3, 2]), note="jax.vjp raises",
             reference=lambda t, x: jax.numpy.stack([t[2], t[1]]) + 0 * x[:2]),
    ],
)


def read_selected(
    y_bar: Any, x: Any, *, select_prim: Any, window_dimensions: Any, window_strides: Any,
    padding: Any,
) -> Any:
    """s̄_o = ȳ_{m(o)}: the entry that the window selected.

    Derivation: y_j = Σ_{o: m(o)=j} s_o, with m(o) chosen by x alone, which has no cotangent.

    Residuals: x.
    """
    ones = (1,) * len(window_dimensions)
    return lax.select_and_gather_add_p.bind(
        match_axes(y_bar, jax.typeof(x)), x, select_prim=select_prim,
        window_dimensions=window_dimensions, window_strides=window_strides, padding=padding,
        base_dilation=ones, window_dilation=ones,
    )


def _write_selected(select_prim: Any, dimensions: Any, strides: Any, padding: Any) -> Any:
    return lambda s, x: lax.select_and_scatter_add_p.bind(
        s, x, select_prim=select_prim, window_dimensions=dimensions, window_strides=strides,
        padding=padding,
    )


rule(
    lax.select_and_scatter_add_p,
    "s, x -> y",
    linear="s",
    s=read_selected,
    kinks="of equal entries in a window, the first",
    cases=[
        case(_write_selected(lax.ge_p, (2, 2), (2, 2), ((0, 0), (0, 0))), real(2, 2), real(4, 4)),
        case(_write_selected(lax.le_p, (3,), (1,), ((1, 1),)), real(5), real(5)),
    ],
)
