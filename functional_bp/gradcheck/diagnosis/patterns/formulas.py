"""Formulas are made of known arrays: these are the terms that a gradient may consist of.

An atom is a known array or a plain function of one. A frame takes an output's cotangent to the
argument's shape, by sums, products and moves; it has two places for atoms, beside the cotangent and
beside the result. A term is a frame with its atoms. The likeliest terms, with their values on the
samples, are the dictionary in which ``terms`` looks for what is missing.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from functional_bp.gradcheck.diagnosis import costs
from functional_bp.gradcheck.diagnosis.expressions import PLACE, Expr, X, call, name, product
from functional_bp.gradcheck.diagnosis.patterns.evidence import Evidence, Judged
from functional_bp.gradcheck.diagnosis.sums import Dictionary
from functional_bp.gradcheck.findings import Kind


def aligned(array: np.ndarray, shape: Sequence[int]) -> Iterator[np.ndarray]:
    """``array`` is broadcast to ``shape`` in NumPy's way, and with its axes at the front."""
    shape = tuple(shape)
    if array.ndim <= len(shape):
        front = array.reshape(array.shape + (1,) * (len(shape) - array.ndim))
        for view in (array, front) if front.shape != array.shape else (array,):
            if all(n in (1, m) for n, m in zip(view.shape[::-1], shape[::-1])):
                yield np.broadcast_to(view, shape)


MOST_ARRAYS = 14  # of the known arrays, the first ones

# What a derivative is likely to hold of an array, with its cost.
FORMS: tuple[tuple[Expr, float], ...] = (
    (X**2, 1.5), (1 - X, 1.6), (1 - X**2, 1.7), (1 / X, 1.6), (1 / X**2, 1.8), (X**3, 1.8),
    (call("exp", X), 1.7), (call("exp", -X), 1.8),
    (call("exp", -(X**2)), 1.9), (call("exp", -(X**2 / 2)), 1.9),
    (call("cos", X), 1.7), (call("sin", X), 1.7),
    (call("tanh", X), 1.7), (1 - call("tanh", X) ** 2, 2.0),
    (call("σ", X), 1.7), (1 - call("σ", X), 1.8), (call("σ", X) * (1 - call("σ", X)), 1.8),
    (call("sign", X), 1.9), (call("abs", X), 1.9), (call("√", X), 1.9), (call("log", X), 1.9),
    (1 + X, 2.0), (1 + X**2, 2.0), (1 / (1 + X**2), 2.0),
)  # fmt: skip
ROWS: tuple[Expr, ...] = (
    call("softmax", X, axis=-1),
    *(call(of, X, axis=-1, keepdims_=True) for of in ("sum", "norm", "max", "std")),
    *(call(of, X, keepdims_=True) for of in ("sum", "norm", "max")),
)


@dataclass(frozen=True)
class Atom:
    """An atom is a quantity that can stand in a formula.

    Attributes:
        expr: how it is written.
        base: the array it is a function of.
        cost: how unlikely it is to stand in a derivative; about 1 for an array itself.
        minus: the array that it is the difference from, or "".
    """

    expr: Expr
    base: str
    cost: float
    minus: str = ""

    @cached_property
    def plain(self) -> bool:
        """Whether it is a known array itself, rather than a function of one."""
        return self.expr == name(self.base)

    @cached_property
    def inverse(self) -> bool:
        """Whether it is the reciprocal of a known array."""
        return self.expr == 1 / name(self.base)

    @cached_property
    def cancelling(self) -> tuple[Expr, Expr]:
        """The factors beside which it makes no sense."""
        return 1 / self.expr, 1 / self.expr**2

    @cached_property
    def parts(self) -> tuple[Expr, ...]:
        """The factors that a power stands for."""
        x = name(self.base)
        powers = {x**2: (x, x), x**3: (x, x, x), 1 / x**2: (1 / x, 1 / x)}
        return powers.get(self.expr, (self.expr,))

    @cached_property
    def composite(self) -> bool:
        """Whether it is a sum of two quantities: (1 − y), (p − t)."""
        return self.expr.is_sum

    @cached_property
    def difference(self) -> bool:
        """Whether it is the difference of two arrays: (p − t)."""
        return bool(self.minus)

    @cached_property
    def subtracted(self) -> int:
        """The power of the array that it subtracts from 1: 2 for (1 − y²); 0 where it does not."""
        x = name(self.base)
        return {1 - x: 1, 1 - x**2: 2}.get(self.expr, 0)


def atoms(evidence: Evidence, *, rows: bool = False) -> list[Atom]:
    """The known arrays come with functions of them, cheapest first; ``rows`` adds reductions of
    rows.
    """
    found: list[Atom] = []
    names = list(evidence.given.known)[:MOST_ARRAYS]
    for base in names:
        array = evidence.given.known[base]
        # What the forward pass kept is what the backward pass is made of.
        more = costs.KEPT if base in evidence.kept else costs.NOT_KEPT if evidence.kept else 0.0
        forms = [(X, costs.ARRAY + more), *((form, cost + more) for form, cost in FORMS)]
        if np.iscomplexobj(array):
            forms.append((call("conj", X), costs.CONJUGATE_OF_ARRAY))
        if rows and array.ndim:
            forms += [(form, costs.REDUCED_ARRAY) for form in ROWS]
        found += [Atom(form.of({X: name(base)}), base, cost) for form, cost in forms]
    found += _differences(evidence, names)
    return sorted(found, key=lambda atom: atom.cost)


def products(some: Sequence[Atom], most: int) -> Iterator[tuple[Atom, ...]]:
    """At most ``most`` atoms make a product; the empty one comes first, and squares count as a
    pair.
    """
    for count in range(most + 1):
        yield from itertools.combinations_with_replacement(some, count)


def placed(atom: Atom, case: Judged, shape: Sequence[int]) -> np.ndarray | None:
    """The atom's value is broadcast to a shape; None where it does not fit or is not finite."""
    with np.errstate(all="ignore"):
        value = np.asarray(atom.expr.value(case.arrays))
    if not np.all(np.isfinite(value)):
        return None
    return next(aligned(value, shape), None)


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
        Atom(name(a) - name(b), a, cost, b)
        for a, b, cost in sorted(pairs, key=lambda pair: pair[2])[:6]
    ]


def _centres(shape: tuple[int, ...], of: tuple[int, ...]) -> bool:
    """Whether a shape is another one with axes of length 1 kept, as a mean's is."""
    return shape != of and len(shape) == len(of) and all(n in (1, m) for n, m in zip(shape, of))


# Frames.

MOST_LIFTED = 12


@dataclass(frozen=True)
class OutputBar:
    """This is an output's cotangent, or what a first step of the backward pass makes of it.

    It has the shape of the known array ``like``, where that is given.
    """

    expr: Expr
    cost: float = 0.0
    like: str = ""

    def value(self, case: Judged) -> np.ndarray:
        """Its value in a case."""
        value = self.expr.value(case.arrays)
        return np.broadcast_to(value, case.known[self.like].shape) if self.like else value


@dataclass(frozen=True)
class Frame:
    """A frame maps a cotangent (times inner factors) linearly to the argument's shape.

    Attributes:
        bar: the cotangent.
        inside: the shape that inner factors are broadcast to.
        outside: the shape that outer factors are broadcast to.
        form: the map before outer factors, with ``X`` for the cotangent and its factors.
        final: the map after them: sums over axes that the argument lacks.
        relation: what two frames share that differ in one respect ("product with W").
        cost: how unlikely it is.
        kind: the kind of fault if this frame stands where another of its relation belongs.
    """

    bar: OutputBar
    inside: tuple[int, ...]
    outside: tuple[int, ...]
    form: Expr
    final: Expr
    relation: str
    cost: float
    kind: Kind
    axes: tuple[int, ...] | None = None  # of a mean that keeps its axes

    @property
    def is_summed(self) -> bool:
        """Whether the result is summed over axes that the argument lacks."""
        return self.final.head in ("sum", "shaped")

    def cotangent(self, case: Judged) -> np.ndarray:
        """The cotangent, broadcast to the inner shape."""
        return next(aligned(self.bar.value(case), self.inside))


def frames(evidence: Evidence) -> Iterator[Frame]:
    """Every output's cotangent is mapped to the argument's shape, the plainest way first."""
    bars = [OutputBar(name(n)) for n in evidence.given.bars]
    for bar in bars:
        yield from _elementwise(evidence, bar)
        yield from _moves(evidence, bar)
        yield from _contractions(evidence, bar)
    for bar in itertools.islice(_lifted(evidence, bars), MOST_LIFTED):
        yield from _contractions(evidence, bar)


def _lifted(evidence: Evidence, bars: Sequence[OutputBar]) -> Iterator[OutputBar]:
    """Cotangents of intermediate products, as those of attention's probabilities: ȳ @ v.T."""
    case = evidence.given
    for bar, (factor, matrix) in itertools.product(bars, case.known.items()):
        own = bar.value(case).shape
        if len(own) < 2 or matrix.ndim != len(own):
            continue
        for form in PRODUCTS[:4]:
            lifted = form(bar.expr, name(factor), matrix.ndim)
            shape = _shape(lifted, case.arrays)
            partners = [other for other, array in case.known.items() if array.shape == shape]
            if shape in (None, own, case.shape) or not partners:
                continue
            yield OutputBar(lifted, costs.LIFTED)
            for partner in partners[:3]:
                summed = call("sum", name(partner) * lifted, axis=-1, keepdims_=True)
                yield OutputBar(summed, costs.LIFTED_SUM, partner)


def _shape(form: Expr, arrays: Mapping[str, np.ndarray]) -> tuple[int, ...] | None:
    """The shape of a formula's value; None where its parts do not fit together."""
    try:
        return form.value(arrays).shape
    except (ValueError, IndexError):
        return None


def _elementwise(evidence: Evidence, bar: OutputBar) -> Iterator[Frame]:
    """Products, with a mean in between over some axes, and a sum at the end."""
    case = evidence.given
    own = bar.value(case)
    candidates = dict.fromkeys([case.shape, own.shape, *(a.shape for a in case.known.values())])
    shapes = [
        shape for shape in candidates
        if next(aligned(own, shape), None) is not None and list(_finals(shape, case.shape))
    ]  # fmt: skip
    for full in shapes[:3]:
        for final in _finals(full, case.shape):
            entry = final.head == "[]"
            cost = costs.FIRST_ENTRY if entry else 0.0
            yield Frame(bar, full, full, X, final, "product", cost, Kind.MISSING_SUM)
            for axes in [] if entry else _axis_sets(full):
                along = {} if len(axes) == len(full) else {"axis": _axis(axes)}
                if len(full) > 1 and axes == (len(full) - 1,):
                    along = {"axis": -1}
                mean = call("mean", X, **along, keepdims_=True)
                cost = _unlikely(axes, full)
                yield Frame(bar, full, full, mean, final, "product", cost, Kind.AXIS, axes)


def _axis_sets(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    axes = [axis for axis in reversed(range(len(shape))) if shape[axis] > 1]
    return [some for count in (1, 2, 3) for some in itertools.combinations(axes, count)][:7]


def _unlikely(axes: tuple[int, ...], shape: tuple[int, ...]) -> float:
    """What a mean costs: over the last axis it is the commonest."""
    if axes == (len(shape) - 1,):
        return costs.MEAN_OF_ROWS
    return costs.MEAN if len(axes) == 1 else costs.MEAN_OF_AXES


def _axis(axes: tuple[int, ...]) -> object:
    return axes[0] if len(axes) == 1 else tuple(sorted(axes))


def _finals(full: tuple[int, ...], shape: tuple[int, ...]) -> Iterator[Expr]:
    """The sums that bring an array of shape ``full`` to ``shape``."""
    if full == shape:
        yield X
        return
    if len(shape) > len(full):
        return
    extra = len(full) - len(shape)
    for leading in (True, False) if extra and shape else (True,):
        padded = (1,) * extra + shape if leading else shape + (1,) * extra
        axes = tuple(i for i, (n, m) in enumerate(zip(padded, full)) if n != m)
        if not axes or any(padded[i] != 1 for i in axes):
            continue
        along = {} if len(axes) == len(full) else {"axis": _axis(axes)}
        total = call("sum", X, **along, **({} if len(axes) == extra else {"keepdims_": True}))
        if 0 < extra < len(axes):
            total = Expr("shaped", (total, shape))
        yield total
        if leading and len(axes) == extra < len(full):
            yield Expr("[]", (X, (0,) * extra))


def _moves(evidence: Evidence, bar: OutputBar) -> Iterator[Frame]:
    """The cotangent in another order: transposed, reversed, summed up from either end."""
    shape, own = evidence.given.shape, bar.value(evidence.given).shape
    moves: list[tuple[Expr, str, Kind]] = []
    for order in itertools.permutations(range(len(own))) if len(own) < 5 else ():
        if order != tuple(range(len(own))) and tuple(own[i] for i in order) == shape:
            form = X.transposed() if len(own) == 2 else call("transpose", X, order)
            moves.append((form, "order", Kind.TRANSPOSE))
    if own != shape and math.prod(own) == math.prod(shape):
        moves.append((Expr("reshape", (X, shape)), "order", Kind.PERMUTATION))
    for axis in (axis for axis, n in enumerate(own) if n > 1 and own == shape):
        total = f"cumulative sum over axis {axis}"
        moves += [
            (call("cumsum", X, axis), total, Kind.REVERSAL),
            (call("reverse_cumsum", X, axis), total, Kind.REVERSAL),
            (call("flip", X, axis), "order", Kind.REVERSAL),
        ]
    for form, relation, kind in moves:
        yield Frame(bar, own, shape, form, X, relation, costs.MOVED, kind)


def _contractions(evidence: Evidence, bar: OutputBar) -> Iterator[Frame]:
    """Matrix products of the cotangent with a known array."""
    case = evidence.given
    y_bar = bar.value(case)
    for factor, matrix in case.known.items():
        if min(matrix.ndim, y_bar.ndim) < 1 or max(matrix.ndim, y_bar.ndim) < 2:
            continue
        for multiply in PRODUCTS:
            form = multiply(X, name(factor), matrix.ndim)
            if _shape(form, {**case.arrays, PLACE: y_bar}) == case.shape:
                yield Frame(
                    bar, y_bar.shape, case.shape, form, X, f"product with {factor}",
                    costs.CONTRACTED + bar.cost, Kind.TRANSPOSE,
                )  # fmt: skip


# Of the cotangent a with a matrix m of n axes.
PRODUCTS: tuple[Callable[[Expr, Expr, int], Expr], ...] = (
    lambda a, m, n: a @ m.transposed(n),
    lambda a, m, n: m.transposed(n) @ a,
    lambda a, m, n: a @ m,
    lambda a, m, n: m @ a,
    lambda a, m, n: a.transposed(n) @ m,
    lambda a, m, n: m @ a.transposed(n),
    lambda a, m, n: call("solve", m.transposed(n), a),
    lambda a, m, n: call("solve", m, a),
    lambda a, m, n: call("tensordot", m, a, (tuple(range(n - 1)),) * 2),
    lambda a, m, n: call("tensordot", a, m, (tuple(range(n - 1)),) * 2),
)


# Terms.

MOST_TERMS, LEAST_TERMS = 2400, 200
WORK = 5_000_000  # entries that are evaluated, all terms together: a third of a second
MOST_KEPT, MOST_OTHERS = 6, 5  # arrays that products are formed of
Values = dict[tuple[object, ...], np.ndarray | None]


@dataclass(frozen=True)
class Term:
    """A term is ``outer · frame(inner · ȳ)``, summed to the argument's shape.

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
        every = self.inner + self.outer
        factors = {atom.expr for atom in every}
        return all(factors.isdisjoint(atom.cancelling) for atom in every)

    @property
    def difference(self) -> bool:
        """Whether a factor is the difference of two arrays."""
        return any(atom.difference for atom in self.inner + self.outer)

    def split(self, plain: Mapping[str, Atom]) -> tuple[Term, Term] | None:
        """(1 − y) or (p − t) is multiplied out: a term, and the one to be subtracted from it."""
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
    def factors(self) -> Counter[Expr]:
        """The factors, wherever they stand; x² counts as x twice."""
        return Counter(part for atom in self.inner + self.outer for part in atom.parts)

    @property
    def count(self) -> int | None:
        """The number of elements of its mean, if it holds one."""
        axes = self.frame.axes
        return None if axes is None else int(np.prod([self.frame.inside[a] for a in axes]))

    def expr(self, total: bool = False) -> Expr:
        """The term is written as a formula; with ``total``, its mean as a sum."""
        form = self.frame.form.called("sum") if total else self.frame.form
        inner = product([atom.expr for atom in self.inner])
        bar = self.frame.bar.expr
        body = form.of({X: bar if inner is None else inner * bar})
        outer = product([atom.expr for atom in self.outer])
        return self.frame.final.of({X: body if outer is None else outer * body})

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
        return np.asarray(frame.final.value({PLACE: core}))

    def _core(self, case: Judged, cache: Values) -> np.ndarray | None:
        inside = self.frame.cotangent(case)
        if self.inner:
            factor = _product(cache, self.inner, case, self.frame.inside)
            if factor is None:
                return None
            inside = inside * factor
        return np.asarray(self.frame.form.value({**case.arrays, PLACE: inside}))


def build(evidence: Evidence, cases: Sequence[Judged], rows: np.ndarray) -> Dictionary | None:
    """Terms are evaluated, cheapest first, until there are enough or time is up.

    None where none can be.
    """
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
    return Dictionary.of(terms, np.stack(columns)).without_multiples() if terms else None


def flattened(values: Sequence[np.ndarray], rows: np.ndarray) -> np.ndarray:
    """All entries of all cases make one real vector; of these the chosen ones are kept."""
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
            inverse = [a for a in outer if a.expr.is_reciprocal and a.base in evidence.kept]
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
    usual = all(a.plain or a.inverse for a in factors)
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
