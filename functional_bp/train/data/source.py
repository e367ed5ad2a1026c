"""Batches of a person's data, cut from arrays or taken from a loader, in an order fixed by a seed.

The order of epoch e depends on the seed and on e alone, and an epoch can begin at any batch: that
is what an exact resume of training stands on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol

import jax
import numpy as np

from functional_bp.errors import compose
from functional_bp.train.data.checks import DataError, check, check_count, named_arrays
from functional_bp.train.data.loaders import LoaderBatches, to_array


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
