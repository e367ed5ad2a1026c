"""The terms that a gradient may consist of, and their values on the samples."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from functional_bp.check.diagnosis.numbers.atoms import Atom, atoms, placed, products, written
from functional_bp.check.diagnosis.numbers.constants import Constant
from functional_bp.check.diagnosis.numbers.evidence import Case, Evidence
from functional_bp.check.diagnosis.numbers.frames import Frame, frames

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
        return self.frame.cost + 0.3 + sum(atom.cost for atom in self.inner + self.outer)

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

    def text(self, constant: Constant, *, total: bool = False) -> str:
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

    def value(self, case: Case, cache: Values | None = None) -> np.ndarray | None:
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

    def _core(self, case: Case, cache: Values) -> np.ndarray | None:
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


def build(evidence: Evidence, cases: Sequence[Case], rows: np.ndarray) -> Dictionary:
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
                yield from (Term(frame, (*pair, atom)) for atom in special if atom.cost <= 1.8)
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
    return 1.0 if axes in (None, (ndim - 1,)) else 0.5 if len(axes or ()) == 1 else 0.0


def _few(evidence: Evidence, some: Sequence[Atom]) -> list[Atom]:
    """The arrays that products are formed of: residuals, and what others there is room for."""
    plain = [atom for atom in some if atom.plain]
    kept = [atom for atom in plain if atom.base in evidence.kept][:MOST_KEPT]
    others = [atom for atom in plain if atom not in kept]
    return kept + others[: max(MOST_OTHERS - len(kept), 2 if kept else 0)]


def _product(
    cache: Values, factors: tuple[Atom, ...], case: Case, shape: tuple[int, ...]
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
