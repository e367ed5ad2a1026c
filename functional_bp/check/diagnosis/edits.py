"""The catalogue: what a single equation could have been instead, by primitive.

Each entry yields edits of one equation. An edit says how to compute the result instead, in NumPy,
and how to write it in the person's code, as a template over the expression's operands ``_a`` and
``_b``, its whole ``_e`` and a further value ``_v``. A smaller rank is tried to be believed first.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from functional_bp._jax import scan_counts
from functional_bp.check.diagnosis.constants import named, shown
from functional_bp.check.diagnosis.in_numpy import in_scope
from functional_bp.check.diagnosis.program import Equation, Values, compute
from functional_bp.check.diagnosis.source import OPERATORS, Expression

Write = str | Callable[[Expression], str | None]


@dataclass(frozen=True)
class Edit:
    """One change to one equation.

    Attributes:
        site: what the equation is known by.
        kind, message: what is wrong if this makes it right; ``{v}`` stands for the value read.
        compute: ``(operands, values, constant) -> result``.
        rank: how unlikely it is.
        reads: a further value in scope that it needs.
        write: what to write instead.
        start: the constant at which nothing is changed, where one is to be solved for.
        settle: the edit with its constant found; None if no one would have meant that number.
        at: another expression that the change is to be written in.
    """

    site: int
    kind: str
    message: str
    compute: Callable[[Sequence[Any], Values, float], Any]
    rank: float = 0.0
    reads: tuple[int, ...] = ()
    write: Write = ""
    start: float | None = None
    settle: Callable[[float], Edit | None] | None = None
    at: Expression | None = None


@dataclass(frozen=True)
class Site:
    """An equation with what an edit may look at, on the first sample.

    Attributes:
        values: of every slot in the equation's scope.
        scope: the slots whose values exist before the equation and may be used in it.
        makers: the equation that fills a slot.
        sizes: lengths of axes, as candidates for a constant.
        expression: the person's expression; ``own`` if it is this operation, ``last`` if the
            equation's result is the expression's.
        literals: the slots of numbers that are written in the code.
        thresholds: numbers that the reference compares with.
    """

    equation: Equation
    values: Values
    scope: Sequence[int]
    makers: Mapping[int, Equation]
    sizes: Sequence[int]
    expression: Expression | None = None
    own: bool = True
    last: bool = True
    literals: frozenset[int] = frozenset()
    thresholds: Sequence[float] = ()
    names: Mapping[int, bool] = field(default_factory=dict)

    @property
    def operands(self) -> list[Any]:
        """The operands' values."""
        return [self.values[slot] for slot in self.equation.operands]

    @property
    def result(self) -> Any:
        """The first result's value."""
        return self.values[self.equation.key]

    def edit(
        self, kind: str, message: str, compute: Callable[..., Any], rank: float = 0.0, **more: Any
    ) -> Edit:
        """An edit of this equation whose ``compute`` takes the operands."""
        return Edit(self.equation.key, kind, message, lambda a, v, c: compute(*a), rank, **more)

    def again(self, operands: Sequence[Any], **params: Any) -> Any:
        """The equation on other operands, or with other parameters; a list of several results."""
        equation = self.equation
        if params:
            equation = replace(equation, params={**equation.params, **params})
        results = compute(equation, operands, {})
        return results if len(equation.results) > 1 else results[0]


def catalogue(site: Site) -> Iterator[Edit]:
    """Every edit of the equation by itself, without further values."""
    for entry in CATALOGUE.get(site.equation.name, ()):
        yield from entry(site)
    if in_scope(site.result) and len(site.equation.results) == 1:
        for entry in EVERYWHERE:
            yield from entry(site)


def _add(site: Site) -> Iterator[Edit]:
    yield site.edit("sign", "should be a subtraction", lambda a, b: a - b, write="_a - _b")
    yield site.edit(
        "sign", "should be a subtraction the other way", lambda a, b: b - a, 1, write="_b - _a"
    )
    for keep, drop in ((0, "_b"), (1, "_a")):
        yield site.edit(
            "extra term", f"the term {{{drop}}} does not belong here",
            lambda *x, keep=keep: x[keep], 1, write=("_a", "_b")[keep],
        )  # fmt: skip


def _sub(site: Site) -> Iterator[Edit]:
    yield site.edit("sign", "should be an addition", lambda a, b: a + b, write="_a + _b")
    yield site.edit(
        "sign", "the operands should be swapped", lambda a, b: b - a, 0.2, write="_b - _a"
    )
    yield site.edit(
        "extra term", "the term {_b} does not belong here", lambda a, b: a, 1, write="_a"
    )
    yield site.edit(
        "extra term", "the term {_a} does not belong here", lambda a, b: -b, 1.2, write="-_b"
    )


def _neg(site: Site) -> Iterator[Edit]:
    yield site.edit("sign", "should not be negated", lambda a: a, write="_a")


def _mul(site: Site) -> Iterator[Edit]:
    yield site.edit("missing factor", "should be a division", np.divide, 0.5, write="_a / _b")
    yield site.edit(
        "missing factor", "should be a division the other way", lambda a, b: b / a, 2,
        write="_b / _a",
    )  # fmt: skip
    for keep, drop in ((0, "_b"), (1, "_a")):
        yield site.edit(
            "missing factor", f"the factor {{{drop}}} is too many",
            lambda *x, keep=keep: np.broadcast_to(x[keep], np.shape(x[0] * x[1])), 0.8,
            write=("_a", "_b")[keep],
        )  # fmt: skip


def _div(site: Site) -> Iterator[Edit]:
    yield site.edit("missing factor", "should be a product", np.multiply, 0.5, write="_a * _b")
    yield site.edit(
        "missing factor", "the operands should be swapped", lambda a, b: b / a, 1, write="_b / _a"
    )
    yield site.edit(
        "missing factor", "the division by {_b} is too many", lambda a, b: a, 0.8, write="_a"
    )


def _extreme(site: Site) -> Iterator[Edit]:
    other, function = (
        ("minimum", np.minimum) if site.equation.name == "max" else ("maximum", np.maximum)
    )
    yield site.edit(
        "wrong function", f"should be the {other}", function,
        write=lambda e: e.called(other) if e.spelling.endswith("imum") else None,
    )  # fmt: skip
    for keep in (0, 1):
        yield site.edit("region", "the bound does not belong here", lambda *x, k=keep: x[k], 1)


def _cumulative(site: Site) -> Iterator[Edit]:
    params = site.equation.params
    yield site.edit(
        "reversal", "should accumulate from the other end",
        lambda x: site.again([x], reverse=not params["reverse"]),
    )  # fmt: skip
    for axis in range(site.result.ndim):
        if axis != params["axis"]:
            yield site.edit(
                "axis", f"should run along axis {axis}, not {params['axis']}",
                lambda x, axis=axis: site.again([x], axis=axis),
                write=lambda e, axis=axis: e.called(axis=axis),
            )  # fmt: skip


def _scan(site: Site) -> Iterator[Edit]:
    params = site.equation.params
    yield site.edit(
        "reversal", "should run in the other direction",
        lambda *a: site.again(a, reverse=not params["reverse"]),
    )  # fmt: skip
    consts, carried = scan_counts(dict(params))
    for position in range(consts + carried, len(site.operands)):
        yield site.edit(
            "reversal", f"what it scans over (number {position - consts - carried}) should be "
            "reversed",
            lambda *a, p=position: site.again(_with(a, p, np.flip(a[p], 0))), 1,
        )  # fmt: skip
        for shift in (1, -1):
            yield site.edit(
                "off by one", f"what it scans over (number {position - consts - carried}) should "
                f"be shifted by {shift}",
                lambda *a, p=position, s=shift: site.again(_with(a, p, _shifted(a[p], s, 0))), 1.5,
            )  # fmt: skip
    for position in range(consts, consts + carried):
        yield site.edit(
            "wrong operand", "should start from zeros",
            lambda *a, p=position: site.again(_with(a, p, np.zeros_like(a[p]))), 1.5,
        )  # fmt: skip


def _exponent(site: Site) -> Iterator[Edit]:
    present = site.equation.params.get("y", 2)
    for y in (1, 2, 3, 4, -1, -2, -3, -4):
        if y != present:
            yield site.edit(
                "missing factor", f"the exponent should be {y}, not {present}",
                lambda x, y=y: x**y if y > 0 else 1 / x**-y, 0.3 if y > 0 else 1,
                write=f"_a ** {y}" if y != 1 else "_a",
            )  # fmt: skip


def _select(site: Site) -> Iterator[Edit]:
    if len(site.operands) != 3:
        return
    yield site.edit(
        "region", "the branches of where should be swapped", lambda c, no, yes: np.where(c, no, yes),
        write="jnp.where(_a, _b, _c)",
    )  # fmt: skip
    for keep, text in ((2, "_c"), (1, "_b")):
        yield site.edit(
            "region", "where does not belong here: one branch is right everywhere",
            lambda *x, keep=keep: np.broadcast_to(x[keep], np.shape(site.result)), 0.8, write=text,
        )  # fmt: skip


_COMPARISONS = {"gt": np.greater, "ge": np.greater_equal, "lt": np.less, "le": np.less_equal}


def _compare(site: Site) -> Iterator[Edit]:
    symbols = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    present = symbols[site.equation.name]
    swapped = site.expression is not None and OPERATORS.get(site.expression.spelling) != present
    for name, function in _COMPARISONS.items():
        if name != site.equation.name:
            yield site.edit(
                "region", f"should be `{symbols[name]}`, not `{present}`", function,
                0.2 if symbols[name][0] != present[0] else 0.4,
                write="" if swapped else f"_a {symbols[name]} _b",
            )  # fmt: skip
    for truth in (True, False):
        yield site.edit(
            "region", f"the condition should {'always' if truth else 'never'} hold",
            lambda *x, truth=truth: np.full(np.shape(site.result), truth), 1,
        )  # fmt: skip
    yield site.edit(
        "region", "should compare the absolute value", lambda a, b: site.again([np.abs(a), b]), 1.5,
        write=f"jnp.abs(_a) {present} _b",
    )  # fmt: skip
    for position, slot in enumerate(site.equation.operands):
        if np.ndim(site.values[slot]) == 0 or slot in site.literals:
            now = float(site.values[slot])
            for c in dict.fromkeys((*site.thresholds, -now, 0.0, 1.0, -1.0, 0.5, 2.0, 3.0, 6.0)):
                if c != now:
                    parts = ["_a", "_b"]
                    parts[position] = shown(c)
                    yield site.edit(
                        "region", f"the threshold should be {shown(c)}, not {shown(now)}",
                        lambda *x, position=position, c=c: site.again(_with(x, position, c)), 0.5,
                        write="" if swapped else f"{parts[0]} {present} {parts[1]}",
                    )  # fmt: skip


def _with(operands: Sequence[Any], position: int, value: Any) -> list[Any]:
    return [value if i == position else x for i, x in enumerate(operands)]


def _scatter(site: Site) -> Iterator[Edit]:
    def adding(*operands: Any) -> Any:
        from jax import lax

        params = dict(site.equation.params)
        numbers = params["dimension_numbers"]
        return lax.scatter_add(*operands, dimension_numbers=numbers, mode=params["mode"])

    yield site.edit(
        "repeats", "should add where an index repeats, not overwrite", adding,
        write=lambda e: e.called("add"),
    )  # fmt: skip


def _gathered(site: Site) -> Iterator[Edit]:
    params = site.equation.params
    if "start_indices" in params:
        lows, highs = params["start_indices"], params["limit_indices"]
        shape = np.shape(site.operands[0])
        for axis, shift in itertools.product(range(len(shape)), (1, -1, 2, -2)):
            low, high = lows[axis] + shift, highs[axis] + shift
            if low >= 0 and high <= shape[axis]:
                moved = [tuple(_with(old, axis, new)) for old, new in ((lows, low), (highs, high))]
                yield site.edit(
                    "off by one", f"the slice of axis {axis} should start at {low}, "
                    f"not {lows[axis]}",
                    lambda x, moved=moved: site.again(
                        [x], start_indices=moved[0], limit_indices=moved[1]
                    ), 0.3,
                )  # fmt: skip


def _pad(site: Site) -> Iterator[Edit]:
    config = site.equation.params["padding_config"]
    for axis, (low, high, interior) in enumerate(config):
        for shift in dict.fromkeys((high - low, 1, -1, 2, -2)):
            if shift:
                other = tuple(_with(config, axis, (low + shift, high - shift, interior)))
                yield site.edit(
                    "off by one", f"axis {axis} should be padded by ({low + shift}, "
                    f"{high - shift}), not ({low}, {high})",
                    lambda x, fill, other=other: site.again([x, fill], padding_config=other), 0.3,
                )  # fmt: skip


def _concatenate(site: Site) -> Iterator[Edit]:
    if len(site.operands) == 2:
        yield site.edit(
            "permutation", "the parts should be in the other order",
            lambda a, b: site.again([b, a]), 0.5,
        )  # fmt: skip


def _transpose(site: Site) -> Iterator[Edit]:
    (x,), present = site.operands, site.equation.params["permutation"]
    if x.ndim <= 4:
        for order in itertools.permutations(range(x.ndim)):
            if order != tuple(present) and np.transpose(x, order).shape == site.result.shape:
                none = order == tuple(range(x.ndim))
                yield site.edit(
                    "transpose",
                    "should not be transposed" if none else f"the axes should be in order {order}",
                    lambda x, order=order: np.transpose(x, order), 0 if none else 0.5,
                    write="_a" if none else "",
                )  # fmt: skip


def _rev(site: Site) -> Iterator[Edit]:
    yield site.edit("reversal", "should not be reversed", lambda x: x, write="_a")


def _spread(site: Site) -> Iterator[Edit]:
    x, params = site.operands[0], site.equation.params
    shape, present = params["shape"], tuple(params["broadcast_dimensions"])
    for axes in itertools.combinations(range(len(shape)), np.ndim(x)):
        if axes != present and all(n in (1, shape[i]) for i, n in zip(axes, np.shape(x))):
            position = 0 if site.expression is None else _which_is_spread(site)
            yield site.edit(
                "axis", f"broadcast along axis {_missing(present, shape)}, should be along "
                f"{_missing(axes, shape)}: is keepdims=True missing?",
                lambda x, *_, axes=axes: site.again([x], broadcast_dimensions=axes),
                write=lambda e, position=position: e.keeping_dims(position),
            )  # fmt: skip


def _missing(axes: Sequence[int], shape: Sequence[int]) -> str:
    rest = [i for i in range(len(shape)) if i not in axes]
    return " and ".join(map(str, rest))


def _which_is_spread(site: Site) -> int:
    """Which operand of a binary expression has become too few axes: a call's result."""
    import ast

    e = site.expression
    right = None if e is None else e.operand(1)
    return 1 if isinstance(right, ast.Call) else 0


def _dot(site: Site) -> Iterator[Edit]:
    for position, x in enumerate(site.operands):
        for i, j in itertools.combinations(range(x.ndim), 2):
            if x.shape[i] == x.shape[j]:
                parts = ["_a", "_b"]
                parts[position] = f"{parts[position]}.T"
                yield site.edit(
                    "transpose", f"{{_{'ab'[position]}}} should be transposed",
                    lambda *a, p=position, i=i, j=j: site.again(
                        _with(a, p, np.swapaxes(a[p], i, j))
                    ), 0.1 * position,
                    write=_untransposed(position, f"{parts[0]} @ {parts[1]}"),
                )  # fmt: skip
    a, b = site.operands
    if a.shape == b.shape:
        yield site.edit(
            "transpose", "the operands should be swapped", lambda a, b: site.again([b, a]), 0.3,
            write=lambda e: e.written("_b @ _a", {}) if e.spelling == "MatMult" else None,
        )  # fmt: skip
    if site.result.ndim == 2 and site.result.shape[0] == site.result.shape[1]:
        yield site.edit(
            "transpose", "the product should be transposed", lambda a, b: site.again([a, b]).T, 0.5,
            write="(_e).T",
        )  # fmt: skip


def _untransposed(position: int, template: str) -> Callable[[Expression], str | None]:
    """Write a transpose of one operand of ``@``, or take away the one that is there."""
    import ast

    def write(e: Expression) -> str | None:
        if e.spelling != "MatMult":
            return None
        operand = e.operand(position)
        if isinstance(operand, ast.Attribute) and operand.attr in ("T", "mT"):
            plain = ("_x @ _b", "_a @ _x")[position]
            return e.written(plain, {"_x": operand.value})
        return e.written(template, {})

    return write


def _elementwise(site: Site) -> Iterator[Edit]:
    result = site.result
    for position, x in enumerate(site.operands):
        parts = ["_a", "_b"]
        symbol = {"add": "+", "sub": "-", "mul": "*", "div": "/"}.get(site.equation.name)
        if in_scope(x) and np.ndim(x) >= 2 and x.shape[-1] == x.shape[-2] == result.shape[-1]:
            parts[position] = f"{parts[position]}.T"
            yield site.edit(
                "transpose", f"{{_{'ab'[position]}}} should be transposed",
                lambda *a, p=position: site.again(_with(a, p, np.swapaxes(a[p], -1, -2))),
                0.2 * position, write=f"{parts[0]} {symbol} {parts[1]}",
            )  # fmt: skip


_UNARY: dict[str, tuple[Callable[..., Any], str]] = {
    "exp": (np.exp, "jnp.exp({0})"), "log": (np.log, "jnp.log({0})"),
    "tanh": (np.tanh, "jnp.tanh({0})"), "logistic": (
        lambda x: 0.5 * (1 + np.tanh(0.5 * x)), "jax.nn.sigmoid({0})"
    ),
    "sin": (np.sin, "jnp.sin({0})"), "cos": (np.cos, "jnp.cos({0})"),
    "sqrt": (np.sqrt, "jnp.sqrt({0})"), "rsqrt": (lambda x: 1 / np.sqrt(x), "1 / jnp.sqrt({0})"),
    "square": (np.square, "{0} ** 2"), "abs": (np.abs, "jnp.abs({0})"),
    "sign": (np.sign, "jnp.sign({0})"), "1 -": (lambda x: 1 - x, "1 - {0}"),
    "1 /": (lambda x: 1 / x, "1 / {0}"), "neg": (np.negative, "-{0}"),
    "log1p": (np.log1p, "jnp.log1p({0})"), "expm1": (np.expm1, "jnp.expm1({0})"),
    "sinh": (np.sinh, "jnp.sinh({0})"), "cosh": (np.cosh, "jnp.cosh({0})"),
    "1 - square": (lambda x: 1 - x * x, "1 - {0} ** 2"),
}  # fmt: skip


def _unary(site: Site) -> Iterator[Edit]:
    yield site.edit("wrong function", "should not be applied", lambda x: x, 1, write="_a")
    for name, (function, template) in _UNARY.items():
        if name != site.equation.name:
            yield site.edit(
                "wrong function", f"should be {template.format('x')}, not {site.equation.name}(x)",
                function, 0.6, write=template.format("_a"),
            )  # fmt: skip


def wrapped(site: Site) -> Iterator[Edit]:
    """A function around an operand, or around the result."""
    symbol = {"add": "+", "sub": "-", "mul": "*", "div": "/", "dot_general": "@"}.get(
        site.equation.name
    )
    for name, (function, template) in _UNARY.items():
        if name == "neg":
            continue
        if symbol is not None:
            for position, x in enumerate(site.operands):
                if not in_scope(x) or np.ndim(x) == 0:
                    continue
                parts = ["_a", "_b"]
                inner = template.format(parts[position])
                parts[position] = f"({inner})"
                yield site.edit(
                    "missing factor" if name == "square" else "wrong function",
                    f"{{{'_a' if position == 0 else '_b'}}} should be "
                    + template.format("{_a}" if position == 0 else "{_b}"),
                    lambda *a, p=position, f=function: site.again(_with(a, p, f(a[p]))), 3,
                    write=f"{parts[0]} {symbol} {parts[1]}",
                )  # fmt: skip
        elif site.last:
            yield site.edit(
                "wrong function", f"should be {template.format('{_e}')}",
                lambda *a, f=function: f(site.again(a)), 3.5, write=template.format("(_e)"),
            )  # fmt: skip


def moved(site: Site) -> Iterator[Edit]:
    """The result reversed, rolled by one or transposed."""
    result = site.result
    for axis in range(np.ndim(result)):
        if result.shape[axis] < 2:
            continue
        for position, x in enumerate(site.operands):
            if in_scope(x) and np.ndim(x) > axis and x.shape[axis] > 1:
                if site.equation.name in ("mul", "dot_general", "add", "sub", "concatenate"):
                    yield site.edit(
                        "reversal", f"{{_{'abc'[min(position, 2)]}}} should be reversed along "
                        f"axis {axis}",
                        lambda *a, p=position, axis=axis: site.again(
                            _with(a, p, np.flip(a[p], axis))
                        ), 2.2,
                    )  # fmt: skip
        yield site.edit(
            "reversal", f"should be reversed along axis {axis}",
            lambda *a, axis=axis: np.flip(site.again(a), axis), 2,
            write=f"jnp.flip(_e, {axis})",
        )  # fmt: skip
        for shift in (1, -1):
            yield site.edit(
                "off by one", f"should be rolled by {shift} along axis {axis}",
                lambda *a, axis=axis, shift=shift: np.roll(site.again(a), shift, axis), 2,
                write=f"jnp.roll(_e, {shift}, {axis})",
            )  # fmt: skip
            yield site.edit(
                "off by one", f"should be shifted by {shift} along axis {axis}, with a zero at the "
                "border",
                lambda *a, axis=axis, shift=shift: _shifted(site.again(a), shift, axis), 2.2,
            )  # fmt: skip
    if np.ndim(result) == 2 and result.shape[0] == result.shape[1]:
        yield site.edit(
            "transpose", "should be transposed", lambda *a: site.again(a).T, 1, write="(_e).T"
        )


def _shifted(x: Any, shift: int, axis: int) -> Any:
    moved = np.roll(x, shift, axis)
    moved[(slice(None),) * axis + (0 if shift > 0 else -1,)] = 0
    return moved


def scaled(site: Site) -> Iterator[Edit]:
    """The result times a constant that is solved for."""

    def settle(c: float) -> Edit | None:
        constant = named(c, site.sizes)
        if constant is None:
            return None
        if constant.value == 1:
            return None
        if constant.value == 0:
            kind, message, write, rank = "extra term", "{_e} does not belong here", "0", 2.0
        elif constant.value == -1:
            kind, message, write, rank = "sign", "the sign is wrong", "-(_e)", 0.8
        else:
            kind, message = "factor", f"a factor {constant.name} is missing"
            write, rank = f"(_e) * ({constant.text})", 1 + 0.5 * constant.simple
            if 0 < constant.value < 1 and (1 / constant.value).is_integer():
                write = f"(_e) / {1 / constant.value:.0f}"
        return replace(
            edit, kind=kind, message=message, rank=rank, write=write, start=None, settle=None,
            compute=lambda a, v, _: constant.value * site.again(a),
        )  # fmt: skip

    edit = Edit(
        site.equation.key, "factor", "", lambda a, v, c: c * site.again(a), 1,
        start=1.0, settle=settle,
    )  # fmt: skip
    yield edit


def literals(site: Site) -> Iterator[Edit]:
    """A number that is written in the code, solved for."""
    if site.equation.name in ("gt", "ge", "lt", "le", "eq", "ne", "iota") or not site.own:
        return
    for position, slot in enumerate(site.equation.operands):
        if slot not in site.literals or not in_scope(site.values[slot]):
            continue
        now = float(np.real(site.values[slot]))
        parts = ["_a", "_b"]

        def settle(c: float, now: float = now, position: int = position) -> Edit | None:
            if abs(c - now) <= 1e-12 * abs(now):
                return None
            constant = named(c, site.sizes, 1e-7)
            name, text = (constant.name, constant.text) if constant else (shown(c), shown(c))
            value = constant.value if constant else c
            parts = ["_a", "_b"]
            parts[position] = f"({text})"
            operator = "" if site.expression is None else OPERATORS.get(site.expression.spelling)
            simple = constant.simple if constant else 6
            kind, rank = "wrong constant", 0.4 + 0.5 * simple
            if now and constant and c / now == -1:
                kind, rank = "sign", 1.2
            return Edit(
                site.equation.key, kind, f"the constant should be {name}, not {shown(now)}",
                lambda a, v, _: site.again(_with(a, position, np.asarray(value))), rank,
                write=f"{parts[0]} {operator} {parts[1]}" if operator else "",
            )  # fmt: skip

        yield Edit(
            site.equation.key, "wrong constant", "",
            lambda a, v, c, position=position: site.again(_with(a, position, np.asarray(c))), 1,
            start=now, settle=settle,
        )  # fmt: skip


Entry = Callable[[Site], Iterator[Edit]]
# fmt: off
CATALOGUE: dict[str, tuple[Entry, ...]] = {
    "add": (_add, _elementwise), "add_any": (_add, _elementwise), "sub": (_sub, _elementwise),
    "mul": (_mul, _elementwise), "div": (_div, _elementwise), "neg": (_neg,),
    "max": (_extreme,), "min": (_extreme,),
    "cumsum": (_cumulative,), "cumprod": (_cumulative,), "cumlogsumexp": (_cumulative,),
    "cummax": (_cumulative,), "cummin": (_cumulative,),
    "scan": (_scan,),
    "integer_pow": (_exponent,), "square": (_exponent,), "select_n": (_select,),
    **{name: (_compare,) for name in _COMPARISONS},
    "scatter": (_scatter,), "slice": (_gathered,), "pad": (_pad,), "concatenate": (_concatenate,),
    "transpose": (_transpose,), "rev": (_rev,), "broadcast_in_dim": (_spread,),
    "dot_general": (_dot,),
    **{name: (_unary,) for name in _UNARY if name.isalnum() and name not in ("square", "neg")},
}
# fmt: on
EVERYWHERE: tuple[Entry, ...] = (literals, scaled, moved, wrapped)
