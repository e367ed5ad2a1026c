"""Calls are opened: the equations inside ``jit``, ``remat``, loops, branches take their place.

What a function is made of is then one flat list of equations, each with the path of the calls and
name scopes that it stands in (``Equation.scope``, as in ``"encoder/block_2/softmax"``).

>>> import jax, jax.numpy as jnp
>>> import functional_bp as bp
>>> inner = jax.jit(lambda x: jnp.sin(x) * x)
>>> graph = bp.trace(lambda x: inner(inner(x)), 1.0)
>>> [e.operation for e in graph], [e.operation for e in inlined(graph)]
(['jit', 'jit'], ['sin', 'mul', 'sin', 'mul'])

Operations with a derivative of their own (``custom_jvp``, ``custom_vjp``) stay closed: their
insides are not what is differentiated.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Jaxpr, Var, jaxpr_as_fun

from functional_bp import _jax
from functional_bp.graph import names
from functional_bp.graph.graph import Equation, Graph, Recomputed, Variable
from functional_bp.graph.nested import CALLS, Inner, opened_scan
from functional_bp.graph.trace import trace

CHECKPOINT = "remat2"
Value = tuple[Variable, Any]  # a variable of the flat graph, and its atom in the flat jaxpr


class _Place(NamedTuple):
    """Where equations stand: their scope, the line of the call, the checkpoints around them."""

    scope: str = ""
    source: tuple[str, int] | None = None
    recomputed: tuple[Recomputed, ...] = ()


def inlined(
    graph: Graph, *, branches: Mapping[int, int] | None = None, unroll: bool = False
) -> Graph:
    """Return the graph, with the equations that calls hold in the calls' place.

    Args:
        graph: the graph.
        branches: the branch that runs, by the index of a ``cond`` equation of ``graph``; others
            stay closed.
        unroll: write each ``scan`` out, one copy of its body per step, under ``t0``, ``t1``, ….

    Returns:
        A graph with the same inputs and outputs. A value has the name that it was given (a tag, an
        output's path), with a number behind where a function that names it is called twice, or
        else letters.
    """
    return _Inliner(graph, branches or {}, unroll).result()


class _Inliner:
    """Goes through a graph and its nested ones, and collects the equations of the flat one."""

    def __init__(self, graph: Graph, branches: Mapping[int, int], unroll: bool) -> None:
        self.graph, self.branches, self.unroll = graph, branches, unroll
        self.equations: list[Equation] = []
        self.constants: list[tuple[Variable, Var, Any]] = []
        self.of_var: dict[Var, Variable] = {}
        self.taken: set[str] = set()
        self.scopes: set[str] = set()
        given = {v.name for v in (*graph.inputs, *graph.constants)} | set(graph.output_paths)
        given |= {v.tag for v in graph.variables if v.tag} | names.given_names(graph.jaxpr)
        self.letters = names.letters(given)

    def result(self) -> Graph:
        graph = self.graph
        known: dict[Variable, Value] = {}
        for variable, var in zip(graph.inputs, graph.jaxpr.invars):
            known[variable] = (variable, var)
            self.of_var[var] = variable
            self.taken.add(variable.name)
        self.equations_of(graph, known, _Place(), {}, self.branches)
        outs = [self.value(v, a, known) for v, a in zip(graph.outputs, graph.jaxpr.outvars)]
        jaxpr = _jax.jaxpr_with_constants(
            [value for _, _, value in self.constants],
            constvars=[var for _, var, _ in self.constants],
            invars=graph.jaxpr.invars,
            outvars=[atom for _, atom in outs],
            eqns=[e.eqn for e in self.equations],
            effects=graph.jaxpr.effects,
            debug_info=graph.jaxpr.debug_info,
        )
        return Graph(
            graph.name,
            graph.inputs,
            tuple(variable for variable, _, _ in self.constants),
            tuple(variable for variable, _ in outs),
            graph.output_paths,
            tuple(self.equations),
            jaxpr,
            tuple(value for _, _, value in self.constants),
            self.of_var,
            graph.staged,
        )

    @staticmethod
    def value(variable: Variable, atom: Any, known: Mapping[Variable, Value]) -> Value:
        return (variable, atom) if variable.kind == "literal" else known[variable]

    def equations_of(
        self,
        graph: Graph,
        known: dict[Variable, Value],
        place: _Place,
        called: Mapping[Variable, Variable],
        branches: Mapping[int, int],
    ) -> None:
        """Add a graph's equations; ``called`` says which variable of the caller an output is."""
        for variable, value in zip(graph.constants, graph.consts, strict=True):
            known[variable] = self.define(variable, None, value)
        for equation in graph.equations:
            parts = _joined(place.scope, equation.scope).split("/")
            self.scopes.update(accumulate(parts, "{}/{}".format))
        for equation in graph.equations:
            pairs = zip(equation.inputs, equation.eqn.invars)
            operands = [self.value(v, a, known) for v, a in pairs]
            inside, fed = self.opened(equation, operands, branches)
            source = None if (equation.source or ("",))[0] == __file__ else equation.source
            here = _Place(
                _joined(place.scope, equation.scope),
                source or place.source,
                place.recomputed + equation.recomputed,
            )
            if inside is None:
                self.add(equation, operands, known, here, called)
                continue
            if len(inside.equations) > 1:
                path = self.new_scope(here.scope, _label(equation))
                here = here._replace(scope=path)
            if equation.operation == CHECKPOINT:
                here = here._replace(recomputed=(*here.recomputed, Recomputed(equation.eqn)))
            within = dict(zip(inside.inputs, fed, strict=True))
            outer = {inner: called.get(v, v) for inner, v in zip(inside.outputs, equation.outputs)}
            self.equations_of(inside, within, here, outer, {})
            for out, inner, atom in zip(equation.outputs, inside.outputs, inside.jaxpr.outvars):
                known[out] = self.value(inner, atom, within)

    def opened(
        self, equation: Equation, operands: list[Value], branches: Mapping[int, int]
    ) -> tuple[Graph | None, Sequence[Value]]:
        """The graph to put in an equation's place and what feeds its inputs; None to leave it."""
        if equation.operation in CALLS and len(equation.nested) == 1:
            return equation.nested[0].graph, operands
        if equation.operation == "cond" and equation.index in branches:
            return equation.nested[branches[equation.index]].graph, operands[1:]
        if equation.operation == "scan" and self.unroll:
            return _unrolled(equation), operands
        return None, ()

    def new_scope(self, scope: str, label: str) -> str:
        """A path for one call; the second call of a function in one place has a 2 behind."""
        path = names.unique(_joined(scope, label), self.scopes)
        self.scopes.add(path)
        return path

    def add(
        self,
        equation: Equation,
        operands: list[Value],
        known: dict[Variable, Value],
        place: _Place,
        called: Mapping[Variable, Variable],
    ) -> None:
        made = [self.define(v, called.get(v)) for v in equation.outputs]
        known.update(zip(equation.outputs, made))
        eqn = equation.eqn.replace(
            invars=[atom for _, atom in operands], outvars=[var for _, var in made]
        )
        self.equations.append(
            dataclasses.replace(
                equation,
                index=len(self.equations),
                inputs=tuple(variable for variable, _ in operands),
                outputs=tuple(variable for variable, _ in made),
                nested=tuple(
                    dataclasses.replace(n, operands=_renamed(n.operands, equation.inputs, operands))
                    for n in equation.nested
                ),
                scope=place.scope,
                source=place.source,
                eqn=eqn,
                recomputed=place.recomputed,
            )
        )

    def define(self, variable: Variable, caller: Variable | None, value: Any = None) -> Value:
        """A new variable, under the name that it itself or its caller was given."""
        outer = variable if caller is None else caller
        tag = variable.tag or outer.tag
        is_end = outer.name in self.graph.output_paths
        if tag is None and variable.name == "_" and not is_end:
            name = "_"
        else:
            is_given = is_end or variable in self.graph.constants
            name = tag or (outer.name if is_given else next(self.letters))
            name = names.unique(name, self.taken)
            self.taken.add(name)
        made = Variable(name, variable.aval, variable.kind, tag, variable.value)
        var = Var(variable.aval)
        self.of_var[var] = made
        if variable.kind == "constant":
            self.constants.append((made, var, value))
        return made, var


def _label(equation: Equation) -> str:
    """What a call's scope is called."""
    if equation.operation == CHECKPOINT:
        return "checkpoint"
    return equation.label or equation.operation


def _unrolled(equation: Equation) -> Graph:
    """A ``scan`` as a graph without it: x[0], body, x[1], body, …, the outputs stacked."""
    scan = opened_scan(equation.eqn)

    def loop(*operands: Any) -> list[Any]:
        fixed, carry, xs = scan.divided(operands)
        stacks: list[list[Any]] = []
        for t in reversed(range(scan.length)) if scan.is_reversed else range(scan.length):
            step = _step(scan.body, f"t{t}")
            outs = step(*fixed, *carry, *(lax.index_in_dim(x, t, keepdims=False) for x in xs))
            carry = list(outs[: scan.carries])
            stacks.append(list(outs[scan.carries :]))
        if scan.is_reversed:
            stacks.reverse()
        return [*carry, *(jnp.stack(ys) for ys in zip(*stacks))]

    avals: list[Any] = [atom.aval for atom in equation.eqn.invars]
    operands = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals]
    return trace(loop, *operands)


def _step(body: Inner, label: str) -> Callable[..., Any]:
    """One step of a loop as a call that is named after its time."""
    run = jaxpr_as_fun(_jax.ClosedJaxpr(body.jaxpr, body.consts))

    def step(*operands: Any) -> Any:
        return run(*operands)

    step.__name__ = label
    return jax.jit(step)


def opened_jaxpr(graph: Graph) -> Jaxpr:
    """Return the graph's jaxpr with its constants as further inputs, before the others."""
    jaxpr = graph.jaxpr
    return Jaxpr(
        constvars=[],
        invars=[*jaxpr.constvars, *jaxpr.invars],
        outvars=jaxpr.outvars,
        eqns=jaxpr.eqns,
        effects=jaxpr.effects,
        debug_info=jaxpr.debug_info.with_unknown_names(),
    )


def _joined(scope: str, inner: str) -> str:
    return "/".join(filter(None, (scope, inner)))


def _renamed(
    fed: Sequence[Variable | None], before: Sequence[Variable], now: Sequence[Value]
) -> tuple[Variable | None, ...]:
    """What feeds a nested graph, as the flat graph calls it."""
    names_now = {old: variable for old, (variable, _) in zip(before, now)}
    return tuple(None if v is None else names_now.get(v, v) for v in fed)
