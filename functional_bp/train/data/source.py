"""Batches of a person's data, cut from arrays or taken from a loader, in an order fixed by a seed.

The order of epoch e depends on the seed and on e alone, and an epoch can begin at any batch: that
is what an exact resume of training stands on.
"""

from __future__ import annotations

import base64
import inspect
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from functional_bp.errors import compose, describe
from functional_bp.train.data.checks import (
    DataError,
    check,
    check_count,
    named_arrays,
    not_an_array,
)

# Batches of what gives batches itself: PyTorch's and Grain's loaders, generators, functions.
#
# A loader is passed over again and again; where it cannot go to a batch at once, the ones before
# are taken and thrown away, so that an epoch that is resumed has the batches it would have had.


def to_array(value: Any, name: str = "x", what: str = "a batch") -> Any:
    """A NumPy array of a list, a data frame, a tensor or a JAX array; other things unchanged.

    Raises:
        DataError: the rows of a list have different lengths, the array holds random keys, or it is
            no array but an iterator.
    """
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "__next__"):
        raise not_an_array(name, value, what)
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.extended):
        raise DataError(
            compose(
                f"{name} of {what} holds random keys, not numbers",
                got=describe(value),
                do="draw from keys in the loss: it gets one of its own as rng=",
            )
        )
    if hasattr(value, "detach"):
        return _of_tensor(value)
    try:
        listed = isinstance(value, list | bool | int | float | complex | np.generic)
        return np.asarray(value) if listed or hasattr(value, "__array__") else value
    except ValueError as error:
        raise DataError(
            compose(
                f"{name} of {what} makes no array",
                got=f"{type(value).__name__}: {error}",
                expected="rows of one length",
                do="pad the rows to one length",
            )
        ) from error


def _of_tensor(tensor: Any) -> Any:
    """A PyTorch tensor as an array; bfloat16, which NumPy has not, by way of JAX."""
    tensor = tensor.detach().cpu()
    try:
        return tensor.numpy()
    except TypeError:
        return np.asarray(jnp.from_dlpack(tensor.contiguous()))


def to_batch(batch: Any) -> Any:
    """A batch as the step takes it: tensors become arrays, a list of parts becomes a tuple.

    Arrays of JAX stay where they are, so that a loader can put batches on a device by itself.
    """
    if isinstance(batch, list):
        batch = tuple(batch)
    return jax.tree.map(lambda leaf: leaf if isinstance(leaf, jax.Array) else to_array(leaf), batch)


class LoaderBatches:
    """Batches from a loader, a list of batches, a generator, or a function of the epoch.

    Without ``steps`` an epoch is one pass. With it, passes follow each other and an epoch is the
    next ``steps`` batches.

    Attributes:
        steps: how many batches an epoch has, None where it is not known.
        examples: None, it is not known.

    Raises:
        DataError: the object gives no batches.
    """

    examples: int | None = None

    def __init__(self, data: Any, *, steps: int | None = None, what: str = "the data") -> None:
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
        """Refuse more epochs than can be had, before the first one.

        Raises:
            DataError: an iterator that can be passed over once is to last for several.
        """
        if self._once and self._steps is None and epochs > 1:
            raise self._used_up(1)

    def first(self) -> Any:
        """The batch that comes next, which the next epoch still has."""
        if not self._held:
            if self._number < 0:
                self._begin(0)
            batch = next(self._iterator, None)
            if batch is None:
                raise self._empty()
            self._held = [batch]
        return to_batch(self._held[0])

    def epoch(self, e: int, start: int = 0) -> Iterator[Any]:
        """The batches of epoch ``e``, from batch ``start`` on.

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
            if batch is None:
                batch = self._next_pass(end)
            yield batch

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
                raise self._used_up(number if number is not None else 0)
            self._begin(number or 0)
        while self._given < start:
            if self._take() is None:
                if number is not None:
                    raise self._too_few(start)
                self._next_pass(start)

    # Where a loader's iterator can tell and take its own state

    def state(self) -> dict[str, Any] | None:
        """Where the open pass stands, if its iterator can tell, as Grain's can."""
        tell = getattr(self._iterator, "get_state", None)
        if tell is None or self._held:
            return None
        state = tell()
        if isinstance(state, bytes):
            state = {"base64": base64.b64encode(state).decode()}
        return {"pass": self._number, "given": self._given, "iterator": state}

    def restore(self, state: dict[str, Any] | None) -> None:
        """Keep a state for the next epoch, which begins there in place of counting batches."""
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

    # What can be wrong

    def _empty(self) -> DataError:
        return DataError(
            compose(
                f"{self._what} gave no batch",
                got="an iterator that ended at once",
                expected="one batch at least",
                do="pass a function that returns a new generator, if this one was used before",
            )
        )

    def _used_up(self, epoch: int) -> DataError:
        return DataError(
            compose(
                f"{self._what} cannot be passed over again",
                where=f"epoch {epoch + 1}",
                got=f"a generator, of which {self._given} batches are taken",
                expected="something that can begin anew",
                do="pass the function that makes the generator, not the generator;\n"
                "            or say steps_per_epoch= for one that has no end",
            )
        )

    def _too_few(self, wanted: int) -> DataError:
        return DataError(
            compose(
                f"{self._what} ran out of batches",
                got=f"{self._given} batches",
                expected=f"{wanted} up to this point",
                do="train for fewer epochs, or with a smaller steps_per_epoch;\n"
                "            or pass a function that makes a new generator for every pass",
            )
        )


def _opener(data: Any, what: str) -> Callable[[int], Any]:
    """A function from the number of a pass to something to iterate over."""
    if hasattr(data, "__iter__") or hasattr(data, "__next__"):
        return lambda number: data
    with_number = _takes_a_number(data)

    def opened(number: int) -> Any:
        made = data(number) if with_number else data()
        if hasattr(made, "__iter__"):
            return made
        raise DataError(
            compose(
                f"{what} is a function that returned no batches",
                got=describe(made),
                expected="an iterator of batches, or a loader",
            )
        )

    return opened


def _takes_a_number(function: Callable[..., Any]) -> bool:
    """Whether a function has a first parameter, by position."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return False
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(p.kind in by_position for p in itertools.islice(parameters, 1))


def _length(data: Any) -> int | None:
    """How many batches a pass has, where the object says so."""
    try:
        return len(data)
    except (TypeError, NotImplementedError):
        return None


class Source(Protocol):
    """Where batches come from."""

    @property
    def steps(self) -> int | None:
        """How many batches an epoch has; None where it is not known before it ends."""
        ...

    @property
    def examples(self) -> int | None:
        """How many examples an epoch has; None where that is not known."""
        ...

    def epoch(self, e: int, start: int = 0) -> Iterator[Any]:
        """The batches of epoch ``e``, from batch ``start`` on."""
        ...

    def first(self) -> Any:
        """The first batch, which the next epoch still has."""
        ...

    def state(self) -> dict[str, Any] | None:
        """Where the source stands, for JSON; None where (e, start) says all."""
        ...

    def restore(self, state: dict[str, Any] | None) -> None:
        """Go to where a source stood."""
        ...


def source(
    data: Any,
    *,
    batch_size: int = 32,
    shuffle: bool = True,
    seed: int = 0,
    drop_last: bool = False,
    steps: int | None = None,
    finite: bool = True,
    what: str = "the training data",
) -> Source:
    """Batches of arrays, or of whatever gives batches.

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
        finite: whether NaN and infinity in arrays are refused.
        what: what the data is for, in the words of an error.

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
        return LoaderBatches(data, steps=steps, what=what)
    arrays = as_arrays(data, what)
    check(arrays, what=what, finite=finite)
    return ArrayBatches(arrays, batch_size, shuffle, seed, drop_last, steps, what)


def split(data: Any, fraction: float) -> tuple[Any, Any]:
    """The first ⌊n (1 − fraction)⌋ of n examples, and the others, as Keras splits.

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
        raise DataError(
            compose(
                "a part for validation can only be cut from arrays",
                got=f"{type(data).__name__}, which gives batches",
                do="pass validation_data= in place of validation_split=",
            )
        )
    arrays = as_arrays(data)
    count = check(arrays, finite=False)
    at = math.floor(count * (1.0 - fraction)) if 0 < fraction < 1 else 0
    if not 0 < at < count:
        raise DataError(
            compose(
                "the data cannot be split for validation",
                got=f"validation_split = {fraction!r} of {count} examples",
                expected="a number between 0 and 1 that leaves examples on both sides",
            )
        )
    return jax.tree.map(lambda a: a[:at], arrays), jax.tree.map(lambda a: a[at:], arrays)


def as_arrays(data: Any, what: str = "the data") -> Any:
    """The pytree with NumPy arrays for lists of numbers, data frames, tensors and JAX arrays.

    Raises:
        DataError: the rows of a list have different lengths.
    """
    leaves, treedef = jax.tree.flatten(data, is_leaf=_is_one_array)
    names = named_arrays(treedef.unflatten([0] * len(leaves)))
    return treedef.unflatten([to_array(leaf, name, what) for name, leaf in zip(names, leaves)])


def _is_one_array(value: Any) -> bool:
    """Whether it is an array that was written out as lists, or what cannot be opened."""
    if hasattr(value, "__next__"):
        return True
    while isinstance(value, list) and value:
        value = value[0]
    return isinstance(value, bool | int | float | complex | str | np.generic)


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


class ArrayBatches:
    """Batches that are cut from arrays, by index: any batch of any epoch, without those before."""

    def __init__(
        self,
        arrays: Any,
        batch_size: int,
        shuffle: bool,
        seed: int,
        drop_last: bool,
        steps: int | None,
        what: str,
    ) -> None:
        self._leaves, self._treedef = jax.tree.flatten(arrays)
        self._count, self._batch_size = len(self._leaves[0]), batch_size
        self._shuffle, self._seed = shuffle, seed
        self._per_pass = self._count // batch_size
        if not drop_last and self._count % batch_size:
            self._per_pass += 1
        if not self._per_pass:
            raise DataError(
                compose(
                    f"{what} makes no whole batch",
                    got=f"{self._count} examples, batch_size = {batch_size}, drop_last = True",
                    do="take a smaller batch_size, or drop_last=False",
                )
            )
        self.steps = steps or self._per_pass
        whole = self._count if not drop_last else self._per_pass * batch_size
        self.examples = whole if steps is None else None

    def epoch(self, e: int, start: int = 0) -> Iterator[Any]:
        """The batches of epoch ``e``, from batch ``start`` on."""
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
            yield self._treedef.unflatten([np.asarray(leaf[rows]) for leaf in self._leaves])

    def first(self) -> Any:
        """The first batch of epoch 0."""
        return next(self.epoch(0))

    @property
    def arrays(self) -> Any:
        """All of the data."""
        return self._treedef.unflatten(self._leaves)

    def state(self) -> None:
        """None: the number of the epoch and of the batch say all."""

    def restore(self, state: dict[str, Any] | None) -> None:
        """Nothing: the number of the epoch and of the batch say all."""
