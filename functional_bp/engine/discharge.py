"""Mutable references are rewritten to values before anything is differentiated.

A reference is a name for a succession of values. ``without_references`` makes each of them a value
of its own: ``swap`` and ``addupdate`` give a new one, ``get`` reads the newest, a loop carries it.
What is left is a pure graph with ordinary rules. References that live outside the differentiated
function stay: they may be read and written, but no gradient flows through them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax import lax
from jax.extend.core import Jaxpr, Literal

from functional_bp import _jax
from functional_bp.engine import sweeps
from functional_bp.errors import NotDifferentiableError, compose

new_ref_p = _jax.find_primitive("core.ref_p")
empty_ref_p = _jax.find_primitive("core.empty_ref_p")
freeze_p = _jax.find_primitive("core.freeze_p")
free_ref_p = _jax.find_primitive("core.free_ref_p")
OWN_RULE = {
    _jax.find_primitive("custom_derivatives.custom_jvp_call_p"),
    _jax.find_primitive("custom_derivatives.custom_vjp_call_p"),
}  # their derivative does not look inside: they may keep references of their own


def refuse_references(leaves: Sequence[Any]) -> None:
    """Raise an error where an argument is a mutable reference."""
    for place, leaf in enumerate(leaves):
        if _jax.is_reference(jax.typeof(leaf)):
            raise NotDifferentiableError(
                compose(
                    "a mutable reference is an argument of the differentiated function",
                    got=f"{jax.typeof(leaf)} at place {place} of the flat arguments",
                    expected="arrays",
                    do="pass its value, ref[...], or make the reference inside the function",
                )
            )


def without_references(
    jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any]
) -> tuple[Jaxpr, list[Any]]:
    """Return the same function of ``args`` as a graph without references that it makes itself.

    Derivation: with r₀, r₁, … the values that a reference takes one after the other,

        new_ref(x): r₀ = x;   get: y = r_k[i];   swap: y = r_k[i], r_k+1 = r_k with v at i;
        addupdate: r_k+1 = r_k with v added at i;   freeze: y = r_k;

    and an operation that holds a graph takes r_k as one more input and returns r_k+1.
    """
    if not _jax.makes_references(jaxpr):
        return jaxpr, list(consts)
    pure = jax.make_jaxpr(lambda *inputs: _run(jaxpr, consts, inputs))(*args)
    return _jax.open_jaxpr(pure)


def _run(jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """Evaluate with the newest value of every reference in the reference's place."""
    env: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args)))
    ours: set[Any] = set()  # the references' variables
    for eqn in jaxpr.eqns:
        values = [sweeps.value_of(a, env) for a in eqn.invars]
        held = [not isinstance(a, Literal) and a in ours for a in eqn.invars]
        with _jax.emitting(eqn), eqn.ctx.manager:
            if eqn.primitive is new_ref_p:
                ours.add(eqn.outvars[0])
                outs: Sequence[Any] = values
            elif eqn.primitive is empty_ref_p:
                ours.add(eqn.outvars[0])
                made: Any = eqn.outvars[0].aval
                inner = made.inner_aval
                outs = [lax.full(inner.shape, 0, inner.dtype)]
            elif any(held) and eqn.primitive in (freeze_p, free_ref_p):
                outs = values if eqn.primitive is freeze_p else []
            elif any(held) or (_jax.makes_references(eqn) and eqn.primitive not in OWN_RULE):
                newest, outs = _jax.discharge(eqn, held, values)
                for atom, on, value in zip(eqn.invars, held, newest, strict=True):
                    if on and value is not None:
                        env[atom] = value
            else:
                outs = sweeps.evaluate(eqn, values)
        env.update(zip(eqn.outvars, outs))
    return [sweeps.value_of(v, env) for v in jaxpr.outvars]
