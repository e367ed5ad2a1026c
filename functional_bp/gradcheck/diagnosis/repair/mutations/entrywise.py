"""Entry by entry, another sign, operator, function, bound, branch or number may belong."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from functional_bp.gradcheck.diagnosis import costs
from functional_bp.gradcheck.diagnosis.expressions import NamedNumber, named, shown
from functional_bp.gradcheck.diagnosis.repair.locations import (
    OPERAND,
    Edit,
    Site,
    outside_of,
    solved,
    with_operand,
)
from functional_bp.gradcheck.diagnosis.repair.program import in_scope
from functional_bp.gradcheck.diagnosis.repair.source import OPERATORS
from functional_bp.gradcheck.findings import Kind

COMPARISONS = {
    "gt": (">", np.greater),
    "ge": (">=", np.greater_equal),
    "lt": ("<", np.less),
    "le": ("<=", np.less_equal),
}
USUAL_THRESHOLDS = (0.0, 1.0, -1.0, 0.5, 2.0, 3.0, 6.0)


def _softmax(x: Any) -> Any:
    if np.ndim(x) == 0 or np.shape(x)[-1] < 2:
        raise ValueError("the softmax of one entry is 1 whatever it is")
    e = np.exp(x - np.max(x, -1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _of_jax(name: str) -> Callable[..., Any]:
    return lambda x: np.asarray(getattr(lax, name)(x))


# fmt: off
UNARY: dict[str, tuple[Callable[..., Any], str]] = {
    "exp": (np.exp, "jnp.exp({0})"), "log": (np.log, "jnp.log({0})"),
    "log1p": (np.log1p, "jnp.log1p({0})"), "expm1": (np.expm1, "jnp.expm1({0})"),
    "tanh": (np.tanh, "jnp.tanh({0})"),
    "logistic": (lambda x: 0.5 * (1 + np.tanh(0.5 * x)), "jax.nn.sigmoid({0})"),
    "sin": (np.sin, "jnp.sin({0})"), "cos": (np.cos, "jnp.cos({0})"),
    "sinh": (np.sinh, "jnp.sinh({0})"), "cosh": (np.cosh, "jnp.cosh({0})"),
    "sqrt": (np.sqrt, "jnp.sqrt({0})"), "rsqrt": (lambda x: 1 / np.sqrt(x), "1 / jnp.sqrt({0})"),
    "square": (np.square, "{0} ** 2"), "abs": (np.abs, "jnp.abs({0})"),
    "sign": (np.sign, "jnp.sign({0})"), "neg": (np.negative, "-{0}"),
    "1 -": (lambda x: 1 - x, "1 - {0}"), "1 /": (lambda x: 1 / x, "1 / {0}"),
    "1 - square": (lambda x: 1 - x * x, "1 - {0} ** 2"),
    "softmax": (_softmax, "jax.nn.softmax({0}, axis=-1)"),
}
SPECIAL: dict[str, tuple[Callable[..., Any], str]] = {
    "digamma": (_of_jax("digamma"), "jax.scipy.special.digamma({0})"),
    "lgamma": (_of_jax("lgamma"), "jax.scipy.special.gammaln({0})"),
    "erf": (_of_jax("erf"), "jax.scipy.special.erf({0})"),
    "erfc": (_of_jax("erfc"), "jax.scipy.special.erfc({0})"),
}
# fmt: on


def _second_less_first(a: Any, b: Any) -> Any:
    return b - a


# By primitive: kind, message, function of the operands, cost, how it is written.
Row = tuple[Kind, str, Callable[..., Any], float, str]
ARITHMETIC: dict[str, tuple[Row, ...]] = {
    "add": (
        (Kind.SIGN, "should be a subtraction", np.subtract, costs.LIKELIEST, "_a - _b"),
        (Kind.SIGN, "should be a subtraction the other way", _second_less_first,
         costs.OTHER_WAY_ROUND, "_b - _a"),
        (Kind.EXTRA_TERM, "the term {_b} does not belong here", lambda a, b: a,
         costs.TERM_TOO_MANY, "_a"),
        (Kind.EXTRA_TERM, "the term {_a} does not belong here", lambda a, b: b,
         costs.TERM_TOO_MANY, "_b"),
    ),
    "sub": (
        (Kind.SIGN, "should be an addition", np.add, costs.LIKELIEST, "_a + _b"),
        (Kind.SIGN, "the operands should be swapped", _second_less_first, costs.MINUS_SWAPPED,
         "_b - _a"),
        (Kind.EXTRA_TERM, "the term {_b} does not belong here", lambda a, b: a,
         costs.TERM_TOO_MANY, "_a"),
        (Kind.EXTRA_TERM, "the term {_a} does not belong here", lambda a, b: -b,
         costs.FIRST_TERM_TOO_MANY, "-_b"),
    ),
    "mul": (
        (Kind.MISSING_FACTOR, "should be a division", np.divide, costs.PRODUCT_OR_QUOTIENT,
         "_a / _b"),
        (Kind.MISSING_FACTOR, "should be {_b} / {_a}", lambda a, b: b / a,
         costs.INVERSE_QUOTIENT, "_b / _a"),
        (Kind.FACTOR, "the factor {_b} is too many", lambda a, b: a, costs.FACTOR_TOO_MANY, "_a"),
        (Kind.FACTOR, "the factor {_a} is too many", lambda a, b: b, costs.FACTOR_TOO_MANY, "_b"),
    ),
    "div": (
        (Kind.MISSING_FACTOR, "should be a product", np.multiply, costs.PRODUCT_OR_QUOTIENT,
         "_a * _b"),
        (Kind.MISSING_FACTOR, "the operands should be swapped", lambda a, b: b / a,
         costs.OTHER_WAY_ROUND, "_b / _a"),
        (Kind.FACTOR, "the division by {_b} is too many", lambda a, b: a, costs.FACTOR_TOO_MANY,
         "_a"),
    ),
    "neg": ((Kind.SIGN, "should not be negated", np.positive, costs.LIKELIEST, "_a"),),
    "rev": ((Kind.REVERSAL, "should not be reversed", np.positive, costs.LIKELIEST, "_a"),),
    "conj": (
        (Kind.WRONG_FUNCTION, "should not be conjugated", np.positive, costs.NOT_CONJUGATED, "_a"),
    ),
}
ARITHMETIC["add_any"] = ARITHMETIC["add"]


def arithmetic(site: Site) -> Iterator[Edit]:
    """A sum, a product or a sign may need another operator, another order, or an operand less."""
    shape = np.shape(site.result)
    for kind, message, function, rank, write in ARITHMETIC[site.equation.name]:
        dropped = {"_a": 1, "_b": 0}.get(write, 0)
        if kind == Kind.EXTRA_TERM and not in_scope(site.result):
            kind = Kind.OFF_BY_ONE  # an index
        if kind == Kind.FACTOR and not site.is_literal(dropped):
            kind = Kind.MISSING_FACTOR
        compute = lambda *a, f=function: np.broadcast_to(f(*a), shape)
        yield site.edit(kind, message, compute, rank, write=write)


def extreme(site: Site) -> Iterator[Edit]:
    """A maximum may have to be a minimum, or not bound at all."""
    other, function = (
        ("minimum", np.minimum) if site.equation.name == "max" else ("maximum", np.maximum)
    )
    bounded = site.is_literal(0) or site.is_literal(1)
    rank = costs.OTHER_EXTREME_OF_A_BOUND if bounded else costs.LIKELIEST
    yield site.edit(
        Kind.WRONG_FUNCTION, f"should be the {other}", function, rank,
        write=lambda e: e.called(other) if e.spelling.endswith("imum") else None)
    for kept in (0, 1):
        bound = site.is_literal(1 - kept)
        yield site.edit(
            Kind.REGION, "the bound does not belong here", lambda *x, k=kept: x[k],
            costs.NO_BOUND if bound else costs.ONE_OF_TWO_VALUES, write=f"_{'ab'[kept]}")


def exponent(site: Site) -> Iterator[Edit]:
    """A power may need another exponent."""
    present = site.equation.params.get("y", 2)
    for y in (1, 2, 3, 4, -1, -2, -3, -4):
        if y != present:
            yield site.edit(
                Kind.MISSING_FACTOR, f"the exponent should be {y}, not {present}",
                lambda x, y=y: x**y if y > 0 else 1 / x**-y,
                costs.POWER if y > 0 else costs.NEGATIVE_POWER,
                write=f"_a ** {y}" if y != 1 else "_a")


def select(site: Site) -> Iterator[Edit]:
    """A choice may stand the other way round, or one branch may be right everywhere."""
    if len(site.operands) != 3:
        return
    yield site.edit(
        Kind.REGION, "the branches should be swapped", lambda c, no, yes: np.where(c, no, yes),
        write="jnp.where(_a, _b, _c)")
    for lost, write in ((1, "jnp.where(_a, _c, 0.0)"), (2, "jnp.where(_a, 0.0, _b)")):
        if np.any(site.operands[lost]):
            yield site.edit(
                Kind.REGION, f"zero belongs in the place of {{_{'abc'[lost]}}}",
                lambda *a, lost=lost: site.again(with_operand(a, lost, np.zeros_like(a[lost]))),
                costs.ZERO_BRANCH, write=write)
    for kept, text in ((2, "_c"), (1, "_b")):
        yield site.edit(
            Kind.REGION, f"one branch is right everywhere: {{{text}}}",
            lambda *x, kept=kept: np.broadcast_to(x[kept], np.shape(site.result)), costs.ONE_BRANCH,
            write=text)


def compare(site: Site) -> Iterator[Edit]:
    """A comparison may need another relation or threshold, or always hold."""
    present = COMPARISONS[site.equation.name][0]
    plain = site.expression is not None and OPERATORS.get(site.expression.spelling) == present
    for symbol, function in COMPARISONS.values():
        if symbol != present:
            yield site.edit(
                Kind.REGION, f"should be `{symbol}`, not `{present}`", function,
                costs.OTHER_RELATION if symbol[0] != present[0] else costs.STRICTNESS,
                write=f"_a {symbol} _b" if plain else "")
    for truth in (True, False):
        yield site.edit(
            Kind.REGION, f"the condition should {'always' if truth else 'never'} hold",
            lambda *_, truth=truth: np.full(np.shape(site.result), truth), costs.CONSTANT_CONDITION)
    yield site.operand_edit(
        0, Kind.REGION, "should compare the absolute value", np.abs, costs.OF_THE_ABSOLUTE_VALUE,
        "jnp.abs(_x)")
    for position, slot in enumerate(site.equation.operands):
        value = site.values[slot]
        if np.ndim(value) > 0 and slot not in site.literals:
            continue
        now = float(value)
        for c in dict.fromkeys((*site.thresholds, -now, *USUAL_THRESHOLDS)):
            if c != now:
                yield site.operand_edit(
                    position, Kind.REGION, f"the threshold should be {shown(c)}, not {shown(now)}",
                    lambda x, c=c: np.asarray(c, np.asarray(x).dtype), costs.THRESHOLD, shown(c))


def unary(site: Site) -> Iterator[Edit]:
    """A function of one value may have to be another one, or none."""
    yield site.edit(
        Kind.WRONG_FUNCTION, "should not be applied", lambda x: x, costs.NOT_APPLIED, write="_a")
    known = {**UNARY, **SPECIAL} if site.equation.name in SPECIAL else UNARY
    for name, (function, template) in known.items():
        if name != site.equation.name:
            yield site.edit(
                Kind.WRONG_FUNCTION,
                f"should be {template.format('x')}, not {site.equation.name}(x)", function,
                costs.SOFTMAX if name == "softmax" else costs.OTHER_FUNCTION,
                write=template.format("_a"))


def cast(site: Site) -> Iterator[Edit]:
    """A cast to a coarser format may not belong."""
    (x,), to = site.operands, np.dtype(site.equation.params["new_dtype"])
    coarser = jnp.issubdtype(to, np.inexact) and to.itemsize < x.dtype.itemsize
    if in_scope(x) and coarser:
        is_cast = site.expression is not None and site.expression.spelling == "astype"
        yield site.edit(
            Kind.PRECISION, f"{{_e}} is rounded to {to.name}: leave out the cast", lambda x: x,
            costs.NO_CAST, write=(lambda e: e.written("_a", {})) if is_cast else "")


def conjugated(site: Site) -> Iterator[Edit]:
    """A complex operand or result may have to be conjugated."""
    if site.result.dtype.kind == "c" and site.last and site.equation.name != "conj":
        yield site.edit(
            Kind.WRONG_FUNCTION, "{_e} should be conjugated", lambda *a: np.conj(site.again(a)),
            costs.RESULT_CONJUGATED, write="jnp.conj(_e)")
    if site.equation.name in ("add", "sub", "mul", "div", "dot_general"):
        for position, x in enumerate(site.operands):
            if in_scope(x) and x.dtype.kind == "c":
                yield site.operand_edit(
                    position, Kind.WRONG_FUNCTION, "{x} should be conjugated", np.conj,
                    costs.OPERAND_CONJUGATED, "jnp.conj(_x)")


def wrapped(site: Site) -> Iterator[Edit]:
    """A function may be missing around an operand, or around the result."""
    binary = site.equation.name in ("add", "sub", "mul", "div", "dot_general")
    for name, (function, template) in UNARY.items():
        if name == "neg":
            continue
        kind = Kind.MISSING_FACTOR if name == "square" else Kind.WRONG_FUNCTION
        if binary:
            for position, x in enumerate(site.operands):
                complement = name == "1 -" and site.equation.name != "dot_general"
                if in_scope(x) and (np.ndim(x) > 0 or complement) and not site.is_literal(position):
                    squared = name == "square" and site.equation.name == "sub"
                    rank = costs.COMPLEMENT_OF_OPERAND if complement else costs.FUNCTION_OF_OPERAND
                    rank = costs.SQUARED_OPERAND if squared else rank
                    rank = costs.SOFTMAX_OF_OPERAND if name == "softmax" else rank
                    yield site.operand_edit(
                        position, kind, f"{{x}} should be {template.format('{x}')}", function, rank,
                        template.format("_x"))
        elif site.last:
            yield site.edit(
                kind, f"{{_e}} should be {template.format('{_e}')}",
                lambda *a, f=function: f(site.again(a)), costs.FUNCTION_OF_RESULT,
                write=template.format("_e"))


# Constants, which are solved for.

EXACT = 1e-7  # to which a number in the code is found


def scaled(site: Site) -> Iterator[Edit]:
    """The result may lack a constant factor."""

    def told(constant: NamedNumber) -> dict[str, Any]:
        if constant.value == 0:
            return dict(kind=Kind.EXTRA_TERM, message="{_e} does not belong here", write="0",
                        rank=costs.ZERO)  # fmt: skip
        if constant.value == -1:
            return dict(kind=Kind.SIGN, message="the sign is wrong", write="-_e",
                        rank=costs.NEGATED)  # fmt: skip
        inverse = 1 / constant.value
        whole = inverse > 1 and inverse.is_integer()
        return dict(
            message=f"a factor {constant.text} is missing",
            write=f"_e / {inverse:.0f}" if whole else f"_e * ({constant.python})",
            rank=costs.SCALED + costs.PER_ODDITY * constant.oddity)

    yield solved(
        site.equation.key, site.sizes, Kind.FACTOR, lambda a, v, c: c * site.again(a), 1.0,
        costs.SCALED, told)


def shifted(site: Site) -> Iterator[Edit]:
    """The result may lack a constant that a person would add."""
    if not site.last or site.result.dtype.kind != "f":
        return

    def told(constant: NamedNumber) -> dict[str, Any] | None:
        sign, size = "-" if constant.value < 0 else "+", constant.python.lstrip("-")
        said = dict(message=f"the term {sign} {size} is missing", write=f"(_e {sign} {size})")
        return None if constant.oddity > 0 else said

    yield solved(
        site.equation.key, site.sizes, Kind.MISSING_TERM, lambda a, v, c: site.again(a) + c, 0.0,
        costs.NUMBER_ADDED, told)


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
    def compute(a: Any, v: Any, c: float) -> Any:
        return site.again(with_operand(a, position, c * a[position]))

    def told(constant: NamedNumber) -> dict[str, Any] | None:
        return None if constant.value in (0.0, -1.0) else dict(
            message=f"{OPERAND[position]} lacks a factor {constant.text}",
            rank=costs.TERM_SCALED + costs.PER_ODDITY * constant.oddity,
            change=(position, f"_x * ({constant.python})"), also=Kind.WRONG_CONSTANT)

    return solved(site.equation.key, site.sizes, Kind.FACTOR, compute, 1.0, 1, told)


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
        odd = constant.oddity if constant else costs.NAMELESS_NUMBER
        kind, rank = Kind.WRONG_CONSTANT, costs.NUMBER + costs.PER_ODDITY * odd
        if value == 0 and not product:
            kind = Kind.EXTRA_TERM
        if now and value == -now:
            kind, rank = Kind.SIGN, costs.NUMBER_NEGATED
        to = constant.text if constant else shown(c)
        if text and constant and constant.value != c:
            value = c  # the number found is a part of the operand's
        return Edit(
            site.equation.key, kind, f"the constant should be {to}, not {shown(was)}",
            lambda a, v, _: site.again(with_operand(a, position, np.asarray(value))), rank,
            change=(position, text or (constant.python if constant else shown(c))),
            also=Kind.FACTOR if product and kind == Kind.WRONG_CONSTANT else "")

    return Edit(
        site.equation.key, Kind.WRONG_CONSTANT, "",
        lambda a, v, c: site.again(with_operand(a, position, np.asarray(c))), costs.SCALED,
        start=now, settle=settle)


def _meant(
    site: Site, position: int, c: float, now: float
) -> tuple[NamedNumber | None, float, str]:
    """The constant that a person wrote wrongly, what it was, and the operand written rightly.

    Python has multiplied ``2 * 0.044715`` out before JAX sees it: which of the two was wrong is
    told by which of them becomes a number that has a name.
    """
    node = None if site.expression is None else site.expression.operand(position)
    parts = [] if node is None else [n for n in ast.walk(node) if isinstance(n, ast.Constant)]
    best: tuple[NamedNumber, float, str] | None = None
    if node is not None and len(parts) > 1 and _is_product(node):
        for part in parts:
            was = float(part.value)  # pyright: ignore[reportArgumentType]
            power = _power(node, part)
            constant = named(was * (c / now) ** power if now else np.nan, site.sizes, EXACT)
            if constant is not None and (best is None or constant.oddity < best[0].oddity):
                new = ast.parse(constant.python, mode="eval").body
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


# A function of an array, as a call of a library.


def functions(site: Site) -> Iterator[Edit]:
    """A call of a library may have to be of another function of the same array."""
    expression = site.expression
    if expression is None or not site.last or not isinstance(expression.node, ast.Call):
        return
    if site.equation.name in UNARY or not in_scope(site.result):
        return  # the equation by itself is the call
    outside = outside_of(site)
    if len(outside) != 1 or np.shape(site.values[outside[0]]) != np.shape(site.result):
        return
    (slot,) = outside
    if len([a for a in expression.node.args if not isinstance(a, ast.Constant)]) != 1:
        return
    for name, (function, template) in {**UNARY, **SPECIAL}.items():
        said = template.format("{v}")
        yield Edit(
            site.equation.key, Kind.WRONG_FUNCTION, f"should be {said}, not {{_e}}",
            lambda a, values, _, f=function: f(values[slot]),
            costs.SPECIAL_FUNCTION if name in SPECIAL else costs.FUNCTION_OF_CALL, reads=(slot,),
            write=template.format("_v"))
