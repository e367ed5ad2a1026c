"""An edit is told in words: what is wrong, on which line, and what to write instead."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping, Sequence

from functional_bp.gradcheck.diagnosis.repair.mutations.mutation import Edit, Site
from functional_bp.gradcheck.diagnosis.repair.rewrites import is_alias, use_of
from functional_bp.gradcheck.diagnosis.repair.source import (
    Fragment,
    Names,
    expression,
    own_span,
    read,
)
from functional_bp.gradcheck.findings import Finding, Repair


def described(edit: Edit, site: Site, names: Names) -> Finding:
    """An edit is told in words, with its line and what to write instead."""
    at, whole = site.expression, site.own or site.last
    if edit.at is not None:
        made = expression(edit.at.spans, names.home)
        if made is not None and isinstance(edit.write, Callable) and edit.write(made) is not None:
            at, whole = made, True
    span = None if at is None else at.span
    values = {f"_{'vw'[i]}": names.at(slot, span) for i, slot in enumerate(edit.reads[:2])}
    words = {"vw"[i]: names.described(slot, span) for i, slot in enumerate(edit.reads[:2])}
    slots = site.equation.operands
    for position, name in enumerate(("_a", "_b", "_c")[: len(slots)]):
        node = None if at is None or not site.own else at.operand(position)
        slot = slots[position]
        words[name] = ast.unparse(node) if node is not None else names.described(slot, span)
    before = at.text if at is not None and whole else ""
    words["_e"] = before or "the result"
    use = use_of(site.equation)
    if use is not None:
        operand = None if at is None or use < 0 else at.operand(use)
        named = names.described(slots[0], span) if operand is None else ast.unparse(operand)
        words.update(_e=named, _a=named)
    several = is_alias(site.equation) and (use == -1 or at is not None and is_unpacked(at))
    if several and (held := _holding_all(site, names.home)) is not None:
        words.setdefault("_a", words["_e"])
        at, before = held, held.text
    message = re.sub(r"\{(\w+)\}", lambda m: words.get(m[1], "an operand"), edit.message)
    after = None
    if at is not None and at.node is not None and not is_unpacked(at):
        if several:
            after = _everywhere(edit, at, site, words["_e"])
        else:
            after = _after(edit, at, site, names, values)
    if after is not None and not before and at is not None:
        before = at.text
        words["_e"] = words["_e"] if use is not None else before
    place = None if at is None else at.place
    of = f"`{words['_e']}`" + (f" in `{before}`" if use is not None and before else "")
    is_told = "{_e}" in edit.message or not before or message.startswith(f"{before} ")
    said = message if is_told else f"{of}: {message}"
    repair = Repair(message, place, before if after else "", after or "")
    also = (edit.also,) if edit.also else ()
    return Finding(edit.kind, said, where=place, repair=repair, also=also)


def _everywhere(edit: Edit, at: Fragment, site: Site, name: str) -> str | None:
    """The expression with every use of a value in it written otherwise."""
    template = edit.change[1] if edit.change else edit.write
    if not isinstance(template, str) or not template or edit.reads:
        return None
    template = re.sub(r"\b_[ea]\b", "_x", template)
    return at.everywhere(name, template, len(site.equation.params["uses"]))


def _holding_all(site: Site, home: str | None) -> Fragment | None:
    """The expression that holds every use of a value that has no line of its own."""
    spans = [own_span(each, home) for each in site.equation.params.get("uses", ())]
    known = [span for span in spans if span is not None]
    functions = {(span.file, span.function) for span in known}
    if len(known) < len(spans) or len(functions) != 1:
        return None
    node = read(known[0].file).holding(known)
    return None if node is None else Fragment(known[0], node)


def is_unpacked(at: Fragment) -> bool:
    """Whether an expression is a name that something is assigned to."""
    return isinstance(at.node, ast.Name) and isinstance(at.node.ctx, ast.Store)


def _after(
    edit: Edit,
    at: Fragment,
    site: Site,
    names: Names,
    values: Mapping[str, ast.expr | None],
) -> str | None:
    use = use_of(site.equation)
    if use is not None:
        template = edit.change[1] if edit.change else edit.write
        node = at.operand(use) if use >= 0 else None
        if node is None or not isinstance(template, str) or not template:
            return None
        return at.changed(node, re.sub(r"\b_[ea]\b", "_x", template), values)
    if edit.change is not None:
        position, template = edit.change
        node = at.operand(position) if site.own else None
        if node is None:
            slot = site.equation.operands[position]
            node = at.part(names.described(slot, at.span))
        return None if node is None else at.changed(node, template, values)
    if isinstance(edit.write, Callable):
        return edit.write(at)
    if not edit.write or not (site.own or site.last):
        return None
    if re.search(r"\b_[abc]\b", edit.write) and not site.own:
        return None
    return at.written(edit.write, values)


def joined(said: Sequence[Finding]) -> Finding:
    """Two edits that are needed at once are told as one."""
    first = said[0]
    parts = [f"{one.message}" + (f" (line {one.where.line})" if one.where else "") for one in said]
    message = "two things at once: " + "; and ".join(parts)
    repairs = [one.repair for one in said if one.repair is not None and one.repair.after]
    if len(repairs) < len(said):  # half of a repair is none
        return Finding(first.kind, message, where=first.where, repair=Repair(message, first.where))
    before, after = ("; ".join(each) for each in zip(*((r.before, r.after) for r in repairs)))
    repair = Repair(message, first.where, before, after)
    return Finding(first.kind, message, where=first.where, repair=repair)
