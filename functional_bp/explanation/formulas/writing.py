r"""Expressions are written as one line of Unicode text, or as LaTeX: one printer, two alphabets.

What is a factor, a term or an argument, in which order it stands and where it needs brackets is
decided once, in ``written``. An ``Alphabet`` has the signs, and the forms of what is set one above
the other in LaTeX and one after the other in text: fractions, powers, roots, cases.

>>> from functional_bp.explanation.formulas.expression import divide, multiply, number
>>> from functional_bp.explanation.formulas.expression import Symbol
>>> x, y_bar = Symbol("x"), Symbol("y", bar=True)
>>> print(written(divide(y_bar, multiply(number(2), x))), written(multiply(x, number(-3), y_bar)))
ȳ / (2 x) −ȳ · 3 x
>>> print(written(divide(y_bar, multiply(number(2), x)), LATEX))
\frac{\bar{y}}{2\,x}
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from functional_bp.explanation.formulas import expression as ex
from functional_bp.explanation.formulas.expression import Expression
from functional_bp.explanation.formulas.transliteration import (
    FUNCTIONS,
    MACRON,
    NUMBERED,
    latex_name,
    transliterated,
    typed,
)
from functional_bp.tables.table import OVERLINE

SUBSCRIPTS = str.maketrans("0123456789+-", "₀₁₂₃₄₅₆₇₈₉₊₋")
SUPERSCRIPTS = str.maketrans("0123456789+-−n", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻ⁿ")
CHOICE, ALTERNATIVE, SUM, PRODUCT, PREFIX, POWER, ATOM = range(7)  # how tightly a text binds
JUXTAPOSED = {"sin", "cos", "tan", "sinh", "cosh", "ln", "log₂", "Re", "Im", "conj", "not", "ln Γ"}
INDICES = "ᵢⱼₖₗₘₙ"  # subscripts that are letters
LONGEST_PARAMETER = 40  # characters of a parameter's value that are shown
_COMPOUND = re.compile(r"[^\W\d]\w*")


@dataclass(frozen=True)
class Alphabet:
    """An alphabet has the signs of a notation, and its forms: texts with ``{}`` for the parts.

    Attributes:
        name: writes a variable's name, or with True that of its cotangent.
        plain: writes a line of Unicode mathematics: a number, a constant.
        code: writes a piece of Python.
        function: writes a function's name; True says that it is one of the notation.
        encloses: fractions, exponents, roots and cases show by themselves where they end, so that
            what is in them needs no brackets. The cotangents among the factors of a product then
            stand with the others, and not before them.
        beside, times: what stands between two factors: of one letter each, and others.
        juxtaposed: the functions that are written before an argument without brackets.
        applied: the functions of one argument that have a form of their own: the form, how tightly
            the argument has to bind, and how tightly the whole binds.
        signs: signs of comparisons, where they are others than in Unicode.
    """

    name: Callable[[str, bool], str]
    plain: Callable[[str], str]
    code: Callable[[str], str]
    function: Callable[[str, bool], str]
    encloses: bool
    minus: str
    beside: str
    times: str
    bracket: str
    fraction: str
    power: str
    transpose: str
    indexed: str
    total: str
    total_over: str
    word: str
    choice: str
    juxtaposed: frozenset[str]
    applied: Mapping[str, tuple[str, int, int]]
    signs: Mapping[str, str]


def written(expression: Expression, alphabet: Alphabet | None = None) -> str:
    """Write the expression as one line, in Unicode unless another alphabet is given."""
    return _Writer(alphabet or UNICODE).text(expression)


class _Writer:
    """Writes expressions in one alphabet; each part is a text and how tightly it binds."""

    def __init__(self, alphabet: Alphabet) -> None:
        self.alphabet = alphabet

    def text(self, expression: Expression) -> str:
        return self.part(expression)[0]

    def within(self, expression: Expression, least: int) -> str:
        """The text, in brackets where it binds less tightly than its place asks for."""
        text, level = self.part(expression)
        return text if level >= least else self.alphabet.bracket.format(text)

    def enclosed(self, expression: Expression, least: int) -> str:
        """The same in a place that the alphabet may enclose by itself."""
        return self.within(expression, CHOICE if self.alphabet.encloses else least)

    def part(self, expression: Expression) -> tuple[str, int]:
        a = self.alphabet
        match expression:
            case ex.Number(value):
                return self.number(value)
            case ex.Symbol(text, bar):
                return a.name(text, bar), ATOM
            case ex.Constant(text):
                return a.plain(text), ATOM
            case ex.ShapeOf(text):
                return a.name(text, False), ATOM
            case ex.Literal(value, label):
                return a.code(f"{label}={compact(value)}" if label else compact(value)), ATOM
            case ex.Verbatim(text):
                return a.code(text), ATOM
            case ex.Sum(terms):
                return self.sum(terms), SUM
            case ex.Product():
                return self.product(expression), PRODUCT
            case ex.MatrixProduct(factors):
                return a.beside.join(self.within(f, PREFIX) for f in factors), PRODUCT
            case ex.Transpose(base):
                return a.transpose.format(self.within(base, ATOM)), POWER
            case ex.Power(base, exponent):
                return self.power(base, exponent), POWER
            case ex.Item(base, index):
                return self.within(base, ATOM) + a.code(f"[{index}]"), ATOM
            case ex.Indexed(base, subscript):
                return a.indexed.format(self.within(base, ATOM), subscript), ATOM
            case ex.Total("", body):
                return a.total.format(self.within(body, PREFIX)), PREFIX
            case ex.Total(over, body):
                return a.total_over.format(over, self.within(body, PRODUCT)), PREFIX
            case ex.Comparison(left, sign, right):
                sides = self.within(left, SUM), self.within(right, SUM)
                return f" {a.signs.get(sign, sign)} ".join(sides), ALTERNATIVE
            case ex.Truth(condition):
                return f"[{self.text(condition)}]", ATOM
            case ex.Choice(condition, chosen, otherwise):
                first = self.enclosed(chosen, ALTERNATIVE)
                return a.choice.format(first, self.text(condition), self.text(otherwise)), CHOICE
            case ex.Application():
                return self.call(expression)
        raise TypeError(type(expression).__name__)

    def number(self, value: Fraction | float) -> tuple[str, int]:
        a = self.alphabet
        if not isinstance(value, Fraction):
            return a.plain({"inf": "∞", "-inf": "−∞", "nan": "nan"}[str(value)]), ATOM
        if value.denominator > ex.LARGEST_DENOMINATOR:
            text, level = decimal(float(value)), ATOM
        elif value.denominator == 1:
            text, level = str(value).replace("-", "−"), ATOM
        elif a.encloses and value > 0:
            return a.fraction.format(value.numerator, value.denominator), ATOM
        else:
            text, level = str(value).replace("-", "−"), PRODUCT
        return a.plain(text), SUM if value < 0 else level

    def sum(self, terms: Iterable[Expression]) -> str:
        minus, line = self.alphabet.minus, ""
        for term in terms:
            text = self.text(term) if _is_negative(term) else self.within(term, PRODUCT)
            if line:
                text = f" {minus} {text[1:]}" if text.startswith(minus) else f" + {text}"
            line += text
        return line

    def product(self, product: ex.Product) -> str:
        a, c = self.alphabet, product.coefficient
        whole, part = abs(c.numerator), c.denominator
        number, divisor = (abs(c), 1) if part > ex.LARGEST_DENOMINATOR else (whole, part)
        above = in_order(product.above)
        bars: list[Expression] = [f for f in above if isinstance(f, ex.Symbol) and f.bar]
        rest = [f for f in above if f not in bars]
        if a.encloses:
            bars, rest = [], [*bars, *rest]
        local = [f for f in (ex.Number(Fraction(number)), *rest) if f != ex.ONE]
        below = [ex.Number(Fraction(divisor)), *in_order(product.below)]
        below = [f for f in below if f != ex.ONE]
        if local == [ex.IMAGINARY] and bars:
            bars, local = [ex.IMAGINARY, *bars], []
        lone = CHOICE if a.encloses and below else PRODUCT
        groups = (self.joined(bars, PRODUCT), self.joined(local, lone))
        text = a.times.join(filter(None, groups)) or "1"
        if below:
            divided = self.joined(below, CHOICE if a.encloses else PREFIX)
            if len(below) > 1 and not a.encloses:
                divided = a.bracket.format(divided)
            text = a.fraction.format(text, divided)
        return (a.minus if c < 0 else "") + text

    def joined(self, factors: list[Expression], lone: int) -> str:
        """The factors side by side; ``lone`` is how tightly one without others has to bind."""
        text = ""
        for k, factor in enumerate(factors):
            if k:
                beside = is_plain(factors[k - 1]) and (
                    is_plain(factor) or isinstance(factor, ex.Application)
                )
                text += self.alphabet.beside if beside else self.alphabet.times
            text += self.within(factor, PREFIX if len(factors) > 1 else lone)
        return text

    def power(self, base: Expression, exponent: Expression) -> str:
        low = self.within(base, ATOM)
        match exponent:
            case ex.Number(Fraction(denominator=1)) if not self.alphabet.encloses:
                return low + self.text(exponent).translate(SUPERSCRIPTS)
        return self.alphabet.power.format(low, self.enclosed(exponent, ATOM))

    def call(self, call: ex.Application) -> tuple[str, int]:
        a = self.alphabet
        shown = [x for x in call.arguments if not isinstance(x, ex.ShapeOf)] or list(call.arguments)
        if call.known and len(shown) == 1 and not call.keywords:
            (argument,) = shown
            if call.name in a.applied:
                form, least, level = a.applied[call.name]
                return form.format(self.within(argument, least)), level
            text, level = self.part(argument)
            if call.name in a.juxtaposed and level == ATOM:
                return f"{a.function(call.name, True)} {text}", PREFIX
        if call.known and call.name in ("and", "or"):
            sides = [self.within(x, ALTERNATIVE) for x in call.arguments]
            return a.word.format(call.name).join(sides), CHOICE
        arguments = [*map(self.text, shown), *(self.keyword(*pair) for pair in call.keywords)]
        listed = a.bracket.format(", ".join(arguments))
        return a.function(call.name, call.known) + listed, POWER

    def keyword(self, key: str, value: Expression) -> str:
        """``key=value``; the value alone where it is a variable of that name."""
        if isinstance(value, ex.Literal):
            return self.alphabet.code(f"{key}={compact(value.value)}")
        text = self.text(value)
        same = text == self.alphabet.name(key, False)
        return text if same else f"{self.alphabet.code(key)}={text}"


def decimal(value: float) -> str:
    """Write six digits at most: ``0.693147``, ``1e−9``."""
    mantissa, e, exponent = f"{value:.6g}".partition("e")
    return (mantissa + (f"e{int(exponent)}" if e else "")).replace("-", "−")


def compact(value: Any) -> str:
    """Write a parameter's value in a short form: ``(0,)``, ``"a"``."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, str):
        return f'"{value}"'
    text = " ".join(str(value).split())
    return text if len(text) <= LONGEST_PARAMETER else f"{text[: LONGEST_PARAMETER - 1]}…"


def _is_negative(term: Expression) -> bool:
    match term:
        case ex.Product(coefficient):
            return coefficient < 0
        case ex.Number(Fraction() as value):
            return value < 0
    return False


def is_plain(factor: Expression) -> bool:
    """Tell whether a factor may stand beside another with a space between them alone."""
    match factor:
        case ex.Symbol(text):
            return letter_count(name(text)) == 1
        case ex.Power(base):
            return is_plain(base)
        case ex.Number() | ex.Constant() | ex.Sum() | ex.Truth():
            return True
    return False


def in_order(factors: Iterable[Expression]) -> list[Expression]:
    """Return the factors in the order of a book: cotangents, variables, sums, then functions."""

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


def name(text: str, bar: bool = False) -> str:
    """Return a variable's name as mathematics: ``W1`` is W₁; longer names stay as they are.

    >>> name("W1"), name("h_2"), name("loss"), name("layer1"), name("x", bar=True)
    ('W₁', 'h₂', 'loss', 'layer1', 'x̄')
    """
    found = NUMBERED.fullmatch(text)
    if bar:
        return barred(text)
    return found[1] + found[2].translate(SUBSCRIPTS) if found else text


def barred(text: str) -> str:
    """Return the name of a variable's cotangent.

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
    """Count the letters, without those that are subscripts."""
    return sum(c.isalpha() and c not in INDICES for c in text)


UNICODE = Alphabet(
    name=name, plain=str, code=str, function=lambda text, known: text, encloses=False,
    minus="−", beside=" ", times=" · ", bracket="({})", fraction="{} / {}", power="{}^{}",
    transpose="{}ᵀ", indexed="{}_{}", total="Σ {}", total_over="Σ_{} {}",
    word=" {} ", choice="{} where {}, else {}", juxtaposed=frozenset(JUXTAPOSED),
    applied={
        "abs": ("|{}|", CHOICE, ATOM), "floor": ("⌊{}⌋", CHOICE, ATOM),
        "ceil": ("⌈{}⌉", CHOICE, ATOM), "√": ("√{}", ATOM, POWER), "∛": ("∛{}", ATOM, POWER),
    },
    signs={},
)  # fmt: skip
LATEX = Alphabet(
    name=latex_name,
    plain=lambda text: transliterated(text).strip(),
    code=lambda text: rf"\mathtt{{{typed(text)}}}",
    function=lambda text, known: (
        FUNCTIONS[text] if known and text in FUNCTIONS else rf"\mathrm{{{typed(text)}}}"
    ),
    encloses=True, minus="-", beside=r"\,", times=r"\,", bracket=r"\left({}\right)",
    fraction=r"\frac{{{}}}{{{}}}", power="{}^{{{}}}", transpose=r"{}^{{\top}}",
    indexed="{{{}}}_{{{}}}", total=r"\sum {}", total_over=r"\sum_{{{}}} {}",
    word=r" \text{{ {} }} ", juxtaposed=frozenset(JUXTAPOSED & FUNCTIONS.keys()),
    choice=r"\begin{{cases}} {} & \text{{where }} {} \\ {} & \text{{else}} \end{{cases}}",
    applied={
        "abs": (r"\left|{}\right|", CHOICE, ATOM),
        "floor": (r"\left\lfloor {}\right \rfloor", CHOICE, ATOM),
        "ceil": (r"\left\lceil {}\right \rceil", CHOICE, ATOM),
        "√": (r"\sqrt{{{}}}", CHOICE, ATOM), "∛": (r"\sqrt[3]{{{}}}", CHOICE, ATOM),
        "exp": ("e^{{{}}}", CHOICE, POWER),
    },
    signs={"≠": r"\ne", "≤": r"\le", "≥": r"\ge", "is not": r"\ne", "is": "="},
)  # fmt: skip
