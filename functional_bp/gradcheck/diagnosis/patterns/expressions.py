"""Formulas as trees, written in two alphabets: in symbols for a message, in Python for a repair.

>>> x, w = name("x"), name("w")
>>> formula = half * (1 - x**2) * (name("y_bar") @ w.transposed())
>>> print(formula)
½ · (1 − x²) · (y_bar @ w.T)
>>> formula.python()
'0.5 * (1 - x ** 2) * (y_bar @ w.T)'
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
# How a function is called in Python: what is not here stands in jax.numpy under its own name.
CALLS = {
    "σ": "jax.nn.sigmoid({})",
    "softmax": "jax.nn.softmax({})",
    "solve": "jnp.linalg.solve({})",
    "norm": "jnp.linalg.norm({})",
    "reverse_cumsum": "jax.lax.cumsum({}, reverse=True)",
}


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
