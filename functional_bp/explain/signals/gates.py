"""Where a gradient becomes zero: the operation that lets nothing through, and for which units.

A unit is one index along an axis: a column of a weight, an entry of a bias. It is dead where its
gradient is zero for all examples. The way from a parameter towards the output is followed as long
as the same units are dead; where they are no longer, an operation stands that made them so.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from functional_bp.explain.explanation import Explanation
from functional_bp.explain.nonfinite.entries import host
from functional_bp.graph.parts import Equation, Variable


class Gate(NamedTuple):
    """An operation that lets no gradient through to some units.

    Attributes:
        equation: the operation.
        operand: its operand whose gradient is zero there.
        units: the dead ones; None where all of the gradient is zero.
        width: how many units there are.
        examples: how many entries each unit has at the operation.
    """

    equation: Equation
    operand: Variable
    units: tuple[int, ...] | None
    width: int
    examples: int


def dead_gate(explanation: Explanation, variable: Variable) -> Gate | None:
    """Where the whole of a variable's gradient becomes zero; None where no path says so."""
    seen: set[Variable] = set()
    ahead = [variable]
    while ahead:
        here = ahead.pop()
        for equation in explanation.graph.uses(here):
            for out in equation.outputs:
                if out not in explanation.bars or out in seen:
                    continue
                seen.add(out)
                if np.any(host(explanation.bars[out])):
                    return Gate(equation, here, None, here.size, 0)
                ahead.append(out)
    return None


def unit_gate(explanation: Explanation, variable: Variable) -> Gate | None:
    """The operation at which some units of a variable lose their gradient, by their own values."""
    for axis in reversed(range(len(variable.shape))):
        units = _dead_units(explanation.bars[variable], axis)
        if 0 < units.sum() < units.size:
            gate = _follow(explanation, variable, units)
            if gate is not None:
                return gate
    return None


def _follow(explanation: Explanation, start: Variable, units: np.ndarray) -> Gate | None:
    seen = {start}
    ahead = [start]
    while ahead:
        here = ahead.pop()
        for equation in explanation.graph.uses(here):
            for out in equation.outputs:
                if out not in explanation.bars or out in seen:
                    continue
                seen.add(out)
                if _axis_of(explanation.bars[out], units) is not None:
                    ahead.append(out)
                elif _is_gate(explanation, equation, here, units):
                    shut = units & _far_from_zero(explanation.values[here])
                    examples = here.size // units.size
                    dead = tuple(int(i) for i in np.flatnonzero(shut))
                    return Gate(equation, here, dead, units.size, examples)
    return None


def _is_gate(explanation: Explanation, equation: Equation, here: Variable, units: Any) -> bool:
    """Whether an operation closes by its operand's own value, unit by unit, and not by a mask."""
    if equation.outputs[0].shape != here.shape or not here.shape:
        return False
    if _axis_of(explanation.bars[here], units) != len(here.shape) - 1:
        return False
    others = [v for v in equation.inputs if v is not here and v.kind != "literal" and v.size > 1]
    if not others:
        return True
    return all(
        v in _reached_from(explanation, here) or not np.any(host(explanation.values[v]))
        for v in others
    )


def _far_from_zero(z: Any) -> np.ndarray:
    """For each unit whether all examples lie further from 0 than they lie from each other.

    Else more examples would open it: those seen are on one side by chance.
    """
    held = np.asarray(host(z))
    rows = held.reshape(-1, held.shape[-1])
    return np.abs(rows).min(axis=0) > rows.std(axis=0)


def _reached_from(explanation: Explanation, variable: Variable) -> set[Variable]:
    """What is computed from a variable."""
    found = {variable}
    maker = explanation.graph.defined_by(variable)
    start = 0 if maker is None else maker.index
    for equation in explanation.graph.equations[start:]:
        if found.intersection(equation.inputs):
            found.update(equation.outputs)
    return found


def _dead_units(x_bar: Any, axis: int) -> np.ndarray:
    """For each index along an axis, whether all entries are zero."""
    held = np.asarray(host(x_bar))
    return ~np.any(held, axis=tuple(i for i in range(held.ndim) if i != axis))


def _axis_of(x_bar: Any, units: np.ndarray) -> int | None:
    """The axis along which these units, among others, are dead, and not all; None for none."""
    for axis in reversed(range(np.ndim(x_bar))):
        if np.shape(x_bar)[axis] == units.size:
            dead = _dead_units(x_bar, axis)
            if dead[units].all() and not dead.all():
                return axis
    return None
