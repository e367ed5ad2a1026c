"""A pullback's source is read into an expression.

Assignments are put into their place, functions of one's own are opened where what comes out is a
formula, and a condition on types or parameters is decided where they are known. What differs only
in rounding (a branch for half precision) is recognised by its value and left out.
"""

from __future__ import annotations

import ast
import builtins
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, reduce
from types import CodeType, ModuleType
from typing import Any, NamedTuple

import numpy as np
from jax.extend.core import Primitive

from functional_bp.definitions import definition
from functional_bp.explanation.formulas import expression as ex
from functional_bp.explanation.formulas.expression import Expression

COMPARE = {"=": np.equal, "≠": np.not_equal, "<": np.less, "≤": np.less_equal,
           ">": np.greater, "≥": np.greater_equal}  # fmt: skip

# What Python's operators are in mathematics.
SIGNS = {ast.Eq: "=", ast.NotEq: "≠", ast.Lt: "<", ast.LtE: "≤", ast.Gt: ">", ast.GtE: "≥",
         ast.Is: "is", ast.IsNot: "is not"}  # fmt: skip
UNARY = {ast.USub: ex.negate, ast.Not: ex.opposite}
BINARY = {ast.Add: ex.add, ast.Sub: ex.subtract, ast.Mult: ex.multiply, ast.Div: ex.divide,
          ast.Pow: ex.power, ast.MatMult: ex.matrix_product}  # fmt: skip

# Random points do not tell whether these are the same: a condition may hold at a kink alone.
UNCOMPARED = (ex.Literal, ex.ShapeOf, ex.Verbatim, ex.Comparison, ex.Truth, ex.Choice)


class NotNumericError(Exception):
    """A part of an expression has no value in NumPy."""


def evaluate(expression: Expression, values: Mapping[Any, Any]) -> Any:
    """Compute the value of the expression.

    Args:
        expression: the expression.
        values: by symbol, and for calls of functions that mathematics has no name for, of the
            shapes (``ShapeOf``) that they are given.

    Raises:
        NotNumericError: a symbol has no value, or a part no meaning in numbers.
    """
    if expression in values:
        return values[expression]
    at = lambda e: evaluate(e, values)
    match expression:
        case ex.Number(value):
            return float(value)
        case ex.Constant():
            return expression.value
        case ex.Literal(value):
            return value
        case ex.Sum(terms):
            return sum(map(at, terms[1:]), at(terms[0]))
        case ex.Product(coefficient, above, below):
            top = reduce(np.multiply, map(at, above), float(coefficient))
            return reduce(np.multiply, map(at, below), 1.0) ** -1.0 * top if below else top
        case ex.Power(base, exponent):
            return np.power(at(base), at(exponent))
        case ex.MatrixProduct(factors):
            return reduce(np.matmul, map(at, factors))
        case ex.Transpose(base):
            return np.transpose(at(base))
        case ex.Comparison(left, sign, right):
            return COMPARE[sign](at(left), at(right))
        case ex.Truth(condition):
            return np.asarray(at(condition), float)
        case ex.Choice(condition, chosen, otherwise):
            return np.where(at(condition), at(chosen), at(otherwise))
        case ex.Application(name, arguments, known=True) if name in ex.NUMERIC:
            return ex.NUMERIC[name](*map(at, arguments))
        case ex.Application(_, arguments, keywords, _, function) if function is not None:
            return function(*map(at, arguments), **{key: at(value) for key, value in keywords})
        case _:
            raise NotNumericError(str(expression))


def same(left: Expression, right: Expression) -> bool:
    """Tell whether two elementwise expressions are equal at a few random complex points."""
    if left == right:
        return True
    parts = [*ex.walk(left), *ex.walk(right)]
    if any(
        isinstance(p, UNCOMPARED) or (isinstance(p, ex.Application) and not p.known) for p in parts
    ):
        return False
    rng = np.random.default_rng(0)
    symbols = dict.fromkeys(p for p in parts if isinstance(p, ex.Symbol))
    values = {
        symbol: rng.uniform(0.2, 0.9, 4) + 1j * rng.uniform(0.2, 0.9, 4) for symbol in symbols
    }
    try:
        with np.errstate(all="ignore"):
            return bool(np.allclose(evaluate(left, values), evaluate(right, values), rtol=1e-9))
    except (NotNumericError, TypeError, ValueError):
        return False


def surroundings(function: Callable[..., Any]) -> dict[str, Any]:
    """Say what the names in a function stand for that are not its own."""
    function = inspect.unwrap(function)
    seen = {**vars(builtins), **getattr(function, "__globals__", {})}
    code = getattr(function, "__code__", None)
    for name, cell in zip(code.co_freevars if code else (), function.__closure__ or ()):  # pyright: ignore[reportFunctionMemberAccess]
        try:
            seen[name] = cell.cell_contents
        except ValueError:
            continue
    return seen


def name_of(function: Any) -> str:
    """Say what a function is called; ``primitive.bind`` has the primitive's name."""
    name = function.name if isinstance(function, Primitive) else None
    owner = getattr(function, "__self__", None)
    if isinstance(owner, Primitive):  # primitive.bind
        name = owner.name
    return name or getattr(function, "__name__", None) or type(function).__name__


def is_foreign(function: Any) -> bool:
    """Tell whether a function is JAX's, NumPy's or Python's own, to be named and not opened."""
    if isinstance(getattr(function, "__self__", function), Primitive):
        return True
    if isinstance(function, ModuleType):
        return False
    module = getattr(function, "__module__", None) or type(function).__module__
    return module.split(".")[0] in ("jax", "jaxlib", "numpy", "builtins", "math")


def is_type(value: Any) -> bool:
    """Tell whether it is an array's type (of an operand), or several of them."""
    members = value if isinstance(value, list) and value else [value]
    return all(hasattr(m, "dtype") and not isinstance(m, np.ndarray) for m in members)


def is_numerics(test: ast.expr) -> bool:
    """Tell whether a condition asks for the dtype alone: another way to compute the same."""
    return any(
        isinstance(n, ast.Attribute) and n.attr in ("dtype", "itemsize") for n in ast.walk(test)
    )


DEEPEST = 6  # functions and branches inside one another that are followed
MOST_PARTS = 60  # of an expression that still counts as a formula


class UnreadableError(Exception):
    """A pullback is a program, not a formula."""


class Local(NamedTuple):
    """A lambda or function is defined inside a pullback."""

    node: ast.Lambda | ast.FunctionDef
    reader: _Reader


def read(
    function: Callable[..., Any],
    arguments: Mapping[str, Expression],
    static: Mapping[str, Any] | None = None,
) -> Expression:
    """Say what a function returns, as an expression of its arguments.

    Args:
        function: written in Python, of which the source is there.
        arguments: what stands for each of its parameters.
        static: what is known of parameters beforehand: an equation's parameters, types of arrays.

    Raises:
        UnreadableError: it is no single formula.
    """
    found = definition(function)
    if found is None:
        raise UnreadableError(f"no source of {function!r}")
    reader = _Reader(surroundings(function), dict(arguments), dict(static or {}), 0)
    return reader.returned(found.node)


def is_closed(expression: Expression) -> bool:
    """Tell whether it is a formula: no choices, no functions without a name in mathematics."""
    parts = list(ex.walk(expression))
    calls = any(isinstance(p, ex.Application) and not p.known for p in parts)
    choices = any(isinstance(p, ex.Choice) for p in parts)
    return not calls and not choices and len(parts) <= MOST_PARTS


class _Reader:
    """Reads one function's body; ``values`` are expressions by name, ``static`` Python values."""

    def __init__(
        self, outside: dict[str, Any], values: dict[str, Any], static: dict[str, Any], depth: int
    ) -> None:
        self.outside, self.values, self.static, self.depth = outside, values, static, depth
        if depth > DEEPEST:
            raise UnreadableError("too deep")

    def branch(self) -> _Reader:
        return _Reader(self.outside, dict(self.values), dict(self.static), self.depth + 1)

    def returned(self, node: ast.Lambda | ast.FunctionDef) -> Expression:
        """The value of a lambda or of a function's return statement."""
        if isinstance(node, ast.Lambda):
            return self.expression(node.body)
        return self.statements(node.body)

    def statements(self, body: Sequence[ast.stmt]) -> Expression:
        for place, statement in enumerate(body):
            match statement:
                case ast.Return(value=ast.expr() as value):
                    return self.expression(value)
                case ast.Expr(value=ast.Constant()):  # a docstring
                    continue
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    self.assign(name, value)
                case ast.Assign(targets=[ast.Tuple(elts=targets)], value=value):
                    self.assign_several(targets, value)
                case ast.FunctionDef():
                    self.values[statement.name] = Local(statement, self)
                case ast.If():
                    return self.conditional(statement, body[place + 1 :])
                case _:
                    raise UnreadableError(ast.unparse(statement).splitlines()[0])
        raise UnreadableError("it returns nothing")

    def assign(self, name: str, value: ast.expr) -> None:
        known, found = self.known(value)
        self.static.pop(name, None)
        if known:
            self.static[name] = found
        if isinstance(value, ast.Lambda):
            self.values[name] = Local(value, self.branch())
            return
        try:
            self.values[name] = self.expression(value)
        except UnreadableError as error:
            self.values[name] = error  # raised where the name is used

    def assign_several(self, targets: Sequence[ast.expr], value: ast.expr) -> None:
        items: Sequence[ast.expr | Expression] = []
        match value:
            case ast.Tuple(elts=items):
                pass
            case (
                ast.GeneratorExp(elt=elt, generators=[one])
                | ast.ListComp(elt=elt, generators=[one])
            ) if isinstance(one.iter, ast.Tuple) and isinstance(one.target, ast.Name):
                items = [self.bound(one.target.id, item).expression(elt) for item in one.iter.elts]
        read = [i if isinstance(i, Expression) else self.expression(i) for i in items]
        for k, target in enumerate(targets):
            if isinstance(target, ast.Name):
                fits = len(read) == len(targets)
                self.static.pop(target.id, None)
                self.values[target.id] = read[k] if fits else UnreadableError(target.id)

    def bound(self, name: str, value: ast.expr) -> _Reader:
        inner = self.branch()
        inner.values[name] = self.expression(value)
        return inner

    def conditional(self, statement: ast.If, rest: Sequence[ast.stmt]) -> Expression:
        """The rest of the body behind either branch; one of them if the condition is known."""
        known, holds = self.known(statement.test)
        if known:
            return self.statements([*(statement.body if holds else statement.orelse), *rest])
        otherwise = self.branch().statements([*statement.orelse, *rest])
        try:
            chosen = self.branch().statements([*statement.body, *rest])
        except UnreadableError:
            if not is_numerics(statement.test):
                raise
            return otherwise
        return self.choice(statement.test, chosen, otherwise)

    def choice(self, test: ast.expr, chosen: Expression, otherwise: Expression) -> Expression:
        if same(chosen, otherwise):
            return otherwise
        return ex.choose(self.expression(test), chosen, otherwise)

    def known(self, node: ast.expr) -> tuple[bool, Any]:
        """Whether a Python expression can be computed from what is known, and its value."""
        names, code = _code(node)
        if any(n in self.values and n not in self.static for n in names):
            return False, None
        try:
            return True, eval(code, {**self.outside, **self.static})
        except Exception:  # whatever it raises, it is not known
            return False, None

    def object(self, node: ast.expr) -> Any:
        """The Python object that a name or a dotted name outside stands for; None for no such."""
        match node:
            case ast.Name(id=name) if name not in self.values:
                return self.outside.get(name)
            case ast.Attribute(value=value, attr=attr):
                holder = self.object(value)
                return getattr(holder, attr, None) if holder is not None else None
        return None

    def expression(self, node: ast.expr) -> Expression:
        match node:
            case ast.Name(id=name) if name in self.values:
                value = self.values[name]
                if isinstance(value, UnreadableError):
                    raise value
                if isinstance(value, Local):
                    raise UnreadableError(name)
                known = self.static.get(name)
                is_number = isinstance(known, int | float) and not isinstance(known, bool)
                return ex.number(known) if is_number and isinstance(value, ex.Symbol) else value
            case ast.Constant(value=bool() | None | str() as value):
                return ex.Literal(value)
            case ast.Constant(value=int() | float() | complex() as value):
                return ex.number(value)
            case ast.UnaryOp(op=operator, operand=operand) if type(operator) in UNARY:
                return UNARY[type(operator)](self.expression(operand))
            case ast.BinOp(left=left, op=operator, right=right) if type(operator) in BINARY:
                return BINARY[type(operator)](self.expression(left), self.expression(right))
            case ast.Compare(left=left, ops=[sign], comparators=[right]) if type(sign) in SIGNS:
                sides = self.expression(left), self.expression(right)
                return ex.Comparison(sides[0], SIGNS[type(sign)], sides[1])
            case ast.BoolOp(op=operator, values=values):
                name = "and" if isinstance(operator, ast.And) else "or"
                return ex.Application(name, tuple(map(self.expression, values)), known=True)
            case ast.IfExp(test=test, body=body, orelse=orelse):
                known, holds = self.known(test)
                if known:
                    return self.expression(body if holds else orelse)
                return self.choice(test, self.expression(body), self.expression(orelse))
            case ast.Call():
                return self.call(node)
            case ast.Attribute(value=value, attr="T" | "mT"):
                return ex.Transpose(self.expression(value))
            case ast.Subscript() | ast.Attribute() | ast.Name() | ast.Tuple() | ast.List():
                return self.value(node)
        raise UnreadableError(ast.unparse(node))

    def value(self, node: ast.expr) -> Expression:
        """A constant outside, or what is known: a number, or a Python value to be shown."""
        found = self.object(node)
        known, found = self.known(node) if found is None else (True, found)
        if known:
            if found == ex.PI.value:
                return ex.PI
            is_number = isinstance(found, int | float | complex) and not isinstance(found, bool)
            return ex.number(found) if is_number else ex.Literal(found)
        names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
        if names & set(self.values):
            raise UnreadableError(ast.unparse(node))
        return ex.Verbatim(ast.unparse(node))

    def call(self, node: ast.Call) -> Expression:
        """A call: an operator, a function opened, or a call that stays one."""
        if isinstance(node.func, ast.Name):
            local = self.values.get(node.func.id)
            if isinstance(local, Local):
                return self.opened(local.node, local.reader, node)
        function = self.object(node.func)
        if function is None and isinstance(node.func, ast.Attribute):
            return self.method(node.func, node)
        if function is None:
            raise UnreadableError(ast.unparse(node))
        name = name_of(function)
        if is_foreign(function):
            if name in ex.TRANSPARENT and node.args:
                return self.expression(node.args[0])
            if name in ex.FILLED and len(node.args) <= 2:
                rest = [ex.ZERO if k == 0 else self.expression(a) for k, a in enumerate(node.args)]
                return ex.FILLED[name](*rest)
            if name in ex.OPERATORS:
                return self.operator(name, function, node)
        elif callable(function) and (inner := definition(inspect.unwrap(function))) is not None:
            try:
                reader = _Reader(surroundings(function), {}, {}, self.depth + 1)
                found = self.opened(inner.node, reader, node)
                if is_closed(found):
                    return found
            except UnreadableError:
                pass
        return self.left(name, node, function)

    def operator(self, name: str, function: Any, node: ast.Call) -> Expression:
        arguments = [self.expression(a) for a in node.args]
        try:
            made = ex.OPERATORS[name](*arguments)
        except TypeError:
            return self.left(name, node, function)
        return replace(made, function=function) if isinstance(made, ex.Application) else made

    def method(self, attribute: ast.Attribute, node: ast.Call) -> Expression:
        """A method of an array: ``y.astype(…)`` is y, ``y.sum(…)`` is a call."""
        if self.object(attribute.value) is not None:
            raise UnreadableError(ast.unparse(node))
        base = self.expression(attribute.value)
        if attribute.attr in ex.TRANSPARENT:
            return base
        if attribute.attr in ex.OPERATORS and not node.args:
            return ex.OPERATORS[attribute.attr](base)
        return self.left(attribute.attr, node, None, base)

    def opened(
        self, inner: ast.Lambda | ast.FunctionDef, reader: _Reader, node: ast.Call
    ) -> Expression:
        """A function's formula with the call's arguments in it."""
        names = [a.arg for a in (*inner.args.posonlyargs, *inner.args.args)]
        pairs = [*zip(names, node.args), *((k.arg or "", k.value) for k in node.keywords)]
        if len(node.args) > len(names) or any(isinstance(a, ast.Starred) for a in node.args):
            raise UnreadableError(ast.unparse(node))
        called = _Reader(reader.outside, dict(reader.values), dict(reader.static), self.depth + 1)
        for name, argument in pairs:
            called.values[name] = self.argument(argument, shown=False)
            known, found = self.known(argument)
            called.static.pop(name, None)
            if known:
                called.static[name] = found
        return called.returned(inner)

    def left(
        self, name: str, node: ast.Call, function: Any, base: Expression | None = None
    ) -> Expression:
        """A call that stays one; options that are None are left out."""
        if any(isinstance(a, ast.Starred) for a in node.args) or any(
            k.arg is None for k in node.keywords
        ):
            raise UnreadableError(ast.unparse(node))
        arguments = [self.argument(a) for a in node.args]
        keywords = [(k.arg or "", self.argument(k.value)) for k in node.keywords]
        shown = tuple((key, v) for key, v in keywords if v != ex.Literal(None))
        first = () if base is None else (base,)
        return ex.Application(name, (*first, *arguments), shown, function=function)

    def argument(self, node: ast.expr, shown: bool = True) -> Expression:
        """An argument; a parameter that is ``shown`` in a call is labelled with its name."""
        known, found = self.known(node)
        found = tuple(found.tolist()) if isinstance(found, np.ndarray) and found.ndim else found
        is_number = isinstance(found, int | float) and not isinstance(found, bool)
        if known and not is_type(found):
            if isinstance(node, ast.Name) and node.id in self.static and shown:
                return ex.Literal(found, node.id)
            if not is_number:
                return ex.Verbatim(ast.unparse(node)) if callable(found) else ex.Literal(found)
        try:
            return self.expression(node)
        except UnreadableError:
            if isinstance(node, ast.Call | ast.BinOp | ast.Name):
                raise
            return ex.Verbatim(ast.unparse(node))


@lru_cache(maxsize=4096)
def _code(node: ast.expr) -> tuple[frozenset[str], CodeType]:
    """The names in an expression, and the expression compiled; a rule is read many times."""
    names = frozenset(n.id for n in ast.walk(node) if isinstance(n, ast.Name))
    return names, compile(ast.Expression(node), "<rule>", "eval")
