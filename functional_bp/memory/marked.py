"""Equations run one by one, with marks on what is kept where they run again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Jaxpr, JaxprEqn, Var

from functional_bp.engine import sweeps

KEPT = "functional_bp.kept"  # the name of what is marked
_POLICY = jax.checkpoint_policies.save_only_these_names(KEPT)


def run(eqns: Sequence[JaxprEqn], env: dict[Any, Any], kept: frozenset[Var] = frozenset()) -> None:
    """Run equations on the values of an environment, and add what they make."""
    for eqn in eqns:
        outs = sweeps.evaluate(eqn, [sweeps.value_of(a, env) for a in eqn.invars])
        env.update(zip(eqn.outvars, marked(eqn, outs, kept)))


def marked(eqn: JaxprEqn, outs: Sequence[Any], kept: frozenset[Var]) -> Iterator[Any]:
    """Mark the outputs that are kept."""
    return (checkpoint_name(x, KEPT) if v in kept else x for v, x in zip(eqn.outvars, outs))


def again(fun: Callable[..., Any], kept: frozenset[Var]) -> Callable[..., Any]:
    """Return the function that runs again in its reverse sweep, but for what is marked."""
    return jax.checkpoint(fun, policy=_POLICY if kept else None)


@lru_cache(maxsize=64)
def last_uses(jaxpr: Jaxpr) -> dict[Any, int]:
    """Return the last equation that reads each variable; their count for what is returned."""
    last = {a: i for i, eqn in enumerate(jaxpr.eqns) for a in eqn.invars if isinstance(a, Var)}
    last.update({v: len(jaxpr.eqns) for v in jaxpr.outvars if isinstance(v, Var)})
    return last
