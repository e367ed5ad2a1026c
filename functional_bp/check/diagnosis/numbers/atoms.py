"""The quantities that formulas are made of: known arrays and plain functions of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from functional_bp.check.diagnosis.numbers.evidence import Case, Evidence
from functional_bp.check.diagnosis.numbers.thresholds import aligned

Form = Callable[[np.ndarray], np.ndarray]
MOST_ARRAYS = 14  # of the known arrays, the first ones
KEPT, OTHER = -0.2, 0.5  # on the cost of residuals, and of the rest where there are residuals

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
    value: Callable[[Case], np.ndarray]
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
        more = KEPT if name in evidence.kept else OTHER if evidence.kept else 0.0
        found.append(Atom(name, name, 1.0 + more, lambda case, n=name: case.known[n]))
        for text, form, cost in FORMS:
            found.append(_of(name, text, form, cost + more))
        if np.iscomplexobj(evidence.given.known[name]):
            found.append(_of(name, "conj({})", np.conj, 1.1))
        if rows and evidence.given.known[name].ndim:
            found += [_of(name, text, form, 1.8) for text, form in ROWS]
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


def placed(atom: Atom, case: Case, shape: Sequence[int]) -> np.ndarray | None:
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
        (a, b, 1.2 if a in kept and b in kept else 1.9)
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
