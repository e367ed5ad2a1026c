"""Operations that move, repeat or leave out elements are 0/1 matrices; transposed, they give x̄.

Nothing is kept from the forward sweep. Where an element is used k times its cotangents are summed;
where it is left out its cotangent is zero. A change of dtype and a copy are linear as well: the
cotangent goes back through the same change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from functional_bp._jax import find_primitive
from functional_bp.engine.axes import merged, mixing, relate
from functional_bp.engine.improvements import improvement
from functional_bp.engine.rule import case, cplx, integer, linear, real, rule
from functional_bp.engine.sweeps import zeros
from functional_bp.vjps.elementwise import is_complex


def layout(x_t: Any, axes: Sequence[int | None] | None = None) -> NamedSharding | None:
    """``layout`` is the sharding that a cotangent of ``x_t`` has, its axes taken in the order
    ``axes``.

    ``None`` among ``axes`` stands for a new, unsharded axis. Only a mesh with explicit axes needs
    it; elsewhere the result is None and the compiler chooses.
    """
    sharding = x_t.sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return None
    if axes is None:
        return sharding
    spec = sharding.spec
    entries = [*spec, *[None] * (len(x_t.shape) - len(spec))]
    picked = [None if i is None else entries[i] for i in axes]
    return NamedSharding(
        sharding.mesh, PartitionSpec(*picked, unreduced=spec.unreduced, reduced=spec.reduced)
    )


def undivided(x: Any) -> bool:
    """Say whether no compiler will divide the axes of ``x`` over devices.

    Where one may, axes must not be made one: it could divide the one by the first of them alone.
    A mesh in ``x``'s type is manual, then; without one, ``in_shardings`` may still bring one.
    """
    kinds = jax.typeof(x).sharding.mesh.axis_types
    return all(kind == AxisType.Manual for kind in kinds) if kinds else jax.device_count() == 1


def spread(y_bar: Any, x_t: Any, axes: Sequence[int]) -> Any:
    """Repeat ``y_bar`` along ``axes``, which a reduction of ``x_t`` had removed."""
    kept = tuple(i for i in range(len(x_t.shape)) if i not in axes)
    return lax.broadcast_in_dim(y_bar, x_t.shape, kept, out_sharding=layout(x_t))


def unbroadcast_in_dim(y_bar, x_t, *, shape, broadcast_dimensions):
    """x̄ᵢ = Σ ȳ over the copies of xᵢ.

    Derivation:
        y[j] = x[j restricted to the broadcast dimensions, 0 where x has size 1]
        x̄[i] = Σ_j ȳ[j] ∂y[j]/∂x[i] = Σ of ȳ over new axes, and over axes stretched from size 1
    """
    stretched = [
        i for i, d in enumerate(broadcast_dimensions) if x_t.shape[i] == 1 and shape[d] != 1
    ]
    same = [i for i in range(len(x_t.shape)) if i not in stretched]
    axes = sorted(set(range(len(shape))) - {broadcast_dimensions[i] for i in same})
    summed = lax.reduce_sum(y_bar, axes, out_sharding=layout(x_t, same)) if axes else y_bar
    return lax.expand_dims(summed, stretched) if stretched else summed


def broadcast_axes(x_t, y_t, *, broadcast_dimensions):
    """New axes, and those stretched from size 1, are the output's alone."""
    x = [d if n == y_t.shape[d] else None for n, d in zip(x_t.shape, broadcast_dimensions)]
    return relate([x], [range(len(y_t.shape))])


linear(
    lax.broadcast_in_dim_p, "x -> y", x=unbroadcast_in_dim, axes=broadcast_axes,
    cases=[
        case(lambda x: lax.broadcast_in_dim(x, (2, 3, 4), (1,)), real(3)),
        case(lambda x: lax.broadcast_in_dim(x, (2, 3, 4), (0, 2)), real(1, 4)),
        case(lambda x: lax.broadcast_in_dim(x, (3, 1, 2), (0, 1)), real(1, 1), note="1 stays 1"),
        case(lambda x: lax.broadcast_in_dim(x, (2, 3), ()), cplx()),
        case(lambda x: lax.broadcast_in_dim(x, (0, 3), (0, 1)), real(1, 3), note="no copies"),
    ],
)


def slice_of_concatenated(y_bar, xs_t, index, *, dimension):
    """x̄ₖ = the part of ȳ where xₖ stands.

    Derivation:
        y[.., oₖ + i, ..] = xₖ[.., i, ..]  with  oₖ = Σ_{l<k} size of x_l
        ⇒   x̄ₖ[.., i, ..] = ȳ[.., oₖ + i, ..]
    """
    start = sum(x.shape[dimension] for x in xs_t[:index])
    return lax.slice_in_dim(y_bar, start, start + xs_t[index].shape[dimension], axis=dimension)


def is_most(part: int, whole: int) -> bool:
    """Say whether a part of an axis is that axis still, but for its ends."""
    return 2 * part > whole


def concatenated_axes(xs_t, y_t, *, dimension):
    """The longest part, if it is most of the whole, is the same dimension with something added."""
    whole = y_t.shape[dimension]

    def labels(x):
        along = dimension if is_most(x.shape[dimension], whole) else None
        return [along if i == dimension else i for i in range(len(x.shape))]

    return relate(map(labels, xs_t), [range(len(y_t.shape))], halo=[dimension])


rule(
    lax.concatenate_p, "*xs -> y", linear="xs", xs=slice_of_concatenated, axes=concatenated_axes,
    cases=[
        case(lambda a, b, c: lax.concatenate([a, b, c], 1), real(2, 1), real(2, 3), real(2, 0)),
        case(lambda a, b: lax.concatenate([a, b, a], 0), cplx(2), cplx(1), note="a twice"),
    ],
)


def unpad(y_bar, x_t, *, padding_config):
    """x̄ = ȳ without the padding.

    Derivation:
        y[lo + i(1 + interior)] = x[i]  where that index is in y  ⇒  x̄[i] = ȳ[lo + i(1 + interior)],
        and 0 for elements that a negative lo or hi cut off: pad ȳ there with zeros first.
    """
    removed = [(max(-lo, 0), max(-hi, 0), 0) for lo, hi, _ in padding_config]
    if any(lo or hi for lo, hi, _ in removed):
        y_bar = lax.pad(y_bar, np.zeros((), y_bar.dtype), removed)
    starts = [max(lo, 0) for lo, _, _ in padding_config]
    limits = [n - max(hi, 0) for n, (_, hi, _) in zip(y_bar.shape, padding_config)]
    return lax.slice(y_bar, starts, limits, [interior + 1 for *_, interior in padding_config])


def sum_over_padding(y_bar, x_t, *, padding_config):
    """p̄ = Σ ȳ − Σ x̄: every element of y that is not one of x is the padding value p."""
    everything = lambda array: lax.reduce_sum(array, tuple(range(array.ndim)))
    x_bar = unpad(y_bar, x_t, padding_config=padding_config)
    return lax.sub(everything(y_bar), everything(x_bar))


def padded_axes(x_t, y_t, *, padding_config):
    """A padded axis is the same dimension, if most of it is not padding."""
    labels, halo = [], []
    for i, (n, m, config) in enumerate(zip(x_t.shape, y_t.shape, padding_config)):
        labels.append(i if not config[2] and is_most(min(n, m), max(n, m)) else None)
        halo += [i] if any(config) else []
    return relate([labels, []], [labels], halo=halo)


rule(
    lax.pad_p, "x, p -> y", linear="x, p", x=unpad, p=sum_over_padding, axes=padded_axes,
    cases=[
        case(lambda x: lax.pad(x, np.zeros((), x.dtype), ((1, 2, 0), (0, 1, 0), (0, 0, 0))),
             real(2, 3, 2)),
        case(lambda x: lax.pad(x, np.ones((), x.dtype), ((1, 2, 1), (-1, 1, 2))), real(3, 3)),
        case(lambda x: lax.pad(x, np.zeros((), x.dtype), ((-2, 1, 1),)), real(4)),
        case(lambda x: lax.pad(x, np.zeros((), x.dtype), ((2, -3, 0),)), real(2), note="x cut off"),
        case(lambda x: lax.pad(x, np.ones((), x.dtype), ((1, 2, 3),)), real(0)),
        case(lambda p: lax.pad(np.zeros((2, 2), p.dtype), p, ((1, 0, 0), (2, -1, 1))),
             real(), reference=lambda p: np.array([[1, 1, 1, 1], [1, 1, 0, 1], [1, 1, 0, 1]]) * p,
             note="padding value alone: JAX raises TypeError"),
    ],
)
improvement(
    "padding value alone", lambda p: lax.pad(np.zeros((2, 2)), p, ((1, 0, 0), (2, -1, 1))),
    at=(2.0,), true=10.0, jax="raises TypeError",
    source="counting: 3 × 4 places, 2 of them hold x (a column of x is cut off)",
)


def reshape_back(y_bar, x_t, *, dimensions):
    """x̄ = reshape(ȳ, shape of x): the elements and their order are the same."""
    if dimensions is None:
        return lax.reshape(y_bar, x_t.shape, out_sharding=layout(x_t))
    shape = [x_t.shape[d] for d in dimensions]
    permuted = lax.reshape(y_bar, shape, out_sharding=layout(x_t, dimensions))
    return lax.transpose(permuted, np.argsort(dimensions))


def reshaped_axes(x_t, y_t, *, dimensions):
    """Axes that are merged or split go on with their major part."""
    order = range(len(x_t.shape)) if dimensions is None else dimensions
    permuted, y = merged([x_t.shape[d] for d in order], y_t.shape)
    x = [permuted[list(order).index(i)] for i in range(len(x_t.shape))]
    return relate([x], [y])


linear(
    lax.reshape_p, "x -> y", x=reshape_back, axes=reshaped_axes,
    cases=[
        case(lambda x: lax.reshape(x, (3, 4)), real(2, 6)),
        case(lambda x: lax.reshape(x, (6,), dimensions=(1, 0)), real(2, 3)),
        case(lambda x: lax.reshape(x, (4, 3), dimensions=(2, 0, 1)), cplx(2, 3, 2)),
        case(lambda x: lax.reshape(x, ()), real(1, 1)),
        case(lambda x: lax.reshape(x, (0, 5)), real(3, 0)),
    ],
)
linear(
    lax.rev_p, "x -> y", x=lambda y_bar, *, dimensions: lax.rev(y_bar, dimensions),
    axes=mixing("dimensions"),
    why="y[i] = x[n−1−i]  ⇒  x̄[i] = ȳ[n−1−i]: a reversal is its own transpose",
    cases=[
        case(lambda x: lax.rev(x, (0, 2)), real(2, 3, 2)),
        case(lambda x: lax.rev(x, (0,)), cplx(3)),
    ],
)


def embed_slice(y_bar, x_t, *, start_indices, limit_indices, strides):
    """x̄ = ȳ at the places taken, zero elsewhere.

    Derivation:
        y[i] = x[start + i·stride]  ⇒  x̄[start + i·stride] = ȳ[i]:
        ȳ padded with `start` zeros before, stride − 1 between, and the rest of n after.
    """
    strides = strides or (1,) * len(start_indices)
    covered = [(m - 1) * s + 1 if m else 0 for m, s in zip(y_bar.shape, strides)]
    after = [n - start - c for n, start, c in zip(x_t.shape, start_indices, covered)]
    config = [(start, end, s - 1) for start, end, s in zip(start_indices, after, strides)]
    return lax.pad(y_bar, np.zeros((), y_bar.dtype), config)


def sliced_axes(x_t, y_t, *, strides):
    """What a slice leaves of an axis is the same dimension, if it is most of it."""
    steps = strides or (1,) * len(x_t.shape)
    sizes = list(zip(x_t.shape, y_t.shape, steps))
    labels = [i if s == 1 and is_most(m, n) else None for i, (n, m, s) in enumerate(sizes)]
    return relate([labels], [labels], halo=[i for i, (n, m, _) in enumerate(sizes) if n != m])


linear(
    lax.slice_p, "x -> y", x=embed_slice, axes=sliced_axes,
    cases=[
        case(lambda x: lax.slice(x, (1, 0, 0), (3, 2, 2)), real(4, 3, 2)),
        case(lambda x: lax.slice(x, (1, 0), (4, 5), (2, 3)), real(5, 5)),
        case(lambda x: lax.slice(x, (2,), (2,), (3,)), real(4), note="an empty slice"),
        case(lambda x: x[1:2], cplx(3)),
    ],
)


def join_parts(ys_bar, ys_t, *, axis):
    """x̄ = the ȳₖ one after another along ``axis``: split is the transpose of concatenate."""
    if (alone := embed_only_part(ys_bar, [y.shape[axis] for y in ys_t], axis)) is not None:
        return alone
    return lax.concatenate([zeros(y) if b is None else b for b, y in zip(ys_bar, ys_t)], axis)


def embed_only_part(bars, sizes, axis):
    """Put the part that has a cotangent, if it is the only one, among zeros along ``axis``."""
    present = [k for k, bar in enumerate(bars) if bar is not None]
    if len(present) > 1:
        return None
    (k,) = present
    config = [(0, 0, 0)] * bars[k].ndim
    config[axis] = (sum(sizes[:k]), sum(sizes[k + 1 :]), 0)
    return lax.pad(bars[k], np.zeros((), bars[k].dtype), config)


def split_axes(x_t, ys_t, *, axis):
    """A part that is most of the whole is the same dimension still."""

    def labels(y):
        along = axis if is_most(y.shape[axis], x_t.shape[axis]) else None
        return [along if i == axis else i for i in range(len(y.shape))]

    return relate([range(len(x_t.shape))], map(labels, ys_t), halo=[axis])


linear(
    find_primitive("lax.lax.split_p"), "x -> *ys", x=join_parts, axes=split_axes,
    cases=[
        case(lambda x: lax.split(x, (1, 0, 3), 1), real(2, 4)),
        case(lambda x: lax.split(x, (2, 1, 2), 0)[1], real(5, 2), note="one part used"),
        case(lambda x: lax.split(x, (2, 1, 2), 0)[::2], cplx(5), note="one part not used"),
    ],
)
linear(
    lax.squeeze_p, "x -> y", x=lambda y_bar, x_t, *, dimensions: spread(y_bar, x_t, dimensions),
    axes=lambda x_t, y_t: relate(*([labels] for labels in merged(x_t.shape, y_t.shape))),
    why="axes of size 1 are put back: x̄ has the elements of ȳ",
    cases=[
        case(lambda x: lax.squeeze(x, (0, 2)), real(1, 3, 1)),
        case(lambda x: lax.squeeze(x, (-1,)), cplx(2, 1)),
        case(lambda x: lax.squeeze(x, (1,)), real(0, 1)),
    ],
)
def with_new_axis(axis: int, rank: int) -> list[int | None]:
    """Label the axes of an array among which a new one stands at ``axis``."""
    return [*range(axis), None, *range(axis, rank)]


def stacked_axes(xs_t, y_t, *, axis):
    """The axis along which arrays are stacked is new."""
    rank = len(y_t.shape) - 1
    return relate([range(rank) for _ in xs_t], [with_new_axis(axis, rank)])


def unstacked_axes(x_t, ys_t, *, axis):
    """The axis along which an array is taken apart is gone."""
    rank = len(x_t.shape) - 1
    return relate([with_new_axis(axis, rank)], [range(rank) for _ in ys_t])


rule(
    find_primitive("lax.lax.stack_p"), "*xs -> y", linear="xs", axes=stacked_axes,
    xs=lambda y_bar, index, *, axis: lax.index_in_dim(y_bar, index, axis, keepdims=False),
    why="y[.., k, ..] = xₖ  ⇒  x̄ₖ = ȳ[.., k, ..]",
    cases=[
        case(lambda a, b: lax.stack([a, b, a], 1), real(2, 3), real(2, 3)),
        case(lambda a, b: lax.stack([a, b], 0), cplx(), cplx()),
    ],
)


def stack_parts(ys_bar, ys_t, *, axis):
    """x̄ = the ȳₖ stacked along ``axis``: y_k = x[.., k, ..]  ⇒  x̄[.., k, ..] = ȳₖ."""
    rows = [None if bar is None else lax.expand_dims(bar, (axis,)) for bar in ys_bar]
    if (alone := embed_only_part(rows, [1] * len(rows), axis)) is not None:
        return alone
    return lax.stack([zeros(y) if b is None else b for b, y in zip(ys_bar, ys_t)], axis)


linear(
    find_primitive("lax.lax.unstack_p"), "x -> *ys", x=stack_parts, axes=unstacked_axes,
    cases=[
        case(lambda x: lax.unstack(x, 1), real(2, 3)),
        case(lambda x: lax.unstack(x, 0)[1], real(3, 2), note="one part used"),
        case(lambda x: lax.unstack(x, 0)[1:], cplx(3), note="one part not used"),
    ],
)


def sum_over_tiles(y_bar, x_t, *, reps):
    """x̄ = Σ of the r copies in ȳ.

    Derivation:
        y[t·n + i] = x[i], t = 0 … r−1   ⇒   x̄[i] = Σ_t ȳ[t·n + i]:
        reshape r·n to (r, n) on every repeated axis, then sum over the r.
    """
    shape: list[int] = []
    order: list[int | None] = []
    copies: list[int] = []
    for i, (n, r) in enumerate(zip(x_t.shape, reps)):
        if r != 1:
            copies.append(len(shape))
            shape.append(r)
            order.append(None)
        shape.append(n)
        order.append(i)
    return lax.reduce_sum(lax.reshape(y_bar, shape, out_sharding=layout(x_t, order)), copies)


def tiled_axes(x_t, y_t):
    """A repeated axis is another one in the output."""
    labels = [i if n == m else None for i, (n, m) in enumerate(zip(x_t.shape, y_t.shape))]
    return relate([labels], [labels])


linear(
    find_primitive("lax.lax.tile_p"), "x -> y", x=sum_over_tiles, axes=tiled_axes,
    cases=[
        case(lambda x: lax.tile(x, (2, 1, 3)), real(2, 3, 1)),
        case(lambda x: lax.tile(x, (1, 1)), cplx(2, 2)),
        case(lambda x: lax.tile(x, (2, 0)), real(1, 2), note="no copies"),
    ],
)
linear(
    lax.transpose_p, "x -> y",
    x=lambda y_bar, *, permutation: lax.transpose(y_bar, np.argsort(permutation)),
    axes=lambda x_t, *, permutation: relate([range(len(x_t.shape))], [permutation]),
    why="y's axis k is x's axis permutation[k]: the inverse permutation puts ȳ's axes back",
    cases=[
        case(lambda x: lax.transpose(x, (2, 0, 1)), real(2, 3, 4)),
        case(lambda x: lax.transpose(x, (1, 0)), cplx(0, 2)),
    ],
)


# Changes of dtype and copies.


def pull_convert(y_bar: Any, x_t: Any) -> Any:
    """x̄ = ȳ in x's dtype; its real part where x is real and y complex.

    Derivation:

        a conversion is linear up to rounding, and rounding is passed straight through;
        y = x + 0 i:  Re(ȳ ẏ) = Re(ȳ) ẋ;  y = Re x:  ȳ Re ẋ = Re((ȳ + 0 i) ẋ)

    Residuals: none; x's dtype is known beforehand.
    """
    if is_complex(y_bar) and not is_complex(x_t):
        y_bar = lax.real(y_bar)
    return lax.convert_element_type(y_bar, x_t.dtype)


linear(lax.convert_element_type_p, "x -> y", x=pull_convert,
     cases=[case(lambda x: lax.convert_element_type(x, jnp.float32), real(3)),
            case(lambda x: lax.convert_element_type(x, jnp.bfloat16), real(3), second_order=False,
                 note="rounded to half precision on the way"),
            case(lambda x: lax.convert_element_type(x, jnp.complex64), real(3)),
            case(lambda x: lax.convert_element_type(lax.real(x), x.dtype), cplx(3)),
            case(lambda x: x * lax.convert_element_type(x, jnp.int32).astype(x.dtype),
                 real(values=[1.3, -2.2]), note="through an integer: nothing flows"),
            case(lambda m, x: lax.convert_element_type(m, x.dtype) * x, integer(3), real(3))])
linear(lax.reduce_precision_p, "x -> y",
     x=lambda y_bar, *, exponent_bits, mantissa_bits: lax.reduce_precision(
         y_bar, exponent_bits, mantissa_bits),
     why="rounding is passed straight through, and the cotangent is rounded to the same bits",
     cases=[case(lambda x: lax.reduce_precision(x, 8, 7), real(3), second_order=False,
                 note="the reverse sweep rounds too")])
linear(lax.copy_p, "x -> y", x=lambda y_bar: y_bar,
     why="y = x",
     cases=[case(lambda x: lax.copy_p.bind(x), real(3)), case(lambda x: jnp.array(x), cplx(3))])
rule(lax.stage_p, "x -> y", x=lambda y_bar: y_bar,
     why="y = x, moved to the device",
     cases=[case(lax.stage, real(3))])
