"""What a formula calls the variables of a graph: the person's names, as short as they can be.

>>> short_names(["params['W1']", "params['b1']", "x", "layers[0]['w']", "layers[1]['w']"])
['W1', 'b1', 'x', 'layers[0].w', 'layers[1].w']
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from functional_bp.explain.formulas.algebra import number
from functional_bp.explain.formulas.expression import Expression, Symbol, Verbatim
from functional_bp.explain.numbers import format_value
from functional_bp.graph.parts import Variable
from functional_bp.graph.view import Graph

_STEP = re.compile(r"\['([^']*)'\]|\.(\w+)|(\[[^\]]*\])")


def short_names(names: Sequence[str]) -> list[str]:
    """For each path the shortest end that is no end of another, and no other name."""
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
    """A symbol for every variable of a graph. Short constants and literals are their values."""
    variables = [v for v in graph.variables if v.name != "_"]
    short = short_names([v.name for v in variables])
    return {v: Symbol(name) for v, name in zip(variables, short)}


def symbol(variable: Variable, known: Mapping[Variable, Expression]) -> Expression:
    """The symbol of a variable; the value of a literal."""
    if variable in known:
        return known[variable]
    if variable.kind == "literal" and variable.value is not None:
        value = np.asarray(variable.value)
        if value.ndim == 0 and value.dtype.kind in "biufc":
            return number(value.item())
        return Verbatim(format_value(value))
    return Symbol(variable.name)
