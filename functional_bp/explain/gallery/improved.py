"""Which rule an improvement on JAX belongs to: the first of its chapter that the call runs."""

from __future__ import annotations

import inspect
from functools import cache

import jax
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Primitive

from functional_bp import _jax
from functional_bp.graph.nested import inner_graphs
from functional_bp.rule import Rule, rules
from functional_bp.rules import improvements as declared
from functional_bp.rules.improvements import Improvement
from functional_bp.structure import of_jax


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
    for eqn in _equations(jaxpr):
        rule = rules.get(eqn.primitive)
        if rule is not None and entry.file in (rule.file, _file_of_function(eqn)):
            return eqn.primitive
    return None


def _file_of_function(eqn: JaxprEqn) -> str | None:
    """Where the structure stands that we have for a function of JAX with a tangent of its own."""
    structure = of_jax.get(_jax.custom_tangent(eqn.params.get("jvp_jaxpr_fun"), of_jax))
    return None if structure is None else inspect.getfile(structure)


def _equations(jaxpr: Jaxpr) -> list[JaxprEqn]:
    """The equations in the order in which they stand, calls opened."""
    found: list[JaxprEqn] = []
    for eqn in jaxpr.eqns:
        found.append(eqn)
        for inner in inner_graphs(eqn):
            found += _equations(inner.jaxpr)
    return found
