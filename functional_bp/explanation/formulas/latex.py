r"""Expressions as LaTeX: ``\bar{x} = \bar{y}\,\cos x``; formula lines of docstrings too.

>>> from functional_bp.explanation.formulas.expression import divide, multiply, number
>>> from functional_bp.explanation.formulas.expression import Symbol
>>> x, y_bar = Symbol("x"), Symbol("y", bar=True)
>>> print(written(divide(y_bar, multiply(number(2), x))))
\frac{\bar{y}}{2\,x}
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from fractions import Fraction

from functional_bp.explanation.formulas import expression as ex
from functional_bp.explanation.formulas import unicode
from functional_bp.explanation.formulas.expression import Expression
from functional_bp.explanation.formulas.unicode import (
    ALTERNATIVE,
    ATOM,
    CHOICE,
    MACRON,
    POWER,
    PREFIX,
    PRODUCT,
    SUM,
    Part,
    in_order,
)
from functional_bp.tables.table import OVERLINE

SPACE = r"\,"
GREEK = {
    "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda",
    "mu", "nu", "xi", "rho", "sigma", "tau", "phi", "chi", "psi", "omega", "pi",
}  # fmt: skip
FUNCTIONS = {
    "exp": r"\exp", "ln": r"\ln", "sin": r"\sin", "cos": r"\cos", "tan": r"\tan", "sinh": r"\sinh",
    "cosh": r"\cosh", "tanh": r"\tanh", "arcsin": r"\arcsin", "arccos": r"\arccos",
    "arctan": r"\arctan", "max": r"\max", "min": r"\min", "σ": r"\sigma", "ψ": r"\psi",
    "ln Γ": r"\ln\Gamma", "log₂": r"\log_{2}", "erf⁻¹": r"\mathrm{erf}^{-1}",
    "Re": r"\mathrm{Re}", "Im": r"\mathrm{Im}",
}  # fmt: skip
AROUND = {"abs": ("|", "|"), "floor": (r"\lfloor ", r" \rfloor"), "ceil": (r"\lceil ", r" \rceil")}
SIGNS = {"≠": r"\ne", "≤": r"\le", "≥": r"\ge", "is not": r"\ne", "is": "="}
SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
           "<": r"\textless{}", ">": r"\textgreater{}",
           **{c: "\\" + c for c in "&%$#_{}"}}  # fmt: skip
SYMBOLS = {
    "·": r"\cdot ", "−": "-", "×": r"\times ", "∘": r"\circ ", "Σ": r"\sum ", "Π": r"\prod ",
    "∂": r"\partial ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "⇒": r"\Rightarrow ",
    "→": r"\to ", "↦": r"\mapsto ", "←": r"\leftarrow ", "√": r"\sqrt", "∞": r"\infty ",
    "½": r"\tfrac{1}{2}", "⅓": r"\tfrac{1}{3}", "±": r"\pm ", "…": r"\dots ", "′": "'",
    "⟨": r"\langle ", "⟩": r"\rangle ", "‖": r"\| ", "∈": r"\in ", "∫": r"\int ", "≪": r"\ll ",
    "≈": r"\approx ", "π": r"\pi ", "ι": r"\iota ", "τ": r"\tau ", "σ": r"\sigma ", "Φ": r"\Phi ",
    "ψ": r"\psi ", "Γ": r"\Gamma ", "ζ": r"\zeta ", "ε": r"\varepsilon ", "θ": r"\theta ",
    "λ": r"\lambda ", "Ω": r"\Omega ", "ω": r"\omega ", "Δ": r"\Delta ", "γ": r"\gamma ",
    "β": r"\beta ", "α": r"\alpha ", "⌊": r"\lfloor ", "⌋": r"\rfloor ", "∛": r"\sqrt[3]",
    "–": "-", "μ": r"\mu ", "ρ": r"\rho ", "δ": r"\delta ", "η": r"\eta ", "κ": r"\kappa ",
    "φ": r"\phi ", "χ": r"\chi ", "ν": r"\nu ", "ξ": r"\xi ", "’": "'", "⊙": r"\odot ",
    "¬": r"\lnot ", "∇": r"\nabla ",
    **{c: "\\" + c for c in "&%$#{}"},
}  # fmt: skip
_SUB = {c: unicodedata.normalize("NFKD", c) for c in "₀₁₂₃₄₅₆₇₈₉₊₋ᵢⱼₖₗₘₙₒₚᵣₛₜᵤᵥₓₐₑₕ"}
_SUPER = {c: unicodedata.normalize("NFKD", c) for c in "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱˣʸᵀᴴᵈᵉˢᵗᵏᵐᵃᵇᶜ"}
_SUPER |= {"⁻": "-", "ᵀ": r"\top ", "ᴴ": r"\mathsf{H}", "*": "*"}


ACCENTS = {MACRON: "bar", "\u0307": "dot", "\u0302": "hat", "\u0303": "tilde"}
_WORDS = r"(?<![A-Za-z_^{])[A-Za-z]{2,}(?:[ ](?:a )?[A-Za-z]{2,}|['-][A-Za-z]+)*(?![\u0300-\u036f])"


def _apart(c: str) -> str:
    """A letter and its accent, where it has one."""
    parts = unicodedata.normalize("NFD", c)
    return parts if parts[1:] in ACCENTS else c


def escaped(text: str) -> str:
    """Plain text with LaTeX's own characters escaped; mathematical ones go into formulas."""
    pieces = []
    over = rf"(?:\w{OVERLINE})+"
    for piece in re.split(rf"({over}|[^\x00-\x7f]+)", unicodedata.normalize("NFC", text)):
        if piece.isascii():
            pieces.append("".join(SPECIAL.get(c, c) for c in piece))
        else:
            pieces.append(f"${transliterated(piece).strip()}$")
    return "".join(pieces)


def name(text: str, bar: bool = False) -> str:
    r"""A variable's name: ``W1`` is W_{1}, ``loss`` upright, ``alpha`` \alpha.

    >>> print(name("W1"), name("h", bar=True), name("loss", bar=True), name("params['W']"))
    W_{1} \bar{h} \overline{\mathrm{loss}} \mathrm{params['W']}
    """
    found = unicode._NUMBERED.fullmatch(text)
    base, index = (found[1], found[2]) if found else (text, "")
    if base in GREEK:
        shown, accent = "\\" + base, "bar"
    elif len(base) == 1:
        shown, accent = (base if base.isascii() else transliterated(base).strip()), "bar"
        shown = "\\" + shown if shown in "&%$#_{}" else shown
    else:
        plain = "".join(SPECIAL.get(c, c) if c.isascii() else c for c in base)
        shown, accent = rf"\mathrm{{{_upright(plain)}}}", "overline"
    shown = rf"\{accent}{{{shown}}}" if bar else shown
    return f"{shown}_{{{index}}}" if index else shown


def _upright(text: str) -> str:
    return "".join(c if c.isascii() else transliterated(c) for c in text)


def written(expression: Expression) -> str:
    """The expression in LaTeX's mathematics."""
    return _part(expression)[0]


def _within(expression: Expression, least: int) -> str:
    text, level = _part(expression)
    return text if level >= least else rf"\left({text}\right)"


def _part(expression: Expression) -> Part:
    match expression:
        case ex.Number():
            text, level = unicode._part(expression)
            if text.startswith("−") or "/" not in text:
                return transliterated(text).strip(), level
            top, _, bottom = text.partition("/")
            return rf"\frac{{{top}}}{{{bottom}}}", ATOM
        case ex.Symbol(text, bar):
            return name(text, bar), ATOM
        case ex.Constant(text):
            return transliterated(text).strip(), ATOM
        case ex.Shape(text):
            return name(text), ATOM
        case ex.Literal():
            return rf"\mathtt{{{_typed(unicode.literal(expression))}}}", ATOM
        case ex.Verbatim(text):
            return rf"\mathtt{{{_typed(text)}}}", ATOM
        case ex.Sum(terms):
            return _sum(terms), SUM
        case ex.Product():
            return _product(expression)
        case ex.MatrixProduct(factors):
            return SPACE.join(_within(f, PREFIX) for f in factors), PRODUCT
        case ex.Transpose(base):
            return rf"{_within(base, ATOM)}^{{\top}}", POWER
        case ex.Power(base, exponent):
            return f"{_within(base, ATOM)}^{{{written(exponent)}}}", POWER
        case ex.Item(base, index):
            return rf"{_within(base, ATOM)}\mathtt{{[{_typed(index)}]}}", ATOM
        case ex.Indexed(base, subscript):
            return f"{{{_within(base, ATOM)}}}_{{{subscript}}}", ATOM
        case ex.Total(over, body):
            under = f"_{{{over}}}" if over else ""
            return rf"\sum{under} {_within(body, PRODUCT)}", PREFIX
        case ex.Comparison(left, sign, right):
            sign = SIGNS.get(sign, sign)
            return f"{_within(left, SUM)} {sign} {_within(right, SUM)}", ALTERNATIVE
        case ex.Truth(condition):
            return f"[{written(condition)}]", ATOM
        case ex.Choice(condition, chosen, otherwise):
            rows = rf"{written(chosen)} & \text{{where }} {written(condition)} \\ "
            rows += rf"{written(otherwise)} & \text{{else}}"
            return rf"\begin{{cases}} {rows} \end{{cases}}", CHOICE
        case ex.Call():
            return _call(expression)
    raise TypeError(type(expression).__name__)


def _sum(terms: Iterable[Expression]) -> str:
    text = ""
    for term in terms:
        part = _within(term, SUM)
        text += part if not text else f" - {part[1:]}" if part.startswith("-") else f" + {part}"
    return text


def _product(product: ex.Product) -> Part:
    c = product.coefficient
    as_decimal = c.denominator > ex.LARGEST_DENOMINATOR
    first = ex.Number(abs(c)) if as_decimal else ex.Number(Fraction(abs(c.numerator)))
    second = ex.ONE if as_decimal else ex.Number(Fraction(c.denominator))
    above = in_order(product.above)
    bars = [f for f in above if isinstance(f, ex.Symbol) and f.bar]
    top = [f for f in (first, *bars, *(f for f in above if f not in bars)) if f != ex.ONE]
    below = [f for f in (second, *in_order(product.below)) if f != ex.ONE]
    text = _joined(top) or "1"
    if below:
        text = rf"\frac{{{text}}}{{{_joined(below)}}}"
    return ("-" if c < 0 else "") + text, PRODUCT


def _joined(factors: list[Expression]) -> str:
    least = PREFIX if len(factors) > 1 else CHOICE
    return SPACE.join(_within(f, least) for f in factors)


def _call(call: ex.Call) -> Part:
    shown = [a for a in call.arguments if not isinstance(a, ex.Shape)] or list(call.arguments)
    one = shown[0] if len(shown) == 1 and not call.keywords else None
    if call.known and one is not None:
        if call.name in AROUND:
            left, right = AROUND[call.name]
            return rf"\left{left}{written(one)}\right{right}".replace(
                r" \rightr", r"\right\r"
            ), ATOM
        if call.name in ("√", "∛"):
            return rf"\sqrt{'[3]' if call.name == '∛' else ''}{{{written(one)}}}", ATOM
        if call.name == "exp":
            return f"e^{{{written(one)}}}", POWER
        if call.name in unicode.JUXTAPOSED and call.name in FUNCTIONS and _part(one)[1] == ATOM:
            return f"{FUNCTIONS[call.name]} {written(one)}", PREFIX
    if call.known and call.name in ("and", "or"):
        return rf" \text{{ {call.name} }} ".join(_within(a, ALTERNATIVE) for a in call.arguments), 0
    function = FUNCTIONS.get(call.name) if call.known else None
    function = function or rf"\mathrm{{{_typed(call.name)}}}"
    arguments = [written(a) for a in shown]
    for key, value in call.keywords:
        if isinstance(value, ex.Literal):
            arguments.append(rf"\mathtt{{{_typed(f'{key}={unicode.keyword(value)}')}}}")
        else:
            text = written(value)
            same = isinstance(value, ex.Symbol) and value.name == key
            arguments.append(text if same else rf"\mathtt{{{_typed(key)}}}={text}")
    return rf"{function}\left({', '.join(arguments)}\right)", POWER


def _typed(text: str) -> str:
    special = {**SPECIAL, " ": r"\ "}
    return "".join(special.get(c, c) if c.isascii() else transliterated(c) for c in text)


def transliterated(text: str) -> str:
    """A line of Unicode mathematics in LaTeX; words in it are text."""
    normal = "".join(_apart(c) for c in text)
    pieces = re.split(rf"(``[^`]*``|(?:\w{OVERLINE})+|{_WORDS})", normal)
    made = []
    for k, piece in enumerate(pieces):
        if OVERLINE in piece:
            made.append(name(piece.replace(OVERLINE, ""), bar=True))
        elif piece.startswith("``"):
            made.append(rf"\mathtt{{{_typed(piece.strip('`'))}}}")
        elif re.match(r"[A-Za-z]{2}", piece):
            before, after = pieces[k - 1][-1:], pieces[k + 1][:1]
            made.append(_words(piece, " " * (before == " "), " " * (after == " ")))
        else:
            made.append(_mathematics(piece))
    return "".join(made)


def _words(words: str, before: str, after: str) -> str:
    if "\\" + words in FUNCTIONS.values():
        return f"\\{words} "
    if not before and not after:
        return rf"\mathrm{{{words}}}"
    return rf"\text{{{before}{words}{after}}}"


def _mathematics(text: str) -> str:
    out: list[str] = []
    k = 0
    while k < len(text):
        c = text[k]
        mark = text[k + 1] if k + 1 < len(text) else ""
        if mark in ACCENTS:
            out.append(rf"\{ACCENTS[mark]}{{{SYMBOLS.get(c, c).strip()}}}")
            k += 2
            continue
        for table, sign in ((_SUB, "_"), (_SUPER, "^")):
            if c in table and c != "*":
                end = k
                while end < len(text) and text[end] in table:
                    end += 1
                out.append(f"{sign}{{{''.join(table[x] for x in text[k:end]).strip()}}}")
                k = end
                break
        else:
            k += 1
            if c == "_":
                found = re.match(r"(\{[^}]*\}|[A-Za-z0-9]+(?:\([A-Za-z]\))?)", text[k:])
                body = found[1] if found else ""
                k += len(body)
                out.append(f"_{{{_mathematics(body.strip('{}'))}}}" if body else r"\_")
            elif c == "^":
                found = re.match(r"(\([^)]*\)|[A-Za-z0-9−]+)", text[k:])
                body = found[1] if found else ""
                k += len(body)
                out.append(f"^{{{_mathematics(body)}}}" if body else r"\wedge ")
            elif c == "√":
                found = re.match(r"(\([^)]*\)|\w+)", text[k:])
                body = found[1] if found else ""
                k += len(body)
                out.append(rf"\sqrt{{{_mathematics(body.strip('()'))}}}")
            else:
                out.append(SYMBOLS.get(c, c))
    return "".join(out)
