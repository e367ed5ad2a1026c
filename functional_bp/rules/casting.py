"""Changes of dtype and copies: linear, so the cotangent goes back through the same change."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax

from functional_bp.cases import case, cplx, integer, real
from functional_bp.rule import linear, rule
from functional_bp.rules.elementwise import is_complex


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


# fmt: off
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
# fmt: on
