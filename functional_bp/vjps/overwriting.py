"""``scatter`` overwrites entries, and ``scatter_apply`` maps them in place.

Both reach a graph as the primitive ``scatter``; the second with a graph of its own inside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend.core import JaxprEqn

from functional_bp import _jax
from functional_bp.engine import sweeps
from functional_bp.engine.higher_order import HigherOrder, Mask, Options
from functional_bp.engine.improvements import improvement
from functional_bp.engine.plan import make_plan
from functional_bp.engine.rule import case, higher_order, integer, real
from functional_bp.errors import NotDifferentiableError, compose
from functional_bp.vjps.scattering import cases_of, read_back, single_window, window_sizes

_rows = lax.ScatterDimensionNumbers((1,), (0,), (0,))
_scalars = lax.ScatterDimensionNumbers((), (0,), (0,))


def _apply(x: Any, i: Any, **options: Any) -> Any:
    shape = (i.shape[0], x.shape[1])
    return lax.scatter_apply(x, i, lambda v: v * v * v, _rows, update_shape=shape, **options)


def _apply_by_mask(x: Any, i: Any) -> Any:
    hit = (np.arange(x.shape[0])[:, None] == i[:, 0]).any(1)
    return jax.numpy.where(hit[:, None], x * x * x, x)


@higher_order(
    lax.scatter_p,
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
        params = eqn.params
        self.dimension_numbers = params["dimension_numbers"]
        single = single_window(eqn.invars[1].aval, self.dimension_numbers)
        self.unique = params["unique_indices"] or single
        self.applied = params["update_jaxpr"]
        self.how = {"indices_are_sorted": params["indices_are_sorted"], "mode": params["mode"]}
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
            self.dimension_numbers, **self.how,
        )
        return [y], (indices, wrote)

    def _last_writers(self, x: Any, indices: Any, u: Any) -> tuple[Any, Any]:
        """Find which entries have no writer, and which updates are the last one of theirs.

        Axes that every window covers whole are left out: there, windows meet wholly or not at all.
        """
        dims = self.dimension_numbers
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
        blank = sweeps.match_axes(blank, jax.typeof(x))
        written = lax.scatter(blank, indices, numbers, dims, **self.how)
        how = {**self.how, "mode": "clip"}  # where a dropped update is clipped to, others wrote
        wrote = lax.eq(numbers, read_back(written, indices, numbers, dims, **how))
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

        values = read_back(x, indices, u, self.dimension_numbers, **self.how)
        return lax.reshape(jax.vmap(slope)(lax.reshape(values, (values.size,))), values.shape)

    def reverse(self, residuals: Any, cotangents: Sequence[Any]) -> Sequence[Any]:
        """Return x̄ and ū; the indices have none."""
        (y_bar,) = cotangents
        indices, kept = residuals
        u_t, dims = self.eqn.invars[2].aval, self.dimension_numbers
        how = {**self.how, "unique_indices": self.unique}
        if self.applied is not None:
            scaled = lax.mul(read_back(y_bar, indices, u_t, dims, **how), kept)
            return lax.scatter(y_bar, indices, scaled, dims, **how), None, None
        x_bar = u_bar = None
        if self.wanted[0]:
            x_bar = lax.scatter(y_bar, indices, sweeps.zeros(u_t), dims, **how)
        if self.wanted[2]:
            u_bar = read_back(y_bar, indices, u_t, dims, **how)
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
