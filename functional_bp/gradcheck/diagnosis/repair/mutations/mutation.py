"""An edit changes one equation; a site is what the equation's place offers to make edits of.

An edit says how to compute the result instead, in NumPy, and how to write it in the person's code:
as a template over the expression's operands ``_a``, ``_b`` and ``_c``, its whole ``_e`` and a
further value ``_v``; or as a template for one operand ``_x`` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from functional_bp.gradcheck.diagnosis import costs
from functional_bp.gradcheck.diagnosis.repair.program import Instruction, Values, compute
from functional_bp.gradcheck.diagnosis.repair.source import Fragment
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
            kind, said, lambda *a: self.again(with_operand(a, position, function(a[position]))),
            rank, change=(position, template) if template else None)

    def again(self, operands: Sequence[Any], **params: Any) -> Any:
        """The equation runs on other operands, or with other parameters; several results make a
        list.
        """
        equation = self.equation
        if params:
            equation = replace(equation, params={**equation.params, **params})
        results = compute(equation, operands, {})
        return results if len(equation.results) > 1 else results[0]


def with_operand(operands: Sequence[Any], position: int, value: Any) -> list[Any]:
    """One of the operands is replaced."""
    return [value if i == position else x for i, x in enumerate(operands)]
