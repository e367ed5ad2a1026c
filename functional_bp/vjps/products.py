"""Both cotangents of a matrix product, ``dot_general``, are matrix products again."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jax import lax

from functional_bp.engine.rule import case, cplx, real, rule
from functional_bp.vjps.shapes import layout, undivided


def other_axes(ndim: int, *taken: Any) -> list[int]:
    """Return the axes of an operand that are in none of ``taken``, in order."""
    used = {axis for group in taken for axis in group}
    return [axis for axis in range(ndim) if axis not in used]


def neighbours(axes: Any) -> bool:
    """Say whether the axes stand side by side, in order."""
    return list(axes) == list(range(axes[0], axes[0] + len(axes)))


def as_one_axis(x: Any, axes: Any) -> tuple[Any, list[int]]:
    """Return ``x`` with neighbouring axes made one, and that axis."""
    first, after = axes[0], axes[-1] + 1
    shape = (*x.shape[:first], math.prod(x.shape[first:after]), *x.shape[after:])
    return lax.reshape(x, shape), [first]


def adjoint_dot(z_bar: Any, y: Any, x_t: Any, numbers: Any, z_kept: Any, z_other: Any,
                precision: Any, preferred_element_type: Any) -> Any:
    """x̄ = z̄ contracted with y, its axes in x's order.

    ``numbers`` are the dimension numbers seen from x; ``z_kept`` and ``z_other`` are the axes of
    z̄ that came from x and from y. Of the products z̄·y and y·z̄ the one is taken whose result has
    x's order of axes, so that no transpose follows, if there is such a one. Neighbouring axes
    that are summed over are made one first, where nothing divides them over devices: to sum over
    several, XLA copies the operand on the left.
    """
    (x_contract, y_contract), (x_batch, y_batch) = numbers
    x_kept = other_axes(len(x_t.shape), x_contract, x_batch)
    y_kept = other_axes(y.ndim, y_contract, y_batch)
    summed_by_y = [x_contract[i] for i in np.argsort(y_contract)]
    z_first = [*x_batch, *x_kept, *summed_by_y]
    y_first = [*x_batch, *summed_by_y, *x_kept]
    z_batch = range(len(x_batch))
    if len(y_kept) > 1 and neighbours(y_kept) and undivided(y) and undivided(z_bar):
        y_batch = [axis - (len(y_kept) - 1) * (axis > y_kept[0]) for axis in y_batch]
        y, y_kept = as_one_axis(y, y_kept)
        z_bar, z_other = as_one_axis(z_bar, z_other)
    swap = z_first != sorted(z_first) and y_first == sorted(y_first)
    if swap:
        result = lax.dot_general(
            y, z_bar, ((y_kept, z_other), (y_batch, z_batch)),
            precision[::-1] if isinstance(precision, tuple) else precision,
            preferred_element_type, out_sharding=layout(x_t, y_first),
        )
        return result
    result = lax.dot_general(
        z_bar, y, ((z_other, y_kept), (z_batch, y_batch)),
        precision, preferred_element_type, out_sharding=layout(x_t, z_first),
    )
    return result if z_first == sorted(z_first) else lax.transpose(result, np.argsort(z_first))


def dot_left(z_bar, y, x_t, *, dimension_numbers, precision, preferred_element_type):
    """x̄_bfc = Σ_g z̄_bfg y_bgc.

    Derivation:
        b: batch axes, c: contracted axes, f and g: the other axes of x and of y.

            z_bfg = Σ_c x_bfc y_bgc
            ⟨z̄, ż⟩ = Σ_bfg z̄_bfg Σ_c ẋ_bfc y_bgc = Σ_bfc ẋ_bfc (Σ_g z̄_bfg y_bgc)

        The bracket is x̄: contract z̄ with y over g, batch over b. For matrices z = x y it is
        x̄ = z̄ yᵀ. The axes of x may stand in any order: the result is transposed to it.
        No conjugate: JAX's cotangents pair bilinearly with complex tangents.

    Numerics:
        accumulates in ``preferred_element_type`` at ``precision``, as the forward product does.
    """
    (x_contract, _), (x_batch, _) = dimension_numbers
    count = len(x_batch)
    kept = len(x_t.shape) - len(x_contract)
    z_kept, z_other = range(count, kept), range(kept, z_bar.ndim)
    return adjoint_dot(z_bar, y, x_t, dimension_numbers, z_kept, z_other,
                       precision, preferred_element_type)


def dot_right(z_bar, x, y_t, *, dimension_numbers, precision, preferred_element_type):
    """ȳ_bgc = Σ_f z̄_bfg x_bfc.

    Derivation:
        z_bfg = Σ_c x_bfc y_bgc is symmetric in (x, f) and (y, g): exchange them in x̄'s formula.
        For matrices z = x y it is ȳ = xᵀ z̄.
    """
    (x_contract, y_contract), (x_batch, y_batch) = dimension_numbers
    count = len(x_batch)
    kept = x.ndim - len(x_contract)
    numbers = ((y_contract, x_contract), (y_batch, x_batch))
    return adjoint_dot(z_bar, x, y_t, numbers, range(kept, z_bar.ndim), range(count, kept),
                       precision, preferred_element_type)


def _dot(contract: Any, batch: Any = ((), ()), **parameters: Any) -> Any:
    return lambda x, y: lax.dot_general(x, y, (contract, batch), **parameters)


rule(
    lax.dot_general_p, "x, y -> z", linear="x; y", x=dot_left, y=dot_right,
    cases=[
        case(_dot(((1,), (0,))), real(3, 4), real(4, 2)),
        case(_dot(((0,), (0,))), real(4, 3), real(4, 2)),
        case(_dot(((1,), (1,))), cplx(3, 4), cplx(2, 4)),
        case(_dot(((0,), (1,))), real(4, 3), real(2, 4)),
        case(_dot(((0,), (0,))), real(3), real(3)),
        case(_dot(((), ())), real(2), real(3), note="outer product"),
        case(_dot(((2,), (1,)), ((0,), (0,))), real(2, 3, 4), real(2, 4, 5)),
        case(_dot(((0,), (2,)), ((2, 1), (0, 1))), real(4, 3, 2), real(2, 3, 4, 5)),
        case(_dot(((2,), (0,))), real(2, 3, 4), real(4, 5)),
        case(_dot(((2,), (3,)), ((3,), (2,))), real(2, 3, 4, 2), real(3, 2, 2, 4)),
        case(_dot(((3, 1), (0, 2)), ((2,), (1,))), real(2, 3, 2, 4), real(4, 2, 3, 2)),
        case(_dot(((1,), (0,)), precision=lax.Precision.HIGHEST), real(2, 3), real(3, 2)),
        case(_dot(((1,), (0,)), precision=(lax.Precision.HIGH, lax.Precision.HIGHEST)),
             real(2, 3), real(3, 2)),
        case(_dot(((1,), (0,)), preferred_element_type=np.float64), real(2, 3), real(3, 2)),
        case(_dot(((1,), (0,))), real(2, 0), real(0, 2), note="an empty sum"),
        case(_dot(((1,), (0,))), real(0, 3), real(3, 2)),
        case(lambda x: x @ x, real(3, 3), note="one operand twice"),
    ],
)
