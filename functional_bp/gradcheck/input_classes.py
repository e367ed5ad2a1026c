"""Inputs nobody tried: classes of inputs on which hand-written gradients go wrong.

Each class makes new arguments from the given ones: other numbers, other scales, zeros, ties, rows
of equal entries, repeated indices, the neighbourhood of the thresholds that the code compares with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functional_bp.gradcheck.evaluation import IndexRange
from functional_bp.gradcheck.subject import Arrays, single
from functional_bp.graph.interpret import is_inexact

Generator = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def _complex(x: np.ndarray, drawn: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return drawn + 1j * rng.standard_normal(x.shape) if x.dtype.kind == "c" else drawn


def _near(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    spread = float(np.std(x)) if x.size else 0.0
    return x * (1 + 0.3 * rng.standard_normal(x.shape)) + 0.1 * spread * rng.standard_normal(
        x.shape
    )


def _heavy(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    sizes = 10.0 ** rng.uniform(-4, 2.5, x.shape)
    return _complex(x, rng.choice([-1.0, 1.0], x.shape) * sizes, rng)


def _rows(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if not x.ndim:
        return 3.0 * x
    return x * 10.0 ** rng.uniform(-1, 1, (*x.shape[:-1], 1))


CLASSES: dict[str, Generator] = {
    "near": _near,
    "normal": lambda x, rng: _complex(x, rng.standard_normal(x.shape), rng),
    "10 times as large": lambda x, rng: 10.0 * x,
    "a tenth as large": lambda x, rng: 0.1 * x,
    "between -10 and 10": lambda x, rng: _complex(x, rng.uniform(-10, 10, x.shape), rng),
    "between -40 and 40": lambda x, rng: _complex(x, rng.uniform(-40, 40, x.shape), rng),
    "positive": lambda x, rng: _complex(x, rng.uniform(0.05, 5, x.shape), rng),
    "negative": lambda x, rng: _complex(x, -rng.uniform(0.05, 5, x.shape), rng),
    "between 0 and 1": lambda x, rng: _complex(x, rng.uniform(0.02, 0.98, x.shape), rng),
    "rows of different size": _rows,
    "heavy-tailed": _heavy,
    "large": lambda x, rng: 1e2 * x,
    "very large": lambda x, rng: 1e3 * x,
    "tiny": lambda x, rng: 1e-3 * x,
    "some zeros": lambda x, rng: np.where(rng.random(x.shape) < 0.15, 0.0, x),
    "all one": lambda x, rng: np.ones_like(x),
    "all zero": lambda x, rng: np.zeros_like(x),
    "ties": lambda x, rng: np.round(2 * np.real(x)) / 2 + 0 * x,
    "whole numbers": lambda x, rng: np.round(3 * np.real(x)) + 0 * x,
    "equal rows": lambda x, rng: np.broadcast_to(x[:1], x.shape) if x.ndim > 1 else x,
    "constant rows": lambda x, rng: np.broadcast_to(x[..., :1], x.shape) if x.ndim else x,
    "sorted": lambda x, rng: np.sort(x, axis=-1) if x.ndim else x,
    "sorted downwards": lambda x, rng: np.sort(x, axis=-1)[..., ::-1] if x.ndim else x,
    "shuffled": lambda x, rng: rng.permutation(x, axis=-1) if x.ndim else x,
    "shifted up": lambda x, rng: x + 10.0,
    "shifted down": lambda x, rng: x - 10.0,
    "scales apart": lambda x, rng: x * 10.0 ** rng.uniform(-0.6, 0.6, x.shape),
}
# Classes of integers, with real arguments near the given ones.
OF_INTEGERS = {"first index": "first", "last index": "last", "larger integers": "larger"}
ALONE = {"a tenth as large": 0.1, "three times as large": 3.0, "thirty times as large": 30.0}
ARGUMENTS = 4  # that are scaled alone
# For functions whose loops may not end elsewhere, and for long arrays.
CAREFUL = ("near", "10 times as large", "a tenth as large", "large", "tiny")
FEW = ("near", "10 times as large", "between -10 and 10", "thresholds")
INTEGERS = {"near": "covering", "normal": "drawn", "heavy-tailed": "drawn", "all one": "equal",
            "between -10 and 10": "drawn", "ties": "equal"}  # fmt: skip


def around(thresholds: Sequence[float]) -> Generator:
    """Inputs on both sides of the constants that the code compares with."""
    offsets = [-2.0, -0.3, -0.01, 0.01, 0.3, 2.0]

    def make(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        signs = rng.choice([1.0, -1.0], x.shape)
        centres = rng.choice(np.asarray(thresholds), x.shape)
        return _complex(x, signs * centres + rng.choice(offsets, x.shape), rng)

    return make


def candidates(
    actives: Arrays,
    fixed: Arrays,
    thresholds: Sequence[float],
    rng: np.random.Generator,
    names: Sequence[str] | None = None,
    *,
    arguments: Sequence[str] = (),
    ranges: Sequence[IndexRange | None] = (),
) -> Iterator[tuple[str, Arrays, Arrays]]:
    """Each class's name, active leaves (float64, exact in float32) and other leaves.

    Args:
        actives: the given leaves that are judged.
        fixed: the others.
        thresholds: the constants that the code compares with.
        rng: for the draws.
        names: these classes only.
        arguments: the active leaves' names; with more than one, each is also scaled alone.
        ranges: per other leaf, the integers that make sense there; None where that is not known.
    """
    classes = dict(CLASSES)
    if thresholds:
        classes["thresholds"] = around(thresholds)
    integers = INTEGERS
    if any(map(_is_counting, fixed)):
        classes |= dict.fromkeys(OF_INTEGERS, CLASSES["near"])
        integers = INTEGERS | OF_INTEGERS
    for name, make in classes.items():
        if names is None or name in names:
            yield name, *draw(make, integers.get(name, "kept"), actives, fixed, rng, ranges)
    if names is not None or len(actives) < 2:
        return
    for k, argument in enumerate(arguments[:ARGUMENTS]):
        for words, factor in ALONE.items():
            scaled = _exact(factor * np.asarray(actives[k]), np.asarray(actives[k]))
            yield f"{argument} {words}", (*actives[:k], scaled, *actives[k + 1 :]), fixed


def draw(
    make: Generator,
    integers: str,
    actives: Arrays,
    fixed: Arrays,
    rng: np.random.Generator,
    ranges: Sequence[IndexRange | None] = (),
) -> tuple[Arrays, Arrays]:
    """Active and other leaves of one class."""
    drawn = tuple(_exact(make(x, rng), x) for x in map(np.asarray, actives))
    lengths = ranges or [None] * len(fixed)
    return drawn, tuple(_other(x, make, integers, rng, n) for x, n in zip(fixed, lengths))


def _exact(drawn: np.ndarray, like: np.ndarray) -> np.ndarray:
    """In the dtype of ``like``, with values that float32 holds exactly."""
    return np.asarray(single(drawn).astype(like.dtype), order="C")


def _is_key(x: object) -> bool:
    """Whether a leaf is a random key, old style or new."""
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return True
    return np.asarray(x).dtype == np.uint32


def other_key(x: Any) -> Any:
    """Another random key where a leaf is one; any other leaf as it is."""
    if not _is_key(x):
        return x
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return x if np.shape(x) else jax.random.fold_in(x, 1)
    return np.asarray(x) ^ np.uint32(0x5A5A5A5A)


def _is_counting(x: object) -> bool:
    """Whether a leaf holds integers that may be drawn anew."""
    return not _is_key(x) and np.asarray(x).dtype.kind in "iu" and np.asarray(x).size > 0


def _other(
    x: object, make: Generator, integers: str, rng: np.random.Generator, span: IndexRange | None
) -> object:
    """A leaf that is not judged: real ones follow the class, integers stay in their range."""
    if _is_key(x):
        return x
    array = np.asarray(x)
    if is_inexact(array):
        drawn = integers in ("covering", "drawn")
        return _exact(make(array.astype(np.float64), rng), array) if drawn else x
    if integers == "kept" or not array.size:
        return x
    if array.dtype == bool:
        return np.ones_like(array) if integers == "equal" else rng.random(array.shape) < 0.5
    return _integers(array, integers, rng, span)


def _integers(
    given: np.ndarray, how: str, rng: np.random.Generator, span: IndexRange | None
) -> np.ndarray:
    """Integers of one class: in their range, or between the given ones' smallest and largest."""
    low, high = int(given.min()), int(given.max())
    if span is not None and span.distinct:
        return rng.permutation(given) if given.ndim else given
    if span is not None and low >= 0:
        low, high = 0, max(span.length - 1, high)
    elif how == "larger":
        high = 2 * high + 2
    if how == "covering":  # every value once before one repeats
        found = rng.permutation(np.resize(low + rng.permutation(high - low + 1), given.size))
        return found.reshape(given.shape).astype(given.dtype)
    if how in ("first", "last", "equal"):
        value = {"first": low, "last": high}.get(how, int(rng.integers(low, high + 1)))
        return np.full_like(given, value)
    return rng.integers(low, high + 1, given.shape).astype(given.dtype)
