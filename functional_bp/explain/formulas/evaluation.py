"""The value of an expression, in NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any

import numpy as np

from functional_bp.explain.formulas.expression import (
    Call,
    Choice,
    Comparison,
    Constant,
    Expression,
    Literal,
    MatrixProduct,
    Number,
    Power,
    Product,
    Shape,
    Sum,
    Symbol,
    Transpose,
    Truth,
    Verbatim,
    walk,
)
from functional_bp.explain.formulas.notation import NUMERIC

COMPARE = {"=": np.equal, "≠": np.not_equal, "<": np.less, "≤": np.less_equal,
           ">": np.greater, "≥": np.greater_equal}  # fmt: skip

# Random points do not tell whether these are the same: a condition may hold at a kink alone.
UNCOMPARED = (Literal, Shape, Verbatim, Comparison, Truth, Choice)


class NotNumericError(Exception):
    """A part of an expression has no value in NumPy."""


def evaluate(expression: Expression, values: Mapping[Any, Any]) -> Any:
    """The value of the expression.

    Args:
        expression: the expression.
        values: by symbol, and for calls of functions that mathematics has no name for, of the
            shapes (``Shape``) that they are given.

    Raises:
        NotNumericError: a symbol has no value, or a part no meaning in numbers.
    """
    if expression in values:
        return values[expression]
    at = lambda e: evaluate(e, values)  # noqa: E731
    match expression:
        case Number(value):
            return float(value)
        case Constant():
            return expression.value
        case Literal(value):
            return value
        case Sum(terms):
            return sum(map(at, terms[1:]), at(terms[0]))
        case Product(coefficient, above, below):
            top = reduce(np.multiply, map(at, above), float(coefficient))
            return reduce(np.multiply, map(at, below), 1.0) ** -1.0 * top if below else top
        case Power(base, exponent):
            return np.power(at(base), at(exponent))
        case MatrixProduct(factors):
            return reduce(np.matmul, map(at, factors))
        case Transpose(base):
            return np.transpose(at(base))
        case Comparison(left, sign, right):
            return COMPARE[sign](at(left), at(right))
        case Truth(condition):
            return np.asarray(at(condition), float)
        case Choice(condition, chosen, otherwise):
            return np.where(at(condition), at(chosen), at(otherwise))
        case Call(name, arguments, known=True):
            return NUMERIC[name](*map(at, arguments)) if name in NUMERIC else _call(expression, at)
        case Call():
            return _call(expression, at)
        case _:
            raise NotNumericError(str(expression))


def _call(expression: Call, at: Any) -> Any:
    if expression.function is None:
        raise NotNumericError(expression.name)
    keywords = {key: at(value) for key, value in expression.keywords}
    return expression.function(*map(at, expression.arguments), **keywords)


def same(left: Expression, right: Expression) -> bool:
    """Whether two expressions of elementwise functions are equal at a few random complex points."""
    if left == right:
        return True
    parts = [*walk(left), *walk(right)]
    if any(isinstance(p, UNCOMPARED) or (isinstance(p, Call) and not p.known) for p in parts):
        return False
    rng = np.random.default_rng(0)
    symbols = dict.fromkeys(p for p in parts if isinstance(p, Symbol))
    values = {
        symbol: rng.uniform(0.2, 0.9, 4) + 1j * rng.uniform(0.2, 0.9, 4) for symbol in symbols
    }
    try:
        with np.errstate(all="ignore"):
            return bool(np.allclose(evaluate(left, values), evaluate(right, values), rtol=1e-9))
    except (NotNumericError, TypeError, ValueError):
        return False
