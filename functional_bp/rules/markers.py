"""Markers: operations that change no value, only what is known or done about it."""

from __future__ import annotations

from typing import Any

from jax import lax
from jax.ad_checkpoint import checkpoint_name

from functional_bp import _jax
from functional_bp.cases import case, cplx, integer, real
from functional_bp.rule import pointwise, rule, structure
from functional_bp.structure import Mask, Options, Structure

_tie: Any = _jax.find_primitive("lax.lax.tie_p")
# fmt: off
pointwise(_jax.find_primitive("ad_checkpoint.name_p"), "x -> y", x=lambda y_bar: y_bar,
     why="y = x; the name is for whoever reads the graph",
     cases=[case(lambda x: checkpoint_name(x, "h") * x, real(3)),
            case(lambda x: checkpoint_name(x, "h") * x, cplx(3))])
rule(_tie, "x, y -> z", y=lambda z_bar: z_bar,
     why="z = y, scheduled after x",
     cases=[case(lambda x, y: _tie.bind(x, y) * x, real(3), real(3))])
# fmt: on


@structure(
    lax.optimization_barrier_p,
    cases=[
        case(lambda x, m, y: lax.optimization_barrier((x, m, y * x))[::2],
             real(3), integer(3), real(3)),
        case(lambda x, y: lax.optimization_barrier((x, y))[1] * y, real(3), real(3),
             note="an output without a cotangent"),
    ],
)  # fmt: skip
class Barrier(Structure):
    """x̄ᵢ = ȳᵢ, behind one barrier that the cotangents pass together, as the values did.

    Derivation:

        yᵢ = xᵢ; an output of an inactive operand is inactive
    """

    def __init__(self, eqn: Any, active: Mask, options: Options) -> None:
        super().__init__(eqn, active, options)
        self.out_active = self.wanted

    def forward(self, *operands: Any) -> tuple[list[Any], None]:
        """The operands, behind a barrier; nothing is kept."""
        return lax.optimization_barrier_p.bind(*operands), None

    def reverse(self, residuals: None, cotangents: Any) -> list[Any]:
        """The cotangents that there are, behind a barrier."""
        passed = iter(lax.optimization_barrier([c for c in cotangents if c is not None]))
        return [None if c is None else next(passed) for c in cotangents]
