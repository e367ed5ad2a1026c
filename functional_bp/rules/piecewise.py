"""Operations without a derivative to carry: piecewise constant ones, and those off the reals.

A piecewise constant function has the derivative zero wherever it has one. Integers, booleans,
keys and tokens have no tangent space: nothing flows into them or out of them. Both need no
cotangent, and nothing is kept for them.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from functional_bp import _jax
from functional_bp.cases import boolean, case, integer, real
from functional_bp.rule import no_tangent_space, piecewise_constant


def _over_rows(function: Any) -> Any:
    """``function`` on one device of a mesh with the axis "rows"."""
    mesh = jax.make_mesh((1,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("rows")
    return jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec)


SECOND: Any = dict(second_order=False, note="the derivative is identically zero")

for _function, _primitive in ((lax.floor, lax.floor_p), (lax.ceil, lax.ceil_p),
                              (lax.round, lax.round_p)):  # fmt: skip
    piecewise_constant(
        _primitive,
        "a step function: constant between the steps",
        cases=[case(_function, real(values=[-1.3, 0.5, 1.0, 2.7]))],
    )

# fmt: off
piecewise_constant(lax.is_finite_p, "a truth value",
                   cases=[case(lax.is_finite, real(3), **SECOND)])
piecewise_constant(lax.argmax_p, "an index: constant between ties",
                   cases=[case(lambda x: lax.argmax(x, 1, jnp.int32), real(2, 3), **SECOND)])
piecewise_constant(lax.argmin_p, "an index: constant between ties",
                   cases=[case(lambda x: lax.argmin(x, 0, jnp.int32), real(2, 3), **SECOND)])
piecewise_constant(lax.bitcast_convert_type_p, "reads the bits as another type",
                   cases=[case(lambda x: lax.bitcast_convert_type(x, jnp.int8), real(3), **SECOND)])
piecewise_constant(_jax.find_primitive("ad_util.stop_gradient_p"),
                   "y = x with the derivative declared to be zero",
                   cases=[case(lambda x: lax.stop_gradient(x) * x, real(3))])

for _function, _primitive in ((lax.bitwise_and, lax.and_p), (lax.bitwise_or, lax.or_p),
                              (lax.bitwise_xor, lax.xor_p)):
    no_tangent_space(_primitive, "bits",
                     cases=[case(lambda m, n, x, f=_function: f(m, n).astype(x.dtype) * x,
                                 integer(3), integer(3), real(3))])
for _function, _primitive in ((lax.shift_left, lax.shift_left_p),
                              (lax.shift_right_arithmetic, lax.shift_right_arithmetic_p),
                              (lax.shift_right_logical, lax.shift_right_logical_p)):
    no_tangent_space(_primitive, "bits",
                     cases=[case(lambda m, n, x, f=_function: f(m, n).astype(x.dtype) * x,
                                 integer(3), integer(3), real(3))])
for _function, _primitive in ((lax.bitwise_not, lax.not_p), (lax.clz, lax.clz_p),
                              (lax.population_count, lax.population_count_p)):
    no_tangent_space(_primitive, "bits",
                     cases=[case(lambda m, x, f=_function: f(m).astype(x.dtype) * x,
                                 integer(3), real(3))])
for _function, _primitive in ((lax.eq, lax.eq_p), (lax.ne, lax.ne_p), (lax.lt, lax.lt_p),
                              (lax.le, lax.le_p), (lax.gt, lax.gt_p), (lax.ge, lax.ge_p)):
    no_tangent_space(_primitive, "a truth value",
                     cases=[case(lambda x, y, f=_function: f(x, y) * x, real(3), real(3))])
for _primitive in (lax.eq_to_p, lax.lt_to_p, lax.le_to_p):
    no_tangent_space(_primitive, "a truth value, in the total order of floating-point numbers",
                     cases=[case(lambda x, y, p=_primitive: p.bind(x, y) * x, real(3), real(3))])
for _function, _primitive in ((lax.reduce_and, lax.reduce_and_p), (lax.reduce_or, lax.reduce_or_p),
                              (lax.reduce_xor, lax.reduce_xor_p)):
    no_tangent_space(_primitive, "bits",
                     cases=[case(lambda m, x, f=_function: f(m, (0,)) * x, boolean(3), real(3))])

no_tangent_space(_jax.find_primitive("lax.lax.mulhi_p"), "integers",
                 cases=[case(lambda m, x: lax.mulhi(m, m).astype(x.dtype) + x,
                             integer(3), real(3))])
no_tangent_space(lax.linalg.lu_pivots_to_permutation_p, "a permutation",
                 cases=[case(lambda m, x: lax.linalg.lu_pivots_to_permutation(m, 3) * x,
                             integer(values=np.array([1, 2, 2], np.int32)), real(3))])

no_tangent_space(lax.iota_p, "has no operands",
                 cases=[case(lambda x: lax.iota(x.dtype, 3) * x, real(3))])
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



def _random(name: str) -> Any:
    return _jax.find_primitive(f"random.prng.{name}") or _jax.find_primitive(f"random.core.{name}")


_threefry: Any = _jax.find_primitive("random.threefry2x32.threefry2x32_p")
for _function, _primitive in (
    (lambda key: jax.random.bits(key, (3,)), _random("random_bits_p")),
    (lambda key: jax.random.bits(jax.random.fold_in(key, 2), (3,)), _random("random_fold_in_p")),
    (lambda key: jax.random.bits(jax.random.split(key)[1], (3,)), _random("random_split_p")),
    (lambda key: jax.random.bits(key, (3,)), _random("random_seed_p")),
    (lambda key: jax.random.key_data(key)[1:], _random("random_unwrap_p")),
    (lambda key: jax.random.bits(jax.random.wrap_key_data(jax.random.key_data(key)), (3,)),
     _random("random_wrap_p")),
    (lambda key: jax.random.bits(jax.random.clone(key), (3,)), _random("random_clone_p")),
    (lambda key: lax.rng_bit_generator(np.arange(4, dtype=np.uint32), (3,))[1],
     lax.rng_bit_generator_p),
    (lambda key: _threefry.bind(*np.arange(4, dtype=np.uint32))[0],
     _threefry),
):
    no_tangent_space(
        _primitive, "keys and bits",
        cases=[case(lambda x, f=_function: f(jax.random.key(0)).astype(x.dtype) / 2**32 + x,
                    real(3), half=False, note="bits do not fit a half-precision number")])
# fmt: on
