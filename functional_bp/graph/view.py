"""The computational graph of a function: a read-only view of its jaxpr, with a person's names.

>>> import jax.numpy as jnp
>>> import functional_bp as bp
>>> def loss(W, x):
...     h = bp.name(jnp.tanh(x @ W), "h")
...     return jnp.sum(h * h)
>>> graph = bp.trace(loss, jnp.ones((3, 4), "float32"), jnp.ones((2, 3), "float32"))
>>> graph
<Graph loss: 2 inputs, 4 equations, 1 output>
>>> graph["h"], graph.defined_by("h").operation, [e.operation for e in graph.uses("h")]
(<h: f32[2,4]>, 'tanh', ['mul'])
>>> graph.flops  # 2·2·4·3 for the product, 8 each for tanh, mul and sum
72
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple

from jax.extend.core import Jaxpr, Var

from functional_bp.errors import BackpropError
from functional_bp.graph.parts import Equation, Variable


class UnknownVariableError(BackpropError, KeyError):
    """A graph has no variable of that name."""

    __str__ = Exception.__str__  # a KeyError would show its message in quotes


class Visit(NamedTuple):
    """One equation met by ``Graph.walk``.

    Attributes:
        graph: the graph that it stands in.
        equation: the equation.
        depth: 0 in the graph that is walked, 1 in a graph inside one of its equations, …
        runs: how often it runs in one call; loops of unknown length count once.
    """

    graph: Graph
    equation: Equation
    depth: int
    runs: int


@dataclass(frozen=True, eq=False)
class Graph:
    """A function as equations between variables, at given shapes.

    A ``bp.name`` tag is not an equation here: the value that it names carries the tag. Only where
    that value already has a name (an input, a second tag) an equation ``name`` is left.

    Attributes:
        name: the function's name.
        inputs: one variable per array among the arguments.
        constants: arrays that the function closes over.
        outputs: one variable per array returned; one may stand here twice, or be an input.
        output_paths: the outputs' places in what the function returns: ``result['loss']``.
        equations: in an order in which they can run.
        jaxpr: JAX's own form of the graph.
        consts: the constants' values.
        staged: the function was traced without values; False: it was run, and this is what it did.
    """

    name: str
    inputs: tuple[Variable, ...]
    constants: tuple[Variable, ...]
    outputs: tuple[Variable, ...]
    output_paths: tuple[str, ...]
    equations: tuple[Equation, ...]
    jaxpr: Jaxpr
    consts: tuple[Any, ...]
    of_var: Mapping[Var, Variable] = field(repr=False)
    staged: bool = True

    @cached_property
    def variables(self) -> tuple[Variable, ...]:
        """Inputs, constants and every equation's outputs, in this order; no literals."""
        defined = [v for equation in self.equations for v in equation.outputs]
        return (*self.inputs, *self.constants, *defined)

    def __iter__(self) -> Iterator[Equation]:
        return iter(self.equations)

    def __len__(self) -> int:
        return len(self.equations)

    def __getitem__(self, key: str | Var | Variable) -> Variable:
        """The variable of that name, output path, or jaxpr variable.

        Raises:
            UnknownVariableError: there is none; the message lists near names.
        """
        if isinstance(key, Variable):
            return key
        if isinstance(key, Var):
            return self.of_var[key]
        if key not in self._by_name:
            near = difflib.get_close_matches(key, self._by_name, n=4, cutoff=0.4)
            hint = f"; near it: {', '.join(near)}" if near else ""
            raise UnknownVariableError(f"no variable of {self.name} is called {key}{hint}")
        return self._by_name[key]

    def __contains__(self, key: object) -> bool:
        return key in self._by_name or key in self.of_var or key in self._places

    @cached_property
    def _by_name(self) -> dict[str, Variable]:
        paths = dict(zip(self.output_paths, self.outputs))
        return {**paths, **{v.name: v for v in self.variables if v.name != "_"}}

    @cached_property
    def _places(self) -> dict[Variable, tuple[int, tuple[int, ...]]]:
        """For each variable: the equation that defines it (-1: none), and those that use it."""
        defined = {v: e.index for e in self.equations for v in e.outputs}
        uses: dict[Variable, list[int]] = {v: [] for v in self.variables}
        for equation in self.equations:
            for v in dict.fromkeys(equation.inputs):
                if v.kind != "literal":
                    uses[v].append(equation.index)
        return {v: (defined.get(v, -1), tuple(used)) for v, used in uses.items()}

    @cached_property
    def _ends(self) -> frozenset[Variable]:
        return frozenset(self.outputs)

    def uses(self, variable: str | Variable) -> tuple[Equation, ...]:
        """The equations that take the variable as an input, in order."""
        return tuple(self.equations[i] for i in self._places[self[variable]][1])

    def defined_by(self, variable: str | Variable) -> Equation | None:
        """The equation that computes the variable; None for inputs and constants."""
        index = self._places[self[variable]][0]
        return None if index < 0 else self.equations[index]

    def live_range(self, variable: str | Variable) -> tuple[int, int]:
        """The first and last equation at which the value must exist, by index.

        -1 stands for the start (inputs and constants), ``len(graph)`` for the end (outputs). A
        value that nothing uses lives only where it is made.
        """
        variable = self[variable]
        start, used = self._places[variable]
        return start, len(self) if variable in self._ends else max(used, default=start)

    def _span(self, variable: Variable) -> range:
        """The equations while which the value is in memory; the caller holds inputs throughout."""
        if variable.kind != "intermediate":
            return range(len(self))
        start, end = self.live_range(variable)
        return range(start, min(end + 1, len(self)))

    def live_at(self, index: int) -> tuple[Variable, ...]:
        """The variables in memory while equation ``index`` runs, its outputs included.

        Inputs and constants are always among them: the caller holds them.
        """
        return tuple(v for v in self.variables if index in self._span(v))

    def live_bytes(self, index: int) -> int:
        """Bytes in memory while equation ``index`` runs, with what its nested graphs need."""
        return self._live_bytes[index]

    @cached_property
    def _live_bytes(self) -> tuple[int, ...]:
        return self._sum_live(self.variables)

    def _sum_live(self, variables: Iterable[Variable]) -> tuple[int, ...]:
        """For each equation: bytes of those variables that are live, and of what is inside it."""
        change = [0] * (len(self) + 1)
        for variable in variables:
            span = self._span(variable)
            change[span.start] += variable.bytes
            change[span.stop] -= variable.bytes
        inside = [max((n.graph.temporary_bytes for n in e.nested), default=0) for e in self]
        return tuple(held + extra for held, extra in zip(accumulate(change), inside))

    @cached_property
    def temporary_bytes(self) -> int:
        """The most bytes at once that are neither inputs, constants nor outputs."""
        passing = [v for v in self.variables if v.kind == "intermediate" and v not in self._ends]
        return max(self._sum_live(passing), default=0)

    @cached_property
    def peak_bytes(self) -> int:
        """The most bytes in memory at once, if equations run in order and nothing is fused.

        Inputs and constants count throughout; a value is freed after its last use. A compiler
        fuses operations and reuses buffers, and so needs less.
        """
        ends = [sum(v.bytes for v in {*self.inputs, *self.constants, *self.outputs})]
        return max([*ends, *self._live_bytes])

    @cached_property
    def flops(self) -> int:
        """Estimated floating-point operations of one call (``functional_bp.costs``)."""
        return sum(equation.flops for equation in self.equations)

    @cached_property
    def bytes_read(self) -> int:
        """Bytes that the equations read in one call, before any fusion."""
        return sum(equation.bytes_read for equation in self.equations)

    @cached_property
    def bytes_written(self) -> int:
        """Bytes that the equations write in one call, before any fusion."""
        return sum(equation.bytes_written for equation in self.equations)

    @property
    def bytes(self) -> int:
        """Bytes read and written in one call, before any fusion."""
        return self.bytes_read + self.bytes_written

    @property
    def input_bytes(self) -> int:
        """Bytes of all inputs and constants."""
        return sum(v.bytes for v in (*self.inputs, *self.constants))

    def walk(self, depth: int = 0, runs: int = 1) -> Iterator[Visit]:
        """Every equation, those of nested graphs after the equation that holds them."""
        for equation in self.equations:
            yield Visit(self, equation, depth, runs)
            for nested in equation.nested:
                inner = runs * (1 if nested.runs is None else nested.runs)
                yield from nested.graph.walk(depth + 1, inner)

    @property
    def exact(self) -> bool:
        """Whether every loop's trip count is known, so that costs are not lower bounds."""
        return all(n.runs is not None for visit in self.walk() for n in visit.equation.nested)

    def text(self, width: int | None = None, depth: int = 1) -> str:
        """The graph as an aligned table.

        Args:
            width: characters per line, by default the terminal's. Narrower tables cut long cells,
                then leave out the name scope, the source and the rule.
            depth: nested graphs are shown to this depth, and as one line each below it.
        """
        from functional_bp.graph.text import graph_text

        return graph_text(self, width, depth)

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        count = lambda n, what: f"{n} {what}{'' if n == 1 else 's'}"  # noqa: E731
        return (
            f"<Graph {self.name}: {count(len(self.inputs), 'input')}, "
            f"{count(len(self), 'equation')}, {count(len(self.outputs), 'output')}>"
        )
