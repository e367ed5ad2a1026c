"""Errors at the door: data that cannot be trained on is refused before anything is compiled."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functional_bp.errors import TrainingError, compose, describe

ROLES = ("x", "y", "sample_weight")  # what stands first, second and third in a batch
CHUNK_ENTRIES = 1 << 20  # looked at in one go, so that no mask as large as the data is made


class DataError(TrainingError):
    """Data that cannot be trained on: empty, of different lengths, not numeric, out of range."""


def named_arrays(data: Any) -> dict[str, Any]:
    """The arrays of a pytree by name: ``x``, ``y``, ``sample_weight`` for those of a batch.

    Example:
        >>> list(named_arrays(({"left": 1, "right": 2}, 3)))
        ["x['left']", "x['right']", 'y']
    """
    rows, _ = jax.tree_util.tree_flatten_with_path(data)
    return {_named(data, path): leaf for path, leaf in rows}


def _named(data: Any, path: tuple[Any, ...]) -> str:
    plain = isinstance(data, tuple) and not hasattr(data, "_fields") and len(data) <= len(ROLES)
    if plain and path:
        return ROLES[path[0].idx] + jax.tree_util.keystr(path[1:])
    return jax.tree_util.keystr(path).lstrip(".") or "x"


def check(data: Any, *, what: str = "the data", finite: bool = True) -> int:
    """Refuse arrays that cannot be cut into batches; returns how many examples they hold.

    Args:
        data: a pytree of arrays, each with the examples on its first axis.
        what: what the arrays are for, in the words of an error.
        finite: whether a NaN or an infinity is refused. Arrays that are mapped from a file are not
            searched for them: that would read the whole file.

    Raises:
        DataError: there is no array, no example, the lengths differ, an array is not of numbers,
            or a number is not finite.

    Example:
        >>> check((np.zeros((5, 3)), np.arange(5)))
        5
    """
    arrays = named_arrays(data)
    if not arrays:
        raise DataError(
            compose(
                f"{what} has no array",
                got=type(data).__name__ if data is not None else "None",
                expected="a tuple, dict or array with the examples on the first axis",
            )
        )
    for name, array in arrays.items():
        _check_kind(name, array, what)
    count = _check_lengths(arrays, what)
    if finite:
        for name, array in arrays.items():
            check_finite(array, name=name, what=what)
    return count


def not_an_array(name: str, value: Any, what: str) -> DataError:
    """For what stands where an array should."""
    do = f"convert it: np.asarray({name})"
    if hasattr(value, "__next__"):
        do = "pass the generator alone, and let it give whole batches (x, y)"
    elif hasattr(value, "__getitem__") and not isinstance(value, str | bytes):
        do = "a set of single examples is put into a loader, which makes batches of it"
    return DataError(
        compose(
            f"{name} of {what} is not an array",
            got=describe(value),
            expected="an array with the examples on its first axis",
            do=do,
        )
    )


def _check_kind(name: str, array: Any, what: str) -> None:
    """Refuse what is not an array of numbers with a first axis."""
    if not isinstance(array, np.ndarray):
        raise not_an_array(name, array, what)
    if not (jnp.issubdtype(array.dtype, np.number) or array.dtype == np.bool_):
        kinds = {"O": "Python objects", "U": "text", "S": "text", "T": "text", "M": "dates"}
        raise DataError(
            compose(
                f"{name} of {what} does not hold numbers",
                got=f"{describe(array)}, {kinds.get(array.dtype.kind, array.dtype.name)}",
                expected="floating point, integers or booleans",
                do="make numbers of it, as np.unique(labels, return_inverse=True) does of labels;\n"
                "            rows of different lengths are padded to one",
            )
        )
    if array.ndim == 0:
        raise DataError(
            compose(
                f"{name} of {what} has no axis of examples",
                got=describe(array),
                expected="the examples on its first axis",
            )
        )


def _check_lengths(arrays: Mapping[str, np.ndarray], what: str) -> int:
    lengths = {name: len(array) for name, array in arrays.items()}
    shapes = ", ".join(f"{name}: {describe(array)}" for name, array in arrays.items())
    if len(set(lengths.values())) > 1:
        raise DataError(
            compose(
                f"the arrays of {what} have different numbers of examples",
                got=shapes,
                expected="one length on the first axis of all",
                do="look for rows that were dropped from one array and not from the others",
            )
        )
    count = next(iter(lengths.values()))
    if not count:
        raise DataError(
            compose(f"{what} has no example", got=shapes, expected="one example at least")
        )
    return count


def check_finite(array: np.ndarray, *, name: str = "x", what: str = "the data") -> None:
    """Refuse NaN and infinity, naming the first.

    Raises:
        DataError: there is one.
    """
    if not jnp.issubdtype(array.dtype, np.inexact) or isinstance(array, np.memmap):
        return
    rows = max(1, CHUNK_ENTRIES // max(1, array[:1].size))
    for start in range(0, len(array), rows):
        finite = np.isfinite(array[start : start + rows])
        if not finite.all():
            first = np.argwhere(~finite)[0]
            index = (start + int(first[0]), *map(int, first[1:]))
            raise DataError(
                compose(
                    f"{name} of {what} holds a number that is not finite",
                    got=f"{name}[{', '.join(map(str, index))}] = {array[index]}, the first one",
                    expected="finite numbers: one NaN makes every parameter NaN in one step",
                    do=f"drop those examples, or np.nan_to_num({name})",
                )
            )


def check_labels(labels: Any, classes: int, *, name: str = "y", what: str = "the data") -> None:
    """Refuse integer labels outside [0, classes): JAX would clamp them without a word.

    Args:
        labels: integers of any shape; other dtypes are left alone.
        classes: how many the model tells apart, the width of its output.
        name: of the array, in the words of an error.
        what: what the array is for, in the words of an error.

    Raises:
        DataError: there is one.
    """
    array = np.asarray(labels)
    if array.dtype.kind not in "iu" or not array.size:
        return
    low, high = int(array.min()), int(array.max())
    if low >= 0 and high < classes:
        return
    index = tuple(map(int, np.argwhere((array < 0) | (array >= classes))[0]))
    do = f"give the model {high + 1} outputs, or number the classes from 0"
    if low == 1 and high == classes:
        do = f"number the classes from 0: {name} - 1"
    if low < 0:
        do = "number the classes from 0; give examples without a label the weight 0"
    raise DataError(
        compose(
            f"{name} of {what} has a label that the model has no output for",
            got=f"{name}[{', '.join(map(str, index))}] = {array[index]}; labels from {low} to "
            f"{high}, {classes} outputs",
            expected=f"labels from 0 to {classes - 1}",
            do=do,
        )
    )


def check_like(batch: Any, training: Any, *, what: str = "the validation data") -> None:
    """Refuse a batch whose arrays differ from training's in number, shape or kind of number.

    The first axis may differ, and so may precision: float32 goes with float64.

    Raises:
        DataError: they differ; the first one that does is named.
    """
    arrays, others = named_arrays(batch), named_arrays(training)
    optional = {ROLES[2]}  # weights may be given for the one and not for the other
    if (set(arrays) ^ set(others)) - optional:
        raise DataError(
            compose(
                f"{what} is not made of the same arrays as the training data",
                got=", ".join(arrays),
                expected=", ".join(others),
            )
        )
    for name in (name for name in others if name in arrays):
        mine, other = arrays[name], others[name]
        if np.shape(mine)[1:] != np.shape(other)[1:] or _kind(mine) != _kind(other):
            raise DataError(
                compose(
                    f"{name} of {what} does not fit {name} of the training data",
                    got=describe(mine),
                    expected=f"like {describe(other)}, but for the first axis",
                )
            )


def _kind(array: Any) -> str:
    dtype = np.asarray(array).dtype if not hasattr(array, "dtype") else array.dtype
    for kind in (np.integer, np.floating, np.complexfloating):
        if jnp.issubdtype(dtype, kind):
            return kind.__name__
    return str(dtype)


def check_count(name: str, value: Any, *, least: int = 1) -> int:
    """A whole number of at least ``least``, as an int.

    Raises:
        DataError: it is not one.

    Example:
        >>> check_count("batch_size", np.int64(32))
        32
    """
    try:
        count = operator.index(value)
    except TypeError:
        count = least - 1
    if count < least or isinstance(value, bool | np.bool_):
        raise DataError(
            compose(
                f"{name} cannot be used",
                got=f"{name} = {value!r}",
                expected=f"a whole number, {least} or more",
            )
        )
    return count
