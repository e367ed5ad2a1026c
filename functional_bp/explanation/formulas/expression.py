"""An expression is the tree that a pullback's source is read into, and that is written down.

Sums, products and powers are brought into one form, the one that a person would write:

>>> x, y_bar = Symbol("x"), Symbol("y", bar=True)
>>> multiply(y_bar, divide(number(0.5), x)) == divide(y_bar, multiply(number(2), x))
True
>>> multiply(subtract(ONE, x), add(ONE, x)) == subtract(ONE, power(x, number(2)))
True

``OPERATORS`` says what operations are in mathematics: ``mul`` is a product, ``rsqrt`` one over a
root. An equation of a graph finds them by its primitive's name, a pullback by the names of the
functions that it calls. No gradient stands here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

LARGEST_DENOMINATOR = 12  # of a factor that is written as a fraction


class Expression:
    """An expression is a formula or a part of one; the subclasses say which."""


@dataclass(frozen=True)
class Number(Expression):
    """A number is rational, or a float that is no short fraction."""

    value: Fraction | float


@dataclass(frozen=True)
class Symbol(Expression):
    """A symbol stands for a variable, or for its cotangent if it has a ``bar``."""

    name: str
    bar: bool = False


@dataclass(frozen=True)
class Constant(Expression):
    """A constant has a sign of its own: π, the imaginary unit i, ∞."""

    name: str
    value: complex


@dataclass(frozen=True)
class ShapeOf(Expression):
    """A variable stands here of which only shape and dtype are asked for: ``x_t``."""

    name: str


@dataclass(frozen=True)
class Literal(Expression):
    """A Python value stands here that is no number of the formula: an axis, a shape, a word.

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
    """A piece of source is shown as it stands."""

    text: str


@dataclass(frozen=True)
class Sum(Expression):
    """A sum has two terms or more; one that is subtracted has a negative coefficient."""

    terms: tuple[Expression, ...]


@dataclass(frozen=True)
class Product(Expression):
    """A product is coefficient · above / below, entry by entry: the factors' order says nothing."""

    coefficient: Fraction
    above: tuple[Expression, ...]
    below: tuple[Expression, ...] = ()


@dataclass(frozen=True)
class MatrixProduct(Expression):
    """Matrices and vectors are multiplied, one after another."""

    factors: tuple[Expression, ...]


@dataclass(frozen=True)
class Transpose(Expression):
    """A matrix is transposed: xᵀ."""

    base: Expression


@dataclass(frozen=True)
class Power(Expression):
    """A base is raised to an exponent."""

    base: Expression
    exponent: Expression


@dataclass(frozen=True)
class Indexed(Expression):
    """A symbol has one letter per axis: x_ab."""

    base: Expression
    subscript: str


@dataclass(frozen=True)
class Item(Expression):
    """A part is taken of an array: x[1:3]."""

    base: Expression
    index: str


@dataclass(frozen=True)
class Total(Expression):
    """The body is summed over letters, or (``over`` is "") over all entries: Σ."""

    over: str
    body: Expression


@dataclass(frozen=True)
class Application(Expression):
    """A function is applied to arguments; ``function`` is the Python object, where it is known."""

    name: str
    arguments: tuple[Expression, ...]
    keywords: tuple[tuple[str, Expression], ...] = ()
    known: bool = False  # a function of the notation: cos, ln, √
    function: Callable[..., Any] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Comparison(Expression):
    """Two sides are compared: left < right and its like."""

    left: Expression
    sign: str
    right: Expression


@dataclass(frozen=True)
class Truth(Expression):
    """A condition is a number, [condition]: 1 where it holds, else 0."""

    condition: Expression


@dataclass(frozen=True)
class Choice(Expression):
    """A choice is ``chosen`` where the condition holds, else ``otherwise``."""

    condition: Expression
    chosen: Expression
    otherwise: Expression


ZERO, ONE, TWO = Number(Fraction(0)), Number(Fraction(1)), Number(Fraction(2))
PI, IMAGINARY = Constant("π", 3.141592653589793), Constant("i", 1j)


def children(expression: Expression) -> Iterator[Expression]:
    """Go through the expressions directly inside one."""
    for value in vars(expression).values():
        for item in value if isinstance(value, tuple) else (value,):
            item = item[1] if isinstance(item, tuple) and len(item) == 2 else item
            if isinstance(item, Expression):
                yield item


def rebuilt(expression: Expression, change: Callable[[Expression], Expression]) -> Expression:
    """Return the same node, with ``change`` applied to each expression directly inside."""
    if isinstance(expression, Literal):  # its value may be a tuple of another kind
        return expression

    def changed(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(changed, value))
        return change(value) if isinstance(value, Expression) else value

    return type(expression)(**{name: changed(value) for name, value in vars(expression).items()})


def walk(expression: Expression) -> Iterator[Expression]:
    """Go through the expression and all inside it."""
    yield expression
    for child in children(expression):
        yield from walk(child)


# Sums, products and powers in one form.


def number(value: Any) -> Expression:
    """Return a number as an expression; a float as the short fraction that it is nearest to."""
    if isinstance(value, complex):
        return add(number(value.real), multiply(number(value.imag), IMAGINARY))
    if isinstance(value, Fraction | int):
        return Number(Fraction(value))
    value = float(value)
    if value != value or value in (float("inf"), float("-inf")):
        return Number(value)
    return Number(Fraction(repr(value)))


def is_zero(expression: Expression) -> bool:
    """Tell whether it is the number 0."""
    return isinstance(expression, Number) and expression.value == 0


def _parts(expression: Expression) -> tuple[Fraction, list[Expression], list[Expression]]:
    """Coefficient, factors above and factors below the line."""
    match expression:
        case Number(Fraction() as value):
            return value, [], []
        case Product(coefficient, above, below):
            return coefficient, list(above), list(below)
        case Power(base, Number(Fraction() as value)) if value < 0:
            return Fraction(1), [], [power(base, Number(-value))]
        case _:
            return Fraction(1), [expression], []


def _product(coefficient: Fraction, above: list[Expression], below: list[Expression]) -> Expression:
    """A product in its form: zero is zero, equal bases are one power, x/x is gone."""
    if coefficient == 0:
        return ZERO
    exponents: Counter[Expression] = Counter()  # in the order of the factors
    for side, sign in ((_squares(above), 1), (_squares(below), -1)):
        for factor in side:
            match factor:
                case Power(base, Number(Fraction(denominator=1) as n)):
                    exponents[base] += int(n) * sign
                case _:
                    exponents[factor] += sign
    raised = lambda base, n: base if n == 1 else Power(base, Number(Fraction(n)))
    top = tuple(raised(base, n) for base, n in exponents.items() if n > 0)
    bottom = tuple(raised(base, -n) for base, n in exponents.items() if n < 0)
    if not bottom and not top:
        return Number(coefficient)
    if not bottom and len(top) == 1 and coefficient == 1:
        return top[0]
    return Product(coefficient, top, bottom)


def _squares(factors: list[Expression]) -> list[Expression]:
    """The factors, with (a − b)(a + b) as a² − b²."""
    for i, left in enumerate(factors):
        for j, right in enumerate(factors):
            if i != j and isinstance(left, Sum) and isinstance(right, Sum):
                (a, *b), terms = left.terms, list(right.terms)
                if len(b) == 1 and sorted(map(repr, terms)) == sorted(map(repr, (a, negate(b[0])))):
                    square = lambda x: power(x, TWO)
                    rest = [f for k, f in enumerate(factors) if k not in (i, j)]
                    difference = subtract(square(a), square(b[0]))
                    return [*rest[: min(i, j)], difference, *rest[min(i, j) :]]
    return factors


def multiply(*factors: Expression) -> Expression:
    """Multiply the factors, entry by entry."""
    coefficient, above, below = Fraction(1), [], []
    for factor in factors:
        c, a, b = _parts(factor)
        coefficient, above, below = coefficient * c, above + a, below + b
    return _product(coefficient, above, below)


def divide(numerator: Expression, denominator: Expression) -> Expression:
    """Divide them; by zero, it is a call of "div" that is left as it stands."""
    c, above, below = _parts(denominator)
    if c == 0:
        return Application("div", (numerator, denominator))
    inverse = _product(1 / c, below, above)
    return multiply(numerator, inverse)


def negate(expression: Expression) -> Expression:
    """Return the expression with the other sign."""
    return multiply(Number(Fraction(-1)), expression)


def add(*terms: Expression) -> Expression:
    """Add the terms; factors that all of them share stand before a bracket."""
    flat: list[Expression] = []
    for term in terms:
        inner = term.terms if isinstance(term, Sum) else (term,)
        flat += [t for t in inner if not is_zero(t)]
    numbers = [t.value for t in flat if isinstance(t, Number)]
    if len(numbers) > 1:
        rest = [t for t in flat if not isinstance(t, Number)]
        return add(*rest, Number(sum(numbers, Fraction(0))))
    if not flat:
        return ZERO
    if len(flat) == 1:
        return flat[0]
    split = [_parts(t) for t in flat]
    shared = Counter(split[0][1])
    for _, above, _ in split[1:]:
        shared &= Counter(above)
    if not shared:
        return Sum(tuple(flat))
    left = [(c, Counter(above) - shared, below) for c, above, below in split]
    rest = [_product(c, list(above.elements()), below) for c, above, below in left]
    return multiply(*shared.elements(), add(*rest))


def subtract(left: Expression, right: Expression) -> Expression:
    """Return left − right."""
    if isinstance(right, Sum):
        return add(left, *(negate(term) for term in right.terms))
    return add(left, negate(right))


def power(base: Expression, exponent: Expression) -> Expression:
    """Return base^exponent; with a whole exponent, powers and products are multiplied out."""
    match base, exponent:
        case _, Number(Fraction() as n) if n == 1:
            return base
        case _, Number(Fraction() as n) if n == 0:
            return ONE
        case Number(Fraction() as b), Number(Fraction(denominator=1) as n) if b != 0:
            return Number(Fraction(b ** int(n)))
        case Power(inner, Number(Fraction(denominator=1) as m)), Number(
            Fraction(denominator=1) as n
        ):
            return power(inner, Number(m * n))
        case Product(c, above, below), Number(Fraction(denominator=1) as n) if n > 0:
            top = [power(factor, exponent) for factor in above]
            return _product(c ** int(n), top, [power(factor, exponent) for factor in below])
        case _:
            return Power(base, exponent)


def matrix_product(left: Expression, right: Expression) -> Expression:
    """Return the product of matrices; products of several stand in one row."""
    factors = left.factors if isinstance(left, MatrixProduct) else (left,)
    return MatrixProduct((*factors, right))


def choose(condition: Expression, chosen: Expression, otherwise: Expression) -> Expression:
    """Return a choice; with a zero on one side, it is a product with [condition]."""
    if chosen == otherwise:
        return chosen
    if is_zero(otherwise):
        return multiply(chosen, Truth(condition))
    if is_zero(chosen):
        return multiply(otherwise, Truth(opposite(condition)))
    return Choice(condition, chosen, otherwise)


OPPOSITE = {"=": "≠", "≠": "=", "<": "≥", "≥": "<", ">": "≤", "≤": ">"}


def opposite(condition: Expression) -> Expression:
    """Return the condition that holds where this one does not."""
    match condition:
        case Comparison(left, sign, right) if sign in OPPOSITE:
            return Comparison(left, OPPOSITE[sign], right)
        case Application("not", (inner,)):
            return inner
        case _:
            return Application("not", (condition,), known=True)


def substitute(
    expression: Expression, values: Mapping[Any, Expression], in_form: bool = True
) -> Expression:
    """Return the expression with some of its parts replaced, all at once, in its form or not."""
    if expression in values:
        return values[expression]
    again = lambda e: substitute(e, values, in_form)
    if not in_form:
        return rebuilt(expression, again)
    match expression:
        case Sum(terms):
            return add(*map(again, terms))
        case Product(coefficient, above, below):
            top = multiply(Number(coefficient), *map(again, above))
            return divide(top, multiply(*map(again, below))) if below else top
        case Power(base, exponent):
            return power(again(base), again(exponent))
        case Choice(condition, chosen, otherwise):
            return choose(again(condition), again(chosen), again(otherwise))
    return rebuilt(expression, again)


def put(expression: Expression, values: Mapping[Any, Expression]) -> Expression:
    """Substitute, but keep a variable that would cancel: z − z is no 0 where z may be NaN."""
    made = substitute(expression, values)
    symbols = lambda e: {p for p in walk(e) if isinstance(p, Symbol)}
    wanted = set[Symbol]().union(*(symbols(values.get(s, s)) for s in symbols(expression)))
    return made if wanted <= symbols(made) else substitute(expression, values, in_form=False)


# What operations are in mathematics.

Builder = Callable[..., Expression]

# Functions that have a name in mathematics, by their names in jax.lax, jax.numpy and numpy.
FUNCTIONS = {
    "exp": "exp", "log": "ln", "sqrt": "√", "sin": "sin", "cos": "cos", "tan": "tan",
    "sinh": "sinh", "cosh": "cosh", "tanh": "tanh", "asin": "arcsin", "acos": "arccos",
    "atan": "arctan", "asinh": "arsinh", "acosh": "arcosh", "atanh": "artanh", "arcsin": "arcsin",
    "arccos": "arccos", "arctan": "arctan", "abs": "abs", "sign": "sign", "floor": "floor",
    "ceil": "ceil", "logistic": "σ", "sigmoid": "σ", "erf": "erf", "erfc": "erfc",
    "erf_inv": "erf⁻¹", "real": "Re", "imag": "Im", "conj": "conj", "max": "max", "min": "min",
    "lgamma": "ln Γ", "digamma": "ψ", "cbrt": "∛", "log2": "log₂", "atan2": "atan2",
    "maximum": "max", "minimum": "min", "reduce_max": "max", "reduce_min": "min",
}  # fmt: skip

# The same functions on numbers, to compare two formulas.
NUMERIC: dict[str, Callable[..., object]] = {
    "exp": np.exp, "ln": np.log, "√": np.sqrt, "sin": np.sin, "cos": np.cos, "tan": np.tan,
    "sinh": np.sinh, "cosh": np.cosh, "tanh": np.tanh, "arcsin": np.arcsin, "arccos": np.arccos,
    "arctan": np.arctan, "arsinh": np.arcsinh, "arcosh": np.arccosh, "artanh": np.arctanh,
    "abs": np.abs, "sign": np.sign, "floor": np.floor, "ceil": np.ceil, "Re": np.real,
    "Im": np.imag, "conj": np.conj, "σ": lambda x: 1 / (1 + np.exp(-x)), "log₂": np.log2,
    "∛": np.cbrt, "atan2": np.arctan2, "max": np.maximum, "min": np.minimum,
    "not": np.logical_not, "and": np.logical_and, "or": np.logical_or,
}  # fmt: skip


def compare(sign: str) -> Builder:
    """Return the builder of a comparison."""
    return lambda left, right: Comparison(left, sign, right)


def apply(name: str) -> Builder:
    """Return the builder of a call of a function with a name in mathematics."""
    return lambda *arguments: Application(name, arguments, known=True)


def _select_n(which: Expression, *cases: Expression) -> Expression:
    if len(cases) == 1:
        return cases[0]
    if len(cases) == 2:  # the case 0 first
        return choose(which, cases[1], cases[0])
    return Application("select", (which, *cases))


# By the name of the function or primitive.
OPERATORS: dict[str, Builder] = {
    "add": add, "add_any": add, "sub": subtract, "subtract": subtract, "mul": multiply,
    "multiply": multiply, "div": divide, "divide": divide, "true_divide": divide, "neg": negate,
    "negative": negate, "square": lambda x: power(x, TWO), "pow": power, "power": power,
    "float_power": power, "integer_pow": power, "reciprocal": lambda x: divide(ONE, x),
    "rsqrt": lambda x: divide(ONE, apply("√")(x)),
    "one_minus_square": lambda x: subtract(ONE, power(x, TWO)),
    "exp2": lambda x: power(TWO, x), "expm1": lambda x: subtract(apply("exp")(x), ONE),
    "log1p": lambda x: apply("ln")(add(ONE, x)),
    "complex": lambda x, y: add(x, multiply(y, IMAGINARY)),
    "eq": compare("="), "ne": compare("≠"), "lt": compare("<"), "le": compare("≤"),
    "gt": compare(">"), "ge": compare("≥"), "equal": compare("="), "greater": compare(">"),
    "less": compare("<"), "not": opposite, "bitwise_not": opposite, "logical_not": opposite,
    "and": apply("and"), "bitwise_and": apply("and"), "logical_and": apply("and"),
    "or": apply("or"), "bitwise_or": apply("or"), "logical_or": apply("or"),
    "select": choose, "where": choose, "select_n": _select_n,
    **{name: apply(sign) for name, sign in FUNCTIONS.items()},
}  # fmt: skip

# Functions of which the formula shows the first argument alone: they change dtype or place.
TRANSPARENT = {
    "convert_element_type", "asarray", "array", "stop_gradient", "astype", "copy", "stage",
    "float", "tuple", "list", "optimization_barrier", "name",
}  # fmt: skip
# Functions of an array's type, whose value does not depend on it.
FILLED: dict[str, Builder] = {
    "full_like": lambda x, value: value,
    "zeros_like": lambda x: ZERO,
    "ones_like": lambda x: ONE,
    "full": lambda shape, value: value,
}
