"""Expressions as Unicode text: ``x̄ = ȳ · cos x``, ``x̄ = ȳ / (2 y)``.

>>> from functional_bp.explanation.formulas.expression import divide, multiply, number
>>> from functional_bp.explanation.formulas.expression import Symbol
>>> x, y_bar = Symbol("x"), Symbol("y", bar=True)
>>> print(written(divide(y_bar, multiply(number(2), x))), written(multiply(x, number(-3), y_bar)))
ȳ / (2 x) −ȳ · 3 x
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import numpy as np

from functional_bp.explanation.formulas import expression as ex
from functional_bp.explanation.formulas.expression import Expression
from functional_bp.tables.table import OVERLINE

MACRON = "\u0304"
SUBSCRIPTS = str.maketrans("0123456789+-", "₀₁₂₃₄₅₆₇₈₉₊₋")
SUPERSCRIPTS = str.maketrans("0123456789+-−n", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻ⁿ")
CHOICE, ALTERNATIVE, SUM, PRODUCT, PREFIX, POWER, ATOM = range(7)
JUXTAPOSED = {"sin", "cos", "tan", "sinh", "cosh", "ln", "log₂", "Re", "Im", "conj", "not", "ln Γ"}
AROUND = {"abs": ("|", "|"), "floor": ("⌊", "⌋"), "ceil": ("⌈", "⌉")}
Part = tuple[str, int]  # text, and how tightly it binds

INDICES = "ᵢⱼₖₗₘₙ"  # subscripts that are letters
_NUMBERED = re.compile(r"([^\W\d_])_?(\d+)")
_COMPOUND = re.compile(r"[^\W\d]\w*")


def name(text: str) -> str:
    """A variable's name as mathematics: ``W1`` is W₁; longer names stay as they are.

    >>> name("W1"), name("h_2"), name("loss"), name("layer1")
    ('W₁', 'h₂', 'loss', 'layer1')
    """
    found = _NUMBERED.fullmatch(text)
    return found[1] + found[2].translate(SUBSCRIPTS) if found else text


def barred(text: str) -> str:
    """The name of a variable's cotangent.

    >>> barred("x"), barred("W1") == "W\u0304₁"
    ('x̄', True)
    """
    shown = name(text)
    if letter_count(shown) == 1:
        with_macron = re.sub(r"([^\W\d_])", r"\1" + MACRON, shown, count=1)
        return unicodedata.normalize("NFC", with_macron)
    if _COMPOUND.fullmatch(shown):
        return "".join(letter + OVERLINE for letter in shown)
    head, tail = re.match(r"(\w*)(.*)", shown, re.DOTALL).groups()  # pyright: ignore[reportOptionalMemberAccess]
    return (barred(head) if head else "") + tail


def letter_count(text: str) -> int:
    """How many letters, subscripts not counted."""
    return sum(c.isalpha() and c not in INDICES for c in text)


def written(expression: Expression) -> str:
    """The expression as one line of text."""
    return _part(expression)[0]


def _within(expression: Expression, least: int) -> str:
    text, level = _part(expression)
    return text if level >= least else f"({text})"


def _part(expression: Expression) -> Part:
    match expression:
        case ex.Number(value):
            return _number(value)
        case ex.Symbol(text, bar):
            return (barred(text) if bar else name(text)), ATOM
        case ex.Constant(text):
            return text, ATOM
        case ex.Shape(text):
            return name(text), ATOM
        case ex.Literal():
            return literal(expression), ATOM
        case ex.Verbatim(text):
            return text, ATOM
        case ex.Sum(terms):
            return _sum(terms), SUM
        case ex.Product():
            return _product(expression), PRODUCT
        case ex.MatrixProduct(factors):
            return " ".join(_within(f, PREFIX) for f in factors), PRODUCT
        case ex.Transpose(base):
            return f"{_within(base, ATOM)}ᵀ", POWER
        case ex.Power(base, exponent):
            return _power(base, exponent), POWER
        case ex.Item(base, index):
            return f"{_within(base, ATOM)}[{index}]", ATOM
        case ex.Indexed(base, subscript):
            return f"{_within(base, ATOM)}_{subscript}", ATOM
        case ex.Total(over, body):
            return (
                f"Σ_{over} {_within(body, PRODUCT)}" if over else f"Σ {_within(body, PREFIX)}",
                PREFIX,
            )
        case ex.Comparison(left, sign, right):
            return f"{_within(left, SUM)} {sign} {_within(right, SUM)}", ALTERNATIVE
        case ex.Truth(condition):
            return f"[{written(condition)}]", ATOM
        case ex.Choice(condition, chosen, otherwise):
            head = f"{_within(chosen, ALTERNATIVE)} where {written(condition)}"
            return f"{head}, else {written(otherwise)}", CHOICE
        case ex.Call():
            return _call(expression)
    raise TypeError(type(expression).__name__)


def _number(value: Fraction | float) -> Part:
    if not isinstance(value, Fraction):
        return {"inf": "∞", "-inf": "−∞", "nan": "nan"}[str(value)], ATOM
    if value.denominator == 1:
        level = ATOM if value >= 0 else SUM
        return str(value).replace("-", "−"), level
    if value.denominator <= ex.LARGEST_DENOMINATOR:
        return str(value).replace("-", "−"), PRODUCT if value > 0 else SUM
    return decimal(float(value)), ATOM if value > 0 else SUM


def decimal(value: float) -> str:
    """Six digits at most: ``0.693147``, ``1e−9``."""
    mantissa, e, exponent = f"{value:.6g}".partition("e")
    return (mantissa + (f"e{int(exponent)}" if e else "")).replace("-", "−")


def literal(entry: ex.Literal) -> str:
    """A Python value in a call: ``axes=(0,)``, ``"a"``."""
    value = entry.value.tolist() if isinstance(entry.value, np.ndarray) else entry.value
    text = compact(value)
    return f"{entry.label}={text}" if entry.label else text


def compact(value: Any) -> str:
    """A short form of a parameter."""
    if isinstance(value, str):
        return f'"{value}"'
    text = " ".join(str(value).split())
    return text if len(text) <= 40 else f"{text[:39]}…"


def _sum(terms: Iterable[Expression]) -> str:
    text = ""
    for term in terms:
        part = _within(term, PRODUCT) if not _is_negative(term) else written(term)
        if not text:
            text = part
        elif part.startswith("−"):
            text += f" − {part[1:]}"
        else:
            text += f" + {part}"
    return text


def _is_negative(term: Expression) -> bool:
    match term:
        case ex.Product(coefficient):
            return coefficient < 0
        case ex.Number(Fraction() as value):
            return value < 0
    return False


def is_plain(factor: Expression) -> bool:
    """Whether a factor may stand beside another with a space between them alone."""
    match factor:
        case ex.Symbol(text):
            return letter_count(name(text)) == 1
        case ex.Power(base):
            return is_plain(base)
        case ex.Number() | ex.Constant() | ex.Sum() | ex.Truth():
            return True
    return False


def in_order(factors: Iterable[Expression]) -> list[Expression]:
    """Cotangents, then variables, then sums, then functions."""

    def rank(factor: Expression) -> int:
        match factor:
            case ex.Symbol(bar=True):
                return 0
            case ex.Number() | ex.Constant():
                return 1
            case ex.Symbol() | ex.Power():
                return 2
            case ex.Sum():
                return 3
            case ex.Truth():
                return 5
        return 4

    return sorted(factors, key=rank)


def _product(product: ex.Product) -> str:
    c = product.coefficient
    as_decimal = c.denominator > ex.LARGEST_DENOMINATOR
    first = [ex.Number(abs(c))] if as_decimal else [ex.Number(Fraction(abs(c.numerator)))]
    second = [] if as_decimal else [ex.Number(Fraction(c.denominator))]
    above = in_order(product.above)
    bars: list[Expression] = [f for f in above if isinstance(f, ex.Symbol) and f.bar]
    local = [f for f in (*first, *(f for f in above if f not in bars)) if f != ex.ONE]
    below = [f for f in (*second, *in_order(product.below)) if f != ex.ONE]
    if local == [ex.IMAGINARY] and bars:
        bars, local = [ex.IMAGINARY, *bars], []
    text = " · ".join(filter(None, (_joined(bars), _joined(local)))) or "1"
    if below:
        text += f" / {_within(below[0], PREFIX)}" if len(below) == 1 else f" / ({_joined(below)})"
    return ("−" if c < 0 else "") + text


def _joined(factors: list[Expression]) -> str:
    text = ""
    for k, factor in enumerate(factors):
        part = _within(factor, PREFIX) if len(factors) > 1 else _within(factor, PRODUCT)
        if isinstance(factor, ex.Sum):
            part = f"({written(factor)})"
        if k:
            beside = is_plain(factors[k - 1]) and (is_plain(factor) or isinstance(factor, ex.Call))
            text += " " if beside else " · "
        text += part
    return text


def _power(base: Expression, exponent: Expression) -> str:
    low = _within(base, ATOM)
    if isinstance(exponent, ex.Number) and isinstance(exponent.value, Fraction):
        if exponent.value.denominator == 1:
            return low + str(exponent.value).translate(SUPERSCRIPTS)
    return f"{low}^{_within(exponent, ATOM)}"


def _call(call: ex.Call) -> Part:
    shown = [a for a in call.arguments if not isinstance(a, ex.Shape)] or list(call.arguments)
    one = shown[0] if len(shown) == 1 and not call.keywords else None
    if call.known and one is not None:
        if call.name in AROUND:
            left, right = AROUND[call.name]
            return f"{left}{written(one)}{right}", ATOM
        if call.name in ("√", "∛"):
            return call.name + _within(one, ATOM), POWER
        if call.name in JUXTAPOSED and _part(one)[1] == ATOM:
            return f"{call.name} {written(one)}", PREFIX
    if call.known and call.name in ("and", "or"):
        return f" {call.name} ".join(_within(a, ALTERNATIVE) for a in call.arguments), CHOICE
    arguments = [written(a) for a in shown]
    for key, value in call.keywords:
        text = written(value)
        same = text == name(key) or (isinstance(value, ex.Literal) and value.label == key)
        arguments.append(text if same else f"{key}={keyword(value)}")
    return f"{call.name}({', '.join(arguments)})", POWER


def keyword(value: Expression) -> str:
    """What stands behind the equals sign of a keyword argument."""
    if isinstance(value, ex.Literal):
        return compact(value.value.tolist() if isinstance(value.value, np.ndarray) else value.value)
    return written(value)
