"""A rule as plain data, all of it read from the rule."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from functional_bp.explain.formulas.formula import Formula, formula
from functional_bp.explain.gallery.improved import improvements_of
from functional_bp.rule import Pullback, Rule

LONGEST_CODE = 60  # lines of a rule's source that are shown
HOME = Path(__file__).parents[3]  # the folder that holds the package
_REFERENCES = re.compile(r"References?:\s*\n((?:[ \t]+.*\n?)+)")


def describe_rule(rule: Rule) -> dict[str, Any]:
    """A rule as plain data.

    Returns:
        ``primitive``, ``kind``, ``signature``, ``formulas`` (for each operand that has a cotangent;
        for an operation that holds a graph one, under ""), ``keeps`` (for each operand, the names
        whose values are kept from the forward sweep; for a joint rule under all of them together),
        ``derivation``, ``references``, ``kinks``, ``improvements`` (the names of those declared
        for it), ``cases`` (how many), ``file`` and ``line``.
    """
    return {
        "primitive": rule.primitive.name,
        "kind": rule.kind,
        "signature": signature(rule),
        "formulas": {name: str(made) for name, made in formulas(rule).items()},
        "keeps": {name: list(p.keeps) for name, p in _pullbacks(rule).items()},
        "derivation": rule.derivation,
        "references": references(rule),
        "kinks": rule.kinks,
        "improvements": [entry.name for entry in improvements_of(rule)],
        "cases": len(rule.cases),
        "file": short_path(rule.file),
        "line": rule.line,
    }


def formulas(rule: Rule) -> dict[str, Formula]:
    """The formula of each operand that has a cotangent; under "" where a rule holds a graph."""
    if rule.structure is not None:
        return {"": formula(rule, "x")}
    if rule.joint is not None:
        return {name.text: formula(rule, name.text) for name in rule.operands}
    return {operand: formula(rule, operand) for operand in rule.pullbacks}


def references(rule: Rule) -> str:
    """What the derivation cites under ``References:``, on one line; "" where it cites nothing."""
    found = _REFERENCES.search(rule.derivation)
    return " ".join(found[1].split()) if found else ""


def signature(rule: Rule) -> str:
    """``x, *ys -> z | r``, or "" for a rule that has none."""
    if not rule.operands and not rule.outputs:
        return ""
    side = lambda names: ", ".join("*" * name.starred + name.text for name in names)  # noqa: E731
    text = f"{side(rule.operands)} -> {side(rule.outputs)}"
    return text + (f" | {', '.join(rule.auxiliaries)}" if rule.auxiliaries else "")


def keeps(facts: Mapping[str, Any]) -> str:
    """``x_bar: y; y_bar: x``, ``nothing`` for a linear rule, ``–`` where there is no cotangent."""
    if not facts["keeps"]:
        return "as the graph needs" if facts["kind"] == "structural" else "–"
    parts = []
    for operand, kept in facts["keeps"].items():
        bars = ", ".join(name + "_bar" for name in operand.split(", "))
        parts.append(f"{bars}: {', '.join(kept) or 'nothing'}")
    return "; ".join(parts) if any(facts["keeps"].values()) else "nothing"


def code(facts: Mapping[str, Any]) -> str:
    """The statement that declares the rule, "" if its file cannot be read."""
    file = Path(facts["file"])
    file = file if file.is_absolute() else HOME / file
    try:
        text = file.read_text(encoding="utf-8")
        body = ast.parse(text).body
    except (OSError, SyntaxError):
        return ""
    for node in body:
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        if first <= facts["line"] <= (node.end_lineno or first):
            lines = text.splitlines()[first - 1 : node.end_lineno]
            rest = len(lines) - LONGEST_CODE
            return "\n".join(lines[:LONGEST_CODE] + ([f"… {rest} more lines"] if rest > 0 else []))
    return ""


def chapter_title(module_file: str) -> str:
    """The first sentence of the docstring of the file that a rule stands in."""
    text = Path(module_file).read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(text)) or ""
    return " ".join(inspect.cleandoc(docstring).partition("\n\n")[0].split())


def _pullbacks(rule: Rule) -> Mapping[str, Pullback]:
    if rule.joint is not None:
        return {", ".join(name.text for name in rule.operands): rule.joint}
    return rule.pullbacks


def short_path(file: str) -> str:
    """Relative to the folder that holds the package, for the files inside it."""
    return str(Path(file).relative_to(HOME)) if Path(file).is_relative_to(HOME) else file
