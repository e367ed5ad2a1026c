"""The gallery shows each rule as plain data, and all of them on ``functional_bp/vjps/README.md``.

All of it is read from the rules themselves, from their files, and from the improvements on JAX that
are declared beside them.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.extend.core import JaxprEqn, Primitive

from functional_bp import _jax
from functional_bp.engine import improvements as declared
from functional_bp.engine.higher_order import of_jax
from functional_bp.engine.improvements import Improvement
from functional_bp.engine.rule import Pullback, Rule, rules
from functional_bp.explanation.formulas.formula import Formula, formula
from functional_bp.graph.interpret import equations
from functional_bp.tables.markdown import escaped, markdown
from functional_bp.tables.table import Cell, Column, Line, Table


def improvements_of(rule: Rule) -> list[Improvement]:
    """List the improvements declared for a rule."""
    return [entry for entry in declared.improvements if primitive_of(entry) is rule.primitive]


@cache
def primitive_of(entry: Improvement) -> Primitive | None:
    """Find the primitive whose rule makes the improvement; None where it cannot be told.

    An improvement is declared in the file of its rule; of the operations that its call runs, the
    first with a rule in that file is meant.
    """
    try:
        with jax.enable_x64(True):
            jaxpr = jax.make_jaxpr(entry.function)(*map(np.asarray, entry.at)).jaxpr
    except Exception:  # a call that this JAX does not have
        return None
    for eqn in equations(jaxpr):
        rule = rules.get(eqn.primitive)
        if rule is not None and entry.file in (rule.file, _file_of_function(eqn)):
            return eqn.primitive
    return None


def _file_of_function(eqn: JaxprEqn) -> str | None:
    """Find the file of our rule for a function to which JAX gave a tangent of its own."""
    higher_order = of_jax.get(_jax.custom_tangent(eqn.params.get("jvp_jaxpr_fun"), of_jax))
    return None if higher_order is None else inspect.getfile(higher_order)


LONGEST_CODE = 60  # lines of a rule's source that are shown
HOME = Path(__file__).parents[2]  # the folder that holds the package
_REFERENCES = re.compile(r"References?:\s*\n((?:[ \t]+.*\n?)+)")


def describe_rule(rule: Rule) -> dict[str, Any]:
    """Describe a rule as plain data.

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
    """Read the formula of each operand with a cotangent; under "" where a rule holds a graph."""
    if rule.higher_order is not None:
        return {"": formula(rule, "x")}
    if rule.joint is not None:
        return {name.text: formula(rule, name.text) for name in rule.operands}
    return {operand: formula(rule, operand) for operand in rule.pullbacks}


def references(rule: Rule) -> str:
    """Read what the derivation cites under ``References:``, on one line; "" for nothing."""
    found = _REFERENCES.search(rule.derivation)
    return " ".join(found[1].split()) if found else ""


def signature(rule: Rule) -> str:
    """Write the signature ``x, *ys -> z | r``, or "" for a rule that has none."""
    if not rule.operands and not rule.outputs:
        return ""
    side = lambda names: ", ".join("*" * name.starred + name.text for name in names)
    text = f"{side(rule.operands)} -> {side(rule.outputs)}"
    return text + (f" | {', '.join(rule.auxiliaries)}" if rule.auxiliaries else "")


def keeps(facts: Mapping[str, Any]) -> str:
    """Write ``x_bar: y; y_bar: x``, ``nothing`` for a linear rule, ``–`` without a cotangent."""
    if not facts["keeps"]:
        return "as the graph needs" if facts["kind"] == "structural" else "–"
    parts = []
    for operand, kept in facts["keeps"].items():
        bars = ", ".join(name + "_bar" for name in operand.split(", "))
        parts.append(f"{bars}: {', '.join(kept) or 'nothing'}")
    return "; ".join(parts) if any(facts["keeps"].values()) else "nothing"


def code(facts: Mapping[str, Any]) -> str:
    """Read the statement that declares the rule, "" if its file cannot be read."""
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
    """Read the first sentence of the docstring of the file that a rule stands in."""
    text = Path(module_file).read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(text)) or ""
    return " ".join(inspect.cleandoc(docstring).partition("\n\n")[0].split())


def _pullbacks(rule: Rule) -> Mapping[str, Pullback]:
    if rule.joint is not None:
        return {", ".join(name.text for name in rule.operands): rule.joint}
    return rule.pullbacks


def short_path(file: str) -> str:
    """Make a path relative to the folder that holds the package, if it is inside."""
    return str(Path(file).relative_to(HOME)) if Path(file).is_relative_to(HOME) else file


PACKAGE = Path(__file__).parents[1]
HEAD = """# The rules

One section per file of this folder. A formula is read from the rule's own source; **keeps** names
the values that are held from the forward sweep; **at kinks** is the convention where there is no
derivative. `functional-bp rules NAME` shows one rule with its code.

This page is written by `functional-bp rules --markdown > functional_bp/vjps/README.md`.
"""
COLUMNS = tuple(map(Column, ("rule", "formula", "keeps", "at kinks")))
WITHOUT = {
    "no tangent space": "No cotangent, for the outputs are integers, booleans, keys or tokens",
    "piecewise constant": "Zero wherever there is a derivative",
}


def page(rules: Iterable[Rule], whole: bool = True) -> str:
    """Write the page of those of the rules that stand in this package, by chapter, in Markdown.

    Nothing in it depends on where in its file a rule stands. ``whole`` is with the page's head.
    """
    chapters: dict[str, list[Rule]] = {}
    own = [rule for rule in rules if Path(rule.file).is_relative_to(PACKAGE)]
    for rule in sorted(own, key=lambda r: (Path(r.file).stem, r.line, r.primitive.name)):
        chapters.setdefault(rule.file, []).append(rule)
    written = [chapter(file, found) for file, found in chapters.items()]
    if not whole:
        return "\n".join(written)
    links = " · ".join(f"[{Path(f).stem}](#{anchor(f)})" for f in chapters)
    lead = f"{HEAD}\n{sum(map(len, chapters.values()))} rules, with JAX {version()}: {links}\n"
    return "\n".join([lead, *written])


def version() -> str:
    """Return JAX's version without its last number: rules come and go with the others."""
    return ".".join(jax.__version__.split(".")[:2])


def anchor(file: str) -> str:
    """Name the heading of a chapter as GitHub does."""
    return Path(file).name.replace(".", "").lower()


def chapter(file: str, rules: Sequence[Rule]) -> str:
    """Write a section: a table of its rules, what has no cotangent, improvements, derivations."""
    name = Path(file).name
    parts = [f"## [{name}]({name})", chapter_title(file)]
    differentiated = [rule for rule in rules if rule.kind not in WITHOUT]
    if differentiated:
        rows = tuple(line for rule in differentiated for line in lines(rule))
        parts.append(markdown((Table("", COLUMNS, rows),)).rstrip("\n"))
    for kind, what in WITHOUT.items():
        names = [f"`{rule.primitive.name}`" for rule in rules if rule.kind == kind]
        if names:
            parts.append(f"{what}: {', '.join(names)}.")
    improved = [line for rule in rules for line in improvement_lines(rule)]
    if improved:
        parts.append("Better than JAX:\n\n" + "\n".join(improved))
    derivations = [text for rule in differentiated for text in derivation(rule)]
    if derivations:
        inside = "\n".join(dict.fromkeys(derivations))
        parts.append(f"<details><summary>Derivations</summary>\n\n{inside}\n</details>")
    return "\n\n".join(parts) + "\n"


def lines(rule: Rule) -> list[Line]:
    """Make the lines of a rule in the table of its chapter, one for each operand."""
    facts = describe_rule(rule)
    rows = []
    for k, (operand, made) in enumerate(formulas(rule).items()):
        kept = facts["keeps"].get(operand, [])
        held = keeps(facts) if not operand else ", ".join(kept) or "nothing"
        name, kinks = (rule.primitive.name, rule.kinks) if k == 0 else ("", "")
        cells = (Cell(name, is_code=True), Cell(str(made)), Cell(held), Cell(kinks))
        rows.append(Line("operand", cells))
    return rows


def improvement_lines(rule: Rule) -> list[str]:
    """List what a rule does better than JAX."""
    return [
        f"- `{rule.primitive.name}`, {escaped(entry.name)}. JAX: {escaped(entry.jax)}"
        for entry in improvements_of(rule)
    ]


def derivation(rule: Rule) -> list[str]:
    """Quote the derivation that stands beside the rule."""
    if not rule.derivation:
        return []
    fence = "```" if "```" not in rule.derivation else "````"
    return [f"**{escaped(rule.primitive.name)}**\n\n{fence}text\n{rule.derivation}\n{fence}\n"]
