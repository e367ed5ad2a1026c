"""The quantities that formulas are made of: known arrays and plain functions of them."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from functional_bp.gradcheck.diagnosis import costs
from functional_bp.gradcheck.diagnosis.patterns.constants import NamedNumber
from functional_bp.gradcheck.diagnosis.patterns.evidence import Evidence, Judged
from functional_bp.gradcheck.findings import Kind

# A threshold that separates right entries from wrong ones, and a round number for it.


@dataclass(frozen=True)
class Separation:
    """A condition on an array's values that holds at all wrong entries and at no right one.

    Attributes:
        condition: with a place for the array's name: ``"{} < −9"``.
        chance: how likely a separation as sharp would be if the wrong entries lay at random.
    """

    condition: str
    chance: float


def separations(
    values: np.ndarray, wrong: np.ndarray, known: Sequence[float] = ()
) -> Iterator[Separation]:
    """The conditions on ``values`` that tell wrong entries from right ones.

    ``known`` are thresholds that stand in the code: of all that separate, they are preferred.
    """
    bad, good = values[wrong], values[~wrong]
    if bad.size == 0 or good.size == 0:
        return
    low, high = bad.min(), bad.max()
    if np.any((low <= good) & (good <= high)):
        return
    bad_levels, good_levels = np.unique(bad), np.unique(good)
    levels, wrongs = bad_levels.size + good_levels.size, bad_levels.size
    if values.dtype.kind in "iub":  # few levels, each of many entries that agree
        levels, wrongs = values.size, bad.size
    ways = math.comb(levels, wrongs) if levels < 2000 else math.inf
    if values.dtype == bool:
        yield Separation("{} = " + str(bool(bad[0])), 2 / ways)
        return
    if values.dtype.kind in "iu" and bad_levels.size == 1:
        yield Separation("{} = " + str(int(bad[0])), levels / ways)
        return
    low, high = float(bad_levels[0]), float(bad_levels[-1])
    if high < good_levels[0]:
        text = "{} < " + number(round_between(high, float(good_levels[0]), known=known))
        yield Separation(text, 2 / ways)
    elif low > good_levels[-1]:
        text = "{} > " + number(round_between(float(good_levels[-1]), low, up=False, known=known))
        yield Separation(text, 2 / ways)
    elif low == high:
        # An exact value is hit often or it is special; one entry in the middle is neither.
        special = low == 0 or bad.size > 2
        yield Separation("{} = " + number(low), 0.0 if special else 1.0)
    else:
        before, after = good_levels[good_levels < low], good_levels[good_levels > high]
        start = round_between(float(before[-1]), low, up=False, known=known)
        stop = round_between(high, float(after[0]), known=known)
        text = f"{number(start)} < {{}} < {number(stop)}"
        yield Separation(text, (levels - wrongs + 1) / ways)


def round_between(low: float, high: float, up: bool = True, known: Sequence[float] = ()) -> float:
    """The roundest number in ``(low, high]``, or in ``[low, high)`` where ``up`` is False.

    A ``known`` number that lies there comes first.
    """
    if not up:
        return -round_between(-high, -low, known=[-k for k in known])
    between = [k for k in known if low < k <= high]
    if between:
        return float(between[0])
    if low < 0 <= high:
        return 0.0
    exponent = math.floor(math.log10(max(abs(low), abs(high)))) + 1
    for power in range(exponent, exponent - 18, -1):
        for step in (10.0**power, 5 * 10.0 ** (power - 1), 2 * 10.0 ** (power - 1)):
            candidate = math.floor(high / step) * step
            if low < candidate <= high:
                return float(f"{candidate:.15g}")
    return high


def number(value: float) -> str:
    """A number for a sentence, with a minus sign."""
    return f"{value:.6g}".replace("-", "−")


def aligned(array: np.ndarray, shape: Sequence[int]) -> Iterator[np.ndarray]:
    """``array`` broadcast to ``shape``, in NumPy's way and with its axes at the front."""
    shape = tuple(shape)
    if array.ndim <= len(shape):
        front = array.reshape(array.shape + (1,) * (len(shape) - array.ndim))
        for view in (array, front) if front.shape != array.shape else (array,):
            if all(n in (1, m) for n, m in zip(view.shape[::-1], shape[::-1])):
                yield np.broadcast_to(view, shape)


Form = Callable[[np.ndarray], np.ndarray]
MOST_ARRAYS = 14  # of the known arrays, the first ones

# text, function, cost: what a derivative is likely to hold, the likeliest first.
FORMS: tuple[tuple[str, Form, float], ...] = (
    ("{}²", lambda a: a * a, 1.5),
    ("(1 − {})", lambda a: 1 - a, 1.6),
    ("(1 − {}²)", lambda a: 1 - a * a, 1.7),
    ("1/{}", lambda a: 1 / a, 1.6),
    ("1/{}²", lambda a: 1 / (a * a), 1.8),
    ("{}³", lambda a: a * a * a, 1.8),
    ("exp({})", np.exp, 1.7),
    ("exp(−{})", lambda a: np.exp(-a), 1.8),
    ("exp(−{}²)", lambda a: np.exp(-a * a), 1.9),
    ("exp(−{}²/2)", lambda a: np.exp(-a * a / 2), 1.9),
    ("cos({})", np.cos, 1.7),
    ("sin({})", np.sin, 1.7),
    ("tanh({})", np.tanh, 1.7),
    ("(1 − tanh({})²)", lambda a: 1 - np.tanh(a) ** 2, 2.0),
    ("σ({})", lambda a: 0.5 + 0.5 * np.tanh(a / 2), 1.7),
    ("(1 − σ({}))", lambda a: 0.5 - 0.5 * np.tanh(a / 2), 1.8),
    ("σ({0}) · (1 − σ({0}))", lambda a: 0.25 / np.cosh(a / 2) ** 2, 1.8),
    ("sign({})", np.sign, 1.9),
    ("|{}|", np.abs, 1.9),
    ("√{}", lambda a: np.sqrt(a), 1.9),
    ("log({})", lambda a: np.log(a), 1.9),
    ("(1 + {})", lambda a: 1 + a, 2.0),
    ("(1 + {}²)", lambda a: 1 + a * a, 2.0),
    ("1/(1 + {}²)", lambda a: 1 / (1 + a * a), 2.0),
)


def _softmax(a: np.ndarray) -> np.ndarray:
    powers = np.exp(a - a.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


ROWS: tuple[tuple[str, Form], ...] = (
    ("softmax({}, axis=-1)", _softmax),
    ("sum({}, axis=-1)", lambda a: a.sum(-1, keepdims=True)),
    ("norm({}, axis=-1)", lambda a: np.linalg.norm(a, axis=-1, keepdims=True)),
    ("max({}, axis=-1)", lambda a: a.max(-1, keepdims=True)),
    ("std({}, axis=-1)", lambda a: a.std(-1, keepdims=True)),
    ("sum({})", lambda a: a.sum(keepdims=True)),
    ("norm({})", lambda a: np.sqrt((np.abs(a) ** 2).sum(keepdims=True))),
    ("max({})", lambda a: a.max(keepdims=True)),
)


@dataclass(frozen=True)
class Atom:
    """A quantity that can stand in a formula.

    Attributes:
        text: how it is written.
        base: the array it is a function of.
        cost: how unlikely it is to stand in a derivative; about 1 for an array itself.
        value: its value in a case.
    """

    text: str
    base: str
    cost: float
    value: Callable[[Judged], np.ndarray]
    minus: str = ""  # the array that it is the difference from

    @property
    def plain(self) -> bool:
        """Whether it is a known array itself, rather than a function of one."""
        return self.text == self.base

    @property
    def parts(self) -> tuple[str, ...]:
        """The factors that a power stands for."""
        powers = {f"{self.base}²": 2, f"{self.base}³": 3}
        if self.text == f"1/{self.base}²":
            return (f"1/{self.base}",) * 2
        return (self.base,) * powers[self.text] if self.text in powers else (self.text,)

    @property
    def composite(self) -> bool:
        """Whether it is a sum of two quantities: (1 − y), (p − t)."""
        return self.text.startswith("(") and (" − " in self.text or " + " in self.text)

    @property
    def difference(self) -> bool:
        """Whether it is the difference of two arrays: (p − t)."""
        return bool(self.minus)

    @property
    def subtracted(self) -> int:
        """The power of the array that it subtracts from 1: 2 for (1 − y²); 0 where it does not."""
        return {f"(1 − {self.base})": 1, f"(1 − {self.base}²)": 2}.get(self.text, 0)


def atoms(evidence: Evidence, *, rows: bool = False) -> list[Atom]:
    """Known arrays and functions of them, cheapest first; with ``rows``, reductions of rows too."""
    found: list[Atom] = []
    names = list(evidence.given.known)[:MOST_ARRAYS]
    for name in names:
        # What the forward pass kept is what the backward pass is made of.
        more = costs.KEPT if name in evidence.kept else costs.NOT_KEPT if evidence.kept else 0.0
        found.append(Atom(name, name, costs.ARRAY + more, lambda case, n=name: case.known[n]))
        for text, form, cost in FORMS:
            found.append(_of(name, text, form, cost + more))
        if np.iscomplexobj(evidence.given.known[name]):
            found.append(_of(name, "conj({})", np.conj, costs.CONJUGATE_OF_ARRAY))
        if rows and evidence.given.known[name].ndim:
            found += [_of(name, text, form, costs.REDUCED_ARRAY) for text, form in ROWS]
    found += _differences(evidence, names)
    return sorted(found, key=lambda atom: atom.cost)


def products(some: Sequence[Atom], most: int) -> Iterator[tuple[Atom, ...]]:
    """All products of at most ``most`` atoms, the empty one first; squares count as a pair."""
    for count in range(most + 1):
        yield from itertools.combinations_with_replacement(some, count)


def written(factors: Sequence[Atom]) -> str:
    """The product as a person writes it: powers gathered, in the order given."""
    counts: dict[str, int] = {}
    for atom in factors:
        counts[atom.text] = counts.get(atom.text, 0) + 1
    powers = {1: "", 2: "²", 3: "³", 4: "⁴"}
    return " · ".join(text + powers.get(n, f"^{n}") for text, n in counts.items())


def placed(atom: Atom, case: Judged, shape: Sequence[int]) -> np.ndarray | None:
    """The atom's value broadcast to a shape; None where it does not fit or is not finite."""
    with np.errstate(all="ignore"):
        value = atom.value(case)
    if not np.all(np.isfinite(value)):
        return None
    return next(aligned(value, shape), None)


def _of(name: str, text: str, form: Form, cost: float) -> Atom:
    return Atom(text.format(name), name, cost, lambda case: form(case.known[name]))


def _differences(evidence: Evidence, names: Sequence[str]) -> list[Atom]:
    """Differences: of predictions and targets, of points and centres, of rows and their means."""
    known, kept = evidence.given.known, evidence.kept
    pairs = [
        (a, b, costs.KEPT_DIFFERENCE if a in kept and b in kept else costs.DIFFERENCE)
        for a, b in itertools.permutations(names, 2)
        if known[a].ndim
        and (known[a].shape == known[b].shape and names.index(a) < names.index(b))
        or (a in kept and b in kept and _centres(known[b].shape, known[a].shape))
    ]
    return [
        Atom(f"({a} − {b})", a, cost, lambda case, a=a, b=b: case.known[a] - case.known[b], b)
        for a, b, cost in sorted(pairs, key=lambda pair: pair[2])[:6]
    ]


def _centres(shape: tuple[int, ...], of: tuple[int, ...]) -> bool:
    """Whether a shape is another one with axes of length 1 kept, as a mean's is."""
    return shape != of and len(shape) == len(of) and all(n in (1, m) for n, m in zip(shape, of))


# How a cotangent of an output gets to the shape of an argument: sums, products, moves.
#
# A frame is a linear map from an output's cotangent to an argument's shape, with two places for
# factors: inside, beside the cotangent, and outside, beside the result.

Apply = Callable[[Judged, np.ndarray], np.ndarray]
LinearForm = Callable[[Judged], np.ndarray]
Product = Callable[[np.ndarray, np.ndarray], np.ndarray]
MOST_LIFTED = 12


@dataclass(frozen=True)
class OutputBar:
    """An output's cotangent, or what a first step of the backward pass makes of it."""

    text: str
    value: Callable[[Judged], np.ndarray]
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

    bar: OutputBar
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

    def cotangent(self, case: Judged) -> np.ndarray:
        """The cotangent, broadcast to the inner shape."""
        return next(aligned(self.bar.value(case), self.inside))


def frames(evidence: Evidence) -> Iterator[Frame]:
    """The maps from every output's cotangent to the argument's shape, the plainest first."""
    bars = [OutputBar(name, lambda case, n=name: case.bars[n]) for name in evidence.given.bars]
    for bar in bars:
        yield from _elementwise(evidence, bar)
        yield from _moves(evidence, bar)
        yield from _contractions(evidence, bar)
    for bar in itertools.islice(_lifted(evidence, bars), MOST_LIFTED):
        yield from _contractions(evidence, bar)


def _lifted(evidence: Evidence, bars: Sequence[OutputBar]) -> Iterator[OutputBar]:
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

            def first(
                case: Judged, b: OutputBar = bar, n: str = name, p: Product = product
            ) -> np.ndarray:
                return p(b.value(case), case.known[n])

            written = f"({text.replace('M', name).format(bar.text)})"
            yield OutputBar(written, first, costs.LIFTED)
            for partner in partners[:3]:

                def total(case: Judged, p: str = partner, f: LinearForm = first) -> np.ndarray:
                    products = case.known[p] * f(case)
                    return np.broadcast_to(products.sum(-1, keepdims=True), products.shape)

                yield OutputBar(f"sum({partner} · {written}, axis=-1)", total, costs.LIFTED_SUM)


def _elementwise(evidence: Evidence, bar: OutputBar) -> Iterator[Frame]:
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
                costs.FIRST_ENTRY if final.endswith("]") else 0.0, Kind.MISSING_SUM,
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
                    finish, final, "product", _unlikely(axes, full), Kind.AXIS, axes,
                )  # fmt: skip


def _axis_sets(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    axes = [axis for axis in reversed(range(len(shape))) if shape[axis] > 1]
    return [some for count in (1, 2, 3) for some in itertools.combinations(axes, count)][:7]


def _unlikely(axes: tuple[int, ...], shape: tuple[int, ...]) -> float:
    """What a mean costs: over the last axis it is the commonest."""
    if axes == (len(shape) - 1,):
        return costs.MEAN_OF_ROWS
    return costs.MEAN if len(axes) == 1 else costs.MEAN_OF_AXES


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


def _moves(evidence: Evidence, bar: OutputBar) -> Iterator[Frame]:
    """The cotangent in another order: transposed, reversed, summed up from either end."""
    case = evidence.given
    shape, own = case.shape, bar.value(case).shape
    moves: list[tuple[str, Callable[[np.ndarray], np.ndarray], str, str]] = []
    for order in itertools.permutations(range(len(own))) if len(own) < 5 else ():
        if order != tuple(range(len(own))) and tuple(own[i] for i in order) == shape:
            text = "{}.T" if len(own) == 2 else f"transpose({{}}, {order})"
            moves.append((text, lambda a, o=order: np.transpose(a, o), "order", Kind.TRANSPOSE))
    if own != shape and int(np.prod(own)) == int(np.prod(shape)):
        moves.append(
            (f"{{}}.reshape{shape}", lambda a: a.reshape(shape), "order", Kind.PERMUTATION)
        )
    if own == shape:
        for axis in (axis for axis, n in enumerate(own) if n > 1):
            total = f"cumulative sum over axis {axis}"
            moves += [
                (
                    f"cumsum({{}}, {axis})",
                    lambda a, x=axis: np.cumsum(a, x), total, Kind.REVERSAL,
                ),
                (
                    f"reverse_cumsum({{}}, {axis})",
                    lambda a, x=axis: np.flip(np.cumsum(np.flip(a, x), x), x), total, Kind.REVERSAL,
                ),
                (f"flip({{}}, {axis})", lambda a, x=axis: np.flip(a, x), "order", Kind.REVERSAL),
            ]  # fmt: skip
    for text, move, relation, kind in moves:
        yield Frame(
            bar, own, shape, text, lambda case, a, m=move: m(a), lambda a: a, "{}",
            relation, costs.MOVED, kind,
        )  # fmt: skip


def _contractions(evidence: Evidence, bar: OutputBar) -> Iterator[Frame]:
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
                lambda a: a, "{}", f"product with {name}", costs.CONTRACTED + bar.cost,
                Kind.TRANSPOSE,
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


# The terms that a gradient may consist of, and their values on the samples.

MOST_TERMS, LEAST_TERMS = 2400, 200
WORK = 5_000_000  # entries that are evaluated, all terms together: a third of a second
MOST_KEPT, MOST_OTHERS = 6, 5  # arrays that products are formed of
Values = dict[tuple[object, ...], np.ndarray | None]


@dataclass(frozen=True)
class Term:
    """``outer · frame(inner · ȳ)``, summed to the argument's shape.

    Attributes:
        frame: how the cotangent gets to the argument's shape.
        inner, outer: the factors beside the cotangent, and beside the result.
    """

    frame: Frame
    inner: tuple[Atom, ...] = ()
    outer: tuple[Atom, ...] = ()

    @property
    def cost(self) -> float:
        """How unlikely the term is: the sum over its parts."""
        factors = sum(atom.cost for atom in self.inner + self.outer)
        return self.frame.cost + costs.TERM_OF_FORMULA + factors

    @property
    def composite(self) -> bool:
        """Whether a factor is a sum, so that the term may be two."""
        return any(atom.composite for atom in self.inner + self.outer)

    @property
    def sensible(self) -> bool:
        """Whether no factor cancels another."""
        texts = {atom.text for atom in self.inner + self.outer}
        return not any(f"1/{text}" in texts or f"1/{text}²" in texts for text in texts)

    @property
    def difference(self) -> bool:
        """Whether a factor is the difference of two arrays."""
        return any(atom.difference for atom in self.inner + self.outer)

    def split(self, plain: Mapping[str, Atom]) -> tuple[Term, Term] | None:
        """With (1 − y) or (p − t) multiplied out: a term, and the one to be subtracted from it."""
        for place in ("inner", "outer"):
            factors: tuple[Atom, ...] = getattr(self, place)
            for k, atom in enumerate(factors):
                rest = factors[:k] + factors[k + 1 :]
                if atom.subtracted and atom.base in plain:
                    more = rest + (plain[atom.base],) * atom.subtracted
                    return replace(self, **{place: rest}), replace(self, **{place: more})
                if atom.base in plain and atom.minus in plain:
                    first, second = (plain[atom.base],), (plain[atom.minus],)
                    return (
                        replace(self, **{place: rest + first}),
                        replace(self, **{place: rest + second}),
                    )
        return None

    @property
    def factors(self) -> Counter[str]:
        """The factors by text, wherever they stand; x² counts as x twice."""
        return Counter(part for atom in self.inner + self.outer for part in atom.parts)

    @property
    def count(self) -> int | None:
        """The number of elements of its mean, if it holds one."""
        axes = self.frame.axes
        return None if axes is None else int(np.prod([self.frame.inside[a] for a in axes]))

    def text(self, constant: NamedNumber, *, total: bool = False) -> str:
        """The term as a person writes it; with ``total``, its mean as a sum."""
        frame = self.frame.text.replace("mean(", "sum(") if total else self.frame.text
        inner = " · ".join(filter(None, (written(self.inner), self.frame.bar.text)))
        if self.inner and "@" in frame:
            inner = f"({inner})"
        body = " · ".join(filter(None, (written(self.outer), frame.format(inner))))
        body = self.frame.final.format(body)
        number = constant.text.removeprefix("−")
        sign = "− " if constant.value < 0 else ""
        return f"{sign}{body}" if number == "1" else f"{sign}{number} · {body}"

    def value(self, case: Judged, cache: Values | None = None) -> np.ndarray | None:
        """The term's value in a case, None where it does not fit; parts are cached."""
        cache = {} if cache is None else cache
        frame = self.frame
        core = _once(cache, (id(case), id(frame), self.inner), lambda: self._core(case, cache))
        if core is None:
            return None
        if self.outer:
            factor = _product(cache, self.outer, case, frame.outside)
            if factor is None:
                return None
            core = core * factor
        if core.shape != frame.outside:
            core = np.broadcast_to(core, frame.outside)
        return frame.finish(core)

    def _core(self, case: Judged, cache: Values) -> np.ndarray | None:
        inside = self.frame.cotangent(case)
        if self.inner:
            factor = _product(cache, self.inner, case, self.frame.inside)
            if factor is None:
                return None
            inside = inside * factor
        return self.frame.apply(case, inside)


@dataclass
class Dictionary:
    """Terms with their values on the cases that the search looks at.

    Attributes:
        terms: the terms, cheapest first.
        columns: one row per term: its values, scaled to norm 1.
        norms: what they were divided by.
    """

    terms: list[Term] = field(default_factory=list)
    columns: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    norms: np.ndarray = field(default_factory=lambda: np.zeros(0))


def build(evidence: Evidence, cases: Sequence[Judged], rows: np.ndarray) -> Dictionary:
    """Evaluates terms, cheapest first, until there are enough or time is nearly up."""
    terms: list[Term] = []
    columns: list[np.ndarray] = []
    cache: Values = {}
    entries = sum(case.true.size for case in cases)
    most = max(LEAST_TERMS, min(MOST_TERMS, WORK // entries))
    in_time = itertools.takewhile(lambda _: not evidence.late, _terms(evidence))
    some = (term for term in in_time if term.sensible)
    likely = sorted(some, key=lambda term: term.cost - _bonus(evidence, term))
    for term in itertools.islice(likely, most):
        if evidence.late:
            break
        with np.errstate(all="ignore"):
            values = [term.value(case, cache) for case in cases]
        if any(value is None for value in values):
            continue
        column = flattened([value for value in values if value is not None], rows)
        norm = float(np.linalg.norm(column))
        if np.isfinite(norm) and norm > 0:
            terms.append(term)
            columns.append(column)
    if not terms:
        return Dictionary()
    matrix = np.stack(columns)
    norms = np.linalg.norm(matrix, axis=1)
    return Dictionary(terms, matrix / norms[:, None], norms)


def flattened(values: Sequence[np.ndarray], rows: np.ndarray) -> np.ndarray:
    """All entries of all cases in one real vector, and of these the chosen ones."""
    entries = np.concatenate([np.ravel(value) for value in values])[rows]
    if np.iscomplexobj(entries):
        return np.concatenate([np.real(entries), np.imag(entries)])
    return entries


def _terms(evidence: Evidence) -> Iterator[Term]:
    every = atoms(evidence)
    fitting: dict[tuple[int, ...], list[Atom]] = {}
    for frame in frames(evidence):
        for shape in (frame.inside, frame.outside):
            if shape not in fitting:
                fitting[shape] = [a for a in every if placed(a, evidence.given, shape) is not None]
        inner, outer = fitting[frame.inside], fitting[frame.outside]
        few_inner, few_outer = _few(evidence, inner), _few(evidence, outer)
        special = [atom for atom in inner if not atom.plain]
        if frame.axes is not None:
            usual = frame.axes == (len(frame.inside) - 1,)
            kept = [atom for atom in few_outer if atom.base in evidence.kept]
            inverse = [a for a in outer if a.text.startswith("1/") and a.base in evidence.kept]
            for inside in products(few_inner, 2):
                yield from (Term(frame, inside, o) for o in products(few_outer, 2 if usual else 1))
                if len(frame.axes) == 1 and not usual:
                    yield from (Term(frame, inside, o) for o in products(kept, 2) if len(o) == 2)
            for inside in products(few_inner, 1):
                some = ((a, b) for a in inverse for b in kept)
                yield from (Term(frame, inside, out) for out in some)
            for atom in special:
                yield Term(frame, (atom,))
                yield from (Term(frame, (atom,), (a,)) for a in few_outer)
            for atom in outer:
                if not atom.plain:
                    yield Term(frame, (), (atom,))
                    yield from (Term(frame, (a,), (atom,)) for a in few_inner)
            continue
        yield from (Term(frame, inside) for inside in products(few_inner, 3))
        yield from (Term(frame, (atom,)) for atom in inner)
        yield from (Term(frame, (a, atom)) for a in few_inner for atom in special)
        for pair in products(few_inner, 2):
            if len(pair) == 2:
                yield from (
                    Term(frame, (*pair, atom))
                    for atom in special
                    if atom.cost <= costs.FOR_PRODUCTS
                )
        if frame.relation != "product":
            for out in outer:
                yield from (Term(frame, inside, (out,)) for inside in products(few_inner, 1))


def _bonus(evidence: Evidence, term: Term) -> float:
    """Products of residuals alone come first: a backward pass is made of them."""
    factors = term.inner + term.outer
    usual = all(a.plain or a.text == f"1/{a.base}" for a in factors)
    if not usual or not all(a.base in evidence.kept for a in factors):
        return 0.0
    axes, ndim = term.frame.axes, len(term.frame.inside)
    if axes in (None, (ndim - 1,)):
        return costs.OF_RESIDUALS
    return costs.OF_RESIDUALS_ALONG_ANOTHER_AXIS if len(axes or ()) == 1 else 0.0


def _few(evidence: Evidence, some: Sequence[Atom]) -> list[Atom]:
    """The arrays that products are formed of: residuals, and what others there is room for."""
    plain = [atom for atom in some if atom.plain]
    kept = [atom for atom in plain if atom.base in evidence.kept][:MOST_KEPT]
    others = [atom for atom in plain if atom not in kept]
    return kept + others[: max(MOST_OTHERS - len(kept), 2 if kept else 0)]


def _product(
    cache: Values, factors: tuple[Atom, ...], case: Judged, shape: tuple[int, ...]
) -> np.ndarray | None:
    """The product of factors broadcast to a shape, each computed once per case."""

    def compute() -> np.ndarray | None:
        if len(factors) == 1:
            return placed(factors[0], case, shape)
        left = _product(cache, factors[:1], case, shape)
        right = _product(cache, factors[1:], case, shape)
        return None if left is None or right is None else left * right

    return _once(cache, (id(case), shape, factors), compute)


def _once(
    cache: Values, key: tuple[object, ...], compute: Callable[[], np.ndarray | None]
) -> np.ndarray | None:
    if key not in cache:
        cache[key] = compute()
    return cache[key]
