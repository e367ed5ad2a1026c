"""Both cotangents of a convolution are convolutions again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax import lax

from functional_bp.engine.axes import relate
from functional_bp.engine.rule import case, cplx, real, rule
from functional_bp.vjps.shapes import layout


def regroup(array: Any, groups: int, source: int, target: int) -> Any:
    """Move the leading factor ``groups`` of the axis ``source`` to the front of ``target``."""
    if groups == 1:
        return array
    shape = list(array.shape)
    shape[source : source + 1] = [groups, shape[source] // groups]
    after = target if target < source else target + 1  # where the target stands once it is split
    order = [i for i in range(len(shape)) if i != source]
    order.insert(order.index(after), source)
    moved = lax.transpose(lax.reshape(array, shape), order)
    merged = list(array.shape)
    merged[source] //= groups
    merged[target] *= groups
    return lax.reshape(moved, merged)


def dilated(sizes: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """Return the extents after dilation−1 zeros are put between neighbours."""
    return [(n - 1) * d + 1 if n else 0 for n, d in zip(sizes, dilation)]


def extents(x: Any, w: Any, y: Any, numbers: Any, steps: Any) -> Any:
    """Return, per spatial axis, the dilated extents of x, w and y (y's dilation is the stride)."""
    pick = lambda array, spec: [array.shape[i] for i in spec[2:]]
    return zip(*(dilated(pick(a, s), d) for a, s, d in zip((x, w, y), numbers, steps)))


def convolve(
    x: Any, w: Any, *, dimension_numbers: Any, out_sharding: Any = None, **how: Any
) -> Any:
    """Convolve; on a CPU with the axes in the order that its fast kernels take.

    XLA reorders them by itself, but not inside a loop, where other orders run twenty times as long
    (jaxlib 0.10 to 0.12).

    Args:
        x: the input.
        w: the window.
        dimension_numbers: which axes are which.
        out_sharding: of the result, on a mesh with explicit axes.
        **how: of ``lax.conv_general_dilated``.
    """
    if jax.default_backend() != "cpu" or out_sharding is not None:
        return lax.conv_general_dilated(
            x, w, dimension_numbers=dimension_numbers, out_sharding=out_sharding, **how
        )
    of_x, of_w, of_y = dimension_numbers
    space = len(of_x) - 2
    last = (0, space + 1, *range(1, space + 1))  # batch, space, channels
    y = lax.conv_general_dilated(
        lax.transpose(x, (of_x[0], *of_x[2:], of_x[1])),
        lax.transpose(w, (*of_w[2:], of_w[1], of_w[0])),
        dimension_numbers=lax.ConvDimensionNumbers(
            last, (space + 1, space, *range(space)), last
        ),
        **how,
    )
    order = (of_y[0], *of_y[2:], of_y[1])
    return lax.transpose(y, [order.index(i) for i in range(len(order))])


def correlate_with_window(
    y_bar, w, x_t, *, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers,
    feature_group_count, batch_group_count, precision, preferred_element_type,
):
    """x̄ = ȳ, dilated by the stride, convolved with the reversed window.

    Derivation:
        One spatial axis; s: stride, l and r: dilations of x and w, p: padding before, K, N, M: the
        dilated extents of w, x, and of y dilated by s. Channels contract as in a matrix product.

            y[t] = Σ_{k,i : t·s + k·r = p + i·l} w[k] x[i]
            x̄[i] = Σ_{k,t : t·s + k·r = p + i·l} w[k] ȳ[t]

        With the reversed window, k·r = K−1 − k'·r, the condition reads i·l + k'·r = K−1−p + t·s:
        a convolution of ȳ dilated by s, padded with K−1−p before, at stride l, window dilation r.
        Its last window starts at N−1 and ends where the padded ȳ ends: the padding after is
        (N + K − 1) − M − (K−1−p).

        Features: z̄ w contracts the output features, so w's two feature axes change places. With
        groups, w = (group, out, in) contracts out: the group moves over to in. Batch groups: x's
        batch is (group, batch) and y's feature axis (group, out), so a feature-grouped convolution
        gives (group, in) as features; the group moves back to the batch axis.

    Numerics:
        accumulates in ``preferred_element_type`` at ``precision``, as the forward convolution does.
    """
    if y_bar.size == 0:
        return None
    x_spec, w_spec, y_spec = dimension_numbers
    groups = max(feature_group_count, batch_group_count)
    window = lax.rev(regroup(w, groups, w_spec[0], w_spec[1]), w_spec[2:])
    steps = (lhs_dilation, rhs_dilation, window_strides)
    pads = [
        (k - 1 - before, n - m + before)
        for (n, k, m), (before, _) in zip(extents(x_t, w, y_bar, dimension_numbers, steps), padding)
    ]
    x_bar = convolve(
        y_bar, lax.convert_element_type(window, y_bar.dtype),
        window_strides=lhs_dilation, padding=pads, lhs_dilation=window_strides,
        rhs_dilation=rhs_dilation, feature_group_count=groups, precision=precision,
        dimension_numbers=lax.ConvDimensionNumbers(y_spec, _swapped(w_spec), x_spec),
        preferred_element_type=preferred_element_type,
        out_sharding=layout(x_t) if batch_group_count == 1 else None,
    )
    return regroup(x_bar, batch_group_count, x_spec[1], x_spec[0])


def correlate_with_input(
    y_bar, x, w_t, *, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers,
    feature_group_count, batch_group_count, precision, preferred_element_type,
):
    """w̄ = the padded x, convolved with ȳ as a window.

    Derivation:
        In the notation of x̄:

            y[t] = Σ_{k,i : t·s + k·r = p + i·l} w[k] x[i]
            w̄[k] = Σ_{t,i : k·r + t·s = p + i·l} ȳ[t] x[i]

        is the same formula with w and y, r and s exchanged: a convolution of x (dilation l,
        padding p before) with the window ȳ dilated by s, at stride r. Its last window starts at
        K−1 and ends at K−1+M: the padding after is K − 1 + M − N − p.

        Features: the batch is contracted now, so batch and feature axes change places, in x as in
        y. Feature groups of w̄ sit in x's features, which are the batch now: they become batch
        groups, and batch groups become feature groups.
    """
    if y_bar.size == 0:
        return None
    x_spec, w_spec, y_spec = dimension_numbers
    steps = (lhs_dilation, rhs_dilation, window_strides)
    pads = [
        (before, k - 1 + m - n - before)
        for (n, k, m), (before, _) in zip(extents(x, w_t, y_bar, dimension_numbers, steps), padding)
    ]
    numbers = lax.ConvDimensionNumbers(_swapped(x_spec), _swapped(y_spec), _swapped(w_spec))
    return convolve(
        lax.convert_element_type(x, y_bar.dtype), y_bar,
        window_strides=rhs_dilation, padding=pads, lhs_dilation=lhs_dilation,
        rhs_dilation=window_strides, dimension_numbers=numbers,
        feature_group_count=batch_group_count, batch_group_count=feature_group_count,
        precision=precision, preferred_element_type=preferred_element_type,
        out_sharding=layout(w_t),
    )


def convolved_axes(
    x_t: Any, w_t: Any, y_t: Any, *, dimension_numbers: Any, feature_group_count: int,
    batch_group_count: int,
) -> Any:
    """Channels are contracted, and along space a piece needs as much as the window overlaps.

    With groups, the channels of input, window and output are divided by groups.
    """
    labels: list[list[Any]] = [[None] * len(v.shape) for v in (x_t, w_t, y_t)]
    x, w, y = labels
    of_x, of_w, of_y = dimension_numbers
    x[of_x[0]] = y[of_y[0]] = "batch"
    x[of_x[1]] = w[of_w[1]] = "in"
    w[of_w[0]] = y[of_y[1]] = "out"
    space = range(2, len(of_x))
    for i in space:
        x[of_x[i]] = y[of_y[i]] = i
    if feature_group_count > 1:
        x[of_x[1]], w[of_w[1]] = "out", None
    if batch_group_count > 1:
        x[of_x[0]], y[of_y[0]] = "out", None
    return relate([x, w], [y], summed=["in"], halo=space)


def _swapped(spec: tuple[int, ...]) -> tuple[int, ...]:
    return (spec[1], spec[0], *spec[2:])


def _conv(*arguments: Any, **parameters: Any) -> Any:
    return lambda x, w: lax.conv_general_dilated(x, w, *arguments, **parameters)


rule(
    lax.conv_general_dilated_p, "x, w -> y", linear="x; w",
    x=correlate_with_window, w=correlate_with_input, axes=convolved_axes,
    cases=[
        case(_conv((1,), "SAME"), real(2, 3, 5), real(4, 3, 3)),
        case(_conv((2,), [(2, 1)], (3,), (2,)), real(1, 2, 4), real(2, 2, 3)),
        case(_conv((2, 1), [(1, 0), (-1, 2)], (1, 2), (2, 1)), real(1, 1, 4, 3), real(2, 1, 2, 2)),
        case(_conv((3,), "VALID"), real(1, 1, 5), real(1, 1, 2), note="the stride skips elements"),
        case(_conv((1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")),
             real(2, 3, 3, 2), real(2, 3, 2, 3)),
        case(_conv((2,), "SAME", dimension_numbers=("HNC", "IHO", "CNH")),
             real(4, 2, 3), real(3, 3, 2)),
        case(_conv((1,), "SAME", feature_group_count=2), real(2, 4, 4), real(6, 2, 3)),
        case(_conv((1,), "SAME", feature_group_count=3, dimension_numbers=("NHC", "HIO", "NHC")),
             real(2, 4, 3), real(3, 1, 6), note="depthwise"),
        case(_conv((2,), [(1, 1)], batch_group_count=2), real(4, 3, 5), real(4, 3, 2)),
        case(_conv((1,), "SAME", batch_group_count=2, dimension_numbers=("CHN", "OIH", "CNH")),
             real(3, 4, 4), real(2, 3, 2)),
        case(_conv((1,), "SAME"), cplx(1, 2, 4), cplx(2, 2, 3)),
        case(_conv((1,), "SAME", preferred_element_type="float64"), real(1, 2, 4), real(2, 2, 3)),
        case(_conv((1,), "SAME", precision=lax.Precision.HIGHEST), real(1, 2, 4), real(2, 2, 3)),
        case(
            _conv((), []), real(3, 2), real(4, 2), batchable=False,
            note="no spatial axis: a matrix product; XLA:CPU miscompiles its batched gradient, "
            "ours and JAX's being the same graph",
        ),
        case(_conv((1,), "VALID"), real(1, 2, 2), real(2, 2, 4), note="the window fits nowhere"),
        case(_conv((1,), "SAME"), real(0, 2, 4), real(2, 2, 3)),
    ],
)
