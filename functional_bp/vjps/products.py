"""Both cotangents of a matrix product, ``dot_general``, are matrix products again.

``ragged_dot_general`` multiplies consecutive groups of rows, each with its own matrix.

In the formulas r is the ragged axis, cut into groups, and q(r) the group that r lies in; an r
beyond the last group contributes nothing. b: batch, c: contracted, f and g: the other axes.

============== ============================== =================================================
ragged axis     forward                        JAX differentiates it
============== ============================== =================================================
f of x          z_brg = Σ_c x_brc y_q(r)bcg    yes
c of both       z_qbfg = Σ_{r in q} x_bfr y_brg  no: here both cotangents are of the first kind
b of both       z_rfg = Σ_c x_rfc y_rcg        no: a product like any other, by ``dot_general``
============== ============================== =================================================
"""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
from jax import lax

from functional_bp._jax import find_primitive
from functional_bp.engine.axes import relate
from functional_bp.engine.rule import Spec, case, cplx, integer, real, rule
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


def dot_axes(x_t: Any, y_t: Any, *, dimension_numbers: Any) -> Any:
    """Batch axes and the others are those of the output; contracted ones are summed."""
    (cx, cy), (bx, by) = dimension_numbers
    x, y = ([(name, i) for i in range(len(v.shape))] for name, v in (("x", x_t), ("y", y_t)))
    for i, j in zip((*bx, *cx), (*by, *cy)):
        y[j] = x[i]
    left = [x[i] for i in range(len(x)) if i not in (*bx, *cx)]
    right = [y[j] for j in range(len(y)) if j not in (*by, *cy)]
    return relate([x, y], [[*(x[i] for i in bx), *left, *right]], summed=[x[i] for i in cx])


rule(
    lax.dot_general_p, "x, y -> z", linear="x; y", x=dot_left, y=dot_right, axes=dot_axes,
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


# Products of groups of rows.


def _split(numbers: Any, x: Any, y: Any) -> Any:
    """Return the dimension numbers, the ragged axis of x, and the axes that x and y keep."""
    (x_contract, y_contract), (x_batch, y_batch) = numbers.dot_dimension_numbers
    (ragged,) = numbers.lhs_ragged_dimensions
    x_kept = other_axes(len(x.shape), x_contract, x_batch)
    y_kept = other_axes(len(y.shape), y_contract, y_batch, numbers.rhs_group_dimensions)
    return x_contract, y_contract, x_batch, y_batch, ragged, x_kept, y_kept


def _product(left: Any, right: Any, group_sizes: Any, dims: Any, ragged: int, group: Any,
             axes: Any, like: Any, settings: Any) -> Any:
    """Compute a ragged product whose result's axes are ``axes`` of ``like``, put in ``like``'s
    order.
    """
    numbers = lax.RaggedDotDimensionNumbers(dims, [ragged], group)
    result = lax.ragged_dot_general(
        left, right, group_sizes, numbers, *settings, out_sharding=layout(like, axes)
    )
    return lax.transpose(result, np.argsort(axes)) if list(axes) != sorted(axes) else result


def ragged_left(z_bar, y, sizes, x_t, *, ragged_dot_dimension_numbers, precision,
                preferred_element_type):
    """x̄_brc = Σ_g z̄_brg y_q(r)bcg; with c ragged, x̄_bfr = Σ_g z̄_q(r)bfg y_brg.

    Derivation:
        f ragged: each r is a matrix product of its own with the matrix of its group, so x̄'s
        formula of ``dot_general`` holds with y_q(r): a ragged product of z̄ and y again.

        c ragged: z_qbfg = Σ_{r in q} x_bfr y_brg  ⇒  ∂z_qbfg/∂x_bfr = [r in q] y_brg, and
        x̄_bfr = Σ_g z̄_q(r)bfg y_brg: the rows r of y, each with the matrix z̄_q(r) of its group.

    Numerics:
        an x beyond the last group has x̄ = 0.
    """
    numbers = ragged_dot_dimension_numbers
    x_contract, y_contract, x_batch, y_batch, ragged, x_kept, y_kept = _split(numbers, x_t, y)
    settings = (precision, preferred_element_type)
    n_batch, n_x = len(x_batch), len(x_kept)
    if ragged in x_batch:
        return dot_left(
            z_bar, y, x_t, dimension_numbers=numbers.dot_dimension_numbers,
            precision=precision, preferred_element_type=preferred_element_type,
        )
    if ragged in x_kept:
        z_batch = range(n_batch)
        z_other = range(n_batch + n_x, z_bar.ndim)
        axes = [*x_batch, *x_kept, *(x_contract[i] for i in np.argsort(y_contract))]
        dims = ((z_other, y_kept), (z_batch, y_batch))
        return _product(z_bar, y, sizes, dims, n_batch + x_kept.index(ragged),
                        numbers.rhs_group_dimensions, axes, x_t, settings)
    z_batch = range(1, 1 + n_batch)
    z_other = range(1 + n_batch + n_x, z_bar.ndim)
    axes = [*x_batch, *(x_contract[i] for i in np.argsort(y_contract)), *x_kept]
    dims = ((y_kept, z_other), (y_batch, z_batch))
    y_ragged = y_contract[x_contract.index(ragged)]
    return _product(y, z_bar, sizes, dims, y_ragged, [0], axes, x_t, settings)


def ragged_right(z_bar, x, sizes, y_t, *, ragged_dot_dimension_numbers, precision,
                 preferred_element_type):
    """ȳ_qbcg = Σ_{r in q} x_brc z̄_brg; with c ragged, ȳ_brg = Σ_f x_bfr z̄_q(r)bfg.

    Derivation:
        f ragged: y_q enters z_brg for the r in q alone ⇒ the sum over r is cut into groups: a
        ragged product whose contracted axis is ragged.

        c ragged: ∂z_qbfg/∂y_brg = [r in q] x_bfr ⇒ the rows r of x, each with the matrix z̄_q(r).
    """
    numbers = ragged_dot_dimension_numbers
    x_contract, y_contract, x_batch, y_batch, ragged, x_kept, y_kept = _split(numbers, x, y_t)
    settings = (precision, preferred_element_type)
    n_batch, n_x = len(x_batch), len(x_kept)
    if ragged in x_batch:
        return dot_right(
            z_bar, x, y_t, dimension_numbers=numbers.dot_dimension_numbers,
            precision=precision, preferred_element_type=preferred_element_type,
        )
    y_summed = [y_contract[i] for i in np.argsort(x_contract)]
    if ragged in x_kept:
        z_batch, z_own = range(n_batch), range(n_batch, n_batch + n_x)
        axes = [*numbers.rhs_group_dimensions, *y_batch, *y_summed, *y_kept]
        dims = ((x_kept, z_own), (x_batch, z_batch))
        return _product(x, z_bar, sizes, dims, ragged, [], axes, y_t, settings)
    z_batch, z_own = range(1, 1 + n_batch), range(1 + n_batch, 1 + n_batch + n_x)
    axes = [*y_batch, *y_summed, *y_kept]
    dims = ((x_kept, z_own), (x_batch, z_batch))
    return _product(x, z_bar, sizes, dims, ragged, [0], axes, y_t, settings)


def _rows(x: Any, y: Any, sizes: Any) -> Any:
    return lax.ragged_dot(x, y, sizes)


def _ragged(dims: Any, ragged: int, group: Any) -> Any:
    numbers = lax.RaggedDotDimensionNumbers(dims, [ragged], group)
    return lambda x, y, sizes: lax.ragged_dot_general(x, y, sizes, numbers)


def _in_group(sizes: Any, n: int) -> Any:
    """The mask is 1 where row r lies in group q, which makes the ragged products dense ones."""
    ends = lax.cumsum(sizes)[:, None]
    r = np.arange(n)[None, :]
    return ((r < ends) & (r >= ends - sizes[:, None])).astype(float)


def _dense_rows(x: Any, y: Any, sizes: Any) -> Any:
    member = _in_group(sizes, x.shape[0]).astype(x.dtype)
    return lax.reduce_sum(member[:, :, None] * (x[None] @ y), (0,))


def _dense_contraction(x: Any, y: Any, sizes: Any) -> Any:
    member = _in_group(sizes, y.shape[0]).astype(x.dtype)
    return (x[None] * member[:, None, :]) @ y


def _sizes(values: Any) -> Spec:
    return integer(values=np.array(values, np.int32))


def ragged_axes(x_t: Any, y_t: Any, sizes_t: Any, *, ragged_dot_dimension_numbers: Any) -> Any:
    """As in a product, but that a piece of the ragged axis must know in which groups it lies.

    The axis of groups is another for each way to be ragged, and belongs to none.
    """
    numbers = ragged_dot_dimension_numbers
    (r,), groups = numbers.lhs_ragged_dimensions, tuple(numbers.rhs_group_dimensions)
    (cx, cy), (bx, by) = numbers.dot_dimension_numbers
    x, y = ([(name, i) for i in range(len(v.shape))] for name, v in (("x", x_t), ("y", y_t)))
    for i, j in zip((*bx, *cx), (*by, *cy)):
        y[j] = x[i]
    left = [x[i] for i in range(len(x)) if i not in (*bx, *cx)]
    right = [y[j] for j in range(len(y)) if j not in (*by, *cy, *groups)]
    z = [*([None] if r in cx else []), *(x[i] for i in bx), *left, *right]
    y = [None if j in groups else label for j, label in enumerate(y)]
    sizes = [x[i] for i in bx] if len(sizes_t.shape) > 1 else []
    sizes += [None] * (len(sizes_t.shape) - len(sizes))
    batch = bx if r in bx else ()
    summed = [x[i] for i in cx if i != r]
    return relate([x, y, sizes], [z], summed=summed, positional=[x[i] for i in (r, *batch)])


rule(
    find_primitive("lax.lax.ragged_dot_general_p"), "x, y, sizes -> z", linear="x; y",
    x=ragged_left, y=ragged_right, axes=ragged_axes,
    cases=[
        case(_rows, real(5, 3), real(2, 3, 4), _sizes([2, 3]), batchable=False,
             reference=_dense_rows, note="JAX cannot vmap its derivatives, nor take a second one"),
        case(_rows, real(5, 3), real(3, 3, 2), _sizes([1, 0, 2]), batchable=False,
             reference=_dense_rows, note="an empty group, rows beyond the last one"),
        case(_ragged((((0,), (1,)), ((), ())), 1, [2]), real(3, 4), real(2, 3, 2),
             _sizes([3, 1]), batchable=False, note="other axis orders",
             reference=lambda x, y, s: _dense_rows(x.T, lax.transpose(y, (2, 1, 0)), s)),
        case(_ragged((((2,), (2,)), ((0,), (1,))), 1, [0]), real(2, 4, 3), real(2, 2, 3, 2),
             _sizes([[3, 1], [2, 2]]), batchable=False, note="batched",
             reference=lambda x, y, s: jax.vmap(_dense_rows, (0, 1, 0))(x, y, s)),
        case(_ragged((((1,), (0,)), ((), ())), 1, []), real(2, 5), real(5, 3),
             _sizes([2, 2]), batchable=False, reference=_dense_contraction,
             note="contracted axis ragged: JAX has no derivative"),
        case(_ragged((((2,), (1,)), ((0,), (0,))), 0, []), real(4, 2, 3), real(4, 3, 2),
             _sizes([3, 1]), batchable=False, reference=lambda x, y, s: x @ y,
             note="batch axis ragged: JAX has no derivative"),
    ],
)
