"""Where in a graph the first NaN or infinity comes from, by its values alone.

An equation *makes* one if its operands are finite; if it turns infinities into a NaN (∞ − ∞); or if
it would make one also without the operands' bad entries (an overflow beside an entry masked with
−∞). Else it passes one on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from functional_bp import backprop
from functional_bp.explain.nonfinite.causes import operands_of
from functional_bp.explain.nonfinite.entries import harmless, has_nan, is_bad
from functional_bp.graph.parts import Equation, Variable
from functional_bp.graph.view import Graph

Values = Mapping[Variable, Any]


class Origin(NamedTuple):
    """Where a NaN or an infinity comes from.

    Attributes:
        equation: that makes it, or that takes it from a literal; None where it was given.
        given: the input, constant or literal that is itself not finite.
    """

    equation: Equation | None
    given: Variable | None = None


def origin(graph: Graph, values: Values, ends: Sequence[Variable]) -> Origin | None:
    """The first origin, in forward order, of what is not finite at ``ends``; None if all is."""
    bad = {v for v in graph.variables if is_bad(values[v])}
    on_way = {v for v in ends if v in bad}
    if not on_way:
        return None
    for equation in reversed(graph.equations):
        if on_way.intersection(equation.outputs):
            on_way.update(bad.intersection(equation.inputs))
    leading = [e for e in graph if on_way.intersection(e.outputs)]
    for equation in leading:
        if makes(equation, values):
            return Origin(equation)
    for variable in (*graph.inputs, *graph.constants):
        if variable in on_way:
            user = next((e for e in leading if variable in e.inputs), None)
            return Origin(user, variable)
    for equation in leading:
        for variable, operand in zip(equation.inputs, operands_of(equation, values)):
            if variable.kind == "literal" and is_bad(operand):
                return Origin(equation, variable)
    return Origin(leading[0]) if leading else None


def made_anywhere(graph: Graph, values: Values) -> Origin | None:
    """The first equation that makes a NaN or an infinity, whether or not that goes anywhere."""
    return next((Origin(e) for e in graph if makes(e, values)), None)


def makes(equation: Equation, values: Values) -> bool:
    """Whether an equation makes a NaN or an infinity, and does not only pass it on."""
    outs = [values[v] for v in equation.outputs]
    if not any(map(is_bad, outs)):
        return False
    operands = operands_of(equation, values)
    if not any(map(is_bad, operands)):
        return True
    if any(map(has_nan, outs)) and not any(map(has_nan, operands)):
        return True
    if equation.operation == "while":  # might never end from another start
        return False
    for value in (0.0, 1.0):
        without = [harmless(x, value) for x in operands]
        if not any(map(is_bad, backprop.evaluate(equation.eqn, without))):
            return False
    return True
