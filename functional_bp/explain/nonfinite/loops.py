"""``scan`` and ``while`` run step by step, in both directions.

A step is the loop's body as a graph of its own, at what it is fed at that step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import jaxpr_as_fun

from functional_bp import _jax, backprop
from functional_bp.explain.sweeps import plan_of
from functional_bp.graph.inline import opened_jaxpr
from functional_bp.graph.parts import Equation
from functional_bp.graph.view import Graph


def is_loop(equation: Equation) -> bool:
    """Whether an equation is a loop that can be run step by step; not one over rows that stop."""
    if equation.operation == "while":
        return equation.nested[0].graph.outputs[0].shape == ()
    return equation.operation == "scan"


class Step(NamedTuple):
    """One step of a loop.

    Attributes:
        number: which of them, from 0; of a reversed ``scan`` too, the index in ``xs``.
        steps: how many there are.
        graph: the loop's body.
        operands: what the body is fed.
        seeds: the cotangents of what it returns, None for none; all None in a forward sweep.
    """

    number: int
    steps: int
    graph: Graph
    operands: list[Any]
    seeds: list[Any]


class Loop:
    """An equation ``scan`` or ``while`` with the values of its operands."""

    def __init__(self, equation: Equation, operands: Sequence[Any], max_steps: int | None) -> None:
        params = equation.eqn.params
        self.body = equation.nested[-1].graph
        self.max_steps = max_steps
        self.is_scan = equation.operation == "scan"
        if self.is_scan:
            consts, self.carries = _jax.scan_counts(params)
            self.length: int = params["length"]
            self.is_reversed: bool = params["reverse"]
        else:
            tests, consts = params["cond_nconsts"], params["body_nconsts"]
            self.tests, operands = operands[:tests], operands[tests:]
            self.carries = len(operands) - consts
            self.condition = _function(equation.nested[0].graph)
        self.consts = list(operands[:consts])
        self.start = list(operands[consts : consts + self.carries])
        self.xs = list(operands[consts + self.carries :])
        self.run = _function(self.body)

    def forward(self) -> Iterator[tuple[Step, list[Any]]]:
        """Each step with what it returns, in the order in which they run."""
        fed = self._fed()
        count = len(fed)
        for number, operands in fed:
            outs = self.run(*operands)
            yield Step(number, count, self.body, operands, [None] * len(outs)), outs

    def reverse(self, bars: Sequence[Any]) -> Iterator[tuple[Step, list[Any]]]:
        """Each step with the cotangents of what the body is fed, last step first.

        Args:
            bars: of the loop's outputs, None for none.
        """
        first, last = len(self.consts), len(self.consts) + self.carries
        outs = self.body.outputs
        on = [bar is not None for bar in bars]
        while True:  # a carry's cotangent that a step makes goes to the step before
            plan = plan_of(opened_jaxpr(self.body), on, self.max_steps)
            reached = plan.reached[-len(self.body.inputs) :]
            grown = [a or b for a, b in zip(on, reached[first:last])] + on[self.carries :]
            if grown == on:
                break
            on = grown
        pull = _pullback(self.body, on, self.max_steps)
        state = [
            (backprop.zeros(v.aval) if bar is None else bar) if o else None
            for bar, v, o in zip(bars[: self.carries], outs, on)
        ]
        fed = self._fed()
        for number, operands in reversed(fed):
            slices = [None if bar is None else bar[number] for bar in bars[self.carries :]]
            seeds = [*state, *slices]
            found = pull(operands, [seed for seed in seeds if seed is not None])
            yield Step(number, len(fed), self.body, operands, seeds), found
            state = [
                (backprop.zeros(v.aval) if bar is None else bar) if o else None
                for bar, v, o in zip(found[first:last], outs, on)
            ]

    def _fed(self) -> list[tuple[int, list[Any]]]:
        """For each step its number and what the body is fed, in the order in which they run."""
        if not self.is_scan:
            return list(self._fed_while())
        order = range(self.length)
        state, fed = self.start, []
        for t in reversed(order) if self.is_reversed else order:
            operands = [*self.consts, *state, *(x[t] for x in self.xs)]
            fed.append((t, operands))
            state = list(self.run(*operands)[: self.carries])
        return fed

    def _fed_while(self) -> Iterator[tuple[int, list[Any]]]:
        state, t = self.start, 0
        while bool(self.condition(*self.tests, *state)[0]):
            operands = [*self.consts, *state]
            yield t, operands
            state, t = list(self.run(*operands)), t + 1


def _function(graph: Graph) -> Callable[..., list[Any]]:
    """A graph as a compiled function of its inputs."""
    run = jax.jit(jaxpr_as_fun(_jax.ClosedJaxpr(opened_jaxpr(graph), ())))
    return lambda *operands: run(*graph.consts, *operands)


def _pullback(graph: Graph, seeded: Sequence[bool], max_steps: int | None) -> Callable[..., Any]:
    """The reverse sweep of a graph: its operands and seeds to the cotangents of its inputs."""
    plan = plan_of(opened_jaxpr(graph), seeded, max_steps)

    def pull(operands: Sequence[Any], given: Sequence[Any]) -> list[Any]:
        rest = iter(given)
        _, residuals = backprop.forward(plan, (), [*graph.consts, *operands])
        bars = [next(rest) if on else None for on in seeded]
        return backprop.reverse(plan, residuals, bars)[len(graph.consts) :]

    return jax.jit(pull)
