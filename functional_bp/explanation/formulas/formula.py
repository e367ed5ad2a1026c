"""A rule has a formula for each operand's cotangent: ``x̄ = ȳ · cos x``, with a person's own names.

It is read off the pullback's source. Where a pullback is a program rather than a formula, the line
of its docstring stands that states one; a product with named axes is one of matrices where it can
be: z_ac = Σ_b x_ab y_bc is z = x y.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

from functional_bp.definitions import definition
from functional_bp.engine.rule import Pullback, Rule
from functional_bp.explanation.formulas import expression as ex
from functional_bp.explanation.formulas.expression import Expression
from functional_bp.explanation.formulas.reading import UnreadableError, is_closed, read
from functional_bp.explanation.formulas.transliteration import MACRON, decomposed, transliterated
from functional_bp.explanation.formulas.writing import LATEX, Alphabet, barred, written

_BAR = rf"[^\W\d_]{MACRON}"
_STARTS = re.compile(rf"[−+(±½]*\s*({_BAR})")
_EQUATION = re.compile(rf"({_BAR})[^\s)]*\s*=\s")
_WORD = re.compile(r"([a-z]+)[-_]bar\s*=\s")
_SEPARATORS = (":", ",", ";", "⇒", "so", "where", ".")
_ARTICLE = re.compile(r"a\s+[a-z]{2,}")  # "a cotangent": no variable


def formula_line(docstring: str, operand: str, is_pullback: bool = True) -> str:
    """Return the sentence of a docstring that says what a cotangent is; "" where there is none.

    A pullback's line that begins with an upstream cotangent is read as the operand's.

    >>> text = "x̄ᵢ = ȳ [xᵢ = y] / #{j : xⱼ = y}."
    >>> formula_line(text, "x") == decomposed(text.rstrip("."))
    True
    """
    first = inspect.cleandoc(docstring).partition("\n\n")[0]
    line = decomposed(" ".join(first.split()))
    if "↦" in line:
        return _ended(line)
    if found := _WORD.match(line):
        return _ended(f"{barred(found[1])} = {line[found.end() :]}")
    before = lambda found: line[: found.start()].rstrip()
    equations = [
        m for m in _EQUATION.finditer(line) if not before(m) or before(m).endswith(_SEPARATORS)
    ]
    letters = {operand[0], operand[0].upper()}
    own = [m for m in equations if m[1][0] in letters]
    is_first = bool(equations) and equations[0].start() == 0
    start = (equations if is_first else own or equations)[0].start() if equations else 0
    if equations and (is_pullback or " = " not in line[:start]):
        return _ended(line[start:])
    if (found := _STARTS.match(line)) and is_pullback and found[1][0] not in letters:
        return _ended(f"{barred(operand)} = {line}")
    return _ended(line) if MACRON in line else ""


def _ended(line: str) -> str:
    return line.rstrip(" .:").replace("``", "")


def renamed(text: str, names: Mapping[str, str], bars: Mapping[str, str]) -> str:
    """Return a formula line with other names for its variables.

    Args:
        text: the line.
        names: what to write for a variable, by the letter that the rule has for it. The line may
            have the letter as a capital, for a matrix; of a starred operand (``xs``) the line's
            xₖ is one member.
        bars: the same for their cotangents.

    >>> print(renamed("x̄ᵢ = ȳ [xᵢ = y]", {"x": "s", "y": "m"}, {"x": "s̄", "y": "m̄"}))
    s̄ᵢ = m̄ [sᵢ = m]
    """
    plain = decomposed(text)
    wanted: dict[str, str] = {}
    for table, mark in ((names, ""), (bars, MACRON)):
        for key, new in table.items():
            starred = len(key) == 2 and key.endswith("s")
            if len(key) != 1 and not starred:
                continue
            is_capital = key[0].upper() + MACRON in plain and key[0] + MACRON not in plain
            letter = key[0].upper() if is_capital else key[0]
            wanted[letter + mark + ("ₖ" if starred else "")] = new
    if not wanted:
        return text
    members = "".join(key[0] for key in wanted if key.endswith("ₖ"))
    if members:
        plain = re.sub(rf"([{members}])({MACRON}?)[ᵢₖ]", r"\1\2ₖ", plain)
    choices = "|".join(re.escape(k) for k in sorted(wanted, key=len, reverse=True))
    token = re.compile(rf"(?<![A-Za-z_{{])(?:{choices})(?![A-Za-z{MACRON}'’])")

    def put(found: re.Match[str]) -> str:
        is_word = found[0] == "a" and _ARTICLE.match(plain, found.start())
        return found[0] if is_word else wanted[found[0]]

    return unicodedata.normalize("NFC", token.sub(put, plain))


# Products with named axes.

Operand = tuple[Expression, str]  # what is multiplied, and one letter per axis
_TERM = rf"([a-z])({MACRON}?)_(\w+)"
_LINE = re.compile(rf"([a-z]){MACRON}_(\w+) = (?:Σ_\w+ )?{_TERM} {_TERM}")


class Contraction(NamedTuple):
    """A contraction is x̄_bfc = Σ_g z̄_bfg y_bgc: a cotangent is a product of two arrays."""

    operand: str
    left: ex.Symbol
    right: ex.Symbol


def parse(line: str) -> Contraction | None:
    """Return the contraction that a docstring's line states; None if it states another thing."""
    found = _LINE.fullmatch(decomposed(line))
    if found is None:
        return None
    operand, _, left, left_bar, _, right, right_bar, _ = found.groups()
    return Contraction(operand, ex.Symbol(left, bool(left_bar)), ex.Symbol(right, bool(right_bar)))


def contracted(out: str, first: Operand, second: Operand) -> tuple[str, Expression]:
    """Return the product of two arrays, summed over the axes that ``out`` does not have.

    Returns:
        The letters that the left-hand side needs ("" in the notation of matrices), and the
        product: of matrices and column vectors where it is one, else with a letter per axis.

    >>> z_bar, w = ex.Symbol("z", bar=True), ex.Symbol("W")
    >>> print(written(contracted("ab", (z_bar, "ac"), (w, "bc"))[1]))
    z̄ Wᵀ
    """
    if "" in (first[1], second[1]) and out == first[1] + second[1]:
        return "", ex.multiply(first[0], second[0])
    for left, right in ((first, second), (second, first)):
        product = _matrices(out, left, right)
        if product is not None:
            return "", product
    letters = dict.fromkeys(first[1] + second[1])
    over = "".join(c for c in letters if c not in out)
    factors = tuple(
        ex.Indexed(symbol, axes) if axes else symbol for symbol, axes in (first, second)
    )
    body = ex.MatrixProduct(factors)
    return out, ex.Total(over, body) if over else body


def _matrices(out: str, left: Operand, right: Operand) -> Expression | None:
    """left · right, each transposed if need be; None where that is not the product."""
    (a, a_axes), (b, b_axes) = left, right
    if not a_axes or not b_axes or max(len(a_axes), len(b_axes), len(out)) > 2:
        return None
    inner = [c for c in a_axes if c in b_axes]
    if len(inner) > 1 or any(c in out for c in inner):
        return None
    summed = "".join(inner)
    rows, columns = a_axes.replace(summed, ""), b_axes.replace(summed, "")
    if out != rows + columns or len(set(a_axes)) < len(a_axes) or len(set(b_axes)) < len(b_axes):
        return None
    if not summed and (len(a_axes) > 1 or len(b_axes) > 1):
        return None
    if not rows and columns:  # a row vector times a matrix: the matrix comes first
        return None
    on_left = a if a_axes == rows + summed and (rows or not summed) else ex.Transpose(a)
    on_right = b if b_axes == summed + columns and summed else ex.Transpose(b)
    return ex.MatrixProduct((on_left, on_right))


LONGEST = 72  # characters of a formula with calls in it; a longer one is a program
Names = Mapping[str, "str | Expression"]


@dataclass(frozen=True)
class Formula:
    """A formula is an equation: how a cotangent follows from others, or a value from values.

    Attributes:
        left: the left-hand side; None where ``line`` says all.
        right: the right-hand side; None where a value is given and not computed.
        line: where the rule is a program: the line of symbols and words that states it.
    """

    left: Expression | None
    right: Expression | None
    line: str = ""

    def text(self, sign: str = "=") -> str:
        """Write the formula as one line of Unicode; ``sign`` is "+=" for one share of a sum."""
        if self.left is None:
            return unicodedata.normalize("NFC", self._signed(sign))
        return self._equation(sign)

    def brief(self, sign: str = "=") -> str:
        """Write the formula up to the first comma or colon, without what is said about it."""
        text = self.text(sign)
        depth = accumulate((c in "([{") - (c in ")]}") for c in text)
        ends = (k for k, (c, inside) in enumerate(zip(text, depth)) if c in ",:;" and not inside)
        head = text[: next((k for k in ends if text[k + 1 : k + 2] == " "), None)]
        return head if self.left is None and f" {sign} " in head else text

    def latex(self, sign: str = "=") -> str:
        """Write the formula in LaTeX's mathematics, without dollar signs."""
        if self.left is None:
            return transliterated(self._signed(sign))
        return self._equation(sign, LATEX)

    def _signed(self, sign: str) -> str:
        head, equals, tail = self.line.partition(" = ")
        return f"{head} {sign} {tail}" if equals and " " not in head else self.line

    def _equation(self, sign: str, alphabet: Alphabet | None = None) -> str:
        sides = [written(side, alphabet) for side in (self.left, self.right) if side is not None]
        return f" {sign} ".join(sides)

    def __str__(self) -> str:
        return self.text()


def formula(
    rule: Rule,
    operand: str,
    names: Names | None = None,
    static: Mapping[str, Any] | None = None,
    axes: Mapping[str, str] | None = None,
) -> Formula:
    """Read the formula by which a rule computes an operand's cotangent from the rule itself.

    Args:
        rule: the rule.
        operand: its name in the rule's signature.
        names: what to call operands and outputs, ``{"x": "W1", "y": "h"}``; cotangents follow, or
            are named on their own: ``{"y_bar": "loss_bar"}``. A number may stand for an operand.
        static: an equation's parameters and the types of its operands and outputs, where known;
            conditions on them are then decided, and parameters shown with their values.
        axes: one letter per axis of operands and outputs, where the rule is a contraction.

    Example:
        >>> import functional_bp as bp
        >>> from jax import lax
        >>> print(formula(bp.rules[lax.sqrt_p], "x"))
        x̄ = ȳ / (2 y)
        >>> print(formula(bp.rules[lax.sin_p], "x", names={"x": "z", "y": "h"}))
        z̄ = h̄ · cos z
    """
    names = {**_members(rule), **(names or {})}
    trees = {_symbol(key): _named(value) for key, value in _with_bars(names).items()}
    bar = ex.Symbol(operand, bar=True)
    left = trees.get(bar, bar)
    pullback = rule.joint or rule.pullbacks.get(operand)
    if pullback is None and rule.higher_order is None:
        return Formula(left, ex.ZERO)
    if pullback is None:
        return Formula(None, None, _renamed(_of_structure(rule.higher_order, operand), names))
    right = _of_source(pullback, static or {})
    if right is not None and is_closed(right):
        return Formula(left, ex.put(right, trees))
    program = _documented(pullback.function)
    line = formula_line(program.__doc__ or "", operand) if program else ""
    product = parse(line)
    if product and axes:
        sides = [(s, axes[s.name]) for s in (product.left, product.right)]
        letters, tree = contracted(axes[operand], *sides)
        left = ex.Indexed(left, letters) if letters else left
        return Formula(left, ex.put(tree, trees))
    if line:
        return Formula(None, None, _renamed(line, names))
    if right is not None and not any(isinstance(p, ex.Choice) for p in ex.walk(right)):
        made = Formula(left, ex.put(right, trees))
        if len(made.text()) <= LONGEST or not rule.why:
            return made
    if line := formula_line(rule.why, operand):
        return Formula(None, None, _renamed(line, names))
    if right is None:
        right = ex.Application(
            f"{rule.primitive.name}_{operand}_bar", tuple(_arguments(pullback).values())
        )
    return Formula(left, ex.put(right, trees))


def _members(rule: Rule) -> dict[str, str]:
    """One member of a starred operand or output: xₖ of ``*xs``."""
    starred = [n.text for n in (*rule.operands, *rule.outputs) if n.starred]
    return {text: f"{text[:-1]}ₖ" for text in starred if len(text) == 2 and text.endswith("s")}


def _arguments(pullback: Pullback) -> dict[str, Expression]:
    """What stands for each of a pullback's parameters."""
    arguments: dict[str, Expression] = {}
    for need in pullback.needs:
        match need.kind:
            case "cotangent":
                arguments[need.name + "_bar"] = ex.Symbol(need.name, bar=True)
            case "shape":
                arguments[need.name + "_t"] = ex.ShapeOf(need.name)
            case _:
                arguments[need.name] = ex.Symbol(need.name)
    for parameter, _ in pullback.parameters:
        arguments[parameter] = ex.Symbol(parameter)
    return arguments


def _of_source(pullback: Pullback, static: Mapping[str, Any]) -> Expression | None:
    arguments = _arguments(pullback)
    # 1 equals True and 1.0, and reads differently
    known = tuple((key, type(v), v) for key, v in static.items() if key in arguments)
    try:
        return _read_once(pullback, known)
    except TypeError:  # a parameter that cannot be hashed
        return _read_once.__wrapped__(pullback, known)


@functools.lru_cache(maxsize=4096)
def _read_once(pullback: Pullback, known: tuple[tuple[str, type, Any], ...]) -> Expression | None:
    static = {key: value for key, _, value in known}
    try:
        return read(pullback.function, _arguments(pullback), static)
    except UnreadableError:
        return None


def _documented(function: Callable[..., Any]) -> Callable[..., Any] | None:
    """The function if it has a docstring, or one that has and that a lambda only calls."""
    if function.__doc__:
        return function
    found = definition(function)
    node = found.node if found else None
    if isinstance(node, ast.Lambda) and isinstance(node.body, ast.Call):
        if isinstance(node.body.func, ast.Name):
            called = inspect.getclosurevars(function)
            found = {**called.globals, **called.nonlocals}.get(node.body.func.id)
            if inspect.isfunction(found) and found.__doc__:
                return found
    return None


def _of_structure(structure: type | None, operand: str) -> str:
    """The formula line of a rule for an operation that holds a graph, or else its first line."""
    text = inspect.cleandoc((structure.__doc__ if structure else "") or "")
    line = formula_line(text, operand, is_pullback=False)
    return line or " ".join(text.partition("\n\n")[0].split()).rstrip(".")


def _with_bars(names: Names) -> dict[str, str | Expression]:
    bars = {
        f"{key}_bar": f"{value}_bar"
        for key, value in names.items()
        if not key.endswith("_bar") and isinstance(value, str)
    }
    return {**bars, **names}


def _symbol(key: str) -> ex.Symbol:
    return ex.Symbol(key[:-4], bar=True) if key.endswith("_bar") else ex.Symbol(key)


def _named(value: str | Expression) -> Expression:
    return value if isinstance(value, Expression) else _symbol(value)


def _renamed(line: str, names: Names) -> str:
    """A docstring's line with the person's names."""
    shown = {key: written(_named(value)) for key, value in _with_bars(names).items()}
    bars = {key[:-4]: text for key, text in shown.items() if key.endswith("_bar")}
    return renamed(line, {k: v for k, v in shown.items() if not k.endswith("_bar")}, bars)
