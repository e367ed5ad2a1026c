"""Collectives are sums, maxima, gathers and exchanges over the devices of a mesh axis.

Inside ``shard_map`` a collective is a linear map on the stacked vector (x¹, …, xⁿ) of all devices'
blocks; its VJP is the transposed map, again a collective. Two typings of the same sum exist:

- *varying types* (``check_vma=True``): a value known to be equal on all devices is one value, and
  its cotangent is one value. ``psum_invariant`` (n values to one) and ``pvary`` (one value to n)
  are each other's transpose.
- *untyped* (``check_vma=False``, ``vmap`` with an axis name): every device holds its own copy with
  its own cotangent, of which the true one is the sum. ``psum`` is then Σ followed by a copy to
  all, a symmetric matrix of ones, and so its own transpose.

Two further types put a sum off. An *unreduced* value is a sum that has not been carried out: device
d holds the summand xᵈ. A *reduced* value is one value on all devices whose cotangent is left
unreduced. The two types are each other's cotangents, so a sum over devices can wait until it is
wanted, or become a reduce-scatter. The rules between them are linear and keep nothing; JAX has no
``vmap`` of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from functional_bp import _jax
from functional_bp.engine.axes import relate
from functional_bp.engine.improvements import improvement
from functional_bp.engine.rule import case, linear, real, rule
from functional_bp.vjps.shapes import with_new_axis
from functional_bp.vjps.sharded import REPLICATED, blockwise, mesh_size


def blocks_along(axis: str) -> Any:
    """A collective that joins or divides blocks along an axis leaves the others as they are."""

    def axes(x_t: Any, y_t: Any, **params: Any) -> Any:
        a, ranks = params[axis], (len(x_t.shape), len(y_t.shape))
        if ranks[0] == ranks[1]:
            labels = [None if i == a else i for i in range(ranks[0])]
            return relate([labels], [labels])
        x, y = (with_new_axis(a, n - 1) if n == max(ranks) else range(n) for n in ranks)
        return relate([x], [y])

    return axes


def exchanged_axes(x_t: Any, *, split_axis: int, concat_axis: int) -> Any:
    """The axis that is divided goes, and the one that is put together comes."""
    rest = len(x_t.shape) - 1
    return relate([with_new_axis(split_axis, rest)], [with_new_axis(concat_axis, rest)])


def add_up(x: Any, axes: Sequence[Any], groups: Any = None) -> Any:
    """Sum ``x`` over the named mesh axes; where there is none, return ``x`` itself."""
    return lax.psum(x, tuple(axes), axis_index_groups=groups) if axes else x


def split_axes(axes: Sequence[Any]) -> tuple[tuple[Any, ...], tuple[int, ...]]:
    """Split a collective's ``axes`` into mesh axes (names) and array axes (integers)."""
    named = tuple(axis for axis in axes if not isinstance(axis, int))
    return named, tuple(axis for axis in axes if isinstance(axis, int))


def copy_along(y: Any, x_t: Any, positions: Sequence[int]) -> Any:
    """Copy ``y`` along the array axes that a collective reduced."""
    if not positions:
        return y
    gone = {p % len(x_t.shape) for p in positions}
    stays = [i for i in range(len(x_t.shape)) if i not in gone]
    return lax.broadcast_in_dim(y, x_t.shape, stays)


def psum_x(y_bar, x_t, *, axes, axis_index_groups=None):
    """x̄ᵈ = Σ ȳᵉ over the devices e of d's group.

    Derivation, untyped: every device keeps a copy of the sum,

        yᵉ = Σ_d xᵈ   ⟹   x̄ᵈ = Σ_e ȳᵉ ∂yᵉ/∂xᵈ = Σ_e ȳᵉ.

    Array axes among ``axes`` are summed on each device alone: there x̄ is a copy of ȳ.
    """
    named, positions = split_axes(axes)
    return copy_along(add_up(y_bar, named, axis_index_groups), x_t, positions)


def extremum_x(y_bar, x, y, x_t, y_t, *, axes, axis_index_groups=None):
    """x̄ᵈ = [xᵈ = y] / m · ȳ, with m the number of entries that attain the extremum.

    Derivation:

        y = max_d xᵈ   ⟹   ∂y/∂xᵈ = 1 where xᵈ alone attains y, 0 where xᵈ < y.

    With varying types ȳ is one value; untyped, every device holds a copy of y, and the cotangents
    of the copies are summed first.

    Kinks: m devices (and array entries, where array axes are reduced too) that attain the extremum
    get ȳ/m each, as ``reduce_max`` shares it. JAX has no rule.
    """
    named, positions = split_axes(axes)
    typed = _jax.varying_axes(x_t) - _jax.varying_axes(y_t)
    total = y_bar if typed else add_up(y_bar, named, axis_index_groups)
    attains = lax.eq(x, copy_along(y, x_t, positions))
    ones = lax.convert_element_type(attains, x.dtype)
    here = lax.reduce_sum(ones, [p % x.ndim for p in positions]) if positions else ones
    share = lax.div(total, add_up(here, named, axis_index_groups))
    return lax.mul(ones, copy_along(share, x_t, positions))


def ppermute_x(y_bar, *, axis_name, perm):
    """x̄ᵈ = ȳ of the device that d sends to; zero where d sends to none.

    Derivation: y = P x with P a partial permutation of the devices, so x̄ = Pᵀ ȳ: the arrows turn.
    """
    return lax.ppermute(y_bar, axis_name, [(target, source) for source, target in perm])


def keep_at(y_bar: Any, axis_name: Any, source: Any) -> Any:
    """x̄ˢ = Σ_d ȳᵈ on the source device s, zero on the others.

    Derivation: yᵈ = xˢ for every d, so only xˢ has an influence, and it has n of them.
    """
    total = add_up(y_bar, axis_name if isinstance(axis_name, tuple) else (axis_name,))
    at_source = lax.eq(lax.axis_index(axis_name), jnp.asarray(source, jnp.int32))
    return lax.mul(y_bar * 0 + total, lax.convert_element_type(at_source, y_bar.dtype))


def all_gather_x(y_bar, *, all_gather_dimension, axis_name, axis_index_groups=None, tiled):
    """x̄ᵈ = Σ_e (block d of ȳᵉ): a reduce-scatter.

    Derivation: every device e keeps all blocks, yᵉ = (x¹, …, xⁿ); block d of each copy is xᵈ.
    Reduced, y is one value whose cotangent is the sum of the summands ȳᵉ: the same.
    """
    return lax.psum_scatter(
        y_bar, axis_name, scatter_dimension=all_gather_dimension,
        axis_index_groups=axis_index_groups, tiled=tiled,
    )


def all_gather_invariant_x(y_bar, *, all_gather_dimension, axis_name, axis_size, tiled):
    """x̄ᵈ = block d of ȳ, without communication: the gathered value is one, so ȳ is one.

    Derivation: y = (x¹, …, xⁿ) as a single value of invariant type; its transpose cuts it again.
    """
    width = y_bar.shape[all_gather_dimension] // axis_size
    start = lax.axis_index(axis_name) * width
    block = lax.dynamic_slice_in_dim(y_bar, start, width, all_gather_dimension)
    return block if tiled else lax.squeeze(block, [all_gather_dimension])


def reduce_scatter_x(y_bar, *, scatter_dimension, axis_name, axis_index_groups=None, tiled):
    """x̄ᵉ = (ȳ¹, …, ȳⁿ) on every device e: an all-gather.

    Derivation: yᵈ = Σ_e (block d of xᵉ), so block d of every x̄ᵉ is ȳᵈ.
    """
    return lax.all_gather(
        y_bar, axis_name, axis=scatter_dimension, axis_index_groups=axis_index_groups, tiled=tiled
    )


def all_to_all_x(y_bar, x_t, *, axis_name, split_axis, concat_axis, axis_index_groups=None, tiled):
    """x̄ = the exchange with the two axes swapped.

    Derivation: block e of xᵈ becomes block d of yᵉ. That is a permutation of (device, block)
    pairs; its transpose sends block d of ȳᵉ back to block e of x̄ᵈ. On one device alone, an axis
    of length 1 changes its place, and that by the reshape.
    """
    x_bar = lax.all_to_all(
        y_bar, axis_name, split_axis=concat_axis, concat_axis=split_axis,
        axis_index_groups=axis_index_groups, tiled=tiled,
    )
    return x_bar if x_bar.shape == x_t.shape else lax.reshape(x_bar, x_t.shape)


def received_at(offsets: Any, axis_name: Any) -> Any:
    """The k-th entry of the result is what the k-th device holds for us: offsets as the other side
    sees them.
    """
    return lax.all_to_all(offsets, axis_name, 0, 0, tiled=True)


def ragged_operand(
    y_bar, operand_t, input_offsets, send_sizes, output_offsets, recv_sizes,
    *, axis_name, axis_index_groups=None,
):
    """operand-bar = the exchange run backwards: what was received is sent to where it came from.

    Derivation: rows input_offsets[e] … + send_sizes[e] of this device's operand become rows
    output_offsets[e] … of device e's output. A cotangent row takes the same way back, so offsets
    and sizes swap roles, each as the other side knows it. Rows that were not sent get zero.
    """
    nothing = lax.full(operand_t.shape, 0, y_bar.dtype)
    return lax.ragged_all_to_all(
        y_bar, nothing, received_at(output_offsets, axis_name), recv_sizes,
        received_at(input_offsets, axis_name), send_sizes,
        axis_name=axis_name, axis_index_groups=axis_index_groups,
    )


def ragged_output(y_bar, output_offsets, recv_sizes, *, axis_name):
    """output-bar = ȳ where no received row has overwritten the output, else zero.

    Derivation: y is the given output with the received rows written over it. The running sum of
    +1 at each received start and −1 at each end counts how often a row was written.
    """
    starts = received_at(output_offsets, axis_name)
    edges = jnp.zeros(y_bar.shape[0] + 1, jnp.int32).at[starts].add(1)
    written = lax.cumsum(edges.at[starts + recv_sizes].add(-1))[:-1]
    kept = lax.convert_element_type(lax.eq(written, lax.full_like(written, 0)), y_bar.dtype)
    return lax.mul(y_bar, lax.broadcast_in_dim(kept, y_bar.shape, (0,)))


def _psum(x):
    return jnp.sin(lax.psum(jnp.cos(x), "i"))


def _vary(x):
    return x * jnp.sin(lax.pcast(lax.psum(x, "i"), "i", to="varying"))


def _turn(x):
    n = lax.axis_size("i")
    return jnp.sin(lax.ppermute(x * x, "i", [(k, (k + 1) % n) for k in range(n)]))


def _to_first(x):
    return lax.ppermute(jnp.sin(x), "i", [(lax.axis_size("i") - 1, 0)])


def _gather(**options):
    return lambda x: jnp.sin(lax.all_gather(x * x, "i", **options))


def _scatter(**options):
    def of_block(x):
        full = jnp.concatenate([x * x] * lax.axis_size("i"))
        return jnp.sin(lax.psum_scatter(full, "i", tiled=True, **options))

    return of_block


def _scatter_rows(x):
    rows = jnp.stack([x * (k + 1) for k in range(lax.axis_size("i"))])
    return jnp.sin(lax.psum_scatter(rows, "i"))


def _exchange(x):
    return jnp.sin(lax.all_to_all(x * x, "i", split_axis=1, concat_axis=0, tiled=True))


def _exchange_blocks(x):
    blocks = x.reshape(x.shape[0], lax.axis_size("i"), -1)
    return jnp.sin(lax.all_to_all(blocks, "i", split_axis=1, concat_axis=2))


def _times_extremum(collective):
    return lambda x: jnp.sin(collective(x, "i")) * x


def _times_whole_extremum(extremum):
    """The same function works on the whole array, in as many blocks as the mesh has devices."""

    def of_whole(x):
        blocks = x.reshape(mesh_size(), -1, *x.shape[1:])
        return (jnp.sin(extremum(blocks, 0))[None] * blocks).reshape(x.shape)

    return of_whole


linear(lax.psum_p, "x -> y", x=psum_x, cases=[
    case(blockwise(_psum, check_vma=False), real(4, 3)),
    case(blockwise(lambda x: lax.psum(x * x, "i") * x, check_vma=False), real(4)),
    case(blockwise(lambda x: lax.psum(x * x, (0, "i")) * x, check_vma=False), real(4, 3),
         note="an array axis and a mesh axis"),
])

linear(_jax.find_primitive("lax.parallel.psum_invariant_p"), "x -> y",
     x=lambda y_bar, *, axes: lax.pcast(y_bar, tuple(axes), to="varying"),
     why="y = Σ_d xᵈ is one value, so x̄ᵈ = ȳ on every device d: a copy, no communication.",
     cases=[case(blockwise(lambda x: _psum(x) * x), real(4, 3)),
            case(blockwise(_psum, out=REPLICATED), real(4))])

linear(_jax.find_primitive("core.pvary_p"), "x -> y",
     x=lambda y_bar, *, axes: lax.psum(y_bar, tuple(axes)),
     why="yᵈ = x on every device d, so x̄ = Σ_d ȳᵈ.",
     cases=[case(blockwise(_vary), real(4, 3))])

for _primitive, _collective, _extremum in (
    (lax.pmax_p, lax.pmax, jnp.max),
    (lax.pmin_p, lax.pmin, jnp.min),
):
    rule(_primitive, "x -> y", x=extremum_x, kinks="Devices in a tie share ȳ evenly.", cases=[
        case(blockwise(_times_extremum(_collective), check_vma=checked),
             real(4, 3) if tie is None else real(values=tie),
             reference=_times_whole_extremum(_extremum), second_order=tie is None)
        for checked in (True, False) for tie in (None, [[1.0, 2.0]] * 4)
    ])

for _name, _collective, _extremum, _true in (
    ("max", lax.pmax, jnp.max, [[0.0, 10.0], [6.0, 0.0]]),
    ("min", lax.pmin, jnp.min, [[2.0, 0.0], [0.0, -4.0]]),
):
    improvement(
        f"p{_name}",
        blockwise(lambda x, p=_collective, e=_extremum: p(e(x, 0), "i") ** 2, out=REPLICATED),
        at=([[1.0, 5.0], [3.0, -2.0]],), true=_true,
        jax=f"raises NotImplementedError: Differentiation rule for 'p{_name}' not implemented",
        source=f"y = ({_name} over a column)²: 2 · {_name} at the entry that attains it, "
        "0 elsewhere",
    )

linear(lax.ppermute_p, "x -> y", x=ppermute_x, cases=[
    case(blockwise(_turn), real(4, 3)),
    case(blockwise(_turn, check_vma=False), real(4)),
    case(blockwise(_to_first), real(4, 3), note="a partial permutation"),
])

linear(_jax.find_primitive("lax.parallel.pbroadcast_p"), "x -> y",
       x=lambda y_bar, *, axis_name, source: keep_at(y_bar, axis_name, source),
       why=keep_at.__doc__ or "")
rule(_jax.find_primitive("lax.parallel.pbroadcast_dynamic_p"), "x, source -> y",
     x=lambda y_bar, source, *, axis_name: keep_at(y_bar, axis_name, source),
     why=keep_at.__doc__ or "")

GATHERED, SCATTERED = blocks_along("all_gather_dimension"), blocks_along("scatter_dimension")

linear(lax.all_gather_p, "x -> y", x=all_gather_x, axes=GATHERED, cases=[
    case(blockwise(_gather(tiled=True)), real(4, 3)),
    case(blockwise(_gather(axis=1)), real(4, 3)),
    case(blockwise(_gather(axis=1, tiled=True), check_vma=False), real(4, 3)),
])

linear(_jax.find_primitive("lax.parallel.all_gather_invariant_p"), "x -> y",
     x=all_gather_invariant_x, axes=GATHERED, cases=[
    case(blockwise(_gather(to="invarying", tiled=True), out=REPLICATED), real(4, 3)),
    case(blockwise(_gather(to="invarying", axis=1), out=REPLICATED), real(4, 3)),
])

linear(_jax.find_primitive("lax.parallel.reduce_scatter_p"), "x -> y", x=reduce_scatter_x,
       axes=SCATTERED, cases=[
    case(blockwise(_scatter()), real(4, 3)),
    case(blockwise(_scatter(), check_vma=False), real(4, 3)),
    case(blockwise(_scatter_rows), real(4, 3), batchable=False,
         note="not tiled, where JAX's vmap loses track of the batch axis"),
])

linear(lax.all_to_all_p, "x -> y", x=all_to_all_x, axes=exchanged_axes, cases=[
    case(blockwise(_exchange), real(4, 2)),
    case(blockwise(_exchange, check_vma=False), real(4, 2)),
    case(blockwise(_exchange_blocks), real(4, 2), note="not tiled"),
])

rule(lax.ragged_all_to_all_p,
     "operand, output, input_offsets, send_sizes, output_offsets, recv_sizes -> y",
     operand=ragged_operand, output=ragged_output)


# Collectives between the "unreduced" and "reduced" types of a value inside ``shard_map``.


def _postponed_sum(x: Any) -> Any:
    return jnp.sin(lax.psum(lax.pcast(x * x, "i", to="unreduced"), "i"))


def _postponed_scatter(x: Any) -> Any:
    full = lax.pcast(jnp.concatenate([x * x] * lax.axis_size("i")), "i", to="unreduced")
    return jnp.sin(lax.psum_scatter(full, "i", tiled=True))


def _gather_reduced(x: Any) -> Any:
    whole = lax.all_gather(x * x, "i", tiled=True, to="reduced")
    return jnp.sin(lax.pcast(whole, "i", to="varying"))


def _as_reduced(x: Any) -> Any:
    total = lax.pcast(lax.psum(x * x, "i"), "i", to="reduced")
    return jnp.sin(lax.pcast(total, "i", to="varying")) * x


linear(_jax.find_primitive("lax.parallel.unreduced_psum_p"), "x -> y",
       x=lambda y_bar, *, axes: lax.pcast(y_bar, tuple(axes), to="reduced"),
       why="y = Σ_d xᵈ is one value; so is the cotangent ȳ of every summand.",
       cases=[case(blockwise(_postponed_sum, out=REPLICATED), real(4, 3),
                   batchable=False)])

linear(_jax.find_primitive("lax.parallel.preduced_p"), "x -> y",
       x=lambda y_bar, *, axes: lax.psum(y_bar, tuple(axes)),
       why="y = x, with a cotangent in summands: x̄ = Σ_d ȳᵈ.",
       cases=[case(blockwise(_as_reduced), real(4, 3), batchable=False)])

linear(_jax.find_primitive("lax.parallel.vary_unreduced_cast_p"), "x -> y",
       x=lambda y_bar, *, axes: lax.pcast(y_bar, tuple(axes), to="varying"),
       why="xᵈ is read as a summand of y = Σ_d xᵈ, so x̄ᵈ = ȳ.",
       cases=[case(blockwise(_postponed_scatter), real(4, 3), batchable=False)])

linear(_jax.find_primitive("core.reduced_vary_cast_p"), "x -> y",
       x=lambda y_bar, *, axes: lax.pcast(y_bar, tuple(axes), to="unreduced"),
       why="yᵈ = x on every device d, so x̄ = Σ_d ȳᵈ: the ȳᵈ are its summands.",
       cases=[case(blockwise(_as_reduced), real(4), batchable=False)])


def _scattered(y_bar, *, scatter_dimension, axis_name, tiled):
    """x̄ = (ȳ¹, …, ȳⁿ), one value: an all-gather.

    Derivation: yᵈ = block d of Σ_e xᵉ, so block d of every summand's cotangent is ȳᵈ.
    """
    return lax.all_gather(y_bar, axis_name, axis=scatter_dimension, tiled=tiled, to="reduced")


linear(_jax.find_primitive("lax.parallel.all_gather_reduced_p"), "x -> y", x=all_gather_x,
       axes=GATHERED, cases=[case(blockwise(_gather_reduced), real(4, 3), batchable=False)])
linear(_jax.find_primitive("lax.parallel.unreduced_reduce_scatter_p"), "x -> y", x=_scattered,
       axes=SCATTERED, cases=[case(blockwise(_postponed_scatter), real(4, 3), batchable=False)])
