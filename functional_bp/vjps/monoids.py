"""``lax.reduce`` with a monoid of the caller's has the reverse sweep of its reduction tree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.core import eval_jaxpr
from jax.extend.core import JaxprEqn

from functional_bp import _jax
from functional_bp.engine import sweeps
from functional_bp.engine.higher_order import HigherOrder, Mask, Options
from functional_bp.engine.improvements import improvement
from functional_bp.engine.plan import out_activity
from functional_bp.engine.rule import case, higher_order, real
from functional_bp.vjps.calls import Call
from functional_bp.vjps.reductions import flattened
from functional_bp.vjps.shapes import layout


def fold(eqn: JaxprEqn) -> Any:
    """The reduction, as a function, combines adjacent pairs level by level, then the initial value.

    The order of the elements is kept, so the operation need not commute.
    """
    body, consts = _jax.open_jaxpr(eqn.params["jaxpr"])
    axes = eqn.params["dimensions"]
    count = len(eqn.invars) // 2

    def combine(left: Sequence[Any], right: Sequence[Any]) -> list[Any]:
        scalars = lambda *values: eval_jaxpr(body, consts, *values)
        for _ in left[0].shape:
            scalars = jax.vmap(scalars)
        return scalars(*left, *right)

    def run(*operands: Any) -> list[Any]:
        axes_of = (_jax.varying_axes(jax.typeof(x)) for x in operands)
        shared = frozenset[str]().union(*axes_of)
        operands = tuple(sweeps.vary(x, shared) for x in operands)
        arrays, inits = operands[:count], operands[count:]
        kept = [i for i in range(arrays[0].ndim) if i not in axes]
        shape = tuple(arrays[0].shape[i] for i in kept)
        n = math.prod(arrays[0].shape[i] for i in axes)
        level = [flattened(x, axes)[0] for x in arrays]
        like = layout(jax.typeof(level[0]), range(1, level[0].ndim))
        starts = [lax.broadcast_in_dim(init, shape, (), out_sharding=like) for init in inits]
        if n == 0:
            return starts
        while (n := level[0].shape[0]) > 1:
            left = [lax.slice_in_dim(x, 0, n // 2 * 2, stride=2) for x in level]
            right = [lax.slice_in_dim(x, 1, n, stride=2) for x in level]
            pairs = combine(left, right)
            if n % 2:
                rest = [lax.slice_in_dim(x, n - 1, n) for x in level]
                pairs = [lax.concatenate([p, r], 0) for p, r in zip(pairs, rest)]
            level = pairs
        return combine(starts, [lax.squeeze(x, (0,)) for x in level])

    return run


def _rotation(x: Any, y: Any) -> Any:
    """The product of complex numbers, given as pairs, makes two operands of one reduction."""
    return lax.reduce(
        (x, y), (np.ones((), x.dtype), np.zeros((), y.dtype)),
        lambda p, q: (p[0] * q[0] - p[1] * q[1], p[0] * q[1] + p[1] * q[0]), (0,),
    )


def _circle(a: Any, b: Any) -> Any:
    """a ∘ b = a + b + ab is a monoid with unit 0, for 1 + a∘b = (1+a)(1+b)."""
    return a + b + a * b


def _from(init: Any, x: Any) -> Any:
    return lax.reduce(x, init, _circle, (0,))


@higher_order(
    lax.reduce_p,
    cases=[
        case(lambda x: lax.reduce(x, np.zeros((), x.dtype), _circle, (0,)), real(5)),
        case(lambda x: lax.reduce(x, np.zeros((), x.dtype), _circle, (2, 0)), real(2, 3, 3)),
        case(lambda x: lax.reduce(x, np.zeros((), x.dtype), _circle, (1,)), real(2, 0)),
        case(_rotation, real(4, 2), real(4, 2),
             reference=lambda x, y: (lambda z: (z.real, z.imag))(_complex_product(x, y)),
             note="one active operand of two: JAX raises TypeError"),
        case(_from, real(), real(4),
             reference=lambda i, x: (1 + i) * lax.reduce_prod(1 + x, (0,)) - 1,
             note="the initial value: JAX raises NotImplementedError"),
    ],
)
class Reduce(Call):
    """x̄ is the reverse sweep of the tree that folds x.

    Derivation:
        y = x₀ ∘ (x₁ ∘ …) may be bracketed in any way, because ∘ is associative; as a tree of
        pairs it is a graph of n − 1 applications, depth log₂ n. At each application z = a ∘ b the
        operation's own rules give ā and b̄; down the tree every xᵢ has its cotangent.

        The initial value enters once, y = init ∘ (…): its cotangent is that of the left operand.

    Residuals: those of the operation at every application, n − 1 in all.
    """

    def __init__(self, eqn: JaxprEqn, active: Mask, options: Options) -> None:
        HigherOrder.__init__(self, eqn, active, options)
        traced = jax.make_jaxpr(fold(eqn))(*[a.aval for a in eqn.invars])
        self.jaxpr, self.consts = _jax.open_jaxpr(traced)
        self.out_active = out_activity(self.jaxpr, active, options)


def _complex_product(x: Any, y: Any) -> Any:
    return lax.reduce_prod(lax.complex(x, y), (0,))


improvement(
    "one operand of a reduction of two", _rotation, at=([2.0, 3.0], [1.0, -1.0]), wrt=0,
    true=[2.0, 3.0], jax="raises TypeError",
    source="(2+i)(3−i): ∂(Re + Im)/∂x₀ = 3 − 1, ∂/∂x₁ = 2 + 1",
)
improvement(
    "initial value of a reduction", _from, at=(0.5, [1.0, 2.0]), wrt=0, true=6.0,
    jax="raises NotImplementedError", source="y = (1 + init)(1 + x₀)(1 + x₁) − 1: ∂y/∂init = 2 · 3",
)
