"""Windows are reduced to sums and extremes, as in pooling, or by an operation of one's own.

With window offsets w, stride s, window dilation d, base dilation b and low padding ℓ, window o
covers the entries j with j b = o s + w d − ℓ, along every axis.

``reduce_window`` and ``select_and_scatter`` are folds: entries meet one after another under an
operation ⊕ that a person wrote as a function of two scalars. The reverse sweep of a fold runs ⊕'s
own graph backwards, entry by entry.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import JaxprEqn

from functional_bp import _jax
from functional_bp.engine import sweeps
from functional_bp.engine.axes import rank, relate
from functional_bp.engine.higher_order import (
    HigherOrder,
    Mask,
    Options,
    has_tangent,
    only,
    spread_over,
)
from functional_bp.engine.improvements import improvement
from functional_bp.engine.plan import make_plan
from functional_bp.engine.rule import case, higher_order, integer, linear, real, rule
from functional_bp.engine.sweeps import match_axes


class Geometry(NamedTuple):
    """A geometry says where the windows lie, axis by axis."""

    window_dimensions: tuple[int, ...]
    window_strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    base_dilation: tuple[int, ...]
    window_dilation: tuple[int, ...]

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> Geometry:
        """Read it off an equation's parameters; a dilation that is not among them is one."""
        ones = (1,) * len(params["window_dimensions"])
        return cls(*(params.get(name, ones) for name in cls._fields))

    @property
    def offsets(self) -> np.ndarray:
        """Return where each of a window's entries lies from the window's corner, a row for each."""
        steps = [np.arange(k) * d for k, d in zip(self.window_dimensions, self.window_dilation)]
        return np.array(list(itertools.product(*steps)), np.int32).reshape(-1, len(steps))

    def pad(self, x: Any, fill: Any) -> Any:
        """Pad the operand to what the windows see."""
        edges = [(lo, hi, b - 1) for (lo, hi), b in zip(self.padding, self.base_dilation)]
        return lax.pad(x, jnp.asarray(fill, x.dtype), edges)

    def unpad(self, padded: Any) -> Any:
        """Cut the padding off a cotangent: the adjoint of ``pad``."""
        edges = [(-lo, -hi, 0) for lo, hi in self.padding]
        cropped = lax.pad(padded, jnp.zeros((), padded.dtype), edges)
        return lax.slice(cropped, (0,) * cropped.ndim, cropped.shape, self.base_dilation)

    def extents(self, count: Sequence[int]) -> list[int]:
        """Return what ``count`` windows span from corner to corner."""
        return [(n - 1) * s + 1 for n, s in zip(count, self.window_strides)]

    def entries(self, padded: Any, offset: Any, count: Sequence[int]) -> Any:
        """Read every window's entry at ``offset``."""
        span = lax.dynamic_slice(padded, list(offset), self.extents(count))
        return lax.slice(span, (0,) * span.ndim, span.shape, self.window_strides)

    def add_entries(self, padded: Any, offset: Any, entries: Any) -> Any:
        """Add entries where ``entries`` read them, as its adjoint."""
        zero = jnp.zeros((), entries.dtype)
        apart = lax.pad(entries, zero, [(0, 0, s - 1) for s in self.window_strides])
        before = lax.dynamic_slice(padded, list(offset), apart.shape)
        return lax.dynamic_update_slice(padded, before + apart, list(offset))


def summed(y_bar: Any, x_t: Any, **window: Any) -> Any:
    """x̄_j = Σ of ȳ_o over the windows o that cover j: again a sum over windows.

    Derivation: y_o = Σ_w x_{(o s + w d − ℓ)/b}, so x̄_j = Σ_{o,w: o s + w d − ℓ = j b} ȳ_o. Write
    ỹ for ȳ with s−1 zeros between its entries, ỹ_{o s} = ȳ_o. The pairs (o, w) are then the w
    alone, and with w' = k−1−w

        x̄_j = Σ_w ỹ_{j b + ℓ − w d} = Σ_w' ỹ_{j b − ((k−1) d − ℓ) + w' d}

    a window sum of ỹ with stride b, dilation d and low padding (k−1) d − ℓ, long enough for the
    last j. Where windows touch without overlap (k = s, no dilation) each j has one window at most,
    and ȳ is repeated instead, without arithmetic.
    """
    geometry = Geometry.of(window)
    plain = all(n == 1 for n in (*geometry.base_dilation, *geometry.window_dilation))
    if plain and tuple(geometry.window_dimensions) == tuple(geometry.window_strides):
        return _repeated(y_bar, x_t, geometry.window_dimensions, geometry.padding)
    config = []
    for n, out, k, s, (low, _), b, d in zip(x_t.shape, y_bar.shape, *geometry, strict=True):
        before = (k - 1) * d - low
        length = (n - 1) * b + (k - 1) * d + 1
        spaced = (out - 1) * s + 1 if out else 0
        config.append((before, length - before - spaced, s - 1))
    if math.prod(x_t.shape) == 0:
        return None
    return lax.reduce_window_sum_p.bind(
        lax.pad(y_bar, np.zeros((), y_bar.dtype), config),
        window_dimensions=geometry.window_dimensions,
        window_strides=geometry.base_dilation,
        padding=((0, 0),) * y_bar.ndim,
        base_dilation=(1,) * y_bar.ndim,
        window_dilation=geometry.window_dilation,
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


def _reduce(computation: Any, initial: Any, *window: Any, **options: Any) -> Any:
    start = lambda x: np.asarray(initial, x.dtype)
    return lambda x: lax.reduce_window(x, start(x), computation, *window, **options)


def _geometries(reduction: Any, initial: Any) -> list[Any]:
    """Make cases for one reduction: windows that touch, overlap, are padded, dilated, apart."""
    return [
        case(_reduce(reduction, initial, (2, 2), (2, 2), "VALID"), real(4, 5)),
        case(_reduce(reduction, initial, (2, 3), (2, 3), "SAME"), real(5, 4)),
        case(_reduce(reduction, initial, (3, 2), (1, 2), ((1, 1), (0, 2))), real(4, 5)),
        case(_reduce(reduction, initial, (1, 2), (1, 3), ((0, 0), (1, 0))), real(2, 5),
             note="gaps"),
        case(_reduce(reduction, initial, (2,), (1,), ((0, 0),), base_dilation=(2,)), real(4)),
    ]


def windowed_axes(operands_t: Any, outputs_t: Any, **window: Any) -> Any:
    """Windows of one entry leave an axis as it is; others overlap, or skip."""
    plain = [(1, 1, (0, 0), 1, 1) == geometry for geometry in zip(*Geometry.of(window))]
    axes = range(len(plain))
    ins = [axes if rank(x) else () for x in operands_t]
    return relate(ins, [axes for _ in outputs_t], halo=[i for i in axes if not plain[i]])


linear(
    lax.reduce_window_sum_p, "x -> y", x=summed, axes=windowed_axes,
    cases=[
        *_geometries(lax.add, 0.0),
        case(_reduce(lax.add, 0.0, (2,), (2,), ((-1, 3),)), real(5), note="negative padding"),
        case(_reduce(lax.add, 0.0, (2,), (1,), ((1, 2),), base_dilation=(3,), window_dilation=(2,)),
             real(4)),
        case(_reduce(lax.add, 0.0, (1, 3), (2, 2), "SAME", window_dilation=(1, 2)), real(3, 5)),
        case(_reduce(lax.add, 0.0, (2,), (1,), "VALID"), real(0)),
    ],
)


def to_the_selected(y_bar: Any, x: Any, *, select_prim: Any, **window: Any) -> Any:
    """x̄_j = Σ of ȳ_o over the windows o that selected the entry j.

    Base dilation puts entries between the operand's that are never selected. Where windows are
    dilated, their selections are looked up first, and ȳ is added there.
    """
    y_bar = match_axes(y_bar, jax.typeof(x))
    geometry = Geometry.of(window)
    dimensions, strides, padding, base_dilation, window_dilation = geometry
    if any(d != 1 for d in window_dilation):
        places = selected_places(x, select_prim, geometry)
        flat = lax.full((x.size,), 0, y_bar.dtype)
        flat = match_axes(flat, jax.typeof(y_bar))
        return lax.reshape(flat.at[places].add(y_bar, mode="drop"), x.shape)
    if any(b != 1 for b in base_dilation):
        x = lax.pad(x, worst(select_prim, x.dtype), [(0, 0, b - 1) for b in base_dilation])
    found = lax.select_and_scatter_add_p.bind(
        y_bar, x, select_prim=select_prim, window_dimensions=dimensions, window_strides=strides,
        padding=padding,
    )
    if any(b != 1 for b in base_dilation):
        found = lax.slice(found, (0,) * found.ndim, found.shape, base_dilation)
    return found


def worst(select_prim: Any, dtype: Any) -> np.ndarray:
    """Return the value that loses every selection: −∞ where the larger wins, else +∞."""
    return np.asarray(-np.inf if select_prim is lax.ge_p else np.inf, dtype)


def selected_places(x: Any, select_prim: Any, geometry: Geometry) -> Any:
    """Return per window the flat position of the (first) entry it selects; x.size if none."""

    def better(left: Any, right: Any) -> Any:
        (a, i), (b, j) = left, right
        first = select_prim.bind(a, b) & ((a != b) | (i < j))
        return lax.select(first, a, b), lax.select(first, i, j)

    positions = lax.reshape(lax.iota(np.int32, x.size), x.shape)
    _, places = lax.reduce_window(
        (x, match_axes(positions, jax.typeof(x))), (worst(select_prim, x.dtype), np.int32(x.size)),
        better, *geometry,
    )
    return places


def largest_in_window(y_bar: Any, x: Any, **window: Any) -> Any:
    """x̄_j = Σ of ȳ_o over the windows o whose maximum stands at j.

    Derivation: y_o = x_{m(o)} with m(o) the position of the window's maximum, constant while no
    other entry reaches it. Then ⟨ȳ, ẏ⟩ = Σ_o ȳ_o ẋ_{m(o)} = Σ_j ẋ_j Σ_{o: m(o)=j} ȳ_o.

    Kinks: of equal entries in a window the first, in row-major order, has the whole cotangent.

    Residuals: x; the positions are found again from it.
    """
    return to_the_selected(y_bar, x, select_prim=lax.ge_p, **window)


def smallest_in_window(y_bar: Any, x: Any, **window: Any) -> Any:
    """x̄_j = Σ of ȳ_o over the windows o whose minimum stands at j; as for the maximum."""
    return to_the_selected(y_bar, x, select_prim=lax.le_p, **window)


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
        _primitive, "x -> y", x=_pullback, axes=windowed_axes,
        kinks="of equal entries in a window, the first",
        cases=[
            *_geometries(_reduction, _initial),
            case(_reduce(_reduction, _initial, (2, 2), (1, 1), "SAME"), real(values=_EQUAL),
                 reference=_first_in_window(_better, _initial), second_order=False,
                 note="ties: the first, as jax.vjp; in JAX 0.12 select_and_gather_add, so jax.jvp "
                 "and second derivatives, takes another of the equals"),
            case(_reduce(_reduction, _initial, (2,), (1,), "VALID", window_dilation=(2,)), real(6),
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


def selected_tangents(y_bar: Any, x: Any, **selection: Any) -> Any:
    """ṫ's cotangent is ȳ added where x was selected.

    Derivation: y_o = t_{m(o)} with m(o) chosen by x alone; linear in t, and constant in x wherever
    the choice does not change, so that x has no cotangent.

    Residuals: x.
    """
    return to_the_selected(y_bar, x, **selection)


def _read_selected(select_prim: Any, *window: Any, **dilations: Any) -> Any:
    geometry = Geometry.of({**dict(zip(Geometry._fields, window)), **dilations})
    return lambda t, x: lax.select_and_gather_add_p.bind(
        t, x, select_prim=select_prim, **geometry._asdict()
    )


rule(
    lax.select_and_gather_add_p, "t, x -> y", linear="t", t=selected_tangents, axes=windowed_axes,
    kinks="of equal entries in a window, the first",
    cases=[
        case(_read_selected(lax.ge_p, (2, 2), (2, 1), ((0, 0), (1, 0))), real(4, 4), real(4, 4)),
        case(_read_selected(lax.le_p, (1, 3), (1, 2), ((0, 0), (0, 1)), base_dilation=(1, 2)),
             real(2, 4), real(2, 4)),
        case(_read_selected(lax.ge_p, (2,), (1,), ((0, 0),), window_dilation=(2,)), real(4),
             real(values=[1, 5, 3, 2]), note="jax.vjp raises",
             reference=lambda t, x: jax.numpy.stack([t[2], t[1]]) + 0 * x[:2]),
    ],
)


def read_selected(y_bar: Any, x: Any, *, select_prim: Any, **window: Any) -> Any:
    """s̄_o = ȳ_{m(o)}: the entry that the window selected.

    Derivation: y_j = Σ_{o: m(o)=j} s_o, with m(o) chosen by x alone, which has no cotangent.

    Residuals: x.
    """
    return lax.select_and_gather_add_p.bind(
        match_axes(y_bar, jax.typeof(x)), x, select_prim=select_prim,
        **Geometry.of(window)._asdict(),
    )


def _write_selected(select_prim: Any, *window: Any) -> Any:
    named = dict(zip(Geometry._fields, window))
    return lambda s, x: lax.select_and_scatter_add_p.bind(s, x, select_prim=select_prim, **named)


rule(
    lax.select_and_scatter_add_p, "s, x -> y", linear="s", s=read_selected, axes=windowed_axes,
    kinks="of equal entries in a window, the first",
    cases=[
        case(_write_selected(lax.ge_p, (2, 2), (2, 2), ((0, 0), (0, 0))), real(2, 2), real(4, 4)),
        case(_write_selected(lax.le_p, (1, 3), (1, 1), ((0, 0), (1, 1))), real(2, 5), real(2, 5)),
    ],
)


# Reductions by an operation of one's own.


class Combination:
    """A combination is ⊕ on scalars, a graph of 2n inputs and n outputs, lifted to arrays and
    reversed.
    """

    def __init__(self, jaxpr: Any, consts: Sequence[Any], options: Options) -> None:
        self.jaxpr, self.consts = jaxpr, list(consts)
        self.count = len(jaxpr.outvars)
        self.floats = tuple(has_tangent(v.aval) for v in jaxpr.outvars)
        nothing, everything = (False,) * self.count, (True,) * self.count
        self.plan = make_plan(jaxpr, self.floats * 2, self.floats, nothing, options)
        self.value_plan = make_plan(jaxpr, nothing * 2, nothing, everything, options)

    def value(self, left: Sequence[Any], right: Sequence[Any]) -> list[Any]:
        """Return left ⊕ right."""
        run = lambda *xs: sweeps.forward(self.value_plan, self.consts, xs)[0]
        return self._lift(run, left, right)

    def reverse(
        self, left: Sequence[Any], right: Sequence[Any], bars: Sequence[Any]
    ) -> tuple[list[Any], list[Any]]:
        """Return the cotangents of left and right from those of left ⊕ right; None for integers."""

        def scalar(*values: Any) -> list[Any]:
            xs, ys_bar = values[: 2 * self.count], values[2 * self.count :]
            _, residuals = sweeps.forward(self.plan, self.consts, xs)
            seeds = spread_over(ys_bar, self.floats)
            found = sweeps.reverse(self.plan, residuals, seeds)
            return [
                jnp.zeros_like(x) if bar is None else bar
                for x, bar, on in zip(xs, found, self.floats * 2) if on
            ]

        found = self._lift(scalar, left, right, [bar for bar in bars if bar is not None])
        both = spread_over(found, self.floats * 2)
        return both[: self.count], both[self.count :]

    @staticmethod
    def _lift(scalar: Any, *groups: Sequence[Any]) -> list[Any]:
        values = [value for group in groups for value in group]
        axes = frozenset().union(*(_jax.varying_axes(jax.typeof(value)) for value in values))
        values = [sweeps.vary(value, axes) for value in values]
        shape = values[0].shape
        flat = [lax.reshape(value, (math.prod(shape),)) for value in values]
        return [lax.reshape(out, shape) for out in jax.vmap(scalar)(*flat)]


def fold_back(
    combination: Combination, start: Sequence[Any], places: Any, entries: Any,
    give_back: Any, given: Sequence[Any], y_bars: Sequence[Any],
) -> tuple[list[Any], list[Any]]:
    """Run the reverse sweep of a ← a ⊕ p_k for k = 1, 2, …, wherever p_k is there.

    Derivation: with a_k = a_{k−1} ⊕ p_k, the chain rule gives (ā_{k−1}, p̄_k) = (⊕)ᵀ ā_k at
    (a_{k−1}, p_k), from the last entry to the first. Where p_k is not there a_k = a_{k−1}, so ā
    passes and p̄_k is zero.

    Args:
        combination: ⊕.
        start: a_0.
        places: what ``entries`` needs to know for each k, stacked.
        entries: place ↦ (p_k, where it is there).
        give_back: (given, place, p̄_k) ↦ given, with p̄_k added.
        given: zeros to add to.
        y_bars: cotangents of the fold's result, None for integers.

    Returns:
        ``given`` in the end, and ā_0.
    """

    def onward(values: Any, place: Any) -> Any:
        found, there = entries(place)
        after = combination.value(values, found)
        return [lax.select(there, new, old) for new, old in zip(after, values)], values

    def back(state: Any, row: Any) -> Any:
        given, bars = state
        place, values = row
        found, there = entries(place)
        left, right = combination.reverse(values, found, bars)
        choose = lambda new, old: None if new is None else lax.select(there, new, old)
        right = [choose(bar, None if bar is None else jnp.zeros_like(bar)) for bar in right]
        return (give_back(given, place, right), [choose(*pair) for pair in zip(left, bars)]), None

    y_bars = [None if bar is None else match_axes(bar, jax.typeof(a))
              for bar, a in zip(y_bars, start)]
    _, befores = lax.scan(onward, list(start), places)
    (given, bars), _ = lax.scan(back, (list(given), list(y_bars)), (places, befores), reverse=True)
    return given, bars


def _stacked(reduction: Any, x: Any, size: int) -> Any:
    """Put windows along one axis, with stride one, side by side."""
    return reduction(jnp.stack([x[k : x.shape[0] - size + 1 + k] for k in range(size)]))


def _best_pair(left: Any, right: Any) -> Any:
    (a, i), (b, j) = left, right
    return lax.select(a >= b, a, b), lax.select(a >= b, i, j)


def _product_padded(x: Any) -> Any:
    x = jnp.pad(x, ((1, 0), (0, 1)), constant_values=1.0)
    return (x[:-1] * x[1:])[:, ::2] * (x[:-1] * x[1:])[:, 1::2]


@higher_order(
    lax.reduce_window_p, axes=windowed_axes,
    cases=[
        case(_reduce(lax.mul, 1.0, (3,), (1,), "VALID"), real(values=[2, 0, 3, 0, 0, 4]),
             reference=lambda x: _stacked(lambda s: s[0] * s[1] * s[2], x, 3), note="zeros"),
        case(_reduce(lax.mul, 1.0, (2, 2), (1, 2), ((1, 0), (0, 1))), real(3, 3),
             reference=_product_padded),
        case(_reduce(jnp.logaddexp, -np.inf, (3,), (1,), "VALID"), real(5),
             reference=lambda x: _stacked(lambda s: jax.nn.logsumexp(s, axis=0), x, 3)),
        case(_reduce(jnp.logaddexp, -np.inf, (2,), (1,), "VALID", window_dilation=(2,)), real(5),
             reference=lambda x: jnp.logaddexp(x[:-2], x[2:])),
        case(lambda x, start: lax.reduce_window(x, start, lambda a, b: a + b, (2,), (2,), "VALID"),
             real(4), real(), batchable=False, note="JAX cannot batch an initial value",
             reference=lambda x, start: x[::2] + x[1::2] + start),
        case(lambda x, i: lax.reduce_window(
            (x, i), (np.asarray(-np.inf, x.dtype), np.int32(-1)), _best_pair, (2,), (2,), "VALID",
             )[0],
             real(6), integer(6), reference=lambda x, i: lax.max(x[::2], x[1::2])),
    ],
)
class ReduceWindow(HigherOrder):
    """x̄_j = Σ of what j is given by the windows that cover it, each by reversing its fold.

    Derivation: y_o = (…((init ⊕ p_1) ⊕ p_2) …) ⊕ p_K with p_k the window's entries that lie in
    the operand; the chain rule along the fold gives every p̄_k, and that of init, which is summed
    over the windows. No division, so a product is right at zeros; ⊕ need have no inverse.

    Residuals: the operands. The partial results are found again in the reverse sweep.
    """

    def __init__(self, eqn: JaxprEqn, active: Mask, options: Options) -> None:
        super().__init__(eqn, active, options)
        self.combination = Combination(*_jaxpr_of(eqn.params, ""), options)
        self.geometry = Geometry.of(eqn.params)

    def forward(self, *operands: Any) -> tuple[Sequence[Any], Any]:
        """Run the operation itself."""
        return sweeps.evaluate(self.eqn, operands), operands

    def reverse(self, residuals: Any, cotangents: Sequence[Any]) -> Sequence[Any]:
        """Reverse all folds side by side, from the windows' last entries to their first."""
        count = len(residuals) // 2
        xs, inits = residuals[:count], residuals[count:]
        geometry, floats = self.geometry, self.combination.floats
        y_t: Any = self.eqn.outvars[0].aval
        shape = y_t.shape
        if 0 in shape:
            return [None] * len(residuals)
        padded = [geometry.pad(x, 0) for x in xs]
        inside = geometry.pad(lax.full(xs[0].shape, True), False)
        given = [jnp.zeros_like(x) if on else None for x, on in zip(padded, floats)]
        seeds = only(sweeps.or_zeros(cotangents, self.eqn.outvars), floats)

        def entries(offset: Any) -> Any:
            there = geometry.entries(inside, offset, shape)
            return [geometry.entries(x, offset, shape) for x in padded], there

        def give_back(given: Any, offset: Any, found: Any) -> Any:
            return [None if bar is None else geometry.add_entries(x_bar, offset, bar)
                    for x_bar, bar in zip(given, found)]

        start = [lax.broadcast(init, shape) for init in inits]
        start = [match_axes(a, jax.typeof(x)) for a, x in zip(start, xs)]
        given, bars = fold_back(self.combination, start, geometry.offsets, entries, give_back,
                                given, spread_over(seeds, floats))
        xs_bar = [None if bar is None else geometry.unpad(bar) for bar in given]
        inits_bar = [None if bar is None else lax.reduce_sum(bar, range(bar.ndim)) for bar in bars]
        pairs = zip([*xs_bar, *inits_bar], self.wanted, strict=True)
        return [bar if on else None for bar, on in pairs]


_FAILS = 'raises "Linearization failed to produce known values for all output primals"'

improvement(
    "products over windows",
    _reduce(lax.mul, 1.0, (2,), (1,), "VALID"),
    at=([2.0, 0.0, 3.0],), true=[0.0, 5.0, 0.0],
    jax=_FAILS, source="y = (x₀ x₁, x₁ x₂), so x̄ = (x₁, x₀ + x₂, x₁)",
)
improvement(
    "logaddexp over windows",
    _reduce(jnp.logaddexp, -np.inf, (2,), (1,), "VALID"),
    at=([2.0, 0.0, 3.0],),
    true=[0.8807970779778823, 0.1192029220221177 + 0.04742587317756678, 0.9525741268224334],
    jax=_FAILS, source="the softmax of each window: σ(2), σ(−2) + σ(−3), σ(3)",
)
improvement(
    "the initial value of a window sum",
    lambda start: lax.reduce_window(np.ones(4), start, lax.add, (2,), (2,), "VALID"),
    at=(0.0,), true=2.0,
    jax="0.0, because it drops an initial value that is zero when it is traced",
    source="y_o = start + x_{2o} + x_{2o+1} for two windows",
)


def _select_and_scatter(select: Any, scatter: Any, *window: Any) -> Any:
    bind = _jax.find_helper("lax.windowed_reductions._select_and_scatter")
    return lambda x, source, start: bind(x, select, *window, source, start, scatter)


def _scattered_pairs(combine: Any) -> Any:
    """In windows of two, the larger entry meets the source, the other only the start."""

    def reference(x: Any, source: Any, start: Any) -> Any:
        left = x[::2] >= x[1::2]
        met = jnp.broadcast_to(combine(start, source), source.shape)
        rest = jnp.broadcast_to(start, source.shape)
        pairs = [jnp.where(left, met, rest), jnp.where(left, rest, met)]
        return jnp.stack(pairs, 1).reshape(-1)

    return reference


@higher_order(
    lax.select_and_scatter_p, axes=windowed_axes,
    kinks="of equal entries in a window, the first",
    cases=[
        case(_select_and_scatter(lax.ge, lax.add, (2,), (2,), ((0, 0),)), real(6), real(3), real(),
             reference=_scattered_pairs(lax.add), batchable=False, note="no batching rule in JAX"),
        case(_select_and_scatter(lax.ge, lax.mul, (2,), (2,), ((0, 0),)), real(6), real(3), real(),
             reference=_scattered_pairs(lax.mul), batchable=False, note="no batching rule in JAX"),
        case(_select_and_scatter(lax.ge, lax.mul, (3,), (1,), ((1, 1),)),
             real(values=[1, 5, 2, 0, 3]), real(5), real(), batchable=False,
             reference=lambda x, s, start: start * jnp.stack(
                 [jnp.ones_like(s[0]), s[0] * s[1] * s[2], jnp.ones_like(s[0]),
                  jnp.ones_like(s[0]), s[3] * s[4]]) + 0 * x,
             note="no batching rule in JAX; three windows meet at the 5, two at the 3"),
    ],
)
class SelectAndScatter(HigherOrder):
    """s̄_o = the share of s_o when the fold of all that arrived at window o's entry is reversed.

    Derivation: y_j = (…(init ⊕ s_o) ⊕ s_o' …) over the windows o with m(o) = j, where m(o) is
    the entry that the window selects. Along a window's offsets k the entry j is met at most once
    each, by the window whose corner lies k before it, so y is a fold over the offsets. m depends
    on x alone and is piecewise constant: x has no cotangent.

    Residuals: the operands.
    """

    def __init__(self, eqn: JaxprEqn, active: Mask, options: Options) -> None:
        super().__init__(eqn, active, options)
        self.wanted = (False, *self.wanted[1:])
        self.out_active = (any(self.wanted),)
        self.selection, self.combination = (
            Combination(*_jaxpr_of(eqn.params, name), options) for name in ("select_", "scatter_")
        )
        self.geometry = Geometry.of(eqn.params)

    def forward(self, *operands: Any) -> tuple[Sequence[Any], Any]:
        """Run the operation itself."""
        return sweeps.evaluate(self.eqn, operands), operands

    def _selected(self, x: Any) -> Any:
        """Find the flat position, in the padded operand, of the entry that each window selects."""

        def better(left: Any, right: Any) -> Any:
            (a, i), (b, j) = left, right
            (wins,), _ = sweeps.forward(self.selection.value_plan, self.selection.consts, (a, b))
            first = (j < 0) | ((i >= 0) & wins)
            return lax.select(first, a, b), lax.select(first, i, j)

        padded = self.geometry.pad(x, 0)
        inside = self.geometry.pad(lax.full(x.shape, True), False)
        positions = lax.reshape(lax.iota(np.int32, padded.size), padded.shape)
        positions = lax.select(inside, positions, lax.full_like(positions, -1))
        positions = match_axes(positions, jax.typeof(x))
        start = (jnp.zeros((), x.dtype), np.int32(-1))
        _, places = lax.reduce_window(
            (padded, positions), start, better, self.geometry.window_dimensions,
            self.geometry.window_strides, "VALID",
        )
        return places

    def reverse(self, residuals: Any, cotangents: Sequence[Any]) -> Sequence[Any]:
        """Reverse all folds side by side, over the offsets of a window."""
        x, source, init = residuals
        (y_bar,) = cotangents
        geometry, shape = self.geometry, source.shape
        if 0 in shape:
            bar = lax.reduce_sum(y_bar, range(y_bar.ndim)) if self.wanted[2] else None
            return [None, None, bar]
        places = self._selected(x)
        start = geometry.pad(lax.broadcast(init, x.shape), 0)
        start = match_axes(start, jax.typeof(x))
        here = lax.reshape(lax.iota(np.int32, start.size), start.shape)

        def entries(offset: Any) -> Any:
            there = geometry.add_entries(jnp.zeros_like(here), offset, places + 1) - 1 == here
            return [geometry.add_entries(jnp.zeros_like(start), offset, source)], there

        def give_back(given: Any, offset: Any, found: Any) -> Any:
            return [given[0] + geometry.entries(found[0], offset, shape)]

        (source_bar,), (init_bar,) = fold_back(
            self.combination, [start], geometry.offsets, entries, give_back,
            [jnp.zeros_like(source)], [geometry.pad(y_bar, 0)],
        )
        return [
            None,
            source_bar if self.wanted[1] else None,
            lax.reduce_sum(geometry.unpad(init_bar), range(x.ndim)) if self.wanted[2] else None,
        ]


def _jaxpr_of(params: dict[str, Any], prefix: str) -> tuple[Any, list[Any]]:
    jaxpr, consts = _jax.open_jaxpr(params[prefix + "jaxpr"])
    return jaxpr, [*consts, *params[prefix + "consts"]][: len(jaxpr.constvars)]
