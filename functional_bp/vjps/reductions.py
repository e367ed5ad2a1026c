"""Sums, products, maxima and minima over axes give each element its share of the cotangent.

``lax.reduce`` with a monoid of the caller's has the reverse sweep of its reduction tree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.core import eval_jaxpr
from jax.extend.core import Jaxpr, JaxprEqn

from functional_bp import _jax
from functional_bp.engine import sweeps
from functional_bp.engine.axes import reduction, relate
from functional_bp.engine.improvements import improvement
from functional_bp.engine.rule import case, cplx, higher_order, linear, real, rule
from functional_bp.vjps.calls import Call
from functional_bp.vjps.shapes import layout, spread

linear(
    lax.reduce_sum_p, "x -> y", x=lambda y_bar, x_t, *, axes: spread(y_bar, x_t, axes),
    why="y = Σᵢ xᵢ  ⇒  x̄ᵢ = ȳ for every i that was summed", axes=reduction("sum"),
    cases=[
        case(lambda x: lax.reduce_sum(x, (0, 2)), real(2, 3, 4)),
        case(lambda x: lax.reduce_sum(x, (0,)), cplx(3)),
        case(lambda x: lax.reduce_sum(x, ()), real(2)),
        case(lambda x: lax.reduce_sum(x, (1,)), real(2, 0)),
    ],
)


def share_of_extreme(y_bar, x, y, x_t, *, axes):
    """x̄ᵢ = ȳ [xᵢ = y] / #{j : xⱼ = y}.

    Derivation:
        y = xₖ near a point whose extreme element k is unique  ⇒  x̄ₖ = ȳ, all others zero.

    Kinks:
        where m elements tie, each gets ȳ/m: the mean of the m one-sided derivatives.
    """
    extreme, count = extremes(x, y, x_t, axes)
    return lax.mul(spread(lax.div(y_bar, count), x_t, axes), extreme)


def mean_of_extreme(x_dot, x, y, x_t, *, axes):
    """ẏ = Σᵢ ẋᵢ [xᵢ = y] / #{j : xⱼ = y}, the transpose."""
    extreme, count = extremes(x, y, x_t, axes)
    return lax.div(lax.reduce_sum(lax.mul(x_dot, extreme), axes), count)


def extremes(x, y, x_t, axes):
    """[xᵢ = y] as numbers, and how many there are."""
    extreme = lax.convert_element_type(lax.eq(x, spread(y, x_t, axes)), x.dtype)
    return extreme, lax.reduce_sum(extreme, axes)


def _extreme_cases(reduce):
    return [
        case(lambda x: reduce(x, (0, 2)), real(2, 3, 4)),
        case(lambda x: reduce(x, (0,)), real(values=[1, 3, 3, -2, 3]), second_order=False,
             note="a tie of three"),
        case(lambda x: reduce(x, (1,)), real(values=[[1, 1, 1], [2, 0, 2]])),
        case(lambda x: reduce(x, ()), real(2)),
        case(lambda x: reduce(x, (0,)), real(2, 0)),
    ]


TIES = "m elements that tie get 1/m each"
rule(
    lax.reduce_max_p, "x -> y", x=share_of_extreme, pushforward=mean_of_extreme, kinks=TIES,
    axes=reduction("max"),
    cases=_extreme_cases(lax.reduce_max),
)
rule(
    lax.reduce_min_p, "x -> y", x=share_of_extreme, pushforward=mean_of_extreme, kinks=TIES,
    axes=reduction("min"),
    cases=_extreme_cases(lax.reduce_min),
)


def flattened(x, axes):
    """Return ``x`` with ``axes`` flattened into one leading axis, and the order of axes that does
    it.
    """
    order = (*axes, *(i for i in range(x.ndim) if i not in axes))
    n = math.prod(x.shape[i] for i in axes)
    moved = lax.transpose(x, order)
    if len(axes) == 1:
        return moved, order
    kept = order[len(axes) :]
    sharding = layout(jax.typeof(x), (None, *kept))
    return lax.reshape(moved, (n, *(x.shape[i] for i in kept)), out_sharding=sharding), order


def halves(x):
    """Return the two halves of the leading axis, and the middle element if its length is odd."""
    n = x.shape[0]
    part = lambda start, stop: lax.slice_in_dim(x, start, stop)
    return part(0, n // 2), part(n - n // 2, n), [part(n // 2, n - n // 2)] * (n % 2)


def product_of_halves(x):
    """Multiply the first half by the second: the first level of the product's tree."""
    first, second, middle = halves(x)
    product = lax.mul(first, second)
    return lax.concatenate([product, *middle], 0) if middle else product


def product_by_tree(x, *, axes, out_sharding=None):
    """Return the product, and the first level of the tree that it came from."""
    x, _ = flattened(x, axes)
    level = pairs = product_of_halves(x) if x.shape[0] > 1 else x
    while level.shape[0] > 1:
        level = product_of_halves(level)
    if level.shape[0] == 1:
        return lax.squeeze(level, (0,)), pairs
    return lax.full(level.shape[1:], 1, level.dtype), pairs


def product_of_others(y_bar, x, pairs):
    """Return ȳ times the product of the other elements, for every element of the leading axis."""
    if x.shape[0] < 2:
        return lax.broadcast_in_dim(y_bar, x.shape, tuple(range(1, x.ndim)))
    first, second, middle = halves(x)
    deeper = product_of_halves(pairs) if pairs.shape[0] > 1 else pairs
    pairs_bar = product_of_others(y_bar, pairs, deeper)
    half = first.shape[0]
    both_bar = lax.slice_in_dim(pairs_bar, 0, half)
    middle_bar = [lax.slice_in_dim(pairs_bar, half, half + 1)] if middle else []
    return lax.concatenate([lax.mul(both_bar, second), *middle_bar, lax.mul(both_bar, first)], 0)


def share_of_product(y_bar, x, pairs, x_t, *, axes):
    """x̄ᵢ = ȳ Π_{j≠i} xⱼ.

    Derivation:
        y = a b with a and b the products of two halves   ⇒   ā = ȳ b,  b̄ = ȳ a:
        down the tree of halves, every leaf ends with ȳ times all other leaves.

    Residuals:
        x and the first level of the tree, half as large; deeper levels are multiplied again.

    Numerics:
        nothing is divided, so zeros are exact, one or several; n − 1 products up, 2n down.
    """
    flat, order = flattened(x, axes)
    flat_bar = product_of_others(y_bar, flat, pairs)
    shape = [x_t.shape[i] for i in order]
    permuted = lax.reshape(flat_bar, shape, out_sharding=layout(x_t, order))
    return lax.transpose(permuted, np.argsort(order))


rule(
    lax.reduce_prod_p, "x -> y | pairs", x=share_of_product, forward=product_by_tree,
    axes=reduction("prod"),
    cases=[
        case(lambda x: lax.reduce_prod(x, (0, 2)), real(2, 3, 4)),
        case(lambda x: lax.reduce_prod(x, (0,)), cplx(5)),
        case(lambda x: lax.reduce_prod(x, (1,)), real(values=[[0, 2, 3], [0, 4, 0], [1, 2, -1]]),
             note="one zero, two zeros, none"),
        case(lambda x: lax.reduce_prod(x, (0,)), real(7)),
        case(lambda x: lax.reduce_prod(x, (0,)), real(1, 2)),
        case(lambda x: lax.reduce_prod(x, ()), real(2)),
        case(lambda x: lax.reduce_prod(x, (1,)), real(2, 0)),
    ],
)


# Reductions by a monoid of the caller's.


def fold(eqn: JaxprEqn) -> Any:
    """The reduction, as a function, combines adjacent pairs level by level, then the initial value.

    The order of the elements is kept, so the operation need not commute.
    """
    body, consts = _jax.open_jaxpr(eqn.params["jaxpr"])
    axes = eqn.params["dimensions"]
    count = len(eqn.invars) // 2

    def combine(left: Sequence[Any], right: Sequence[Any]) -> list[Any]:
        scalars = lambda *values: eval_jaxpr(body, consts, *values)
        for _ in left[0].shape:
            scalars = jax.vmap(scalars)
        return scalars(*left, *right)

    def run(*operands: Any) -> list[Any]:
        axes_of = (_jax.varying_axes(jax.typeof(x)) for x in operands)
        shared = frozenset[str]().union(*axes_of)
        operands = tuple(sweeps.vary(x, shared) for x in operands)
        arrays, inits = operands[:count], operands[count:]
        kept = [i for i in range(arrays[0].ndim) if i not in axes]
        shape = tuple(arrays[0].shape[i] for i in kept)
        n = math.prod(arrays[0].shape[i] for i in axes)
        level = [flattened(x, axes)[0] for x in arrays]
        like = layout(jax.typeof(level[0]), range(1, level[0].ndim))
        starts = [lax.broadcast_in_dim(init, shape, (), out_sharding=like) for init in inits]
        if n == 0:
            return starts
        while (n := level[0].shape[0]) > 1:
            left = [lax.slice_in_dim(x, 0, n // 2 * 2, stride=2) for x in level]
            right = [lax.slice_in_dim(x, 1, n, stride=2) for x in level]
            pairs = combine(left, right)
            if n % 2:
                rest = [lax.slice_in_dim(x, n - 1, n) for x in level]
                pairs = [lax.concatenate([p, r], 0) for p, r in zip(pairs, rest)]
            level = pairs
        return combine(starts, [lax.squeeze(x, (0,)) for x in level])

    return run


def _rotation(x: Any, y: Any) -> Any:
    """The product of complex numbers, given as pairs, makes two operands of one reduction."""
    return lax.reduce(
        (x, y), (np.ones((), x.dtype), np.zeros((), y.dtype)),
        lambda p, q: (p[0] * q[0] - p[1] * q[1], p[0] * q[1] + p[1] * q[0]), (0,),
    )


def _circle(a: Any, b: Any) -> Any:
    """a ∘ b = a + b + ab is a monoid with unit 0, for 1 + a∘b = (1+a)(1+b)."""
    return a + b + a * b


def _from(init: Any, x: Any) -> Any:
    return lax.reduce(x, init, _circle, (0,))


def folded_axes(operands_t, outputs_t, *, dimensions):
    """A fold in any order is still not one that can begin twice: its initial value is no unit."""
    whole = range(len(operands_t[0].shape))
    left = [i for i in whole if i not in dimensions]
    ins = [whole if len(x.shape) else [] for x in operands_t]
    return relate(ins, [left for _ in outputs_t], mixed=dimensions)


@higher_order(
    lax.reduce_p, axes=folded_axes,
    cases=[
        case(lambda x: lax.reduce(x, np.zeros((), x.dtype), _circle, (0,)), real(5)),
        case(lambda x: lax.reduce(x, np.zeros((), x.dtype), _circle, (2, 0)), real(2, 3, 3)),
        case(lambda x: lax.reduce(x, np.zeros((), x.dtype), _circle, (1,)), real(2, 0)),
        case(_rotation, real(4, 2), real(4, 2),
             reference=lambda x, y: (lambda z: (z.real, z.imag))(_complex_product(x, y)),
             note="one active operand of two: JAX raises TypeError"),
        case(_from, real(), real(4),
             reference=lambda i, x: (1 + i) * lax.reduce_prod(1 + x, (0,)) - 1,
             note="the initial value: JAX raises NotImplementedError"),
    ],
)
class Reduce(Call):
    """x̄ is the reverse sweep of the tree that folds x.

    Derivation:
        y = x₀ ∘ (x₁ ∘ …) may be bracketed in any way, because ∘ is associative; as a tree of
        pairs it is a graph of n − 1 applications, depth log₂ n. At each application z = a ∘ b the
        operation's own rules give ā and b̄; down the tree every xᵢ has its cotangent.

        The initial value enters once, y = init ∘ (…): its cotangent is that of the left operand.

    Residuals: those of the operation at every application, n − 1 in all.
    """

    def body(self) -> tuple[Jaxpr, list[Any]]:
        """Return the tree as a graph."""
        return _jax.open_jaxpr(jax.make_jaxpr(fold(self.eqn))(*[a.aval for a in self.eqn.invars]))


def _complex_product(x: Any, y: Any) -> Any:
    return lax.reduce_prod(lax.complex(x, y), (0,))


improvement(
    "one operand of a reduction of two", _rotation, at=([2.0, 3.0], [1.0, -1.0]), wrt=0,
    true=[2.0, 3.0], jax="raises TypeError",
    source="(2+i)(3−i): ∂(Re + Im)/∂x₀ = 3 − 1, ∂/∂x₁ = 2 + 1",
)
improvement(
    "initial value of a reduction", _from, at=(0.5, [1.0, 2.0]), wrt=0, true=6.0,
    jax="raises NotImplementedError", source="y = (1 + init)(1 + x₀)(1 + x₁) − 1: ∂y/∂init = 2 · 3",
)
