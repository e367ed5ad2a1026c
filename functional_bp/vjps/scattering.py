"""The scatters write, add and multiply at computed positions, or apply a function there.

With ι the map from the positions of the updates ``u`` to those of the operand ``x`` that the
indices give, every scatter is y_j = x_j ⊕ (all u_i with ι(i) = j). Dropped updates are those that
ι sends out of bounds. ``scatter``, which overwrites, and ``scatter_apply`` reach a graph as one
primitive; the second with a graph of its own inside.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend.core import JaxprEqn

from functional_bp import _jax
from functional_bp.engine import sweeps
from functional_bp.engine.axes import relate
from functional_bp.engine.higher_order import HigherOrder, Mask, Options
from functional_bp.engine.improvements import improvement
from functional_bp.engine.plan import make_plan
from functional_bp.engine.rule import case, cplx, higher_order, integer, real, rule
from functional_bp.engine.sweeps import match_axes, zeros
from functional_bp.errors import NotDifferentiableError, compose
from functional_bp.vjps.indexing import indexed_labels


def read_back(y_bar: Any, indices: Any, u_t: Any, **how: Any) -> Any:
    """Return ȳ_{ι(i)}, for every update the entry that it was written to; zero where it was
    dropped.
    """
    how, numbers = placement(how), how["dimension_numbers"]
    how["dimension_numbers"] = lax.GatherDimensionNumbers(
        offset_dims=numbers.update_window_dims,
        collapsed_slice_dims=numbers.inserted_window_dims,
        start_index_map=numbers.scatter_dims_to_operand_dims,
        operand_batching_dims=numbers.operand_batching_dims,
        start_indices_batching_dims=numbers.scatter_indices_batching_dims,
    )
    sizes = window_sizes(y_bar, u_t, numbers)
    return lax.gather(y_bar, indices, slice_sizes=sizes, fill_value=0, **how)


def placement(params: Mapping[str, Any]) -> dict[str, Any]:
    """Pick from a scatter's parameters those that say where, and how, it writes."""
    names = ("dimension_numbers", "indices_are_sorted", "unique_indices", "mode")
    return {name: params[name] for name in names if name in params}


def window_sizes(x_t: Any, u_t: Any, dimension_numbers: Any) -> tuple[int, ...]:
    """Return the operand's extent that one update covers, axis by axis."""
    single = {*dimension_numbers.inserted_window_dims, *dimension_numbers.operand_batching_dims}
    windows = iter([u_t.shape[i] for i in dimension_numbers.update_window_dims])
    return tuple(1 if i in single else next(windows) for i in range(len(x_t.shape)))


def single_window(indices: Any, dimension_numbers: Any) -> bool:
    """Say whether there is at most one update in each batch, so that no two can meet."""
    batch = {*dimension_numbers.scatter_indices_batching_dims, indices.ndim - 1}
    count = math.prod(n for i, n in enumerate(indices.shape) if i not in batch)
    return _jax.surely(lambda: count <= 1)


def kept(y_bar: Any) -> Any:
    """x̄ = ȳ: an addition leaves what was there."""
    return y_bar


def added(y_bar: Any, indices: Any, u_t: Any, **how: Any) -> Any:
    """ū_i = ȳ_{ι(i)}: gather is the adjoint of scatter-add.

    Derivation: y_j = x_j + Σ_{i: ι(i)=j} u_i, so

        ⟨ȳ, ẏ⟩ = ⟨ȳ, ẋ⟩ + Σ_j ȳ_j Σ_{i: ι(i)=j} u̇_i = ⟨ȳ, ẋ⟩ + Σ_i ȳ_{ι(i)} u̇_i

    Residuals: the indices; no float.
    """
    return read_back(y_bar, indices, u_t, **how)


def subtracted(y_bar: Any, indices: Any, u_t: Any, **how: Any) -> Any:
    """ū_i = −ȳ_{ι(i)}, as for an addition of −u."""
    return lax.neg(read_back(y_bar, indices, u_t, **how))


def scattered_axes(combine: str | None) -> Any:
    """Updates are added, or otherwise combined, in pieces; they are overwritten in order."""

    def axes(operands_t: Any, *, dimension_numbers: Any) -> Any:
        x_t, indices_t, u_t = operands_t
        numbers = lax.GatherDimensionNumbers(
            dimension_numbers.update_window_dims, dimension_numbers.inserted_window_dims,
            dimension_numbers.scatter_dims_to_operand_dims,
            dimension_numbers.operand_batching_dims,
            dimension_numbers.scatter_indices_batching_dims,
        )
        sizes = window_sizes(x_t, u_t, dimension_numbers)
        x, indices, u = indexed_labels(x_t, indices_t, u_t, sizes, numbers)
        met = [label for label in indices if label and label not in x]
        return relate(
            [x, indices, u], [x], positional=[label for label in x if label[0] == "at"],
            summed=met if combine else (), mixed=() if combine else met, combine=combine or "",
        )

    return axes


_rows = lax.ScatterDimensionNumbers((1,), (0,), (0,))
_scalars = lax.ScatterDimensionNumbers((), (0,), (0,))
_windows = lax.ScatterDimensionNumbers((1, 2), (), (0, 1))
_batched = lax.ScatterDimensionNumbers((), (1,), (1,), (0,), (0,))


def cases_of(scatter: Any, *, complex_too: bool = True) -> list[Any]:
    """Make cases for one scatter: rows (all modes, repeats), overlaps, batched, empty."""

    def at(dimensions: Any, **options: Any) -> Any:
        return lambda x, i, u: scatter(x, i, u, dimensions, **options)

    return [
        case(at(_rows), real(4, 3), integer(values=[[3], [1], [3]]), real(3, 3)),
        case(at(_rows, mode="drop"), real(4, 3), integer(values=[[3], [-1], [7]]), real(3, 3)),
        case(at(_rows, mode="clip"), real(4, 3), integer(values=[[3], [-1], [7]]), real(3, 3),
             reference=lambda x, i, u: scatter(x, i.clip(0, 3), u, _rows)),
        case(at(_rows, mode="promise_in_bounds", unique_indices=True, indices_are_sorted=True),
             real(4, 3), integer(values=[[0], [2]]), real(2, 3)),
        case(at(_windows), real(4, 4), integer(values=[[0, 1], [1, 2], [3, 3]]), real(3, 2, 2)),
        case(at(_windows, mode="clip"), real(5, 4), integer(values=[[0, 1], [3, 0], [1, 0]]),
             real(3, 2, 4), note="the second axis is written whole",
             reference=lambda x, i, u: scatter(x, i.clip(0, np.asarray([3, 0])), u, _windows)),
        case(at(_batched), real(3, 4), integer(values=[[[1], [1]], [[0], [3]], [[2], [2]]]),
             real(3, 2)),
        *([case(at(_rows), cplx(4, 3), integer(values=[[3], [1]]), cplx(2, 3))] * complex_too),
        case(at(_rows), real(4, 3), integer(values=np.zeros((0, 1), np.int32)), real(0, 3)),
    ]


rule(
    lax.scatter_add_p, "x, indices, u -> y", linear="x, u", x=kept, u=added,
    axes=scattered_axes("sum"),
    cases=cases_of(lax.scatter_add),
)
rule(
    lax.scatter_sub_p, "x, indices, u -> y", linear="x, u", x=kept, u=subtracted,
    axes=scattered_axes("sum"),
    cases=cases_of(lax.scatter_sub),
)


def times_rest(y_bar: Any, x: Any, indices: Any, u: Any, **how: Any) -> Any:
    """ū_i = ȳ_{ι(i)} x_{ι(i)} Π_{k≠i: ι(k)=ι(i)} u_k: everything else that was multiplied there.

    Derivation: y_j = x_j Π_{k: ι(k)=j} u_k is linear in each u_i on its own, so ∂y_j/∂u_i is the
    product of the other factors. Where no two updates meet that is x_{ι(i)}. Otherwise the
    factors are sorted by the entry they go to, and the others' product is the product of those
    before times the product of those after, within the entry's segment.

    Numerics: no division, so zeros among the factors are exact, to every order.
    """
    back = lambda values: read_back(values, indices, u, **how)
    first = back(y_bar) * back(x)
    if how["unique_indices"] or single_window(indices, how["dimension_numbers"]):
        return first
    places = lax.reshape(lax.iota(np.int32, x.size), x.shape)
    return first * others_product(back(lax.add(places, np.int32(1))), u)


def others_product(segments: Any, factors: Any) -> Any:
    """Return for each factor the product of the others with its segment number, shape by shape."""
    count = factors.size
    if count == 0:
        return factors
    order_of = (lax.reshape(segments, (count,)), lax.iota(np.int32, count))
    segment, order = lax.sort(order_of, num_keys=1)
    sorted_factors = lax.reshape(factors, (count,))[order]
    starts = lax.concatenate([np.ones(1, bool), segment[1:] != segment[:-1]], 0)
    ends = lax.concatenate([starts[1:], np.ones(1, bool)], 0)
    one = lax.full((1,), 1, factors.dtype)
    earlier = lax.concatenate([one, sorted_factors[:-1]], 0)
    later = lax.concatenate([sorted_factors[1:], one], 0)
    others = running_product(starts, earlier) * running_product(ends, later, reverse=True)
    unsorted = lax.full((count,), 0, factors.dtype).at[order].set(others, unique_indices=True)
    return lax.reshape(unsorted, factors.shape)


def running_product(resets: Any, factors: Any, reverse: bool = False) -> Any:
    """Compute running products that begin again at 1 where ``resets`` is true (dropping that
    factor).

    Pairs (r, a) compose to (r₁ ∨ r₂, a₂ if r₂ else a₁ a₂), which is associative.
    """

    def compose(left: Any, right: Any) -> Any:
        return left[0] | right[0], lax.select(right[0], right[1], left[1] * right[1])

    begun = lax.select(resets, lax.full_like(factors, 1), factors)
    return lax.associative_scan(compose, (resets, begun), reverse=reverse)[1]


def times_updates(y_bar: Any, indices: Any, u: Any, **how: Any) -> Any:
    """x̄_j = ȳ_j Π_{k: ι(k)=j} u_k: the operation itself, applied to the cotangent."""
    return lax.scatter_mul(y_bar, indices, u, **placement(how))


def _factor_by_factor(x: Any, i: Any, u: Any) -> Any:
    """Compute the rows' scatter-mul as a product over updates, which JAX differentiates."""
    for k in range(u.shape[0]):
        x = x * jax.numpy.where(jax.numpy.arange(x.shape[0])[:, None] == i[k], u[k], 1)
    return x


rule(
    lax.scatter_mul_p, "x, indices, u -> y", x=times_updates, u=times_rest,
    axes=scattered_axes("prod"),
    cases=[
        case(lambda x, i, u: lax.scatter_mul(x, i, u, _rows, unique_indices=True),
             real(4, 3), integer(values=[[3], [1]]), real(2, 3)),
        case(lambda x, i, u: lax.scatter_mul(x, i, u, _rows, unique_indices=True, mode="clip"),
             cplx(4, 3), integer(values=[[7], [1]]), cplx(2, 3)),
        case(lambda x, i, u: lax.scatter_mul(x, i, u, _rows),
             real(4, 3), integer(values=[[3], [1], [3], [9], [3]]), real(5, 3),
             reference=_factor_by_factor, note="repeats: jax.vjp raises"),
        case(lambda x, i, u: lax.scatter_mul(x, i, u, _rows), real(3, 2),
             integer(values=[[0], [1], [0], [0], [1]]),
             real(values=[[0, 2], [3, 0], [5, 0], [7, 0], [0, 0]]),
             reference=_factor_by_factor, note="repeats with zeros"),
        case(lambda x, i, u: lax.scatter_mul(x, i, u, _rows), cplx(3, 2),
             integer(values=[[0], [0]]), cplx(2, 2), reference=_factor_by_factor),
        case(lambda x, i, u: lax.scatter_mul(x, i, u, _rows), real(4, 3), integer(values=[[2]]),
             real(1, 3), reference=_factor_by_factor, note="one update cannot meet another"),
    ],
)
improvement(
    "scatter-mul with repeated indices",
    lambda u: lax.scatter_mul(np.asarray([2.0, 3.0]), np.asarray([[0], [0], [1]]), u,
                              _scalars),
    at=([5.0, 7.0, 11.0],), wrt=0, true=[14.0, 10.0, 3.0],
    jax="raises NotImplementedError: only implemented if `unique_indices=True`",
    source="the product rule: ∂(x₀ u₀ u₁)/∂u₀ = x₀ u₁",
)


def extreme(scatter: Any) -> Any:
    """Run scatter-max or -min forward, and find the shares in which a cotangent is split."""

    def forward(x: Any, indices: Any, u: Any, **how: Any) -> Any:
        how = placement(how)
        back = lambda values: read_back(values, indices, u, **how)
        y = scatter(x, indices, u, **how)
        reached = back(y)
        is_best, was_best = lax.eq(u, reached), lax.eq(back(x), reached)
        counting = np.promote_types(x.dtype, np.float32)  # bfloat16 counts no further than 256
        one = lambda on: lax.convert_element_type(on, counting)
        blank = zeros(jax.typeof(x).update(dtype=counting, weak_type=False))
        count = lax.scatter_add(blank, indices, one(is_best), **how)
        even = lax.convert_element_type(1 / (back(count) + one(was_best)), x.dtype)
        share = lambda on: lax.select(on, even, lax.full_like(even, 0))
        return y, (share(was_best), share(is_best))

    return forward


def shared_operand(y_bar: Any, indices: Any, x_share: Any, **how: Any) -> Any:
    """x̄_j = ȳ_j r_j / (n_j + r_j) where an update arrives, ȳ_j elsewhere.

    Derivation: y_j = max(x_j, max_{i: ι(i)=j} u_i) has the gradient of its winner; with n_j
    updates equal to y_j and r_j = [x_j = y_j], the n_j + r_j winners have equal shares. The share
    is known per update, and is the same for all updates of one entry, so that it does not matter
    which of them writes.

    Kinks: ties are split evenly, as for every maximum of several values. An update that is NaN
    takes no share, nor leaves one.

    Residuals: the indices and one share per update; nothing of the operand's size.
    """
    scaled = lax.mul(read_back(y_bar, indices, x_share, **how), x_share)
    return lax.scatter(y_bar, indices, scaled, **placement(how))


def shared_updates(y_bar: Any, indices: Any, u_share: Any, **how: Any) -> Any:
    """ū_i = ȳ_{ι(i)} [u_i = y_{ι(i)}] / (n_j + r_j), in even shares as for the operand."""
    return lax.mul(read_back(y_bar, indices, u_share, **how), u_share)


for _primitive, _scatter, _sign, _combine in (
    (lax.scatter_max_p, lax.scatter_max, 1, "max"),
    (lax.scatter_min_p, lax.scatter_min, -1, "min"),
):
    rule(
        _primitive, "x, indices, u -> y | x_share, u_share", x=shared_operand, u=shared_updates,
        forward=extreme(_scatter), axes=scattered_axes(_combine),
        kinks="ties are split evenly between the operand and the updates",
        cases=[
            *cases_of(_scatter, complex_too=False),
            case(lambda x, i, u, scatter=_scatter, sign=_sign: scatter(
                    sign * x, i, sign * u, _scalars),
                 real(values=[1, 0, 2, 3]), integer(values=[[0], [0], [1], [1], [2]]),
                 real(values=[1, 1, 5, 5, 0]), note="ties"),
        ],
    )
improvement(
    "scatter-max in mode clip",
    lambda u: lax.scatter_max(np.zeros(3), np.asarray([[7]]), u,
                              _scalars, mode="clip"),
    at=([5.0],), wrt=0, true=[1.0],
    jax="inf in 0.10, whose rule does not clamp as the operation does; right in 0.12",
    source="y₂ = max(0, u₀), as the index 7 is clamped to 2",
)


# Overwriting, and applying a function.


def _apply(x: Any, i: Any, **options: Any) -> Any:
    shape = (i.shape[0], x.shape[1])
    return lax.scatter_apply(x, i, lambda v: v * v * v, _rows, update_shape=shape, **options)


def _apply_by_mask(x: Any, i: Any) -> Any:
    hit = (np.arange(x.shape[0])[:, None] == i[:, 0]).any(1)
    return jax.numpy.where(hit[:, None], x * x * x, x)


@higher_order(
    lax.scatter_p, axes=scattered_axes(None),
    kinks="of updates that meet, the one that XLA wrote last has the whole cotangent",
    cases=[
        *cases_of(lax.scatter),
        case(lambda x, u: x.at[1, 1:].set(u), real(3, 4), real(3)),
        case(lambda x, i, u: x.at[i].set(u), real(5), integer(values=[4, 0, 4, 4]), real(4)),
        case(lambda x, i: _apply(x, i, unique_indices=True), real(4, 3),
             integer(values=[[2], [0]]), reference=_apply_by_mask),
        case(_apply, real(4, 3), integer(values=[[2]]), reference=_apply_by_mask),
    ],
)
class Scatter(HigherOrder):
    """x̄ = ȳ with zeros where an update was written; ū_i = ȳ_{ι(i)} if u_i was the last writer.

    Derivation: y_j = u_{w(j)} with w(j) the last writer among {i: ι(i) = j}, and y_j = x_j where
    there is none. So

        ⟨ȳ, ẏ⟩ = Σ_{j untouched} ȳ_j ẋ_j + Σ_i [w(ι(i)) = i] ȳ_{ι(i)} u̇_i

    XLA leaves open which writer is last, so the forward sweep numbers the updates, scatters the
    numbers, and lets the values follow them: y and ū then agree on any machine.

    Applied functions (``x.at[i].apply(f)``): y_j = f(x_j) at the indices, so x̄_j = f'(x_j) ȳ_j.

    Residuals: the indices; where updates may meet, one boolean per update; f'(x_j) if applied.
    """

    def __init__(self, eqn: JaxprEqn, active: Mask, options: Options) -> None:
        super().__init__(eqn, active, options)
        self.how, self.applied = placement(eqn.params), eqn.params["update_jaxpr"]
        single = single_window(eqn.invars[1].aval, self.how["dimension_numbers"])
        self.unique = self.how.pop("unique_indices") or single
        if self.applied is not None:
            self.wanted = (active[0], False, False)
            self.out_active = (active[0],)

    def forward(self, *operands: Any) -> tuple[Sequence[Any], Any]:
        """Scatter; keep who wrote last where that is in doubt, and an applied function's slopes."""
        x, indices, u = operands
        if self.applied is not None:
            slopes = self._slopes(x, indices, u)
            return sweeps.evaluate(self.eqn, (x, indices, u)), (indices, slopes)
        if self.unique or not self.wanted[2]:
            return sweeps.evaluate(self.eqn, (x, indices, u)), (indices, None)
        untouched, wrote = self._last_writers(x, indices, u)
        y = lax.scatter_add(
            lax.select(untouched, x, lax.full_like(x, 0)), indices,
            lax.select(spread(wrote, u.shape), u, lax.full_like(u, 0)),
            **self.how,
        )
        return [y], (indices, wrote)

    def _last_writers(self, x: Any, indices: Any, u: Any) -> tuple[Any, Any]:
        """Find which entries have no writer, and which updates are the last one of theirs.

        Axes that every window covers whole are left out: there, windows meet wholly or not at all.
        """
        dims = self.how["dimension_numbers"]
        sizes = window_sizes(x, u, dims)
        single = {*dims.inserted_window_dims, *dims.operand_batching_dims}
        windowed = [d for d in range(x.ndim) if d not in single]
        whole = {d for d in windowed if sizes[d] == x.shape[d]}
        spared = {w for d, w in zip(windowed, dims.update_window_dims, strict=True) if d in whole}
        shape = [1 if i in spared else n for i, n in enumerate(u.shape)]
        numbers_shape = [1 if i in dims.update_window_dims else n for i, n in enumerate(u.shape)]
        count = math.prod(numbers_shape)
        dtype = _jax.index_dtype(count + 1)
        numbers = lax.add(lax.reshape(lax.iota(dtype, count), numbers_shape), dtype.type(1))
        numbers = spread(numbers, shape)
        blank = lax.full([1 if d in whole else n for d, n in enumerate(x.shape)], 0, dtype)
        blank = match_axes(blank, jax.typeof(x))
        written = lax.scatter(blank, indices, numbers, **self.how)
        how = {**self.how, "mode": "clip"}  # where a dropped update is clipped to, others wrote
        wrote = lax.eq(numbers, read_back(written, indices, numbers, **how))
        return spread(lax.eq(written, dtype.type(0)), x.shape), wrote

    def _slopes(self, x: Any, indices: Any, u: Any) -> Any:
        """Return f'(x_j) for every entry that f is applied to."""
        if not self.unique:
            raise NotDifferentiableError(
                compose(
                    "scatter_apply has a derivative here only where no two indices meet",
                    got="unique_indices=False: a function might be applied twice to one entry",
                    do="pass unique_indices=True, or write x.at[i].set(f(x[i]))",
                )
            )
        plan = make_plan(self.applied, (True, False), (True,), (False,), self.options)
        consts = list(self.eqn.params["update_consts"])

        def slope(value: Any) -> Any:
            _, residuals = sweeps.forward(plan, consts, (value, lax.full_like(value, 0)))
            (found, _) = sweeps.reverse(plan, residuals, (lax.full_like(value, 1),))
            return lax.full_like(value, 0) if found is None else found

        values = read_back(x, indices, u, **self.how)
        return lax.reshape(jax.vmap(slope)(lax.reshape(values, (values.size,))), values.shape)

    def reverse(self, residuals: Any, cotangents: Sequence[Any]) -> Sequence[Any]:
        """Return x̄ and ū; the indices have none."""
        (y_bar,) = cotangents
        indices, kept = residuals
        u_t: Any = self.eqn.invars[2].aval
        how = {**self.how, "unique_indices": self.unique}
        if self.applied is not None:
            scaled = lax.mul(read_back(y_bar, indices, u_t, **how), kept)
            return lax.scatter(y_bar, indices, scaled, **how), None, None
        x_bar = u_bar = None
        if self.wanted[0]:
            x_bar = lax.scatter(y_bar, indices, zeros(u_t), **how)
        if self.wanted[2]:
            u_bar = read_back(y_bar, indices, u_t, **how)
            if kept is not None:
                u_bar = lax.select(spread(kept, u_bar.shape), u_bar, lax.full_like(u_bar, 0))
        return x_bar, None, u_bar


def spread(x: Any, shape: Sequence[int]) -> Any:
    """Repeat ``x`` along the axes where it has size one."""
    return lax.broadcast_in_dim(x, tuple(shape), range(x.ndim))


improvement(
    "x.at[i].apply(f)",
    lambda x: x.at[1].apply(lambda v: v * v),
    at=([2.0, 3.0],), wrt=0, true=[1.0, 6.0],
    jax="raises NotImplementedError: scatter_apply JVP not implemented",
    source="y₁ = x₁², so ∂y₁/∂x₁ = 2 x₁",
)
