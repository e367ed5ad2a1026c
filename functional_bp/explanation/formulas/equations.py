"""An equation of a graph is written as mathematics: forward ``h = tanh(z)``, in reverse ``z̄ = …``.

Variables have the person's names, as short as they can be told apart.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from functional_bp.engine.operation import operation_of
from functional_bp.engine.plan import spread
from functional_bp.engine.rule import Rule
from functional_bp.explanation.formulas import expression as ex
from functional_bp.explanation.formulas.expression import Expression
from functional_bp.explanation.formulas.formula import Formula, contracted, formula
from functional_bp.explanation.formulas.writing import written
from functional_bp.explanation.numbers import format_shape, format_slices, format_value
from functional_bp.graph.graph import Equation, Graph, Variable

_STEP = re.compile(r"\['([^']*)'\]|\.(\w+)|(\[[^\]]*\])")


def short_names(names: Sequence[str]) -> list[str]:
    """Return for each path the shortest end that is no end of another, and no other name.

    >>> short_names(["params['W1']", "params['b1']", "x", "layers[0]['w']", "layers[1]['w']"])
    ['W1', 'b1', 'x', 'layers[0].w', 'layers[1].w']
    """
    ends = [_ends(name) for name in names]
    counts = Counter(end for each in ends for end in each)
    return [next((e for e in each if counts[e] == 1), each[-1]) for each in ends]


def _ends(path: str) -> list[str]:
    """The ends of a path, shortest first, the whole path last: ``w``, ``layers[0].w``."""
    head = _STEP.split(path, maxsplit=1)[0]
    steps = [head]
    for key, attribute, index in _STEP.findall(path[len(head) :]):
        if index:
            steps[-1] += index
        else:
            steps.append(key or attribute)
    return [".".join(steps[k:]) for k in reversed(range(len(steps)))]


def symbols(graph: Graph) -> dict[Variable, Expression]:
    """Return a symbol for every variable of a graph that has a name."""
    variables = [v for v in graph.variables if v.name != "_"]
    short = short_names([v.name for v in variables])
    return {v: ex.Symbol(name) for v, name in zip(variables, short)}


def symbol(variable: Variable, known: Mapping[Variable, Expression]) -> Expression:
    """Return the symbol of a variable; the value of a literal."""
    if variable in known:
        return known[variable]
    if variable.kind == "literal" and variable.value is not None:
        value = np.asarray(variable.value)
        if value.ndim == 0 and value.dtype.kind in "biufc":
            return ex.number(value.item())
        return ex.Verbatim(format_value(value))
    return ex.Symbol(variable.name)


Known = Mapping[Variable, Expression]  # the symbols of a graph


def forward(equation: Equation, known: Known) -> Formula:
    """Say what an equation computes, in the person's names: ``z = W₁ x``, ``p = x + y``."""
    operands = [symbol(v, known) for v in equation.inputs]
    left = _several([symbol(v, known) for v in equation.outputs])
    if (axes := _axes(equation)) and len(operands) == 2:
        letters, product = contracted(axes[2], (operands[0], axes[0]), (operands[1], axes[1]))
        return Formula(ex.Indexed(left, letters) if letters else left, product)
    return Formula(left, _value(equation, operands))


def reverse(equation: Equation, operand: int, known: Known) -> Formula:
    """Say what an equation adds to the cotangent of one of its operands."""
    rule = _operation_rule(equation) or equation.rule.rule
    variable = equation.inputs[operand]
    bar = barred_symbol(variable, known)
    if rule is None:
        ups = tuple(barred_symbol(v, known) for v in equation.outputs)
        return Formula(bar, ex.Application(f"{equation.operation}_vjp", ups))
    if not rule.operands:
        first = symbol(equation.outputs[0], known)
        names = {
            "x": symbol(variable, known),
            "y": first,
            "x_bar": bar,
            "y_bar": barred_symbol(equation.outputs[0], known),
        }
        line = formula(rule, "x", names).line
        is_own = not line or line.startswith(written(bar))
        return Formula(None, None, line if is_own else f"{written(bar)}: {line}")
    groups = (
        spread(rule.operands, len(equation.inputs)),
        spread(rule.outputs, len(equation.outputs)),
    )
    names: dict[str, str | Expression] = {}
    static = dict(equation.eqn.params)
    for group, variables in zip(groups, (equation.inputs, equation.outputs)):
        for place, (name, v) in enumerate(zip(group, variables)):
            is_this = v is variable and group is groups[0] and place == operand
            if is_this or name.text not in names or not name.starred:
                names[name.text] = symbol(v, known)
                names[f"{name.text}_bar"] = barred_symbol(v, known)
            if not name.starred:
                static |= {name.text: v.aval, f"{name.text}_t": v.aval, f"{name.text}_bar": v.aval}
    for name in {n for n in groups[0] if n.starred}:
        members = [v.aval for n, v in zip(groups[0], equation.inputs) if n == name]
        static |= {name.text: members, f"{name.text}_t": members}
    this = groups[0][operand]
    static["index"] = [k for k, n in enumerate(groups[0]) if n == this].index(operand)
    axes = _axes(equation)
    letters = dict(zip((n.text for n in (*rule.operands, *rule.outputs)), axes)) if axes else None
    return formula(rule, this.text, names, static, letters)


def _operation_rule(equation: Equation) -> Rule | None:
    """The rule that an operation states, where the equation is a call of one."""
    operation = operation_of(equation.eqn)
    if operation is None or len(operation.operands) != len(equation.inputs):
        return None
    return Rule(
        equation.eqn.primitive, "pullback", operation.operands, operation.outputs,
        operation.auxiliaries, operation.pullbacks, why=operation.why,
    )  # fmt: skip


def barred_symbol(variable: Variable, known: Known) -> Expression:
    """Return the symbol of a variable's cotangent; of a literal, its value."""
    shown = symbol(variable, known)
    return ex.Symbol(shown.name, bar=True) if isinstance(shown, ex.Symbol) else shown


def _several(symbols: list[Expression]) -> Expression:
    return symbols[0] if len(symbols) == 1 else ex.Application("", tuple(symbols))


def _axes(equation: Equation) -> list[str] | None:
    """A letter per axis of operands and output, where the equation says so: ab, bc, ac."""
    subscripts = equation.parameters.get("subscripts", "")
    return subscripts.replace("→", ",").split(",") if "→" in subscripts else None


def _value(equation: Equation, operands: list[Expression]) -> Expression:
    """The right-hand side of an equation that is no contraction."""
    name, params = equation.operation, equation.eqn.params
    first = operands[0] if operands else ex.ZERO
    shape = ex.Verbatim(format_shape(equation.outputs[0].shape)) if equation.outputs else ex.ZERO
    match name:
        case "integer_pow":
            return ex.power(first, ex.number(params["y"]))
        case "reduce_sum" if len(params["axes"]) == len(equation.inputs[0].shape):
            return ex.Total("", first)
        case "transpose" if tuple(params["permutation"]) == (1, 0):
            return ex.Transpose(first)
        case "convert_element_type":
            return ex.Application(np.dtype(params["new_dtype"]).name, (first,))
        case "copy" | "name":
            return first
        case "broadcast_in_dim" | "reshape":
            return ex.Application(name.removesuffix("_in_dim"), (first, shape))
        case "slice":
            return ex.Item(first, ", ".join(format_slices(equation.inputs[0].shape, params)))
    shown = equation.parameters
    if name in ex.OPERATORS and not equation.nested and not shown:
        places = [ex.Symbol(f"operand {k}") for k in range(len(operands))]
        return ex.put(ex.OPERATORS[name](*places), dict(zip(places, operands)))
    if name.startswith("reduce_") and set(shown) == {"axes"}:
        axes = params["axes"]
        which = "" if len(axes) == len(equation.inputs[0].shape) else ", ".join(map(str, axes))
        over = (ex.Verbatim(f"axis {which}"),) if which else ()
        return ex.Application(name.removeprefix("reduce_"), (first, *over))
    keywords = tuple((key, ex.Verbatim(str(value))) for key, value in shown.items())
    return ex.Application(
        equation.label or name, tuple(operands), () if equation.nested else keywords
    )
