"""Inputs that nobody tried come in classes, on which hand-written gradients go wrong.

Each class makes new arguments from the given ones: other numbers, other scales, zeros, ties, rows
of equal entries, repeated indices, the neighbourhood of the thresholds that the code compares with.

Integers stay among those that the function understands. An integer argument is followed through
the graph to where it selects: a gather or scatter, a dynamic slice, a comparison with 0 … n − 1 (as
in a one-hot encoding). What it may be is 0 … n − 1 of the axis that it selects from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum, Flag, auto
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn

from functional_bp.gradcheck.subject import Arrays, single
from functional_bp.graph.interpret import interpret, is_inexact
from functional_bp.graph.nested import inner_graphs

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


class Integers(Enum):
    """This becomes of the integers among the arguments."""

    KEPT = auto()
    COVERING = auto()  # every value of their range once, before one repeats
    DRAWN = auto()
    EQUAL = auto()
    FIRST = auto()
    LAST = auto()
    LARGER = auto()


class Trait(Flag):
    """A trait says when a class of inputs is tried, and what a fault is that it brings out."""

    CAREFUL = auto()  # tried where loops may not end elsewhere
    FEW = auto()  # tried with long arrays, and in a quick check
    EXTREME = auto()  # tried in float32
    REPEATS = auto()  # entries are equal: a fault is one of repeated values
    OVERFLOWS = auto()  # numbers leave the range of the format: what is not finite overflows


@dataclass(frozen=True, eq=False)
class InputClass:
    """A class of inputs makes arguments from the given ones.

    Attributes:
        title: what reports call it.
        make: real arguments of the class, from the given ones.
        integers: what becomes of integers.
        traits: what it is good for.
    """

    title: str
    make: Generator = lambda x, rng: x
    integers: Integers = Integers.KEPT
    traits: Trait = Trait(0)


def _uniform(low: float, high: float) -> Generator:
    return lambda x, rng: _complex(x, rng.uniform(low, high, x.shape), rng)


CAREFUL, FEW, EXTREME, REPEATS, OVERFLOWS = Trait
GIVEN = InputClass("given")
NEAR = InputClass("near", _near, Integers.COVERING, CAREFUL | FEW)
CLASSES = (
    NEAR,
    InputClass("normal", lambda x, rng: _complex(x, rng.standard_normal(x.shape), rng),
               Integers.DRAWN),
    InputClass("10 times as large", lambda x, rng: 10.0 * x, traits=CAREFUL | FEW),
    InputClass("a tenth as large", lambda x, rng: 0.1 * x, traits=CAREFUL),
    InputClass("between -10 and 10", _uniform(-10, 10), Integers.DRAWN, FEW),
    InputClass("between -40 and 40", _uniform(-40, 40), traits=EXTREME | OVERFLOWS),
    InputClass("positive", _uniform(0.05, 5)),
    InputClass("negative", lambda x, rng: _complex(x, -rng.uniform(0.05, 5, x.shape), rng)),
    InputClass("between 0 and 1", _uniform(0.02, 0.98)),
    InputClass("rows of different size", _rows),
    InputClass("heavy-tailed", _heavy, Integers.DRAWN, EXTREME | OVERFLOWS),
    InputClass("large", lambda x, rng: 1e2 * x, traits=CAREFUL | EXTREME | OVERFLOWS),
    InputClass("very large", lambda x, rng: 1e3 * x, traits=EXTREME | OVERFLOWS),
    InputClass("tiny", lambda x, rng: 1e-3 * x, traits=CAREFUL | EXTREME | OVERFLOWS),
    InputClass("some zeros", lambda x, rng: np.where(rng.random(x.shape) < 0.15, 0.0, x)),
    InputClass("all one", lambda x, rng: np.ones_like(x), Integers.EQUAL, REPEATS),
    InputClass("all zero", lambda x, rng: np.zeros_like(x), traits=EXTREME),
    InputClass("ties", lambda x, rng: np.round(2 * np.real(x)) / 2 + 0 * x,
               Integers.EQUAL, REPEATS),
    InputClass("whole numbers", lambda x, rng: np.round(3 * np.real(x)) + 0 * x, traits=REPEATS),
    InputClass("equal rows", lambda x, rng: np.broadcast_to(x[:1], x.shape) if x.ndim > 1 else x,
               traits=REPEATS),
    InputClass("constant rows", lambda x, rng:
               np.broadcast_to(x[..., :1], x.shape) if x.ndim else x, traits=REPEATS),
    InputClass("sorted", lambda x, rng: np.sort(x, axis=-1) if x.ndim else x),
    InputClass("sorted downwards", lambda x, rng: np.sort(x, axis=-1)[..., ::-1] if x.ndim else x),
    InputClass("shuffled", lambda x, rng: rng.permutation(x, axis=-1) if x.ndim else x),
    InputClass("shifted up", lambda x, rng: x + 10.0),
    InputClass("shifted down", lambda x, rng: x - 10.0),
    InputClass("scales apart", lambda x, rng: x * 10.0 ** rng.uniform(-0.6, 0.6, x.shape)),
)  # fmt: skip
OF_INTEGERS = (
    InputClass("first index", _near, Integers.FIRST),
    InputClass("last index", _near, Integers.LAST),
    InputClass("larger integers", _near, Integers.LARGER),
)
# Where a search has arrived, from the given inputs.
BEYOND_A_THRESHOLD = InputClass("beyond a threshold in the code")
CLIMBED_TO = InputClass("found by ascent on the disagreement")
ALONE = {"a tenth as large": 0.1, "three times as large": 3.0, "thirty times as large": 30.0}
ARGUMENTS = 4  # that are scaled alone


def around(thresholds: Sequence[float]) -> InputClass:
    """Make the class of inputs on both sides of the constants that the code compares with."""
    offsets = [-2.0, -0.3, -0.01, 0.01, 0.3, 2.0]

    def make(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        signs = rng.choice([1.0, -1.0], x.shape)
        centres = rng.choice(np.asarray(thresholds), x.shape)
        return _complex(x, signs * centres + rng.choice(offsets, x.shape), rng)

    return InputClass("thresholds", make, traits=FEW)


def candidates(
    actives: Arrays,
    fixed: Arrays,
    thresholds: Sequence[float],
    rng: np.random.Generator,
    only: Trait | None = None,
    *,
    arguments: Sequence[str] = (),
    ranges: Sequence[IndexRange | None] = (),
) -> Iterator[tuple[InputClass, Arrays, Arrays]]:
    """Draw each class: its active leaves (float64, exact in float32) and its other leaves.

    Args:
        actives: the given leaves that are judged.
        fixed: the others.
        thresholds: the constants that the code compares with.
        rng: for the draws.
        only: the classes of this trait.
        arguments: the active leaves' names; with more than one, each is also scaled alone.
        ranges: per other leaf, the integers that make sense there; None where that is not known.
    """
    classes = [*CLASSES, *([around(thresholds)] if thresholds else [])]
    classes += OF_INTEGERS if any(map(_is_counting, fixed)) else ()
    for kind in classes:
        if only is None or only in kind.traits:
            yield kind, *draw(kind, actives, fixed, rng, ranges)
    if only is not None or len(actives) < 2:
        return
    for k, argument in enumerate(arguments[:ARGUMENTS]):
        for words, factor in ALONE.items():
            scaled = _exact(factor * np.asarray(actives[k]), np.asarray(actives[k]))
            kind = InputClass(f"{argument} {words}")
            yield kind, (*actives[:k], scaled, *actives[k + 1 :]), fixed


def draw(
    kind: InputClass,
    actives: Arrays,
    fixed: Arrays,
    rng: np.random.Generator,
    ranges: Sequence[IndexRange | None] = (),
    integers: Integers | None = None,
) -> tuple[Arrays, Arrays]:
    """Draw active and other leaves of one class; ``integers`` in place of the class's own."""
    kind = kind if integers is None else replace(kind, integers=integers)
    drawn = tuple(_exact(kind.make(x, rng), x) for x in map(np.asarray, actives))
    lengths = ranges or [None] * len(fixed)
    return drawn, tuple(_other(x, kind, rng, n) for x, n in zip(fixed, lengths))


def _exact(drawn: np.ndarray, like: np.ndarray) -> np.ndarray:
    """In the dtype of ``like``, with values that float32 holds exactly."""
    return np.asarray(single(drawn).astype(like.dtype), order="C")


def _is_key(x: object) -> bool:
    """Whether a leaf is a random key, old style or new."""
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return True
    return np.asarray(x).dtype == np.uint32


def other_key(x: Any) -> Any:
    """Return another random key where a leaf is one; any other leaf as it is."""
    if not _is_key(x):
        return x
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return x if np.shape(x) else jax.random.fold_in(x, 1)
    return np.asarray(x) ^ np.uint32(0x5A5A5A5A)


def _is_counting(x: object) -> bool:
    """Whether a leaf holds integers that may be drawn anew."""
    return not _is_key(x) and np.asarray(x).dtype.kind in "iu" and np.asarray(x).size > 0


def _other(
    x: object, kind: InputClass, rng: np.random.Generator, span: IndexRange | None
) -> object:
    """A leaf that is not judged: real ones follow the class, integers stay in their range."""
    if _is_key(x):
        return x
    array, integers = np.asarray(x), kind.integers
    if is_inexact(array):
        drawn = integers in (Integers.COVERING, Integers.DRAWN)
        return _exact(kind.make(array.astype(np.float64), rng), array) if drawn else x
    if integers is Integers.KEPT or not array.size:
        return x
    if array.dtype == bool:
        equal = integers is Integers.EQUAL
        return np.ones_like(array) if equal else rng.random(array.shape) < 0.5
    return _integers(array, integers, rng, span)


def _integers(
    given: np.ndarray, how: Integers, rng: np.random.Generator, span: IndexRange | None
) -> np.ndarray:
    """Integers of one class: in their range, or between the given ones' smallest and largest."""
    low, high = int(given.min()), int(given.max())
    if span is not None and span.distinct:
        return rng.permutation(given) if given.ndim else given
    if span is not None and low >= 0:
        low, high = 0, max(span.length - 1, high)
    elif how is Integers.LARGER:
        high = 2 * high + 2
    if how is Integers.COVERING:
        found = rng.permutation(np.resize(low + rng.permutation(high - low + 1), given.size))
        return found.reshape(given.shape).astype(given.dtype)
    if how in (Integers.FIRST, Integers.LAST, Integers.EQUAL):
        drawn = int(rng.integers(low, high + 1))
        value = {Integers.FIRST: low, Integers.LAST: high}.get(how, drawn)
        return np.full_like(given, value)
    return rng.integers(low, high + 1, given.shape).astype(given.dtype)


COPYING = {"broadcast_in_dim", "reshape", "convert_element_type", "squeeze", "transpose"}
ORDERING = {"lt", "le", "gt", "ge"}


class IndexRange(NamedTuple):
    """A range of integers that index something: 0 … length − 1, each once where they are distinct.

    Writing twice to the same place (``x.at[i].set(…)``) is not defined, and has no derivative.
    """

    length: int
    distinct: bool = False


class _Flow(NamedTuple):
    """What is known of a value: the graph's inputs that it comes from, by position; and n, where it
    is 0 … n − 1 along an axis.
    """

    sources: frozenset[int] = frozenset()
    counts: int | None = None


def index_ranges(jaxpr: Jaxpr) -> dict[int, IndexRange]:
    """Return the range of each integer input that indexes something, by position."""
    found: dict[int, IndexRange] = {}

    def step(eqn: JaxprEqn, operands: Sequence[Any]) -> Sequence[_Flow]:
        flows = [x if isinstance(x, _Flow) else _Flow() for x in operands]  # or a constant
        writes = eqn.primitive.name == "scatter"
        for position, length in _selected(eqn, flows):
            for source in flows[position].sources:
                before = found.get(source, IndexRange(length))
                found[source] = IndexRange(min(length, before.length), writes or before.distinct)
        outs = [_Flow(frozenset().union(*(f.sources for f in flows)), _counted(eqn, flows))]
        outs *= len(eqn.outvars)
        for inner in inner_graphs(eqn):
            fed = [_Flow() if k is None else flows[k] for k in inner.operands]
            returned = interpret(inner.jaxpr, inner.consts, fed, step)
            outs = returned if len(returned) == len(outs) else outs
        known = (out if isinstance(out, _Flow) else _Flow() for out in outs)
        return [out if _is_integer(v) else _Flow() for v, out in zip(eqn.outvars, known)]

    given = [_Flow(frozenset([k] if _is_integer(v) else ())) for k, v in enumerate(jaxpr.invars)]
    interpret(jaxpr, [_Flow()] * len(jaxpr.constvars), given, step)
    return found


def _selected(eqn: JaxprEqn, flows: Sequence[_Flow]) -> list[tuple[int, int]]:
    """The operands that select something, by position, and from how many."""
    name, params = eqn.primitive.name, eqn.params
    shape: Any = getattr(eqn.invars[0].aval, "shape", ()) if eqn.invars else ()
    if name == "gather":
        return [(1, min(shape[d] for d in params["dimension_numbers"].start_index_map))]
    if name.startswith("scatter"):
        axes = params["dimension_numbers"].scatter_dims_to_operand_dims
        return [(1, min(shape[d] for d in axes))]
    if name == "dynamic_slice":
        return [(1 + d, n - m + 1) for d, (n, m) in enumerate(zip(shape, params["slice_sizes"]))]
    if name == "eq" or name in ORDERING:
        more = int(name in ORDERING)
        return [(1 - k, flow.counts + more) for k, flow in enumerate(flows) if flow.counts]
    return []


def _counted(eqn: JaxprEqn, flows: Sequence[_Flow]) -> int | None:
    """How far an equation's output counts along an axis, None where it does not count."""
    if eqn.primitive.name == "iota":
        return eqn.params["shape"][eqn.params["dimension"]]
    return flows[0].counts if eqn.primitive.name in COPYING else None


def _is_integer(v: Any) -> bool:
    dtype = getattr(v.aval, "dtype", None)
    return isinstance(dtype, np.dtype) and dtype.kind in "iu"
