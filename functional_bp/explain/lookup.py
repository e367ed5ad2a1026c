"""A value of a flat graph by its name; or why the graph has none of that name."""

from __future__ import annotations

from functional_bp.errors import compose
from functional_bp.graph.parts import Equation, Variable
from functional_bp.graph.view import Graph, UnknownVariableError


def lookup(graph: Graph, name: str | Variable) -> Variable:
    """The variable of that name.

    Raises:
        UnknownVariableError: there is none. If the name stands inside an operation that the graph
            does not open (a loop, a ``custom_vjp``), the message says so; else it lists near ones.
    """
    if isinstance(name, str) and name not in graph:
        for equation in graph:
            if _is_named_inside(equation, name):
                raise UnknownVariableError(_inside(graph, equation, name))
    return graph[name]


def _is_named_inside(equation: Equation, name: str) -> bool:
    """Whether a graph that the equation holds gives the name to one of its values."""
    return any(
        any(v.tag == name for v in nested.graph.variables)
        or any(_is_named_inside(inner, name) for inner in nested.graph)
        for nested in equation.nested
    )


def _inside(graph: Graph, equation: Equation, name: str) -> str:
    operation = equation.operation
    zeros = f"zeros to it, {name} = {name} + zero, and ask for those of the zeros"
    if operation == "scan":
        what = f"{name} stands inside a loop of {graph.name}: it has another value at every step"
        do = f"write the loop out: unroll=True; or scan over (xs, zeros), add the {zeros}"
    elif operation == "while":
        what = f"{name} stands inside a loop of {graph.name}: it has another value at every step"
        do = f"make it a lax.scan of known length, and add {zeros}"
    elif operation == "cond":
        what = f"{name} stands inside a branch of {graph.name}, which runs or does not"
        do = f"make zeros an argument of the branch, add the {zeros}"
    else:
        what = (
            f"{name} stands inside an operation of {graph.name} that is differentiated as a whole"
        )
        do = "name what goes into the operation, or what comes out of it"
    where = ":".join(map(str, equation.source or ()))
    return compose(what, where=where, got=f"{operation} {equation.label}".strip(), do=do)
