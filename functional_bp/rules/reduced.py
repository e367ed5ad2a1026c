"""Collectives between the "unreduced" and "reduced" types of a value inside ``shard_map``.

An *unreduced* value is a sum that has not been carried out: device d holds the summand xᵈ. A
*reduced* value is one value on all devices whose cotangent is left unreduced. The two types are
each other's cotangents, so a sum over devices can wait until it is wanted, or become a
reduce-scatter. Every rule here is linear and keeps nothing. JAX has no ``vmap`` of these.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax

from functional_bp import _jax
from functional_bp.cases import case, real
from functional_bp.rule import linear
from functional_bp.rules.sharded import REPLICATED, blockwise


def _postponed_sum(x: Any) -> Any:
    return jnp.sin(lax.psum(lax.pcast(x * x, "i", to="unreduced"), "i"))


def _postponed_scatter(x: Any) -> Any:
    full = lax.pcast(jnp.concatenate([x * x] * lax.axis_size("i")), "i", to="unreduced")
    return jnp.sin(lax.psum_scatter(full, "i", tiled=True))


def _gather_reduced(x: Any) -> Any:
    whole = lax.all_gather(x * x, "i", tiled=True, to="reduced")
    return jnp.sin(lax.pcast(whole, "i", to="varying"))


def _as_reduced(x: Any) -> Any:
    total = lax.pcast(lax.psum(x * x, "i"), "i", to="reduced")
    return jnp.sin(lax.pcast(total, "i", to="varying")) * x


linear(_jax.find_primitive("lax.parallel.unreduced_psum_p"), "x -> y",
       x=lambda y_bar, *, axes: lax.pcast(y_bar, tuple(axes), to="reduced"),
       why="y = Σ_d xᵈ is one value; so is the cotangent ȳ of every summand.",
       cases=[case(blockwise(_postponed_sum, out=REPLICATED), real(4, 3),
                   batchable=False)])  # fmt: skip

linear(_jax.find_primitive("lax.parallel.preduced_p"), "x -> y",
       x=lambda y_bar, *, axes: lax.psum(y_bar, tuple(axes)),
       why="y = x, with a cotangent in summands: x̄ = Σ_d ȳᵈ.",
       cases=[case(blockwise(_as_reduced), real(4, 3), batchable=False)])  # fmt: skip

linear(_jax.find_primitive("lax.parallel.vary_unreduced_cast_p"), "x -> y",
       x=lambda y_bar, *, axes: lax.pcast(y_bar, tuple(axes), to="varying"),
       why="xᵈ is read as a summand of y = Σ_d xᵈ, so x̄ᵈ = ȳ.",
       cases=[case(blockwise(_postponed_scatter), real(4, 3), batchable=False)])  # fmt: skip

linear(_jax.find_primitive("core.reduced_vary_cast_p"), "x -> y",
       x=lambda y_bar, *, axes: lax.pcast(y_bar, tuple(axes), to="unreduced"),
       why="yᵈ = x on every device d, so x̄ = Σ_d ȳᵈ: the ȳᵈ are its summands.",
       cases=[case(blockwise(_as_reduced), real(4), batchable=False)])  # fmt: skip


def _gathered(y_bar, *, all_gather_dimension, axis_name, tiled):
    """x̄ᵈ = Σ_e (block d of summand ȳᵉ): a reduce-scatter.

    Derivation: y = (x¹, …, xⁿ) is one value whose cotangent is the sum of the ȳᵉ; block d of it
    is x̄ᵈ.
    """
    return lax.psum_scatter(
        y_bar, axis_name, scatter_dimension=all_gather_dimension, tiled=tiled
    )  # fmt: skip


def _scattered(y_bar, *, scatter_dimension, axis_name, tiled):
    """x̄ = (ȳ¹, …, ȳⁿ), one value: an all-gather.

    Derivation: yᵈ = block d of Σ_e xᵉ, so block d of every summand's cotangent is ȳᵈ.
    """
    return lax.all_gather(y_bar, axis_name, axis=scatter_dimension, tiled=tiled, to="reduced")


linear(_jax.find_primitive("lax.parallel.all_gather_reduced_p"), "x -> y", x=_gathered,
       cases=[case(blockwise(_gather_reduced), real(4, 3), batchable=False)])  # fmt: skip
linear(_jax.find_primitive("lax.parallel.unreduced_reduce_scatter_p"), "x -> y", x=_scattered,
       cases=[case(blockwise(_postponed_scatter), real(4, 3), batchable=False)])  # fmt: skip
