"""A relation says how the axes of an operation's operands and outputs belong together.

It is the einsum of any operation: axes with the same label are one dimension, and the label's role
says what can be done along it. It stands beside the rule, as ``axes=``:

=====================  ==================================================================
declared               is
=====================  ==================================================================
nothing                elementwise: axes belong together by position
``"... N N -> ... N"``  operands and outputs in the letters of einsum; ``...`` stands for any
                       leading axes, a capital letter for an axis that cannot be divided, a
                       letter that no output has for one that is summed
a function             of the types of operands and outputs (``x_t``; ``operands_t`` and
                       ``outputs_t`` for all of them) and of parameters by keyword, as pullbacks
                       are; it returns such a text, or ``relate(…)``
=====================  ==================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from typing import Any, NamedTuple

from jax.extend.core import JaxprEqn

from functional_bp.engine.plan import by_name
from functional_bp.engine.rule import rules
from functional_bp.errors import RuleError

Labels = tuple[Hashable | None, ...]  # one for each axis of an array, None for an axis of its own


class Role(Enum):
    """An operation supports this along a dimension."""

    DIVISIBLE = "divisible"  # each piece is computed alone; one after another they are the whole
    SUMMED = "summed"  # each piece is computed alone; added, or otherwise combined, they are it
    HALO = "halo"  # a piece needs some entries of its neighbours
    POSITIONAL = "positional"  # a piece needs to know where it begins
    MIXED = "mixed"  # an entry depends on all others


class AxisPlace(NamedTuple):
    """An axis of an operand or of an output, by the array's number."""

    is_output: bool
    array: int
    axis: int


@dataclass(frozen=True)
class Axes:
    """These axes of operands and outputs belong together.

    Attributes:
        operands, outputs: the labels of each array's axes.
        roles: of the labels that are not divisible.
        combine: how pieces along a summed label are combined: "sum", "prod", "max", "min", "and",
            "or", "xor".
    """

    operands: tuple[Labels, ...]
    outputs: tuple[Labels, ...]
    roles: Mapping[Hashable, Role] = field(default_factory=dict)
    combine: str = "sum"

    def role(self, label: Hashable) -> Role:
        """Return what can be done along a label."""
        return self.roles.get(label, Role.DIVISIBLE)

    @property
    def places(self) -> dict[Hashable, list[AxisPlace]]:
        """List where each label stands, operands first."""
        found: dict[Hashable, list[AxisPlace]] = {}
        for is_output, arrays in ((False, self.operands), (True, self.outputs)):
            for k, labels in enumerate(arrays):
                for axis, label in enumerate(labels):
                    if label is not None:
                        found.setdefault(label, []).append(AxisPlace(is_output, k, axis))
        return found


def relate(
    operands: Iterable[Sequence[Hashable | None]],
    outputs: Iterable[Sequence[Hashable | None]],
    *,
    summed: Iterable[Hashable] = (),
    halo: Iterable[Hashable] = (),
    positional: Iterable[Hashable] = (),
    mixed: Iterable[Hashable] = (),
    combine: str = "sum",
) -> Axes:
    """Make a relation of the labels of every operand's and output's axes.

    A label that is in none of the groups is divisible.
    """
    groups = (
        (Role.SUMMED, summed), (Role.HALO, halo), (Role.POSITIONAL, positional),
        (Role.MIXED, mixed),
    )  # fmt: skip
    roles = {label: role for role, labels in groups for label in labels if label is not None}
    return Axes(tuple(map(tuple, operands)), tuple(map(tuple, outputs)), roles, combine)


def axes_of(eqn: JaxprEqn) -> Axes | None:
    """Return the relation of an equation; None where its primitive has no rule."""
    rule = rules.get(eqn.primitive)
    if rule is None:
        return None
    operands, outputs = [v.aval for v in eqn.invars], [v.aval for v in eqn.outvars]
    if rule.axes is None:
        return elementwise(operands, outputs)
    found = rule.axes
    if not isinstance(found, str):
        types = {
            **by_name(rule.operands, operands), **by_name(rule.outputs, outputs),
            "operands": operands, "outputs": outputs,
        }  # fmt: skip
        found = found(lambda need: types[need.name], eqn.params)
    if isinstance(found, str):
        return _from_text(found, tuple(map(rank, operands)), tuple(map(rank, outputs)))
    return found


def rank(aval: Any) -> int:
    """Return how many axes a type has; none for what is no array."""
    return len(getattr(aval, "shape", ()))


@lru_cache(maxsize=1024)
def _from_text(text: str, operands: tuple[int, ...], outputs: tuple[int, ...]) -> Axes:
    """``"... N N, ... N k -> ... N k"``, for arrays of these ranks."""
    left, arrow, right = text.partition("->")
    if not arrow:
        raise RuleError(f"axes {text!r} of a rule have no '->'")

    def labels(part: str, rank: int) -> Labels:
        words = part.split()
        free = rank - sum(word != "..." for word in words)
        if free < 0 or (free and "..." not in words):
            raise RuleError(f"axes {text!r} of a rule", got=f"an array with {rank} axes",
                            expected=f"one of {part.strip()!r}")  # fmt: skip
        batch: list[Hashable] = [("...", i) for i in range(free)]
        return tuple(x for word in words for x in (batch if word == "..." else [word]))

    ins = [labels(part, n) for part, n in zip(left.split(","), operands, strict=False)]
    outs = [labels(part, n) for part, n in zip(right.split(","), outputs, strict=False)]
    known = {label for array in outs for label in array}
    letters = {label for array in (*ins, *outs) for label in array if isinstance(label, str)}
    return relate(
        ins, outs,
        mixed=[x for x in letters if x.isupper()],
        summed=[x for x in letters if x.islower() and x not in known],
    )  # fmt: skip


# The relations that many rules share.


def elementwise(operands_t: Sequence[Any], outputs_t: Sequence[Any]) -> Axes:
    """Axes of one place belong together, where they have the same size."""
    shapes = [x.shape for x in (*operands_t, *outputs_t) if rank(x)]
    most = max(map(len, shapes), default=0)
    full = [max([s[i] for s in shapes if len(s) == most], default=0) for i in range(most)]

    def labels(x: Any) -> Labels:
        if not most or rank(x) != most:
            return (None,) * rank(x)
        return tuple(i if n == full[i] else None for i, n in enumerate(x.shape))

    return relate(map(labels, operands_t), map(labels, outputs_t))


def mixing(parameter: str) -> Callable[..., Axes]:
    """Make the relation of what is elementwise but for the axes that a parameter names.

    They may be absent from the output, or have another size there.
    """

    def axes(operands_t: Sequence[Any], outputs_t: Sequence[Any], **params: Any) -> Axes:
        given = params[parameter]
        most = max(map(rank, operands_t))
        along = {a % most for a in (given if isinstance(given, tuple | list) else (given,))}
        rest = [i for i in range(most) if i not in along]
        sizes = operands_t[0].shape

        def labels(x: Any) -> Labels:
            if rank(x) == len(rest) != most:
                return tuple(rest)
            return tuple(i if n == sizes[i] else None for i, n in enumerate(x.shape))

        return relate(map(labels, operands_t), map(labels, outputs_t), mixed=along)

    return axes


def reduction(combine: str, parameter: str = "axes") -> Callable[..., Axes]:
    """Make the relation of a reduction: the axes that a parameter names are summed, or the like."""

    def axes(operands_t: Sequence[Any], outputs_t: Sequence[Any], **params: Any) -> Axes:
        along = params[parameter]
        whole = [i for i in range(rank(operands_t[0]))]
        left = [i for i in whole if i not in along]
        ins = [whole if rank(x) else [] for x in operands_t]
        return relate(ins, [left for _ in outputs_t], summed=along, combine=combine)

    return axes


def merged(before: Sequence[int], after: Sequence[int]) -> tuple[Labels, Labels]:
    """Label the axes of an array before and after a reshape.

    Axes with all of their entries in common are one dimension. Where axes are merged or split, the
    major ones go on: pieces along them stand one after the other in both.
    """
    first: list[Hashable | None] = [None] * len(before)
    second: list[Hashable | None] = [None] * len(after)
    for ins, outs in _common_blocks(before, after):
        if ins and outs and math.gcd(before[ins[0]], after[outs[0]]) > 1:
            first[ins[0]] = second[outs[0]] = ins[0]
    return tuple(first), tuple(second)


def _common_blocks(
    before: Sequence[int], after: Sequence[int]
) -> Iterator[tuple[list[int], list[int]]]:
    """Cut both shapes into the shortest runs of axes that have as many entries; no axes of 1."""
    if 0 in before:
        yield from (([i], [i]) for i, (m, n) in enumerate(zip(before, after)) if m == n)
        return
    ins = [i for i, n in enumerate(before) if n != 1]
    outs = [i for i, n in enumerate(after) if n != 1]
    while ins and outs:
        some, others = [ins.pop(0)], [outs.pop(0)]
        while (m := math.prod(before[i] for i in some)) != (
            n := math.prod(after[i] for i in others)
        ):
            if m < n:
                some.append(ins.pop(0))
            else:
                others.append(outs.pop(0))
        yield some, others
