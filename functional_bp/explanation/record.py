"""A function's graph at a point is plain data, which every table, picture and search reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from functional_bp.errors import BackpropError
from functional_bp.explanation.full_sweeps import Sweeps, lookup
from functional_bp.explanation.residuals import kept_bytes
from functional_bp.graph.graph import Equation, Graph, Variable


class UnreachedError(BackpropError, KeyError):
    """No path leads from a value to the output, so that it has no cotangent."""


class ByName(Mapping[str, Any]):
    """Arrays stand here by the names of a graph's variables; near ones answer an unknown name."""

    def __init__(self, graph: Graph, arrays: Mapping[Variable, Any]) -> None:
        self._graph, self._arrays = graph, arrays

    def __getitem__(self, name: str | Variable) -> Any:
        variable = lookup(self._graph, name)
        if variable not in self._arrays:
            raise UnreachedError(
                f"{variable} has no cotangent: no path with a derivative leads to the output"
            )
        return self._arrays[variable]

    def __iter__(self) -> Iterator[str]:
        return (v.name for v in self._graph.variables if v in self._arrays and v.name != "_")

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"<{len(self)} arrays: {', '.join(self)}>"


class EvaluatedGraph:
    """A graph is held at a point, with the forward value and the cotangent of every node.

    ``Explanation``, which is this and draws and writes it, says what its attributes are.
    """

    def __init__(
        self, graph: Graph, sweeps: Sweeps, seeds: Sequence[Any], max_steps: int | None = None
    ) -> None:
        self.graph = graph
        self.values, self.bars, self.shares = sweeps
        self.seeds, self.max_steps = tuple(seeds), max_steps
        literals = {v: v.value for v in graph.outputs if v.kind == "literal"}
        self.value = ByName(graph, {**literals, **self.values})
        self.cotangent = ByName(graph, self.bars)

    @cached_property
    def kept_bytes(self) -> Mapping[Variable, int]:
        """Count the bytes that ``bp.grad`` keeps for its reverse sweep, by variable.

        What an operation that stays closed keeps inside (a loop, of all its steps) counts at its
        first output. What ``jax.checkpoint`` holds is computed again: of it, only the values
        that its policy saves count.
        """
        return kept_bytes(self.graph, [seed is not None for seed in self.seeds], self.max_steps)

    @cached_property
    def share_counts(self) -> Counter[Variable]:
        """Count the shares that sum to each cotangent: uses, and the output's own cotangent."""
        seeded = [v for v, seed in zip(self.graph.outputs, self.seeds) if seed is not None]
        return Counter([*seeded, *(equation.inputs[k] for equation, k in self.shares)])

    def share(self, equation: Equation, operand: int) -> Any:
        """Say what one use of a variable adds to its cotangent; None where it adds nothing."""
        return self.shares.get((equation, operand))
