"""Formulas as trees and numbers by their names, in two alphabets: for a message, and in Python.

>>> x, w = name("x"), name("w")
>>> formula = half * (1 - x**2) * (name("y_bar") @ w.transposed())
>>> print(formula)
½ · (1 − x²) · (y_bar @ w.T)
>>> formula.python()
'0.5 * (1 - x ** 2) * (y_bar @ w.T)'
>>> constant = name_of(-0.125, {8: "the size of axis 0 of x"})
>>> print(constant.text, constant.why)
−1/8 8 is the size of axis 0 of x
"""

from __future__ import annotations

import ast
import functools
import itertools
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np

SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
# How a function is called in Python: what is not here stands in jax.numpy under its own name.
CALLS = {
    "σ": "jax.nn.sigmoid({})",
    "softmax": "jax.nn.softmax({})",
    "solve": "jnp.linalg.solve({})",
    "norm": "jnp.linalg.norm({})",
    "reverse_cumsum": "jax.lax.cumsum({}, reverse=True)",
}


def _softmax(a: np.ndarray, axis: int) -> np.ndarray:
    powers = np.exp(a - a.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


# In NumPy; what is not here is a function of numpy under its own name.
VALUES: dict[str, Callable[..., Any]] = {
    "+": operator.add, "-": operator.sub, "/": operator.truediv, "**": operator.pow,
    "@": operator.matmul, "neg": operator.neg, "[]": operator.getitem, "√": np.sqrt,
    "*": lambda *factors: functools.reduce(operator.mul, factors),
    "T": lambda a, _: np.swapaxes(a, -1, -2),
    "reshape": np.reshape, "shaped": np.reshape,
    "σ": lambda a: 0.5 + 0.5 * np.tanh(a / 2),
    "softmax": _softmax, "norm": np.linalg.norm, "solve": np.linalg.solve,
    "reverse_cumsum": lambda a, axis: np.flip(np.cumsum(np.flip(a, axis), axis), axis),
}  # fmt: skip


@dataclass(frozen=True)
class Expr:
    """A formula is an operation on operands.

    Attributes:
        head: "name", "number", an operator, or the name of a function.
        args: the operands, and what else the operation needs (an exponent, a shape).
        keywords: of a function: name, value, and whether a message shows it.
    """

    head: str
    args: tuple[Any, ...]
    keywords: tuple[tuple[str, object, bool], ...] = ()

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.head, self.args, self.keywords))

    def __add__(self, other: Any) -> Expr:
        return Expr("+", (self, _expr(other)))

    def __radd__(self, other: Any) -> Expr:
        return Expr("+", (_expr(other), self))

    def __sub__(self, other: Any) -> Expr:
        return Expr("-", (self, _expr(other)))

    def __rsub__(self, other: Any) -> Expr:
        return Expr("-", (_expr(other), self))

    def __neg__(self) -> Expr:
        return Expr("neg", (self,))

    def __mul__(self, other: Expr) -> Expr:
        return Expr("*", (*_factors(self), *_factors(other)))

    def __truediv__(self, other: Any) -> Expr:
        return Expr("/", (self, _expr(other)))

    def __rtruediv__(self, other: Any) -> Expr:
        return Expr("/", (_expr(other), self))

    def __pow__(self, exponent: int) -> Expr:
        return Expr("**", (self, exponent))

    def __matmul__(self, other: Expr) -> Expr:
        return Expr("@", (self, other))

    def transposed(self, ndim: int = 2) -> Expr:
        """The matrix, or a stack of matrices, with the last two of its axes swapped."""
        return Expr("T", (self, "T" if ndim == 2 else "mT"))

    def of(self, values: Mapping[Expr, Expr]) -> Expr:
        """The formula with other expressions in the place of some of its own."""
        if self in values:
            return values[self]
        args = tuple(a.of(values) if isinstance(a, Expr) else a for a in self.args)
        return Expr(self.head, args, self.keywords)

    def called(self, function: str) -> Expr:
        """The same call of another function."""
        return Expr(function, self.args, self.keywords)

    @property
    def is_reciprocal(self) -> bool:
        """Whether it is one divided by something."""
        return self.head == "/" and self.args[0] == ONE

    @property
    def is_sum(self) -> bool:
        """Whether it is the sum or the difference of two quantities."""
        return self.head in ("+", "-")

    def value(self, arrays: Mapping[str, Any]) -> Any:
        """The formula's value in NumPy, its names standing for these arrays."""
        if self.head == "name":
            return arrays[self.args[0]]
        if self.head == "number":
            return float(self.args[1])
        args = [a.value(arrays) if isinstance(a, Expr) else a for a in self.args]
        function = VALUES.get(self.head) or getattr(np, self.head)
        return function(*args, **{key: value for key, value, _ in self.keywords})

    def __str__(self) -> str:
        match self.head, self.args:
            case "name", (text,):
                return text
            case "number", (shown, _):
                return shown
            case "+" | "-", (a, b):
                return f"({a} {'+' if self.head == '+' else '−'} {b})"
            case "neg", (a,):
                return f"−{a}"
            case "*", factors:
                return " · ".join(_in_product(f, factors) for f in factors)
            case "/", (a, b):
                return f"{_inside(a)}/{_inside(b)}"
            case "**", (Expr(head="/", args=(a, b)), n):
                return str(a / b**n)
            case "**", (Expr(head="**", args=(a, m)), n):
                return str(a ** (m * n))
            case "**", (a, n):
                return _inside(a) + str(n).translate(SUPERSCRIPTS)
            case "@", (a, b):
                return f"{_inside(a)} @ {_inside(b)}"
            case "T", (a, _):
                return f"{_inside(a)}.T"
            case "[]", (a, index):
                return f"({a})[{', '.join(map(str, index))}]"
            case "reshape", (a, shape):
                return f"{_inside(a)}.reshape{shape}"
            case "shaped", (a, _):
                return str(a)
            case "√", (a,):
                return f"√{_inside(a)}"
            case "abs", (a,):
                return f"|{a}|"
            case "tensordot", (a, b, _):
                return f"tensordot({a}, {b}) over all but their last axes"
        more = [f"{key}={value}" for key, value, shown in self.keywords if shown]
        return f"{self.head}({', '.join([*map(str, self.args), *more])})"

    def python(self) -> str:
        """The formula in Python, with ``jnp`` for ``jax.numpy``.

        Raises:
            SyntaxError: a name in it is none in Python.
        """
        return ast.unparse(ast.parse(self._python(), mode="eval"))

    def _python(self) -> str:
        written = [f"({a._python()})" if isinstance(a, Expr) else str(a) for a in self.args]
        match self.head, written:
            case "name", (text,):
                return text
            case "number", (_, text):
                return text
            case "+" | "-" | "*" | "/" | "**" | "@", operands:
                return self.head.join(operands)
            case "neg", (a,):
                return f"-{a}"
            case "T", (a, attribute):
                return f"{a}.{attribute}"
            case "[]", (a, index):
                return f"{a}[{index}]"
            case "reshape" | "shaped", (a, shape):
                return f"{a}.reshape({shape})"
            case "√", (a,):
                return f"jnp.sqrt({a})"
        more = [f"{key}={value!r}" for key, value, _ in self.keywords]
        call = CALLS.get(self.head, f"jnp.{self.head}({{}})")
        return call.format(", ".join([*written, *more]))


def name(text: str) -> Expr:
    """An array stands in a formula by its name."""
    return Expr("name", (text,))


def number(shown: str, python: str = "") -> Expr:
    """A number is shown in a message in one way, and may be written otherwise in Python."""
    return Expr("number", (shown, python or shown))


ONE, half = number("1"), number("½", "0.5")
PLACE = "□"  # no name that a person can write
X = name(PLACE)  # the place of an array in a form that many arrays may have


def call(function: str, *args: Any, **keywords: Any) -> Expr:
    """A function is called; a message leaves out keywords that end in an underscore."""
    named = ((k.rstrip("_"), v, not k.endswith("_")) for k, v in keywords.items())
    return Expr(function, args, tuple(named))


def product(factors: Sequence[Expr]) -> Expr | None:
    """A person gathers powers, in the order given; of no factors there is no product."""
    counts: dict[Expr, int] = {}
    for factor in factors:
        counts[factor] = counts.get(factor, 0) + 1
    powers = [factor if n == 1 else factor**n for factor, n in counts.items()]
    if len(powers) < 2:
        return powers[0] if powers else None
    return Expr("*", tuple(part for power in powers for part in _factors(power)))


def total(terms: Sequence[tuple[bool, Expr]]) -> str:
    """A message shows terms one after another; each comes with whether it is subtracted."""
    (negative, first), *rest = terms
    parts = [f"− {first}" if negative else str(first)]
    return " ".join([*parts, *(f"{'−' if minus else '+'} {term}" for minus, term in rest)])


def _expr(value: Any) -> Expr:
    return value if isinstance(value, Expr) else number(str(value))


def _factors(expr: Expr) -> tuple[Expr, ...]:
    return expr.args if expr.head == "*" else (expr,)


def _inside(expr: Expr) -> str:
    """An operand, in parentheses where it is made of several."""
    return f"({expr})" if expr.head in ("*", "@", "neg") else str(expr)


def _in_product(factor: Expr, factors: Sequence[Expr]) -> str:
    """A factor; a matrix product stands in parentheses, unless beside numbers alone."""
    alone = all(other.head == "number" for other in factors if other is not factor)
    return f"({factor})" if factor.head == "@" and not alone else str(factor)


# Numbers by their names.

CLOSE = 1e-6  # relative: constants that were rounded to float32 keep their names


@dataclass(frozen=True)
class NamedNumber:
    """A number has a name that a person would give it.

    Attributes:
        value: the number.
        magnitude: how its absolute value is written ("1/64", "√2"); without a name, its digits.
        oddity: how unlikely a person is to write it: 0 for 1, 2 and ½.
        why: where it comes from ("64 is the size of axis 1 of x"), or "".
        size: N, where the number is N or 1/N for a number of elements N.
        named: whether it has a name at all.
    """

    value: float
    magnitude: Expr
    oddity: int = 0
    why: str = ""
    size: int | None = None
    named: bool = True

    @property
    def text(self) -> str:
        """How it is shown, with its sign."""
        return f"−{self.magnitude}" if self.value < 0 else str(self.magnitude)

    @property
    def python(self) -> str:
        """How it is written in Python, with its sign."""
        written = self.magnitude.args[1]
        if self.value >= 0:
            return written
        return f"-({written})" if " " in written else f"-{written}"

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


# value, how it is shown and written, how odd it is
PLAIN = ((1.0, ONE, 0), (2.0, number("2"), 0), (0.5, half, 0))
SPECIAL = (
    (math.sqrt(2), number("√2", "jnp.sqrt(2)"), 3),
    (1 / math.sqrt(2), number("1/√2", "1 / jnp.sqrt(2)"), 3),
    (math.pi, number("π", "jnp.pi"), 2),
    (2 * math.pi, number("2π", "2 * jnp.pi"), 2),
    (1 / math.pi, number("1/π", "1 / jnp.pi"), 3),
    (1 / (2 * math.pi), number("1/(2π)", "1 / (2 * jnp.pi)"), 3),
    (math.sqrt(math.pi), number("√π", "jnp.sqrt(jnp.pi)"), 3),
    (math.sqrt(2 * math.pi), number("√(2π)", "jnp.sqrt(2 * jnp.pi)"), 2),
    (1 / math.sqrt(2 * math.pi), number("1/√(2π)", "1 / jnp.sqrt(2 * jnp.pi)"), 2),
    (math.sqrt(2 / math.pi), number("√(2/π)", "jnp.sqrt(2 / jnp.pi)"), 2),
    (math.sqrt(math.pi / 2), number("√(π/2)", "jnp.sqrt(jnp.pi / 2)"), 3),
    (2 / math.sqrt(math.pi), number("2/√π", "2 / jnp.sqrt(jnp.pi)"), 2),
    (math.log(2), number("ln 2", "jnp.log(2)"), 2),
    (1 / math.log(2), number("1/ln 2", "1 / jnp.log(2)"), 3),
    (math.log(10), number("ln 10", "jnp.log(10)"), 3),
    (math.e, number("e", "jnp.e"), 3),
    (1 / math.e, number("1/e", "1 / jnp.e"), 3),
    (4 * math.pi, number("4π", "4 * jnp.pi"), 2),
    (math.pi * 4 / 3, number("4π/3", "4 * jnp.pi / 3"), 2),
    *((math.pi / k, number(f"π/{k}", f"jnp.pi / {k}"), 2) for k in (2, 3, 4)),
    *((math.sqrt(k), number(f"√{k}", f"jnp.sqrt({k})"), 3) for k in (3, 5)),
    *((1 / math.sqrt(k), number(f"1/√{k}", f"1 / jnp.sqrt({k})"), 3) for k in (3, 5)),
)  # fmt: skip
# Made of a number of elements N: value, in letters, in digits, in Python, how odd it is.
OF_SIZES = (
    (lambda n: n, "N", "{n}", "{n}", 1),
    (lambda n: 1 / n, "1/N", "1/{n}", "1 / {n}", 1),
    (math.sqrt, "√N", "√{n}", "jnp.sqrt({n})", 2),
    (lambda n: 1 / math.sqrt(n), "1/√N", "1/√{n}", "1 / jnp.sqrt({n})", 2),
    (lambda n: n / (n - 1), "N/(N − 1)", "{n}/{less}", "{n} / {less}", 3),
    (lambda n: (n - 1) / n, "(N − 1)/N", "{less}/{n}", "{less} / {n}", 3),
    (lambda n: n - 1, "N − 1", "{less}", "{less}", 3),
    (lambda n: 1 / (n - 1), "1/(N − 1)", "1/{less}", "1 / {less}", 3),
    (lambda n: 2 / n, "2/N", "2/{n}", "2 / {n}", 3),
    (lambda n: n / 2, "N/2", "{n}/2", "{n} / 2", 3),
    (lambda n: n * n, "N²", "{squared}", "{squared}", 4),
    (lambda n: 1 / (n * n), "1/N²", "1/{squared}", "1 / {squared}", 4),
)


def name_of(value: float, known: Mapping[int, str], close: float = CLOSE) -> NamedNumber:
    """A number gets its plainest name; ``known`` are numbers of elements, and of what."""
    if value < 0:
        return replace(name_of(-value, known, close), value=value)
    near = (c for c in _candidates(known) if abs(c.value - value) <= close * value)
    found = next(near, None) or _fraction(value, 12, 16, close)
    return found or NamedNumber(value, number(f"{value:.6g}"), named=False)


def _candidates(known: Mapping[int, str]) -> Iterator[NamedNumber]:
    also = f"2 is {known[2]}" if 2 in known else ""  # where it may be a mean after all
    for value, text, oddity in PLAIN:
        yield NamedNumber(value, text, oddity, "" if value == 1 else also)
    yield from _of_sizes(known, 1)
    yield from _of_sizes(known, 2)
    for value, text in ((3.0, "3"), (1 / 3, "1/3"), (4.0, "4"), (0.25, "1/4")):
        yield NamedNumber(value, number(text), 1)
    yield from (NamedNumber(*row) for row in SPECIAL)
    for (n, what), (m, other) in itertools.permutations(known.items(), 2):
        if abs(n - m) != 1:  # that is N/(N − 1) more often than not
            yield NamedNumber(n / m, number(f"{n}/{m}"), 3, f"{n} is {what}, {m} {other}", n)
    yield from _of_sizes(known, 3)


def _of_sizes(known: Mapping[int, str], wanted: int) -> Iterator[NamedNumber]:
    for n, what in known.items():
        told = {
            "N − 1": f"one less than {n}, {what}", "1/(N − 1)": f"one more than {n - 1} is {what}"
        }  # fmt: skip
        for function, letters, digits, python, oddity in OF_SIZES:
            if oddity == wanted:
                shown = number(*_filled(n, digits, python))
                why = told.get(letters, f"{n} is {what}")
                yield NamedNumber(function(n), shown, oddity, why, n if oddity == 1 else None)


def named(value: float, sizes: Iterable[int] = (), close: float = CLOSE) -> NamedNumber | None:
    """A number is this constant, to a relative error; None if no one would have written it."""
    if not math.isfinite(value) or abs(value) > 1e9:
        return None
    if abs(value) < 1e-9:
        return NamedNumber(0.0, number("0"))
    if value < 0:
        found = named(-value, sizes, close)
        return found and replace(found, value=-found.value)
    rows = [NamedNumber(*row) for row in (*PLAIN, *SPECIAL)]
    for n in dict.fromkeys(n for n in sizes if n > 2):
        for function, letters, _, python, oddity in OF_SIZES:
            shown = number(f"{letters}, N = {n}", *_filled(n, python))
            rows.append(NamedNumber(function(n), shown, oddity))
    matches = [row for row in rows if abs(row.value - value) <= close * value]
    ratio = _fraction(value, 24, 1000, close)
    matches += [ratio] if ratio else []
    if matches:
        return min(matches, key=lambda row: row.oddity)
    rounded = float(f"{value:.6g}")
    digits = len(f"{rounded:.6g}".replace(".", "").strip("0"))
    if digits <= 5 and abs(rounded - value) <= close * value:
        return NamedNumber(rounded, number(f"{rounded:g}"), 2)
    square = _fraction(value * value, 24, 24 * 1000, 2 * close)
    if square and square.value < 1000:
        text = square.magnitude.args[0]
        root = number(f"√({text})", f"jnp.sqrt({text})")
        return NamedNumber(math.sqrt(square.value), root, 4)
    return None


def _filled(n: int, *texts: str) -> list[str]:
    return [text.format(n=n, less=n - 1, squared=n * n) for text in texts]


def _fraction(value: float, most: int, largest: int, close: float) -> NamedNumber | None:
    """The number as a fraction with a denominator of at most ``most``."""
    ratio = Fraction(value).limit_denominator(most)
    top, bottom = ratio.numerator, ratio.denominator
    if not ratio or top > largest or abs(float(ratio) - value) > close * value:
        return None
    oddity = 1 if top == 1 or max(top, bottom) <= 4 else 4
    return NamedNumber(float(ratio), number(str(ratio), str(ratio).replace("/", " / ")), oddity)


def shown(value: float) -> str:
    """A number without a name is shown to six digits."""
    return f"{value:.6g}"
