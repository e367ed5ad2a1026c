"""The source of a person's code is read here: which of it made an equation, how it is rewritten.

An equation knows the frames that it was traced in. The innermost in the person's code is a
fragment; an edit is written into it as a template over its operands. Values are called what a local
variable that holds them is called, or the expression that made them.
"""

from __future__ import annotations

import ast
import copy
import linecache
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from functional_bp.definitions import definition
from functional_bp.gradcheck.diagnosis import costs
from functional_bp.gradcheck.diagnosis.repair.program import Program, Span
from functional_bp.gradcheck.findings import Place

PACKAGE = os.path.abspath(os.path.join(os.path.dirname(__file__), *[os.pardir] * 2))


class SourceFile:
    """A file has lines and a syntax tree; that is None where it cannot be read or parsed."""

    def __init__(self, file: str) -> None:
        self.lines = linecache.getlines(file)
        self.ends: dict[tuple[int, int], list[Any]] = {}
        self.targets: dict[int, str] = {}  # id of an assigned expression -> its one name
        self.functions: list[ast.FunctionDef | ast.Lambda] = []
        try:
            self.tree: ast.Module | None = ast.parse("".join(self.lines))
        except (SyntaxError, ValueError):
            self.tree = None
        for node in ast.walk(self.tree) if self.tree is not None else ():
            if isinstance(node, ast.expr | ast.AugAssign):
                end = (node.end_lineno or 0, node.end_col_offset or 0)
                self.ends.setdefault(end, []).append(node)
            if isinstance(node, ast.FunctionDef | ast.Lambda):
                self.functions.append(node)
            if isinstance(node, ast.Assign) and len(node.targets) == 1:
                if isinstance(node.targets[0], ast.Name):
                    self.targets[id(node.value)] = node.targets[0].id

    def node(self, span: Span) -> Any:
        """This is the smallest node with the span's end that holds its start."""
        start = (span.line, span.column)
        best = None
        for node in self.ends.get((span.end_line, span.end_column), ()):
            if (node.lineno, node.col_offset) <= start and (
                best is None or (node.lineno, node.col_offset) > (best.lineno, best.col_offset)
            ):
                best = node
        return best

    def holding(self, spans: Sequence[Span]) -> ast.expr | None:
        """This is the smallest expression that holds all of the spans."""
        first = min((span.line, span.column) for span in spans)
        last = max((span.end_line, span.end_column) for span in spans)
        holding = [
            node
            for end, nodes in self.ends.items()
            for node in nodes
            if (node.lineno, node.col_offset) <= first and end >= last
        ]
        latest = lambda n: (n.lineno, n.col_offset, -n.end_lineno, -n.end_col_offset)
        inner = max(holding, key=latest, default=None)
        return inner if isinstance(inner, ast.expr) else None

    def function(self, line: int) -> ast.FunctionDef | ast.Lambda | None:
        """The code of this innermost function holds a line."""
        holding = [f for f in self.functions if f.lineno <= line <= (f.end_lineno or 0)]
        return max(holding, key=lambda f: f.lineno, default=None)


@lru_cache(maxsize=32)
def _read(file: str, stamp: float) -> SourceFile:
    return SourceFile(file)


def read(file: str) -> SourceFile:
    """The source of a file is kept, and read again where the file has changed."""
    linecache.checkcache(file)
    return _read(file, os.path.getmtime(file) if os.path.exists(file) else 0.0)


def is_own(file: str, home: str | None) -> bool:
    """Whether a file is the person's: the checked function's, or none of this package's."""
    return file == home or not os.path.abspath(file).startswith(PACKAGE + os.sep)


def own_span(spans: Iterable[Span], home: str | None) -> Span | None:
    """This is the innermost expression in the person's code; the checked function's file comes
    first.
    """
    spans = [span for span in spans if is_own(span.file, home)]
    return next((span for span in spans if span.file == home), spans[0] if spans else None)


# Fragments of code.

# What a call, an operator or an attribute is named, for the primitives that it may stand for.
SPELLINGS: dict[str, tuple[str, ...]] = {
    "add": ("Add", "add"), "add_any": ("Add", "add"), "sub": ("Sub", "subtract", "sub"),
    "mul": ("Mult", "multiply", "outer", "mul"), "div": ("Div", "divide", "true_divide", "div"),
    "neg": ("USub", "negative", "neg"), "square": ("Pow", "square"),
    "integer_pow": ("Pow", "power", "pow", "integer_pow"), "pow": ("Pow", "power", "pow"),
    "dot_general": ("MatMult", "dot", "matmul", "einsum", "tensordot", "inner", "vdot"),
    "transpose": ("T", "mT", "transpose", "swapaxes", "moveaxis", "permute_dims", "einsum"),
    "rev": ("flip", "flipud", "fliplr", "rev", "Slice"), "select_n": ("where", "select"),
    "reduce_sum": ("sum", "mean", "average", "einsum"), "reduce_max": ("max", "amax"),
    "reduce_min": ("min", "amin"), "gt": ("Gt", "greater", "Lt"), "lt": ("Lt", "less", "Gt"),
    "ge": ("GtE", "greater_equal"), "le": ("LtE", "less_equal"), "logistic": ("sigmoid", "expit"),
    "max": ("maximum",), "min": ("minimum",), "slice": ("Slice",), "pad": ("pad",),
    "stack": ("stack", "array"),
    "concatenate": ("concatenate", "stack", "hstack", "vstack", "roll"),
    "triangular_solve": ("solve_triangular",), "scatter": ("set",), "scatter-add": ("add",),
    "sign": ("sign",), "squeeze": ("Slice",),
    "broadcast_in_dim": ("Slice", "broadcast_to", "expand_dims"),
}  # fmt: skip


JOINING = ("concatenate", "stack", "hstack", "vstack")  # calls with a list of operands


@dataclass(frozen=True)
class Fragment:
    """An expression stands in a person's code; ``node`` is None where that cannot be read.

    An ``alias`` is a value that is written down without an operation: its operand is itself.
    """

    span: Span
    node: Any = None
    alias: bool = False

    @property
    def place(self) -> Place:
        """The expression stands on this line; where it runs over several, its operator or method
        does.
        """
        lines = read(self.span.file).lines
        line = self.span.line
        return Place(
            self.span.file, line, lines[line - 1].strip() if 0 < line <= len(lines) else ""
        )

    @property
    def text(self) -> str:
        """The expression as it stands, on one line."""
        if self.node is None:
            return ""
        whole = "".join(read(self.span.file).lines)
        return " ".join((ast.get_source_segment(whole, self.node) or "").split())

    @property
    def spelling(self) -> str:
        """The operator, attribute or function that it consists of."""
        node = self.node
        if isinstance(node, ast.BinOp | ast.AugAssign | ast.UnaryOp):
            return type(node.op).__name__
        if isinstance(node, ast.Compare):
            return type(node.ops[0]).__name__
        if isinstance(node, ast.Call):
            node = node.func
            return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
        if isinstance(node, ast.Subscript):
            return "Slice"
        return node.attr if isinstance(node, ast.Attribute) else ""

    def stands_for(self, primitive: str) -> bool:
        """Whether the expression is that operation, not a call of something that contains it."""
        spelling = self.spelling
        return spelling != "" and (
            spelling in SPELLINGS.get(primitive, ()) or spelling == primitive
        )

    def operand(self, position: int) -> ast.expr | None:
        """An operand is this sub-expression, by its position in the primitive's order."""
        node = self.node
        if self.alias:
            return node if position == 0 else None
        if isinstance(node, ast.BinOp):
            return (node.left, node.right)[position] if position < 2 else None
        if isinstance(node, ast.AugAssign):
            return (_loaded(node.target), node.value)[position] if position < 2 else None
        if isinstance(node, ast.UnaryOp):
            return node.operand if position == 0 else None
        if isinstance(node, ast.Compare):
            pair = (node.left, node.comparators[0])
            return pair[position] if position < 2 else None
        if isinstance(node, ast.Attribute | ast.Subscript):
            return node.value if position == 0 else None
        if not isinstance(node, ast.Call) or self.spelling in ("scan", "cond", "while_loop"):
            return None
        arguments = [a for a in node.args if not isinstance(a, ast.Constant | ast.Starred)]
        if self.spelling == "where":
            arguments = [*arguments[:1], *reversed(node.args[1:])]  # select_n: condition, no, yes
        elif self.spelling == "einsum":
            arguments = list(node.args[1:])
        elif self.spelling in JOINING:
            parts = node.args[0] if node.args else None
            arguments = list(parts.elts) if isinstance(parts, ast.List | ast.Tuple) else []
        elif is_method(node):
            arguments = [node.func.value, *arguments]  # pyright: ignore[reportAttributeAccessIssue]
        return arguments[position] if position < len(arguments) else None

    @property
    def whole(self) -> Any:
        """The expression; of ``a += b``, which is a statement, ``a + b``."""
        node = self.node
        if isinstance(node, ast.AugAssign):
            return ast.BinOp(_loaded(node.target), node.op, node.value)
        return node

    def written(self, template: str, values: Mapping[str, ast.expr | None]) -> str | None:
        """Another expression is made: ``_e`` is the whole, ``_a`` and ``_b`` are its operands.

        Further names are looked up in ``values``; None if a part is not known.
        """
        if self.node is None:
            return None
        operands = {name: self.operand(i) for i, name in enumerate(("_a", "_b", "_c"))}
        new = _filled(template, {**values, "_e": self.whole, **operands})
        return None if new is None else self.finished(new)

    def finished(self, node: ast.AST) -> str:
        """The expression's replacement is written down; a statement stays one."""
        text = ast.unparse(ast.fix_missing_locations(node))
        if isinstance(self.node, ast.AugAssign):
            return f"{ast.unparse(self.node.target)} = {text}"
        return text

    def replaced(self, *pairs: tuple[ast.AST, ast.AST]) -> str:
        """Parts of the expression are written otherwise."""
        return self.finished(copy.deepcopy(self.node, {id(old): new for old, new in pairs}))

    def called(
        self, function: str | None = None, axis: object = None, keepdims: bool = False
    ) -> str | None:
        """The same call runs along another axis, or is of another function."""
        if not isinstance(self.node, ast.Call):
            return None
        node = copy.deepcopy(self.node)
        if function is not None:
            if isinstance(node.func, ast.Attribute):
                node.func.attr = function
            elif isinstance(node.func, ast.Name):
                node.func.id = function
        if axis is not None:
            value = _parsed(repr(axis))
            keyword = next((k for k in node.keywords if k.arg == "axis"), None)
            position = 0 if is_method(node) else 1
            if keyword is not None:
                keyword.value = value
            elif len(node.args) > position:
                node.args[position] = value
            else:
                node.keywords.insert(0, ast.keyword("axis", value))
        if keepdims:
            node.keywords.append(ast.keyword("keepdims", ast.Constant(True)))
        return self.finished(node)

    def with_keyword(self, name: str, value: object) -> str | None:
        """The same call has a keyword set."""
        if not isinstance(self.node, ast.Call):
            return None
        node = copy.deepcopy(self.node)
        node.keywords = [k for k in node.keywords if k.arg != name]
        node.keywords.append(ast.keyword(name, ast.Constant(value)))  # pyright: ignore
        return self.finished(node)

    def keeping_dims(self) -> str | None:
        """The same call has ``keepdims=True``; None where it has that already."""
        if isinstance(self.node, ast.Call) and all(k.arg != "keepdims" for k in self.node.keywords):
            return self.with_keyword("keepdims", True)
        return None

    def flipped_around(self, axis: int) -> str | None:
        """A running sum starts from the other end: of the reversed array, reversed."""
        first = self.operand(0)
        if not isinstance(self.node, ast.Call) or first is None:
            return None
        flip = f"jnp.flip(_x, {axis})"
        inner = copy.deepcopy(self.node, {id(first): _filled(flip, {"_x": first})})
        return self.written(flip, {"_x": inner})

    def padded(self, axis: int, width: tuple[int, int]) -> str | None:
        """The same call of ``pad`` has other widths along an axis."""
        if not isinstance(self.node, ast.Call) or len(self.node.args) < 2:
            return None
        held: ast.expr = self.node.args[1]
        if isinstance(held, ast.Tuple | ast.List) and len(held.elts) > axis:
            nested = held.elts[axis]
            held = nested if isinstance(nested, ast.Tuple | ast.List) else held
        return self.replaced((held, _parsed(repr(width))))

    def rolled(self, shift: int) -> str | None:
        """The same call of ``roll`` goes by another shift."""
        if not isinstance(self.node, ast.Call):
            return None
        named = next((k.value for k in self.node.keywords if k.arg == "shift"), None)
        held = named or (self.node.args[1] if len(self.node.args) > 1 else None)
        return None if held is None else self.replaced((held, _parsed(repr(shift))))

    def indexed(self, axis: int, shift: int) -> str | None:
        """The same subscript has its index of an axis moved, ``x[t]`` for ``x[t + 1]``."""
        if not isinstance(self.node, ast.Subscript):
            return None
        index = self.node.slice
        parts = list(index.elts) if isinstance(index, ast.Tuple) else [index]
        known = [isinstance(p, ast.Slice) or _is_index(p) for p in parts[:axis]]
        if axis >= len(parts) or not all(known) or not _is_index(parts[axis]):
            return None
        return self.replaced((parts[axis], _parsed(_moved(ast.unparse(parts[axis]), shift))))

    def changed(
        self, old: ast.expr, template: str, values: Mapping[str, ast.expr | None]
    ) -> str | None:
        """One part ``_x`` of the expression is written otherwise."""
        part = old
        if template == "_x.T" and isinstance(old, ast.Attribute) and old.attr in ("T", "mT"):
            template, part = "_x", old.value
        new = _filled(template, {**values, "_x": part})
        if new is None:
            return None
        whole = self.whole
        if isinstance(self.node, ast.AugAssign) and ast.unparse(old) == ast.unparse(whole.left):
            old = whole.left
        return self.finished(copy.deepcopy(whole, {id(old): new}))

    def everywhere(self, name: str, template: str, count: int) -> str | None:
        """A name ``_x`` in the expression is written otherwise, if it stands there so often."""
        uses = [n for n in ast.walk(self.node) if isinstance(n, ast.Name) and n.id == name]
        if len(uses) != count:
            return None
        return self.replaced(*((use, _Fill({"_x": use}).visit(_parsed(template))) for use in uses))

    def part(self, text: str) -> ast.expr | None:
        """This is the first sub-expression with that text."""
        for node in ast.walk(self.node) if self.node is not None else ():
            if isinstance(node, ast.expr) and node is not self.node and ast.unparse(node) == text:
                return node
        return None


OPERATORS = {
    "Add": "+", "Sub": "-", "Mult": "*", "Div": "/", "MatMult": "@", "Pow": "**",
    "Gt": ">", "GtE": ">=", "Lt": "<", "LtE": "<=", "Eq": "==", "NotEq": "!=",
}  # fmt: skip


class _Fill(ast.NodeTransformer):
    def __init__(self, parts: Mapping[str, ast.expr | None]) -> None:
        self.parts = parts

    def visit_Name(self, node: ast.Name) -> Any:  # noqa: N802  (the name is ast's)
        part = self.parts.get(node.id)
        return node if part is None else copy.deepcopy(part)


def _parsed(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def _filled(template: str, parts: Mapping[str, ast.expr | None]) -> ast.expr | None:
    """A template with its parts put in; None if one of them is not known."""
    tree = _parsed(template)
    used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} & set(parts)
    return None if any(parts[name] is None for name in used) else _Fill(parts).visit(tree)


def _loaded(target: ast.expr) -> ast.expr:
    return _parsed(ast.unparse(target))


def _is_index(node: ast.expr) -> bool:
    """Whether it is neither a slice nor ``...`` nor ``None``."""
    constant = isinstance(node, ast.Constant) and not isinstance(node.value, int)
    return not constant and not isinstance(node, ast.Slice)


def _moved(index: str, shift: int) -> str:
    """``t`` for ``t + 1`` moved by −1."""
    found = re.fullmatch(r"(.+) ([+-]) (\d+)", index)
    base, offset = (found[1], int(found[2] + found[3])) if found else (index, 0)
    if re.fullmatch(r"-?\d+", index):
        return str(int(index) + shift)
    offset += shift
    return base if offset == 0 else f"{base} {'+' if offset > 0 else '-'} {abs(offset)}"


def is_method(node: ast.Call) -> bool:
    """Whether a call is of an array's method, ``x.sum(0)``, not of a module's function."""
    return isinstance(node.func, ast.Attribute) and not (
        isinstance(node.func.value, ast.Name)
        and node.func.value.id in ("jnp", "np", "lax", "jax", "numpy", "nn")
        or isinstance(node.func.value, ast.Attribute)
        and ast.unparse(node.func.value) in ("jax.numpy", "jax.lax", "jax.nn", "jax.scipy.special")
    )


def expression(spans: Sequence[Span], home: str | None) -> Fragment | None:
    """Among the frames that made an equation, this expression is the person's."""
    span = own_span(spans, home)
    return None if span is None else Fragment(span, read(span.file).node(span))


# The names of values.

LONGEST = 48  # characters of an expression that stands for a value without a name


class Names:
    """What the person calls the values of a program, where an expression stands."""

    def __init__(
        self,
        program: Program,
        home: str | None,
        given: Mapping[int, str],
        distant: Collection[int] = (),
    ) -> None:
        self.program, self.home, self.given, self.distant = program, home, given, distant
        self.literals: dict[int, Any] = {}
        self.makers: dict[int, Any] = {}
        self.definition = cache(definition)
        self._collect(program)

    def _collect(self, program: Program) -> None:
        self.literals.update({s: program.constants[s] for s in program.literals})
        last: dict[Any, int] = {}
        for equation in program.equations:
            span = own_span(equation.spans, self.home)
            borrowed = equation.params.get("use") is not None  # an alias at the line of its use
            if span is not None and len(equation.results) == 1 and not borrowed:
                last[span] = equation.key
            for body in equation.bodies:
                self._collect(body)
        self.makers.update({key: span for span, key in last.items()})

    def at(self, slot: int, where: Span | None) -> ast.expr | None:
        """How a slot's value can be written at a place; None if it cannot."""
        local = None if where is None else self._local(slot, where)
        if local is not None:
            return ast.Name(local)
        if slot in self.literals:
            return ast.Constant(self.literals[slot].item())
        node = self._made(slot, where)
        if node is not None:
            return node
        if slot in self.given:
            try:
                return ast.parse(self.given[slot], mode="eval").body
            except SyntaxError:
                return None
        return None

    def described(self, slot: int, where: Span | None) -> str:
        """The value is told in words, for a message."""
        known = self.identity(slot, where)
        if isinstance(known, str):
            return known
        return "another value" if known is None else f"the value computed at line {known}"

    def identity(self, slot: int, where: Span | None) -> str | int | None:
        """The value is this expression there; else it is known by the line that computes it."""
        node = self.at(slot, where)
        span = self.makers.get(slot)
        return ast.unparse(node) if node is not None else None if span is None else span.line

    def distance(self, slot: int, where: Span | None) -> float:
        """How far a value is from a name at a place: 0, ½ for a name elsewhere, 1."""
        if where is not None and self._local(slot, where) is not None:
            return costs.NAMED
        return (
            costs.NAMED_ELSEWHERE
            if slot in self.given and slot not in self.distant
            else costs.UNNAMED
        )

    def _local(self, slot: int, where: Span) -> str | None:
        source = read(where.file)
        for name in self.program.names.get(slot, ()):
            found = self.definition(name.code)
            if found is None or found.file != where.file:
                continue
            function = found.node
            if not function.lineno <= where.line <= (function.end_lineno or 0):
                continue
            if name.part is not None:
                unpacked = _unpacked(function, name.text, name.part, where.line)
                if unpacked is not None:
                    return unpacked
            elif _last_binding(function, name.text) < where.line or isinstance(
                function, ast.Lambda
            ):
                return name.text
        made = self.makers.get(slot)
        if made is not None and made.file == where.file and made.function == where.function:
            text = source.targets.get(id(source.node(made)))
            function = source.function(where.line)
            if text and function is not None and made.line < where.line:
                if made.line <= _last_binding(function, text) < where.line:
                    return text
        return None

    def _made(self, slot: int, where: Span | None) -> ast.expr | None:
        made = self.makers.get(slot)
        if made is None or where is None or made.file != where.file:
            return None
        if made.function != where.function:
            return None
        node = read(made.file).node(made)
        if not isinstance(node, ast.expr) or len(ast.unparse(node)) > LONGEST:
            return None
        if made.line > where.line and not _is_known(node, where):
            return None
        return node


def _is_known(node: ast.expr, where: Span) -> bool:
    """Whether everything that an expression names is there before a place."""
    function = read(where.file).function(where.line)
    names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    return isinstance(function, ast.FunctionDef) and all(
        _last_binding(function, name) < where.line for name in names
    )


def _unpacked(
    function: ast.FunctionDef | ast.Lambda, text: str, part: int, line: int
) -> str | None:
    """What a tuple's entry is called at a line: by ``a, b = text``, if not bound anew since."""
    for node in ast.walk(function):
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Tuple):
            continue
        targets = node.targets[0].elts
        if isinstance(node.value, ast.Name) and node.value.id == text and part < len(targets):
            target = targets[part]
            if isinstance(target, ast.Name) and node.lineno < line:
                bound = (
                    other.lineno
                    for other in ast.walk(function)
                    if isinstance(other, ast.Name) and isinstance(other.ctx, ast.Store)
                    and other.id == target.id
                )  # fmt: skip
                return None if any(node.lineno < at < line for at in bound) else target.id
    return None


def _last_binding(function: ast.FunctionDef | ast.Lambda, name: str) -> int:
    """The last line of a function on which a name is bound; the one before it for a parameter."""
    return max(
        (
            node.lineno
            for node in ast.walk(function)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id == name
        ),
        default=function.lineno - 1,
    )
