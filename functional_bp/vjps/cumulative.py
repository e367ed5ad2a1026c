"""Running sums, products, extremes and log-sum-exps along an axis have one rule each.

All but the sum share one derivation, the adjoint of the prefix tree below.

References:
    Blelloch 1990, Prefix sums and their applications, CMU-CS-90-190, has the tree; its adjoint is
    derived in ``prefix_adjoint``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from functional_bp.engine.axes import mixing
from functional_bp.engine.rule import case, cplx, linear, real, rule

Partials = Callable[[Any, Any, Any], tuple[Any, Any]]


def prefix_adjoint(
    y_bar: Any, x: Any, y: Any, axis: int, combine: Callable[[Any, Any], Any], partials: Partials
) -> Any:
    """Return x̄ of yᵢ = x₀ ∘ x₁ ∘ … ∘ xᵢ, for ∘ with partial derivatives (∂(a∘b)/∂a, ∂(a∘b)/∂b).

    Derivation:
        the tree computes, with the pairs pᵢ = x₂ᵢ ∘ x₂ᵢ₊₁ and the same tree on half the length,

            y₁, y₃, y₅ … = prefixes of p          y₀ = x₀,   y₂ᵢ = y₂ᵢ₋₁ ∘ x₂ᵢ

        Backwards, with the last step first:

            y₂ᵢ₋₁ bar += ȳ₂ᵢ ∂(y₂ᵢ₋₁ ∘ x₂ᵢ)/∂y₂ᵢ₋₁       x̄₂ᵢ = ȳ₂ᵢ ∂(y₂ᵢ₋₁ ∘ x₂ᵢ)/∂x₂ᵢ
            p̄ = adjoint of the tree on p, at (ȳ₁, ȳ₃ …)
            x̄₂ᵢ += p̄ᵢ ∂pᵢ/∂x₂ᵢ                           x̄₂ᵢ₊₁ = p̄ᵢ ∂pᵢ/∂x₂ᵢ₊₁

        No division occurs: zeros of a product are exact. 2n steps in all, depth 2 log₂ n.

    Residuals:
        x and y. Prefixes of p are every other prefix of x; the pairs are combined again.
    """
    n = x.shape[axis]
    if n < 2:
        return y_bar
    every_other = partial(lax.slice_in_dim, stride=2, axis=axis)
    first, second = every_other(x, 0, -1), every_other(x, 1, None)
    odd, odd_bar = every_other(y, 1, None), every_other(y_bar, 1, None)
    even_bar = x_even_bar = every_other(y_bar, 0, None)
    if n > 2:
        before = lax.slice_in_dim(odd, 0, (n - 1) // 2, axis=axis)
        by_before, by_x = partials(before, every_other(x, 2, None), every_other(y, 2, None))
        later_bar = lax.slice_in_dim(even_bar, 1, None, axis=axis)
        odd_bar = odd_bar + _shift(later_bar * by_before, 0, odd.shape[axis], axis)
        start_bar = lax.slice_in_dim(even_bar, 0, 1, axis=axis)
        x_even_bar = lax.concatenate([start_bar, later_bar * by_x], axis)
    pairs = combine(first, second)
    pair_bar = prefix_adjoint(odd_bar, pairs, odd, axis, combine, partials)
    by_first, by_second = partials(first, second, pairs)
    x_even_bar = x_even_bar + _shift(pair_bar * by_first, 0, x_even_bar.shape[axis], axis)
    return _interleave(x_even_bar, pair_bar * by_second, n, axis)


def _shift(array: Any, start: int, size: int, axis: int, step: int = 1) -> Any:
    """Put ``array`` at start, start + step, … of ``size`` places along ``axis``, and zeros
    elsewhere.
    """
    if array.shape[axis] == size:
        return array
    covered = (array.shape[axis] - 1) * step + 1
    config = [(0, 0, 0)] * array.ndim
    config[axis] = (start, size - start - covered, step - 1)
    return lax.pad(array, np.zeros((), array.dtype), config)


def _interleave(even: Any, odd: Any, n: int, axis: int) -> Any:
    return _shift(even, 0, n, axis, 2) + _shift(odd, 1, n, axis, 2)


def scan_rule(primitive: Any, combine: Callable[[Any, Any], Any], partials: Partials,
              **text: Any) -> None:
    """Declare a running reduction; its forward sweep is the prefix tree, as JAX's is."""

    def forward(x: Any, *, axis: int, reverse: bool) -> tuple[Any, Any]:
        y = lax.associative_scan(combine, x, reverse=reverse, axis=axis)
        return y, y

    def pullback(y_bar, x, prefixes, *, axis, reverse):
        if reverse:
            y_bar, x, prefixes = (lax.rev(array, (axis,)) for array in (y_bar, x, prefixes))
        x_bar = prefix_adjoint(y_bar, x, prefixes, axis, combine, partials)
        return lax.rev(x_bar, (axis,)) if reverse else x_bar

    pullback.__doc__ = text.pop("doc")
    rule(primitive, "x -> y | prefixes", x=pullback, forward=forward, axes=mixing("axis"), **text)


def share(a: Any, b: Any, chosen: Any) -> tuple[Any, Any]:
    """The partial derivatives of max or min are 1 for the chosen operand, and ½ each at a tie."""
    is_a, is_b = lax.eq(a, chosen), lax.eq(b, chosen)
    zero, one = lax.full_like(chosen, 0), lax.full_like(chosen, 1)
    of_a = lax.select(is_b, lax.full_like(chosen, 0.5), one)
    of_b = lax.select(is_a, lax.full_like(chosen, 0.5), one)
    return lax.select(is_a, of_a, zero), lax.select(is_b, of_b, zero)


def softmax_of_two(a: Any, b: Any, z: Any) -> tuple[Any, Any]:
    """∂ log(eᵃ + eᵇ)/∂a = eᵃ⁻ᶻ, where an infinite a, b or z counts as 0, as JAX has it."""
    a, b, z = (lax.select(lax.eq(v, lax.full_like(v, np.inf)), lax.full_like(v, 0), v)
               for v in (a, b, z))
    return lax.exp(a - z), lax.exp(b - z)


def _cases(function: Any, *more: Any) -> list[Any]:
    return [
        *[case(partial(function, axis=0), real(n)) for n in (1, 2, 3, 5, 8)],
        case(partial(function, axis=1, reverse=True), real(2, 5)),
        case(partial(function, axis=0), real(0, 2)),
        *more,
    ]


linear(
    lax.cumsum_p, "x -> y", axes=mixing("axis"),
    x=lambda y_bar, *, axis, reverse: lax.cumsum(y_bar, axis=axis, reverse=not reverse),
    why="yⱼ = Σ_{i≤j} xᵢ  ⇒  x̄ᵢ = Σ_{j≥i} ȳⱼ: the running sum from the other end",
    cases=_cases(lax.cumsum, case(lax.cumsum, cplx(3))),
)
scan_rule(
    lax.cumprod_p, lax.mul, lambda a, b, ab: (b, a),
    doc="""x̄ᵢ = Σ_{j≥i} ȳⱼ Π_{k≤j, k≠i} xₖ, through the prefix tree with ∂(ab) = (b, a).""",
    cases=_cases(
        lax.cumprod,
        case(lax.cumprod, cplx(4)),
        case(lax.cumprod, real(values=[2, 0, 3, 0, -1]), note="zeros"),
    ),
)
TIES = "a tie of two at a node of the prefix tree: ½ each, as JAX; [1, 1, 1] gives [1.75, .75, .5]"
_TIED = real(values=[1, 1, 1, 0, 2, 2])
scan_rule(
    lax.cummax_p, lax.max, share, kinks=TIES,
    doc="""x̄ᵢ = Σ ȳⱼ over the j whose running maximum is xᵢ, through the prefix tree.""",
    cases=_cases(lax.cummax, case(lax.cummax, _TIED), case(lambda x: lax.cummax(-x), _TIED)),
)
scan_rule(
    lax.cummin_p, lax.min, share, kinks=TIES,
    doc="""x̄ᵢ = Σ ȳⱼ over the j whose running minimum is xᵢ, through the prefix tree.""",
    cases=_cases(lax.cummin, case(lax.cummin, _TIED)),
)
scan_rule(
    lax.cumlogsumexp_p, jnp.logaddexp, softmax_of_two,
    doc="""x̄ᵢ = Σ_{j≥i} ȳⱼ exp(xᵢ − yⱼ), as products of the tree's exp(a − z) ≤ 1: no overflow.""",
    cases=_cases(
        lax.cumlogsumexp,
        case(lax.cumlogsumexp, real(values=[900, -900, 905]), half=False, note="large"),
        case(lax.cumlogsumexp, real(values=[1, -np.inf, 2]), second_order=False),
    ),
)
