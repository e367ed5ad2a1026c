"""How a cotangent of an output gets to the shape of an argument: sums, products, moves.

A frame is a linear map from an output's cotangent to an argument's shape, with two places for
factors: inside, beside the cotangent, and outside, beside the result.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from functional_bp.check.diagnosis.numbers.evidence import Case, Evidence
from functional_bp.check.diagnosis.numbers.thresholds import aligned

Apply = Callable[[Case, np.ndarray], np.ndarray]
Form = Callable[[Case], np.ndarray]
Product = Callable[[np.ndarray, np.ndarray], np.ndarray]
MOST_LIFTED = 12


@dataclass(frozen=True)
class Bar:
    """An output's cotangent, or what a first step of the backward pass makes of it."""

    text: str
    value: Callable[[Case], np.ndarray]
    cost: float = 0.0


@dataclass(frozen=True)
class Frame:
    """A linear map from a cotangent (times inner factors) to the argument's shape.

    Attributes:
        bar: the cotangent.
        inside: the shape that inner factors are broadcast to.
        outside: the shape that outer factors are broadcast to.
        text: how it is written, with a place for the cotangent and its factors.
        apply: the map, before outer factors.
        finish: the map after outer factors: sums over axes that the argument lacks.
        final: how that is written, with a place for the product.
        relation: what two frames share that differ in one respect ("product with W").
        cost: how unlikely it is.
        kind: the kind of fault if this frame stands where another of its relation belongs.
    """

    bar: Bar
    inside: tuple[int, ...]
    outside: tuple[int, ...]
    text: str
    apply: Apply
    finish: Callable[[np.ndarray], np.ndarray]
    final: str
    relation: str
    cost: float
    kind: str
    axes: tuple[int, ...] | None = None  # of a mean that keeps its axes

    def cotangent(self, case: Case) -> np.ndarray:
        """The cotangent, broadcast to the inner shape."""
        return next(aligned(self.bar.value(case), self.inside))


def frames(evidence: Evidence) -> Iterator[Frame]:
    """The maps from every output's cotangent to the argument's shape, the plainest first."""
    bars = [Bar(name, lambda case, n=name: case.bars[n]) for name in evidence.given.bars]
    for bar in bars:
        yield from _elementwise(evidence, bar)
        yield from _moves(evidence, bar)
        yield from _contractions(evidence, bar)
    for bar in itertools.islice(_lifted(evidence, bars), MOST_LIFTED):
        yield from _contractions(evidence, bar)


def _lifted(evidence: Evidence, bars: Sequence[Bar]) -> Iterator[Bar]:
    """Cotangents of intermediate products, as those of attention's probabilities: ȳ @ v.T."""
    known = evidence.given.known
    for bar, (name, matrix) in itertools.product(bars, known.items()):
        own = bar.value(evidence.given)
        if own.ndim < 2 or matrix.ndim != own.ndim:
            continue
        for text, product in PRODUCTS[:4]:
            try:
                shape = product(own, matrix).shape
            except ValueError:
                continue
            partners = [other for other, array in known.items() if array.shape == shape]
            if shape in (own.shape, evidence.given.shape) or not partners:
                continue

            def first(case: Case, b: Bar = bar, n: str = name, p: Product = product) -> np.ndarray:
                return p(b.value(case), case.known[n])

            written = f"({text.replace('M', name).format(bar.text)})"
            yield Bar(written, first, 0.3)
            for partner in partners[:3]:

                def total(case: Case, p: str = partner, f: Form = first) -> np.ndarray:
                    products = case.known[p] * f(case)
                    return np.broadcast_to(products.sum(-1, keepdims=True), products.shape)

                yield Bar(f"sum({partner} · {written}, axis=-1)", total, 0.6)


def _elementwise(evidence: Evidence, bar: Bar) -> Iterator[Frame]:
    """Products, with a mean in between over some axes, and a sum at the end."""
    case = evidence.given
    own = bar.value(case)
    shapes: list[tuple[int, ...]] = []
    candidates = [case.shape, own.shape, *(a.shape for a in case.known.values())]
    for shape in candidates:
        fits = next(aligned(own, shape), None) is not None
        if fits and shape not in shapes and list(_finishes(shape, case.shape)):
            shapes.append(shape)
    for full in shapes[:3]:
        for finish, final in _finishes(full, case.shape):
            yield Frame(
                bar, full, full, "{}", lambda case, a: a, finish, final, "product",
                0.8 if final.endswith("]") else 0.0, "missing sum",
            )  # fmt: skip
            if final.endswith("]"):
                continue
            for axes in _axis_sets(full):
                name = "mean({})" if len(axes) == len(full) else f"mean({{}}, axis={_axis(axes)})"
                if len(full) > 1 and axes == (len(full) - 1,):
                    name = "mean({}, axis=-1)"
                yield Frame(
                    bar, full, full, name,
                    lambda case, a, axes=axes: a.mean(axes, keepdims=True),
                    finish, final, "product", _unlikely(axes, full), "axis", axes,
                )  # fmt: skip


def _axis_sets(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    axes = [axis for axis in reversed(range(len(shape))) if shape[axis] > 1]
    return [some for count in (1, 2, 3) for some in itertools.combinations(axes, count)][:7]


def _unlikely(axes: tuple[int, ...], shape: tuple[int, ...]) -> float:
    """What a mean costs: over the last axis it is the commonest."""
    return 0.3 if axes == (len(shape) - 1,) else 0.5 if len(axes) == 1 else 0.8


def _axis(axes: tuple[int, ...]) -> str:
    return str(axes[0]) if len(axes) == 1 else str(tuple(sorted(axes)))


def _finishes(
    full: tuple[int, ...], shape: tuple[int, ...]
) -> Iterator[tuple[Callable[[np.ndarray], np.ndarray], str]]:
    """The sums that bring an array of shape ``full`` to ``shape``."""
    if full == shape:
        yield (lambda a: a), "{}"
        return
    if len(shape) > len(full):
        return
    extra = len(full) - len(shape)
    for leading in (True, False) if extra and shape else (True,):
        padded = (1,) * extra + shape if leading else shape + (1,) * extra
        if not all(n in (1, m) for n, m in zip(padded, full)):
            continue
        axes = tuple(i for i, (n, m) in enumerate(zip(padded, full)) if n != m)
        if not axes:
            continue
        text = "sum({})" if len(axes) == len(full) else f"sum({{}}, axis={_axis(axes)})"
        yield (lambda a, axes=axes: a.sum(axes, keepdims=True).reshape(shape)), text
        if leading and len(axes) == extra < len(full):
            first = (0,) * extra
            yield (lambda a, first=first: a[first]), f"({{}})[{', '.join('0' * extra)}]"


def _moves(evidence: Evidence, bar: Bar) -> Iterator[Frame]:
    """The cotangent in another order: transposed, reversed, summed up from either end."""
    case = evidence.given
    shape, own = case.shape, bar.value(case).shape
    moves: list[tuple[str, Callable[[np.ndarray], np.ndarray], str, str]] = []
    for order in itertools.permutations(range(len(own))) if len(own) < 5 else ():
        if order != tuple(range(len(own))) and tuple(own[i] for i in order) == shape:
            text = "{}.T" if len(own) == 2 else f"transpose({{}}, {order})"
            moves.append((text, lambda a, o=order: np.transpose(a, o), "order", "transpose"))
    if own != shape and int(np.prod(own)) == int(np.prod(shape)):
        moves.append((f"{{}}.reshape{shape}", lambda a: a.reshape(shape), "order", "permutation"))
    if own == shape:
        for axis in (axis for axis, n in enumerate(own) if n > 1):
            total = f"cumulative sum over axis {axis}"
            moves += [
                (
                    f"cumsum({{}}, {axis})",
                    lambda a, x=axis: np.cumsum(a, x), total, "reversal",
                ),
                (
                    f"reverse_cumsum({{}}, {axis})",
                    lambda a, x=axis: np.flip(np.cumsum(np.flip(a, x), x), x), total, "reversal",
                ),
                (f"flip({{}}, {axis})", lambda a, x=axis: np.flip(a, x), "order", "reversal"),
            ]  # fmt: skip
    for text, move, relation, kind in moves:
        yield Frame(
            bar, own, shape, text, lambda case, a, m=move: m(a), lambda a: a, "{}",
            relation, 1.5, kind,
        )  # fmt: skip


def _contractions(evidence: Evidence, bar: Bar) -> Iterator[Frame]:
    """Matrix products of the cotangent with a known array."""
    case = evidence.given
    y_bar = bar.value(case)
    if y_bar.ndim < 1:
        return
    for name, matrix in case.known.items():
        if matrix.ndim < 1 or max(matrix.ndim, y_bar.ndim) < 2:
            continue
        for text, product in PRODUCTS:
            try:
                shape = product(y_bar, matrix).shape
            except (ValueError, IndexError):
                continue
            if shape != case.shape:
                continue
            yield Frame(
                bar, y_bar.shape, shape, text.replace("M", name),
                lambda case, a, n=name, p=product: p(a, case.known[n]),
                lambda a: a, "{}", f"product with {name}", 1.2 + bar.cost, "transpose",
            )  # fmt: skip


def _turned(a: np.ndarray) -> np.ndarray:
    return np.swapaxes(a, -1, -2)


PRODUCTS: tuple[tuple[str, Product], ...] = (
    ("{} @ M.T", lambda a, m: a @ _turned(m)),
    ("M.T @ {}", lambda a, m: _turned(m) @ a),
    ("{} @ M", lambda a, m: a @ m),
    ("M @ {}", lambda a, m: m @ a),
    ("{}.T @ M", lambda a, m: _turned(a) @ m),
    ("M @ {}.T", lambda a, m: m @ _turned(a)),
    ("solve(M.T, {})", lambda a, m: np.linalg.solve(_turned(m), a)),
    ("solve(M, {})", lambda a, m: np.linalg.solve(m, a)),
    (
        "tensordot(M, {}) over all but their last axes",
        lambda a, m: m.reshape(-1, m.shape[-1]).T @ a.reshape(-1, a.shape[-1]),
    ),
    (
        "tensordot({}, M) over all but their last axes",
        lambda a, m: a.reshape(-1, a.shape[-1]).T @ m.reshape(-1, m.shape[-1]),
    ),
)
