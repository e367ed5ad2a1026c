"""Operations that call a graph: ``jit`` and its relatives.

y = f(x) with f a graph: x̄ is f's reverse sweep, its residuals are f's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.core import JaxprEqn, primitives

from functional_bp import _jax, backprop
from functional_bp.cases import case, real
from functional_bp.plan import make_plan, out_activity
from functional_bp.rule import rules, structure
from functional_bp.structure import Mask, Options, Structure, Sweep


class Call(Structure):
    """ȳ ↦ x̄ is the reverse sweep of the called graph.

    Derivation: y = f(x) with f = fₙ ∘ … ∘ f₁ gives x̄ = f₁ᵀ … fₙᵀ ȳ, so the call's sweep is the
    sweep of its body, and a caller may run it in place.

    Residuals: those of the body.
    """

    parameter = "call_jaxpr"

    def __init__(self, eqn: JaxprEqn, active: Mask, options: Options) -> None:
        super().__init__(eqn, active, options)
        body = self.parameter if self.parameter in eqn.params else Call.parameter
        self.jaxpr, self.consts = _jax.open_jaxpr(eqn.params[body])
        self.out_active = out_activity(self.jaxpr, active, options)

    def seed(self, seeded: Mask, needed: Mask) -> None:
        """Plan the body's sweeps."""
        self.key = (self.jaxpr, self.active, seeded, needed, self.options)
        self.plan = make_plan(*self.key)
        self.wanted = self.plan.reached

    def forward(self, *operands: Any) -> tuple[Sequence[Any], Any]:
        """The body's forward sweep, in place."""
        return backprop.forward(self.plan, self.consts, operands)

    def reverse(self, residuals: Any, cotangents: Sequence[Any]) -> Sequence[Any]:
        """The body's reverse sweep, in place."""
        return backprop.reverse(self.plan, residuals, cotangents)

    def tangents(self, sweep: Sweep, operands: Any, dots: Any) -> tuple[Any, Any]:
        """The body's forward-mode sweep, in place."""
        return sweep(self.jaxpr, self.consts, operands, dots, self.options)


@lru_cache(maxsize=256)
def _compiled(*key: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The two sweeps of a plan as jitted functions, one pair per plan."""
    plan = make_plan(*key)
    return (
        jax.jit(lambda consts, args: backprop.forward(plan, consts, args)),
        jax.jit(lambda kept, bars: backprop.reverse(plan, kept, bars)),
    )


rules.changed.append(_compiled.cache_clear)


@structure(
    primitives.jit_p,
    cases=[
        case(jax.jit(lambda x, y: (jnp.sin(x) * y, x + 1)), real(3), real(3)),
        case(jax.jit(lambda x: jax.jit(jnp.tanh)(x) * 2), real(2, 2)),
    ],
)
class Jit(Call):
    """ȳ ↦ x̄ is the reverse sweep of the jitted graph; compiled when called with arrays.

    Derivation: as for any call. With concrete operands both sweeps are compiled, once per
    graph, as the person asked by writing ``jit``; inside an outer ``jit`` they run in place.

    Residuals: those of the body.
    """

    parameter = "jaxpr"

    def forward(self, *operands: Any) -> tuple[Sequence[Any], Any]:
        """The body's forward sweep."""
        placed = self._placed(operands, "in_shardings")
        if _jax.is_staging([*placed, *self.consts]):
            outs, residuals = super().forward(*placed)
        else:
            outs, residuals = _compiled(*self.key)[0](self.consts, placed)
        return self._placed(outs, "out_shardings"), residuals

    def reverse(self, residuals: Any, cotangents: Sequence[Any]) -> Sequence[Any]:
        """The body's reverse sweep."""
        if _jax.is_staging(jax.tree.leaves((residuals, cotangents))):
            return super().reverse(residuals, cotangents)
        return _compiled(*self.key)[1](residuals, list(cotangents))

    def _placed(self, values: Sequence[Any], which: str) -> list[Any]:
        """The values, constrained to the shardings that the person gave to ``jit``."""
        return [
            lax.with_sharding_constraint(value, sharding)
            if isinstance(sharding, jax.sharding.Sharding) and value is not None
            else value
            for value, sharding in zip(values, self.eqn.params[which], strict=True)
        ]


structure(_jax.find_primitive("core.call_p"), why=Call.__doc__ or "")(Call)
structure(_jax.find_primitive("core.closed_call_p"), why=Call.__doc__ or "")(Call)


@structure(
    _jax.find_primitive("lax.lax.composite_p"),
    cases=[
        case(
            lambda x: lax.composite(lambda x: jnp.tanh(x) * x, name="test.gate")(x),
            real(3),
            reference=lambda x: jnp.tanh(x) * x,
            note="jax: differentiation rule for composite not implemented",
        )
    ],
)
class Composite(Call):
    """ȳ ↦ x̄ is the reverse sweep of the composite's decomposition.

    Derivation: a composite equals its decomposition by definition, so it has its derivative.
    """

    parameter = "jaxpr"  # JAX 0.12: as other calls


@jax.custom_batching.custom_vmap
def _mapped_by_hand(x: Any, y: Any) -> Any:
    return jnp.sin(x) * y


@_mapped_by_hand.def_vmap
def _(_: int, _batched: Any, x: Any, y: Any) -> tuple[Any, bool]:
    return jnp.sin(x) * y, True


@structure(
    _jax.find_primitive("custom_batching.custom_vmap_p"),
    cases=[
        case(
            lambda x, y: _mapped_by_hand(x, y),
            real(3),
            real(3),
            reference=lambda x, y: jnp.sin(x) * y,
            note="jax: custom_vmap does not support reverse-mode autodiff",
        )
    ],
)
class CustomVmap(Call):
    """ȳ ↦ x̄ is the reverse sweep of the function under ``custom_vmap``.

    Derivation: a custom batching rule states how to map, not another function, so the
    derivative is that of the undecorated function.
    """

    parameter = "call"


_partitioned_by_hand = custom_partitioning(lambda x: jnp.sin(x) * x)
_partitioned_by_hand.def_partition(
    partition=lambda mesh, given, result: (
        mesh, lambda x: jnp.sin(x) * x, given[0].sharding, (given[0].sharding,)
    ),
    sharding_rule="i -> i",
)  # fmt: skip


@structure(
    _jax.find_primitive("custom_partitioning.custom_partitioning_p"),
    cases=[
        case(
            lambda x: _partitioned_by_hand(x),
            real(4),
            reference=lambda x: jnp.sin(x) * x,
            note="jax: differentiation rule for custom_partitioning not implemented",
        )
    ],
)
class CustomPartitioning(Call):
    """ȳ ↦ x̄ is the reverse sweep of the function under ``custom_partitioning``.

    Derivation: a partitioning rule states where to compute, not another function.
    """

    parameter = "call"
