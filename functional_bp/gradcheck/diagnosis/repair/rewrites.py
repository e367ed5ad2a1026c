"""Lines without an operation become equations that can be edited.

``x_hat_bar = y_bar`` leaves no equation, so a factor that is missing there could not be put in
anywhere at once. An equation that copies the value is added for such a line, and stands before
those uses of the value that only wrong cotangents come from. ``return y, (t, t)`` leaves none
either, and both residuals are one value: each goes through an equation of its own, which stands for
its place in the forward pass's return. One line may also make several equations, in a Python loop
or in a function that is called twice: an edit of one is made to all, with the values of its turn.
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.core import Tracer
from jax.extend.core import Primitive

from functional_bp.definitions import definition
from functional_bp.gradcheck.diagnosis.repair.program import Instruction, Program, Span, Values
from functional_bp.gradcheck.diagnosis.repair.source import expression, is_own, own_span, read

COPY = Primitive("copy")
Use = tuple[int, int]  # the equation's index, the operand's position


def with_aliases(
    program: Program, judged: int, right: Collection[int], home: str | None
) -> Program:
    """The program gets copies that can be edited in place of all further uses of a value."""
    for_right, for_judged, for_all = (
        {equation.key for equation in program.feeding(outputs)}
        for outputs in (
            [program.outputs[i] for i in right], [program.outputs[judged]], program.outputs
        )
    )  # fmt: skip
    uses: dict[int, list[Use]] = {}
    everywhere: dict[int, list[Use]] = {}
    shared = {program.outputs[i] for i in right}
    for index, equation in enumerate(program.equations):
        for position, slot in enumerate(equation.operands):
            if equation.key in for_right:
                shared.add(slot)
            elif equation.key in for_judged:
                uses.setdefault(slot, []).append((index, position))
            if equation.key in for_all and equation.key not in for_right:
                everywhere.setdefault(slot, []).append((index, position))
    returned = program.outputs[judged]
    numbers = itertools.count(_largest(program) + 1)
    heads: list[Instruction] = []
    after: dict[int, list[Instruction]] = {}
    renamed: dict[Use, int] = {}
    outputs, names = list(program.outputs), dict(program.names)
    made = {slot for equation in program.equations for slot in equation.results}

    def copy(slot: int, places: Sequence[Use], spans: tuple[Span, ...]) -> int:
        new = next(numbers)
        use = None
        if not spans and places:
            spans = program.equations[places[0][0]].spans
            use = places[0][1] if len(places) == 1 else -1
        uses = tuple(program.equations[index].spans for index, _ in places)
        params = {"alias": True, "use": use, "uses": uses}
        equation = Instruction(COPY, params, (slot,), (new,), spans)
        (after.setdefault(slot, []) if slot in made else heads).append(equation)
        renamed.update(dict.fromkeys(places, new))
        names[new] = names.get(slot, ())
        return new

    for group, span in _named_numbers(program, everywhere, home):
        copy(program.equations[group[0][0]].operands[group[0][1]], group, (span,))
    for slot in {*uses, returned}:
        places = [use for use in uses.get(slot, ()) if use not in renamed]
        is_output = slot == returned
        if slot in program.literals or not places and not is_output:
            continue
        again = slot not in made and _line_of(program, slot, False, home, unpacked=False)
        if not (again or slot in shared or slot not in made and (len(places) > 1 or is_output)):
            continue
        span = _line_of(program, slot, is_output, home)
        new = copy(slot, places, () if span is None else (span,))
        if is_output:
            outputs[judged] = new
    equations = _inserted(
        program, heads, after, lambda index, position, slot: renamed.get((index, position), slot)
    )
    equations = _with_copies_in_loops(equations, numbers, names, home)
    return replace(program, equations=tuple(equations), outputs=tuple(outputs), names=names)


def _inserted(
    program: Program,
    heads: Sequence[Instruction],
    after: Mapping[int, Sequence[Instruction]],
    renamed: Callable[[int, int, int], int],
) -> list[Instruction]:
    """The equations with further ones at the head and after what makes a slot, other operands."""
    equations = list(heads)
    for index, equation in enumerate(program.equations):
        operands = tuple(renamed(index, k, slot) for k, slot in enumerate(equation.operands))
        equations.append(replace(equation, operands=operands))
        for slot in equation.results:
            equations.extend(after.get(slot, ()))
    return equations


def _with_copies_in_loops(
    equations: Sequence[Instruction],
    numbers: Iterator[int],
    names: dict[int, Any],
    home: str | None,
) -> list[Instruction]:
    """The equations; in the bodies of scans, copies stand for second names and returned values."""
    found: list[Instruction] = []
    for equation in equations:
        if equation.name == "scan":
            (body,) = equation.bodies
            body = _with_copies(body, numbers, names, home)
            inner = _with_copies_in_loops(body.equations, numbers, names, home)
            inside = frozenset(key for e in inner for key in (e.key, *e.inside))
            bodies = (replace(body, equations=tuple(inner)),)
            equation = replace(equation, bodies=bodies, inside=inside)
        found.append(equation)
    return found


def _with_copies(
    body: Program, numbers: Iterator[int], names: dict[int, Any], home: str | None
) -> Program:
    """A loop's body in which ``h = x`` is an equation, and ``return h`` where h is used besides."""
    read = [slot for equation in body.equations for slot in equation.operands]
    made = {slot for equation in body.equations for slot in equation.results}
    told = replace(body, names=names)
    heads: list[Instruction] = []
    after: dict[int, list[Instruction]] = {}
    second: dict[int, int] = {}

    def copy(slot: int, shown: int, span: Span) -> int:
        new = next(numbers)
        equation = Instruction(COPY, {"alias": True, "use": None}, (shown,), (new,), (span,))
        (after.setdefault(slot, []) if slot in made else heads).append(equation)
        names[new] = names.get(slot, ())
        return new

    for slot in dict.fromkeys((*body.inputs, *made)):
        span = _line_of(told, slot, False, home, unpacked=False)
        if span is not None and slot not in body.literals:
            second[slot] = copy(slot, slot, span)
    outputs: list[int] = []
    returned = _returned(body, home)
    for position, slot in enumerate(body.outputs):
        held = second.get(slot, slot)
        is_shared = slot in read or body.outputs.count(slot) > 1 or slot not in made
        if is_shared and slot not in body.literals and position in returned:
            held = copy(slot, held, returned[position])
        outputs.append(held)
    equations = _inserted(body, heads, after, lambda index, position, slot: second.get(slot, slot))
    return replace(body, equations=tuple(equations), outputs=tuple(outputs))


def _returned(body: Program, home: str | None) -> dict[int, Span]:
    """The names that a loop's body returns, by the position of the output."""
    for equation in body.equations:
        span = own_span(equation.spans, home)
        function = None if span is None else read(span.file).function(span.line)
        if span is None or function is None:
            continue
        if isinstance(function, ast.Lambda):
            whole: ast.expr | None = function.body
        else:
            last = function.body[-1]
            whole = last.value if isinstance(last, ast.Return) else None
        parts = [] if whole is None else list(_parts(whole))
        if len(parts) != len(body.outputs):
            return {}
        return {
            position: _span(span.file, span.function, node)
            for position, node in enumerate(parts)
            if isinstance(node, ast.Name)
        }
    return {}


def _parts(node: ast.expr) -> Iterator[ast.expr]:
    """The leaves of a tuple that is written down."""
    if isinstance(node, ast.Tuple | ast.List):
        for part in node.elts:
            yield from _parts(part)
    elif not (isinstance(node, ast.Constant) and node.value is None):
        yield node


def is_alias(equation: Instruction) -> bool:
    """Whether the equation stands for a line without an operation."""
    return bool(equation.params.get("alias"))


def use_of(equation: Instruction) -> int | None:
    """A value without a line of its own is this operand where it is used.

    −1 where it is used several times; None where it has a line.
    """
    return equation.params.get("use")


def _largest(program: Program) -> int:
    slots = [s for e, home in program.every() for s in (*e.results, *home.inputs, *home.constants)]
    return max([*program.inputs, *program.constants, *program.outputs, *slots, 0])


def _span(file: str, function: str, node: Any) -> Span:
    return Span(
        file, function, node.lineno, node.col_offset, node.end_lineno or 0, node.end_col_offset or 0
    )


def _line_of(
    program: Program, slot: int, is_output: bool, home: str | None, unpacked: bool = True
) -> Span | None:
    """Where a value gets a second name, is returned, or is unpacked."""
    names = [name for name in program.names.get(slot, ()) if name.part is None]
    for code in dict.fromkeys(name.code for name in names):
        found = definition(code) if is_own(code.co_filename, home) else None
        texts = {name.text for name in names if name.code is code}
        for node in _candidates(found.node, texts, is_output, unpacked) if found else ():
            return _span(code.co_filename, code.co_qualname, node)
    return None


def _candidates(
    function: ast.AST, texts: set[str], is_output: bool, unpacked: bool
) -> Iterator[ast.expr]:
    nodes = list(ast.walk(function))

    def among(node: Any) -> bool:
        return isinstance(node, ast.Name) and node.id in texts

    if is_output:
        for node in nodes:
            if isinstance(node, ast.Return) and node.value is not None:
                yield from (part for part in ast.walk(node.value) if among(part))  # pyright: ignore
    yield from (n.value for n in nodes if isinstance(n, ast.Assign) and among(n.value))
    for node in nodes if unpacked else ():
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple):
            yield from (target for target in node.targets[0].elts if among(target))


def _named_numbers(
    program: Program, uses: dict[int, list[Use]], home: str | None
) -> Iterator[tuple[list[Use], Span]]:
    """The uses of each number that the person gave a name, with the line of that name."""
    groups: dict[tuple[Span, float], list[Use]] = {}
    for slot in program.literals & set(uses):
        for use in uses[slot]:
            found = expression(program.equations[use[0]].spans, home)
            node = None if found is None else found.operand(use[1])
            if found is None or not isinstance(node, ast.Name):
                continue
            span = _assignment(found.span, node.id)
            if span is not None:
                value = complex(program.constants[slot]).real
                groups.setdefault((span, value), []).append(use)
    for (span, _), group in groups.items():
        yield group, span


def _assignment(where: Span, name: str) -> Span | None:
    source = read(where.file)
    function = source.function(where.line)
    for scope in (function, source.tree):
        for node in ast.walk(scope) if scope is not None else ():
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                if node.targets[0].id == name:
                    return _span(where.file, where.function, node.value)
    return None


# What the forward pass keeps.

PREFIX = "kept "


def marked(kept: Any) -> Any:
    """The residuals get a name each."""
    leaves, tree = jax.tree_util.tree_flatten(kept)
    named = [
        checkpoint_name(leaf, f"{PREFIX}{i}") if isinstance(leaf, Tracer) else leaf
        for i, leaf in enumerate(leaves)
    ]
    return jax.tree_util.tree_unflatten(tree, named)


def with_kept_lines(program: Program, home: str | None) -> Program:
    """The residuals' equations get their lines at the forward pass's return."""
    places = [(i, _number(e)) for i, e in enumerate(program.equations)]
    numbers = {i: number for i, number in places if number is not None}
    if not numbers or home is None:
        return program
    earlier = program.equations[: min(numbers)]
    spans = _returned_kept([s for e in earlier for s in e.spans if s.file == home], home)
    equations = list(program.equations)
    for i, number in numbers.items():
        at = (spans[number],) if number < len(spans) else spans[-1:]
        params = {"alias": True, "use": None}
        equations[i] = replace(equations[i], primitive=COPY, params=params, spans=tuple(at))
    return replace(program, equations=tuple(equations))


def _number(equation: Instruction) -> int | None:
    name = str(equation.params.get("name", ""))
    is_kept = equation.name == "name" and name.startswith(PREFIX)
    return int(name.removeprefix(PREFIX)) if is_kept else None


def _returned_kept(spans: list[Span], home: str) -> list[Span]:
    """The expressions that the forward pass returns as residuals, in order."""
    source = read(home)
    functions = {s.function.rpartition(".")[2]: s.function for s in spans}
    for node in source.functions:
        if isinstance(node, ast.FunctionDef) and node.name in functions:
            for kept in _kept(node):
                parts = list(kept.elts) if isinstance(kept, ast.Tuple | ast.List) else [kept]
                return [_span(home, functions[node.name], part) for part in parts]
    return []


def _kept(function: ast.FunctionDef) -> Iterator[ast.expr]:
    for node in ast.walk(function):
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):
            if len(node.value.elts) == 2:
                yield node.value.elts[1]


# One line that made several equations.

PLACES = ("start_indices", "limit_indices")  # of x[t], which each turn reads elsewhere
Renaming = Mapping[int, int]  # slots of one turn of the loop to those of another


@dataclass(frozen=True)
class Renamed:
    """The values are seen from another turn of a loop."""

    values: Values
    renaming: Renaming

    def __getitem__(self, slot: int) -> Any:
        return self.values[self.renaming.get(slot, slot)]


@dataclass(frozen=True)
class Twin:
    """The same operation stands in another turn of the loop."""

    equation: Instruction
    renaming: Renaming

    @property
    def key(self) -> int:
        """What the equation is known by."""
        return self.equation.key


def twins(program: Program, home: str | None) -> dict[int, list[Twin]]:
    """Each equation of a repeated line has the same operation in the other turns."""
    groups: dict[Any, list[Instruction]] = {}
    for equation in program.equations:
        span = own_span(equation.spans, home)
        if span is not None:
            groups.setdefault(span, []).append(equation)
    turns: dict[int, list[list[Instruction]]] = {}  # by the number of turns: lines, turn by turn
    for group in groups.values():
        size = _period(group)
        count = len(group) // size
        if count > 1:
            rows = [group[i * size : (i + 1) * size] for i in range(count)]
            turns.setdefault(count, []).extend([list(column) for column in zip(*rows)])
    found: dict[int, list[Twin]] = {}
    for count, columns in turns.items():
        turn_of = {e.key: (column, t) for column in columns for t, e in enumerate(column)}
        for column in columns:
            for at, equation in enumerate(column):
                found[equation.key] = [
                    Twin(column[t], _renaming(turn_of, t - at, count))
                    for t in range(count)
                    if t != at
                ]
    return found


def _renaming(
    turn_of: Mapping[int, tuple[Sequence[Instruction], int]], shift: int, count: int
) -> Renaming:
    return {
        key: column[t + shift].key for key, (column, t) in turn_of.items() if 0 <= t + shift < count
    }


def _period(group: Sequence[Instruction]) -> int:
    """How many equations of a line make one turn."""
    signs = [_signature(equation) for equation in group]
    for size in range(1, len(group) // 2 + 1):
        if len(group) % size == 0 and signs == signs[:size] * (len(group) // size):
            return size
    return len(group)


def _signature(equation: Instruction) -> tuple[str, str]:
    own = ("jaxpr", "branches", *(PLACES if equation.name == "slice" else ()))
    params = {k: v for k, v in equation.params.items() if k not in own}
    return equation.name, repr(sorted((k, str(v)) for k, v in params.items()))
