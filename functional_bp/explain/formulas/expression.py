"""Expressions: the tree that a pullback's source is read into, and that the notations write."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import Any

LARGEST_DENOMINATOR = 12  # of a factor that is written as a fraction


class Expression:
    """A formula or a part of one; see the subclasses."""


@dataclass(frozen=True)
class Number(Expression):
    """A rational number, or a float that is no short fraction."""

    value: Fraction | float


@dataclass(frozen=True)
class Symbol(Expression):
    """A variable, or its cotangent if it has a ``bar``."""

    name: str
    bar: bool = False


@dataclass(frozen=True)
class Constant(Expression):
    """π, the imaginary unit i, ∞."""

    name: str
    value: complex


@dataclass(frozen=True)
class Shape(Expression):
    """A variable of which only shape and dtype are asked for: ``x_t``."""

    name: str


@dataclass(frozen=True)
class Literal(Expression):
    """A Python value that is no number of the formula: an axis, a shape, a word.

    Attributes:
        value: the value.
        label: the parameter that it was given for, "" for none.
    """

    value: Any
    label: str = ""

    def __hash__(self) -> int:
        return hash((repr(self.value), self.label))

    def __eq__(self, other: object) -> bool:
        # a value may be an array, which == does not compare as a whole
        if not isinstance(other, Literal):
            return NotImplemented
        return (repr(self.value), self.label) == (repr(other.value), other.label)


@dataclass(frozen=True)
class Verbatim(Expression):
    """A piece of source that is shown as it stands."""

    text: str


@dataclass(frozen=True)
class Sum(Expression):
    """Two terms or more; a term that is subtracted is a product with a negative coefficient."""

    terms: tuple[Expression, ...]


@dataclass(frozen=True)
class Product(Expression):
    """coefficient · above / below, entry by entry: the order of the factors says nothing."""

    coefficient: Fraction
    above: tuple[Expression, ...]
    below: tuple[Expression, ...] = ()


@dataclass(frozen=True)
class MatrixProduct(Expression):
    """Matrices and vectors, one after another."""

    factors: tuple[Expression, ...]


@dataclass(frozen=True)
class Transpose(Expression):
    """xᵀ."""

    base: Expression


@dataclass(frozen=True)
class Power(Expression):
    """base^exponent."""

    base: Expression
    exponent: Expression


@dataclass(frozen=True)
class Indexed(Expression):
    """A symbol with one letter per axis: x_ab."""

    base: Expression
    subscript: str


@dataclass(frozen=True)
class Item(Expression):
    """A part of an array: x[1:3]."""

    base: Expression
    index: str


@dataclass(frozen=True)
class Total(Expression):
    """Σ over letters of the body, or (``over`` is "") over all entries."""

    over: str
    body: Expression


@dataclass(frozen=True)
class Call(Expression):
    """A function of arguments. ``function`` is the Python object, where it is known."""

    name: str
    arguments: tuple[Expression, ...]
    keywords: tuple[tuple[str, Expression], ...] = ()
    known: bool = False  # a function of the notation: cos, ln, √
    function: Callable[..., Any] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Comparison(Expression):
    """left < right and its like."""

    left: Expression
    sign: str
    right: Expression


@dataclass(frozen=True)
class Truth(Expression):
    """[condition]: 1 where it holds, else 0."""

    condition: Expression


@dataclass(frozen=True)
class Choice(Expression):
    """``chosen`` where the condition holds, else ``otherwise``."""

    condition: Expression
    chosen: Expression
    otherwise: Expression


ZERO, ONE = Number(Fraction(0)), Number(Fraction(1))
PI, IMAGINARY = Constant("π", 3.141592653589793), Constant("i", 1j)


def children(expression: Expression) -> Iterator[Expression]:
    """The expressions directly inside one."""
    for entry in fields(expression):  # pyright: ignore[reportArgumentType]
        value = getattr(expression, entry.name)
        for item in value if isinstance(value, tuple) else (value,):
            item = item[1] if isinstance(item, tuple) and len(item) == 2 else item
            if isinstance(item, Expression):
                yield item


def walk(expression: Expression) -> Iterator[Expression]:
    """The expression and all inside it."""
    yield expression
    for child in children(expression):
        yield from walk(child)
