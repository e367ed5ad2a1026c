"""The formula line of a docstring, where a pullback is a program rather than a formula.

>>> text = "x̄ᵢ = ȳ [xᵢ = y] / #{j : xⱼ = y}."
>>> formula_line(text, "x") == decomposed(text.rstrip("."))
True
>>> print(renamed("x̄ᵢ = ȳ [xᵢ = y]", {"x": "s", "y": "m"}, {"x": "s̄", "y": "m̄"}))
s̄ᵢ = m̄ [sᵢ = m]
"""

from __future__ import annotations

import inspect
import re
import unicodedata
from collections.abc import Mapping

from functional_bp.explain.formulas.unicode import MACRON, barred

_BAR = rf"[^\W\d_]{MACRON}"
_STARTS = re.compile(rf"[−+(±½]*\s*({_BAR})")
_EQUATION = re.compile(rf"({_BAR})[^\s)]*\s*=\s")
_WORD = re.compile(r"([a-z]+)[-_]bar\s*=\s")
_SEPARATORS = (":", ",", ";", "⇒", "so", "where", ".")
_ARTICLE = re.compile(r"a\s+[a-z]{2,}")  # "a cotangent": no variable


def decomposed(text: str) -> str:
    """Every macron a character of its own, whether or not Unicode has the letter with it."""
    return "".join(
        unicodedata.normalize("NFD", c) if unicodedata.normalize("NFD", c)[1:] == MACRON else c
        for c in text
    )


def formula_line(docstring: str, operand: str, is_pullback: bool = True) -> str:
    """The sentence that says what a cotangent is; "" where there is none.

    Args:
        docstring: of a pullback or a structure.
        operand: the operand.
        is_pullback: a line that begins with an upstream cotangent is then read as the operand's.
    """
    first = inspect.cleandoc(docstring).partition("\n\n")[0]
    line = decomposed(" ".join(first.split()))
    if "↦" in line:
        return _ended(line)
    if found := _WORD.match(line):
        return _ended(f"{barred(found[1])} = {line[found.end() :]}")
    equations = [m for m in _EQUATION.finditer(line) if _stands_alone(line[: m.start()])]
    letters = {operand[0], operand[0].upper()}
    own = [m for m in equations if m[1][0] in letters]
    is_first = bool(equations) and equations[0].start() == 0
    start = (equations if is_first else own or equations)[0].start() if equations else 0
    if equations and (is_pullback or " = " not in line[:start]):
        return _ended(line[start:])
    if (found := _STARTS.match(line)) and is_pullback and found[1][0] not in letters:
        return _ended(f"{barred(operand)} = {line}")
    return _ended(line) if MACRON in line else ""


def _stands_alone(before: str) -> bool:
    return not before or before.rstrip().endswith(_SEPARATORS)


def _ended(line: str) -> str:
    return line.rstrip(" .:").replace("``", "")


def renamed(text: str, names: Mapping[str, str], bars: Mapping[str, str]) -> str:
    """A formula line with other names for its variables.

    Args:
        text: the line.
        names: what to write for a variable, by the letter that the rule has for it. The line may
            have the letter as a capital, for a matrix; of a starred operand (``xs``) the line's
            xₖ is one member.
        bars: the same for their cotangents.
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
