"""Local gradients: what a pullback makes of 1, where an operation is small enough to show it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functional_bp.backprop import evaluate
from functional_bp.explain.numbers import MOST_SHOWN
from functional_bp.explain.sweeps import Share
from functional_bp.graph.parts import Equation, Variable
from functional_bp.transforms import vjp

MOST_LOCALS = 400  # uses of variables; beyond that nobody reads numbers
DIFFERENTIATED = ("custom_jvp_call", "custom_vjp_call")  # closed, and yet quick to run again


def local_gradients(
    shares: Mapping[Share, Any], values: Mapping[Variable, Any]
) -> dict[Share, Any]:
    """For small operations, ∂output/∂operand with upstream × local = downstream entry by entry.

    That is so for operations with one number as output, and for elementwise ones: those whose
    Jacobian is diagonal at this point.

    Args:
        shares: uses of variables that have a cotangent.
        values: the forward values.
    """
    small = [use for use in shares if _is_small(*use)][:MOST_LOCALS]

    def jacobians(operands: list[list[Any]]) -> list[Any]:
        return [_jacobian(*use, given) for use, given in zip(small, operands)]

    given = [[_value(v, values) for v in equation.inputs] for equation, _ in small]
    found = jax.jit(jacobians)(given) if small else []
    local = {use: _entries(np.asarray(j)) for use, j in zip(small, found) if j is not None}
    return {
        (equation, operand): entries.reshape(equation.inputs[operand].shape)
        for (equation, operand), entries in local.items()
        if entries is not None
    }


def _is_small(equation: Equation, operand: int) -> bool:
    if len(equation.outputs) != 1 or equation.inputs[operand].kind == "literal":
        return False
    if equation.nested and equation.operation not in DIFFERENTIATED:
        return False
    x, y = equation.inputs[operand], equation.outputs[0]
    if not all(v.dtype is not None and jnp.issubdtype(v.dtype, jnp.floating) for v in (x, y)):
        return False
    return 0 < x.size <= MOST_SHOWN and (y.size == 1 or y.shape == x.shape)


def _value(variable: Variable, values: Mapping[Variable, Any]) -> Any:
    if variable in values:
        return values[variable]
    return jnp.asarray(variable.value, variable.dtype)


def _jacobian(equation: Equation, operand: int, given: list[Any]) -> Any:
    """Its rows are the pullbacks of the basis: entries of the output × entries of the operand."""

    def run(x: Any) -> Any:
        operands = [x if k == operand else y for k, y in enumerate(given)]
        return evaluate(equation.eqn, operands)[0]

    try:
        y, pull = vjp(run, given[operand])
    except Exception:  # it runs only among others: a collective, an operation with an effect
        return None
    basis = jnp.eye(y.size, dtype=y.dtype).reshape(y.size, *y.shape)
    rows: Callable[[Any], Any] = lambda y_bar: pull(y_bar)[0].reshape(-1)  # noqa: E731
    return jnp.stack([rows(y_bar) for y_bar in basis])


def _entries(jacobian: np.ndarray) -> np.ndarray | None:
    """The one row, or the diagonal if there is nothing beside it."""
    jacobian = jacobian.astype(np.float64)
    if len(jacobian) == 1:
        return jacobian[0]
    diagonal = np.diagonal(jacobian)
    beside = jacobian[~np.eye(len(jacobian), dtype=bool)]
    return diagonal if np.all(beside == 0) else None
