"""A mutable reference from outside the function stays one; its own are rewritten beforehand.

``engine/staging.py`` rewrites them to values.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Jaxpr, JaxprEqn
from jax.ref import addupdate, empty_ref, free_ref, freeze

from functional_bp import _jax
from functional_bp.engine.higher_order import HigherOrder, Mask, Options
from functional_bp.engine.rule import case, higher_order, real
from functional_bp.engine.staging import without_references
from functional_bp.errors import NotDifferentiableError, compose
from functional_bp.vjps.calls import Call


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
                 note="JAX 0.10 cannot differentiate references twice")
_FILLED = case(_filled, real(3))
_IN_LOOP = case(_summed_in_loop, real(3, 2))


class Outside(HigherOrder):
    """There is no cotangent: the reference lives outside the differentiated function.

    Derivation: a reference that the function makes is rewritten to values beforehand
    (``without_references``), so only one from outside is met here. It has no tangent; to write a
    value that has one into it would lose the gradient, and is refused.
    """

    def __init__(self, eqn: JaxprEqn, active: Mask, options: Options) -> None:
        raise NotDifferentiableError(
            compose(
                "a value that depends on a differentiated argument is written to a mutable "
                "reference from outside the differentiated function",
                where=_jax.place_of(eqn),
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
    higher_order(_jax.find_primitive(_path), why=_why, cases=_cases)(Outside)


def _stateful(x: Any, y: Any) -> Any:
    def body(refs: Any) -> None:
        a, b = refs
        a[...] = a[...] * jnp.sin(b[...])
        b[...] = a[...] * b[...]

    return _jax.find_helper("state.discharge.run_state")(body)((x, y))


def _stateless(x: Any, y: Any) -> Any:
    a = x * jnp.sin(y)
    return a, a * y


@higher_order(
    _jax.find_primitive("state.discharge.run_state_p"),
    cases=[
        case(_stateful, real(3), real(3), reference=_stateless, batchable=False,
             note="JAX has a derivative in forward mode alone, and cannot vmap it")
    ],
)
class RunState(Call):
    """ȳ ↦ x̄ is the reverse sweep of the body, rewritten to return its references' last values.

    Derivation: as for any call; the outputs are the last values of references that began as the
    operands.

    Residuals: those of the rewritten body.
    """

    def body(self) -> tuple[Jaxpr, list[Any]]:
        """Return the body on its references' values."""
        return _jax.open_jaxpr(_jax.discharged(self.eqn.params["jaxpr"]))
