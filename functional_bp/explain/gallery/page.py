"""The gallery as one Markdown page: ``functional_bp/rules/README.md``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import jax

from functional_bp.explain.gallery.facts import chapter_title, formulas, keeps
from functional_bp.explain.gallery.facts import describe_rule as described
from functional_bp.explain.gallery.improved import improvements_of
from functional_bp.explain.tables.markdown import escaped
from functional_bp.rule import Rule

PACKAGE = Path(__file__).parents[2]
HEAD = """# The rules

One section per file of this folder. A formula is read from the rule's own source; **keeps** names
the values that are held from the forward sweep; **at kinks** is the convention where there is no
derivative. `functional-bp rules NAME` shows one rule with its code.

This page is written by `functional-bp rules --markdown > functional_bp/rules/README.md`.
"""
WITHOUT = {
    "no tangent space": "No cotangent, for the outputs are integers, booleans, keys or tokens",
    "piecewise constant": "Zero wherever there is a derivative",
}


def page(rules: Iterable[Rule]) -> str:
    """The page of those of the rules that stand in this package, by chapter.

    Returns:
        Markdown. Nothing in it depends on where in its file a rule stands.
    """
    chapters: dict[str, list[Rule]] = {}
    own = [rule for rule in rules if Path(rule.file).is_relative_to(PACKAGE)]
    for rule in sorted(own, key=lambda r: (Path(r.file).stem, r.line, r.primitive.name)):
        chapters.setdefault(rule.file, []).append(rule)
    total = sum(map(len, chapters.values()))
    links = " · ".join(f"[{Path(f).stem}](#{anchor(f)})" for f in chapters)
    lead = f"{HEAD}\n{total} rules, with JAX {version()}: {links}\n"
    return "\n".join([lead, *(chapter(file, found) for file, found in chapters.items())])


def version() -> str:
    """JAX's version without its last number: rules come and go with the others."""
    return ".".join(jax.__version__.split(".")[:2])


def anchor(file: str) -> str:
    """What GitHub calls the heading of a chapter."""
    return Path(file).name.replace(".", "").lower()


def chapter(file: str, rules: Sequence[Rule]) -> str:
    """One section: a table of its rules, what has no cotangent, improvements, derivations."""
    name = Path(file).name
    parts = [f"## [{name}]({name})", chapter_title(file)]
    differentiated = [rule for rule in rules if rule.kind not in WITHOUT]
    if differentiated:
        heads = "| rule | formula | keeps | at kinks |\n| :-- | :-- | :-- | :-- |"
        parts.append("\n".join([heads, *(line for r in differentiated for line in lines(r))]))
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


def lines(rule: Rule) -> list[str]:
    """The rows of a rule in the table of its chapter: one per operand."""
    facts = described(rule)
    rows = []
    for k, (operand, made) in enumerate(formulas(rule).items()):
        kept = facts["keeps"].get(operand, [])
        held = keeps(facts) if not operand else ", ".join(kept) or "nothing"
        name = f"`{rule.primitive.name}`" if k == 0 else ""
        kinks = escaped(rule.kinks) if k == 0 else ""
        rows.append(f"| {name} | {escaped(str(made))} | {escaped(held)} | {kinks} |")
    return rows


def improvement_lines(rule: Rule) -> list[str]:
    """What a rule does better than JAX, one item each."""
    return [
        f"- `{rule.primitive.name}`, {escaped(entry.name)}. JAX: {escaped(entry.jax)}"
        for entry in improvements_of(rule)
    ]


def derivation(rule: Rule) -> list[str]:
    """The derivation, as it stands beside the rule."""
    if not rule.derivation:
        return []
    fence = "```" if "```" not in rule.derivation else "````"
    return [f"**{escaped(rule.primitive.name)}**\n\n{fence}text\n{rule.derivation}\n{fence}\n"]
