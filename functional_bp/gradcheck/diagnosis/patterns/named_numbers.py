"""The numbers that a gradient is off by have names: 2, ½, N, 1/N, √d, N/(N−1), …."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

from functional_bp.gradcheck.diagnosis.patterns.evidence import Evidence
from functional_bp.gradcheck.diagnosis.patterns.expressions import ONE, Expr, half, number

CLOSE = 1e-6  # relative: constants that were rounded to float32 keep their names
PLAIN = {1.0: ONE, 2.0: number("2"), 0.5: half}
SMALL = {  # unless it is a size or its root
    3.0: number("3"), 1 / 3: number("1/3"), 4.0: number("4"), 0.25: number("1/4"),
}  # fmt: skip
SPECIAL = {
    math.sqrt(2): number("√2", "jnp.sqrt(2)"),
    1 / math.sqrt(2): number("1/√2", "1 / jnp.sqrt(2)"),
    math.pi: number("π", "jnp.pi"),
    2 * math.pi: number("2π", "2 * jnp.pi"),
    1 / math.pi: number("1/π", "1 / jnp.pi"),
    1 / (2 * math.pi): number("1/(2π)", "1 / (2 * jnp.pi)"),
    math.sqrt(math.pi): number("√π", "jnp.sqrt(jnp.pi)"),
    math.sqrt(2 * math.pi): number("√(2π)", "jnp.sqrt(2 * jnp.pi)"),
    1 / math.sqrt(2 * math.pi): number("1/√(2π)", "1 / jnp.sqrt(2 * jnp.pi)"),
    math.sqrt(2 / math.pi): number("√(2/π)", "jnp.sqrt(2 / jnp.pi)"),
    math.sqrt(math.pi / 2): number("√(π/2)", "jnp.sqrt(jnp.pi / 2)"),
    2 / math.sqrt(math.pi): number("2/√π", "2 / jnp.sqrt(jnp.pi)"),
    math.log(2): number("ln 2", "jnp.log(2)"),
    1 / math.log(2): number("1/ln 2", "1 / jnp.log(2)"),
    math.e: number("e", "jnp.e"),
    1 / math.e: number("1/e", "1 / jnp.e"),
}


@dataclass(frozen=True)
class NamedNumber:
    """A number has a name that a person would give it.

    Attributes:
        value: the number.
        magnitude: how its absolute value is written ("1/64", "√2"); without a name, its digits.
        why: where it comes from ("64 is the size of axis 1 of x"), or "".
        size: N, where the number is N or 1/N for a number of elements N.
        named: whether it has a name at all.
    """

    value: float
    magnitude: Expr
    why: str = ""
    size: int | None = None
    named: bool = True

    @property
    def text(self) -> str:
        """How it is written, with its sign."""
        return f"−{self.magnitude}" if self.value < 0 else str(self.magnitude)

    @property
    def is_unit(self) -> bool:
        """Whether it is 1 or −1."""
        return self.magnitude == ONE

    @property
    def is_one(self) -> bool:
        """Whether it is 1."""
        return self.is_unit and self.value > 0

    @property
    def factor(self) -> str:
        """How it stands before what it multiplies: "" for 1, "−" for −1, "2 · " for 2."""
        if self.is_unit:
            return "−" if self.value < 0 else ""
        return f"{self.text} · "


def sizes(evidence: Evidence) -> dict[int, str]:
    """A mean or a scale could have been taken over these numbers of elements; each says of what."""
    found: dict[int, str] = {}
    case = evidence.given
    arrays = {evidence.argument: case.true} | dict(case.bars) | dict(case.known)
    arrays |= dict(case.discrete)
    for name, array in arrays.items():
        for axis, n in enumerate(array.shape):
            found.setdefault(n, f"the size of axis {axis} of {name}")
    for name, array in arrays.items():
        found.setdefault(array.size, f"the number of elements of {name}")
        for a, b in itertools.combinations(range(array.ndim), 2):
            n = array.shape[a] * array.shape[b]
            found.setdefault(n, f"the size of axes {a} and {b} of {name}")
    return {n: what for n, what in found.items() if n > 1}


def name_of(value: float, known: dict[int, str], close: float = CLOSE) -> NamedNumber:
    """A number gets its plainest name; ``close`` is its relative error."""
    if value < 0:
        constant = name_of(-value, known, close)
        return replace(constant, value=value)
    for constant in _candidates(known):
        if abs(constant.value - value) <= close * value:
            return constant
    ratio = Fraction(value).limit_denominator(12)
    if ratio and ratio.numerator <= 16 and abs(float(ratio) - value) <= close * value:
        return NamedNumber(value, number(str(ratio)))
    return NamedNumber(value, number(f"{value:.6g}"), named=False)


def _candidates(known: dict[int, str]) -> Iterator[NamedNumber]:
    also = f"2 is {known[2]}" if 2 in known else ""  # where it may be a mean after all
    yield from (NamedNumber(v, text, "" if v == 1 else also) for v, text in PLAIN.items())
    for n, what in known.items():
        why = f"{n} is {what}"
        yield NamedNumber(n, number(f"{n}"), why, n)
        yield NamedNumber(1 / n, number(f"1/{n}"), why, n)
    for n, what in known.items():
        why = f"{n} is {what}"
        yield NamedNumber(math.sqrt(n), number(f"√{n}", f"jnp.sqrt({n})"), why)
        yield NamedNumber(1 / math.sqrt(n), number(f"1/√{n}", f"1 / jnp.sqrt({n})"), why)
    yield from (NamedNumber(value, text) for value, text in (SMALL | SPECIAL).items())
    for (n, what), (m, other) in itertools.permutations(known.items(), 2):
        if abs(n - m) != 1:  # that is N/(N − 1) more often than not
            yield NamedNumber(n / m, number(f"{n}/{m}"), f"{n} is {what}, {m} {other}", n)
    for n, what in known.items():
        why = f"{n} is {what}"
        yield NamedNumber(n / (n - 1), number(f"{n}/{n - 1}"), why)
        yield NamedNumber((n - 1) / n, number(f"{n - 1}/{n}"), why)
        if n > 2:
            yield NamedNumber(n - 1, number(f"{n - 1}"), f"one less than {n}, {what}")
            yield NamedNumber(1 / (n - 1), number(f"1/{n - 1}"), f"one more than {n - 1} is {what}")
        yield NamedNumber(2 / n, number(f"2/{n}"), why)
        yield NamedNumber(n / 2, number(f"{n}/2"), why)
