"""A fault is localized to sites: equations of a person's own, and what an edit of each may use.

An edit changes one equation: it says how to compute the result instead, in NumPy, and how to write
it in the person's code: as a template over the expression's operands ``_a``, ``_b`` and ``_c``, its
whole ``_e`` and a further value ``_v``; or as a template for one operand ``_x`` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from functional_bp._jax import scan_counts
from functional_bp.gradcheck.diagnosis import costs
from functional_bp.gradcheck.diagnosis.expressions import NamedNumber, named
from functional_bp.gradcheck.diagnosis.repair.program import (
    Instruction,
    Program,
    Span,
    Values,
    compute,
    in_scope,
)
from functional_bp.gradcheck.diagnosis.repair.rewrites import is_alias, use_of
from functional_bp.gradcheck.diagnosis.repair.source import Fragment, Names, expression, own_span
from functional_bp.gradcheck.findings import Kind

Write = str | Callable[[Fragment], str | None]
OPERAND = ("{_a}", "{_b}", "{_c}", "an operand")  # in a message, by position


@dataclass(frozen=True)
class Edit:
    """An edit changes one equation.

    Attributes:
        site: what the equation is known by.
        kind, message: what is wrong if this makes it right; ``{v}`` stands for the value read,
            ``{_a}`` and so on for the operands.
        compute: ``(operands, values, constant) -> result``.
        rank: how unlikely it is.
        reads: a further value in scope that it needs.
        write: what to write instead of the expression.
        change: an operand's position and what to write instead of it alone.
        start: the constant at which nothing is changed, where one is to be solved for.
        settle: the edit with its constant found; None if no one would have meant that number.
        at: an equation whose expression is the one to be written otherwise.
        also: a further kind that the edit is an instance of.
        by_turn: ``(equation, operands) -> result`` for the same line in another turn of a loop,
            where its parameters are others.
    """

    site: int
    kind: Kind
    message: str
    compute: Callable[[Sequence[Any], Values, float], Any]
    rank: float = costs.LIKELIEST
    reads: tuple[int, ...] = ()
    write: Write = ""
    change: tuple[int, str] | None = None
    start: float | None = None
    settle: Callable[[float], Edit | None] | None = None
    at: Instruction | None = None
    also: str = ""
    by_turn: Callable[[Instruction, Sequence[Any]], Any] | None = None


@dataclass(frozen=True)
class Site:
    """A site is an equation with what an edit may look at, on the first sample.

    Attributes:
        values: of every slot in the equation's scope.
        scope: the slots whose values exist before the equation and may be used in it.
        makers: the equation that fills a slot.
        sizes: lengths of axes, as candidates for a constant.
        expression: the person's expression; ``own`` if it is this operation, ``last`` if the
            equation's result is the expression's.
        literals: the slots of numbers that are written in the code.
        thresholds: numbers that the reference compares with.
        names: of each slot in scope, how far it is from having a name: 0, ½ or 1.
    """

    equation: Instruction
    values: Values
    scope: Sequence[int]
    makers: Mapping[int, Instruction]
    sizes: Sequence[int]
    expression: Fragment | None = None
    own: bool = True
    last: bool = True
    literals: frozenset[int] = frozenset()
    thresholds: Sequence[float] = ()
    names: Mapping[int, float] = field(default_factory=dict)

    @property
    def operands(self) -> list[Any]:
        """The operands' values."""
        return [self.values[slot] for slot in self.equation.operands]

    @property
    def result(self) -> Any:
        """The first result's value."""
        return self.values[self.equation.key]

    def is_literal(self, position: int) -> bool:
        """Whether an operand is a number that is written in the code."""
        return self.equation.operands[position] in self.literals

    def edit(
        self,
        kind: Kind,
        message: str,
        compute: Callable[..., Any],
        rank: float = costs.LIKELIEST,
        **more: Any,
    ) -> Edit:
        """This edit's ``compute`` takes the equation's operands."""
        return Edit(self.equation.key, kind, message, lambda a, v, c: compute(*a), rank, **more)

    def operand_edit(
        self,
        position: int,
        kind: Kind,
        message: str,
        function: Callable[[Any], Any],
        rank: float = costs.LIKELIEST,
        template: str = "",
    ) -> Edit:
        """This edit replaces one operand by a function of it."""
        said = message.replace("{x}", OPERAND[min(position, 3)])
        return self.edit(
            kind,
            said,
            lambda *a: self.again(with_operand(a, position, function(a[position]))),
            rank,
            change=(position, template) if template else None,
        )

    def again(self, operands: Sequence[Any], **params: Any) -> Any:
        """The equation runs on other operands, or with other parameters; several results make a
        list.
        """
        equation = self.equation
        if params:
            equation = replace(equation, params={**equation.params, **params})
        results = compute(equation, operands, {})
        return results if len(equation.results) > 1 else results[0]


Solved = Callable[[Sequence[Any], Values, float], Any]


def solved(
    site: int,
    sizes: Sequence[int],
    kind: Kind,
    compute: Solved,
    start: float,
    rank: float,
    told: Callable[[NamedNumber], Mapping[str, Any] | None],
    reads: tuple[int, ...] = (),
) -> Edit:
    """This edit has a constant that is solved for, with ``start`` for no change.

    Once it is found and has a name, ``told`` gives what else there is to say of the edit; None
    where no one would have meant that number.
    """

    def settle(c: float) -> Edit | None:
        constant = named(c, sizes)
        fields = None if constant is None or constant.value == start else told(constant)
        if constant is None or fields is None:
            return None
        value = constant.value
        made = replace(edit, compute=lambda a, v, _: compute(a, v, value), start=None, settle=None)
        return replace(made, **fields)

    edit = Edit(site, kind, "", compute, rank, reads, start=start, settle=settle)
    return edit


def with_operand(operands: Sequence[Any], position: int, value: Any) -> list[Any]:
    """One of the operands is replaced."""
    return [value if i == position else x for i, x in enumerate(operands)]


# Where the edits may stand.

VIEWS = ("slice", "transpose", "squeeze", "rev", "reshape")
COMPARING = ("gt", "ge", "lt", "le", "max", "min", "clamp", "eq", "ne")
WIDEST = 40  # values that an edit may bring in, the named ones first


def sites(
    program: Program,
    values: Values,
    output: int,
    names: Names,
    sizes: Sequence[int],
    thresholds: Sequence[float] = (),
    extra: Sequence[int] = (),
    within: frozenset[int] | None = None,
) -> Iterator[Site]:
    """These sites influence an output, nearest the output first, those in bodies included.

    ``within`` restricts them to the equations known by these slots.
    """
    home = names.home
    needed = {program.outputs[output]} if output >= 0 else set(program.outputs)
    makers = {slot: e for e in program.equations for slot in e.results}
    finals = _finals(program, home)
    order: list[tuple[int, Instruction]] = []
    for index in range(len(program.equations) - 1, -1, -1):
        equation = program.equations[index]
        if not needed.isdisjoint(equation.results):
            needed.update(equation.operands)
            order.append((index, equation))
    before: list[int] = [*program.inputs, *extra]
    for slot in program.constants:
        if slot not in program.literals and np.ndim(values[slot]) > 0:
            before.append(slot)
    for index, equation in order:
        for body, inner in bodies(equation, values):
            made = [s for e in program.equations[:index] if not is_alias(e) for s in e.results]
            both = {**values, **inner}
            yield from sites(body, both, -1, names, sizes, thresholds, (*before, *made), within)
        if within is not None and equation.key not in within:
            continue
        found = expression(equation.spans, home)
        earlier = [e for e in program.equations[:index] if not is_alias(e)]
        made = [s for e in earlier for s in e.results]
        if output >= 0:
            made += _views(program.equations[index + 1 :], {*before, *made})
        if found is not None and is_alias(equation):
            found = replace(found, alias=use_of(equation) is None)
        span = None if found is None else found.span
        named = {slot: _distance(slot, makers, names, span) for slot in (*before, *made)}
        scope = sorted(named, key=lambda slot: named[slot])[:WIDEST]
        yield Site(
            equation,
            values,
            scope,
            makers,
            sizes,
            found,
            own=found is None
            or found.node is None
            or is_alias(equation)
            or found.stands_for(equation.name),
            last=span is None or is_alias(equation) or finals.get(span) == equation.key,
            literals=program.literals,
            thresholds=thresholds,
            names=named,
        )


def _views(later: Sequence[Instruction], ready: set[int]) -> list[int]:
    """Parts and transposes of values that are there already, though they are taken later only."""
    found: list[int] = []
    for equation in later:
        if equation.name in VIEWS and ready.issuperset(equation.operands):
            ready.update(equation.results)
            found.extend(equation.results)
    return found


def _distance(
    slot: int, makers: Mapping[int, Instruction], names: Names, span: Span | None
) -> float:
    """How far a value is from a name; a part of one that has a name is near to it."""
    found = names.distance(slot, span)
    maker = makers.get(slot)
    if found > costs.NAMED_AS_PART and maker is not None and maker.name in VIEWS:
        if names.at(slot, span) and names.distance(maker.operands[0], span) == 0:
            return costs.NAMED_AS_PART
    return found


def _finals(program: Program, home: str | None) -> dict[Any, int]:
    return {
        span: equation.key
        for equation in program.equations
        if not is_alias(equation) or use_of(equation) is None
        if (span := own_span(equation.spans, home)) is not None
    }


def bodies(equation: Instruction, values: Values) -> Iterator[tuple[Program, Values]]:
    """These programs stand inside an equation, with their values in the first iteration."""
    operands = [values[slot] for slot in equation.operands]
    if equation.name == "scan":
        consts, carried = scan_counts(dict(equation.params))
        t = equation.params["length"] - 1 if equation.params["reverse"] else 0
        inputs = [x if i < consts + carried else x[t] for i, x in enumerate(operands)]
        yield equation.bodies[0], equation.bodies[0].run(inputs)
    elif equation.name == "cond":
        for branch in equation.bodies:
            yield branch, branch.run(operands[1:])
    elif equation.name == "while":
        a, b = equation.params["cond_nconsts"], equation.params["body_nconsts"]
        body = equation.bodies[1]
        yield body, body.run([*operands[a : a + b], *operands[a + b :]])


def backward_keys(program: Program, bars: Sequence[int], home: str | None) -> frozenset[int]:
    """These equations of a whole pull belong to the backward pass, in the person's code.

    They read a cotangent, or stand in a function of which another equation does.
    """
    tainted, functions = set(bars), set()
    mine: dict[int, Any] = {}

    def walk(program: Program, tainted: set[int]) -> None:
        for equation in program.equations:
            reads = not tainted.isdisjoint(equation.operands)
            span = own_span(equation.spans, home)
            if span is not None:
                mine[equation.key] = (span.file, span.function)
                if reads:
                    functions.add((span.file, span.function))
            if reads:
                tainted.update(equation.results)
                for body in equation.bodies:
                    walk(body, set(body.inputs))

    walk(program, tainted)
    return frozenset(key for key, function in mine.items() if function in functions)


def all_keys(program: Program) -> frozenset[int]:
    """The equations are known by these keys, those in bodies included."""
    return frozenset(equation.key for equation, _ in program.every())


def coarsest(program: Program) -> float:
    """Values are cast to a floating-point format of at most this spacing."""
    casts: list[Any] = [e.params["new_dtype"] for e, _ in program.every()
                        if e.name == "convert_element_type"]  # fmt: skip
    spacings = [float(jnp.finfo(to).eps) for to in casts if jnp.issubdtype(to, np.inexact)]
    return max(spacings, default=0.0)


def thresholds_of(program: Program) -> list[float]:
    """A program compares values with these numbers."""
    values: list[Any] = [
        home.constants[slot]
        for equation, home in program.every() if equation.name in COMPARING
        for slot in equation.operands if slot in home.literals
    ]  # fmt: skip
    return list(dict.fromkeys(float(np.real(value)) for value in values if np.isfinite(value)))


def sizes_of(values: Mapping[int, Any]) -> list[int]:
    """The axes in sight have these lengths; several of them make further numbers together."""
    found: dict[int, None] = {}
    for value in values.values():
        shape = np.shape(value)
        found.update(dict.fromkeys(int(n) for n in shape if n > 2))
        if len(shape) > 1:
            found.setdefault(int(np.prod(shape)), None)
    return list(found)[:12]


def outside_of(site: Site, real: bool = True) -> list[int]:
    """The person's expression, inside which the site stands, is computed from these arrays."""
    expression = site.expression
    outside: dict[int, None] = {}
    frontier, seen = [site.equation.key], set()
    while frontier:
        slot = frontier.pop()
        if slot in seen:
            continue
        seen.add(slot)
        maker = site.makers.get(slot)
        if maker is not None and expression is not None and expression.span in maker.spans:
            frontier.extend(maker.operands)
        elif (in_scope(site.values.get(slot)) or not real) and np.ndim(site.values[slot]) > 0:
            outside[slot] = None
    return list(outside)
