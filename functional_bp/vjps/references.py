"""Mutable references: rewritten to values before anything is differentiated.

A reference is a name for a succession of values. ``without_references`` makes each of them a value
of its own: ``swap`` and ``addupdate`` give a new one, ``get`` reads the newest, a loop carries it.
What is left is a pure graph with ordinary rules. References that live outside the differentiated
function stay: they may be read and written, but no gradient flows through them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Jaxpr, JaxprEqn, Literal
from jax.ref import addupdate, empty_ref, free_ref, freeze

from functional_bp import _jax
from functional_bp.engine import sweeps
from functional_bp.engine.higher_order import Mask, Options, Structure
from functional_bp.engine.plan import out_activity
from functional_bp.engine.rule import case, real, structure
from functional_bp.errors import NotDifferentiableError, compose
from functional_bp.vjps.calls import Call

new_ref_p = _jax.find_primitive("core.ref_p")
empty_ref_p = _jax.find_primitive("core.empty_ref_p")
freeze_p = _jax.find_primitive("core.freeze_p")
free_ref_p = _jax.find_primitive("core.free_ref_p")
OWN_RULE = {
    _jax.find_primitive("custom_derivatives.custom_jvp_call_p"),
    _jax.find_primitive("custom_derivatives.custom_vjp_call_p"),
}  # their derivative does not look inside: they may keep references of their own


def refuse_references(leaves: Sequence[Any]) -> None:
    """An error where an argument is a mutable reference."""
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
    """The same function of ``args`` as a graph without references that it makes itself.

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
    """Evaluate, with the newest value of every reference in the reference's place."""
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


def _squared_in_place(x: Any) -> Any:
    ref = jax.new_ref(x)
    ref[...] = ref[...] * x
    ref[0] = jnp.sin(ref[1])
    return freeze(ref)


def _summed_in_loop(x: Any) -> Any:
    total = jax.new_ref(jnp.zeros_like(x[0]))

    def step(_: None, row: Any) -> tuple[None, Any]:
        addupdate(total, ..., jnp.sin(row))
        return None, total[...] * row

    return lax.scan(step, None, x)[1] + total[...]


def _filled(x: Any) -> Any:
    ref = empty_ref(jax.typeof(x))
    ref[...] = jnp.sin(x)
    y = ref[...] * x
    free_ref(ref)
    return y


def _squared(x: Any) -> Any:
    return (x * x).at[0].set(jnp.sin((x * x)[1]))


_IN_PLACE = case(_squared_in_place, real(3), reference=_squared,
                 note="JAX 0.10 cannot differentiate references twice")  # fmt: skip
_FILLED = case(_filled, real(3))
_IN_LOOP = case(_summed_in_loop, real(3, 2))


class Outside(Structure):
    """No cotangent: the reference lives outside the differentiated function.

    Derivation: a reference that the function makes is rewritten to values beforehand
    (``without_references``), so only one from outside is met here. It has no tangent; to write a
    value that has one into it would lose the gradient, and is refused.
    """

    def __init__(self, eqn: JaxprEqn, active: Mask, options: Options) -> None:
        where = "{}:{}".format(*(_jax.source_line(eqn) or ("", "")))
        raise NotDifferentiableError(
            compose(
                "a value that depends on a differentiated argument is written to a mutable "
                "reference from outside the differentiated function",
                where=where.strip(":"),
                got=f"{eqn.primitive.name} on {eqn.invars[0].aval}",
                expected="a reference made inside the function, or a value without a gradient",
                do="make the reference inside, or write jax.lax.stop_gradient(value)",
            )
        )


for _path, _cases in {
    "core.ref_p": [_IN_PLACE, _IN_LOOP],
    "core.empty_ref_p": [_FILLED],
    "core.freeze_p": [_IN_PLACE],
    "core.free_ref_p": [_FILLED],
    "state.primitives.get_p": [_IN_PLACE, _IN_LOOP],
    "state.primitives.swap_p": [_IN_PLACE],
    "state.primitives.addupdate_p": [_IN_LOOP],
}.items():
    _why = without_references.__doc__ or ""
    structure(_jax.find_primitive(_path), why=_why, cases=_cases)(Outside)


def _stateful(x: Any, y: Any) -> Any:
    def body(refs: Any) -> None:
        a, b = refs
        a[...] = a[...] * jnp.sin(b[...])
        b[...] = a[...] * b[...]

    return _jax.find_helper("state.discharge.run_state")(body)((x, y))


def _stateless(x: Any, y: Any) -> Any:
    a = x * jnp.sin(y)
    return a, a * y


@structure(
    _jax.find_primitive("state.discharge.run_state_p"),
    cases=[
        case(
            _stateful,
            real(3),
            real(3),
            reference=_stateless,
            batchable=False,
            note="JAX has a derivative in forward mode alone, and cannot vmap it",
        )
    ],  # fmt: skip
)
class RunState(Call):
    """ȳ ↦ x̄ is the reverse sweep of the body, rewritten to return its references' last values.

    Derivation: as for any call; the outputs are the last values of references that began as the
    operands.

    Residuals: those of the rewritten body.
    """

    def __init__(self, eqn: JaxprEqn, active: Mask, options: Options) -> None:
        Structure.__init__(self, eqn, active, options)
        self.jaxpr, self.consts = _jax.open_jaxpr(_jax.discharged(eqn.params["jaxpr"]))
        self.out_active = out_activity(self.jaxpr, active, options)
