"""Reductions over axes: sum, maximum, minimum, product, and any other monoid."""

from __future__ import annotations

from jax import lax

from functional_bp.cases import case, cplx, real
from functional_bp.rule import rule
from functional_bp.rules.shapes import spread

rule(
    lax.reduce_sum_p, "x -> y", x=lambda y_bar, x_t, *, axes: spread(y_bar, x_t, axes),
    why="y = Σᵢ xᵢ  ⇒  x̄ᵢ = ȳ for every i that was summed",
    cases=[
        case(lambda x: lax.reduce_sum(x, (0, 2)), real(2, 3, 4)),
        case(lambda x: lax.reduce_sum(x, (0,)), cplx(3)),
        case(lambda x: lax.reduce_sum(x, ()), real(2)),
        case(lambda x: lax.reduce_sum(x, (1,)), real(2, 0)),
    ],
)  # fmt: skip


def share_of_extreme(y_bar, x, y, x_t, *, axes):
    """x̄ᵢ = ȳ [xᵢ = y] / #{j : xⱼ = y}.

    Derivation:
        y = xₖ near a point whose extreme element k is unique  ⇒  x̄ₖ = ȳ, all others zero.

    Kinks:
        where m elements tie, each gets ȳ/m: the mean of the m one-sided derivatives.
    """
    extreme = lax.convert_element_type(lax.eq(x, spread(y, x_t, axes)), y_bar.dtype)
    count = lax.reduce_sum(extreme, axes)
    return lax.mul(spread(lax.div(y_bar, count), x_t, axes), extreme)


def _extreme_cases(reduce):
    return [
        case(lambda x: reduce(x, (0, 2)), real(2, 3, 4)),
        case(lambda x: reduce(x, (0,)), real(values=[1, 3, 3, -2, 3]), second_order=False,
             note="a tie of three"),
        case(lambda x: reduce(x, (1,)), real(values=[[1, 1, 1], [2, 0, 2]])),
        case(lambda x: reduce(x, ()), real(2)),
        case(lambda x: reduce(x, (0,)), real(2, 0)),
    ]  # fmt: skip


TIES = "m elements that tie get 1/m each"
rule(lax.reduce_max_p, "x -> y", x=share_of_extreme, kinks=TIES, cases=_extreme_cases(lax.reduce_max))
rule(lax.reduce_min_p, "x -> y", x=share_of_extreme, kinks=TIES, cases=_extreme_cases(lax.reduce_min))
