"""Batches are cut from arrays or taken from a loader, in an order that a seed fixes.

The order of epoch e depends on the seed and on e alone, and an epoch can begin at any batch: that
is what an exact resume of training stands on. Data that cannot be trained on is refused before
anything is compiled.
"""

from __future__ import annotations

import base64
import inspect
import math
import operator
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functional_bp.errors import TrainingError, describe

ROLES = ("x", "y", "sample_weight")  # what stands first, second and third in a batch
CHUNK_ENTRIES = 1 << 20  # looked at in one go, so that no mask as large as the data is made


class DataError(TrainingError):
    """Data cannot be trained on: empty, of different lengths, not numeric, out of range."""


class Rows:
    """Rows of an array are chosen, and read when they are asked for.

    Each of several processes reads its own rows of a batch, from a mapped file for instance.

    Args:
        array: any array.
        rows: their numbers, or a slice.

    Example:
        >>> rows = Rows(np.arange(10.0), slice(4, 8))
        >>> rows.shape, rows[2:]
        ((4,), array([6., 7.]))
    """

    def __init__(self, array: np.ndarray, rows: np.ndarray | slice) -> None:
        chosen = np.arange(len(array))[rows] if isinstance(rows, slice) else rows
        self._array, self._rows = array, chosen
        self.shape, self.dtype = (len(chosen), *array.shape[1:]), array.dtype
        self.ndim = array.ndim

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> np.ndarray:
        first, *rest = index if isinstance(index, tuple) else (index,)
        return np.asarray(self._array[self._rows[first]][(slice(None), *rest)])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)


class Batches:
    """Batches are what training takes from data, epoch by epoch.

    Attributes:
        steps: how many an epoch has; None where it is not known before it ends.
        examples: how many an epoch has; None where that is not known.
        arrays: that they are cut from; None where they come from a loader.
    """

    steps: Any
    examples: int | None = None
    arrays: Any = None

    def epoch(self, e: int, start: int = 0) -> Iterator[Any]:
        """Epoch ``e`` has these batches, from batch ``start`` on."""
        raise NotImplementedError

    def first(self) -> Any:
        """The first batch is looked at; the next epoch still has it."""
        return next(self.epoch(0))

    def check_passes(self, epochs: int) -> None:
        """More epochs than can be had are refused before the first one.

        Raises:
            DataError: an iterator that can be passed over once is to last for several.
        """

    def state(self) -> dict[str, Any] | None:
        """This says where they stand, for JSON; None where (e, start) says all."""

    def restore(self, state: dict[str, Any] | None) -> None:
        """They go to where batches stood."""


def source(
    data: Any,
    *,
    batch_size: int = 32,
    shuffle: bool = True,
    seed: int = 0,
    drop_last: bool = False,
    steps: int | None = None,
    what: str = "the training data",
    by_rows: bool = False,
) -> Batches:
    """Batches are made of arrays, or of whatever gives batches.

    Args:
        data: a pytree (array, tuple, dict, NamedTuple) of arrays with the examples on the first
            axis; lists of numbers, data frames and tensors are taken for arrays. Or what gives
            whole batches: a list of them, a PyTorch or Grain loader, a generator, or a function
            that returns one for an epoch, with the number of the epoch as its argument if it
            takes one.
        batch_size: examples in a batch of arrays; the last one holds what is left.
        shuffle: whether the order of arrays is drawn anew for every epoch.
        seed: what the orders are drawn from: that of epoch e is
            ``np.random.default_rng([seed, e]).permutation(n)``.
        drop_last: whether a last batch of fewer examples is left out.
        steps: batches of an epoch, if that is not one pass over the data: passes follow each other
            then, and an epoch goes on where the last one stopped.
        what: what the data is for, in the words of an error.
        by_rows: give ``Rows`` of arrays, so that each of several processes reads its own.

    Raises:
        DataError: no batches can be made of it.

    Example:
        >>> x, y = np.arange(10.0).reshape(5, 2), np.arange(5)
        >>> batches = source((x, y), batch_size=2, shuffle=False)
        >>> [y.tolist() for _, y in batches.epoch(0)]
        [[0, 1], [2, 3], [4]]
        >>> [y.tolist() for _, y in batches.epoch(0, start=2)]
        [[4]]
    """
    batch_size, seed = check_count("batch_size", batch_size), check_count("seed", seed, least=0)
    steps = None if steps is None else check_count("steps_per_epoch", steps)
    if _gives_batches(data):
        return LoaderBatches(data, steps, what)
    arrays = as_arrays(data, what)
    check(arrays, what=what)
    return ArrayBatches(arrays, batch_size, shuffle, seed, drop_last, steps, what, by_rows)


def split(data: Any, fraction: float) -> tuple[Any, Any]:
    """The first ⌊n (1 − fraction)⌋ of n examples are split from the others, as Keras does.

    It is cut before any shuffling, so data that is sorted by class is to be shuffled before.

    Args:
        data: a pytree of arrays.
        fraction: what part of the examples goes to the second.

    Returns:
        Two pytrees like ``data``; their arrays are views.

    Raises:
        DataError: the data is no arrays, or one part would be empty.

    Example:
        >>> [part.tolist() for part in split(np.arange(5), 0.4)]
        [[0, 1, 2], [3, 4]]
    """
    if _gives_batches(data):
        raise DataError("a part for validation can only be cut from arrays",
                        got=f"{type(data).__name__}, which gives batches",
                        do="pass validation_data= in place of validation_split=")  # fmt: skip
    arrays = as_arrays(data)
    count = check(arrays, finite=False)
    at = math.floor(count * (1.0 - fraction)) if 0 < fraction < 1 else 0
    if not 0 < at < count:
        raise DataError(
            "the data cannot be split for validation",
            got=f"validation_split = {fraction!r} of {count} examples",
            expected="a number between 0 and 1 that leaves examples on both sides"
        )  # fmt: skip
    return jax.tree.map(lambda a: a[:at], arrays), jax.tree.map(lambda a: a[at:], arrays)


def _gives_batches(data: Any) -> bool:
    """Whether it is no pytree of arrays but gives batches: a loader, a function, a list of them."""
    if isinstance(data, list) and not _is_one_array(data):
        return bool(data) and isinstance(data[0], tuple | dict | list)
    if isinstance(data, tuple | dict):
        return False
    if hasattr(data, "__next__"):
        return True
    level = jax.tree.structure(data, is_leaf=lambda part: part is not data)
    whole = jax.tree_util.treedef_is_leaf(level)
    is_array = hasattr(data, "shape") and hasattr(data, "dtype") or hasattr(data, "__array__")
    iterable = hasattr(data, "__iter__") and not isinstance(data, str | bytes)
    return whole and not is_array and (iterable or callable(data))


def _is_one_array(value: Any) -> bool:
    """Whether it is an array that was written out as lists, or what cannot be opened."""
    if hasattr(value, "__next__"):
        return True
    while isinstance(value, list) and value:
        value = value[0]
    return isinstance(value, bool | int | float | complex | str | np.generic)


class ArrayBatches(Batches):
    """Batches are cut from arrays by index: any batch of any epoch, without those before."""

    def __init__(
        self,
        arrays: Any,
        batch_size: int,
        shuffle: bool,
        seed: int,
        drop_last: bool,
        steps: int | None,
        what: str,
        by_rows: bool,
    ) -> None:
        self._take = Rows if by_rows else _taken
        self.arrays, self._count = arrays, len(jax.tree.leaves(arrays)[0])
        self._batch_size, self._shuffle, self._seed = batch_size, shuffle, seed
        self._per_pass = (self._count if drop_last else self._count + batch_size - 1) // batch_size
        if not self._per_pass:
            raise DataError(
                f"{what} makes no whole batch",
                got=f"{self._count} examples, batch_size = {batch_size}, drop_last = True",
                do="take a smaller batch_size, or drop_last=False"
            )  # fmt: skip
        self.steps = steps or self._per_pass
        if steps is None:
            self.examples = min(self._count, self._per_pass * batch_size)

    def epoch(self, e: int, start: int = 0) -> Iterator[Any]:
        """Epoch ``e`` has these batches, from batch ``start`` on."""
        at, end = e * self.steps + start, (e + 1) * self.steps
        while at < end:
            number, first = divmod(at, self._per_pass)
            last = min(self._per_pass, first + end - at)
            yield from self._pass(number, first, last)
            at += last - first

    def _pass(self, number: int, first: int, last: int) -> Iterator[Any]:
        """Batches first to last of a pass over all examples."""
        size, order = self._batch_size, None
        if self._shuffle:
            order = np.random.default_rng([self._seed, number]).permutation(self._count)
        for k in range(first, last):
            rows: Any = slice(k * size, (k + 1) * size)
            if order is not None:
                rows = order[rows]
            yield jax.tree.map(lambda leaf, rows=rows: self._take(leaf, rows), self.arrays)


def _taken(array: Any, rows: Any) -> np.ndarray:
    return np.asarray(array[rows])


class LoaderBatches(Batches):
    """Batches come from a loader, a list of batches, a generator, or a function of the epoch.

    Without ``steps`` an epoch is one pass. With it, passes follow each other and an epoch is the
    next ``steps`` batches. Where a loader cannot go to a batch at once, the ones before are taken
    and thrown away, so that an epoch that is resumed has the batches it would have had.

    Raises:
        DataError: the object gives no batches.
    """

    def __init__(self, data: Any, steps: int | None, what: str) -> None:
        self._what, self._steps = what, steps
        self._once = hasattr(data, "__next__")  # an iterator: there is no second pass
        self._open = _opener(data, what)
        self.steps = steps if steps is not None else _length(data)
        if self.steps == 0:
            raise self._empty()
        self._number = -1  # of the pass that is open
        self._iterator: Iterator[Any] = iter(())
        self._given = 0  # batches that were taken from the open pass, or from all with `steps`
        self._held: list[Any] = []  # the batch that was looked at and not given yet
        self._restored: dict[str, Any] | None = None

    def check_passes(self, epochs: int) -> None:
        """More epochs than one are refused of an iterator."""
        if self._once and self._steps is None and epochs > 1:
            raise self._used_up(1)

    def first(self) -> Any:
        """The batch that comes next is looked at; the next epoch still has it."""
        if not self._held:
            if self._number < 0:
                self._begin(0)
            batch = next(self._iterator, None)
            if batch is None:
                raise self._empty()
            self._held = [batch]
        return to_batch(self._held[0])

    def epoch(self, e: int, start: int = 0) -> Iterator[Any]:
        """Epoch ``e`` has these batches, from batch ``start`` on.

        Raises:
            DataError: an iterator that can be passed over once has been used up, or stands behind
                that batch already.
        """
        if self._steps is None:
            if self._once and e > 0:
                raise self._used_up(e)
            return self._one_pass(e, start)
        return self._stream(e * self._steps + start, (e + 1) * self._steps)

    def _one_pass(self, e: int, start: int) -> Iterator[Any]:
        self._go_to(e, start)
        while (batch := self._take()) is not None:
            yield batch
        if not self._given:
            raise self._empty()

    def _stream(self, at: int, end: int) -> Iterator[Any]:
        """Batches at to end of all passes, one after the other."""
        self._go_to(None, at)
        while self._given < end:
            batch = self._take()
            yield self._next_pass(end) if batch is None else batch

    def _next_pass(self, end: int) -> Any:
        """The first batch of the pass that follows."""
        if self._once:
            raise self._too_few(end)
        given = self._given
        self._begin(self._number + 1)
        self._given = given
        batch = self._take()
        if batch is None:
            raise self._empty()
        return batch

    def _begin(self, number: int) -> None:
        """Open a pass."""
        if not (self._once and self._number == 0):
            self._iterator = iter(self._open(number))
        self._number, self._given, self._held = number, 0, []

    def _take(self) -> Any:
        """The next batch of the open pass, None at its end."""
        batch = self._held.pop() if self._held else next(self._iterator, None)
        if batch is None:
            return None
        self._given += 1
        return to_batch(batch)

    def _go_to(self, number: int | None, start: int) -> None:
        """Stand before batch ``start`` of a pass, or, where ``number`` is None, of all passes."""
        self._use_state(number, start)
        here = self._number >= 0 and (number is None or self._number == number)
        if not here or start < self._given:
            if self._once and self._number >= 0:
                raise self._used_up(number or 0)
            self._begin(number or 0)
        while self._given < start:
            if self._take() is None:
                if number is not None:
                    raise self._too_few(start)
                self._next_pass(start)

    def state(self) -> dict[str, Any] | None:
        """This says where the open pass stands, if its iterator can tell, as Grain's can."""
        tell = getattr(self._iterator, "get_state", None)
        if tell is None or self._held:
            return None
        state = tell()
        if isinstance(state, bytes):
            state = {"base64": base64.b64encode(state).decode()}
        return {"pass": self._number, "given": self._given, "iterator": state}

    def restore(self, state: dict[str, Any] | None) -> None:
        """The next epoch begins at this state, in place of counting batches."""
        self._restored = state

    def _use_state(self, number: int | None, start: int) -> None:
        """Go to the state that was restored, where it lies on the way to that batch."""
        kept, self._restored = self._restored, None
        if kept is None or kept["given"] > start or number not in (None, kept["pass"]):
            return
        self._begin(kept["pass"])
        if (take := getattr(self._iterator, "set_state", None)) is None:
            self._number = -1
            return
        state = kept["iterator"]
        if isinstance(state, dict) and set(state) == {"base64"}:
            state = base64.b64decode(state["base64"])
        take(state)
        self._given = kept["given"]

    def _empty(self) -> DataError:
        return DataError(
            f"{self._what} gave no batch", got="an iterator that ended at once",
            expected="one batch at least",
            do="pass a function that returns a new generator, if this one was used before"
        )  # fmt: skip

    def _used_up(self, epoch: int) -> DataError:
        return DataError(f"{self._what} cannot be passed over again", where=f"epoch {epoch + 1}",
                         got=f"a generator, of which {self._given} batches are taken",
                         expected="something that can begin anew",
                         do="pass the function that makes the generator, not the generator;\n"
                         "            or say steps_per_epoch= for one that has no end")  # fmt: skip

    def _too_few(self, wanted: int) -> DataError:
        return DataError(
            f"{self._what} ran out of batches", got=f"{self._given} batches",
            expected=f"{wanted} up to this point",
            do="train for fewer epochs, or with a smaller steps_per_epoch;\n"
            "            or pass a function that makes a new generator for every pass"
        )  # fmt: skip


def _opener(data: Any, what: str) -> Callable[[int], Any]:
    """A function from the number of a pass to something to iterate over."""
    if hasattr(data, "__iter__") or hasattr(data, "__next__"):
        return lambda number: data
    with_number = bool(by_position(data))

    def opened(number: int) -> Any:
        made = data(number) if with_number else data()
        if hasattr(made, "__iter__"):
            return made
        raise DataError(f"{what} is a function that returned no batches", got=describe(made),
                        expected="an iterator of batches, or a loader")  # fmt: skip

    return opened


def by_position(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """A function takes these parameters by position; of a builtin none may be known."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def _length(data: Any) -> int | None:
    """How many batches a pass has, where the object says so."""
    try:
        return len(data)
    except (TypeError, NotImplementedError):
        return None


# Arrays of whatever holds numbers.


def as_arrays(data: Any, what: str = "the data") -> Any:
    """The pytree has NumPy arrays for lists of numbers, data frames, tensors and JAX arrays.

    Raises:
        DataError: the rows of a list have different lengths.
    """
    leaves, treedef = jax.tree.flatten(data, is_leaf=_is_one_array)
    names = named_arrays(treedef.unflatten([0] * len(leaves)))
    return treedef.unflatten([to_array(leaf, name, what) for name, leaf in zip(names, leaves)])


def to_batch(batch: Any) -> Any:
    """A batch becomes what the step takes: tensors become arrays, a list becomes a tuple.

    Arrays of JAX stay where they are, so that a loader can put batches on a device by itself.
    """
    if isinstance(batch, list):
        batch = tuple(batch)
    return jax.tree.map(lambda leaf: leaf if isinstance(leaf, jax.Array) else to_array(leaf), batch)


def to_array(value: Any, name: str = "x", what: str = "a batch") -> Any:
    """A list, a data frame, a tensor or a JAX array becomes a NumPy array; the rest stays.

    Raises:
        DataError: the rows of a list have different lengths, the array holds random keys, or it is
            no array but an iterator.
    """
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "__next__"):
        raise _not_an_array(name, value, what)
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.extended):
        raise DataError(
            f"{name} of {what} holds random keys, not numbers", got=describe(value),
            do="draw from keys in the loss: it gets one of its own as rng="
        )  # fmt: skip
    if hasattr(value, "detach"):
        return _of_tensor(value)
    try:
        listed = isinstance(value, list | bool | int | float | complex | np.generic)
        return np.asarray(value) if listed or hasattr(value, "__array__") else value
    except ValueError as error:
        raise DataError(f"{name} of {what} makes no array", got=f"{type(value).__name__}: {error}",
                        expected="rows of one length",
                        do="pad the rows to one length") from error  # fmt: skip


def _of_tensor(tensor: Any) -> Any:
    """A PyTorch tensor as an array; bfloat16, which NumPy has not, by way of JAX."""
    tensor = tensor.detach().cpu()
    try:
        return tensor.numpy()
    except TypeError:
        return np.asarray(jnp.from_dlpack(tensor.contiguous()))


def named_arrays(data: Any) -> dict[str, Any]:
    """The arrays of a pytree get names: ``x``, ``y``, ``sample_weight`` for those of a batch.

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


# What is refused.


def check(data: Any, *, what: str = "the data", finite: bool = True) -> int:
    """Arrays that cannot be cut into batches are refused; returns how many examples there are.

    Arrays that are mapped from a file are not searched for a NaN or an infinity: that would read
    the whole file.

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
            f"{what} has no array", got=type(data).__name__ if data is not None else "None",
            expected="a tuple, dict or array with the examples on the first axis"
        )  # fmt: skip
    for name, array in arrays.items():
        _check_kind(name, array, what)
    shapes = ", ".join(f"{name}: {describe(array)}" for name, array in arrays.items())
    count, *others = {len(array) for array in arrays.values()}
    if others:
        raise DataError(
            f"the arrays of {what} have different numbers of examples", got=shapes,
            expected="one length on the first axis of all",
            do="look for rows that were dropped from one array and not from the others"
        )  # fmt: skip
    if not count:
        raise DataError(f"{what} has no example", got=shapes, expected="one example at least")
    if finite:
        for name, array in arrays.items():
            _check_finite(name, array, what)
    return count


def _not_an_array(name: str, value: Any, what: str) -> DataError:
    """This is the error for what stands where an array should."""
    do = f"convert it: np.asarray({name})"
    if hasattr(value, "__next__"):
        do = "pass the generator alone, and let it give whole batches (x, y)"
    elif hasattr(value, "__getitem__") and not isinstance(value, str | bytes):
        do = "a set of single examples is put into a loader, which makes batches of it"
    return DataError(f"{name} of {what} is not an array", got=describe(value),
                     expected="an array with the examples on its first axis", do=do)  # fmt: skip


def _check_kind(name: str, array: Any, what: str) -> None:
    """Refuse what is not an array of numbers with a first axis."""
    if not isinstance(array, np.ndarray):
        raise _not_an_array(name, array, what)
    if not (jnp.issubdtype(array.dtype, np.number) or array.dtype == np.bool_):
        kinds = {"O": "Python objects", "U": "text", "S": "text", "T": "text", "M": "dates"}
        raise DataError(
            f"{name} of {what} does not hold numbers",
            got=f"{describe(array)}, {kinds.get(array.dtype.kind, array.dtype.name)}",
            expected="floating point, integers or booleans",
            do="make numbers of it, as np.unique(labels, return_inverse=True) does of labels;\n"
            "            rows of different lengths are padded to one"
        )  # fmt: skip
    if array.ndim == 0:
        raise DataError(f"{name} of {what} has no axis of examples", got=describe(array),
                        expected="the examples on its first axis")  # fmt: skip


def _check_finite(name: str, array: np.ndarray, what: str) -> None:
    """Refuse a NaN or an infinity, naming the first."""
    if not jnp.issubdtype(array.dtype, np.inexact) or isinstance(array, np.memmap):
        return
    rows = max(1, CHUNK_ENTRIES // max(1, array[:1].size))
    for start in range(0, len(array), rows):
        finite = np.isfinite(array[start : start + rows])
        if not finite.all():
            first = np.argwhere(~finite)[0]
            index = (start + int(first[0]), *map(int, first[1:]))
            raise DataError(
                f"{name} of {what} holds a number that is not finite",
                got=f"{name}{_index(index)} = {array[index]}, the first one",
                expected="finite numbers: one NaN makes every parameter NaN in one step",
                do=f"drop those examples, or np.nan_to_num({name})"
            )  # fmt: skip


def check_labels(labels: Any, classes: int, what: str = "the data") -> None:
    """Integer labels outside [0, classes) are refused: JAX would clamp them without a word.

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
    if low < 0:
        do = "number the classes from 0; give examples without a label the weight 0"
    elif (low, high) == (1, classes):
        do = "number the classes from 0: y - 1"
    raise DataError(
        f"y of {what} has a label that the model has no output for",
        got=f"y{_index(index)} = {array[index]}; labels from {low} to {high}, {classes} outputs",
        expected=f"labels from 0 to {classes - 1}", do=do
    )  # fmt: skip


def _index(index: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, index))}]"


def check_like(batch: Any, training: Any) -> None:
    """A batch is refused whose arrays differ from training's in number, shape or kind of number.

    The first axis may differ, and so may precision: float32 goes with float64.

    Raises:
        DataError: they differ; the first one that does is named.
    """
    arrays, others, what = named_arrays(batch), named_arrays(training), "the validation data"
    optional = {ROLES[2]}  # weights may be given for the one and not for the other
    if (set(arrays) ^ set(others)) - optional:
        raise DataError(f"{what} is not made of the same arrays as the training data",
                        got=", ".join(arrays), expected=", ".join(others))  # fmt: skip
    for name, mine in arrays.items():
        other = others.get(name, mine)
        if np.shape(mine)[1:] != np.shape(other)[1:] or _kind(mine) != _kind(other):
            raise DataError(f"{name} of {what} does not fit {name} of the training data",
                            got=describe(mine),
                            expected=f"like {describe(other)}, but for the first axis")  # fmt: skip


def _kind(array: Any) -> str:
    dtype = array.dtype if hasattr(array, "dtype") else np.asarray(array).dtype
    for kind in (np.integer, np.floating, np.complexfloating):
        if jnp.issubdtype(dtype, kind):
            return kind.__name__
    return str(dtype)


def check_count(name: str, value: Any, *, least: int = 1) -> int:
    """A whole number of at least ``least`` is returned as an int.

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
        raise DataError(f"{name} cannot be used", got=f"{name} = {value!r}",
                        expected=f"a whole number, {least} or more")  # fmt: skip
    return count
