"""A rule's formula for one operand's cotangent: ``x̄ = ȳ · cos x``, with a person's own names."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from functional_bp.explain.formulas import latex, unicode
from functional_bp.explain.formulas.algebra import put
from functional_bp.explain.formulas.contraction import contracted, parse
from functional_bp.explain.formulas.docstring import formula_line, renamed
from functional_bp.explain.formulas.expression import (
    ZERO,
    Call,
    Choice,
    Expression,
    Indexed,
    Shape,
    Symbol,
    walk,
)
from functional_bp.explain.formulas.reading import UnreadableError, is_closed, read
from functional_bp.explain.formulas.source import syntax
from functional_bp.rule import Pullback, Rule

LONGEST = 72  # characters of a formula with calls in it; a longer one is a program
Names = Mapping[str, "str | Expression"]


@dataclass(frozen=True)
class Formula:
    """An equation: how a cotangent follows from others, or a value from values.

    Attributes:
        left: the left-hand side; None where ``line`` says all.
        right: the right-hand side; None where a value is given and not computed.
        line: where the rule is a program: the line of symbols and words that states it.
    """

    left: Expression | None
    right: Expression | None
    line: str = ""

    def text(self, sign: str = "=") -> str:
        """The formula as one line of Unicode; ``sign`` is "+=" for one share of a sum."""
        if self.left is None:
            return unicodedata.normalize("NFC", self._signed(sign))
        if self.right is None:
            return unicode.written(self.left)
        return f"{unicode.written(self.left)} {sign} {unicode.written(self.right)}"

    def brief(self, sign: str = "=") -> str:
        """The formula without what is said about it: up to the first comma or colon."""
        text = self.text(sign)
        head = re.split(r"[,:;] ", text, maxsplit=1)[0]
        return head if self.left is None and f" {sign} " in head else text

    def latex(self, sign: str = "=") -> str:
        """The formula in LaTeX's mathematics, without dollar signs."""
        if self.left is None:
            return latex.transliterated(self._signed(sign))
        if self.right is None:
            return latex.written(self.left)
        return f"{latex.written(self.left)} {sign} {latex.written(self.right)}"

    def _signed(self, sign: str) -> str:
        head, equals, tail = self.line.partition(" = ")
        return f"{head} {sign} {tail}" if equals and " " not in head else self.line

    def __str__(self) -> str:
        return self.text()


def formula(
    rule: Rule,
    operand: str,
    names: Names | None = None,
    static: Mapping[str, Any] | None = None,
    axes: Mapping[str, str] | None = None,
) -> Formula:
    """The formula by which a rule computes an operand's cotangent, read from the rule itself.

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
    bar = Symbol(operand, bar=True)
    left = trees.get(bar, bar)
    pullback = rule.joint or rule.pullbacks.get(operand)
    if pullback is None and rule.structure is None:
        return Formula(left, ZERO)
    if pullback is None:
        return Formula(None, None, _renamed(_of_structure(rule.structure, operand), names))
    right = _of_source(pullback, static or {})
    if right is not None and is_closed(right):
        return Formula(left, put(right, trees))
    line = _of_docstring(pullback, operand)
    product = parse(line)
    if product and axes:
        sides = [(s, axes[s.name]) for s in (product.left, product.right)]
        letters, tree = contracted(axes[operand], *sides)
        left = Indexed(left, letters) if letters else left
        return Formula(left, put(tree, trees))
    if line and not (right is not None and not _is_program(pullback)):
        return Formula(None, None, _renamed(line, names))
    if right is not None and not any(isinstance(p, Choice) for p in walk(right)):
        made = Formula(left, put(right, trees))
        if len(made.text()) <= LONGEST or not rule.why:
            return made
    line = line or formula_line(rule.why, operand)
    if line:
        return Formula(None, None, _renamed(line, names))
    if right is None:
        right = Call(f"{rule.primitive.name}_{operand}_bar", tuple(_arguments(pullback).values()))
    return Formula(left, put(right, trees))


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
                arguments[need.name + "_bar"] = Symbol(need.name, bar=True)
            case "shape":
                arguments[need.name + "_t"] = Shape(need.name)
            case _:
                arguments[need.name] = Symbol(need.name)
    for parameter, _ in pullback.parameters:
        arguments[parameter] = Symbol(parameter)
    return arguments


def _of_source(pullback: Pullback, static: Mapping[str, Any]) -> Expression | None:
    arguments = _arguments(pullback)
    known = {key: value for key, value in static.items() if key in arguments}
    try:
        # 1 equals True and 1.0, and reads differently
        return _read_once(pullback, tuple((k, type(v), v) for k, v in known.items()))
    except TypeError:  # a parameter that cannot be hashed
        return _read(pullback, known)


@functools.lru_cache(maxsize=4096)
def _read_once(pullback: Pullback, known: tuple[tuple[str, type, Any], ...]) -> Expression | None:
    return _read(pullback, {key: value for key, _, value in known})


def _read(pullback: Pullback, known: Mapping[str, Any]) -> Expression | None:
    try:
        return read(pullback.function, _arguments(pullback), known)
    except UnreadableError:
        return None


def _is_program(pullback: Pullback) -> bool:
    """Whether it has a docstring of its own, or hands its work to a function that has one."""
    return bool(pullback.function.__doc__) or _worker(pullback.function) is not None


def _worker(function: Callable[..., Any]) -> Callable[..., Any] | None:
    """The documented function that a lambda calls and does nothing else."""
    node = syntax(function)
    if isinstance(node, ast.Lambda) and isinstance(node.body, ast.Call):
        if isinstance(node.body.func, ast.Name):
            called = inspect.getclosurevars(function)
            found = {**called.globals, **called.nonlocals}.get(node.body.func.id)
            if inspect.isfunction(found) and found.__doc__:
                return found
    return None


def _of_docstring(pullback: Pullback, operand: str) -> str:
    """The formula line of the pullback, or of the function that a lambda hands its work to."""
    function = pullback.function
    worker = _worker(function)
    text = function.__doc__ or (worker.__doc__ if worker else "") or ""
    return formula_line(text, operand)


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


def _symbol(key: str) -> Symbol:
    return Symbol(key[:-4], bar=True) if key.endswith("_bar") else Symbol(key)


def _named(value: str | Expression) -> Expression:
    return value if isinstance(value, Expression) else _symbol(value)


def _renamed(line: str, names: Names) -> str:
    """A docstring's line with the person's names."""
    shown = {key: unicode.written(_named(value)) for key, value in _with_bars(names).items()}
    bars = {key[:-4]: text for key, text in shown.items() if key.endswith("_bar")}
    return renamed(line, {k: v for k, v in shown.items() if not k.endswith("_bar")}, bars)
