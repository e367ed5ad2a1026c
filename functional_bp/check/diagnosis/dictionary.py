"""The terms that a gradient may consist of, and their values on the samples."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from functional_bp.check.diagnosis.atoms import Atom, atoms, placed, products, written
from functional_bp.check.diagnosis.constants import Constant
from functional_bp.check.diagnosis.evidence import Case, Evidence
from functional_bp.check.diagnosis.frames import Frame, frames

MOST_TERMS = 2400
Values = dict[tuple[int, str, tuple[int, ...]], np.ndarray | None]


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
    def factors(self) -> Counter[str]:
        """The factors by text, wherever they stand."""
        return Counter(atom.text for atom in self.inner + self.outer)

    def text(self, constant: Constant, *, total: bool = False) -> str:
        """The term as a person writes it; with ``total``, its mean as a sum."""
        frame = self.frame.text.replace("mean(", "sum(") if total else self.frame.text
        inner = " · ".join(filter(None, (written(self.inner), self.frame.bar)))
        if self.inner and "@" in frame:
            inner = f"({inner})"
        body = " · ".join(filter(None, (written(self.outer), frame.format(inner))))
        body = self.frame.final.format(body)
        number = constant.text.removeprefix("−")
        sign = "− " if constant.value < 0 else ""
        return f"{sign}{body}" if number == "1" else f"{sign}{number} · {body}"

    def value(self, case: Case, cache: Values | None = None) -> np.ndarray | None:
        """The term's value in a case, None where it does not fit."""
        cache = {} if cache is None else cache
        inside = self.frame.cotangent(case)
        for atom in self.inner:
            factor = _cached(cache, atom, case, self.frame.inside)
            if factor is None:
                return None
            inside = inside * factor
        result = self.frame.apply(case, inside)
        for atom in self.outer:
            factor = _cached(cache, atom, case, self.frame.outside)
            if factor is None:
                return None
            result = result * factor
        if result.shape != self.frame.outside:
            result = np.broadcast_to(result, self.frame.outside)
        return self.frame.finish(result)


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
    for term in itertools.islice(sorted(_terms(evidence), key=lambda t: t.cost), MOST_TERMS):
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
    plain = [atom for atom in every if atom.cost <= 1.1]
    cheap = [atom for atom in every if atom.cost <= 1.9]
    for frame in frames(evidence):
        inner = [a for a in every if _fits(a, evidence, frame.inside)]
        outer = [a for a in every if _fits(a, evidence, frame.outside)]
        few_inner = [a for a in inner if a in plain][:7]
        few_outer = [a for a in outer if a in plain][:7]
        if frame.axes is not None:
            for inside in products(few_inner, 2):
                yield from (Term(frame, inside, out) for out in products(few_outer, 2))
            for atom in cheap:
                if atom in inner and atom not in plain:
                    yield Term(frame, (atom,))
                    yield from (Term(frame, (atom,), (a,)) for a in few_outer)
                if atom in outer and atom not in plain:
                    yield Term(frame, (), (atom,))
                    yield from (Term(frame, (a,), (atom,)) for a in few_inner)
            continue
        yield from (Term(frame, inside) for inside in products(few_inner, 3))
        special = [atom for atom in inner if atom not in plain]
        yield from (Term(frame, (atom,)) for atom in special)
        yield from (Term(frame, (a, atom)) for a in few_inner for atom in special)
        if frame.relation != "product":
            for out in (o for o in outer if o.cost <= 2.0):
                yield from (Term(frame, inside, (out,)) for inside in products(few_inner, 1))


def _fits(atom: Atom, evidence: Evidence, shape: tuple[int, ...]) -> bool:
    return placed(atom, evidence.given, shape) is not None


def _cached(cache: Values, atom: Atom, case: Case, shape: tuple[int, ...]) -> np.ndarray | None:
    key = (id(case), atom.text, shape)
    if key not in cache:
        cache[key] = placed(atom, case, shape)
    return cache[key]
