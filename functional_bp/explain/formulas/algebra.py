"""Sums, products and powers, brought into one form: what is written is what a person would write.

>>> x, y_bar = Symbol("x"), Symbol("y", bar=True)
>>> multiply(y_bar, divide(number(0.5), x)) == divide(y_bar, multiply(number(2), x))
True
>>> multiply(subtract(ONE, x), add(ONE, x)) == subtract(ONE, power(x, number(2)))
True
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import fields, replace
from fractions import Fraction
from typing import Any

from functional_bp.explain.formulas.expression import (
    IMAGINARY,
    ONE,
    ZERO,
    Call,
    Choice,
    Comparison,
    Expression,
    Indexed,
    Item,
    MatrixProduct,
    Number,
    Power,
    Product,
    Sum,
    Symbol,
    Total,
    Transpose,
    Truth,
    walk,
)


def number(value: Any) -> Expression:
    """A number as an expression; a float as the short fraction that it is nearest to."""
    if isinstance(value, complex):
        return add(number(value.real), multiply(number(value.imag), IMAGINARY))
    if isinstance(value, Fraction | int):
        return Number(Fraction(value))
    value = float(value)
    if value != value or value in (float("inf"), float("-inf")):
        return Number(value)
    return Number(Fraction(repr(value)))


def is_zero(expression: Expression) -> bool:
    """Whether it is the number 0."""
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
    above, below = _squares(above), _squares(below)
    exponents: Counter[Expression] = Counter()
    order: dict[Expression, None] = {}
    for side, sign in ((above, 1), (below, -1)):
        for factor in side:
            match factor:
                case Power(base, Number(Fraction(denominator=1) as n)):
                    base, times = base, int(n) * sign
                case _:
                    base, times = factor, sign
            exponents[base] += times
            order.setdefault(base)
    raised = lambda base, n: base if n == 1 else Power(base, Number(Fraction(n)))  # noqa: E731
    top = tuple(raised(b, exponents[b]) for b in order if exponents[b] > 0)
    bottom = tuple(raised(b, -exponents[b]) for b in order if exponents[b] < 0)
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
                    square = lambda x: power(x, Number(Fraction(2)))  # noqa: E731
                    rest = [f for k, f in enumerate(factors) if k not in (i, j)]
                    difference = subtract(square(a), square(b[0]))
                    return [*rest[: min(i, j)], difference, *rest[min(i, j) :]]
    return factors


def multiply(*factors: Expression) -> Expression:
    """Their product, entry by entry."""
    coefficient, above, below = Fraction(1), [], []
    for factor in factors:
        c, a, b = _parts(factor)
        coefficient, above, below = coefficient * c, above + a, below + b
    return _product(coefficient, above, below)


def divide(numerator: Expression, denominator: Expression) -> Expression:
    """Their quotient; by zero, a call of "div" that is left as it stands."""
    c, above, below = _parts(denominator)
    if c == 0:
        return Call("div", (numerator, denominator))
    inverse = _product(1 / c, below, above)
    return multiply(numerator, inverse)


def negate(expression: Expression) -> Expression:
    """The expression with the other sign; of a sum, every term."""
    return multiply(Number(Fraction(-1)), expression)


def add(*terms: Expression) -> Expression:
    """Their sum; factors that all terms share stand before a bracket."""
    flat: list[Expression] = []
    for term in terms:
        inner = term.terms if isinstance(term, Sum) else (term,)
        flat += [t for t in inner if not is_zero(t)]
    numbers = [i for i, t in enumerate(flat) if isinstance(t, Number)]
    if len(numbers) > 1:
        total = Number(sum((flat[i].value for i in numbers), Fraction(0)))  # pyright: ignore[reportAttributeAccessIssue]
        rest = [t for t in flat if not isinstance(t, Number)]
        return add(*rest, total)
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
    common = list(shared.elements())
    rest = [_product(c, _without(above, common), below) for c, above, below in split]
    return multiply(*common, add(*rest))


def _without(factors: list[Expression], taken: list[Expression]) -> list[Expression]:
    left = Counter(factors) - Counter(taken)
    return list(left.elements())


def subtract(left: Expression, right: Expression) -> Expression:
    """left − right."""
    if isinstance(right, Sum):
        return add(left, *(negate(term) for term in right.terms))
    return add(left, negate(right))


def power(base: Expression, exponent: Expression) -> Expression:
    """base^exponent; powers of powers and products are multiplied out for whole exponents."""
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


def choose(condition: Expression, chosen: Expression, otherwise: Expression) -> Expression:
    """A choice; with a zero on one side, a product with [condition]."""
    if chosen == otherwise:
        return chosen
    if is_zero(otherwise):
        return multiply(chosen, Truth(condition))
    if is_zero(chosen):
        return multiply(otherwise, Truth(opposite(condition)))
    return Choice(condition, chosen, otherwise)


OPPOSITE = {"=": "≠", "≠": "=", "<": "≥", "≥": "<", ">": "≤", "≤": ">"}


def opposite(condition: Expression) -> Expression:
    """The condition that holds where this one does not."""
    match condition:
        case Comparison(left, sign, right) if sign in OPPOSITE:
            return Comparison(left, OPPOSITE[sign], right)
        case Call("not", (inner,)):
            return inner
        case _:
            return Call("not", (condition,), known=True)


def substitute(expression: Expression, values: Mapping[Any, Expression]) -> Expression:
    """The expression with some of its parts replaced, all at once."""
    if expression in values:
        return values[expression]
    again = lambda e: substitute(e, values)  # noqa: E731
    match expression:
        case Sum(terms):
            return add(*map(again, terms))
        case Product(coefficient, above, below):
            top = multiply(Number(coefficient), *map(again, above))
            return divide(top, multiply(*map(again, below))) if below else top
        case Power(base, exponent):
            return power(again(base), again(exponent))
        case MatrixProduct(factors):
            return MatrixProduct(tuple(map(again, factors)))
        case Call():
            keywords = tuple((key, again(value)) for key, value in expression.keywords)
            arguments = tuple(map(again, expression.arguments))
            return replace(expression, arguments=arguments, keywords=keywords)
        case Transpose(base):
            return Transpose(again(base))
        case Indexed(base, subscript):
            return Indexed(again(base), subscript)
        case Item(base, index):
            return Item(again(base), index)
        case Total(over, body):
            return Total(over, again(body))
        case Comparison(left, sign, right):
            return Comparison(again(left), sign, again(right))
        case Truth(condition):
            return Truth(again(condition))
        case Choice(condition, chosen, otherwise):
            return choose(again(condition), again(chosen), again(otherwise))
        case _:
            return expression


def put(expression: Expression, values: Mapping[Any, Expression]) -> Expression:
    """``substitute``, but a variable that would cancel stays: z − z is no 0 where z may be NaN."""
    made = substitute(expression, values)
    symbols = lambda e: {p for p in walk(e) if isinstance(p, Symbol)}  # noqa: E731
    wanted = set[Symbol]().union(*(symbols(values.get(s, s)) for s in symbols(expression)))
    return made if wanted <= symbols(made) else _put_as_it_stands(expression, values)


def _put_as_it_stands(expression: Any, values: Mapping[Any, Expression]) -> Any:
    if isinstance(expression, tuple):
        return tuple(_put_as_it_stands(item, values) for item in expression)
    if not isinstance(expression, Expression):
        return expression
    if expression in values:
        return values[expression]
    inner = {f.name: getattr(expression, f.name) for f in fields(expression)}  # pyright: ignore[reportArgumentType]
    return replace(expression, **{k: _put_as_it_stands(v, values) for k, v in inner.items()})  # pyright: ignore[reportArgumentType]
