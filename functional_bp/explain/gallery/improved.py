"""Which rule an improvement on JAX belongs to: the first of its chapter that the call runs."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import numpy as np
from jax.extend.core import Jaxpr, Primitive

from functional_bp.graph.nested import inner_graphs
from functional_bp.rule import Rule, rules
from functional_bp.rules import improvements as declared
from functional_bp.rules.improvements import Improvement


def improvements_of(rule: Rule) -> list[Improvement]:
    """The improvements declared for a rule."""
    return [entry for entry in declared.improvements if primitive_of(entry) is rule.primitive]


@cache
def primitive_of(entry: Improvement) -> Primitive | None:
    """The primitive whose rule makes the improvement; None where it cannot be told.

    An improvement is declared in the file of its rule; of the operations that its call runs, the
    first with a rule in that file is meant.
    """
    try:
        with jax.enable_x64(True):
            jaxpr = jax.make_jaxpr(entry.function)(*map(np.asarray, entry.at)).jaxpr
    except Exception:  # a call that this JAX does not have
        return None
    for primitive in _primitives(jaxpr):
        rule = rules.get(primitive)
        if rule is not None and rule.file == entry.file:
            return primitive
    return None


def _primitives(jaxpr: Jaxpr) -> list[Any]:
    """The primitives in the order in which they stand, calls opened."""
    found: list[Any] = []
    for eqn in jaxpr.eqns:
        found.append(eqn.primitive)
        for inner in inner_graphs(eqn):
            found += _primitives(inner.jaxpr)
    return found
