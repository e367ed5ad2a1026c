"""An elementwise function y = f(x) of one operand has x̄ = ȳ · f′(x).

For a complex x the cotangent is ȳ · f′(x) without a conjugate, as in JAX: f is holomorphic, and
the pairing of a cotangent with a tangent is the bilinear one, Re Σ ȳ ẋ.

A piecewise constant function has the derivative zero wherever it has one. Integers, booleans, keys
and tokens have no tangent space: nothing flows into them or out of them. Both need no cotangent,
and nothing is kept for them.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.lax import add, div, exp, mul, neg, rsqrt, square, sub

from functional_bp import _jax
from functional_bp.engine.axes import mixing, reduction, relate
from functional_bp.engine.higher_order import HigherOrder, Mask, Options
from functional_bp.engine.improvements import improvement
from functional_bp.engine.rule import (
    boolean,
    case,
    cplx,
    higher_order,
    integer,
    linear,
    no_tangent_space,
    piecewise_constant,
    pointwise,
    real,
    rule,
)


def constant(value: float, x: Any) -> np.ndarray:
    """Make a scalar of ``x``'s dtype."""
    return np.asarray(value, x.dtype)


def one_minus_square(x: Any) -> Any:
    """1 − x² = (1 − x)(1 + x), a form that keeps its digits where |x| is near 1."""
    if hasattr(lax, "one_minus_square"):
        return _one_minus_square(x)
    one = constant(1, x)
    return mul(sub(one, x), add(one, x))


def pull_tanh(y_bar: Any, y: Any) -> Any:
    """tanh′ = 1 − tanh² = 1 − y², so x̄ = ȳ (1 − y)(1 + y) = t + t y with t = ȳ (1 − y)."""
    if hasattr(lax, "one_minus_square"):
        return mul(y_bar, _one_minus_square(y))
    part = mul(y_bar, sub(constant(1, y), y))
    return add(part, mul(part, y))


def pull_tanh_of_held(y_bar: Any, x: Any) -> Any:
    """Where x is there anyway: tanh′ = 4/(eˣ + e⁻ˣ)² = 4 σ(2x) σ(−2x), as σ(2x) = eˣ/(eˣ + e⁻ˣ).

    Numerics: y is ±1 in rounded numbers from |x| = 9 (float32) or 19 on, and 1 − y² is zero.
    """
    twice = mul(constant(2, x), x)
    slope = mul(lax.logistic(twice), lax.logistic(neg(twice)))
    return mul(y_bar, mul(constant(4, x), slope))


def pull_logistic_of_held(y_bar: Any, x: Any) -> Any:
    """Where x is there anyway: σ′ = σ(x) σ(−x), as 1 − σ(x) = σ(−x).

    Numerics: y is 1 in rounded numbers from x = 17 (float32) or 37 on, and 1 − y is zero.
    """
    return mul(y_bar, mul(lax.logistic(x), lax.logistic(neg(x))))


def _one_minus_square(x: Any) -> Any:
    return lax.one_minus_square(x)  # pyright: ignore[reportAttributeAccessIssue]  # JAX 0.12


def is_complex(x: Any) -> bool:
    """Say whether an array or its type is complex."""
    return np.issubdtype(x.dtype, np.complexfloating)


pointwise(lax.neg_p, "x -> y", x=lambda y_bar: neg(y_bar),
     why="y = −x",
     cases=[case(lax.neg, real(3)), case(lax.neg, cplx(2))])
pointwise(lax.exp_p, "x -> y", x=lambda y_bar, y: mul(y_bar, y),
     why="(eˣ)′ = eˣ = y",
     cases=[case(lax.exp, real(3)), case(lax.exp, cplx(2)), case(lax.exp, real(0))])
pointwise(lax.exp2_p, "x -> y", x=lambda y_bar, y: mul(y_bar, mul(constant(np.log(2), y), y)),
     why="(2ˣ)′ = 2ˣ ln 2 = y ln 2",
     cases=[case(lax.exp2, real(3)), case(lax.exp2, cplx(2))])
pointwise(lax.expm1_p, "x -> y", x=lambda y_bar, x: mul(y_bar, exp(x)),
     why="(eˣ − 1)′ = eˣ; y + 1 would lose its digits for x ≪ 0",
     cases=[case(lax.expm1, real(3)), case(lax.expm1, cplx(2))])
pointwise(lax.log_p, "x -> y", x=lambda y_bar, x: div(y_bar, x),
     why="(ln x)′ = 1/x", kinks="x = 0: inf",
     cases=[case(lax.log, real(3, low=0.1, high=4)), case(lax.log, cplx(2))])
pointwise(lax.log1p_p, "x -> y", x=lambda y_bar, x: div(y_bar, add(x, constant(1, x))),
     why="(ln(1 + x))′ = 1/(1 + x)", kinks="x = −1: inf",
     cases=[case(lax.log1p, real(3, low=-0.9, high=4)), case(lax.log1p, cplx(2))])
rule(_jax.find_primitive("lax.lax.log2_p"), "x -> y",
     x=lambda y_bar, x: div(y_bar, mul(x, constant(np.log(2), x))),
     why="log₂ x = ln x / ln 2, (log₂ x)′ = 1/(x ln 2)", kinks="x = 0: inf",
     cases=[case(jnp.log2, real(3, low=0.1, high=4)), case(jnp.log2, cplx(2))])

pointwise(lax.tanh_p, "x -> y", x=lambda y_bar, y: pull_tanh(y_bar, y),
     if_held={"x": pull_tanh_of_held}, why=pull_tanh.__doc__ or "",
     cases=[case(lax.tanh, real(3)), case(lax.tanh, cplx(2, low=-1, high=1))])
pointwise(lax.logistic_p, "x -> y", x=lambda y_bar, y: mul(y_bar, mul(y, sub(constant(1, y), y))),
     if_held={"x": pull_logistic_of_held},
     why="σ(x) = 1/(1 + e⁻ˣ), σ′ = e⁻ˣ/(1 + e⁻ˣ)² = σ(1 − σ)",
     cases=[case(lax.logistic, real(3)), case(lax.logistic, cplx(2, low=-1, high=1))])

pointwise(lax.sin_p, "x -> y",
     x=lambda y_bar, x, *, accuracy=None: mul(y_bar, lax.cos(x, accuracy=accuracy)),
     why="sin′ = cos",
     cases=[case(lax.sin, real(3)), case(lax.sin, cplx(2))])
pointwise(lax.cos_p, "x -> y",
     x=lambda y_bar, x, *, accuracy=None: neg(mul(y_bar, lax.sin(x, accuracy=accuracy))),
     why="cos′ = −sin",
     cases=[case(lax.cos, real(3)), case(lax.cos, cplx(2))])
pointwise(lax.tan_p, "x -> y", x=lambda y_bar, y: mul(y_bar, add(constant(1, y), square(y))),
     why="tan′ = 1/cos² = 1 + tan² = 1 + y²",
     cases=[case(lax.tan, real(3, low=-1.2, high=1.2)), case(lax.tan, cplx(2, low=-1, high=1))])
pointwise(lax.asin_p, "x -> y", x=lambda y_bar, x: mul(y_bar, rsqrt(one_minus_square(x))),
     why="x = sin y, asin′ = 1/cos y = 1/√(1 − x²)", kinks="x = ±1: inf",
     cases=[case(lax.asin, real(3, low=-0.9, high=0.9)), case(lax.asin, cplx(2))])
pointwise(lax.acos_p, "x -> y", x=lambda y_bar, x: neg(mul(y_bar, rsqrt(one_minus_square(x)))),
     why="acos x = π/2 − asin x, acos′ = −1/√(1 − x²)", kinks="x = ±1: −inf",
     cases=[case(lax.acos, real(3, low=-0.9, high=0.9)), case(lax.acos, cplx(2))])
pointwise(lax.atan_p, "x -> y", x=lambda y_bar, x: div(y_bar, add(constant(1, x), square(x))),
     why="x = tan y, atan′ = 1/(1 + tan² y) = 1/(1 + x²)",
     cases=[case(lax.atan, real(3)), case(lax.atan, cplx(2, low=-0.7, high=0.7))])
pointwise(lax.sinh_p, "x -> y", x=lambda y_bar, x: mul(y_bar, lax.cosh(x)),
     why="sinh′ = cosh",
     cases=[case(lax.sinh, real(3)), case(lax.sinh, cplx(2))])
pointwise(lax.cosh_p, "x -> y", x=lambda y_bar, x: mul(y_bar, lax.sinh(x)),
     why="cosh′ = sinh",
     cases=[case(lax.cosh, real(3)), case(lax.cosh, cplx(2))])
pointwise(lax.acosh_p, "x -> y",
     x=lambda y_bar, x: mul(
         y_bar, mul(rsqrt(sub(x, constant(1, x))), rsqrt(add(x, constant(1, x))))),
     why="x = cosh y, acosh′ = 1/sinh y = 1/(√(x − 1) √(x + 1)): x² cannot overflow, and for "
         "complex x the product of the two roots is the right branch of √(x² − 1)",
     kinks="x = 1: inf",
     cases=[case(lax.acosh, real(3, low=1.2, high=4)),
            case(lax.acosh, cplx(2, low=0.2, high=2))])
pointwise(lax.atanh_p, "x -> y", x=lambda y_bar, x: div(y_bar, one_minus_square(x)),
     why="x = tanh y, atanh′ = 1/(1 − tanh² y) = 1/(1 − x²)", kinks="x = ±1: inf",
     cases=[case(lax.atanh, real(3, low=-0.9, high=0.9)), case(lax.atanh, cplx(2))])

pointwise(lax.sqrt_p, "x -> y", x=lambda y_bar, y: mul(y_bar, div(constant(0.5, y), y)),
     why="y² = x, 2 y ẏ = ẋ, (√x)′ = ½/y", kinks="x = 0: inf",
     cases=[case(lax.sqrt, real(3, low=0.1, high=4)), case(lax.sqrt, cplx(2))])
pointwise(lax.rsqrt_p, "x -> y",
     x=lambda y_bar, y: mul(constant(-0.5, y), mul(mul(y_bar, y), square(y))),
     why="y = x^(−½), y′ = −½ x^(−3/2) = −½ y³: the output alone is kept",
     kinks="x = 0: −inf",
     cases=[case(lax.rsqrt, real(3, low=0.1, high=4)), case(lax.rsqrt, cplx(2))])
pointwise(lax.cbrt_p, "x -> y", x=lambda y_bar, y: div(mul(y_bar, constant(1 / 3, y)), square(y)),
     why="y³ = x, 3 y² ẏ = ẋ, (∛x)′ = ⅓/y²", kinks="x = 0: inf",
     cases=[case(lax.cbrt, real(values=[0.4, -1.3, 2.0]))])
pointwise(lax.square_p, "x -> y", x=lambda y_bar, x: mul(y_bar, mul(constant(2, x), x)),
     why="(x²)′ = 2 x",
     cases=[case(lax.square, real(3)), case(lax.square, cplx(2))])
rule(_jax.find_primitive("lax.lax.one_minus_square_p"), "x -> y",
     x=lambda y_bar, x: mul(y_bar, mul(constant(-2, x), x)),
     why="(1 − x²)′ = −2 x",
     cases=[case(_one_minus_square, real(3)), case(_one_minus_square, cplx(2))])

linear(lax.real_p, "x -> y",
     x=lambda y_bar: lax.complex(y_bar, lax.full_like(y_bar, 0)),
     why="Re(x̄ ẋ) = ȳ Re ẋ for every complex ẋ, so x̄ = ȳ + 0 i",
     cases=[case(lax.real, cplx(3))])
linear(lax.imag_p, "x -> y",
     x=lambda y_bar: lax.complex(lax.full_like(y_bar, 0), neg(y_bar)),
     why="Re(x̄ ẋ) = ȳ Im ẋ for every complex ẋ, so x̄ = −i ȳ",
     cases=[case(lax.imag, cplx(3))])
linear(lax.conj_p, "x -> y",
     x=lambda y_bar, x_t: lax.conj(y_bar) if is_complex(x_t) else lax.real(y_bar),
     why="Re(ȳ conj ẋ) = Re(conj(ȳ) ẋ), so x̄ = conj ȳ; its real part where x is real",
     cases=[case(lax.conj, cplx(3)), case(lax.conj, real(3), half=False)])


def pull_asinh(y_bar: Any, x: Any) -> Any:
    """x̄ = ȳ / √(1 + x²).

    Derivation:

        x = sinh y,  ẋ = cosh y · ẏ,  cosh y = √(1 + sinh² y) = √(1 + x²)

    Numerics: where |x| > 4/√ε the 1 is below rounding, and 1/|x| is taken; x² overflows there in
    half precision (from |x| = 256).
    """
    one = constant(1, x)
    if is_complex(x):
        return mul(y_bar, rsqrt(add(square(x), one)))
    size = lax.abs(x)
    is_large = lax.gt(size, constant(4 / np.sqrt(float(jnp.finfo(x.dtype).eps)), x))
    small = lax.select(is_large, lax.full_like(x, 1), x)
    return mul(y_bar, lax.select(is_large, div(one, size), rsqrt(add(square(small), one))))


pointwise(lax.asinh_p, "x -> y", x=pull_asinh,
     cases=[case(lax.asinh, real(3)), case(lax.asinh, cplx(2, low=-0.7, high=0.7)),
            case(lax.asinh, real(values=[-3e2, 2e3]), note="beyond the square's range in half"),
     ])
improvement("asinh of a large x in half precision", lax.asinh, at=(400.0,), true=0.0024999921875366,
            jax="0.0 in JAX 0.10: x² overflows", source="mpmath: 1/sqrt(1 + 400**2)",
            dtype="float16", rtol=2e-3)
improvement("acosh of a large x in half precision", lax.acosh, at=(400.0,), true=0.0025000078125366,
            jax="0.0 in JAX 0.10: x² overflows", source="mpmath: 1/sqrt(400**2 - 1)",
            dtype="float16", rtol=2e-3)
improvement("acosh of a complex x in the left half plane", lax.acosh, at=(-1.0 + 0.5j,),
            true=-0.606155253420389433 - 0.776349347198923945j,
            jax="of the wrong sign in JAX 0.10: the other branch of √(x² − 1)",
            source="mpmath: 1/(sqrt(x - 1) sqrt(x + 1))")


def _abs_with_direction(x: Any, **params: Any) -> tuple[Any, Any]:
    y = lax.abs_p.bind(x, **params)
    if not is_complex(x):
        return y, lax.ge(x, constant(0, x))
    is_zero = lax.eq(y, constant(0, y))
    size = lax.complex(lax.select(is_zero, lax.full_like(y, 1), y), lax.full_like(y, 0))
    return y, div(lax.conj(x), size)


def pull_abs(y_bar: Any, x_t: Any, direction: Any) -> Any:
    """x̄ = ±ȳ with the sign of x; for a complex x, x̄ = ȳ · conj(x)/|x|.

    Derivation:

        |x|² = x conj x,  2 |x| d|x| = 2 Re(conj(x) ẋ),  d|x| = Re(conj(x)/|x| · ẋ)

    Residuals: whether x ≥ 0, one byte an element; the complex unit conj(x)/|x|.

    Kinks: +ȳ at x = 0 for real x, 0 for complex x.
    """
    if is_complex(x_t):
        return mul(lax.complex(y_bar, lax.full_like(y_bar, 0)), direction)
    return lax.select(direction, y_bar, neg(y_bar))


pointwise(lax.abs_p, "x -> y | direction", x=pull_abs, forward=_abs_with_direction,
     kinks="real x = 0: +1; complex x = 0: 0",
     cases=[case(lax.abs, real(3)), case(lax.abs, cplx(3)),
            case(lax.abs, real(values=[0.0, -1.0, 2.0]), second_order=False, note="at the kink"),
            case(lax.abs, cplx(values=[0j, 1 - 2j]), second_order=False, note="at the kink"),
     ])


@higher_order(
    lax.sign_p,
    kinks="x = 0: 0",
    cases=[
        case(lax.sign, real(values=[-1.5, 0.0, 2.0])),
        case(lax.sign, cplx(3), reference=lambda x: unit(x), note="JAX 0.10 gives 0"),
    ],
)
class Sign(HigherOrder):
    """x̄ = 0 for a real x, x̄ = i Im(y ȳ) conj(y)/|x| for a complex x, where y = x/|x|.

    Derivation:

        y = e^(iθ),  ẏ = i y θ̇,  θ̇ = Im(ẋ/x) = Im(conj(y) ẋ)/|x|
        Re(ȳ ẏ) = Re(i y ȳ) θ̇ = −Im(y ȳ) Im(conj(y) ẋ)/|x|
        −Im w = Re(i w),  so x̄ = i Im(y ȳ) conj(y)/|x|

    It is a higher-order rule, so that a real x is known to have no derivative before
    anything is kept.
    """

    def __init__(self, eqn: Any, active: Mask, options: Options) -> None:
        super().__init__(eqn, active, options)
        on = is_complex(eqn.invars[0].aval)
        self.out_active, self.wanted = (on,), (on and self.wanted[0],)

    def forward(self, *operands: Any) -> tuple[list[Any], Any]:
        """Return sign(x), and keep x."""
        return [lax.sign(operands[0])], operands[0]

    def reverse(self, residuals: Any, cotangents: Any) -> list[Any]:
        """Return x̄ = i Im(y ȳ) conj(y)/|x|."""
        x, y_bar = residuals, cotangents[0]
        y, size = lax.sign(x), lax.abs(x)
        size = lax.select(lax.eq(size, constant(0, size)), lax.full_like(size, 1), size)
        turn = div(lax.imag(mul(y, y_bar)), size)
        return [mul(lax.complex(lax.full_like(turn, 0), turn), lax.conj(y))]


def unit(x: Any) -> Any:
    """unit(x) = x/|x|."""
    return div(x, lax.complex(lax.abs(x), lax.full_like(lax.abs(x), 0)))


improvement("sign of a complex x", lambda x: lax.sign(x) * (2 - 1j), at=(0.6 - 1.1j,),
            true=1.5656736332231058781 - 0.8540037999398759335j, jax="0 in JAX 0.10",
            source="mpmath: derivatives of Re((2 - i) x/|x|) along 1 and i")

for _order, _true in enumerate([4.2483542552915889592e-18, -4.2483542552915889231e-18], 1):
    improvement(f"σ at a large x, derivative {_order}", jax.nn.sigmoid, order=_order, at=(40.0,),
                true=_true, jax="0.0: y is 1, and 1 − y is formed",
                source="mpmath: diff(1/(1 + exp(-x)), 40)")
for _order, _true in enumerate([1.6993417021166355837e-17, -3.3986834042332711385e-17], 1):
    improvement(f"tanh at a large x, derivative {_order}", lax.tanh, order=_order, at=(20.0,),
                true=_true, jax="0.0: y is 1, and 1 − y² is formed",
                source="mpmath: diff(tanh, 20)")


# Operations without a derivative to carry: piecewise constant ones, and those off the reals.


def _over_rows(function: Any) -> Any:
    """Run ``function`` on one device of a mesh with the axis "rows"."""
    mesh = jax.make_mesh((1,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("rows")
    return jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec)


SECOND: Any = dict(second_order=False, note="the derivative is identically zero")

for _function, _primitive in ((lax.floor, lax.floor_p), (lax.ceil, lax.ceil_p),
                              (lax.round, lax.round_p)):
    piecewise_constant(
        _primitive,
        "a step function: constant between the steps",
        cases=[case(_function, real(values=[-1.3, 0.5, 1.0, 2.7]))],
    )

piecewise_constant(lax.is_finite_p, "a truth value",
                   cases=[case(lax.is_finite, real(3), **SECOND)])
piecewise_constant(lax.argmax_p, "an index: constant between ties", axes=mixing("axes"),
                   cases=[case(lambda x: lax.argmax(x, 1, jnp.int32), real(2, 3), **SECOND)])
piecewise_constant(lax.argmin_p, "an index: constant between ties", axes=mixing("axes"),
                   cases=[case(lambda x: lax.argmin(x, 0, jnp.int32), real(2, 3), **SECOND)])
piecewise_constant(lax.bitcast_convert_type_p, "reads the bits as another type",
                   axes=lambda operands_t, outputs_t: relate(*2 * [[range(min(
                       len(operands_t[0].shape), len(outputs_t[0].shape)))]]),
                   cases=[case(lambda x: lax.bitcast_convert_type(x, jnp.int8), real(3), **SECOND)])
piecewise_constant(_jax.find_primitive("ad_util.stop_gradient_p"),
                   "y = x with the derivative declared to be zero",
                   cases=[case(lambda x: lax.stop_gradient(x) * x, real(3))])

TOTAL = "a truth value, in the total order of floating-point numbers"
_bits = lambda f, m, n, x: f(m, n).astype(x.dtype) * x
_truth = lambda f, x, y: f(x, y) * x
for _why, _use, _specs, _names in (
    ("bits", _bits, (integer(3), integer(3), real(3)),
     ("and", "or", "xor", "shift_left", "shift_right_arithmetic", "shift_right_logical")),
    ("bits", lambda f, m, x: f(m).astype(x.dtype) * x, (integer(3), real(3)),
     ("not", "clz", "population_count")),
    ("a truth value", _truth, (real(3), real(3)), ("eq", "ne", "lt", "le", "gt", "ge")),
    (TOTAL, _truth, (real(3), real(3)), ("eq_to", "lt_to", "le_to")),
):
    for _name in _names:
        _primitive = getattr(lax, f"{_name}_p")
        no_tangent_space(_primitive, _why,
                         cases=[case(functools.partial(_use, _primitive.bind), *_specs)])

for _name in ("and", "or", "xor"):
    _primitive = getattr(lax, f"reduce_{_name}_p")
    no_tangent_space(_primitive, "bits", axes=reduction(_name),
                     cases=[case(lambda m, x, f=_primitive.bind: f(m, axes=(0,)) * x,
                                 boolean(3), real(3))])

no_tangent_space(_jax.find_primitive("lax.lax.mulhi_p"), "integers",
                 cases=[case(lambda m, x: lax.mulhi(m, m).astype(x.dtype) + x,
                             integer(3), real(3))])
no_tangent_space(lax.linalg.lu_pivots_to_permutation_p, "a permutation", axes="... P -> ... N",
                 cases=[case(lambda m, x: lax.linalg.lu_pivots_to_permutation(m, 3) * x,
                             integer(values=np.array([1, 2, 2], np.int32)), real(3))])

no_tangent_space(lax.iota_p, "has no operands",
                 axes=lambda outputs_t, *, dimension: relate(
                     [], [range(len(outputs_t[0].shape))], positional=[dimension]),
                 cases=[case(lambda x: lax.iota(x.dtype, 3) * x, real(3)),
                        case(lambda x: lax.broadcasted_iota(x.dtype, (2, 3), 1) * x, real(2, 3))])
_empty: Any = _jax.find_primitive("lax.lax.empty2_p")
no_tangent_space(_empty, "has no operands; its values may be anything",
                 cases=[case(lambda x: x + 0 * _empty.bind(
                     dtype=x.dtype, memory_space=jax.memory.Space.Device), real(3))])
no_tangent_space(lax.axis_index_p, "an index, and has no operands",
                 cases=[case(lambda x: _over_rows(lambda row: lax.axis_index("rows") + row)(x),
                             real(3))])

no_tangent_space(lax.create_token_p, "a token",
                 cases=[case(lambda x: (lax.create_token(), 2 * x)[1], real(3))])
no_tangent_space(lax.after_all_p, "a token",
                 cases=[case(lambda x: (lax.after_all(lax.create_token()), 2 * x)[1], real(3))])
for _name, _show in (("callback", lambda x: jax.debug.callback(lambda value: None, x)),
                     ("print", lambda x: jax.debug.print("{}", x[:0]))):
    no_tangent_space(_jax.find_primitive(f"debugging.debug_{_name}_p"),
                     "has no outputs; stays in the forward sweep by its effect",
                     cases=[case(lambda x, f=_show: (f(x), 2 * x)[1], real(3))])



def drawn_axes(operands_t: Any, outputs_t: Any) -> Any:
    """What is drawn for each key stands behind the keys' own axes, and depends on its place."""
    keys = len(operands_t[0].shape)
    drawn = range(len(outputs_t[-1].shape))
    others = [[None] * len(x.shape) for x in operands_t[1:]]
    return relate([drawn[:keys], *others], [drawn], positional=drawn[keys:])


def _random(name: str) -> Any:
    return _jax.find_primitive(f"random.prng.{name}") or _jax.find_primitive(f"random.core.{name}")


_threefry: Any = _jax.find_primitive("random.threefry2x32.threefry2x32_p")
def _each(function: Any) -> Any:
    """Run ``function`` on each of three keys."""
    return lambda key: jax.vmap(function)(jax.random.split(key, 3))


for _function, _primitive, _axes in (
    (_each(jax.random.bits), _random("random_bits_p"), drawn_axes),
    (_each(lambda key: jax.random.bits(jax.random.fold_in(key, 2))), _random("random_fold_in_p"),
     None),
    (_each(lambda key: jax.random.bits(jax.random.split(key)[1])), _random("random_split_p"),
     drawn_axes),
    (lambda key: jax.vmap(lambda seed: jax.random.bits(jax.random.key(seed)))(jnp.arange(3)),
     _random("random_seed_p"), None),
    (_each(lambda key: jax.random.key_data(key)[1]), _random("random_unwrap_p"), "... -> ... K"),
    (_each(lambda key: jax.random.bits(jax.random.wrap_key_data(jax.random.key_data(key)))),
     _random("random_wrap_p"), "... K -> ..."),
    (_each(lambda key: jax.random.bits(jax.random.clone(key))), _random("random_clone_p"), None),
    (lambda key: lax.rng_bit_generator(np.arange(4, dtype=np.uint32), (3,))[1],
     lax.rng_bit_generator_p, lambda operands_t, outputs_t: relate(
         [[None] * len(x.shape) for x in operands_t],
         [[None] * len(outputs_t[0].shape), [*range(len(outputs_t[1].shape))]],
         positional=range(len(outputs_t[1].shape)))),
    (lambda key: _threefry.bind(*np.arange(12, dtype=np.uint32).reshape(4, 3))[0],
     _threefry, None),
):
    no_tangent_space(
        _primitive, "keys and bits", axes=_axes,
        cases=[case(lambda x, f=_function: f(jax.random.key(0)).astype(x.dtype) / 2**32 + x,
                    real(3), half=False, note="bits do not fit a half-precision number")])
