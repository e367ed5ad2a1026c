"""JAX's commonest primitives in NumPy: a graph of small arrays is evaluated a thousand times."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.extend.core import Primitive

Operation = Callable[..., Any]


def evaluate(primitive: Primitive, params: Mapping[str, Any], operands: Sequence[Any]) -> list[Any]:
    """The outputs of one equation; what the table lacks is run by JAX itself."""
    operation = TABLE.get(primitive.name)
    groups = params.get("feature_group_count", 1) * params.get("batch_group_count", 1)
    if operation is not None and groups == 1:
        made = operation(*operands, **params)
        return made if primitive.multiple_results else [made]
    bound: dict[str, Any] = primitive.get_bind_params(dict(params))  # pyright: ignore
    outs = primitive.bind(*operands, **bound)
    return [as_numpy(out) for out in (outs if primitive.multiple_results else [outs])]


def as_numpy(value: Any) -> Any:
    """The value as a NumPy array; what NumPy cannot hold (a random key) stays as it is."""
    try:
        return np.asarray(value)
    except TypeError:
        return value


def in_scope(value: Any) -> bool:
    """Whether a value is an array of real or complex numbers."""
    return isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "fc"


# One row per form: the name of the primitive, and the same in NumPy without its parameters.
def _plain(function: Operation) -> Operation:
    return lambda *operands, **_: function(*operands)


def _logistic(x: Any) -> Any:
    return 0.5 * (1 + np.tanh(0.5 * x))


def _select(which: Any, *cases: Any) -> Any:
    if len(cases) == 2:
        return np.where(which, cases[1], cases[0])
    shape = np.broadcast_shapes(*map(np.shape, cases))
    return np.choose(np.broadcast_to(np.asarray(which, np.intp), shape), cases)


def _broadcast(x: Any, *_: Any, shape: Any, broadcast_dimensions: Any, **__: Any) -> Any:
    expanded = [1] * len(shape)
    for axis, size in zip(broadcast_dimensions, np.shape(x)):
        expanded[axis] = size
    return np.broadcast_to(np.reshape(x, expanded), shape)


def _dot(a: Any, b: Any, *, dimension_numbers: Any, **_: Any) -> Any:
    (a_sum, b_sum), (a_batch, b_batch) = dimension_numbers
    if not a_batch and len(a_sum) == 1 and a.ndim and b.ndim and a.ndim <= 2 and b.ndim <= 2:
        a = a.T if a_sum[0] != a.ndim - 1 else a
        return a @ (b if b_sum[0] == 0 else b.T)
    a_free = [i for i in range(a.ndim) if i not in a_sum and i not in a_batch]
    b_free = [i for i in range(b.ndim) if i not in b_sum and i not in b_batch]
    if [a.shape[i] for i in (*a_sum, *a_batch)] != [b.shape[i] for i in (*b_sum, *b_batch)]:
        raise ValueError("shapes do not match")
    batch = [a.shape[i] for i in a_batch]
    free = [a.shape[i] for i in a_free], [b.shape[i] for i in b_free]
    inner = math.prod(a.shape[i] for i in a_sum)
    count = [math.prod(sizes) for sizes in free]
    a = a.transpose((*a_batch, *a_free, *a_sum)).reshape(*batch, count[0], inner)
    b = b.transpose((*b_batch, *b_sum, *b_free)).reshape(*batch, inner, count[1])
    return (a @ b).reshape((*batch, *free[0], *free[1]))


def _reduction(function: Operation) -> Operation:
    def operation(x: Any, *, axes: Any, **_: Any) -> Any:
        return function(x, axis=tuple(axes))

    return operation


def _cumulative(function: Operation) -> Operation:
    def operation(x: Any, *, axis: int, reverse: bool, **_: Any) -> Any:
        if reverse:
            return np.flip(function(np.flip(x, axis), axis=axis), axis)
        return function(x, axis=axis)

    return operation


def _integer_power(x: Any, *, y: int, **_: Any) -> Any:
    return x**y if y >= 0 else 1 / x**-y


def _split(x: Any, *, sizes: Any, axis: int, **_: Any) -> list[Any]:
    return np.split(x, np.cumsum(sizes)[:-1], axis)


def _triangular_solve(
    a: Any, b: Any, *, left_side: bool, lower: bool, transpose_a: bool, conjugate_a: bool,
    unit_diagonal: bool, **_: Any,
) -> Any:  # fmt: skip
    a = np.tril(a) if lower else np.triu(a)
    if unit_diagonal:
        eye = np.eye(a.shape[-1], dtype=bool)
        a = np.where(eye, np.ones_like(a), a)
    a = np.conj(a) if conjugate_a else a
    a = np.swapaxes(a, -1, -2) if transpose_a else a
    if left_side:
        return np.linalg.solve(a, b)
    return np.swapaxes(np.linalg.solve(np.swapaxes(a, -1, -2), np.swapaxes(b, -1, -2)), -1, -2)


def _slice(x: Any, *, start_indices: Any, limit_indices: Any, strides: Any, **_: Any) -> Any:
    steps = strides or (1,) * x.ndim
    return x[tuple(slice(*bounds) for bounds in zip(start_indices, limit_indices, steps))]


def _pad(x: Any, value: Any, *, padding_config: Any, **_: Any) -> Any:
    for axis, (low, high, interior) in enumerate(padding_config):
        if interior:
            size = x.shape[axis] + max(x.shape[axis] - 1, 0) * interior
            shape = (*x.shape[:axis], size, *x.shape[axis + 1 :])
            spread = np.full(shape, value, x.dtype)
            spread[(slice(None),) * axis + (slice(None, None, interior + 1),)] = x
            x = spread
        x = x[(slice(None),) * axis + (slice(max(-low, 0), x.shape[axis] - max(-high, 0)),)]
        width = [(0, 0)] * x.ndim
        width[axis] = (max(low, 0), max(high, 0))
        x = np.pad(x, width, constant_values=value)
    return x


def _convolve(
    x: Any, kernel: Any, *, window_strides: Any, padding: Any, lhs_dilation: Any,
    rhs_dilation: Any, dimension_numbers: Any, **_: Any,
) -> Any:  # fmt: skip
    of_x, of_kernel, of_out = dimension_numbers
    count = len(window_strides)
    spatial = tuple(range(2, 2 + count))
    none = [(0, 0, 0)] * 2
    widths = [(low, high, step - 1) for (low, high), step in zip(padding, lhs_dilation)]
    x = _pad(np.transpose(x, of_x), 0, padding_config=[*none, *widths])
    apart = [(0, 0, step - 1) for step in rhs_dilation]
    kernel = _pad(np.transpose(kernel, of_kernel), 0, padding_config=[*none, *apart])
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[2:], spatial)
    windows = windows[(slice(None),) * 2 + tuple(slice(None, None, s) for s in window_strides)]
    inside = tuple(range(2 + count, 2 + 2 * count))
    out = np.tensordot(windows, kernel, ((1, *inside), (1, *spatial)))
    return np.transpose(np.moveaxis(out, -1, 1), np.argsort(of_out))


def _clamp(low: Any, x: Any, high: Any, **_: Any) -> Any:
    return np.minimum(np.maximum(x, low), high)


def _iota(*_: Any, dtype: Any, shape: Any, dimension: int, **__: Any) -> Any:
    ladder = np.arange(shape[dimension], dtype=dtype)
    return np.broadcast_to(ladder.reshape([-1] + [1] * (len(shape) - dimension - 1)), shape)


def _convert(x: Any, *, new_dtype: Any, **_: Any) -> Any:
    x = np.asarray(x)
    return (x.real if np.dtype(new_dtype).kind != "c" else x).astype(new_dtype)


# fmt: off
TABLE: dict[str, Operation] = {
    **{name: _plain(function) for name, function in {
        "add": np.add, "add_any": np.add, "sub": np.subtract, "mul": np.multiply,
        "neg": np.negative, "max": np.maximum, "min": np.minimum, "pow": np.power,
        "rem": np.fmod, "atan2": np.arctan2,
        "exp": np.exp, "exp2": np.exp2, "expm1": np.expm1, "log": np.log, "log1p": np.log1p,
        "sqrt": np.sqrt, "rsqrt": lambda x: 1 / np.sqrt(x), "cbrt": np.cbrt, "square": np.square,
        "sin": np.sin, "cos": np.cos, "tan": np.tan, "tanh": np.tanh, "sinh": np.sinh,
        "cosh": np.cosh, "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan,
        "logistic": _logistic, "abs": np.abs, "sign": np.sign,
        "floor": np.floor, "ceil": np.ceil, "is_finite": np.isfinite,
        "real": np.real, "imag": np.imag, "conj": np.conj,
        "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal,
        "gt": np.greater, "ge": np.greater_equal,
        "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
        "not": np.invert, "select_n": _select,
        "copy": np.asarray, "copy_p": np.asarray, "stop_gradient": np.asarray,
        "name": np.asarray, "pvary": np.asarray,
        "reduce_precision": np.asarray,
    }.items()},
    **{name: _reduction(function) for name, function in {
        "reduce_sum": np.sum, "reduce_max": np.max, "reduce_min": np.min,
        "reduce_prod": np.prod, "reduce_and": np.all, "reduce_or": np.any,
    }.items()},
    **{name: _cumulative(function) for name, function in {
        "cumsum": np.cumsum, "cumprod": np.cumprod,
        "cummax": np.maximum.accumulate, "cummin": np.minimum.accumulate,
        "cumlogsumexp": np.logaddexp.accumulate,
    }.items()},
    "div": lambda a, b, **_: np.divide(a, b) if np.asarray(a).dtype.kind in "fc"
           else np.trunc(np.divide(a, b)).astype(np.asarray(a).dtype),
    "integer_pow": _integer_power,
    "broadcast_in_dim": _broadcast,
    "reshape": lambda x, *_, new_sizes, **__: np.reshape(x, new_sizes),
    "transpose": lambda x, *, permutation, **_: np.transpose(x, permutation),
    "squeeze": lambda x, *, dimensions, **_: np.squeeze(x, tuple(dimensions)),
    "expand_dims": lambda x, *, dimensions, **_: np.expand_dims(x, tuple(dimensions)),
    "concatenate": lambda *xs, dimension, **_: np.concatenate(xs, dimension),
    "stack": lambda *xs, axis, **_: np.stack(xs, axis),
    "split": _split,
    "triangular_solve": _triangular_solve,
    "rev": lambda x, *, dimensions, **_: np.flip(x, tuple(dimensions)),
    "dot_general": _dot,
    "conv_general_dilated": _convolve,
    "slice": _slice,
    "pad": _pad,
    "clamp": _clamp,
    "iota": _iota,
    "convert_element_type": _convert,
    "argmax": lambda x, *, axes, index_dtype, **_: np.argmax(x, axes[0]).astype(index_dtype),
    "argmin": lambda x, *, axes, index_dtype, **_: np.argmin(x, axes[0]).astype(index_dtype),
}
# fmt: on
