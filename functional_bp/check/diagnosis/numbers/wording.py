"""Sentences about terms: which one is missing, too many, or in the place of another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from functional_bp.check.diagnosis.numbers.constants import Constant
from functional_bp.check.diagnosis.numbers.dictionary import Term


@dataclass(frozen=True)
class Weighted:
    """A term with its coefficient; ``total``: its mean is written as a sum."""

    term: Term
    constant: Constant
    total: bool

    def __str__(self) -> str:
        return self.term.text(self.constant, total=self.total)


def missing(argument: str, gap: Sequence[Weighted]) -> tuple[str, str]:
    """Kind and message where only the difference of truth and claim is known."""
    place = f"in the cotangent of {argument}"
    only = gap[0]
    value = abs(only.constant.value)
    if len(gap) == 1 and abs(value - 2) <= 1e-6:
        return (
            "sign",
            f"{place}, true − claimed = {only}: a term has the wrong sign, or 2 · it is missing",
        )
    n = only.term.count
    if len(gap) == 1 and n and (_near(value, n - 1) or (only.total and _near(value, 1 - 1 / n))):
        return (
            "mean or sum",
            f"{place}, true − claimed = {only}: a sum and a mean of {n} are mistaken",
        )
    if len(gap) == 2 and _opposite(*gap) and gap[0].term.factors == gap[1].term.factors:
        kind, _ = _layout("", gap[0].term, gap[1].term)
        return kind, f"{place}, true − claimed = {joined(gap)}: one stands where the other belongs"
    return "missing term", f"{place}, missing: {joined(gap)}"


def replaced(argument: str, true: Weighted, claimed: Weighted) -> tuple[str, str]:
    """Kind and message where one term stands in the place of another."""
    place = f"in the cotangent of {argument}"
    same = true.term.text(true.constant) == claimed.term.text(true.constant)
    return _weight(place, true, claimed) if same else _replaced(place, true, claimed)


def difference(
    argument: str,
    gap: Sequence[Weighted],
    true: Sequence[Weighted | None],
    claimed: Sequence[Weighted | None],
) -> tuple[str, str]:
    """Kind and message where it is known what of the gap's terms the truth and the claim hold.

    ``true`` and ``claimed`` are parallel to ``gap``; None where the term does not occur.
    """
    lost = [t for t, c in zip(true, claimed) if t is not None and c is None]
    extra = [c for t, c in zip(true, claimed) if c is not None and t is None]
    changed = [(t, c) for t, c in zip(true, claimed) if t is not None and c is not None]
    place = f"in the cotangent of {argument}"
    if lost and not extra and not changed:
        return "missing term", f"{place}, missing: {joined(lost)}"
    if extra and not lost and not changed:
        return "extra term", f"{place}, a term does not belong: {joined(extra)}"
    if len(changed) == 1 and not lost and not extra:
        return _weight(place, *changed[0])
    if len(lost) == len(extra) == 1 and not changed:
        return _replaced(place, lost[0], extra[0])
    return "missing term", f"{place}, true − claimed = {joined(gap)}"


def _weight(place: str, true: Weighted, claimed: Weighted) -> tuple[str, str]:
    """The same term with another coefficient."""
    if abs(true.constant.value + claimed.constant.value) <= 1e-6 * abs(true.constant.value):
        return "sign", f"{place}, a term has the wrong sign: it should be {true}"
    kind = "mean or sum" if true.total != claimed.total else "factor"
    return kind, f"{place}, {claimed} stands where {true} belongs"


def _replaced(place: str, true: Weighted, claimed: Weighted) -> tuple[str, str]:
    """One term in the place of another: what they differ in."""
    stands = f"{place}, {claimed} stands where {true} belongs"
    t, c = true.term, claimed.term
    lost, extra = t.factors - c.factors, c.factors - t.factors
    if not lost and not extra:
        return _layout(stands, t, c)
    if t.frame.text != c.frame.text or t.frame.bar.text != c.frame.bar.text:
        return "wrong operand", stands
    if not extra:
        return "missing factor", f"{stands}: the factor {_product(lost)} is missing"
    if not lost:
        return "missing factor", f"{stands}: the factor {_product(extra)} is one too many"
    every = t.inner + t.outer + c.inner + c.outer
    bases = {part: atom.base for atom in every for part in atom.parts}
    same = {bases[text] for text in lost} == {bases[text] for text in extra}
    kind = "wrong function" if same else "wrong operand"
    return kind, f"{stands}: {_product(extra)} instead of {_product(lost)}"


def _layout(stands: str, true: Term, claimed: Term) -> tuple[str, str]:
    """The same factors, another reduction, product or order."""
    t, c = true.frame, claimed.frame
    if t.axes and c.axes:
        if t.axes != c.axes:
            return "axis", f"{stands}: reduced over another axis"
        return "axis", f"{stands}: the factors stand on the other side of the reduction"
    if t.final != c.final and "sum" in t.final and "sum" in c.final:
        return "axis", f"{stands}: summed over another axis"
    if t.relation != c.relation and {t.kind, c.kind} == {"reversal"}:  # two cumulative sums
        return "axis", f"{stands}: along another axis"
    if t.relation != c.relation:
        return "wrong operand", f"{stands}: another array belongs in this product"
    if t.axes or t.final != c.final:
        return "missing sum", f"{stands}: the reduction is missing"
    if c.axes:
        return "mean or sum", f"{stands}: a reduction does not belong"
    if "transpose" in (t.kind, c.kind):
        return "transpose", f"{stands}: a transpose is missing, or one too many"
    if "reversal" in (t.kind, c.kind):
        return "reversal", f"{stands}: an axis runs in the wrong direction"
    return "axis", stands


def _near(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-6 * abs(b)


def _opposite(a: Weighted, b: Weighted) -> bool:
    return a.total == b.total and _near(a.constant.value, -b.constant.value)


def joined(some: Sequence[Weighted]) -> str:
    """The terms one after another, with their signs."""
    parts = [str(some[0])]
    parts += [str(w) if w.constant.value < 0 else f"+ {w}" for w in some[1:]]
    return " ".join(parts)


def _product(factors: Counter[str]) -> str:
    powers = {1: "", 2: "²", 3: "³"}
    return " · ".join(text + powers.get(n, f"^{n}") for text, n in factors.items())
