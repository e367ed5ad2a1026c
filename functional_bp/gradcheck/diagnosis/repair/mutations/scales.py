"""Constants are solved for: a factor of a result, a number that is written in the code."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from functional_bp.gradcheck.diagnosis import costs
from functional_bp.gradcheck.diagnosis.repair.mutations.mutation import (
    OPERAND,
    Edit,
    Site,
    with_operand,
)
from functional_bp.gradcheck.diagnosis.repair.numerals import Numeral, named, shown
from functional_bp.gradcheck.diagnosis.repair.program import in_scope
from functional_bp.gradcheck.findings import Kind

EXACT = 1e-7  # to which a number in the code is found


def scaled(site: Site) -> Iterator[Edit]:
    """The result may lack a constant factor."""

    def settle(c: float) -> Edit | None:
        constant = named(c, site.sizes)
        if constant is None or constant.value == 1:
            return None
        message = f"a factor {constant.name} is missing"
        kind, rank = Kind.FACTOR, costs.SCALED + costs.PER_ODDITY * constant.simple
        inverse = 1 / constant.value if constant.value else 0.0
        write = f"_e * ({constant.text})"
        if inverse > 1 and inverse.is_integer():
            write = f"_e / {inverse:.0f}"
        if constant.value == 0:
            kind, message, write, rank = (
                Kind.EXTRA_TERM,
                "{_e} does not belong here",
                "0",
                costs.ZERO,
            )
        elif constant.value == -1:
            kind, message, write, rank = Kind.SIGN, "the sign is wrong", "-_e", costs.NEGATED
        return replace(
            edit, kind=kind, message=message, rank=rank, write=write, start=None, settle=None,
            compute=lambda a, v, _: constant.value * site.again(a))

    edit = Edit(
        site.equation.key, Kind.FACTOR, "", lambda a, v, c: c * site.again(a), costs.SCALED,
        start=1.0, settle=settle)
    yield edit


def shifted(site: Site) -> Iterator[Edit]:
    """The result may lack a constant that a person would add."""
    if not site.last or site.result.dtype.kind != "f":
        return

    def settle(c: float) -> Edit | None:
        constant = named(c, site.sizes)
        if constant is None or constant.value == 0 or constant.simple > 0:
            return None
        sign, size = "-" if constant.value < 0 else "+", constant.text.lstrip("-")
        return replace(
            edit, message=f"the term {sign} {size} is missing", write=f"(_e {sign} {size})",
            compute=lambda a, v, _: site.again(a) + constant.value, start=None, settle=None)

    edit = Edit(
        site.equation.key, Kind.MISSING_TERM, "", lambda a, v, c: site.again(a) + c,
        costs.NUMBER_ADDED, start=0.0, settle=settle)
    yield edit


def weighted(site: Site) -> Iterator[Edit]:
    """A term or a branch that nothing has computed on the spot may lack a constant factor."""
    if site.equation.name not in ("add", "sub", "add_any", "select_n"):
        return
    for position, slot in enumerate(site.equation.operands):
        maker = site.makers.get(slot)
        held = maker.operands[0] if maker is not None and maker.name == "copy" else slot
        if site.names.get(held, costs.UNNAMED) == 0 and in_scope(site.values[slot]):
            yield _weighted(site, position)


def _weighted(site: Site, position: int) -> Edit:
    operand = OPERAND[position]

    def compute(a: Any, v: Any, c: float) -> Any:
        return site.again(with_operand(a, position, c * a[position]))

    def settle(c: float) -> Edit | None:
        constant = named(c, site.sizes)
        if constant is None or constant.value in (0.0, 1.0, -1.0):
            return None
        return replace(
            edit, message=f"{operand} lacks a factor {constant.name}",
            rank=costs.TERM_SCALED + costs.PER_ODDITY * constant.simple,
            change=(position, f"_x * ({constant.text})"),
            compute=lambda a, v, _: compute(a, v, constant.value), start=None, settle=None)

    edit = Edit(
        site.equation.key, Kind.FACTOR, "", compute, 1, start=1.0, settle=settle,
        also=Kind.WRONG_CONSTANT)
    return edit


def literals(site: Site) -> Iterator[Edit]:
    """A number that is written in the code may have to be another one."""
    if site.equation.name == "iota" or not site.own:
        return
    for position, slot in enumerate(site.equation.operands):
        value = site.values[slot]
        if slot in site.literals and in_scope(value) and np.imag(value) == 0:
            yield _literal(site, position, float(np.real(value)))


def _literal(site: Site, position: int, now: float) -> Edit:
    product = site.equation.name in ("mul", "div")

    def settle(c: float) -> Edit | None:
        constant, was, text = _meant(site, position, c, now)
        value = constant.value if constant else c
        if abs(value - now) <= 1e-12 * abs(now) or product and abs(value - 1) < 1e-9:
            return None  # nothing changed, or the factor should go
        odd = constant.simple if constant else costs.NAMELESS_NUMBER
        kind, rank = Kind.WRONG_CONSTANT, costs.NUMBER + costs.PER_ODDITY * odd
        if value == 0 and not product:
            kind = Kind.EXTRA_TERM
        if now and value == -now:
            kind, rank = Kind.SIGN, costs.NUMBER_NEGATED
        to = constant.name if constant else shown(c)
        if text and constant and constant.value != c:
            value = c  # the number found is a part of the operand's
        return Edit(
            site.equation.key, kind, f"the constant should be {to}, not {shown(was)}",
            lambda a, v, _: site.again(with_operand(a, position, np.asarray(value))), rank,
            change=(position, text or (constant.text if constant else shown(c))),
            also=Kind.FACTOR if product and kind == Kind.WRONG_CONSTANT else "")

    return Edit(
        site.equation.key, Kind.WRONG_CONSTANT, "",
        lambda a, v, c: site.again(with_operand(a, position, np.asarray(c))), costs.SCALED,
        start=now, settle=settle)


def _meant(site: Site, position: int, c: float, now: float) -> tuple[Numeral | None, float, str]:
    """The constant that a person wrote wrongly, what it was, and the operand written rightly.

    Python has multiplied ``2 * 0.044715`` out before JAX sees it: which of the two was wrong is
    told by which of them becomes a number that has a name.
    """
    node = None if site.expression is None else site.expression.operand(position)
    parts = [] if node is None else [n for n in ast.walk(node) if isinstance(n, ast.Constant)]
    best: tuple[Numeral, float, str] | None = None
    if node is not None and len(parts) > 1 and _is_product(node):
        for part in parts:
            was = float(part.value)  # pyright: ignore[reportArgumentType]
            power = _power(node, part)
            constant = named(was * (c / now) ** power if now else np.nan, site.sizes, EXACT)
            if constant is not None and (best is None or constant.simple < best[0].simple):
                new = ast.parse(constant.text, mode="eval").body
                text = ast.unparse(copy.deepcopy(node, {id(part): new}))
                best = (constant, was, text)
    return best or (named(c, site.sizes, EXACT), now, "")


def _is_product(node: ast.expr) -> bool:
    if isinstance(node, ast.BinOp):
        both = _is_product(node.left) and _is_product(node.right)
        return both and isinstance(node.op, ast.Mult | ast.Div)
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float)


def _power(node: ast.expr, part: ast.expr) -> int:
    """Whether a number in a product is a factor, 1, or a divisor, −1."""
    if isinstance(node, ast.BinOp):
        if any(n is part for n in ast.walk(node.left)):
            return _power(node.left, part)
        return _power(node.right, part) * (-1 if isinstance(node.op, ast.Div) else 1)
    return 1
