"""What a person calls the values of a program: local variables, or the expression itself."""

from __future__ import annotations

import ast
from collections.abc import Collection, Mapping
from typing import Any

from functional_bp.check.diagnosis.repairs.program import Program, Span
from functional_bp.check.diagnosis.repairs.source import own_span, read

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
        """The value in words, for a message."""
        node = self.at(slot, where)
        if node is not None:
            return ast.unparse(node)
        span = self.makers.get(slot)
        return "another value" if span is None else f"the value computed at line {span.line}"

    def distance(self, slot: int, where: Span | None) -> float:
        """How far a value is from a name at a place: 0, ½ for a name elsewhere, 1."""
        if where is not None and self._local(slot, where) is not None:
            return 0.0
        return 0.5 if slot in self.given and slot not in self.distant else 1.0

    def _local(self, slot: int, where: Span) -> str | None:
        source = read(where.file)
        for name in self.program.names.get(slot, ()):
            if name.file != where.file:
                continue
            function = source.starting(name.line)
            if function is None or not function.lineno <= where.line <= (function.end_lineno or 0):
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
