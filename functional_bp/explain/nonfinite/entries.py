"""Single entries of arrays: where the first bad one is, and which entries of the operands it reads.

What an entry of an output reads is found without knowing the operation: its gradient with respect
to the operands, at harmless values, is not zero there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from functional_bp.structure import has_tangent
from functional_bp.transforms import vjp

MOST_NAMED = 3  # entries of one operand that are named

Run = Callable[..., Sequence[Any]]
Index = tuple[int, ...]


@dataclass(frozen=True)
class Entry:
    """One entry of an array: ``z[2] = 0.0``.

    Attributes:
        name: what the array is called.
        index: where in it; () of a scalar.
        value: a plain number.
    """

    name: str
    index: Index
    value: Any

    @property
    def place(self) -> str:
        """``z[2]``; ``z`` of a scalar."""
        return place(self.name, self.index)

    def __str__(self) -> str:
        return f"{self.place} = {number(self.value)}"


def place(name: str, index: Index) -> str:
    """``z[2, 0]``; ``z`` of a scalar."""
    return f"{name}[{', '.join(map(str, index))}]" if index else name


def number(value: Any) -> str:
    """A plain number to six digits: ``0.0``, ``−1e−07``, ``−∞``, ``NaN``.

    >>> number(0.0), number(-np.inf), number(1 / 3), number(3), number(1 - 2j)
    ('0.0', '−∞', '0.333333', '3', '1.0 − 2.0i')
    """
    if isinstance(value, complex):
        sign = "−" if np.signbit(value.imag) else "+"
        return f"{number(value.real)} {sign} {number(abs(value.imag))}i"
    if isinstance(value, bool | int):
        return str(value).replace("-", "−")
    if not np.isfinite(value):
        return "NaN" if np.isnan(value) else "∞" if value > 0 else "−∞"
    return repr(float(f"{value:.6g}")).replace("-", "−")


def host(array: Any) -> np.ndarray | None:
    """A real or complex array in double precision; None for integers, keys and tokens."""
    if not has_tangent(array):
        return None
    held = np.asarray(array)
    return held.astype(np.complex128 if held.dtype.kind == "c" else np.float64)


def is_bad(array: Any) -> bool:
    """Whether a real or complex array holds a NaN or an infinity."""
    held = host(array)
    return held is not None and not np.isfinite(held).all()


def has_nan(array: Any) -> bool:
    """Whether a real or complex array holds a NaN."""
    held = host(array)
    return held is not None and bool(np.isnan(held).any())


def first_bad(array: Any) -> Index:
    """The first NaN, or else the first infinity, in the order of memory."""
    held = np.asarray(host(array))
    bad = np.isnan(held) if np.isnan(held).any() else ~np.isfinite(held)
    return tuple(int(i) for i in np.argwhere(bad)[0])


def entry_at(name: str, array: Any, index: Index) -> Entry:
    """The entry of an array at an index."""
    held = host(array)
    return Entry(name, index, (np.asarray(array) if held is None else held)[index].item())


def harmless(array: Any, value: float) -> Any:
    """The array with ``value`` for each entry that is not finite."""
    if not has_tangent(array):
        return array
    return jnp.where(jnp.isfinite(array), array, jnp.asarray(value, array.dtype))


class Read(NamedTuple):
    """What one entry of an output reads of one operand.

    Attributes:
        total: how many entries.
        first: the indices of the few of most weight: infinities and NaN, then by |value · slope|.
    """

    total: int
    first: tuple[Index, ...]


def read_by(run: Run, operands: Sequence[Any], output: int, index: Index) -> list[Read]:
    """For each operand, the entries that one entry of an output reads.

    Args:
        run: a function of the operands that returns a sequence of outputs.
        operands: arrays; of integers and keys nothing is said to be read.
        output: which output.
        index: the entry of it.
    """
    floats = [i for i, x in enumerate(operands) if has_tangent(x)]
    actual = [operands[i] for i in floats]
    ordinary = [_ordinary(x, order) for order, x in enumerate(actual)]
    masks = _slopes(run, operands, floats, ordinary, output, index)
    slopes = (
        None if any(map(is_bad, actual)) else _slopes(run, operands, floats, actual, output, index)
    )
    found = [Read(0, ()) for _ in operands]
    for order, i in enumerate(floats):
        value = np.asarray(host(operands[i]))
        mask = np.zeros(value.shape, bool) if masks is None else masks[order] != 0
        found[i] = _heaviest(mask, value, None if slopes is None else slopes[order])
    if not any(read.total for read in found):  # no gradient: elementwise, or all of it
        shape = np.shape(run(*operands)[output])
        for i in floats:
            value = np.asarray(host(operands[i]))
            if value.shape == shape:
                found[i] = Read(1, (index,))
            else:
                found[i] = _heaviest(np.ones(value.shape, bool), value, None)
    return found


def _ordinary(array: Any, order: int) -> Any:
    """Values between 0 and 1, all different, other ones for each operand."""
    ramp = np.linspace(1.0, 0.9, num=max(array.size, 1))[: array.size].reshape(array.shape)
    return jnp.asarray(0.8 / (1 + 0.45 * order) * ramp, array.dtype)


def _slopes(
    run: Run, operands: Sequence[Any], floats: list[int], points: list[Any], out: int, index: Index
) -> list[np.ndarray] | None:
    """The gradient of one entry of an output at ``points``; None if it cannot be had, or is bad."""

    def of_floats(*values: Any) -> Any:
        full = list(operands)
        for i, value in zip(floats, values):
            full[i] = value
        return run(*full)[out]

    try:
        y, pull = vjp(of_floats, *points)
        bars = pull(jnp.zeros_like(y).at[index].set(1))
    except Exception:  # whatever an operation refuses: it is looked at in another way
        return None
    found = [np.asarray(host(bar)) for bar in bars]
    return None if any(not np.isfinite(bar).all() for bar in found) else found


def _heaviest(mask: np.ndarray, value: np.ndarray, slope: np.ndarray | None) -> Read:
    with np.errstate(all="ignore"):
        weight = np.abs(value if slope is None else value * slope)
    weight = np.where(np.isfinite(value), weight, np.inf)[mask]
    order = np.argsort(-weight, kind="stable")[:MOST_NAMED]
    first = np.argwhere(mask)[order]
    return Read(weight.size, tuple(tuple(int(i) for i in at) for at in first))
