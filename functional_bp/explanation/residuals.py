"""What ``bp.grad`` keeps from its forward sweep for its reverse one, by variable.

The flat graph of an explanation has opened the calls of ``jax.checkpoint``, so that their values
can be seen; what is kept is asked of the same graph with these calls closed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import jax
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from functional_bp import _jax
from functional_bp.engine import sweeps
from functional_bp.explanation.full_sweeps import plan_of
from functional_bp.graph.graph import Equation, Graph, Variable
from functional_bp.graph.inline import opened_jaxpr
from functional_bp.vjps.remat import Remat

NAME = _jax.find_primitive("ad_checkpoint.name_p")


def kept_bytes(
    flat: Graph, seeded: Sequence[bool], max_steps: int | None = None
) -> dict[Variable, int]:
    """Count the bytes that the reverse sweep needs from the forward sweep, by variable.

    What is made inside ``jax.checkpoint`` is computed again and not kept, except what its policy
    saves. What an operation keeps beside variables (a loop its steps', a ``max`` who won) counts
    at its first output. ``seeded`` says of each output whether it has a cotangent.
    """
    jaxpr, consts = checkpointed_jaxpr(flat), len(flat.consts)
    plan = plan_of(jaxpr, seeded, max_steps, closed_over=consts)
    variables = {flat.of_var[v]: flat.of_var[v].bytes for v in plan.keep if v in flat.of_var}
    if all(v in flat.of_var for v in plan.keep) and not any(s.higher_order for s in plan.steps):
        return variables
    every = plan_of(jaxpr, seeded, max_steps, keep_all=True, closed_over=consts)
    held: dict[JaxprEqn, dict[int, int]] = {}  # by equation: the bytes of each array, by identity

    def run(*inputs: Any) -> None:
        kept, residuals = sweeps.forward(every, (), inputs)[1]
        of_array = {id(x): flat.of_var[v] for v, x in zip(every.keep, kept) if v in flat.of_var}
        beside = [(v.eqn, x) for v, x in zip(every.keep, kept) if v not in flat.of_var]
        closed = [e for e in every.live if e in every.augmented and every.augmented[e].higher_order]
        for eqn, tree in zip(closed, residuals, strict=True):
            higher = every.augmented[eqn].higher_order
            if isinstance(higher, Remat):
                saved = zip(higher.saved, tree[1], strict=True)
                of_array |= {id(x): flat.of_var[v] for v, x in saved}
        for eqn, tree in [*beside, *zip(closed, residuals, strict=True)]:
            for array in jax.tree.leaves(tree):
                aval: Any = jax.typeof(array)
                if (variable := of_array.get(id(array))) is not None:
                    variables[variable] = variable.bytes
                elif hasattr(aval.dtype, "itemsize"):
                    held.setdefault(eqn, {})[id(array)] = aval.size * aval.dtype.itemsize

    given = (*flat.constants, *flat.inputs)
    jax.eval_shape(run, *(jax.ShapeDtypeStruct(v.shape, v.dtype) for v in given))
    for eqn, sizes in held.items():
        first = flat.of_var[eqn.outvars[0]]
        variables[first] = variables.get(first, 0) + sum(sizes.values())
    return variables


def checkpointed_jaxpr(flat: Graph) -> Jaxpr:
    """Return ``opened_jaxpr``, what came out of calls of ``jax.checkpoint`` in such calls again.

    A call defines the variables that are used after it, under the names that the flat graph has.
    """
    jaxpr = opened_jaxpr(flat)
    if not any(equation.recomputed for equation in flat):
        return jaxpr
    outputs = _variables(jaxpr.outvars)
    return jaxpr.replace(eqns=_Closing(flat, jaxpr).eqns(flat.equations, 0, outputs))


class _Closing:
    """Puts equations back into the calls that they came out of."""

    def __init__(self, flat: Graph, jaxpr: Jaxpr) -> None:
        self.flat, self.jaxpr = flat, jaxpr

    def eqns(self, equations: Sequence[Equation], depth: int, later: set[Var]) -> list[JaxprEqn]:
        """The equations, in calls from ``depth`` on inwards; ``later`` is what is used later."""
        eqns: list[JaxprEqn] = []
        groups = groupby(equations, lambda equation: (*equation.recomputed, None)[depth])
        for call, group in reversed([(call, list(group)) for call, group in groups]):
            if call is None:
                opened = [e for equation in group for e in self.tagged(equation)]
            else:
                opened = [self.call(call.eqn, group, depth, later)]
            eqns = [*opened, *eqns]
            later = later.union(*(_variables(eqn.invars) for eqn in opened))
        return eqns

    def call(
        self, eqn: JaxprEqn, group: Sequence[Equation], depth: int, later: set[Var]
    ) -> JaxprEqn:
        """A call that holds ``group``."""
        made = dict.fromkeys(v for equation in group for v in equation.eqn.outvars)
        outs: list[Any] = [v for v in made if v in later]
        body = self.eqns(group, depth + 1, set(outs))
        defined = {v for eqn in body for v in eqn.outvars}
        read = dict.fromkeys(v for eqn in body for v in eqn.invars if not isinstance(v, Literal))
        fed: list[Any] = [v for v in read if v not in defined]
        unnamed = self.jaxpr.debug_info.with_unknown_names()
        jaxpr = self.jaxpr.replace(invars=fed, outvars=outs, eqns=body, debug_info=unnamed)
        return eqn.replace(invars=fed, outvars=outs, params={**eqn.params, "jaxpr": jaxpr})

    def tagged(self, equation: Equation) -> list[JaxprEqn]:
        """An equation, and in a call the ``bp.name`` tags of its outputs, which policies read."""
        eqn = equation.eqn
        tags = {v: tag for v in eqn.outvars if (tag := self.flat.of_var[v].tag)}
        if not equation.recomputed or not tags:
            return [eqn]
        before = {v: Var(v.aval) for v in tags}
        renamed = eqn.replace(outvars=[before.get(v, v) for v in eqn.outvars])
        return [renamed, *(
            eqn.replace(
                primitive=NAME, params={"name": tag}, invars=[before[v]], outvars=[v], effects=set()
            )
            for v, tag in tags.items()
        )]  # fmt: skip


def _variables(atoms: Sequence[Any]) -> set[Var]:
    return {a for a in atoms if not isinstance(a, Literal)}
