"""Batches of what gives batches itself: PyTorch's and Grain's loaders, generators, functions.

A loader is passed over again and again; where it cannot go to a batch at once, the ones before are
taken and thrown away, so that an epoch that is resumed has the batches it would have had.
"""

from __future__ import annotations

import base64
import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functional_bp.errors import compose, describe
from functional_bp.train.data.checks import DataError, not_an_array


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
