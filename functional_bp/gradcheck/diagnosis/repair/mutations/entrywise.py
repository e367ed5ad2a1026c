"""Entry by entry, another sign, operator, exponent, function, bound or branch may belong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from functional_bp.gradcheck.diagnosis import costs
from functional_bp.gradcheck.diagnosis.repair.mutations.mutation import Edit, Site, with_operand
from functional_bp.gradcheck.diagnosis.repair.numerals import shown
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


def add(site: Site) -> Iterator[Edit]:
    """A sum may need another sign, or have a term too many."""
    yield site.edit(Kind.SIGN, "should be a subtraction", lambda a, b: a - b, write="_a - _b")
    yield site.edit(
        Kind.SIGN, "should be a subtraction the other way", lambda a, b: b - a,
        costs.OTHER_WAY_ROUND, write="_b - _a")
    kind = Kind.EXTRA_TERM if in_scope(site.result) else Kind.OFF_BY_ONE
    yield site.edit(
        kind, "the term {_b} does not belong here", lambda a, b: a, costs.TERM_TOO_MANY, write="_a")
    yield site.edit(
        kind, "the term {_a} does not belong here", lambda a, b: b, costs.TERM_TOO_MANY, write="_b")


def sub(site: Site) -> Iterator[Edit]:
    """A difference may need another sign, stand the other way round, or have a term too many."""
    yield site.edit(Kind.SIGN, "should be an addition", lambda a, b: a + b, write="_a + _b")
    yield site.edit(
        Kind.SIGN, "the operands should be swapped", lambda a, b: b - a, costs.MINUS_SWAPPED,
        write="_b - _a")
    kind = Kind.EXTRA_TERM if in_scope(site.result) else Kind.OFF_BY_ONE
    yield site.edit(
        kind, "the term {_b} does not belong here", lambda a, b: a, costs.TERM_TOO_MANY, write="_a")
    yield site.edit(
        kind, "the term {_a} does not belong here", lambda a, b: -b, costs.FIRST_TERM_TOO_MANY,
        write="-_b")


def neg(site: Site) -> Iterator[Edit]:
    """A negation may not belong."""
    yield site.edit(Kind.SIGN, "should not be negated", lambda a: a, write="_a")


def mul(site: Site) -> Iterator[Edit]:
    """A product may have to be a quotient, or have a factor too many."""
    yield site.edit(
        Kind.MISSING_FACTOR, "should be a division", np.divide, costs.PRODUCT_OR_QUOTIENT,
        write="_a / _b")
    yield site.edit(
        Kind.MISSING_FACTOR, "should be {_b} / {_a}", lambda a, b: b / a, costs.INVERSE_QUOTIENT,
        write="_b / _a")
    for kept, dropped in ((0, 1), (1, 0)):
        yield site.edit(
            Kind.FACTOR if site.is_literal(dropped) else Kind.MISSING_FACTOR,
            f"the factor {{_{'ab'[dropped]}}} is too many",
            lambda *x, kept=kept: np.broadcast_to(x[kept], np.shape(x[0] * x[1])),
            costs.FACTOR_TOO_MANY, write=f"_{'ab'[kept]}")


def div(site: Site) -> Iterator[Edit]:
    """A quotient may have to be a product, stand the other way round, or be no quotient."""
    yield site.edit(
        Kind.MISSING_FACTOR, "should be a product", np.multiply, costs.PRODUCT_OR_QUOTIENT,
        write="_a * _b")
    yield site.edit(
        Kind.MISSING_FACTOR, "the operands should be swapped", lambda a, b: b / a,
        costs.OTHER_WAY_ROUND, write="_b / _a")
    yield site.edit(
        Kind.FACTOR if site.is_literal(1) else Kind.MISSING_FACTOR,
        "the division by {_b} is too many", lambda a, b: a, costs.FACTOR_TOO_MANY, write="_a")


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


def plain(site: Site) -> Iterator[Edit]:
    """A conjugate or a real part may not belong."""
    yield site.edit(
        Kind.WRONG_FUNCTION, "should not be conjugated", lambda x: x, costs.NOT_CONJUGATED,
        write="_a")


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
