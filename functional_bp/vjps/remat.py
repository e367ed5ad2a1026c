"""``jax.checkpoint`` keeps inputs, and runs the forward sweep again within the reverse one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Primitive, primitives

from functional_bp import _jax
from functional_bp.engine import sweeps
from functional_bp.engine.higher_order import HigherOrder, Mask, Options, Sweep
from functional_bp.engine.plan import make_plan, out_activity
from functional_bp.engine.rule import case, higher_order, real


@higher_order(
    primitives.remat_p,
    cases=[
        case(jax.checkpoint(lambda x, y: jnp.sin(jnp.sin(x) * y)), real(3), real(3)),
        case(jax.checkpoint(lambda x, w: jnp.tanh(jnp.tanh(x @ w) @ w),
                            policy=jax.checkpoint_policies.dots_saveable),
             real(2, 3), real(3, 3)),
    ],
)
class Remat(HigherOrder):
    """x̄ = f's reverse sweep on residuals that are computed again from x.

    Derivation: the residuals r = r(x) of ȳ ↦ Jᵀ(r) ȳ are a function of the inputs; to keep x
    in their place trades one more forward sweep for their memory.

    Residuals: the operands that the second forward sweep reads, and what the person's ``policy``
    marks as saveable.

    Numerics: the second forward sweep is tied to the cotangents, by an optimization barrier or,
    where a compiler drops those, by ``sweeps.tied_to``: so it is neither merged with the first
    nor started early. The values are the same bits.
    """

    def __init__(self, eqn: JaxprEqn, active: Mask, options: Options) -> None:
        super().__init__(eqn, active, options)
        self.jaxpr, self.consts = _jax.open_jaxpr(eqn.params["jaxpr"])
        self.policy = eqn.params["policy"]
        if self.policy is not None and any(map(_is_opened, self.jaxpr.eqns)):
            self.jaxpr, self.consts = without_calls(self.jaxpr)
        self.out_active = out_activity(self.jaxpr, active, options)

    def seed(self, seeded: Mask, needed: Mask) -> None:
        """Plan the first forward sweep, which keeps nothing, and the second, with the reverse."""
        none = (False,) * len(seeded)
        inactive = (False,) * len(self.active)
        self.saved = _saveable(self.jaxpr, self.policy)
        self.same = _named_by(self.jaxpr, self.saved)
        self.first = make_plan(self.jaxpr, inactive, none, needed, self.options, (), self.saved)
        given = (*self.saved, *self.same)
        self.second = make_plan(self.jaxpr, self.active, seeded, none, self.options, given)
        self.wanted = self.second.reached
        reads = self.second.reads.union(self.second.keep)
        self.reads = [v in reads for v in self.jaxpr.invars]

    def forward(self, *operands: Any) -> tuple[Sequence[Any], Any]:
        """Compute values alone; keep the operands and what the policy saves."""
        outs, (saved, _) = sweeps.forward(self.first, self.consts, operands)
        return outs, ([x if r else None for x, r in zip(operands, self.reads)], saved)

    def reverse(self, residuals: Any, cotangents: Sequence[Any]) -> Sequence[Any]:
        """Run the forward sweep again, then the reverse one."""
        tie = None
        if np.any(self.eqn.params.get("prevent_cse", True)):  # JAX 0.12: one or one per operand
            if _jax.DROPS_BARRIERS and sweeps.can_be_tied((residuals, list(cotangents))):
                tie = sweeps.tied_to(cotangents)
            else:
                residuals, cotangents = _behind_barrier((residuals, list(cotangents)))
        operands, saved = residuals
        given = dict(zip(self.saved, saved))
        given.update({operand: given[name] for operand, name in self.same.items()})
        _, kept = sweeps.forward(self.second, self.consts, operands, given, tie)
        return sweeps.reverse(self.second, kept, cotangents)

    def tangents(self, sweep: Sweep, operands: Any, dots: Any) -> tuple[Any, Any]:
        """Run the body's forward-mode sweep, which keeps nothing anyway."""
        return sweep(self.jaxpr, self.consts, operands, dots, self.options)


def _behind_barrier(values: Any) -> Any:
    """Put a barrier around arrays, one for those that vary over the same axes of a mesh: what is
    the same on all devices stays so.
    """
    leaves, tree = jax.tree.flatten(values)
    axes = [_jax.varying_axes(jax.typeof(leaf)) for leaf in leaves]
    for group in dict.fromkeys(axes):
        places = [i for i, own in enumerate(axes) if own == group]
        for i, leaf in zip(places, lax.optimization_barrier([leaves[i] for i in places])):
            leaves[i] = leaf
    return jax.tree.unflatten(tree, leaves)


def _saveable(jaxpr: Jaxpr, policy: Callable[..., Any] | None) -> tuple[Any, ...]:
    """Find the variables that the policy lets the first forward sweep keep."""
    if policy is None:
        return ()
    saved: list[Any] = []
    for eqn in jaxpr.eqns:
        verdict = policy(eqn.primitive, *[a.aval for a in eqn.invars], **eqn.params)
        if verdict is True or type(verdict).__name__ in ("SaveableType", "Offloadable"):
            saved += [v for v in eqn.outvars if type(v).__name__ != "DropVar"]
    return tuple(saved)


def _named_by(jaxpr: Jaxpr, saved: Sequence[Any]) -> dict[Any, Any]:
    """Return what a saved name is the name of, which is the same array, by the variable."""
    names = (e for e in jaxpr.eqns if e.primitive.name == "name" and e.outvars[0] in saved)
    return {e.invars[0]: e.outvars[0] for e in names if not isinstance(e.invars[0], Literal)}


def _is_opened(eqn: JaxprEqn) -> bool:
    """Say whether a policy is to see what the equation stands for, and not the equation."""
    return eqn.primitive is primitives.jit_p or _jax.as_checkpoint(eqn) is not eqn


@lru_cache(maxsize=256)
def without_calls(
    jaxpr: Jaxpr, calls: tuple[Primitive, ...] = (primitives.jit_p,)
) -> tuple[Jaxpr, list[Any]]:
    """Write out every call of these kinds inside the graph, so that a policy sees all it names."""

    def step(eqn: JaxprEqn, operands: Sequence[Any]) -> Sequence[Any]:
        plain = _jax.as_checkpoint(eqn)
        if plain.primitive in calls:
            with _jax.emitting(eqn):
                return sweeps.run(*_jax.open_jaxpr(plain.params["jaxpr"]), operands, step)
        return sweeps.evaluate(plain if plain.primitive.name == "name" else eqn, operands)

    run = lambda *args: sweeps.run(jaxpr, (), args, step)
    traced = jax.make_jaxpr(run)(*[v.aval for v in jaxpr.invars])
    return _jax.open_jaxpr(traced)
